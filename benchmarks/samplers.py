"""Sampling steps around a trivial network, beside their bare arithmetic and other libraries: what the machinery costs.

The network returns half of its input, 16 images of 3 x 32 x 32, so that nearly all of the time is that of the sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from unnoise.continuous import DDIM, Ancestral, DPMSolverPP, Learned, Tabulated, UniPC, linear_betas
from unnoise.sde import VE, VP, Adaptive, Langevin, ProbabilityFlow, ReverseDiffusion
from unnoise.sde import Learned as LearnedSDE
from unnoise.shared.gaussian.prediction import noise
from unnoise.shared.random import Streams, normal
from unnoise.shared.sampler import PredictorCorrector, Sampler, counted

from . import floors, peers
from .timing import SCALING, Contender, Workload, asserted

GROUP = "sampling steps, trivial network"
BARE = "bare arithmetic"
SHARE = 0.5
"""The network's output in units of its input."""
TOLERANCE = 1e-5
"""Tolerances of the adaptive flow, those of score_sde."""


class Half(nn.Module):
    """A network that returns half of its input."""

    conditions = ()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Returns x / 2."""
        return x * SHARE


def half(x: Tensor) -> Tensor:
    """Returns what `Half` returns, without a module."""
    return x * SHARE


def start(batch: int, smoke: bool) -> Tensor:
    """Returns the states that sampling starts from."""
    size = 4 if smoke else 32
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def seeded() -> torch.Generator:
    """Returns a new source of noise."""
    return torch.Generator().manual_seed(1)


def on_the_table(sampler: type[Sampler]) -> Sampler:
    """Returns a sampler of the trivial network on DDPM's table of 1,000 betas."""
    return sampler(Learned(Half().eval(), Tabulated(linear_betas(floors.ROWS)), noise))


Method = Callable[[Tensor, torch.Generator | None], Tensor]
"""A bare method, `(start, source of noise) -> samples`."""
Floor = Callable[[Tensor], Method]
"""Grid of times to the bare method."""


def bare_one_step(sums: Callable[[list[floors.Point]], floors.Sums]) -> Floor:
    """Returns the bare arithmetic of a method with steps of its own."""

    def of(grid: Tensor) -> Method:
        found = sums(floors.table_points(grid))
        return lambda x, generator: floors.one_step(found, half, x, generator)

    return of


def bare_multistep(steps: Callable[[list[floors.Point]], list[floors.Multistep]]) -> Floor:
    """Returns the bare arithmetic of a multistep method."""

    def of(grid: Tensor) -> Method:
        found = steps(floors.table_points(grid))
        return lambda x, generator: floors.multistep(found, half, x)

    return of


METHODS: dict[str, tuple[type[Sampler], Floor, float | None, float]] = {
    "ancestral": (Ancestral, bare_one_step(floors.ancestral), 0.26 / 0.22, 0.26),
    "DDIM": (DDIM, bare_one_step(floors.ddim), 0.06 / 0.025, 0.06),
    "DPM-Solver++ 2M": (DPMSolverPP, bare_multistep(floors.dpm_solver_pp), None, 0.08),
    "UniPC": (UniPC, bare_multistep(floors.unipc), None, 0.12),
}
"""For each method the class, its bare arithmetic, and its targets: over that arithmetic, and in milliseconds."""


def table_step(name: str, smoke: bool, batch: int = 16, series: str | None = None) -> Workload:
    """Returns the workload of a method on a table of betas, a run of 50 steps."""
    kind, floor, target, target_ms = METHODS[name]
    steps, x = (4, start(2, smoke)) if smoke else (50, start(batch, smoke))
    sampler = on_the_table(kind)
    method = floor(sampler.times(steps))
    bare = no_grad(lambda x: method(x, seeded()), x)
    ours = partial(sampler, x, steps=steps, generator=seeded())

    def equal() -> str:
        return asserted(sampler(x, steps=steps, generator=seeded()), bare(), "samples")

    count, unit = (steps, "step") if series is None else (steps * len(x), "step of a sample")
    found = {} if series else counted_peers(name, x, steps)
    return Workload(
        name=name if series is None else f"{name}, batch {batch}",
        group=GROUP if series is None else SCALING,
        unit=unit,
        ours=Contender(ours, count),
        base=BARE,
        references={BARE: Contender(bare, count), **found},
        equal=equal,
        target=target if series is None else None,
        target_ms=target_ms if series is None else None,
        series=series,
        at=None if series is None else batch,
    )


