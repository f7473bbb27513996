"""Settings of the trainer."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UsageError, shown
from ..serialization import serializable
from ..values import notation


@serializable("training.Training", formerly="unnoise.shared.training.config.Training")
@dataclass(frozen=True)
class Training:
    """Settings of the trainer, the same for every family."""

    steps: int = 100_000
    """Number of optimizer steps in all."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW (with weight decay 0 this is Adam)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    epsilon: float = 1e-8
    """AdamW's epsilon.

    Losses far below 1, such as one step's divergence of a table of 1000 steps, train faster with 1e-12.
    """
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup: int | None = None
    """Number of steps over which the learning rate rises linearly from 0.

    None for 5000, or a tenth of the steps if that is less.
    """
    cooldown: int = 0
    """Number of last steps over which the learning rate falls linearly to 0."""
    clip: float = 1.0
    """Largest norm of the whole gradient; a larger gradient is scaled down to it."""
    ema: float = 0.9999
    """Decay of the averaged weights; step n uses min(ema, (1 + n) / (10 + n))."""
    bfloat16: bool | None = False
    """Whether to run the network under bfloat16 autocast; losses stay float32.

    None for autocast on devices with native bfloat16 arithmetic.
    """
    seed: int = 0
    """Seed of the noise and of the training times; the data have a seed of their own."""
    device: str = "auto"
    """A torch device such as cuda:0, or auto for the GPU where there is one."""
    log_every: int = 50
    """Number of steps between lines of metrics.jsonl."""
    watch_every: int = 0
    """Number of steps between pictures of samples; 0 for no pictures."""
    save_every: int = 1000
    """Number of steps between checkpoints; one is also written at the end and on Ctrl-C."""
    __repr__ = notation

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if name != "warmup" or self.warmup is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), least))
        for name in ("learning_rate", "epsilon", "weight_decay", "clip", "ema"):
            object.__setattr__(self, name, real(name, getattr(self, name)))
        for name in ("learning_rate", "epsilon", "clip"):
            if not getattr(self, name) > 0 or (name != "clip" and math.isinf(getattr(self, name))):
                raise UsageError(f"{name}={getattr(self, name)}: give a positive number")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"weight_decay={self.weight_decay}: give 0 or a positive number")
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise UsageError(f"betas={shown(self.betas)}: give two decay rates in [0, 1), such as (0.9, 0.999)")
        object.__setattr__(self, "betas", tuple(real("betas", decay) for decay in self.betas))
        for name, decays in (("ema", (self.ema,)), ("betas", self.betas)):
            if not all(0 <= decay < 1 for decay in decays):
                raise UsageError(f"{name}={getattr(self, name)}: give decay rates in [0, 1)")
        object.__setattr__(self, "device", str(self.device) if isinstance(self.device, torch.device) else self.device)
        if not isinstance(self.device, str) or self.device.startswith("meta"):
            raise UsageError(
                f"device={shown(self.device)}: give the name of a torch device, such as cpu or cuda:0, or auto"
            )
        if self.bfloat16 not in (True, False, None):
            raise UsageError(
                f"bfloat16={shown(self.bfloat16)}: give True, False, or None to use it where the device has native "
                "bfloat16 arithmetic"
            )
        if self.seed >= 2**31:
            raise UsageError(f"seed={shown(self.seed)}: give a whole number from 0 to 2147483647")

    def chosen_device(self) -> torch.device:
        """Returns the torch device that `device` names.

        Raises:
            UsageError: where this machine or this build of torch does not have it.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.empty(0, device=self.device).device
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"device={self.device} is not available here ({str(error).splitlines()[0]}): try auto or cpu"
            ) from error


LEAST = {"steps": 1, "log_every": 1, "save_every": 1, "watch_every": 0, "warmup": 0, "cooldown": 0, "seed": 0}
"""Settings that are whole numbers, and the least value of each."""
WITHOUT_EFFECT = ("steps", "log_every", "watch_every", "save_every", "device")
"""Settings that do not change what one step computes, so that a resumed run may change them."""


def whole(name: str, value: Any, least: int) -> int:
    """Returns a setting as an int, also from NumPy.

    Raises:
        UsageError: for a value that is not a whole number, or below the least.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError):
        number = None
    if number is None or number < least:
        raise UsageError(f"{name}={shown(value)}: give a whole number of at least {least}")
    return number


def real(name: str, value: Any) -> float:
    """Returns a setting as a float, also from NumPy.

    Raises:
        UsageError: for a value that is not a number.
    """
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{name}={shown(value)}: give a number") from None
