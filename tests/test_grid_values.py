"""Coefficients that are computed once for a whole grid: the same numbers, looked up; and no wait for a device."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unnoise import continuous, sde
from unnoise.continuous.history import lagrange_weights, moments
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.denoiser import Clipped
from unnoise.shared.grid_values import GridValues, on_grid
from unnoise.shared.sampler import CorrectorPredictor, PredictorCorrector

BATCH = 7


class Mixing(nn.Module):
    """A network that depends on its time input."""

    conditions = ()

    def __init__(self, outputs=1):
        super().__init__()
        self.outputs, generator = outputs, torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, 5 * outputs, generator=generator, dtype=torch.float64))

    def forward(self, x, time):
        return torch.tanh(x @ self.weight + time[:, None] / 1000)


@dataclass(frozen=True)
class Counted(continuous.Cosine):
    """Counts its evaluations, by the number of times in each."""

    seen: list = field(default_factory=list, compare=False)

    def __call__(self, t):
        self.seen.append(t.numel())
        return super().__call__(t)


def learned(schedule, outputs=1):
    return sde.Learned(Mixing(outputs), schedule, predicts=continuous.velocity).eval()


def corrected(order):
    return lambda d: order(sde.ReverseDiffusion(d), sde.AnnealedLangevin(d, repeats=1))


SAMPLERS = {
    "DDIM": continuous.DDIM,
    "DDIM, eta 1": lambda d: continuous.DDIM(d, 1.0),
    "clipped": lambda d: continuous.DDIM(Clipped(d)),
    "ancestral": continuous.Ancestral,
    "small": lambda d: continuous.Ancestral(d, continuous.small),
    "Heun": continuous.Heun,
    "DPM-Solver-3": lambda d: continuous.DPMSolver(d, 3),
    "2S": continuous.DPMSolverPPSingle,
    "2M": continuous.DPMSolverPP,
    "3M SDE": lambda d: continuous.DPMSolverPP(d, eta=1.0, order=3),
    "UniPC": continuous.UniPC,
    "LMS": continuous.LMS,
    "Euler-Maruyama": sde.EulerMaruyama,
    "predictor-corrector": corrected(PredictorCorrector),
    "corrector-predictor": corrected(CorrectorPredictor),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", [sde.VP(), sde.VE(), continuous.Tabulated(continuous.linear_betas(50))], ids=repr)
def test_a_run_is_its_steps(name, schedule):
    """A run, whose coefficients are looked up, is the steps called on their own, which compute them."""
    sampler = SAMPLERS[name](learned(schedule))
    x = torch.randn(BATCH, 5, generator=seeded(1), dtype=torch.float64) * float(schedule(torch.ones(()))[1])
    run, source, step, y = sampler(x, steps=6, generator=seeded()), seeded(), sampler.begin(), x
    with torch.no_grad():
        for t, s in sampler.path(sampler.times(6)):
            y = step(y, t, s, generator=source)
    torch.testing.assert_close(run, y, rtol=1e-12, atol=1e-12)


def test_a_schedule_is_evaluated_once_for_the_grid():
    """The number of evaluations of a schedule does not depend on the number of steps."""
    counts = []
    for steps in (5, 50):
        schedule = Counted()
        sampler = continuous.DPMSolverPP(learned(schedule))
        schedule.seen.clear()
        sampler(shape=(2, 5), steps=steps, generator=seeded())
        counts.append(len(schedule.seen))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("order", [PredictorCorrector, CorrectorPredictor])
def test_a_corrected_run_evaluates_its_schedule_once_for_the_grid(order):
    """A corrector that comes first is given `2 t - s`, which is looked up as well."""
    counts = []
    for steps in (5, 50):
        schedule = Counted()
        denoiser = learned(schedule)
        sampler = order(sde.ReverseDiffusion(denoiser), sde.AnnealedLangevin(denoiser, repeats=1))
        schedule.seen.clear()
        sampler(shape=(2, 5), steps=steps, generator=seeded())
        counts.append(len(schedule.seen))
    assert counts[0] == counts[1]


def test_the_stages_of_a_flow_share_one_evaluation():
    """The denoiser's coefficients at the six stages of a step are found at once, and are those found one at a time."""
    times = []

    def time_input(schedule, t):
        times.append(t.numel())
        return 1000 * t

    denoiser = sde.Learned(Mixing(), sde.VP(), predicts=continuous.velocity, time_input=time_input).eval()
    flow, (t, s) = sde.ProbabilityFlow(denoiser, sde.Adaptive(1e-6, 1e-6)), torch.tensor([0.9, 0.3]).double()
    x = torch.randn(BATCH, 5, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        found = flow.transport(x, t, s)
        assert set(times) == {1, 6}
        singly = sde.ProbabilityFlow(denoiser, sde.SciPy(rtol=1e-10, atol=1e-10)).transport(x, t, s)
    torch.testing.assert_close(found, singly, rtol=0, atol=1e-5)


def test_values_are_those_of_their_run():
    """Times are recognized as objects; runs do not see each other's values, nor a caller those of a run."""

    def double(owner, t):
        seen.append(t.shape)
        return (owner * t,)

    seen, owner, grid = [], torch.tensor(2.0), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64).unbind()
    values = GridValues([(grid[0], grid[1]), (grid[1], grid[2])])
    with values:
        assert on_grid(double, owner, grid[1]) == (1.0,)
        assert on_grid(double, owner, grid[0]) == (2.0,)
        assert seen == [(3,)]
        assert on_grid(double, owner, torch.tensor(0.25)) == (torch.tensor(0.5),)
        with GridValues([(grid[1], grid[2])]):
            assert on_grid(double, owner, grid[0]) == (torch.tensor(2.0),)
            assert isinstance(on_grid(double, owner, grid[0])[0], torch.Tensor)
        assert on_grid(double, owner, grid[0]) == (2.0,)
    assert isinstance(on_grid(double, owner, grid[0])[0], torch.Tensor)


