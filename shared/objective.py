"""The base class of training objectives, and the ways to sample training times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from .denoiser import Denoiser
from .errors import UsageError
from .random import Source, Streams, outside_graphs, uniform
from .serialization import serializable
from .tensors import refuse_array, times_at
from .values import notation


class Loss(NamedTuple):
    """The losses of a batch. Training minimizes the mean of `total`.

    Attributes:
        total: the loss of each example, `(B,)`, float32 or better; its unit is that of the objective.
        parts: quantities to log by name, `(B,)` each. Those from `Objective.forward` are weighted so that their mean is
            the mean over uniform times, also if the times were sampled from another distribution.
        t: the times in [0, 1] at which the losses were computed, `(B,)`.
    """

    total: Tensor
    parts: dict[str, Tensor]
    t: Tensor


TimeSampling: TypeAlias = Callable[[int, Source], Tensor]
"""Samples numbers that the process maps to times, `(batch size B, source) -> u`, `(B,)` in [0, 1), float64.

If u is not uniform, the function has an attribute `weight`: `weight(u)` is one over the density of u.
"""
D = TypeVar("D", bound=Denoiser, default=Denoiser, covariant=True)


class Objective(nn.Module, ABC, Generic[D]):
    """A loss of a denoiser at random times. Generic in the denoiser.

    Called with x0 `(B, ...)` and conditions by name; returns a `Loss`, with one random time and one draw of x_t for
    each example.

    Attributes:
        denoiser: the denoiser that is trained.
        times: samples the times of a batch, as numbers in [0, 1) that the corruption maps to its training times.
        draws_times: whether `forward` samples times in a way of its own, and not by `times` and the corruption.
    """

    denoiser: D
    times: TimeSampling
    draws_times: bool = False

    if TYPE_CHECKING:  # nn.Module declares that a call returns Any

        def __call__(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss: ...

    @abstractmethod
    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        """Returns the loss of each example at given times, for one draw of x_t.

        Args:
            x0: clean data, `(B, ...)`.
            t: times in (0, 1], `(B,)`.
            generator: the source of noise, a `torch.Generator`, `Streams` or None for torch's global generator.
            cond: conditions by name.
        """

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        """Returns the loss at random times; for the arguments see `at`."""
        if not isinstance(x0, Tensor):
            refuse_array(x0, "x0")
        u = times_of_rows(self.times, len(x0), generator)
        loss = self.at(x0, times_at(self.denoiser.corruption.training_time(u), x0), generator=generator, **cond)
        return uniform_parts(loss, self.times, u) if hasattr(self.times, "weight") else loss

    def observe(self, loss: Loss) -> None:
        """Takes note of the loss of a whole batch after a training step, in training by parts; does nothing here.

        Objectives that adapt to their losses do so here for parts of a batch (`Streams` with `batch`), so that all
        parts are computed in the same state; they take note of an undivided batch in `forward`.
        """


@outside_graphs
def times_of_rows(times: TimeSampling, count: int, source: Source) -> Tensor:
    """Returns the numbers that `times` samples, `(count,)`; for a part of a batch those of its rows in the whole batch.

    Raises:
        UsageError: for a function that does not return a number for each example.
    """
    part = source if isinstance(source, Streams) and source.batch is not None else None
    whole, size = (source, count) if part is None else (part.whole(), part.batch or count)
    u = times(size, whole)
    if u.shape != (size,):
        raise UsageError(f"times returned shape {tuple(u.shape)} for {size} examples: return a number for each")
    if part is None:
        return u
    assert isinstance(whole, Streams)
    part.calls = whole.calls
    return u[part.indices.to(u.device)]


class ObjectiveWrapper(Objective[D]):
    """An objective around another one, with the same denoiser and the same way to sample times.

    Args:
        objective: the inner objective.
    """

    def __init__(self, objective: Objective[D]) -> None:
        super().__init__()
        self.objective, self.times, self.draws_times = objective, objective.times, objective.draws_times

    @property
    def denoiser(self) -> D:
        """The denoiser of the inner objective."""
        return self.objective.denoiser

    def observe(self, loss: Loss) -> None:
        self.objective.observe(loss)


def uniform_parts(loss: Loss, times: TimeSampling, u: Tensor) -> Loss:
    """Returns the loss with its parts weighted so that their mean is that over uniform times.

    `loss.total` stays as it is: the distribution of u is a part of the loss that is trained.

    Args:
        loss: the loss at the times that the process maps u to.
        times: the function that sampled u; if u is not uniform, it has `weight(u)`, one over the density of u.
        u: `(B,)`, in [0, 1).
    """
    weight = getattr(times, "weight", None)
    if weight is None:
        return loss
    ahead = u.device.type == "cpu"  # a copy from there does not wait for the device
    return loss._replace(parts={k: part * weight(u).to(part, non_blocking=ahead) for k, part in loss.parts.items()})


@serializable("shared.independent", formerly="unnoise.shared.objective.independent")
def independent(batch: int, generator: Source = None) -> Tensor:
    """Returns independent uniform numbers on [0, 1), `(batch,)`, float64, as used for DDPM and the score SDEs."""
    return uniform((batch,), generator, dtype=torch.float64)


@serializable("shared.Stratified", formerly="unnoise.shared.objective.Stratified")
@dataclass(frozen=True)
class Stratified:
    """Stratified sampling: `u^power` with one uniform u in each of `batch` equal strata of [0, 1).

    With power 1 it is like the low-discrepancy sampler of Kingma et al. (2021, appendix I.1), which has the same u in
    all strata. Strata keep the mean of the loss and lower its variance. A power above 1 favors small times: in
    expectation the loss is that of `independent` times with the additional weight `u^(1/power - 1) / power`. Under VP
    half of all times are nearly pure noise (sigma_t > 0.96 from t = 0.5), and contribute little to training.

    Attributes:
        power: exponent of u, positive; 1 for uniform times.
    """

    power: float = 1.0
    __repr__ = notation

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise UsageError(f"power={self.power}: give a positive number, 1 for uniform times")

    def __call__(self, batch: int, generator: Source = None) -> Tensor:
        """Returns the samples in increasing order of their strata, `(batch,)`, float64, in [0, 1)."""
        u = uniform((batch,), generator, dtype=torch.float64)
        return ((torch.arange(batch, device=u.device) + u) / batch) ** self.power

    def weight(self, u: Tensor) -> Tensor:
        """Returns one over the density of the samples, `power u^(1 - 1 / power)`: weights for a mean over uniform u."""
        return self.power * u ** (1 - 1 / self.power)


@serializable("shared.antithetic", formerly="unnoise.shared.objective.antithetic")
def antithetic(batch: int, generator: Source = None) -> Tensor:
    """Returns u for half of the batch and 1 - u for the other half, float64 (the code of DDIM, Song et al. 2020).

    u is uniform and independent for each pair. The result is `(batch,)`, in [0, 1); for an odd batch the last 1 - u is
    left out.
    """
    u = uniform((batch,), generator, dtype=torch.float64)[: (batch + 1) // 2]  # `Streams` has a number for each row
    return torch.cat([u, torch.nextafter(1 - u, torch.zeros_like(u))])[:batch]


def refuse_nonuniform_times(times: TimeSampling) -> None:
    """Raises for training times that are not uniform, over which the loss would not be a bound.

    Raises:
        UsageError: if `times.weight(u)` is not 1 for all u, as for `Stratified` with a power other than 1.
    """
    u = torch.tensor([0.1, 0.35, 0.6, 0.85], dtype=torch.float64)
    if hasattr(times, "weight") and not torch.allclose(times.weight(u), torch.ones_like(u)):
        raise UsageError(
            f"times={times} are not uniform, but this loss is a bound only as a mean over uniform times: "
            "give Stratified(), independent or antithetic"
        )
