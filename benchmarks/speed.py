"""What the machinery costs beside the bare work, as ratios in one run: `make bench`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from unnoise.continuous import DDIM, DPMSolverPP, Learned, Simple, Tabulated, UniPC, linear_betas
from unnoise.discrete import DiscretizedGaussian, Product, linear
from unnoise.sde import VP, Adaptive, ChangeOfVariables
from unnoise.shared.data import Batches
from unnoise.shared.guidance import ClassifierFree
from unnoise.shared.networks import UNet
from unnoise.shared.random import Streams, normal
from unnoise.shared.sampler import Sampler, counted
from unnoise.shared.scale import Scale
from unnoise.shared.training import Trainer, Training


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The fastest of several runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def unet() -> UNet:
    """The demo's network."""
    torch.manual_seed(0)
    return UNet((1, 8, 8), 32, (1, 2, 2), 1, (2,), 4)


def training_step() -> float:
    """A step of the trainer over forward, backward and AdamW alone."""
    data = Batches(torch.randint(0, 17, (64, 1, 8, 8)), 64, Scale(17))
    trainer = Trainer(Simple(Learned(unet(), Tabulated(linear_betas(100)))), Training(steps=10, log_every=10))
    bare, x, t = unet(), torch.randn(64, 1, 8, 8), torch.rand(64)
    optimizer = torch.optim.AdamW(bare.parameters(), fused=True)

    def plain() -> None:
        for _ in range(10):
            bare(x, t).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def ours() -> None:
        trainer.step = 0
        trainer.fit(data)

    return seconds(ours, 3) / seconds(plain, 3)


def sampling_step() -> float:
    """A step of DDIM over a bare evaluation of the network."""
    return solver_step(DDIM, 1)


def few_step_solver() -> float:
    """A step of UniPC over a bare evaluation of the network."""
    return solver_step(UniPC, 1)


def guided_step() -> float:
    """A step of DPM-Solver++ under classifier-free guidance over two bare evaluations of the network."""
    return solver_step(lambda denoiser: DPMSolverPP(ClassifierFree(denoiser, 1.0)), 2, label=torch.arange(64) % 10)


def solver_step(make: Callable[[Learned], Sampler], evaluations: int, **cond: torch.Tensor) -> float:
    """Ten steps of a sampler over as many times `evaluations` bare evaluations."""
    network, x, t = UNet((1, 8, 8), 32, (1, 2, 2), 1, (2,), 4, classes=10).eval(), torch.randn(64, 1, 8, 8), torch.rand(64)
    sampler = make(Learned(network, Tabulated(linear_betas(100))))

    def plain() -> None:
        with torch.no_grad():
            for _ in range(10 * evaluations):
                network(x, t, **cond)

    return seconds(lambda: sampler(x, steps=10, **cond)) / seconds(plain)


def likelihood_evaluation() -> float:
    """An evaluation of the likelihood's ODE over one forward and one vector-Jacobian product."""
    network, x, t = unet().requires_grad_(False), torch.randn(32, 1, 8, 8), torch.rand(32)
    likelihood = ChangeOfVariables(Learned(network, VP()), integrator=Adaptive(1e-2, 1e-2))
    with counted(likelihood.flow.denoiser) as count:
        likelihood(x)

    def plain() -> None:
        y = x.clone().requires_grad_()
        torch.autograd.grad(network(y, t), y, x)

    return seconds(lambda: likelihood(x), 2) / count.calls / seconds(plain, 10)


def structured_transition() -> float:
    """One term of D3PM's bound with the structured transition over the same with two dense tables, K = 64, T = 200."""
    transition, reverse = DiscretizedGaussian(64, linear(200, 1e-2, 1.0)), Product()
    x = torch.randint(0, 64, (32, 3, 16, 16))
    p0 = torch.randn(32, 3, 16, 16, 64).softmax(-1)
    n = torch.randint(2, 201, (32,))
    t, s = n.double() / 200, (n - 1).double() / 200
    one = torch.stack([transition.matrix(torch.tensor((i - 1) / 200), torch.tensor(i / 200), x.device) for i in range(1, 201)]).float()
    total = transition._cumulative.values.float()

    def plain() -> None:
        back = one[n - 1].mT[torch.arange(32)[:, None, None, None], x]
        p = back * torch.einsum("bchwk,bkl->bchwl", p0, total[n - 1])
        p / p.sum(-1, keepdim=True)

    return seconds(lambda: reverse(transition, x, p0, t, s)) / seconds(plain)


def streams() -> float:
    """Normal noise that does not depend on the batch over torch's own, for 256 images of 3 x 32 x 32."""
    source, generator = Streams(0, range(256)), torch.Generator().manual_seed(0)
    return seconds(lambda: normal((256, 3, 32, 32), source)) / seconds(lambda: normal((256, 3, 32, 32), generator))


def main() -> None:
    """Prints one ratio a line."""
    for work in (training_step, sampling_step, few_step_solver, guided_step, likelihood_evaluation, structured_transition, streams):
        print(f"{work():6.2f} x  {(work.__doc__ or '').strip()}", flush=True)


if __name__ == "__main__":
    main()
