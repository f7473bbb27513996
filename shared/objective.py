"""An objective turns clean data into a loss for each example; the trainer knows nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from .denoiser import Denoiser
from .errors import UsageError
from .random import Source, uniform
from .serialization import serializable
from .tensors import refuse_array


class Loss(NamedTuple):
    """The losses of a batch.

    Attributes:
        total: `(B,)`, float32 or better.
        parts: by name, `(B,)` each, for the log; from `forward` their mean is that over uniform times, however times
            are drawn.
        t: `(B,)`, the times that were drawn.
    """

    total: Tensor
    parts: dict[str, Tensor]
    t: Tensor


Draw: TypeAlias = Callable[[int, Source], Tensor]
D = TypeVar("D", bound=Denoiser, default=Denoiser, covariant=True)


class Objective(nn.Module, ABC, Generic[D]):
    """A loss of a denoiser at times that are drawn for each batch. Generic in the denoiser.

    Attributes:
        denoiser: what is trained.
        times: how the times of a batch are drawn, as numbers in [0, 1) that the corruption maps to its times.
        draws_levels: whether `forward` draws times by a rule of its own, so that the loss cannot be taken at the
            corruption's training times.
    """

    denoiser: D
    times: Draw
    draws_times: bool = False

    @abstractmethod
    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        """The loss at given times `(B,)`. `x0`: `(B, ...)`; conditions by name."""

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        """The loss at drawn times."""
        u = self.times(len(refuse_array(x0, "x0")), generator)
        loss = self.at(x0, self.denoiser.corruption.training_time(u).to(x0.device), generator=generator, **cond)
        return evened(loss, self.times, u)


def evened(loss: Loss, times: Draw, u: Tensor) -> Loss:
    """The loss with parts whose mean is that over uniform times, for `u` that `times` drew."""
    weight = getattr(times, "weight", None)  # of draws that are not uniform
    return (
        loss
        if weight is None
        else loss._replace(parts={name: part * weight(u).to(part) for name, part in loss.parts.items()})
    )


@serializable("shared.independent", formerly="unnoise.shared.objective.independent")
def independent(batch: int, generator: Source = None) -> Tensor:
    """`batch` independent uniform numbers on [0, 1), float64, as published for DDPM and the score SDEs."""
    return uniform((batch,), generator, dtype=torch.float64)


@serializable("shared.Stratified", formerly="unnoise.shared.objective.Stratified")
@dataclass(frozen=True)
class Stratified:
    """`u^power` with one uniform u in each of `batch` equal strata of [0, 1), float64 (Kingma et al. 2021, appendix
    I.1, for power 1).

    Strata keep the mean and lower the variance. A power above 1 visits small times more: the loss is then that of
    `independent` times with the further weight `u^(1/power - 1) / power`. Under VP half of all times are nearly pure
    noise (sigma_t > 0.96 from t = 0.5) and teach little.

    Attributes:
        power: 1 for uniform times.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise UsageError(f"power={self.power}: give a positive number, 1 for uniform times")

    def __call__(self, batch: int, generator: Source = None) -> Tensor:
        """`(batch,)`."""
        u = uniform((batch,), generator, dtype=torch.float64)
        return ((torch.arange(batch, device=u.device) + u) / batch) ** self.power

    def weight(self, u: Tensor) -> Tensor:
        """One over the density of the times, `power u^(1 - 1 / power)`: a mean with it is one over uniform times."""
        return self.power * u ** (1 - 1 / self.power)


@serializable("shared.antithetic", formerly="unnoise.shared.objective.antithetic")
def antithetic(batch: int, generator: Source = None) -> Tensor:
    """U for half of the batch and 1 - u for the other, float64 (Song et al. 2020, DDIM code)."""
    u = uniform((batch,), generator, dtype=torch.float64)[: (batch + 1) // 2]  # `Streams` give a number to every row
    return torch.cat([u, torch.nextafter(1 - u, torch.zeros_like(u))])[:batch]


def refuse_uneven(times: Draw) -> None:
    """Refuses training times that are not uniform, for a loss that is a bound only in the mean over uniform ones.

    Raises:
        UsageError: with what to do.
    """
    if getattr(times, "power", 1.0) != 1:
        raise UsageError(
            f"times={times}: this loss is a bound in the mean over uniform times, and these are not: take Stratified(), independent or "
            "antithetic"
        )
