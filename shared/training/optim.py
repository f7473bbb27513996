"""The optimizer, its learning rate, the averaged weights, and protection from gradients that are not finite."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import Training


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


def clip_gradients(parameters: list[nn.Parameter], largest: float) -> Tensor:
    """Scales the gradient down to norm `largest`, or to zero where its norm is not finite, and returns its norm before.

    The norm is that of all gradients together, a scalar tensor. Nothing waits for the device: the gradients are scaled
    where they lie.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
    for g in gradients:
        g.masked_fill_(~torch.isfinite(norm), 0.0)
    return norm


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float, step: int) -> None:
    """Updates averaged weights: `average <- d average + (1 - d) module` with `d = min(decay, (1 + n) / (10 + n))`.

    n is `step`, from 0; buffers are copied, not averaged. The smaller d of early steps makes the average forget the
    random initialization.
    """
    d = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        list(average.parameters()), list(module.parameters()), 1 - d
    )
    for a, b in zip(average.buffers(), module.buffers(), strict=True):
        a.copy_(b)
