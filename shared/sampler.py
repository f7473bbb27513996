"""The base class of samplers, which go from noise to data along a grid of times, and predictor-corrector samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from operator import index
from typing import Any, Generic, TypeAlias, cast, get_args, get_origin

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from .calling import networks_of, refusing_nan, warn_in_training
from .corruption import Corruption
from .denoiser import Denoiser, refuse_other_denoiser
from .errors import UsageError, shown
from .grid_values import GridValues, time_above
from .progress import Progress, silent
from .random import Source
from .serialization import serializable
from .tensors import refuse_unless
from .values import same

Step: TypeAlias = Callable[..., Tensor]
"""`(x_t, t, s, *, generator, **cond) -> x_s`, as `Sampler.step`."""
D = TypeVar("D", bound=Denoiser, default=Denoiser, covariant=True)
C = TypeVar("C", bound=Corruption, default=Corruption, covariant=True)
S = TypeVar("S", bound="Sampler")


class Sampler(ABC, Generic[D, C]):
    """Samples by `step`s along a grid of times. Generic in the denoiser and in the process that it reverses.

    Called with `shape=(B, ...)` or a state to start from, `steps=N` or a grid of times, a generator and conditions by
    name; returns the samples, `(B, ...)`. `steps=N` stands for N + 1 times, from 1 down to 0.

    Attributes:
        denoiser: estimates x_0.
        order: global order of convergence in the step size for samplers of an ODE, None for others.
        looks_back: whether a step uses network outputs of earlier steps, as multistep solvers do.
        plans: whether the first step of a run decides what later steps do, so that the state must not be changed
            between steps.
    """

    order: int | None = None
    looks_back: bool = False
    plans: bool = False
    _kind: type[Denoiser] = Denoiser

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in vars(cls).get("__orig_bases__", ()):  # the kind of denoiser that `Sampler[kind, process]` declares
            if get_origin(base) is Sampler and isinstance(get_args(base)[0], type):
                cls._kind = get_args(base)[0]

    def __init__(self, denoiser: D) -> None:
        refuse_other_denoiser(denoiser, self._kind, type(self).__name__)
        self.denoiser = denoiser

    @property
    def corruption(self) -> C:
        """The process that is reversed."""
        return cast(C, self.denoiser.corruption)

    @abstractmethod
    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Returns x_s given x_t, of the shape of x_t.

        Args:
            x: x_t, `(B, ...)`.
            t, s: scalars, s < t; at s = 0 the result is the denoiser's mean (or a sample of its distribution).
            generator: the source of noise, a `torch.Generator`, `Streams` or None for torch's global generator.
            cond: conditions for the network, by name, with a row for each example.
        """

    def start(self, shape: Sequence[int], t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Returns the state of the given shape `(B, ...)` that a run starts from at t, the first time of its grid.

        It is sampled from the process's prior, on the device of the denoiser.
        """
        x = self.denoiser.corruption.prior(shape, generator=generator, device=device_of(self.denoiser))
        return self.denoiser.start(x, t, generator=generator, **cond)

    def begin(self) -> Step:
        """Returns the step function of a new run, called as `step` is.

        The function of a multistep sampler stores the network outputs of the run's earlier steps.
        """
        return self.step

    def times(self, steps: int | Tensor) -> Tensor:
        """Returns the grid of `steps` steps, or a given grid after a check: decreasing times, float64, on the CPU.

        Raises:
            UsageError: for another type, and for a grid that does not decrease within [0, 1].
        """
        if not isinstance(steps, Tensor) and hasattr(steps, "__index__"):  # also NumPy integers
            return self.corruption.grid(index(steps))
        if not isinstance(steps, Tensor):
            raise UsageError(
                f"steps={steps!r}: give a whole number, or a grid of times such as continuous.strided(50, 1000)"
            )
        grid = checked_grid(steps)
        self.corruption.refuse_grid(grid)
        return grid

    def path(self, grid: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns the pairs (t, s) of the steps of a run: neighboring times, unless a sampler also adds noise back."""
        return list(pairwise(grid.unbind()))

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
        """Yields the state `(B, ...)` after every step, without gradients; the start is not yielded.

        Args:
            x: the state to start from, at the first time of the grid; or
            shape: the shape `(B, ...)` of a start that is sampled from the prior.
            steps: the number of steps, or a grid of decreasing times in [0, 1].
            generator: the source of noise, a `torch.Generator`, `Streams` or None for torch's global generator.
            progress: a function that wraps the steps to report progress, such as `progress.bar`.
            cond: conditions for the network, by name, with a row for each example.

        Raises:
            UsageError: unless exactly one of x and shape is given, and for a grid that does not decrease within [0, 1].
        """
        if (x is None) == (shape is None):
            raise UsageError("give either a state x to start from or a shape, such as shape=(16, 1, 8, 8)")
        if isinstance(x, tuple | list) and all(hasattr(n, "__index__") for n in x):
            raise UsageError(f"x={x} is a shape, not a state: give shape={tuple(x)}")
        if shape is not None and (
            not isinstance(shape, Sequence) or not all(hasattr(n, "__index__") and n > 0 for n in shape)
        ):
            raise UsageError(f"shape={shape}: give whole numbers, the batch size first, such as shape=(16, 1, 8, 8)")
        warn_in_training(self.denoiser)
        grid = self.times(steps)
        if x is not None:
            x = self.corruption.state(x)
        else:
            assert shape is not None  # exactly one of the two is given
            with torch.no_grad():
                x = self.start(shape, grid[0], generator=generator, **cond)
        step, path = self.begin(), self.path(grid)
        values = GridValues(path)
        for t, s in progress(path, len(path), "sampling"):
            with torch.no_grad(), values:  # not at a yield: they would act on the caller
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
        """Returns the last state of `trajectory`, `(B, ...)`, which takes the same arguments.

        Raises:
            UsageError: as `trajectory` does, for samples with NaN or infinity, and for NaN from a network of tokens.
        """
        with refusing_nan(self.denoiser):
            for state in self.trajectory(x, shape=shape, steps=steps, generator=generator, progress=progress, **cond):
                last = state
        if last.is_floating_point():
            refuse_unless(
                torch.isfinite(last.sum(dtype=torch.float32)),
                "the samples contain NaN or infinity: check the network's weights and the conditions",
                wait=True,
            )
        return last


@serializable("shared.PredictorCorrector")
class PredictorCorrector(Sampler[D, C]):
    """A predictor step to the next time, then a corrector step at that time.

    Song et al. 2021, algorithm 1; for categorical data Campbell et al. 2022, section 4.4. The types of its denoiser and
    of its process are those of the predictor.

    Args:
        predictor: a sampler, such as `continuous.DDIM` or `discrete.TauLeaping`.
        corrector: a sampler whose step from t to s takes x_s and returns x_s, such as `sde.Langevin` or
            `discrete.RateCorrector`; after the step to s = 0 these do nothing.

    Raises:
        UsageError: for a predictor that plans later steps, and for two processes or reverse models.
    """

    def __init__(self, predictor: Sampler[D, C], corrector: Sampler) -> None:
        super().__init__(on_one_process(without_plan(predictor), corrector).denoiser)
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


@serializable("shared.CorrectorPredictor")
class CorrectorPredictor(Sampler[D, C]):
    """A corrector step at the present time, then a predictor step to the next: the order of Song et al.'s (2021) code.

    The corrector acts at every noisy time of the grid; the last predictor step denoises.

    Args:
        predictor, corrector: as in `PredictorCorrector`; the predictor is a single-step sampler.

    Raises:
        UsageError: as `PredictorCorrector` does, and for a multistep predictor.
    """

    def __init__(self, predictor: Sampler[D, C], corrector: Sampler) -> None:
        super().__init__(on_one_process(single_step(without_plan(predictor)), corrector).denoiser)
        self.predictor, self.corrector = predictor, corrector

    def begin(self) -> Step:
        predict, correct = self.predictor.begin(), self.corrector.begin()

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            # A corrector acts at its second time; the first is that of the step before, here as far above t as s is
            # below.
            x = correct(x, time_above(t, s), t, generator=generator, **cond)
            return predict(x, t, s, generator=generator, **cond)

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)