def no_grad(method: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """Returns a function that runs a method from x without gradients."""

    @torch.no_grad()
    def work() -> Tensor:
        return method(x)

    return work


def predictor_corrector(smoke: bool) -> Workload:
    """Returns reverse diffusion with a Langevin step after each, on VE."""
    steps, x = (4, start(2, smoke)) if smoke else (50, start(16, smoke))
    schedule = VE(0.01, 1.0)  # so that half of x is a plausible noise estimate
    denoiser = LearnedSDE(Half().eval(), schedule, noise, scaled=False)
    sampler = PredictorCorrector(ReverseDiffusion(denoiser), Langevin(denoiser, snr=0.16))
    sigmas = [0.01 * 100 ** float(t) if t > 0 else 0.0 for t in sampler.times(steps)]
    bare = no_grad(lambda x: floors.predictor_corrector(sigmas, half, x, seeded()), x)
    ours = partial(sampler, x, steps=steps, generator=seeded())

    def equal() -> str:
        return asserted(sampler(x, steps=steps, generator=seeded()), bare(), "samples", 1e-4)

    return Workload(
        name="predictor and corrector",
        group=GROUP,
        unit="step",
        ours=Contender(ours, steps),
        base=BARE,
        references={BARE: Contender(bare, steps), **counted_peers("predictor and corrector", x, steps)},
        equal=equal,
        target=0.5 / 0.42,
        target_ms=0.5,
        note="two evaluations a step",
    )


def counted_peers(name: str, x: Tensor, steps: int) -> dict[str, Contender]:
    """Returns the other libraries' runs of a method."""
    return {peer: Contender(work, steps) for peer, work in peers.samplers(name, x, steps).items()}


def adaptive_flow(smoke: bool) -> Workload:
    """Returns an adaptive run of the probability flow of VP, counted by evaluations of the network."""
    x, tolerance = start(2 if smoke else 16, smoke), 1e-3 if smoke else TOLERANCE
    flow = floors.VPFlow(steps=5 if smoke else 20)
    sampler = ProbabilityFlow(LearnedSDE(Half().eval(), VP(), noise), Adaptive(tolerance, tolerance))
    grid, plan = torch.tensor([1.0, flow.last, 0.0], dtype=torch.float64), flow.plan()
    ours, bare = partial(sampler, x, steps=grid), no_grad(partial(flow, plan, half), x)
    scipy = partial(peers.scipy_flow, flow, half, x, tolerance)
    expected = x * flow.growth(SHARE, 200 if smoke else 4000)

    def equal() -> str:
        most = 0.1 if smoke else 1e-3
        bound = [asserted(found, expected, "samples", most) for found in (bare(), scipy()[0], ours())]
        return bound[-1] + " of the exact flow's"

    with counted(sampler.denoiser) as count:
        ours()
    return Workload(
        name="adaptive flow",
        group=GROUP,
        unit="evaluation",
        ours=Contender(ours, count.calls),
        base=BARE,
        references={
            BARE: Contender(bare, flow.evaluations),
            "SciPy, as in score_sde": Contender(lambda: scipy(), scipy()[1]),
        },
        equal=equal,
        target_ms=0.35,
        note=f"{count.calls} evaluations, SciPy {scipy()[1]}",
    )


def streams(smoke: bool) -> Workload:
    """Returns normal noise that does not depend on the batch, beside torch's, for 256 images of 3 x 32 x 32."""
    shape = (2, 1, 4, 4) if smoke else (256, 3, 32, 32)
    source, generator = Streams(0, range(shape[0])), seeded()

    def equal() -> str:
        alone = torch.cat([normal((1, *shape[1:]), Streams(0, [i])) for i in range(2)])
        return asserted(normal(shape, Streams(0, range(shape[0])))[:2], alone, "draws alone and in a batch", 0.0)

    return Workload(
        name="noise by sample (Streams)",
        group="training and averages",
        unit="sample",
        ours=Contender(lambda: normal(shape, source), shape[0]),
        base="torch.randn",
        references={"torch.randn": Contender(lambda: torch.randn(shape, generator=generator), shape[0])},
        equal=equal,
    )


def workloads(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the workloads of this module by name."""
    return {
        **{name: partial(table_step, name, smoke) for name in METHODS},
        "predictor and corrector": partial(predictor_corrector, smoke),
        "adaptive flow": partial(adaptive_flow, smoke),
        "noise by sample (Streams)": partial(streams, smoke),
    }
