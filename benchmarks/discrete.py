"""Measures the cost of categorical losses and steps relative to a language model's: `make bench-discrete`.

`python -m benchmarks.discrete --smoke` runs everything once on the smallest sizes, as a test; its figures have no
meaning.
"""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from unnoise.discrete import (
    Absorbing,
    DiscretizedGaussian,
    GeometricNoise,
    LogLinearNoise,
    Marginal,
    NearestNeighbor,
    Product,
    ReverseModel,
    Uniform,
    cosine,
    linear,
    nearest,
)
from unnoise.shared.random import categorical
from unnoise.shared.tensors import Table, like

from .speed import seconds

SHAPES = ((4, 1024, 50257), (32, 256, 28))
"""Batch, length and vocabulary; memory is measured at the first."""
SMOKE = ((2, 4, 5),)


def problem(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Returns random logits, tokens and times."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    x0 = torch.randint(0, shape[-1], shape[:-1], generator=generator)
    return logits, x0, (1 + torch.randint(0, 999, (shape[0],), generator=generator)).double() / 1000


def losses(shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Returns functions that run forward and backward of cross-entropy and of the categorical losses."""
    logits, x0, t = problem(shape, dtype)
    absorbing, uniform = Absorbing(shape[-1], LogLinearNoise()), Uniform(shape[-1], cosine(1000))
    masked, mixed, s = absorbing.corrupt(x0, t), uniform.corrupt(x0, t), uniform.before(t)

    def cross_entropy() -> None:
        logits.grad = None
        F.cross_entropy(logits.view(-1, shape[-1]), x0.view(-1)).backward()

    def absorb() -> None:
        logits.grad = None
        absorbing.path_rate(Product(), logits, x0, masked, t).divergence.mean().backward()

    def resample() -> None:
        logits.grad = None
        uniform.divergence(Product(), logits, x0, mixed, t, s).divergence.mean().backward()

    in_time = Uniform(shape[-1], GeometricNoise())

    def rate() -> None:
        logits.grad = None
        in_time.path_rate(Product(), logits, x0, mixed, t).divergence.mean().backward()

    def ratios() -> None:
        logits.grad = None
        in_time.score_entropy(logits, x0, mixed, t).mean().backward()

    return {
        "cross-entropy": cross_entropy,
        "absorbing": absorb,
        "uniform": resample,
        "uniform rate": rate,
        "score entropy": ratios,
    }


def steps(shape: tuple[int, int, int], repeats: int = 5) -> dict[str, float]:
    """Returns the time of a reverse step over that of one softmax and one inverse-CDF draw."""
    logits, x0, _ = problem(shape, torch.float32)
    t, s = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    with torch.no_grad():
        base = seconds(lambda: categorical(logits.softmax(-1)), repeats)
        found = {}
        for transition in (Absorbing(shape[-1], LogLinearNoise()), Uniform(shape[-1], cosine(1000))):
            x = transition.corrupt(x0, t)
            took = seconds(lambda transition=transition, x=x: transition.draw(Product(), logits, x, t, s), repeats)
            found[type(transition).__name__.lower()] = took / base
    return found


def peak(name: str, shape: tuple[int, int, int]) -> float:
    """Returns the growth of the peak memory by a loss, in bytes, measured in its own process."""
    code = f"from benchmarks.discrete import grown; print(grown({name!r}, {shape!r}))"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def grown(name: str, shape: tuple[int, int, int]) -> float:
    """Returns the peak memory of this process after a loss, less that before it and plus the logits."""
    work = losses(shape, torch.float32)[name]
    gc.collect()
    logits = shape[0] * shape[1] * shape[2] * 4
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - logits
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def dense_two_tables(categories: int, betas: Tensor) -> tuple[Tensor, Tensor]:
    """Returns single steps and their products, `(T, K, K)` each, float32, as in D3PM's published code."""
    transition = DiscretizedGaussian(categories, betas)
    one = torch.stack([transition.one(torch.tensor(n)) for n in range(1, len(betas) + 1)])
    total = [one[0]]
    for q in one[1:]:
        total.append(total[-1] @ q)
    return one.float(), torch.stack(total).float()


def dense_loss(one: Tensor, total: Tensor, logits: Tensor, x0: Tensor, x_t: Tensor, n: Tensor) -> Tensor:
    """Computes L_n of the `Product` model as in D3PM's published code, for n >= 2, with an epsilon of 1e-6."""
    rows, flat = n - 1, (len(n), -1)
    back = one.mT[like(rows, x_t), x_t]
    truth = (back + 1e-6).log() + (total[like(rows - 1, x0), x0] + 1e-6).log()
    ahead = (logits.softmax(-1).reshape(*flat, logits.shape[-1]) @ total[rows - 1]).reshape(logits.shape)
    model = (back + 1e-6).log() + (ahead + 1e-6).log()
    return (truth.softmax(-1) * (truth.log_softmax(-1) - model.log_softmax(-1))).sum(-1).mean()


def gaussian(categories: int = 256, count: int = 1000, size: int = 32, repeats: int = 3) -> dict[str, float]:
    """Measures set-up, tables and loss at K = 256, T = 1000, images 32 x 32 x 3."""
    betas = linear(count)
    setup = seconds(lambda: DiscretizedGaussian(categories, betas), 1)
    transition = DiscretizedGaussian(categories, betas)
    tables = sum(t.values.numel() * t.values.element_size() for t in vars(transition).values() if isinstance(t, Table))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, size, size, categories, generator=generator).requires_grad_()
    x0 = torch.randint(0, categories, (4, 3, size, size), generator=generator)
    n = torch.tensor([50, 300, 600, 900]) * count // 1000
    t, s = n.double() / count, (n - 1).double() / count
    x_t, tables_of_two = transition.corrupt(x0, t), dense_two_tables(categories, betas)

    def ours(reverse: ReverseModel) -> None:
        logits.grad = None
        transition.divergence(reverse, logits, x0, x_t, t, s).divergence.mean().backward()

    def dense() -> None:
        logits.grad = None
        dense_loss(*tables_of_two, logits, x0, x_t, n).backward()

    base = seconds(dense, repeats)
    product, marginal = seconds(lambda: ours(Product()), repeats), seconds(lambda: ours(Marginal()), repeats)
    return {
        "set-up, s": setup,
        "tables, MB": tables / 1e6,
        "dense / product": base / product,
        "dense / marginal": base / marginal,
    }


def neighbors(states: int = 8192, length: int = 128) -> dict[str, float]:
    """Measures a loss and a sampling step at K = 8192, k = 5, L = 128, B = 4: seconds and peak memory."""
    generator = torch.Generator().manual_seed(0)
    near = nearest(torch.randn(states, 64, generator=generator), 5)
    transition = NearestNeighbor(near, cosine(1000))
    logits = torch.randn(4, length, states, generator=generator).requires_grad_()
    x0 = torch.randint(0, states, (4, length), generator=generator)
    t = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    x_t, s = transition.corrupt(x0, t), t - 1e-3

    def loss() -> None:
        logits.grad = None
        transition.divergence(Product(), logits, x0, x_t, t, s).divergence.mean().backward()

    def step() -> None:
        with torch.no_grad():
            transition.draw(Product(), logits, x_t, t[2], t[1])

    took = {"loss, s": seconds(loss, 1), "step, s": seconds(step, 1)}
    return took | {"peak, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def main(smoke: bool = False) -> None:
    """Prints every figure with its target.

    Args:
        smoke: run the smallest sizes, once each, and measure memory in this process.
    """
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    shapes, measure = (SMOKE, grown) if smoke else (SHAPES, peak)
    # First: a child's peak starts at that of the process it was started from.
    memory = {name: measure(name, shapes[0]) for name in ("cross-entropy", "absorbing", "uniform", "uniform rate")}
    print(
        f"peak memory {shapes[0]}: "
        + ", ".join(f"{k} {v / memory['cross-entropy']:.2f} x (1.3)" for k, v in memory.items())
    )
    for shape in shapes:
        repeats = 1 if smoke else 3 if shape[-1] > 1000 else 50
        for dtype in (torch.float32, torch.bfloat16):
            took = {k: seconds(work, repeats) for k, work in losses(shape, dtype).items()}
            ratios = {k: v / took["cross-entropy"] for k, v in took.items()}
            print(
                f"{shape} {dtype}: absorbing {ratios['absorbing']:.2f} x cross-entropy (1.25), "
                f"uniform {ratios['uniform']:.2f} x (2.5), "
                f"in continuous time {ratios['uniform rate']:.2f} x (2.5), "
                f"uniform score entropy {ratios['score entropy']:.2f} x"
            )
        drawn = steps(shape, 1 if smoke else 5)
        print(f"step {shape}: " + ", ".join(f"{k} {v:.2f} x softmax and draw (1.5)" for k, v in drawn.items()))
    tables, near = (gaussian(5, 20, 2, 1), neighbors(16, 2)) if smoke else (gaussian(), neighbors())
    print(
        "discretized Gaussian, K = 256, T = 1000 (3 s, 300 MB, 3 x): "
        + ", ".join(f"{k} {v:.2f}" for k, v in tables.items())
    )
    print("nearest neighbors, K = 8192 (8 GB): " + ", ".join(f"{k} {v:.2f}" for k, v in near.items()))


if __name__ == "__main__":
    tyro.cli(main)