def on_one_process(predictor: S, corrector: Sampler) -> S:
    """Returns the predictor, and raises if the corrector belongs to another process or reverse model.

    Raises:
        UsageError: for two processes that are not equal, or two reverse models of categorical denoisers, which
            determine `p(x_s | x_t)`.
    """
    if predictor.corruption != corrector.corruption:
        raise UsageError("predictor and corrector have different schedules: build both from one denoiser")
    reverse = [getattr(sampler.denoiser, "reverse", None) for sampler in (predictor, corrector)]
    if not same(*reverse):
        raise UsageError(
            f"the reverse model of the predictor is {reverse[0]}, that of the corrector {reverse[1]}: "
            "build both from one denoiser"
        )
    return predictor


def single_step(sampler: S) -> S:
    """Returns the sampler, and raises if it looks back at earlier steps, between which a wrapper changes the state.

    Raises:
        UsageError: for such a sampler.
    """
    if sampler.looks_back:
        raise UsageError(
            f"{type(sampler).__name__} looks back at earlier steps, but here the state is changed between steps: "
            "give a single-step sampler, such as DDIM"
        )
    return sampler


def without_plan(sampler: S) -> S:
    """Returns the sampler, and raises if its first step decides what later steps do.

    Raises:
        UsageError: for such a sampler.
    """
    if sampler.plans:
        raise UsageError(
            f"{type(sampler).__name__} decides at its first step when each position changes, but here positions are "
            "changed between steps: give Ancestral, or keep known tokens with discrete.Infilling"
        )
    return sampler


