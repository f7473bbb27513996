"""The ablation of the recipe `fast-digits`: each of its choices changed alone, at equal seconds of one thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...continuous import Cosine, LinearBetas, MinSNR, clean, noise, snr, velocity
from ..ablation import Ablation, Setup
from . import fast
from .ablation_settings import WITHOUT_CODE

SECONDS = 20.0
"""Training time of a run: a twelfth of that of the recipe."""
MILLISECONDS = {"recipe": 54.0, "1.2 M parameters": 100.0, "batch 128": 76.0, "batch 32": 43.0, "float32": 62.0}
"""Time of a training step of one thread of the machine of the report; other choices cost what the recipe costs."""
COOLED = 0.6
"""Share of the steps over which the learning rate falls to 0."""


def fast_digits() -> Ablation:
    """The choices of `fast-digits`, each changed alone."""
    own = fast.digits()

    def choice(name: str = "recipe", **changes: Any) -> Callable[[Setup], Setup]:
        """Returns the recipe with other fields, or other settings of the training, and the steps of `SECONDS`."""
        steps = round(1000 * SECONDS / MILLISECONDS[name])
        given = {"steps": steps, "cooldown": round(steps * COOLED), "log_every": 20, "save_every": steps}
        given |= changes.pop("training", {})
        recipe = replace(own, training=replace(own.training, **given), **changes)
        return lambda setup: replace(setup, recipe=recipe)

    def weighted(weight: Any) -> Any:
        return replace(own.loss, weight=weight)

    choices = {
        "recipe": choice(),
        "clean, min-SNR, cosine": choice(predicts=clean, schedule=Cosine(), loss=weighted(MinSNR(5.0))),
        "velocity, cosine": choice(predicts=velocity, schedule=Cosine()),
        "noise, linear betas": choice(predicts=noise, schedule=LinearBetas(100, 4e-4), loss=weighted(snr)),
        "1.2 M parameters": choice("1.2 M parameters", network=own.network.changed(width=32)),
        "batch 128": choice("batch 128", data=replace(own.data, batch=128)),
        "batch 32": choice("batch 32", data=replace(own.data, batch=32)),
        "float32": choice("float32", training={"precision": "float32"}),
        "learning rate 2e-3": choice(training={"learning_rate": 2e-3}),
        "constant rate": choice(training={"cooldown": 0}),
        "raw weights": lambda setup: replace(choice()(setup), average="raw"),
    }
    return Ablation(
        Setup(own, count=2, samples=1000, without=WITHOUT_CODE),
        {"choice": choices},
        measures=("frechet", "sure"),
        title="What gives the best digits in equal seconds of one thread",
        question=(
            "The recipe `fast-digits`, an EDM without class labels on 8 x 8 digits, and each of its choices changed "
            f"alone. Each run has as many steps as {SECONDS:.0f} seconds of one unloaded thread allow, a twelfth of "
            "the budget of the recipe: larger networks and batches have fewer steps. 1,000 samples of 50 steps of DDIM."
        ),
        shows=(
            "After 20 seconds of training, noise prediction on linear betas, four times the parameters, batches of 32, "
            "float32 and a constant learning rate have larger distances than the recipe. Nothing has a smaller one "
            "with certainty: the smallest mean, 9.7 beside 11.7, is that of clean prediction with min-SNR on the "
            "cosine schedule, and batches of 128 and the raw weights cannot be told from the recipe. All are far from "
            "its distance of 1.3 after four minutes, where the order may be another one."
        ),
    )
