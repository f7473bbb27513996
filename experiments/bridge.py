"""Models sampled on the schedules of other families, by the samplers of those families.

Every Gaussian denoiser can be put on every schedule, `denoiser.on(schedule)`: its network is evaluated at the time of
equal log-SNR. Here a DDPM, two score SDEs, an EDM and a flow-matching model are trained with the same network and
settings, and each is sampled on the schedules of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..continuous import DDIM, Ancestral, Heun
from ..sde import (
    EDM,
    VE,
    VP,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    Straight,
    time_coordinates,
)
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import Schedule
from ..shared.objective import Objective
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from . import common_settings, ddpm, edm, flow_matching, score_sde
from .images import Density, ImageExperiment
from .reproduce import Study, trained

Way = tuple[str, Schedule, Callable[[GaussianDenoiser], Sampler], int]
"""A sampler on a schedule: name, schedule, constructor, and network evaluations of one step."""


@serializable("experiments.Bridge", formerly="unnoise.experiments.bridge.Bridge")
@dataclass(frozen=True)
class Bridge(Density):
    """Five models on the schedules of each other; trained and sampled by itself, it is the VP SDE of `score_sde`."""

    t_last: float = 0.01
    """VP: time of the last noisy state of the samplers, between 0 and 1, such as 0.001."""
    first_beta: float = 4e-4
    """DDPM: first beta of the linear table at T = 1000, such as 1e-4."""
    time_power: float = 1.5
    """VP: exponent p of the training times u^p, u uniform; larger values draw small noise more often."""
    sigma_min: float = 0.04
    """VE: smallest noise level, for data in [-1, 1], such as 0.02."""
    sigma_max: float = 9.0
    """VE: largest noise level, for data in [-1, 1], such as 31.6."""
    sigma_data: float = 0.7
    """EDM: standard deviation of the data, such as 0.5."""

    loss_unit = "weighted MSE of the score"

    def vp(self) -> score_sde.ScoreSDE:
        """Returns the recipe of the VP SDE."""
        own = {name: getattr(self, name) for name in ("t_last", "tolerance", "time_power", "sigma_min", "sigma_max")}
        return score_sde.ScoreSDE(**self.common(), **own)

    def common(self) -> dict[str, Any]:
        """Returns the settings that all models share, by name."""
        return {name: getattr(self, name) for name in ("data", "network", "training", "sampling_steps")}

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        return self.vp().objective(shape, quantization)

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return ReverseDiffusion(denoiser)

    def models(self) -> dict[str, ImageExperiment[GaussianDenoiser]]:
        """Returns the recipes of the five models, by name."""
        vp = self.vp()
        return {
            "DDPM": ddpm.DDPM(**self.common(), first_beta=self.first_beta),
            "VP": vp,
            "VE": vp.variants()["VE"],
            "EDM": edm.ElucidatedModel(
                **self.common(), sigma_data=self.sigma_data, dequantize=True, tolerance=self.tolerance
            ),
            "rectified flow": flow_matching.FlowMatchingModel(
                **self.common(), solver="midpoint", tolerance=self.tolerance
            ),
        }

    def ways(self, table: Schedule) -> list[Way]:
        """Returns the samplers, each on its own schedule; `table` is the schedule of the DDPM."""
        vp, ve = VP(t_last=self.t_last), VE(self.sigma_min, self.sigma_max)
        return [
            ("ancestral on DDPM's table", table, Ancestral, 1),
            ("DDIM on DDPM's table", table, DDIM, 1),
            ("Euler-Maruyama on VP", vp, EulerMaruyama, 1),
            ("predictor-corrector on VE", ve, lambda d: PredictorCorrector(ReverseDiffusion(d), Langevin(d, 0.16)), 2),
            ("Heun on EDM's noise levels", EDM(0.02, 80.0), Heun, 2),
            (
                "Heun on the straight path",
                Straight(end=0.999),
                lambda d: ProbabilityFlow(d, coordinates=time_coordinates),
                2,
            ),
        ]

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fréchet distance of every model with every sampler, at two numbers of network evaluations."""
        from ..shared.figures import save_panels

        study, results, rows, panels = Study(self, folder, progress, samples=300), {}, [], {}
        models = self.models()
        denoisers = {
            n: trained(m, study.images, folder / n.lower().replace(" ", "-"), progress).denoiser
            for n, m in models.items()
        }
        ways = self.ways(denoisers["DDPM"].corruption)
        for evaluations in (20, 100):
            for name, recipe in models.items():
                row = [name, str(evaluations)]
                for way, schedule, make, cost in ways:
                    sampler = make(denoisers[name].on(schedule))
                    drawn, measured = study.run(sampler, min(evaluations // cost, 2 * self.sampling_steps), recipe)
                    results[f"{name}, {way}, {evaluations}"] = measured
                    row.append(f"{measured['frechet']:.2f}")
                    if evaluations == 100:
                        panels[f"{name}: {way}"] = drawn.levels[:20].float() / (study.images.quantization.levels - 1)
                rows.append(row)
        save_panels(folder / "figure.png", panels, columns=10, across=len(ways))
        text = (
            "Five models with the same network and training settings (a DDPM, the VP and VE SDEs, an EDM and flow "
            "matching) are each put on every schedule with `denoiser.on(schedule)` and sampled there. One column of "
            "each row is the schedule that its model was trained on. Samples of the DDPM are rounded to the nearest "
            "quantization level, others to the level whose cell contains them. At noise larger than that of its "
            "training (sigma / alpha up to 9 for VE, 80 for EDM, 150 for VP) a network is evaluated at its last time."
        )
        return study.write(
            "Models on the schedules of other families: Fréchet distance",
            text,
            ["model", "evaluations", *(w[0] for w in ways)],
            rows,
            results,
        )


def digits() -> Bridge:
    """8 x 8 digits of 17 quantization levels, five models."""
    return Bridge(**common_settings.digits(sampling_steps=50), tolerance=1e-3)


def mnist() -> Bridge:
    """28 x 28 digits of 256 quantization levels, five models: hours on two cores."""
    return Bridge(
        **common_settings.mnist(),
        t_last=1e-3,
        first_beta=1e-4,
        time_power=1.0,
        sigma_min=0.02,
        sigma_max=31.6,
        sigma_data=0.6,
    )


def smoke() -> Bridge:
    """A test of a few seconds that every part of the recipe runs."""
    return Bridge(**common_settings.smoke(), tolerance=0.1)
