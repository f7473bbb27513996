"""Categorical processes with transition matrices: the discretized Gaussian of D3PM, and nearest neighbors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from unnoise.discrete import Categorical, DiscretizedGaussian, NearestNeighbor, cosine, linear, nearest
from unnoise.shared.random import categorical
from unnoise.shared.tensors import Table

from . import plain
from .categorical import (
    CROSS_ENTROPY,
    DRAW,
    IMAGES,
    LOSSES,
    ROWS,
    STEPS,
    FreeLogits,
    Size,
    cross_entropy,
    objective_of,
    sampled_from,
    small,
    softmax_and_draw,
    tokens_of,
    trained,
)
from .timing import Contender, Workload, asserted


def betas_of(rows: int) -> Tensor:
    """Returns D3PM's betas for images, 1e-4 to 0.02 at 1,000 rows, for another number of rows."""
    return linear(rows, 0.1 / rows, 20 / rows)


def gaussian_of(size: Size, rows: int) -> tuple[Categorical, DiscretizedGaussian]:
    """Returns a denoiser of the discretized Gaussian process, whose logits are a parameter."""
    transition = DiscretizedGaussian(size.categories, betas_of(rows))
    return Categorical(FreeLogits(size.categories, size.shape, size.categories, size.batch), transition), transition


def dense_of(transition: DiscretizedGaussian, rows: int, dtype: torch.dtype) -> plain.Dense:
    """Returns the same process as a table of matrices."""
    return plain.Dense(torch.stack([transition.one(torch.tensor(n)) for n in range(1, rows + 1)]), dtype)


def gaussian_loss(smoke: bool) -> Workload:
    """Returns the loss of the discretized Gaussian process beside a cross-entropy and its dense form."""
    size, rows = (Size(2, (1, 2, 2), 5), 20) if smoke else (IMAGES, ROWS)
    denoiser, transition = gaussian_of(size, rows)
    objective, x0 = objective_of(denoiser), tokens_of(size)
    logits, matrices = next(denoiser.parameters()), dense_of(transition, rows, torch.float32)
    source = torch.Generator().manual_seed(5)

    def dense() -> None:
        logits.grad = None
        n = torch.randint(2, rows + 1, (size.batch,), generator=source)
        x_t = transition.corrupt(x0, n.double() / rows, generator=source)
        plain.d3pm_loss(matrices, logits, x0, x_t, n).mean().backward()

    def equal() -> str:
        few, short = small(size) if not smoke else size, min(rows, 100)
        other, process = gaussian_of(few, short)
        logits, x0, n = next(other.parameters()), tokens_of(few), torch.tensor([2, short - 5])
        t = n.double() / short
        x_t = process.corrupt(x0, t, generator=torch.Generator().manual_seed(3))
        found = objective_of(other).at(x0, t, generator=torch.Generator().manual_seed(3)).total
        free = logits.detach().double().requires_grad_()
        expected = plain.d3pm_loss(dense_of(process, short, torch.float64), free, x0, x_t, n)
        (ours,), (plainly,) = torch.autograd.grad(found.sum(), logits), torch.autograd.grad(expected.sum(), free)
        asserted(ours, plainly, "gradients", 1e-3)
        return asserted(found, expected, "losses and gradients", 1e-4)

    return Workload(
        name=f"discretized Gaussian, {size}",
        group=LOSSES,
        unit="loss and backward",
        ours=Contender(trained(objective, x0)),
        base=CROSS_ENTROPY,
        references={CROSS_ENTROPY: Contender(cross_entropy(logits, x0)), "dense matrices": Contender(dense)},
        equal=equal,
        target=7.0,
        note=f"{rows} rows",
    )


def gaussian_step(smoke: bool) -> Workload:
    """Returns a step of the discretized Gaussian process beside a softmax and draw and its dense form."""
    size, rows = (Size(2, (1, 2, 2), 5), 20) if smoke else (IMAGES, ROWS)
    denoiser, transition = gaussian_of(size, rows)
    logits, matrices, n = next(denoiser.parameters()), dense_of(transition, rows, torch.float32), rows // 2
    t, s = (torch.tensor(row / rows, dtype=torch.float64) for row in (n, n - 1))
    x_t = transition.corrupt(tokens_of(size), t, generator=torch.Generator().manual_seed(3))
    source = torch.Generator().manual_seed(4)

    @torch.no_grad()
    def ours() -> Tensor:
        return denoiser.draw(x_t, t, s, generator=source)

    @torch.no_grad()
    def dense() -> Tensor:
        return categorical(plain.d3pm_step(matrices, logits, x_t, n), source)

    def equal() -> str:
        expected = plain.d3pm_step(matrices, logits.detach(), x_t, n).double()
        with torch.no_grad():
            found = denoiser.step_distribution(x_t, t, s)
        return f"{asserted(found, expected, 'p(x_s | x_t)', 1e-3)}, {sampled_from(expected, ours())}"

    return Workload(
        name=f"discretized Gaussian step, {size}",
        group=STEPS,
        unit="step",
        ours=Contender(ours),
        base=DRAW,
        references={DRAW: Contender(softmax_and_draw(logits)), "dense matrices": Contender(dense)},
        equal=equal,
        target=3.0,
        note=f"{rows} rows, step {n}",
    )


