"""The optimizer, its learning rate, the averaged weights, and protection from gradients that are not finite."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import Training
from .parallel import own, whole


def optimizer(parameters: list[nn.Parameter], config: Training) -> torch.optim.AdamW:
    """Returns AdamW with the settings; its learning rate is to be set for each step, from `learning_rate`."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: Training, step: int) -> float:
    """Returns the learning rate of step 0, 1, ...: linear warm-up, constant, linear cool-down to 0 after the last.

    `rate min(1, (step + 1) / warmup) min(1, (steps - step) / cooldown)`, with the settings of `Training`.
    """
    warmup = min(5000, config.steps // 10) if config.warmup is None else config.warmup
    rise = min(1.0, (step + 1) / max(warmup, 1))
    fall = min(1.0, (config.steps - step) / max(config.cooldown, 1))
    return config.learning_rate * rise * fall


def clip_gradients(parameters: list[nn.Parameter], largest: float, zero: bool = True) -> Tensor:
    """Scales the gradient down to norm `largest`, or to zero where its norm is not finite, and returns its norm before.

    The norm is that of all gradients together, a scalar tensor. Nothing waits for the device: the gradients are scaled
    where they lie.

    Args:
        parameters: the parameters.
        largest: the norm.
        zero: whether a gradient that is not finite becomes zero; otherwise it stays, and the scale of the loss for
            float16 skips the step.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    gradients = [own(g) for g in gradients]
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
    wrong = ~torch.isfinite(norm)
    if zero and (norm.device.type != "cpu" or wrong):  # a CPU has computed the norm already
        for g in gradients:
            g.masked_fill_(wrong, 0.0)
    return norm
