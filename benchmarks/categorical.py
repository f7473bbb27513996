"""Categorical losses beside a cross-entropy and reverse steps beside a softmax and a draw, of the same logits.

The network is a parameter, the logits, so that a loss is measured alone: time, corruption, loss and backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.discrete import (
    Absorbing,
    Categorical,
    ContinuousBound,
    D3PMLoss,
    LogLinearNoise,
    Uniform,
    carried,
    cosine,
    reciprocal,
)
from unnoise.shared.objective import Objective
from unnoise.shared.random import categorical

from . import plain
from .memory import here, in_fresh_process
from .timing import SCALING, Contender, Work, Workload, asserted, returned

LOSSES, STEPS, MEMORY = "categorical losses", "categorical steps", "memory"
CROSS_ENTROPY, DRAW = "cross-entropy", "softmax and draw"
ROWS, STRIDE = 1000, 100
"""Steps of the tables, and those that a reverse step covers."""


class FreeLogits(nn.Module):
    """A network whose output is a parameter, so that a loss is measured alone.

    Args:
        vocabulary: number of tokens that it takes.
        length: number of positions, or the shape of an example.
        outputs: number of logits at each position.
        batch: number of examples.
    """

    def __init__(self, vocabulary: int, length: int | tuple[int, ...], outputs: int, batch: int = 1) -> None:
        super().__init__()
        shape = (length,) if isinstance(length, int) else length
        source = torch.Generator().manual_seed(0)
        self.logits = nn.Parameter(torch.randn(batch, *shape, outputs, generator=source))

    def forward(self, x: Tensor, time: Tensor | None = None, **cond: Tensor) -> Tensor:
        """Returns the logits, whatever x is."""
        return self.logits


class Size(NamedTuple):
    """Batch, shape of an example and vocabulary."""

    batch: int
    shape: tuple[int, ...]
    categories: int

    def __str__(self) -> str:
        return f"K = {self.categories:,}, {self.batch} x {' x '.join(map(str, self.shape))}"


IMAGES = Size(8, (3, 32, 32), 256)
SMALL, MIDDLE, LARGE = (Size(2, (1024,), k) for k in (27, 8192, 131072))


def denoiser_of(kind: str, size: Size, dtype: torch.dtype = torch.float32) -> tuple[Categorical, plain.Process | None]:
    """Returns a denoiser whose logits are a parameter, and the same process in plain form, None for MDLM's."""
    k, network = size.categories, FreeLogits(size.categories, size.shape, size.categories, size.batch).to(dtype)
    if kind == "uniform":
        return Categorical(network, Uniform(k, cosine(ROWS))), plain.Uniform(k, cosine(ROWS))
    if kind == "absorbing":
        return Categorical(network, Absorbing(k, reciprocal(ROWS))), plain.Absorbing(k, reciprocal(ROWS))
    if kind == "MDLM":
        return Categorical(network, Absorbing(k, LogLinearNoise()), head=carried), None
    raise ValueError(f"kind={kind!r}: give uniform, absorbing or MDLM")


def objective_of(denoiser: Categorical) -> Objective:
    """Returns D3PM's loss for a table, and the bound in continuous time for MDLM."""
    return D3PMLoss(denoiser, ce=0.0) if denoiser.corruption.steps else ContinuousBound(denoiser)


def tokens_of(size: Size) -> Tensor:
    """Returns random data."""
    source = torch.Generator().manual_seed(1)
    return torch.randint(0, size.categories, (size.batch, *size.shape), generator=source)


def trained(objective: Objective, x0: Tensor) -> Work:
    """Returns a function that computes a loss at random times and its gradient."""
    logits, source = next(objective.parameters()), torch.Generator().manual_seed(2)

    def work() -> None:
        logits.grad = None
        objective(x0, generator=source).total.mean().backward()

    return work


def cross_entropy(logits: Tensor, x0: Tensor) -> Work:
    """Returns a function that computes the cross-entropy of logits and its gradient."""

    def work() -> None:
        logits.grad = None
        F.cross_entropy(logits.flatten(0, -2), x0.flatten()).backward()

    return work


