"""The sampler and the code length of imported models of images, one class for each family of processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..continuous import DDIM, Clipped, Heun, VariationalBound, karras, large, learned_range
from ..continuous.posterior import ReverseVariance
from ..sde import Adaptive, ChangeOfVariables
from ..shared.code_length import CodeLength
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.dequantization import UniformDequantization
from ..shared.progress import Progress
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from .experiment import CodeLengthOf


class Family(ABC):
    """The sampler and the code length of an imported model of images.

    Attributes:
        kind: whether the code length is an upper bound or exact.
    """

    kind: str

    @abstractmethod
    def sampler(self, denoiser: GaussianDenoiser, quantization: Quantization) -> Sampler:
        """Returns the sampler."""

    @abstractmethod
    def grid(self, denoiser: GaussianDenoiser, steps: int) -> int | Tensor:
        """Returns the times of `steps` sampling steps, or their number."""

    @abstractmethod
    def code_length(self, denoiser: GaussianDenoiser, quantization: Quantization) -> CodeLengthOf:
        """Returns the code length of quantization levels."""


@serializable("experiments.Chains", formerly="unnoise.experiments.imported.Chains")
@dataclass(frozen=True)
class Chains(Family):
    """Models on tables of steps: DDIM with clipped estimates, and the variational bound."""

    bound_terms: int = 100
    """Number of terms of the bound that are evaluated for each image, stratified over the steps."""
    clip: float | None = None
    """Estimates are clipped to [-clip, clip]; None for the range of the data, infinity for no clipping."""
    variance: ReverseVariance = large
    """Variance of the reverse steps of the bound, for a network without a variance output."""

    kind = "upper bound"

    def sampler(self, denoiser: GaussianDenoiser, quantization: Quantization) -> Sampler:
        return DDIM(self.clipped(denoiser, quantization))

    def grid(self, denoiser: GaussianDenoiser, steps: int) -> int | Tensor:
        return steps

    def code_length(self, denoiser: GaussianDenoiser, quantization: Quantization) -> CodeLengthOf:
        variance = learned_range if denoiser.has_variance_output else self.variance
        bound = VariationalBound(
            self.clipped(denoiser, quantization), quantization, variance=variance, terms=self.bound_terms
        )

        def measure(k: Tensor, generator: Any, progress: Progress, **cond: Any) -> CodeLength:
            return bound(quantization.continuous(k), generator=generator, progress=progress, **cond)

        return measure

    def clipped(self, denoiser: GaussianDenoiser, quantization: Quantization) -> GaussianDenoiser:
        """Returns the denoiser with clipped estimates."""
        return Clipped(
            denoiser, *((quantization.low, quantization.high) if self.clip is None else (-self.clip, self.clip))
        )

    @classmethod
    def of_denoiser(cls, denoiser: GaussianDenoiser) -> Chains:
        """Returns the family with the attributes `clip` and `variance` that an importer gave the denoiser, if any."""
        return cls(**{name: getattr(denoiser, name) for name in ("clip", "variance") if hasattr(denoiser, name)})


@serializable("experiments.Flows", formerly="unnoise.experiments.imported.Flows")
@dataclass(frozen=True)
class Flows(Family):
    """Models at noise levels, continuous or in a table: Heun's method, and the likelihood of the probability flow.

    The sampler visits the noise levels of Karras et al. (2022).
    """

    tolerance: float = 1e-5
    """Relative and absolute tolerance of RK45, for the likelihood."""

    kind = "exact up to uniform dequantization"

    def sampler(self, denoiser: GaussianDenoiser, quantization: Quantization) -> Sampler:
        return Heun(denoiser)

    def grid(self, denoiser: GaussianDenoiser, steps: int) -> int | Tensor:
        return karras(steps, denoiser.corruption)

    def code_length(self, denoiser: GaussianDenoiser, quantization: Quantization) -> CodeLengthOf:
        exact = ChangeOfVariables(
            denoiser, UniformDequantization(quantization), integrator=Adaptive(self.tolerance, self.tolerance)
        )
        return lambda k, generator, progress, **cond: exact(k, generator=generator, progress=progress, **cond)


@serializable("experiments.Classifiers", formerly="unnoise.experiments.imported.Classifiers")
@dataclass(frozen=True)
class Classifiers(Family):
    """Classifiers of noisy images, which guide denoisers and have neither samples nor a code length."""

    kind = "none"

    def sampler(self, denoiser: GaussianDenoiser, quantization: Quantization) -> Sampler:
        raise UsageError(
            "this is a classifier of noisy images, which has no samples: guide a denoiser with it in Python, "
            "shared.gaussian.guidance.ClassifierGuided(denoiser, pretrained.load(RUN))"
        )

    def grid(self, denoiser: GaussianDenoiser, steps: int) -> int | Tensor:
        return steps

    def code_length(self, denoiser: GaussianDenoiser, quantization: Quantization) -> CodeLengthOf:
        raise UsageError("this is a classifier of noisy images, which has no code length: evaluate a denoiser")