def gaussian_tables(smoke: bool) -> Workload:
    """Returns the set-up of the discretized Gaussian process beside that of its dense tables."""
    categories, rows = (5, 20) if smoke else (256, ROWS)
    transition = DiscretizedGaussian(categories, betas_of(rows))
    tables = [v.values for v in vars(transition).values() if isinstance(v, Table)]
    megabytes = sum(v.numel() * v.element_size() for v in tables) / 1e6

    def equal() -> str:
        dense, n = dense_of(transition, rows, torch.float64), torch.tensor([rows // 2])
        return asserted(transition.products(n)[0], dense.total[n[0]], "products of the steps", 1e-6)

    return Workload(
        name=f"discretized Gaussian set-up, K = {categories}, T = {rows:,}",
        group=LOSSES,
        unit="set-up",
        ours=Contender(lambda: DiscretizedGaussian(categories, betas_of(rows))),
        base="dense matrices",
        references={"dense matrices": Contender(lambda: dense_of(transition, rows, torch.float32))},
        equal=equal,
        target_ms=3000.0,
        note=f"tables of {megabytes:.1f} MB",
        rounds=3,
    )


def neighbors_of(smoke: bool) -> tuple[Categorical, Size]:
    """Returns a denoiser of the nearest-neighbor process of K = 8,192 random embeddings, 5 neighbors each."""
    size = Size(2, (3,), 16) if smoke else Size(2, (128,), 8192)
    near = nearest(torch.randn(size.categories, 64, generator=torch.Generator().manual_seed(6)), 5)
    network = FreeLogits(size.categories, size.shape, size.categories, size.batch)
    return Categorical(network, NearestNeighbor(near, cosine(ROWS))), size


def rows_of(transition: NearestNeighbor, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `Q_(s->t)[:, x]` and `x Q_(s->t)`, `(..., K)`, as products of the process's own rows."""
    hit = torch.nn.functional.one_hot(x, transition.states).double()
    return transition.likelihood(x, s, t), transition.pushforward(hit, s, t)


def neighbors_loss(smoke: bool) -> Workload:
    """Returns the loss of the nearest-neighbor process beside a cross-entropy."""
    denoiser, size = neighbors_of(smoke)
    x0, logits, objective = tokens_of(size), next(denoiser.parameters()), objective_of(denoiser)
    transition, zero = denoiser.corruption, torch.zeros(size.batch, dtype=torch.float64)
    assert isinstance(transition, NearestNeighbor)

    def equal() -> str:
        t = torch.tensor([0.4, 0.9], dtype=torch.float64)
        x_t = transition.corrupt(x0, t, generator=torch.Generator().manual_seed(3))
        s = t - 1 / ROWS
        back, truth = rows_of(transition, x_t, s, t)[0], rows_of(transition, x0, zero, s)[1]
        ahead = transition.pushforward(logits.detach().double().softmax(-1), zero, s)
        found = objective.at(x0, t, generator=torch.Generator().manual_seed(3)).total
        return asserted(found, plain.divergence(back, truth, ahead).mean(1), "losses", 1e-3)

    return Workload(
        name=f"nearest neighbors, {size}",
        group=LOSSES,
        unit="loss and backward",
        ours=Contender(trained(objective, x0)),
        base=CROSS_ENTROPY,
        references={CROSS_ENTROPY: Contender(cross_entropy(logits, x0))},
        equal=equal,
        rounds=3,
    )


def workloads(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the workloads of this module by name."""
    return {
        f"discretized Gaussian, {IMAGES}": partial(gaussian_loss, smoke),
        f"discretized Gaussian step, {IMAGES}": partial(gaussian_step, smoke),
    }


def further(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the workloads of `--full` alone."""
    return {
        "discretized Gaussian set-up": partial(gaussian_tables, smoke),
        "nearest neighbors": partial(neighbors_loss, smoke),
    }
