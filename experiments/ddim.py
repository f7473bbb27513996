"""Denoising diffusion implicit models (Song, Meng, Ermon 2020, arXiv 2010.02502), and the few-step samplers that came
after.

The model is that of Ho et al. (2020); what differs is the sampler. DPM-Solver++ (Lu et al. 2022) and UniPC (Zhao et al.
2023) stand beside it in the figure, on the same weights.
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
from ..shared.denoiser import Denoiser
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
    """A DDPM, trained at antithetic times, sampled by DDIM."""

    steps: int = 1000
    """T."""
    first_beta: float = 1e-4
    """beta_1 at T = 1000."""
    eta: float = 0.0
    """0 for the deterministic sampler, 1 for DDPM's small variance."""
    spacing: Literal["", "ddim", "quad"] = ""
    """Of the steps.

    Evenly with both ends, by a whole stride as the paper, or quadratically as the paper for CIFAR-10.
    """
    bound_terms: int = 100
    """Terms of the bound to evaluate, stratified over the steps."""

    loss_unit = "MSE of the noise"

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        network = self.network.build(shape, classes=self.data.classes)
        return DenoisingLoss.simple(
            Learned(network, Tabulated(linear_betas(self.steps, self.first_beta))), times=antithetic
        )

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return DDIM(denoiser, self.eta)

    def grid(self, denoiser: Denoiser, steps: int) -> int | Tensor:
        return spaced(f"{self.spacing}{steps}", denoiser.corruption)

    def bound(self, denoiser: Denoiser, quantization: Quantization) -> VariationalBound:
        return VariationalBound(Clipped(denoiser), quantization, variance=large, terms=self.bound_terms)

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fréchet distance by steps (table 1), with later solvers and the ancestral sampler at every step of the table."""
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
            # No jump to the first row, over which earlier levels say little.
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
        head = ["sampler", "steps", "Fréchet distance", "sure", "agreement with the asked label"]
        spacing = f"DDIM on {self.spacing or 'even'} spacing, the solvers on trailing spacing"
        text = f"One model, {self.steps} steps of the linear table. {spacing}.\n\n![samples](samples.png)"
        return study.write("Fréchet distance by steps", text, head, rows, results)


def training(steps: int, rate: float, ema: float = 0.9999) -> Training:
    """Adam without warm-up, gradients clipped to 1, as released."""
    return Training(steps=steps, learning_rate=rate, warmup=0, clip=1.0, ema=ema, watch_every=10_000)


def cifar10() -> ImplicitModel:
    """CIFAR-10 (table 1), FID at 10, 20, 50, 100, 1000 steps: 13.36, 6.84, 4.67, 4.16, 4.04."""
    network = Network(128, (1, 2, 2, 2), 2, (2,), 1, dropout=0.1, style="ddpm")
    return ImplicitModel(Data("uoft-cs/cifar10", 128, flip=True), network, training(800_000, 2e-4), 50, spacing="quad")


def celeba64() -> ImplicitModel:
    """A folder of CelebA at 64 x 64 (table 1), FID at 10, 20, 50, 100, 1000 steps: 17.33, 13.73, 9.17, 6.53, 3.51."""
    network = Network(128, (1, 2, 2, 2, 4), 2, (4,), 1, dropout=0.1, style="ddpm")
    return ImplicitModel(
        Data("celeba", 128, size=(64, 64), flip=True), network, training(500_000, 2e-4), 50, spacing="ddim"
    )


def lsun256() -> ImplicitModel:
    """A folder of LSUN at 256 x 256, FID at 10, 20, 50, 100 steps.

    Bedroom 16.95, 8.89, 6.75, 6.62, Church 19.45, 12.47, 10.84, 10.58.
    """
    network = Network(128, (1, 1, 2, 2, 4, 4), 2, (16,), 1, style="ddpm")
    return ImplicitModel(
        Data("lsun", 64, size=(256, 256)), network, training(2_400_000, 2e-5, ema=0.999), 50, spacing="ddim"
    )


def digits() -> ImplicitModel:
    """8 x 8 digits of 17 levels on a table of 1000 steps."""
    return ImplicitModel(**common_settings.digits() | {"sampling_steps": 50}, first_beta=4e-4)


def mnist() -> ImplicitModel:
    """28 x 28 digits of 256 levels."""
    return ImplicitModel(**common_settings.mnist() | {"sampling_steps": 50})


def smoke() -> ImplicitModel:
    """Seconds, to see that the whole path runs."""
    return ImplicitModel(**common_settings.smoke(), steps=100, bound_terms=4)