def small(size: Size) -> Size:
    """Returns a few positions of a size, for the comparison in float64."""
    return Size(2, (min(size.shape[0], 12),) if len(size.shape) == 1 else (size.shape[0], 4, 4), size.categories)


def same_loss(denoiser: Categorical, process: plain.Process | None, size: Size) -> str:
    """Compares a loss and its gradient with the plain formula in float64."""
    x0, logits = tokens_of(size), next(denoiser.parameters())
    objective, n = objective_of(denoiser), torch.tensor([300, 800])
    t = n.double() / ROWS
    found = objective.at(x0, t, generator=torch.Generator().manual_seed(3)).total
    x_t = denoiser.corruption.corrupt(x0, t, generator=torch.Generator().manual_seed(3))
    free = logits.detach().double().requires_grad_()
    if process is None:
        expected = (1 - denoiser.corruption.t_min) * plain.mdlm_loss(free, x0, x_t, t)
    else:
        expected = plain.d3pm_loss(process, free, x0, x_t, n)
    (ours,) = torch.autograd.grad(found.sum(), logits)
    (other,) = torch.autograd.grad(expected.sum(), free)
    asserted(ours, other, "gradients", 1e-3)
    return asserted(found, expected, "losses and gradients", 1e-4)


def loss(kind: str, size: Size, target: float | None, series: tuple[str, float] | None = None) -> Workload:
    """Returns the workload of a loss and its backward pass."""
    denoiser, _ = denoiser_of(kind, size)
    x0, logits = tokens_of(size), next(denoiser.parameters())
    return Workload(
        name=f"{kind}, {size}",
        group=LOSSES if series is None else SCALING,
        unit="loss and backward",
        ours=Contender(trained(objective_of(denoiser), x0)),
        base=CROSS_ENTROPY,
        references={CROSS_ENTROPY: Contender(cross_entropy(logits, x0))},
        equal=lambda: same_loss(*denoiser_of(kind, small(size)), small(size)),
        target=target,
        rounds=3 if size.categories >= LARGE.categories else None,
        series=series[0] if series else None,
        at=series[1] if series else None,
    )


def sampled_from(p: Tensor, draws: Tensor) -> str:
    """Compares draws with their distributions p, `(..., K)`, by their mean code length, within five standard errors."""
    log_p = p.clamp(min=1e-300).log()
    nats = -log_p.gather(-1, draws[..., None])[..., 0]
    entropy = -(p * log_p).sum(-1)
    variance = (p * log_p**2).sum(-1) - entropy**2
    apart, error = float((nats - entropy).mean()), float(variance.clamp(min=0).sum().sqrt() / nats.numel())
    assert abs(apart) <= 5 * error + 1e-9, f"draws have {apart:.3f} nats more than their distribution, +- {error:.3f}"
    return "draws within five standard errors"


def same_step(denoiser: Categorical, process: plain.Process | None, size: Size, n: int) -> str:
    """Compares the distribution of a step with the plain formula, and draws with it."""
    t, s = (torch.tensor(row / ROWS, dtype=torch.float64) for row in (n, n - STRIDE))
    x_t = denoiser.corruption.corrupt(tokens_of(size), t, generator=torch.Generator().manual_seed(3))
    logits = next(denoiser.parameters()).detach().double()
    if process is None:
        expected = plain.mdlm_step(logits, x_t, float(t), float(s))
    else:
        expected = plain.d3pm_step(process, logits, x_t, n, STRIDE)
    with torch.no_grad():
        found = denoiser.step_distribution(x_t, t, s)
        draws = denoiser.draw(x_t, t, s, generator=torch.Generator().manual_seed(4))
    same = asserted(found, expected, "p(x_s | x_t)", 1e-4)
    return f"{same}, {sampled_from(expected, draws)}"


def draws(denoiser: Categorical, size: Size, n: int) -> Work:
    """Returns a function that takes a reverse step from row n."""
    t, s = (torch.tensor(row / ROWS, dtype=torch.float64) for row in (n, n - STRIDE))
    x_t = denoiser.corruption.corrupt(tokens_of(size), t, generator=torch.Generator().manual_seed(3))
    source = torch.Generator().manual_seed(4)

    @torch.no_grad()
    def work() -> Tensor:
        return denoiser.draw(x_t, t, s, generator=source)

    return work


