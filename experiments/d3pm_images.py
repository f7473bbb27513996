"""Structured denoising diffusion in discrete state spaces, on images (Austin et al. 2021, arXiv 2107.03006).

The network is that of DDPM, as in the paper. It takes a quantization level as one of 256 categories and not as a number
in [-1, 1], so its first layer is wider.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..discrete import (
    Absorbing,
    Ancestral,
    Categorical,
    CategoricalDenoiser,
    D3PMLoss,
    DiscretizedGaussian,
    Marginal,
    Product,
    Transition,
    Uniform,
    cosine,
    direct,
    linear,
    logistic,
    reciprocal,
    residual,
)
from ..shared.objective import Objective, Stratified
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings
from .evaluation import bits_per_dim
from .experiment import at_most
from .images import Data, Network, Quantized
from .reproduce import Study, trained

HEADS = {"direct": direct, "residual": residual, "logistic": logistic}
REVERSE = {"product": Product, "marginal": Marginal}


@serializable("experiments.D3PM", formerly="unnoise.experiments.d3pm_images.D3PM")
@dataclass(frozen=True)
class D3PM(Quantized):
    """Discretized Gaussian, uniform or absorbing transitions between quantization levels, with the hybrid loss."""

    transition: Literal["gaussian", "uniform", "absorbing"] = "gaussian"
    """Transition matrix: discretized Gaussian, uniform, or absorbing in the middle gray.
    Their schedules are linear, cosine, and 1 / (T - n + 1)."""
    head: Literal["direct", "residual", "logistic"] = "direct"
    """Output of the network: logits of the quantization levels, or mean and scale of a logistic distribution.
    residual adds 1 to the logit of x_t, as published."""
    reverse: Literal["product", "marginal"] = "marginal"
    """How p(x_0) gives the distribution of x_s: the product as published, or the exact marginal."""
    steps: int = 1000
    """Number of steps of the diffusion, T; beta grows linearly from 1e-4 to 0.02, both scaled by 1000 / T."""
    ce: float = 0.001
    """Weight lambda of the cross-entropy, which is added to one term of the bound, such as 0.001."""
    time_power: float = 1.0
    """Exponent p of the training times u^p, u uniform: 1 as published, larger values draw small noise more often."""

    loss_unit = "L_n + lambda CE, nats/dim"

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)

    def corruption(self, levels: int) -> Transition:
        """Returns the transition for this number of quantization levels."""
        if self.transition == "uniform":
            return Uniform(levels, cosine(self.steps))
        if self.transition == "absorbing":
            return Absorbing(levels, reciprocal(self.steps), mask=levels // 2)
        return DiscretizedGaussian(levels, linear(self.steps, 0.1 / self.steps, 20 / self.steps))

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[CategoricalDenoiser]:
        logits = 2 if self.head == "logistic" else None
        network = self.network.build(shape, categories=quantization.levels, classes=self.data.classes, logits=logits)
        denoiser = Categorical(
            network, self.corruption(quantization.levels), REVERSE[self.reverse](), head=HEADS[self.head]
        )
        return D3PMLoss(denoiser, self.ce, times=Stratified(self.time_power))

    def sampler(self, denoiser: CategoricalDenoiser) -> Sampler:
        return Ancestral(denoiser)

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Bits/dim and Fréchet distance of uniform, absorbing, Gaussian and Gaussian + logistic (rows of table 3)."""
        from ..shared.figures import save_panels

        study, rows, panels, results = Study(self, folder, progress), [], {}, {}
        test = self.load("test", progress)
        variants = {
            "uniform": replace(self, transition="uniform", head="residual"),
            "absorbing": replace(self, transition="absorbing", head="residual"),
            "Gaussian": replace(self, transition="gaussian", head="residual"),
            "Gaussian + logistic": replace(self, transition="gaussian", head="logistic"),
        }
        for name, recipe in variants.items():
            denoiser = trained(recipe, study.images, folder / name.replace(" + ", "-").lower(), progress).denoiser
            bits, error = bits_per_dim(recipe, denoiser, test, progress=progress)
            drawn, measured = study.run(recipe.sampler(denoiser), self.sampling_steps)
            results[name] = measured | {"bits_per_dim": bits, "standard_error": error}
            rows.append([name, f"{bits:.3f} ± {error:.3f}", f"{measured['frechet']:.2f}", f"{measured['sure']:.3f}"])
            panels[name] = drawn.levels[:60].float() / (study.images.quantization.levels - 1)
        save_panels(folder / "figure.png", panels, columns=10)
        head = ["transition", "bits/dim (bound)", "Fréchet distance", "sure"]
        text = (
            f"T = {self.steps}, lambda = {self.ce}, {self.reverse} reverse model, {self.sampling_steps} sampling steps."
        )
        return study.write("D3PM on images", text, head, rows, results)


def cifar10() -> D3PM:
    """CIFAR-10, Gaussian + logistic: FID 7.34, 3.435 bits/dim.

    With --head residual 8.34 and 3.975, absorbing 30.97 and 4.40, uniform 51.27 and 5.08.
    """
    training = Training(steps=1_500_000, learning_rate=2e-4, warmup=0, clip=1.0, ema=0.9999, watch_every=10_000)
    network = Network(128, (1, 2, 2, 2), 2, (2,), 1, dropout=0.1, variant="ddpm")
    return D3PM(Data("uoft-cs/cifar10", 128, flip=True), network, training, 1000, head="logistic", reverse="product")


def digits() -> D3PM:
    """8 x 8 digits of 17 quantization levels, T = 100.

    The published beta of 1e-4 at T = 1000 is too small to move between 17 quantization levels at all.
    """
    return D3PM(**common_settings.digits(), steps=100, ce=0.02)


def mnist() -> D3PM:
    """28 x 28 digits of 256 quantization levels."""
    return D3PM(**common_settings.mnist(), head="residual")


def smoke() -> D3PM:
    """A test of a few seconds that every part of the recipe runs."""
    return D3PM(**common_settings.smoke(), steps=100, bound_terms=4)