def checked_grid(grid: Tensor) -> Tensor:
    """Returns a grid of times on the CPU in float64, and raises unless it decreases within [0, 1].

    Raises:
        UsageError: for any other tensor.
    """
    grid = grid.detach().to("cpu", torch.float64)
    if grid.ndim != 1 or len(grid) < 2 or grid[0] > 1 or grid[-1] < 0 or not bool((grid.diff() < 0).all()):
        raise UsageError(
            f"the grid {shown(grid.tolist())} does not decrease within [0, 1]: give times such as 1, 0.5, 0"
        )
    return grid


def device_of(module: nn.Module) -> torch.device:
    """Returns the device of a module's parameters, the CPU for a module without parameters."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


class Evaluations:
    """The number of calls of a denoiser's network.

    Attributes:
        calls: the number of calls so far; a batch counts as one.
    """

    def __init__(self) -> None:
        self.calls = 0


@contextmanager
def counted(denoiser: Denoiser) -> Iterator[Evaluations]:
    """Counts the network evaluations (NFE) of `denoiser` inside a `with` block.

    `with counted(denoiser) as count` yields an `Evaluations`; its number remains after the block. The calls of all
    networks inside the denoiser are added up. For a denoiser without a network, its own calls are counted.
    """
    count = Evaluations()

    def add(*_: Any) -> None:
        count.calls += 1

    networks, estimate = networks_of(denoiser), getattr(denoiser, "estimate", None)
    handles = [network.register_forward_pre_hook(add) for network in networks or ([denoiser] if not estimate else [])]
    if estimate and not networks:  # samplers call `estimate`, as `forward` does

        def one_more(*args: Any, **cond: Any) -> Any:
            add()
            return estimate(*args, **cond)

        vars(denoiser)["estimate"] = one_more
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
        vars(denoiser).pop("estimate", None)