def softmax_and_draw(logits: Tensor) -> Work:
    """Returns a function that draws a token from logits, as a language model does."""
    source = torch.Generator().manual_seed(4)

    @torch.no_grad()
    def work() -> Tensor:
        return categorical(logits.softmax(-1), source)

    return work


def step(kind: str, size: Size, target: float | None, series: tuple[str, float] | None = None) -> Workload:
    """Returns the workload of a reverse step in the middle of a run."""
    denoiser, _ = denoiser_of(kind, size)
    return Workload(
        name=f"{kind} step, {size}",
        group=STEPS if series is None else SCALING,
        unit="step",
        ours=Contender(draws(denoiser, size, 500)),
        base=DRAW,
        references={DRAW: Contender(softmax_and_draw(next(denoiser.parameters())))},
        equal=lambda: same_step(*denoiser_of(kind, small(size)), small(size), 500),
        target=target,
        series=series[0] if series else None,
        at=series[1] if series else None,
    )


def loss_in_memory(kind: str, batch: int, length: int, categories: int) -> Work:
    """Returns the work of a loss and its backward pass in bfloat16; "gradient" is that of its result alone."""
    size = Size(batch, (length,), categories)
    denoiser, _ = denoiser_of("absorbing" if kind in ("gradient", CROSS_ENTROPY) else kind, size, torch.bfloat16)
    x0, logits = tokens_of(size), next(denoiser.parameters())
    if kind == CROSS_ENTROPY:
        return cross_entropy(logits, x0)
    if kind == "gradient":

        def gradient() -> None:
            logits.grad = torch.zeros_like(logits).add_(1)

        return gradient
    return trained(objective_of(denoiser), x0)


def memory(kind: str, size: Size, smoke: bool, target: float | None, series: tuple[str, float] | None) -> Workload:
    """Returns the peak memory of a loss in bfloat16 beyond its logits, beside that of their gradient."""
    fresh, sizes = here if smoke else in_fresh_process, (size.batch, size.shape[0], size.categories)
    names = (kind, "gradient", *([CROSS_ENTROPY] if series is None else []))
    works = {name: Contender(fresh(loss_in_memory, name, *sizes)) for name in names}
    return Workload(
        name=f"memory of {kind}, {size}, bfloat16",
        group=MEMORY if series is None else SCALING,
        unit="loss and backward",
        ours=works.pop(kind),
        base="gradient",
        references=works,
        equal=lambda: same_loss(*denoiser_of(kind, small(size)), small(size)),
        target=target,
        clock=returned,
        measure="MB",
        rounds=1,
        series=series[0] if series else None,
        at=series[1] if series else None,
        note="beyond the logits; fresh processes",
    )


TARGETS: dict[str, dict[Size, float]] = {
    "uniform": {IMAGES: 2.2, SMALL: 3.0, MIDDLE: 2.2, LARGE: 2.2},
    "absorbing": {IMAGES: 1.2, SMALL: 1.5, MIDDLE: 1.1, LARGE: 1.1},
    "MDLM": {IMAGES: 1.25, SMALL: 1.25, MIDDLE: 1.25, LARGE: 1.25},
}
"""Largest ratios to the cross-entropy, for loss and backward."""


def workloads(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the losses and steps with targets, by name."""
    found = dict[str, Callable[[], Workload]]()
    for kind, targets in TARGETS.items():
        for size, target in [*targets.items()][: 2 if smoke else None]:
            shown = Size(2, (1, 2, 2) if size == IMAGES else (3,), min(size.categories, 7)) if smoke else size
            found[f"{kind}, {size}"] = partial(loss, kind, shown, target)
        shown = Size(2, (1, 2, 2), 7) if smoke else IMAGES
        found[f"{kind} step, {IMAGES}"] = partial(step, kind, shown, 1.2)
    for kind in TARGETS:
        size = Size(2, (3,), 7) if smoke else Size(2, (256,), LARGE.categories)
        found[f"memory of {kind}"] = partial(memory, kind, size, smoke, 1.1, None)
    return found
