"""What every denoiser does: it estimates x_0 from x_t."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from .corruption import Corruption
from .errors import UsageError
from .random import Source

C = TypeVar("C", bound=Corruption, default=Corruption, covariant=True)


class Denoiser(nn.Module, ABC, Generic[C]):
    """`E[x_0 | x_t]` for Gaussian corruptions, `log p(x_0 | x_t)` over K classes for categorical ones.

    Generic in the corruption, so a type checker knows that a `Denoiser[Schedule]` has `alpha_t` and `sigma_t`.

    Attributes:
        corruption: the process that made x_t.
        conditions: names of the conditions that it takes; None where its network does not list them.
    """

    corruption: C
    conditions: tuple[str, ...] | None = None

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns the estimate of x_0.

        Args:
            x_t: `(B, ...)`.
            t: a scalar or `(B,)`.
            cond: conditions by name, given to the network as they are.
        """

    def start(self, x: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Returns the state that sampling starts from at t, `(B, ...)`, given a draw x of the corruption's prior.

        That is x itself, unless the process keeps some of the data at t that the prior does not have.
        """
        return x


def taken(denoiser: Denoiser, cond: dict[str, Any]) -> dict[str, Any]:
    """Those of the conditions that the denoiser takes: all, where its network does not say."""
    return (
        cond
        if denoiser.conditions is None
        else {name: value for name, value in cond.items() if name in denoiser.conditions}
    )


def on_every_row(v: Tensor, x: Tensor) -> Tensor:
    """`v`, scalar or `(B,)`, as float32 `(B,)` on the device of `x`, without waiting for an accelerator.

    Raises:
        UsageError: for times of another shape.
    """
    if v.ndim > 1 or (v.ndim and len(v) not in (1, len(x))):
        raise UsageError(
            f"times of shape {tuple(v.shape)} for {len(x)} examples: give one, or one for each, ({len(x)},)"
        )
    if v.ndim == 0 and v.device.type == "cpu":
        return torch.full((len(x),), float(v), device=x.device)
    return v.float().to(x.device).expand(len(x))
