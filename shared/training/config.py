"""How to train."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..describe import described
from ..errors import UsageError


@described
@dataclass(frozen=True)
class Training:
    """Settings of the trainer; the same for every family."""

    steps: int = 100_000
    """Optimiser steps in all."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW (with weight decay 0 this is Adam)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    epsilon: float = 1e-8
    """AdamW's epsilon; losses far below 1, such as one step's divergence of a table of 1000, train faster with 1e-12."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup: int | None = None
    """Steps over which the learning rate rises linearly from 0; None for 5000, or a tenth of the steps if that is less."""
    cooldown: int = 0
    """Last steps, over which the learning rate falls linearly to 0."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    ema: float = 0.9999
    """Decay of the averaged weights; step n uses min(ema, (1 + n) / (10 + n))."""
    bfloat16: bool | None = False
    """Run the network under bfloat16 autocast; losses stay float32. None for where the device multiplies such numbers itself."""
    seed: int = 0
    """Seed of the noise and of the times; the data have their own."""
    device: str = "auto"
    """A torch device, or auto: the GPU where there is one."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    watch_every: int = 0
    """Steps between pictures of samples; 0 for none."""
    save_every: int = 1000
    """Steps between checkpoints; one is written at the end and on Ctrl-C in any case."""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: give a whole number of at least 1")
        for name in ("learning_rate", "epsilon", "clip"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}={getattr(self, name)}: give a positive number")
        for name, decays in (("ema", (self.ema,)), ("betas", self.betas)):
            if not all(0 <= decay < 1 for decay in decays):
                raise UsageError(f"{name}={getattr(self, name)}: give decays in [0, 1)")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"seed={self.seed}: give a whole number from 0 to 2147483647")

    def chosen_device(self) -> torch.device:
        """The device that `device` names.

        Raises:
            UsageError: where this machine or this build of torch does not have it.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.empty(0, device=self.device).device
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"device={self.device} is not to be had here ({str(error).splitlines()[0]}): try auto or cpu") from error
