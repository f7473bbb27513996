"""Denoising diffusion implicit models (Song, Meng, Ermon 2020, arXiv 2010.02502), and later few-step samplers.

The model is that of Ho et al. (2020), and only the sampler differs. The figure also has DPM-Solver++ (Lu et al. 2022)
and UniPC (Zhao et al. 2023), with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..continuous import (
    DDIM,
    Ancestral,
    Clipped,
    DenoisingLoss,
    DPMSolverPP,
    Learned,
    Tabulated,
    UniPC,
    VariationalBound,
    large,
    linear_betas,
)
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.objective import Objective, antithetic
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings
from .experiment import at_most
from .images import Chain, Data, Network
from .reproduce import Study, trained
from .time_grids import spaced


@serializable("experiments.ImplicitModel", formerly="unnoise.experiments.ddim.ImplicitModel")
@dataclass(frozen=True)
class ImplicitModel(Chain):
    """A DDPM trained at antithetic times and sampled by DDIM."""

    steps: int = 1000
    """Number of steps of the diffusion, T, such as 1000."""
    first_beta: float = 1e-4
    """First beta of the linear table at T = 1000, such as 1e-4; for other T it is scaled by 1000 / T."""
    eta: float = 0.0
    """Noise of the sampler, eta: 0 for the deterministic sampler, 1 for the small variance of DDPM."""
    spacing: Literal["", "ddim", "quad"] = ""
    """Spacing of the sampling steps: even with both ends (empty), whole strides (ddim), or quadratic (quad).
    The paper has whole strides, and quadratic steps for CIFAR-10."""
    bound_terms: int = 100
    """Number of terms of the bound that are evaluated for each image, stratified over the steps, such as 100."""

    loss_unit = "MSE of the noise"

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        network = self.network.build(shape, classes=self.data.classes)
        return DenoisingLoss.simple(
            Learned(network, Tabulated(linear_betas(self.steps, self.first_beta))), times=antithetic
        )

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return DDIM(denoiser, self.eta)

    def grid(self, denoiser: GaussianDenoiser, steps: int) -> int | Tensor:
        return spaced(f"{self.spacing}{steps}", denoiser.corruption)

    def bound(self, denoiser: GaussianDenoiser, quantization: Quantization) -> VariationalBound:
        return VariationalBound(Clipped(denoiser), quantization, variance=large, terms=self.bound_terms)

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fréchet distance by steps (table 1), with later solvers and with the ancestral sampler at all T steps."""
        from ..shared.figures import Lines, save_lines, save_panels

        study = Study(self, folder, progress)
        denoiser = trained(self, study.images, folder, progress).denoiser
        counts = [n for n in (10, 20, 50) if n <= self.steps]
        runs: list[tuple[str, Sampler, int, int | Tensor]] = []
        for n in counts:
            runs += [
                ("DDIM", DDIM(denoiser), n, self.grid(denoiser, n)),
                ("DDIM, eta 1", DDIM(denoiser, 1.0), n, self.grid(denoiser, n)),
            ]
            # Without the long last step to the first row, for which the earlier estimates are of little use.
            trailing = spaced(f"trailing{n}", denoiser.corruption)
            runs += [
                ("DPM-Solver++(2M)", DPMSolverPP(denoiser), n, trailing),
                ("UniPC-3", UniPC(denoiser), n, trailing),
            ]
        runs.append(("ancestral, large", Ancestral(Clipped(denoiser), large), self.steps, self.steps))
        lines: dict[str, tuple[list[float], list[float]]] = {}
        rows, results, panels = [], {}, {}
        for name, sampler, n, grid in sorted(runs, key=lambda run: run[0]):
            drawn, measured = study.run(sampler, grid)
            x, y = lines.setdefault(name, ([], []))
            x.append(n)
            y.append(measured["frechet"])
            results[f"{name}, {n} steps"] = measured
            rows.append(
                [
                    name,
                    str(n),
                    f"{measured['frechet']:.2f}",
                    f"{measured['sure']:.3f}",
                    f"{measured['agreement']:.3f}" if "agreement" in measured else "-",
                ]
            )
            panels[f"{name}, {n} steps"] = drawn.levels[:40].float() / (study.images.quantization.levels - 1)
        panel = Lines("steps (network evaluations for each sample)", "Fréchet distance", lines, logx=True, logy=True)
        save_lines(folder / "figure.png", {"few-step sampling": panel})
        save_panels(folder / "samples.png", panels, columns=10, across=len(counts))
        head = ["sampler", "steps", "Fréchet distance", "sure", "agreement with the requested label"]
        spacing = f"DDIM has {self.spacing or 'even'} spacing of its steps, the solvers have trailing spacing"
        text = f"One model, on a linear table of {self.steps} steps. {spacing}.\n\n![samples](samples.png)"
        return study.write("Fréchet distance by steps", text, head, rows, results)


def training(steps: int, rate: float, ema: float = 0.9999) -> Training:
    """Returns the published training: Adam without warm-up, gradients clipped to norm 1."""
    return Training(steps=steps, learning_rate=rate, warmup=0, clip=1.0, ema=ema, watch_every=10_000)


def cifar10() -> ImplicitModel:
    """CIFAR-10 (table 1), FID at 10, 20, 50, 100, 1000 steps: 13.36, 6.84, 4.67, 4.16, 4.04."""
    network = Network(128, (1, 2, 2, 2), 2, (2,), 1, dropout=0.1, variant="ddpm")
    return ImplicitModel(Data("uoft-cs/cifar10", 128, flip=True), network, training(800_000, 2e-4), 50, spacing="quad")


def celeba64() -> ImplicitModel:
    """A folder of CelebA at 64 x 64 (table 1), FID at 10, 20, 50, 100, 1000 steps: 17.33, 13.73, 9.17, 6.53, 3.51."""
    network = Network(128, (1, 2, 2, 2, 4), 2, (4,), 1, dropout=0.1, variant="ddpm")
    return ImplicitModel(
        Data("celeba", 128, size=(64, 64), flip=True), network, training(500_000, 2e-4), 50, spacing="ddim"
    )


def lsun256() -> ImplicitModel:
    """A folder of LSUN at 256 x 256, FID at 10, 20, 50, 100 steps: Bedroom 16.95, 8.89, 6.75, 6.62.

    Church 19.45, 12.47, 10.84, 10.58.
    """
    network = Network(128, (1, 1, 2, 2, 4, 4), 2, (16,), 1, variant="ddpm")
    return ImplicitModel(
        Data("lsun", 64, size=(256, 256)), network, training(2_400_000, 2e-5, ema=0.999), 50, spacing="ddim"
    )


def digits() -> ImplicitModel:
    """8 x 8 digits of 17 quantization levels on a table of 1000 steps."""
    return ImplicitModel(**common_settings.digits(sampling_steps=50), first_beta=4e-4)


def mnist() -> ImplicitModel:
    """28 x 28 digits of 256 quantization levels."""
    return ImplicitModel(**common_settings.mnist(sampling_steps=50))


def smoke() -> ImplicitModel:
    """A test of a few seconds that every part of the recipe runs."""
    return ImplicitModel(**common_settings.smoke(), steps=100, bound_terms=4)
