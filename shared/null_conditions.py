"""What stands for no condition, as classifier-free guidance needs it, and checks that a network defines it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from .denoiser import Denoiser
from .errors import UsageError


class HasNull(Protocol):
    """A network that defines what stands for no condition."""

    def null(self, condition: str) -> Tensor:
        """Returns what stands for no condition of that name: a row of the condition's batch, without the first axis.

        For a class label it is an index, `()`, such as the number of classes.

        Raises:
            UsageError: if nothing stands for no condition of that name.
        """
        ...


def refuse_missing_condition(denoiser: Denoiser, condition: str) -> None:
    """Raises for a denoiser whose network does not take the condition of that name.

    Raises:
        UsageError: if the denoiser's `conditions` are known and do not contain it.
    """
    if denoiser.conditions is not None and condition not in denoiser.conditions:
        has = ", ".join(denoiser.conditions) or "none"
        raise UsageError(
            f"guidance by {condition} needs a denoiser that takes it, but this one takes {has}: "
            "build its network with the condition (classes=... for labels, tokens=CaptionEncoder(...) for captions), "
            "or use a classifier"
        )


def refuse_without_null(network: Any, condition: str) -> None:
    """Raises for a network that does not define what stands for no condition.

    Raises:
        UsageError: for a network without a method `null`, or whose `null(condition)` raises.
    """
    if not hasattr(network, "null"):
        raise UsageError(
            f"the network does not define what stands for no {condition}: give it a method null(name) that returns a "
            "tensor, or give the same null=... to guidance and to ConditionDropout"
        )
    network.null(condition)  # raises if nothing stands for no condition


def refuse_networks_without_null(denoiser: Denoiser, condition: str) -> None:
    """Raises if a network of the denoiser takes the condition and does not define what stands for its absence.

    A network is not checked if it, or the denoiser or classifier that calls it, lists its `conditions` without it.

    Raises:
        UsageError: as `refuse_without_null` does.
    """
    for caller in denoiser.modules():
        network = getattr(caller, "network", None)
        lists = [takes for m in (caller, network) if (takes := getattr(m, "conditions", None)) is not None]
        if isinstance(network, nn.Module) and all(condition in takes for takes in lists):
            refuse_without_null(network, condition)
