"""Data, network and training that the recipes of all families share, so that their results can be compared.

Each function returns the arguments of a recipe by name; keyword arguments replace or add to them.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ...shared.networks import Transformer, UNet, presets
from ...shared.training import Training
from ...shared.training.averages import Decay
from ..code_lengths import TokenBound
from ..image_data import Images
from ..parts import Part, part
from ..text_data import Text


def digits(**changes: Any) -> dict[str, Any]:
    """Returns settings for 8 x 8 digits of 17 quantization levels with labels, and a network of 1.2 M parameters.

    Training takes about two and a half minutes on two cores.
    """
    training = Training(
        steps=1500,
        learning_rate=1.5e-3,
        warmup=100,
        cooldown=500,
        ema=0.995,
        log_every=25,
        watch_every=500,
        save_every=500,
    )
    return {
        "data": Images("digits", batch=64, classes=10),
        "network": part(UNet, width=32, multipliers=(1, 2, 2), blocks=1, attention=(2,), heads=4),
        "training": training,
        "sampling_steps": 100,
    } | changes


def mnist(**changes: Any) -> dict[str, Any]:
    """Returns settings for 28 x 28 digits of 256 quantization levels: hours on two cores, minutes on a GPU."""
    training = Training(steps=20_000, learning_rate=5e-4, warmup=500, cooldown=5000, ema=0.999, watch_every=2000)
    return {
        "data": Images("mnist5k", batch=128),
        "network": part(UNet, width=64, multipliers=(1, 2, 2), blocks=2, attention=(4,), heads=4),
        "training": training,
        "sampling_steps": 1000,
    } | changes


def smoke(**changes: Any) -> dict[str, Any]:
    """Returns settings for a test of a few seconds, with a tiny network, that every part of a recipe runs."""
    training = Training(steps=8, learning_rate=1e-3, warmup=2, cooldown=2, log_every=4, watch_every=4, save_every=4)
    return {
        "data": Images("digits", batch=16, classes=10),
        "network": part(UNet, width=8, multipliers=(1,), blocks=1, attention=(), heads=1),
        "training": training,
        "sampling_steps": 4,
    } | changes


def unet(name: str, **changes: Any) -> Part[nn.Module]:
    """Returns a U-Net of the papers, from `presets.UNETS`, as a part; `changes` replace or add arguments."""
    return part(UNet, **presets.UNETS[name] | changes)


def adm(steps: int, rate: float = 1e-4) -> Training:
    """Returns the training of the published Improved DDPM and ADM: AdamW without gradient clipping or warm-up."""
    return Training(
        steps=steps, learning_rate=rate, warmup=0, clip=math.inf, ema=Decay(0.9999, warmup=False), watch_every=10_000
    )


def chain() -> dict[str, Any]:
    """Returns settings for windows of 64 tokens of the Markov chain, and networks of 0.4 M parameters.

    Training takes four minutes on one core.
    """
    training = Training(
        steps=2000,
        learning_rate=2e-3,
        epsilon=1e-12,
        warmup=100,
        cooldown=500,
        ema=0.995,
        log_every=25,
        watch_every=1500,
        save_every=500,
    )
    return {
        "data": Text("chain", batch=32, length=64),
        "network": part(Transformer, width=96, depth=3, heads=4),
        "training": training,
        "sampling_steps": 64,
        "code_length": TokenBound(terms=50),
    }


def shakespeare(network: Part[nn.Module] | None = None) -> dict[str, Any]:
    """Returns settings for windows of 128 characters of Shakespeare, and networks of 0.8 M parameters.

    Training takes some minutes on two cores; samples with readable words need longer.
    """
    training = Training(
        steps=2000,
        learning_rate=2e-3,
        epsilon=1e-12,
        warmup=100,
        cooldown=700,
        ema=0.995,
        log_every=25,
        watch_every=1000,
        save_every=500,
    )
    return {
        "data": Text("shakespeare", batch=16, length=128),
        "network": network or part(Transformer, width=128, depth=4, heads=4),
        "training": training,
        "sampling_steps": 128,
        "code_length": TokenBound(terms=50),
    }


def smoke_text(network: Part[nn.Module] | None = None) -> dict[str, Any]:
    """Returns settings for a test of a few seconds on text, with a tiny network, that every part of a recipe runs."""
    return {
        "data": Text("shakespeare", batch=8, length=16),
        "network": network or part(Transformer, width=16, depth=1, heads=2),
        "training": smoke()["training"],
        "sampling_steps": 4,
        "code_length": TokenBound(terms=4),
    }
