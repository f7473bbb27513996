"""Structured denoising diffusion in discrete state spaces, on images (Austin et al. 2021, arXiv 2107.03006).

The paper's network is DDPM's, which here takes a level as one of 256 symbols and not as a number in [-1, 1]: its first
layer is wider.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..discrete import (
    Absorbing,
    Ancestral,
    Categorical,
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
from ..shared.denoiser import Denoiser
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
    """Local moves between levels, uniform resampling or absorption, with the hybrid loss."""

    transition: Literal["gaussian", "uniform", "absorbing"] = "gaussian"
    """Discretised Gaussian on a linear table, uniform on a cosine one, or absorption in the middle grey by 1 / (T - n +
    1).
    """
    head: Literal["direct", "residual", "logistic"] = "direct"
    """A logit for each level, the same plus one at x_t as published, or the two numbers of a logistic law."""
    reverse: Literal["product", "marginal"] = "marginal"
    """How p(x_0) becomes a law of x_s: the published product, or the exact marginal."""
    steps: int = 1000
    """T; the linear beta runs from 1e-4 to 0.02, both scaled by 1000 / T."""
    ce: float = 0.001
    """Weight lambda of the cross-entropy beside one term of the bound."""
    time_power: float = 1.0
    """Training times are u^time_power: 1 for the papers' uniform times, more to visit small noise more."""

    loss_unit = "L_n + lambda CE, nats/dim"

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)

    def corruption(self, levels: int) -> Transition:
        """The transition for so many levels."""
        if self.transition == "uniform":
            return Uniform(levels, cosine(self.steps))
        if self.transition == "absorbing":
            return Absorbing(levels, reciprocal(self.steps), mask=levels // 2)
        return DiscretizedGaussian(levels, linear(self.steps, 0.1 / self.steps, 20 / self.steps))

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        logits = 2 if self.head == "logistic" else None
        network = self.network.build(shape, categories=quantization.levels, classes=self.data.classes, logits=logits)
        denoiser = Categorical(
            network, self.corruption(quantization.levels), REVERSE[self.reverse](), head=HEADS[self.head]
        )
        return D3PMLoss(denoiser, self.ce, times=Stratified(self.time_power))

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return Ancestral(denoiser)

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Bits/dim and Fréchet distance of uniform, absorbing, Gaussian and Gaussian + logistic (the rows of table 3),
        trained alike.
        """
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
        text = f"T = {self.steps}, lambda = {self.ce}, {self.reverse} reverse model; samples by {self.sampling_steps} steps."
        return study.write("D3PM on images", text, head, rows, results)


def cifar10() -> D3PM:
    """CIFAR-10, Gaussian + logistic: FID 7.34, 3.435 bits/dim; --head residual 8.34, 3.975; absorbing 30.97, 4.40.

    Uniform 51.27, 5.08.
    """
    training = Training(steps=1_500_000, learning_rate=2e-4, warmup=0, clip=1.0, ema=0.9999, watch_every=10_000)
    network = Network(128, (1, 2, 2, 2), 2, (2,), 1, dropout=0.1, style="ddpm")
    return D3PM(Data("uoft-cs/cifar10", 128, flip=True), network, training, 1000, head="logistic", reverse="product")


def digits() -> D3PM:
    """8 x 8 digits of 17 levels; the published 1e-4 of T = 1000 would not move a symbol between 17 levels at all."""
    return D3PM(**common_settings.digits(), steps=100, ce=0.02)


def mnist() -> D3PM:
    """28 x 28 digits of 256 levels."""
    return D3PM(**common_settings.mnist(), head="residual")


def smoke() -> D3PM:
    """Seconds, to see that the whole path runs."""
    return D3PM(**common_settings.smoke(), steps=100, bound_terms=4)
