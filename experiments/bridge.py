"""One network under the schedules and samplers of other families: what a model loses, or gains, away from home.

Every Gaussian denoiser runs on every schedule, `denoiser.on(schedule)`, since a network is asked at the time of equal
log-SNR. Here a DDPM, the score SDEs, an EDM and a flow-matching model, trained alike, are each sampled on each other's
schedule by its own sampler.
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
from ..shared.denoiser import Denoiser
from ..shared.gaussian.schedule import Schedule
from ..shared.objective import Objective
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from . import common_settings, ddpm, edm, flow_matching, score_sde
from .images import Density, ImageExperiment
from .reproduce import Study, trained

Way = tuple[str, Schedule, Callable[[Any], Sampler], int]


@serializable("experiments.Bridge", formerly="unnoise.experiments.bridge.Bridge")
@dataclass(frozen=True)
class Bridge(Density):
    """The models of five scripts on one another's schedules.

    By itself, to train and to sample, it is the VP SDE of `score_sde`.
    """

    t_last: float = 0.01
    """Last noisy time of the samplers on VP."""
    first_beta: float = 4e-4
    """beta_1 of the DDPM at T = 1000."""
    time_power: float = 1.5
    """Training times of VP are u^time_power."""
    sigma_min: float = 0.04
    """VE: smallest noise."""
    sigma_max: float = 9.0
    """VE: largest noise."""
    sigma_data: float = 0.7
    """Standard deviation of the data, for the EDM."""

    loss_unit = "weighted MSE of the score"

    def home(self) -> score_sde.ScoreSDE:
        """The VP SDE on the same data and budget."""
        own = {name: getattr(self, name) for name in ("t_last", "tolerance", "time_power", "sigma_min", "sigma_max")}
        return score_sde.ScoreSDE(**self.alike(), **own)

    def alike(self) -> dict[str, Any]:
        """What all models share."""
        return {name: getattr(self, name) for name in ("data", "network", "training", "sampling_steps")}

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        return self.home().objective(shape, quantization)

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return ReverseDiffusion(denoiser)

    def models(self) -> dict[str, ImageExperiment]:
        """The recipes, by name."""
        vp = self.home()
        return {
            "DDPM": ddpm.DDPM(**self.alike(), first_beta=self.first_beta),
            "VP": vp,
            "VE": vp.variants()["VE"],
            "EDM": edm.ElucidatedModel(
                **self.alike(), sigma_data=self.sigma_data, spread=True, tolerance=self.tolerance
            ),
            "rectified flow": flow_matching.FlowMatchingModel(
                **self.alike(), solver="midpoint", tolerance=self.tolerance
            ),
        }

    def ways(self, table: Schedule) -> list[Way]:
        """Sampler and schedule by name, with the evaluations of one step."""
        vp, ve = VP(t_last=self.t_last), VE(self.sigma_min, self.sigma_max)
        return [
            ("ancestral on DDPM's table", table, Ancestral, 1),
            ("DDIM on DDPM's table", table, DDIM, 1),
            ("Euler-Maruyama on VP", vp, EulerMaruyama, 1),
            ("predictor-corrector on VE", ve, lambda d: PredictorCorrector(ReverseDiffusion(d), Langevin(d, 0.16)), 2),
            ("Heun on EDM's levels", EDM(0.02, 80.0), Heun, 2),
            (
                "Heun on the straight path",
                Straight(end=0.999),
                lambda d: ProbabilityFlow(d, coordinates=time_coordinates),
                2,
            ),
        ]

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fréchet distance of every model by every way, at two numbers of evaluations."""
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
            "Five models of one network and budget, trained as a DDPM, on the VP and VE SDEs, as an EDM and by flow matching, each put on "
            "each schedule with `denoiser.on(schedule)` and sampled there. Home is where a row's model was trained; all else is foreign. "
            "Samples of the DDPM are rounded to the nearest level, others to the level whose cell holds them. Beyond the noise that a "
            "network was trained with (sigma / alpha up to 9 for VE, 80 for EDM, 150 for VP) it is asked at its last time."
        )
        return study.write(
            "Home and foreign samplers: Fréchet distance",
            text,
            ["model", "evaluations", *(w[0] for w in ways)],
            rows,
            results,
        )


def digits() -> Bridge:
    """8 x 8 digits, five models."""
    return Bridge(**common_settings.digits() | {"sampling_steps": 50}, tolerance=1e-3)


def mnist() -> Bridge:
    """28 x 28 digits, five models: hours on two cores."""
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
    """Seconds, to see that the whole path runs."""
    return Bridge(**common_settings.smoke(), tolerance=0.1)
