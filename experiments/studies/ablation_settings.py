"""Data, networks and training that the ablations of this package share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...continuous import (
    LinearBetas,
)
from ...discrete import Product, residual
from ...sde import VP
from ...shared.networks import UNet
from ...shared.training import Training
from ..ablation import Setup
from ..code_lengths import Bound, Exact, TokenBound
from ..image_data import Images
from ..papers import d3pm_images, ddpm, score_sde, settings
from ..parts import part
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


def text(steps: int) -> dict[str, Any]:
    """Returns settings for the Markov chain and a small network."""
    own = settings.chain()
    network = own["network"].changed(width=64, depth=2)
    of_training = training(steps, epsilon=1e-12, learning_rate=3e-3)
    return own | {
        "network": network,
        "training": of_training,
        "sampling_steps": 32,
        "code_length": TokenBound(terms=25),
    }


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
            reverse=Product(),
            head=residual,
            loss=d3pm_images.loss(0.02),
        ),
        "score SDE": replace(score_sde.OWN, **data(steps, code_length=Exact(1e-3)), schedule=VP(t_last=0.01)),
    }
