"""Improved denoising diffusion probabilistic models (Nichol & Dhariwal 2021, arXiv 2102.09672).

The networks are those of the paper (`networks.presets`), except for the digits, which use this package's own. Their
time input is 1000 t for tables of any length: the rescaled step of the published code, except that steps count from 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..continuous import (
    Ancestral,
    Clipped,
    DenoisingLoss,
    Hybrid,
    ImportanceSampling,
    Learned,
    Tabulated,
    Variational,
    VariationalBound,
    cosine_betas,
    large,
    learned_range,
    linear_betas,
)
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.objective import Objective
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from . import common_settings
from .evaluation import bits_per_dim
from .experiment import at_most
from .images import Chain, Data, Network
from .reproduce import Study, trained

BETAS = {"cosine": cosine_betas, "linear": linear_betas}


@serializable("experiments.ImprovedDDPM", formerly="unnoise.experiments.improved_ddpm.ImprovedDDPM")
@dataclass(frozen=True)
class ImprovedDDPM(Chain):
    """Noise prediction on a cosine table, with a learned reverse variance."""

    steps: int = 4000
    """Number of steps of the diffusion, T, such as 1000."""
    betas: Literal["cosine", "linear"] = "cosine"
    """Schedule of the betas."""
    loss: Literal["hybrid", "vlb", "simple"] = "hybrid"
    """Loss: L_hybrid, L_vlb with importance sampling of the times, or L_simple with a fixed reverse variance."""
    vlb: float = 0.001
    """Weight of the bound in L_hybrid, such as 0.001; published configurations that do not rescale it have 1 / T."""
    bound_terms: int = 100
    """Number of terms of the bound that are evaluated for each image, stratified over the steps, such as 100."""

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[Any]:
        network = self.network.build(shape, classes=self.data.classes, outputs=1 if self.loss == "simple" else 2)
        denoiser = Learned(network, Tabulated(BETAS[self.betas](self.steps)))
        if self.loss == "simple":
            return DenoisingLoss.simple(denoiser)
        return (
            ImportanceSampling(Variational(denoiser, quantization, learned_range))
            if self.loss == "vlb"
            else Hybrid(denoiser, quantization, self.vlb)
        )

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return Ancestral(Clipped(denoiser), learned_range if denoiser.has_variance_output else large)

    def bound(self, denoiser: GaussianDenoiser, quantization: Quantization) -> VariationalBound:
        variance = learned_range if denoiser.has_variance_output else large
        return VariationalBound(Clipped(denoiser), quantization, variance=variance, terms=self.bound_terms)

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Bits/dim and Fréchet distance of the three losses (columns of table 1), with the same training."""
        from ..shared.figures import save_panels

        study, rows, panels, results = Study(self, folder, progress), [], {}, {}
        test = self.data.load("test", progress)
        for loss in ("simple", "hybrid", "vlb"):
            recipe = replace(self, loss=loss)
            denoiser = trained(recipe, study.images, folder if loss == self.loss else folder / loss, progress).denoiser
            bits, error = bits_per_dim(recipe, denoiser, test, progress=progress)
            drawn, measured = study.run(recipe.sampler(denoiser), self.sampling_steps)
            results[loss] = measured | {"bits_per_dim": bits, "standard_error": error}
            rows.append([loss, f"{bits:.3f} ± {error:.3f}", f"{measured['frechet']:.2f}", f"{measured['sure']:.3f}"])
            panels[f"L_{loss}"] = drawn.levels[:60].float() / (study.images.quantization.levels - 1)
        save_panels(folder / "figure.png", panels, columns=10)
        head = ["loss", "bits/dim (bound)", "Fréchet distance", "sure"]
        text = f"{self.steps} steps, {self.betas} table; samples in {self.sampling_steps} ancestral steps."
        return study.write("The losses of Improved DDPM", text, head, rows, results)


def cifar10() -> ImprovedDDPM:
    """CIFAR-10: hybrid 3.17 bits/dim, FID 3.19; vlb 2.94, FID 11.47."""
    network = Network(128, (1, 2, 2, 2), 3, (2, 4), 4, dropout=0.3, variant="improved")
    return ImprovedDDPM(Data("uoft-cs/cifar10", 128), network, common_settings.adm(500_000, 1e-4), 4000)


def imagenet64() -> ImprovedDDPM:
    """ImageNet 64 x 64, unconditional: hybrid 3.57 bits/dim, FID 19.2; vlb 3.53, FID 40.1 (1.5M iterations)."""
    network = Network(128, (1, 2, 3, 4), 3, (4, 8), 4, variant="improved")
    return ImprovedDDPM(Data("imagenet", 128, size=(64, 64)), network, common_settings.adm(1_500_000, 1e-4), 4000)


def imagenet64_classes() -> ImprovedDDPM:
    """ImageNet 64 x 64 with class labels, the larger model: FID 2.92 at 250 steps; weight of the bound 1 / T."""
    network = Network(192, (1, 2, 3, 4), 3, (4, 8), 4, variant="improved", null_label=False)
    data = Data("imagenet", 2048, size=(64, 64), classes=1000)
    return ImprovedDDPM(data, network, common_settings.adm(250_000, 3e-4), 250, vlb=1 / 4000)


def lsun256() -> ImprovedDDPM:
    """LSUN Bedroom 256 x 256, linear table of 1000 steps."""
    network = Network(128, (1, 1, 2, 2, 4, 4), 2, (16,), 1, variant="improved-added")
    return ImprovedDDPM(
        Data("lsun", 128, size=(256, 256)),
        network,
        common_settings.adm(1_200_000, 1e-4),
        1000,
        steps=1000,
        betas="linear",
    )


def digits() -> ImprovedDDPM:
    """8 x 8 digits of 17 quantization levels; training takes a few minutes for each loss."""
    return ImprovedDDPM(**common_settings.digits(), steps=100)


def mnist() -> ImprovedDDPM:
    """28 x 28 digits of 256 quantization levels."""
    return ImprovedDDPM(**common_settings.mnist(), steps=4000)


def smoke() -> ImprovedDDPM:
    """A test of a few seconds that every part of the recipe runs."""
    return ImprovedDDPM(**common_settings.smoke(), steps=100, bound_terms=4)
