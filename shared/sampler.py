"""A sampler walks from noise to data, one level at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from operator import index
from typing import Any, Generic, TypeAlias, cast

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from .calling import networks_of, refusing_nan, warn_in_training
from .corruption import Corruption
from .denoiser import Denoiser
from .errors import UsageError
from .progress import Progress, silent
from .random import Source
from .tensors import refuse_unless
from .values import same

Step: TypeAlias = Callable[..., Tensor]
D = TypeVar("D", bound=Denoiser, default=Denoiser, covariant=True)
C = TypeVar("C", bound=Corruption, default=Corruption, covariant=True)


class Sampler(ABC, Generic[D, C]):
    """Runs `step` along a grid of times. Generic in the denoiser and in the process that it reverses.

    Attributes:
        denoiser: says what x_0 was.
        order: global order of convergence in the step size for samplers of an ODE, None for others.
        looks_back: whether a step uses what was learnt at earlier levels of the run.
        plans: whether the first step of a run decides what later ones do, so that nothing else may change the state
            between them.
    """

    order: int | None = None
    looks_back: bool = False
    plans: bool = False

    def __init__(self, denoiser: D) -> None:
        self.denoiser = denoiser

    @property
    def corruption(self) -> C:
        """The process that is reversed."""
        return cast(C, self.denoiser.corruption)

    @abstractmethod
    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """`x_t` to `x_s`, s < t, both scalars; at s = 0 the denoiser's mean (or its draw)."""

    def start(self, shape: Sequence[int], t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """The state that a run of that shape starts from at t, the first time of its grid."""
        x = self.corruption.prior(shape, generator=generator, device=device_of(self.denoiser))
        return self.denoiser.start(x, t, generator=generator, **cond)

    def begin(self) -> Step:
        """The `step` of one run: samplers that look back at earlier levels give one with an empty memory."""
        return self.step

    def times(self, steps: int | Tensor) -> Tensor:
        """The grid of that many steps, or the one that was given, checked."""
        if not isinstance(steps, Tensor) and hasattr(steps, "__index__"):  # numpy's whole numbers too
            return self.corruption.grid(index(steps))
        if not isinstance(steps, Tensor):
            raise UsageError(
                f"steps={steps!r}: give a whole number, or a grid of times such as continuous.strided(50, 1000)"
            )
        grid = checked(steps)
        self.corruption.refuse_grid(grid)
        return grid

    def path(self, grid: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The pairs (t, s) that a run visits: the grid's neighbours, unless a sampler goes back up on its way."""
        return list(pairwise(grid))

    @torch.no_grad()
    def trajectory(
        self,
        x: Tensor | None = None,
        *,
        shape: Sequence[int] | None = None,
        steps: int | Tensor,
        generator: Source = None,
        progress: Progress = silent,
        **cond: Any,
    ) -> Iterator[Tensor]:
        """Yields the state after every step.

        Args:
            x: the state to start from, at the first time of the grid; or
            shape: the shape `(B, ...)` of a start drawn from the prior.
            steps: the number of steps, or a decreasing grid of times.
            generator: the source of noise, a `torch.Generator` or `Streams`.
            progress: how to report progress.
            cond: conditions for the network, by name.

        Raises:
            UsageError: without exactly one of x and shape, or for a grid that does not decrease within [0, 1].
        """
        if (x is None) == (shape is None):
            raise UsageError("give either a start x or the shape of one, such as shape=(16, 1, 8, 8)")
        if isinstance(x, tuple | list) and all(hasattr(n, "__index__") for n in x):
            raise UsageError(f"x={x} is a shape: give shape={tuple(x)}")
        if shape is not None and (
            not isinstance(shape, Sequence) or not all(hasattr(n, "__index__") and n > 0 for n in shape)
        ):
            raise UsageError(f"shape={shape}: give whole numbers, the batch first, such as shape=(16, 1, 8, 8)")
        warn_in_training(self.denoiser)
        grid = self.times(steps)
        x = self.start(shape, grid[0], generator=generator, **cond) if x is None else self.corruption.state(x)
        step, path = self.begin(), self.path(grid)
        for t, s in progress(path, len(path), "sampling"):
            x = step(x, t, s, generator=generator, **cond)
            yield x

    def __call__(
        self,
        x: Tensor | None = None,
        *,
        shape: Sequence[int] | None = None,
        steps: int | Tensor,
        generator: Source = None,
        progress: Progress = silent,
        **cond: Any,
    ) -> Tensor:
        """The last state of `trajectory`."""
        with refusing_nan(self.denoiser):
            for state in self.trajectory(x, shape=shape, steps=steps, generator=generator, progress=progress, **cond):
                last = state
        if last.is_floating_point():
            refuse_unless(
                torch.isfinite(last),
                "the samples hold NaN or infinity: look for them in the network or the conditions",
                wait=True,
            )
        return last


class PredictorCorrector(Sampler):
    """A predictor to the next level, then a corrector there (Song et al. 2021, algorithm 1; of symbols Campbell et al.
    2022, section 4.4).

    Args:
        predictor: any sampler; `continuous.DDIM` is one, and so is `discrete.TauLeaping`.
        corrector: a sampler that stays at the level it is given, such as `sde.Langevin` or `discrete.RateCorrector`.
    """

    def __init__(self, predictor: Sampler, corrector: Sampler) -> None:
        super().__init__(on_one_process(unplanned(predictor), corrector).denoiser)
        self.predictor, self.corrector = predictor, corrector
        self.looks_back = predictor.looks_back

    def begin(self) -> Step:
        predict, correct = self.predictor.begin(), self.corrector.begin()

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            x = predict(x, t, s, generator=generator, **cond)
            return correct(x, t, s, generator=generator, **cond)

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)


class CorrectorPredictor(Sampler):
    """A corrector at the level where x is, then a predictor to the next: the order of Song et al.'s (2021) code, at
    every level of the grid from the noisiest to the last, after which the predictor denoises.

    Args:
        predictor, corrector: as `PredictorCorrector`.
    """

    def __init__(self, predictor: Sampler, corrector: Sampler) -> None:
        super().__init__(on_one_process(single_step(unplanned(predictor)), corrector).denoiser)
        self.predictor, self.corrector = predictor, corrector

    def begin(self) -> Step:
        predict, correct = self.predictor.begin(), self.corrector.begin()

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            # A corrector stays at its second time; its first is a step above, here as far as s is below.
            x = correct(x, 2 * t - s, t, generator=generator, **cond)
            return predict(x, t, s, generator=generator, **cond)

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)


