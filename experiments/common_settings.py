"""What every family gets alike: the same data, network and training, so that a comparison compares the families."""

from __future__ import annotations

import math
from typing import Any

from ..shared.training import Training
from .images import Data, Network
from .texts import Text, TextNetwork


def digits() -> dict[str, Any]:
    """8 x 8 digits of 17 levels with their labels, and a network of 1.2 M parameters.

    About two and a half minutes on two cores.
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
        "data": Data("digits", batch=64, classes=10),
        "network": Network(32, (1, 2, 2), 1, (2,), 4),
        "training": training,
        "sampling_steps": 100,
    }


def mnist() -> dict[str, Any]:
    """28 x 28 digits of 256 levels: hours on two cores, minutes on a GPU."""
    training = Training(steps=20_000, learning_rate=5e-4, warmup=500, cooldown=5000, ema=0.999, watch_every=2000)
    return {
        "data": Data("mnist5k", batch=128),
        "network": Network(64, (1, 2, 2), 2, (4,), 4),
        "training": training,
        "sampling_steps": 1000,
    }


def smoke() -> dict[str, Any]:
    """Seconds: the whole path with a tiny network, to see that it runs."""
    training = Training(steps=8, learning_rate=1e-3, warmup=2, cooldown=2, log_every=4, watch_every=4, save_every=4)
    return {
        "data": Data("digits", batch=16, classes=10),
        "network": Network(8, (1,), 1, (), 1),
        "training": training,
        "sampling_steps": 4,
    }


def adm(steps: int, rate: float = 1e-4) -> Training:
    """The released training of Improved DDPM and ADM: AdamW without clipping or warm-up."""
    return Training(steps=steps, learning_rate=rate, warmup=0, clip=math.inf, ema=0.9999, watch_every=10_000)


def chain() -> dict[str, Any]:
    """Windows of 64 symbols of the Markov chain, and networks of 0.4 M parameters: four minutes of one core."""
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
        "text": Text("chain", batch=32, length=64),
        "network": TextNetwork("t5", 96, 3, 4),
        "training": training,
        "sampling_steps": 64,
        "bound_terms": 50,
    }


def shakespeare(network: TextNetwork | None = None) -> dict[str, Any]:
    """Windows of 128 symbols and networks of 0.8 M parameters: some minutes on two cores, for readable words longer."""
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
        "text": Text("shakespeare", batch=16, length=128),
        "network": network or TextNetwork("t5", 128, 4, 4),
        "training": training,
        "sampling_steps": 128,
        "bound_terms": 50,
    }


def smoke_text(network: TextNetwork | None = None) -> dict[str, Any]:
    """Seconds: the whole path with a tiny network, to see that it runs."""
    return {
        "text": Text("shakespeare", batch=8, length=16),
        "network": network or TextNetwork("t5", 16, 1, 2),
        "training": smoke()["training"],
        "sampling_steps": 4,
        "bound_terms": 4,
    }
