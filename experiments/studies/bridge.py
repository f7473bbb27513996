"""Models sampled on the schedules of other families, by the samplers of those families.

Every Gaussian denoiser can be put on every schedule, `denoiser.on(schedule)`: its network is evaluated at the time of
equal log-SNR. Here a DDPM, two score SDEs, an EDM and a flow-matching model are trained with the same network and
settings, and each is sampled on the schedules of all of them. The recipes are those of the VP SDE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ...continuous import DDIM, Ancestral, Heun, LinearBetas, Preconditioned
from ...sde import (
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
from ...shared.gaussian.denoiser import Clipped, GaussianDenoiser
from ...shared.gaussian.schedule import Schedule
from ...shared.objective import Stratified
from ...shared.progress import Progress, silent
from ...shared.sampler import Sampler
from ...shared.serialization import serializable
from ..code_lengths import Exact
from ..gaussian import GaussianLoss, GaussianRecipe
from ..papers import edm, flow_matching, score_sde, settings
from ..parts import part
from ..recipe import Figure
from ..reproduce import Study

Way = tuple[str, Schedule, Callable[[GaussianDenoiser], Sampler], int]
"""A sampler on a schedule: name, schedule, constructor, and network evaluations of one step."""


@serializable("experiments.OtherSchedules")
@dataclass(frozen=True)
class Bridge(Figure):
    """Fréchet distance of five models with every sampler, at two numbers of network evaluations."""

    ddpm: LinearBetas = LinearBetas(start=4e-4)
    """Schedule of the DDPM, such as LinearBetas(start=1e-4)."""
    ve: VE = VE(0.04, 9.0)
    """Schedule of the VE SDE, such as VE(sigma_min=0.02, sigma_max=31.6)."""
    edm: Preconditioned = Preconditioned(0.7)
    """Prediction of the EDM, with the standard deviation of the data, such as Preconditioned(sigma_data=0.5)."""

    def models(self, recipe: GaussianRecipe) -> dict[str, GaussianRecipe]:
        """Returns the recipes of the five models, by name."""
        shared = {name: getattr(recipe, name) for name in ("data", "network", "training", "sampling_steps")}
        return {
            "DDPM": GaussianRecipe(**shared, schedule=self.ddpm, clip=part(Clipped)),
            "VP": recipe,
            "VE": replace(recipe, schedule=self.ve, loss=replace(recipe.loss, times=Stratified())),
            "EDM": replace(edm.OWN, **shared, predicts=self.edm, dequantize=True),
            "rectified flow": replace(flow_matching.OWN, **shared),
        }

    def ways(self, vp: Schedule) -> list[Way]:
        """Returns the samplers, each on its own schedule; `vp` is the schedule of the VP SDE."""
        return [
            ("ancestral on DDPM's table", self.ddpm, Ancestral, 1),
            ("DDIM on DDPM's table", self.ddpm, DDIM, 1),
            ("Euler-Maruyama on VP", vp, EulerMaruyama, 1),
            (
                "predictor-corrector on VE",
                self.ve,
                lambda d: PredictorCorrector(ReverseDiffusion(d), Langevin(d, 0.16)),
                2,
            ),
            ("Heun on EDM's noise levels", EDM(0.02, 80.0), Heun, 2),
            (
                "Heun on the straight path",
                Straight(end=0.999),
                lambda d: ProbabilityFlow(d, coordinates=time_coordinates),
                2,
            ),
        ]

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        from ...shared.figures import save_panels

        study, results, rows, panels = Study(recipe, folder, progress, samples=300), {}, [], {}
        models = self.models(recipe)
        denoisers = {name: study.trained(model, name.lower().replace(" ", "-")) for name, model in models.items()}
        ways = self.ways(denoisers["VP"].corruption)
        for evaluations in (20, 100):
            for name, model in models.items():
                row = [name, str(evaluations)]
                for way, schedule, make, cost in ways:
                    sampler = make(denoisers[name].on(schedule))
                    drawn, measured = study.run(sampler, min(evaluations // cost, 2 * recipe.sampling_steps), model)
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
        title = "Models on the schedules of other families: Fréchet distance"
        return study.write(title, text, ["model", "evaluations", *(way[0] for way in ways)], rows, results)


OWN = replace(
    score_sde.OWN,
    schedule=VP(t_last=0.01),
    loss=GaussianLoss(times=Stratified(1.5)),
    sampler=part(ReverseDiffusion),
    figure=Bridge(),
)
"""The VP SDE, sampled by reverse diffusion."""


def digits() -> GaussianRecipe:
    """8 x 8 digits of 17 quantization levels, five models."""
    return replace(OWN, **settings.digits(sampling_steps=50, code_length=Exact(1e-3)))


def mnist() -> GaussianRecipe:
    """28 x 28 digits of 256 quantization levels, five models: hours on two cores."""
    figure = Bridge(LinearBetas(), VE(0.02, 31.6), Preconditioned(0.6))
    return replace(OWN, **settings.mnist(figure=figure), schedule=VP(), loss=GaussianLoss(times=Stratified()))


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(OWN, **settings.smoke(code_length=Exact(0.1)))