def test_a_caller_is_not_under_the_run():
    """Between the states of a trajectory the caller has its own mode of gradients, and no values."""
    sampler = continuous.DDIM(learned(sde.VP()))
    for state in sampler.trajectory(shape=(2, 5), steps=3, generator=seeded()):
        assert torch.is_grad_enabled()
        assert not state.requires_grad
        t = torch.ones((), dtype=torch.float64)
        assert isinstance(on_grid(lambda owner, t: (t,), None, t)[0], torch.Tensor)


def test_transforms_of_a_run_are_those_of_its_steps():
    """`jvp` and `vmap` around a whole run, whose tables are made inside of the transform or before it."""
    sampler = continuous.DPMSolverPP(learned(sde.VP()))
    x, v = (torch.randn(3, 5, generator=seeded(i), dtype=torch.float64) for i in (1, 2))
    times, step = sampler.times(4)[:2], 1e-6
    y, slope = torch.func.jvp(lambda x: sampler.step(x, *times), (x,), (v,))
    torch.testing.assert_close(y, sampler.step(x, *times))
    difference = (sampler.step(x + step * v, *times) - sampler.step(x - step * v, *times)) / (2 * step)
    torch.testing.assert_close(slope, difference.detach(), rtol=1e-6, atol=1e-6)
    one_by_one = torch.vmap(lambda x: [*sampler.trajectory(x[None], steps=4)][-1][0])(x)
    torch.testing.assert_close(one_by_one, sampler(x, steps=4), rtol=1e-12, atol=1e-12)