def on_one_process(predictor: Sampler, corrector: Sampler) -> Sampler:
    """The predictor, refused if the corrector was built for another process or another model of its reverse."""
    if predictor.corruption != corrector.corruption:
        raise UsageError("predictor and corrector belong to different schedules: build both from one denoiser")
    reverse = [getattr(sampler.denoiser, "reverse", None) for sampler in (predictor, corrector)]
    if not same(*reverse):
        raise UsageError(
            f"the predictor reads the network as {reverse[0]}, the corrector as {reverse[1]}: build both from one denoiser"
        )
    return predictor


def single_step(sampler: Sampler) -> Sampler:
    """The sampler, refused if it looks back at levels that a wrapper moves away from."""
    if sampler.looks_back:
        raise UsageError(
            f"{type(sampler).__name__} looks back at earlier levels, which this leaves: take a single-step sampler, such as DDIM"
        )
    return sampler


def unplanned(sampler: Sampler) -> Sampler:
    """The sampler, refused if its first step decides what later ones do, which a change between them would undo."""
    if sampler.plans:
        raise UsageError(
            f"{type(sampler).__name__} decides at its first step when each position changes, and here positions change between its "
            "steps: take Ancestral, or hold known tokens with discrete.Infilling"
        )
    return sampler


def checked(grid: Tensor) -> Tensor:
    """A grid of times given by hand.

    Raises:
        UsageError: unless it decreases within [0, 1].
    """
    grid = grid.detach().to("cpu", torch.float64)
    if grid.ndim != 1 or len(grid) < 2 or grid[0] > 1 or grid[-1] < 0 or not bool((grid.diff() < 0).all()):
        raise UsageError(f"a grid of times must decrease within [0, 1], such as 1, 0.5, 0; got {grid.tolist()}")
    return grid


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters; the CPU for one that has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


class Evaluations:
    """How often a denoiser's network was called."""

    def __init__(self) -> None:
        self.calls = 0


@contextmanager
def counted(denoiser: Denoiser) -> Iterator[Evaluations]:
    """Counts the network evaluations (NFE) of `denoiser` inside a `with` block.

    A denoiser without a network counts itself.
    """
    count = Evaluations()

    def add(*_: Any) -> None:
        count.calls += 1

    networks = networks_of(denoiser) or [denoiser]
    handles = [network.register_forward_pre_hook(add) for network in networks]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
