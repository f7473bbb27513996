"""The ablations of this package, whose reports are in docs/results, for `unnoise ablate NAME`.

All train in a minute a run or less on one core, on the bundled data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...continuous import (
    DDIM,
    Ancestral,
    CosineBetas,
    DPMSolverPP,
    Heun,
    LinearBetas,
    MinSNR,
    UniPC,
    clean,
    noise,
    snr,
    velocity,
)
from ...discrete import (
    Absorbing,
    DiscretizedGaussian,
    Marginal,
    Product,
    TauLeaping,
    Uniform,
    cosine,
    linear,
    residual,
)
from ...discrete import Ancestral as CategoricalAncestral
from ...sde import VE, VP, EulerMaruyama, Langevin, NoPredictor, PredictorCorrector, ProbabilityFlow, ReverseDiffusion
from ...shared.gaussian.guidance import ClassifierFree
from ...shared.networks import UNet
from ...shared.training import Training
from ...shared.training.averages import Decay
from ..ablation import Ablation, Setup
from ..categorical import CategoricalRecipe
from ..categorical_builders import absorbing_gray
from ..code_lengths import Bound, Exact, TokenBound
from ..gaussian import GaussianRecipe
from ..image_data import Images
from ..papers import classifier_free, d3pm_images, d3pm_text, ddpm, score_sde, settings
from ..parts import Part, part
from ..recipe import Recipe

WITHOUT_CODE = ("code-length",)
STEPS = 100
"""Number of steps of the tables."""


def training(steps: int, **changes: Any) -> Training:
    """Returns the training of the ablations on digits: Adam with a short warm-up and a cool-down."""
    own = {"learning_rate": 2e-3, "warmup": 50, "cooldown": steps // 3, "ema": 0.99, "log_every": 20}
    return Training(steps=steps, save_every=steps, **own | changes)


def digits(steps: int, **changes: Any) -> dict[str, Any]:
    """Returns settings for 8 x 8 digits and a network of 0.3 M parameters."""
    network = part(UNet, width=16, multipliers=(1, 2, 2), blocks=1, attention=(2,), heads=4)
    own = {"network": network, "training": training(steps), "sampling_steps": 50}
    return settings.digits(**own | changes)


def icons(steps: int, **changes: Any) -> dict[str, Any]:
    """Returns settings for openmoji32 at 16 x 16 pixels in 16 quantization levels, without labels."""
    data = Images("openmoji32", batch=32, size=(16, 16), levels=16)
    return digits(steps, data=data, training=training(steps, ema=0.995)) | changes


def with_fields(**values: Any) -> Callable[[Setup], Setup]:
    """Returns a change of a setup that gives fields of its recipe other values."""
    return lambda setup: replace(setup, recipe=replace(setup.recipe, **values))


def weight(value: Any) -> Callable[[Setup], Setup]:
    """Returns a change of the weight of the loss."""

    def change(setup: Setup) -> Setup:
        recipe = setup.recipe
        assert isinstance(recipe, GaussianRecipe)
        return replace(setup, recipe=replace(recipe, loss=replace(recipe.loss, weight=value)))

    return change


def ddpm_parts() -> Ablation:
    """Prediction x loss weight x schedule of a DDPM on digits."""
    base = replace(ddpm.OWN, **digits(400, code_length=Bound(terms=50)), schedule=LinearBetas(STEPS, 4e-4))
    return Ablation(
        Setup(base, count=200, samples=300),
        {
            "predicts": {
                "noise": {"predicts": noise},
                "clean": {"predicts": clean},
                "velocity": {"predicts": velocity},
            },
            "weight": {"SNR": weight(snr), "own": weight(None), "min-SNR": weight(MinSNR(5.0))},
            "schedule": {
                "linear": {"schedule": LinearBetas(STEPS, 4e-4)},
                "cosine": {"schedule": CosineBetas(STEPS)},
            },
        },
        title="DDPM: prediction, loss weight and schedule",
        question=(
            "What the network predicts (noise, clean image or velocity), the weight of the squared error of x_0 (SNR, "
            "which is the simple loss of the noise; own, the plain error of the network's output; min-SNR with gamma "
            "5) and the noise schedule of a DDPM are varied together, on 8 x 8 digits."
        ),
    )


def transition_of(build: Any, schedule: Part[Any]) -> Part[Any]:
    """Returns a transition on a schedule."""
    return part(build, schedule=schedule)


def on_schedule(make: Callable[[int], Part[Any]]) -> Callable[[Setup], Setup]:
    """Returns a change of the schedule of a transition, which keeps its kind."""

    def change(setup: Setup) -> Setup:
        recipe = setup.recipe
        assert isinstance(recipe, CategoricalRecipe)
        return replace(setup, recipe=replace(recipe, transition=recipe.transition.changed(schedule=make(STEPS))))

    return change


SCHEDULES: dict[str, Any] = {
    "cosine": on_schedule(lambda steps: part(cosine, steps=steps)),
    "linear": on_schedule(lambda steps: part(linear, steps=steps, start=0.1 / steps, stop=20 / steps)),
}


def reverse_and_ce(ce: float) -> dict[str, Any]:
    """Returns the levels of the reverse model and of the weight of the cross-entropy."""
    return {
        "reverse": {"product": {"reverse": Product()}, "marginal": {"reverse": Marginal()}},
        "lambda": {"0": {"loss": d3pm_images.loss(0.0)}, f"{ce:g}": {"loss": d3pm_images.loss(ce)}},
    }


def d3pm_parts() -> Ablation:
    """Transition x reverse model x lambda x schedule of a D3PM on digits."""
    base = replace(
        d3pm_images.MODEL, **digits(300, code_length=TokenBound(terms=50)), transition=d3pm_images.uniform(STEPS)
    )
    kinds = {"uniform": Uniform, "absorbing": absorbing_gray, "Gaussian": DiscretizedGaussian}
    transitions = {
        name: {"transition": part(build, schedule=part(cosine, steps=STEPS)), "head": residual}
        for name, build in kinds.items()
    }
    return Ablation(
        Setup(base, count=200, samples=300),
        {"transition": transitions, **reverse_and_ce(0.02), "schedule": SCHEDULES},
        title="D3PM on digits: transition, reverse model, cross-entropy and schedule",
        question=(
            "The transition matrices, the reverse model (product, as published, or marginal, exact), the weight lambda "
            "of the cross-entropy in the hybrid loss and the schedule of a D3PM in 100 steps are varied together, on "
            "8 x 8 digits of 17 quantization levels."
        ),
    )


def d3pm_text_parts() -> Ablation:
    """Transition x reverse model x lambda x schedule of a D3PM on a Markov chain of known entropy."""
    base = replace(d3pm_text.chain(), **text(500))
    kinds = {"uniform": Uniform, "absorbing": Absorbing}
    transitions = {n: {"transition": part(build, schedule=part(cosine, steps=STEPS))} for n, build in kinds.items()}
    return Ablation(
        Setup(base, count=200, samples=200),
        {"transition": transitions, **reverse_and_ce(0.01), "schedule": SCHEDULES},
        measures=("bits_per_token", "generative_perplexity_per_token_5_gram", "sample_entropy_bits"),
        title="D3PM on text of known entropy",
        question=(
            "Transition, reverse model, weight lambda of the cross-entropy and schedule of a D3PM in 100 steps, on "
            "windows of 64 tokens of a Markov chain on 27 tokens, whose entropy is the smallest bits/token that a "
            "model can have."
        ),
    )


def text(steps: int) -> dict[str, Any]:
    """Returns settings for the Markov chain and a small network."""
    own = settings.chain()
    network = own["network"].changed(width=64, depth=2)
    return own | {"network": network, "training": training(steps, epsilon=1e-12, learning_rate=3e-3)}


def families(data: Callable[..., dict[str, Any]], steps: int, first: float) -> dict[str, Recipe]:
    """Returns a DDPM, a D3PM and a VP SDE with the same data, network and training.

    `first` is the first beta of the DDPM's table.
    """
    return {
        "DDPM": replace(ddpm.OWN, **data(steps, code_length=Bound(terms=50)), schedule=LinearBetas(STEPS, first)),
        "D3PM": replace(
            d3pm_images.MODEL,
            **data(steps, code_length=TokenBound(terms=50)),
            transition=d3pm_images.gaussian(STEPS),
            loss=d3pm_images.loss(0.02),
        ),
        "score SDE": replace(score_sde.OWN, **data(steps, code_length=Exact(1e-3)), schedule=VP(t_last=0.01)),
    }


def three_families() -> Ablation:
    """The three families on the same quantized digits, with one network and one budget."""
    found = families(digits, 1000, 4e-4)
    return Ablation(
        Setup(found["DDPM"], count=150, samples=300),
        {"family": found},
        title="Three families on the same quantized digits",
        question=(
            "A DDPM, a D3PM with discretized Gaussian transitions and a VP score SDE, on the same 8 x 8 digits of 17 "
            "quantization levels, with the same U-Net, optimizer, number of images and sampling steps. The code lengths "
            "of DDPM and D3PM are upper bounds, that of the SDE is exact up to uniform dequantization, and itself an "
            "upper bound for the quantized digits: all are bits/dim of the same data."
        ),
    )


def three_families_icons() -> Ablation:
    """The three families on openmoji32 at 16 x 16 pixels in 16 quantization levels."""
    found = families(icons, 800, 4e-4)
    return Ablation(
        Setup(found["DDPM"], count=100, samples=250),
        {"family": found},
        title="Three families on the same quantized icons",
        question=(
            "A DDPM, a D3PM with discretized Gaussian transitions and a VP score SDE on openmoji32 at 16 x 16 pixels, "
            "in color, in 16 quantization levels, without labels, with the same U-Net, optimizer, number of images and "
            "sampling steps. All code lengths are bits/dim of the same data, as on digits."
        ),
    )


def samplers() -> Ablation:
    """Samplers of all families by the number of network evaluations, on digits."""
    found = families(digits, 800, 4e-4)
    gaussian: dict[str, tuple[Part[Any], int]] = {
        "Ancestral": (part(Ancestral), 1),
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
    categorical: dict[str, tuple[Part[Any], int]] = {
        "D3PM ancestral": (part(CategoricalAncestral), 1),
        "tau-leaping": (part(TauLeaping), 1),
    }
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
            "Exponential averages of the weights of one training each, with decays from 0.9 to 0.999 a step (half-lives "
            "from 7 to 690 of 800 steps), beside the raw weights, for a DDPM on digits: at a constant learning rate, "
            "and with a learning rate that falls to 0 over the last third."
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
        skip=lambda levels: levels["w"] == "0" and levels["interval"] != "all times",
    )


ABLATIONS: dict[str, Callable[[], Ablation]] = {
    "ddpm-parts": ddpm_parts,
    "d3pm-parts": d3pm_parts,
    "d3pm-text-parts": d3pm_text_parts,
    "samplers": samplers,
    "predictor-corrector": predictor_corrector,
    "averages": averages,
    "guidance": guidance,
    "three-families": three_families,
    "three-families-icons": three_families_icons,
}
"""The ablations by name."""
