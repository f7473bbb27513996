"""Code lengths of recipes: the variational bound of a chain, the exact likelihood of a flow, the bound of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ..continuous import VariationalBound, tabulate
from ..continuous.posterior import ReverseVariance
from ..sde import Adaptive, ChangeOfVariables
from ..shared.code_length import CodeLength
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import Clipped, DenoiserWrapper, GaussianDenoiser
from ..shared.gaussian.dequantization import Dequantizer, UniformDequantization
from ..shared.progress import Progress
from ..shared.quantization import Quantization
from ..shared.random import Source
from ..shared.serialization import serializable
from ..shared.standardization import Standardization
from ..shared.values import notation
from .parts import Context, Part, built, part

if TYPE_CHECKING:
    from ..discrete import CategoricalDenoiser

CodeLengthOf = Callable[..., CodeLength]
"""Computes code lengths from quantization levels, a source of noise, a progress reporter and conditions by name."""


class GaussianCodeLength(ABC):
    """How the code length of Gaussian denoisers is computed. Concrete classes are frozen dataclasses.

    Attributes:
        kind: whether the code length is an upper bound, or exact up to dequantization.
    """

    kind: ClassVar[str]

    @abstractmethod
    def of(
        self, denoiser: GaussianDenoiser, quantization: Quantization | Standardization, variance: ReverseVariance
    ) -> CodeLengthOf:
        """Returns the code length under a denoiser, a function of (levels, source of noise, progress, conditions).

        Of real-valued data, whose scale is a `Standardization`, it is `-log p(x)` of a density in their own units.
        `variance` is the variance of the reverse steps.
        """


@serializable("experiments.Bound")
@dataclass(frozen=True)
class Bound(GaussianCodeLength):
    """The variational bound of a chain of steps.

    Attributes:
        terms: number of terms of the bound that are evaluated for each image, stratified over the steps; None for all.
        steps: number of steps of the chain for a schedule in continuous time; None for 256. A table has its own steps.
        clip: the wrapper of the denoiser that limits its estimates, such as `Clipped()`; None for no limit. Estimates
            of real-valued data, which have no range, are not limited.
    """

    terms: int | None = 100
    steps: int | None = None
    clip: Part[DenoiserWrapper] | None = part(Clipped)

    kind: ClassVar[str] = "upper bound"
    __repr__ = notation

    def __post_init__(self) -> None:
        for name in ("terms", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: give a whole number of at least 1, or None")

    def of(
        self, denoiser: GaussianDenoiser, quantization: Quantization | Standardization, variance: ReverseVariance
    ) -> CodeLengthOf:
        bound = self.bound(denoiser, quantization, variance)
        if isinstance(quantization, Standardization):
            return in_units(quantization, bound)
        return lambda k, generator, progress, **cond: bound(
            quantization.continuous(k), generator=generator, progress=progress, **cond
        )

    def bound(
        self, denoiser: GaussianDenoiser, quantization: Quantization | Standardization, variance: ReverseVariance
    ) -> VariationalBound:
        """Returns the bound as an object, which also has the rate-distortion curve."""
        rows = getattr(denoiser.corruption, "steps", None)
        if rows is not None and self.steps not in (None, rows):
            raise UsageError(f"steps={self.steps}: the schedule is a table of {rows} steps: leave out steps")
        chain = denoiser if rows is not None else denoiser.on(tabulate(denoiser.corruption, self.steps or 256))
        if isinstance(quantization, Standardization):
            if self.clip not in (None, part(Clipped)):
                raise UsageError(f"clip={self.clip} limits estimates to a range, and real-valued data have none")
            return VariationalBound(chain, None, variance=variance, terms=self.terms)
        clipped = built(self.clip, Context(denoiser=chain)) if self.clip is not None else chain
        return VariationalBound(clipped, quantization, variance=variance, terms=self.terms)


@serializable("experiments.Exact")
@dataclass(frozen=True)
class Exact(GaussianCodeLength):
    """The exact code length of the probability flow, up to uniform dequantization.

    Attributes:
        tolerance: relative and absolute tolerance of the RK45 solver, such as 1e-5.
    """

    tolerance: float = 1e-5

    kind: ClassVar[str] = "exact up to uniform dequantization"
    __repr__ = notation

    def of(
        self, denoiser: GaussianDenoiser, quantization: Quantization | Standardization, variance: ReverseVariance
    ) -> CodeLengthOf:
        if isinstance(quantization, Standardization):
            exact = ChangeOfVariables(denoiser, integrator=Adaptive(self.tolerance, self.tolerance))
            return in_units(quantization, exact)
        return self.under(denoiser, UniformDequantization(quantization))

    def under(self, denoiser: GaussianDenoiser, dequantizer: Dequantizer) -> CodeLengthOf:
        """Returns the code length under a dequantizer."""
        exact = ChangeOfVariables(denoiser, dequantizer, integrator=Adaptive(self.tolerance, self.tolerance))
        return lambda k, generator, progress, **cond: exact(k, generator=generator, progress=progress, **cond)


def in_units(scale: Standardization, measure: VariationalBound | ChangeOfVariables) -> CodeLengthOf:
    """Returns the code length of a density in the units of the data, from that of standardized data."""

    def of(x: Tensor, generator: Source, progress: Progress, **cond: Any) -> CodeLength:
        code = measure(scale.standardized(x), generator=generator, progress=progress, **cond)
        return code._replace(data=code.data + scale.log_volume(tuple(x.shape[1:])))

    return of


@serializable("experiments.TokenBound")
@dataclass(frozen=True)
class TokenBound:
    """The variational bound of tokens or quantization levels.

    Attributes:
        terms: number of stratified times at which the bound is evaluated for each example, such as 100; None for all.
    """

    terms: int | None = 100

    kind: ClassVar[str] = "upper bound"
    __repr__ = notation

    def __post_init__(self) -> None:
        if self.terms is not None and self.terms < 1:
            raise UsageError(f"terms={self.terms}: give a whole number of at least 1, or None")

    def of(self, denoiser: CategoricalDenoiser, padding: int | None = None) -> CodeLengthOf:
        """Returns the code length under a denoiser; the padding token is left out."""
        from ..discrete import VariationalBound as CategoricalBound  # Gaussian recipes wait for no import of it

        bound = CategoricalBound(denoiser, terms=self.terms, padding=padding)
        return lambda k, generator, progress, **cond: bound(k.long(), generator=generator, progress=progress, **cond)
