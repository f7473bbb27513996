"""The cost of this package beside the bare work of its networks, as ratios within one run: `make bench`.

`python -m benchmarks.speed --smoke` runs every comparison once at the smallest sizes, as a test; its ratios have no
meaning.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import tyro

from unnoise.continuous import DDIM, DenoisingLoss, DPMSolverPP, Learned, Tabulated, UniPC, linear_betas
from unnoise.discrete import DiscretizedGaussian, Product, linear
from unnoise.sde import VP, Adaptive, ChangeOfVariables
from unnoise.shared.data import Batches
from unnoise.shared.gaussian.guidance import ClassifierFree
from unnoise.shared.networks import UNet
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import Streams, normal
from unnoise.shared.sampler import Sampler, counted
from unnoise.shared.training import Trainer, Training


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Returns the time of the fastest of several runs, after one run for warm-up, in seconds."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def unet(smoke: bool, classes: int | None = None) -> UNet:
    """Returns the network of the demo, or a tiny one."""
    torch.manual_seed(0)
    return (
        UNet((1, 8, 8), 8, (1, 2), 1, (2,), 1, classes=classes)
        if smoke
        else UNet((1, 8, 8), 32, (1, 2, 2), 1, (2,), 4, classes=classes)
    )


def training_step(smoke: bool = False) -> float:
    """One training step, relative to forward, backward and AdamW alone."""
    batch, repeats = (2, 1) if smoke else (64, 3)
    data = Batches(torch.randint(0, 17, (batch, 1, 8, 8)), batch, Quantization(17))
    trainer = Trainer(
        DenoisingLoss.simple(Learned(unet(smoke), Tabulated(linear_betas(100)))), Training(steps=10, log_every=10)
    )
    bare, x, t = unet(smoke), torch.randn(batch, 1, 8, 8), torch.rand(batch)
    optimizer = torch.optim.AdamW(bare.parameters(), fused=True)

    def plain() -> None:
        for _ in range(10):
            bare(x, t).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def ours() -> None:
        trainer.step = 0
        trainer.fit(data)

    return seconds(ours, repeats) / seconds(plain, repeats)


def sampling_step(smoke: bool = False) -> float:
    """One step of DDIM, relative to one evaluation of the network."""
    return solver_step(DDIM, smoke)


def few_step_solver(smoke: bool = False) -> float:
    """One step of UniPC, relative to one evaluation of the network."""
    return solver_step(UniPC, smoke)


def guided_step(smoke: bool = False) -> float:
    """One step of DPM-Solver++ with classifier-free guidance, relative to two evaluations of the network."""
    return solver_step(lambda denoiser: DPMSolverPP(ClassifierFree(denoiser, 1.0)), smoke, 2, labeled=True)


def solver_step(make: Callable[[Learned], Sampler], smoke: bool, evaluations: int = 1, labeled: bool = False) -> float:
    """Ten steps of a sampler, relative to ten times `evaluations` evaluations of the network."""
    batch, repeats = (2, 1) if smoke else (64, 5)
    network, x, t = unet(smoke, classes=10).eval(), torch.randn(batch, 1, 8, 8), torch.rand(batch)
    cond: dict[str, Any] = {"label": torch.arange(batch) % 10} if labeled else {}
    sampler = make(Learned(network, Tabulated(linear_betas(100))))

    def plain() -> None:
        with torch.no_grad():
            for _ in range(10 * evaluations):
                network(x, t, **cond)

    return seconds(lambda: sampler(x, steps=10, **cond), repeats) / seconds(plain, repeats)


def likelihood_evaluation(smoke: bool = False) -> float:
    """One evaluation of the ODE of the likelihood, relative to one forward pass and one vector-Jacobian product."""
    batch, tolerance = (1, 0.3) if smoke else (32, 1e-2)
    network, x, t = unet(smoke).requires_grad_(False), torch.randn(batch, 1, 8, 8), torch.rand(batch)
    likelihood = ChangeOfVariables(Learned(network, VP()), integrator=Adaptive(tolerance, tolerance))
    with counted(likelihood.flow.denoiser) as count:
        likelihood(x)

    def plain() -> None:
        y = x.clone().requires_grad_()
        torch.autograd.grad(network(y, t), y, x)

    return seconds(lambda: likelihood(x), 1 if smoke else 2) / count.calls / seconds(plain, 1 if smoke else 10)


def structured_transition(smoke: bool = False) -> float:
    """One term of the D3PM bound with a structured transition, relative to two dense tables; K = 64, T = 200."""
    levels, steps, shape, repeats = (5, 8, (2, 1, 2, 2), 1) if smoke else (64, 200, (32, 3, 16, 16), 5)
    transition, reverse = DiscretizedGaussian(levels, linear(steps, 1e-2, 1.0)), Product()
    x0, logits, n = torch.randint(0, levels, shape), torch.randn(*shape, levels), torch.randint(2, steps + 1, shape[:1])
    t, s, rows = n.double() / steps, (n - 1).double() / steps, torch.arange(1, steps + 1)
    x = transition.corrupt(x0, t)
    one, total = (torch.cat([of(row[None]) for row in rows]).float() for of in (transition.one, transition.products))

    def plain() -> torch.Tensor:
        image = torch.arange(len(n))[:, None, None, None]
        back, before = one[n - 1].mT[image, x], total[n - 2]
        q = back * before[image, x0]
        p = back * torch.einsum("bchwk,bkl->bchwl", logits.softmax(-1), before)
        q, p = (each / each.sum(-1, keepdim=True) for each in (q, p))
        return (torch.xlogy(q, q) - torch.xlogy(q, p)).sum(-1).mean()

    def ours() -> torch.Tensor:
        return transition.divergence(reverse, logits, x0, x, t, s).divergence.mean()

    # The ratio has a meaning only if both compute the same.
    torch.testing.assert_close(ours(), plain(), rtol=1e-3, atol=1e-5, check_dtype=False)
    return seconds(ours, repeats) / seconds(plain, repeats)


def streams(smoke: bool = False) -> float:
    """Normal noise that does not depend on the batch, relative to that of torch, for 256 images of 3 x 32 x 32."""
    shape, repeats = ((2, 1, 4, 4), 1) if smoke else ((256, 3, 32, 32), 5)
    source, generator = Streams(0, range(shape[0])), torch.Generator().manual_seed(0)
    return seconds(lambda: normal(shape, source), repeats) / seconds(lambda: normal(shape, generator), repeats)


WORKS = (
    training_step,
    sampling_step,
    few_step_solver,
    guided_step,
    likelihood_evaluation,
    structured_transition,
    streams,
)


def main(smoke: bool = False) -> None:
    """Prints one ratio on each line.

    Args:
        smoke: runs every comparison once at the smallest sizes, as a test.
    """
    for work in WORKS:
        print(f"{work(smoke):6.2f} x  {(work.__doc__ or '').strip()}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
