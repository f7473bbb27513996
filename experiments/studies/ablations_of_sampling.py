"""Ablations of samplers, guidance and averages of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...continuous import (
    DDIM,
    Ancestral,
    DPMSolverPP,
    Heun,
    LinearBetas,
    UniPC,
)
from ...discrete import Ancestral as CategoricalAncestral
from ...sde import VE, EulerMaruyama, Langevin, NoPredictor, PredictorCorrector, ProbabilityFlow, ReverseDiffusion
from ...shared.gaussian.guidance import ClassifierFree
from ...shared.training.averages import Decay
from ..ablation import Ablation, Setup
from ..code_lengths import Bound, Exact
from ..gaussian import GaussianRecipe
from ..papers import classifier_free, ddpm, score_sde
from ..parts import Part, part
from ..recipe import Recipe
from .ablation_settings import STEPS, WITHOUT_CODE, digits, families, training


def samplers() -> Ablation:
    """Samplers of all families by the number of network evaluations, on digits."""
    found = families(digits, 1000, 4e-4)
    gaussian: dict[str, tuple[Part[Any], int]] = {
        "ancestral": (part(Ancestral), 1),
        "DDIM": (part(DDIM), 1),
        "DPM-Solver++ 2": (part(DPMSolverPP), 1),
        "UniPC 3": (part(UniPC), 1),
        "Heun": (part(Heun), 2),
    }
    stochastic: dict[str, tuple[Part[Any], int]] = {
        "Euler-Maruyama": (part(EulerMaruyama), 1),
        "predictor-corrector": (score_sde.pc(0.1), 2),
        "probability flow, Heun": (part(ProbabilityFlow), 2),
    }
    categorical: dict[str, tuple[Part[Any], int]] = {"ancestral": (part(CategoricalAncestral), 1)}
    of_family = {"DDPM": gaussian, "score SDE": stochastic, "D3PM": categorical}
    levels: dict[str, Any] = {}
    cost: dict[str, int] = {}
    for family, group in of_family.items():
        for name, (sampler, evaluations) in group.items():
            title = f"{family}: {name}"
            levels[title], cost[title] = replaced(found[family], sampler), evaluations
    base = found["DDPM"]

    def taking(evaluations: int) -> Callable[[Setup], Setup]:
        def change(setup: Setup) -> Setup:
            sampler = setup.recipe.sampler
            each = next(e for group in of_family.values() for s, e in group.values() if s == sampler)
            return replace(setup, recipe=replace(setup.recipe, sampling_steps=evaluations // each))

        return change

    return Ablation(
        Setup(base, samples=300, count=2, without=WITHOUT_CODE),
        {"sampler": levels, "evaluations": {str(n): taking(n) for n in (50, 20, 10)}},
        measures=("frechet", "sure"),
        title="Samplers by the number of network evaluations",
        question=(
            "Samplers of a DDPM, a VP score SDE and a D3PM, which were trained on digits with the same network and "
            "settings, at 50, 20 and 10 network evaluations for each sample. Heun, probability flow and "
            "predictor-corrector spend two evaluations on a step."
        ),
        shows=(
            "At 50 evaluations all samplers but predictor-corrector have mean distances between 3 and 6.1, and three "
            "seeds tell few of them apart. At 10 evaluations ancestral sampling, DDIM, DPM-Solver++ and UniPC of the "
            "DDPM still have means below 5, and the D3PM 6.0; ancestral sampling and DDIM also keep their share of "
            "sure samples, DPM-Solver++ and UniPC lose some of it, and Heun with only five steps and the samplers of "
            "the SDE most. Predictor-corrector is the worst, since half of its evaluations do not advance in time. Not "
            "shown: images, on which deterministic solvers gain more; the VP SDE is sampled on its own times, evenly "
            "spaced, which is far from the best grid for few steps."
        ),
    )


def replaced(recipe: Recipe, sampler: Part[Any]) -> Callable[[Setup], Setup]:
    """Returns a change to a recipe with another sampler."""
    return lambda setup: replace(setup, recipe=replace(recipe, sampler=sampler))


def predictor_corrector() -> Ablation:
    """Predictor x corrector of a VE score SDE on digits (table 1 of Song et al. 2021, in small)."""
    own = digits(800, sampling_steps=50)
    base = replace(score_sde.OWN, **own, schedule=VE(0.04, 9.0), code_length=Exact(1e-3))
    predictors = {
        "reverse diffusion": part(ReverseDiffusion),
        "Euler-Maruyama": part(EulerMaruyama),
        "probability flow": part(ProbabilityFlow),
        "none": part(NoPredictor),
    }

    def corrected(snr: float) -> Callable[[Setup], Setup]:
        def change(setup: Setup) -> Setup:
            sampler = part(PredictorCorrector, predictor=setup.recipe.sampler, corrector=part(Langevin, snr=snr))
            return replace(setup, recipe=replace(setup.recipe, sampler=sampler))

        return change

    return Ablation(
        Setup(base, samples=300, count=2, without=WITHOUT_CODE),
        {
            "predictor": {name: {"sampler": sampler} for name, sampler in predictors.items()},
            "corrector": {
                "none": lambda setup: setup,
                "Langevin 0.08": corrected(0.08),
                "Langevin 0.16": corrected(0.16),
            },
            "steps": {"50": {"sampling_steps": 50}, "20": {"sampling_steps": 20}},
        },
        measures=("frechet", "sure"),
        title="Predictor and corrector of a VE score SDE",
        question=(
            "Predictors, and Langevin correctors of two signal-to-noise ratios, for a VE SDE on digits, at two numbers "
            "of steps, as in table 1 of Song et al. (2021). A corrector adds one network evaluation to each step."
        ),
        shows=(
            "A predictor is needed: Langevin steps alone are far worse. Over all correctors and numbers of steps "
            "Euler-Maruyama has a better share of sure samples than reverse diffusion; at 20 steps without a corrector "
            "their mean distances are 4.8 and 12.4, at 50 steps 3.7 and 4.7. Each stronger corrector lowers the mean "
            "distance of each predictor, as in the paper, by amounts that three seeds do not tell from chance. Not "
            "shown: whether a corrector is worth its cost. It doubles the evaluations, and reverse diffusion gains "
            "more from the step from 20 to 50 steps."
        ),
        skip=lambda levels: levels["predictor"] == "none" and levels["corrector"] == "none",
    )


def averages() -> Ablation:
    """Length of the average of the weights of a DDPM on digits, with and without a cool-down."""
    decays = (0.9, 0.98, 0.99, 0.995, 0.999)
    kept = tuple(Decay(decay, warmup=False) for decay in decays)

    def cooldown(steps: int) -> dict[str, Any]:
        return {"training": training(800, cooldown=steps, ema=kept[0], averages=kept[1:])}

    base = replace(ddpm.OWN, **digits(800, code_length=Bound(terms=50)), schedule=LinearBetas(STEPS, 4e-4))
    levels = {"raw": average("raw")} | {f"decay {d:g}": average(f"Decay({d}, warmup=False)") for d in decays}
    return Ablation(
        Setup(base, count=200, samples=300),
        {"average": levels, "cooldown": {"none": cooldown(0), "a third": cooldown(266)}},
        title="Length of the average of the weights",
        question=(
            "Exponential averages of the weights of one training, with decays from 0.9 to 0.999 a step (half-lives "
            "from 7 to 690 of 800 steps), beside the raw weights, for a DDPM on digits: at a constant learning rate, "
            "and with a learning rate that falls to 0 over the last third."
        ),
        shows=(
            "An average that is too long for the training is worse than none: with a decay of 0.999, whose half-life "
            "is 690 of the 800 steps, it still has much of the initial weights. At a constant learning rate all "
            "shorter averages have better means than the raw weights (2.37 bits/dim and a distance of 9.8, beside 2.24 "
            "and 3.6 with 0.99). A cool-down of the learning rate gives the raw weights most of that gain, and the "
            "averages nothing more. Not shown: long trainings, for which long averages are made."
        ),
    )


def average(text: str) -> Callable[[Setup], Setup]:
    """Returns a change of the weights that are measured."""
    return lambda setup: replace(setup, average=text)


def guidance() -> Ablation:
    """Strength and interval of classifier-free guidance on digits."""
    base = replace(classifier_free.recipe_of(0.0), **digits(800))

    def guided(w: float) -> dict[str, Any]:
        return {"guidance": part(ClassifierFree, w=w) if w else None}

    def within(low: float, high: float) -> Callable[[Setup], Setup]:
        def change(setup: Setup) -> Setup:
            recipe = setup.recipe
            assert isinstance(recipe, GaussianRecipe)
            if recipe.guidance is None:
                return setup
            return replace(setup, recipe=replace(recipe, guidance=recipe.guidance.changed(low=low, high=high)))

        return change

    return Ablation(
        Setup(base, samples=300, count=2, without=WITHOUT_CODE),
        {
            "w": {f"{w:g}": guided(w) for w in (0.0, 0.5, 1.0, 2.0, 4.0)},
            "interval": {"all times": within(0.0, 1.0), "0.2 < t < 0.7": within(0.2, 0.7)},
        },
        measures=("frechet", "agreement", "sure"),
        title="Strength and interval of classifier-free guidance",
        question=(
            "Guidance strengths w (the guidance scale of other code is 1 + w), at all times and in the middle of the "
            "times alone (Kynkaanniemi et al. 2024), for a model of digits that was trained with and without labels."
        ),
        shows=(
            "Guidance of every strength makes samples agree with the requested label (0.97 of them without guidance, "
            "all of them from w = 1 on) and moves their distribution away from that of the data: the distance grows "
            "with w, from 3.3 to 16. Guidance in the middle of the times alone has nearly the same agreement at a "
            "smaller distance. Not shown: the strength that is best for images; on digits samples agree already "
            "without guidance, so little can be gained here."
        ),
        skip=lambda levels: levels["w"] == "0" and levels["interval"] != "all times",
    )