def test_a_compiled_denoiser_is_one_graph():
    denoiser, x = learned(sde.VP()), torch.randn(3, 5, generator=seeded(1), dtype=torch.float64)
    compiled = torch.compile(denoiser, backend="eager", fullgraph=True)
    t = torch.full((3,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(compiled(x, t), denoiser(x, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["DDIM", "Heun", "DPM-Solver-3", "2S", "2M", "UniPC", "LMS"])
def test_a_hook_of_the_denoiser_changes_its_estimate(name):
    """Samplers whose step needs E[x_0 | x_t] call the denoiser where it has hooks."""
    hooked, clipped = learned(sde.VP()), Clipped(learned(sde.VP()))
    hooked.register_forward_hook(lambda module, args, out: out.clamp(-1, 1))
    x = torch.randn(BATCH, 5, generator=seeded(1), dtype=torch.float64)
    found, expected = (SAMPLERS[name](d)(x, steps=4) for d in (hooked, clipped))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Waits(TorchDispatchMode):
    """Counts the reads of tensors that stand for those of an accelerator: what is computed from the state or network.

    Args:
        sources: tensors of the accelerator.
    """

    def __init__(self, *sources):
        super().__init__()
        self.on_device, self.reads = list(sources), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        flat = [a for a in torch.utils._pytree.tree_leaves((args, kwargs or {})) if isinstance(a, torch.Tensor)]
        there = any((a.ndim and len(a) == BATCH) or any(a is b for b in self.on_device) for a in flat)
        if there and func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.reads.append(func)
        out = func(*args, **(kwargs or {}))
        if there and isinstance(out, torch.Tensor):
            self.on_device.append(out)
        return out


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_does_not_wait_for_the_device(name):
    denoiser = learned(sde.VP())
    sampler = SAMPLERS[name](denoiser)
    x = torch.randn(BATCH, 5, dtype=torch.float64)
    with Waits(x, *denoiser.parameters()) as waits:
        states = list(sampler.trajectory(x, steps=4, generator=seeded()))
    assert len(states) == 4
    assert not waits.reads
    with Waits(x) as waits:  # what the mode counts
        float(states[-1].sum())
    assert waits.reads


@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=5, unique_by=lambda u: round(u, 1)),
    st.floats(-2, 2),
    st.floats(0.05, 3),
    st.sampled_from([0.0, 0.3, 1.0, 2.0]),
)
def test_weights_are_the_integrals_of_the_lagrange_polynomials(nodes, a, width, decay):
    """Against Gauss-Legendre quadrature of the polynomials themselves."""
    points, masses = np.polynomial.legendre.leggauss(60)
    u = a + width * (points + 1) / 2
    for j, weight in enumerate(lagrange_weights(tuple(nodes), a, a + width, decay)):
        polynomial = np.prod([(u - k) / (nodes[j] - k) for i, k in enumerate(nodes) if i != j] or [np.ones(60)], axis=0)
        oracle = float((width / 2 * masses * np.exp(decay * (u - a - width))) @ polynomial)
        scale = float(width * np.abs(polynomial).max())
        assert weight == pytest.approx(oracle, abs=1e-9 * max(scale, 1))


@pytest.mark.parametrize("decay", [0.0, 1e-8, 0.5, 0.999, 1.0, 1.001, 8.0, 60.0])
def test_moments(decay):
    """Against quadrature, on both sides of the change from the series to the recurrence."""
    points, masses = np.polynomial.legendre.leggauss(80)
    v = (points + 1) / 2
    for k, moment in enumerate(moments(decay, 5)):
        assert moment == pytest.approx(float(masses / 2 @ (np.exp(-decay * (1 - v)) * v**k)), rel=1e-12)
    assert math.isclose(moments(0.0, 4)[3], 1 / 4)


def test_time_inputs_are_single_precision_during_a_run():
    """Also those that a function returns as integers: a network is fed the same in a run as in a step on its own."""
    seen, network = [], Mixing()
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    denoiser = sde.Learned(
        network, continuous.LinearBetas(50), time_input=lambda schedule, t: (t * schedule.steps).round().long() - 1
    )
    continuous.DDIM(denoiser)(torch.zeros(2, 5, dtype=torch.float64), steps=2)
    assert [time.dtype for time in seen] == [torch.float32] * 2
    assert [time.tolist() for time in seen] == [[49.0] * 2, [0.0] * 2]


def test_a_fixed_variance_for_each_channel():
    """A variance that is not one number for a step scales the noise of its channel in a run as well."""
    factors = torch.tensor([[0.0, 1.0, 4.0, 9.0, 16.0]], dtype=torch.float64)
    denoiser, x = learned(continuous.Cosine()), torch.zeros(BATCH, 5, dtype=torch.float64)

    def last_noise(variance):
        *_, before, _, _ = continuous.Ancestral(denoiser, variance).trajectory(x, steps=3, generator=seeded())
        return before

    plain, without, scaled = map(
        last_noise,
        (
            continuous.small,
            lambda *given: 0 * continuous.small(*given),
            lambda *given: factors * continuous.small(*given),
        ),
    )
    torch.testing.assert_close(scaled - without, factors.sqrt() * (plain - without))


def test_times_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"times of shape \(3,\) for 2 examples"):
        learned(continuous.Cosine())(torch.zeros(2, 5, dtype=torch.float64), torch.tensor([0.1, 0.2, 0.3]))
