"""Quantization levels as real numbers: the distributions of dequantizers, and their code lengths."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian

from unnoise.sde import VP, MaximumLikelihood
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticMixture
from unnoise.shared.gaussian.denoiser import Learned
from unnoise.shared.gaussian.dequantization import (
    DequantizedLoss,
    UniformDequantization,
    VariationalDequantization,
    index_sum,
    log_slope,
    within_cell,
)
from unnoise.shared.networks import MLP, UNet
from unnoise.shared.networks.blocks import zeroed
from unnoise.shared.objective import Loss, Objective, Stratified
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.tensors import exact
from unnoise.shared.training import Trainer, Training

FOUR = Quantization(4)


def perceptron(dims: int, seed: int = 0, zero: bool = False) -> MLP:
    torch.manual_seed(seed)
    network = MLP(2 * dims, width=32, depth=1)
    if zero:
        zeroed(network.leave)
    return network


def images(shape: tuple[int, ...], seed: int = 0) -> VariationalDequantization:
    """Variational dequantization of levels of a shape, with random weights."""
    torch.manual_seed(seed)
    network = UNet((2 * shape[0], *shape[1:]), 8, (1,), 1, (), 1)
    torch.nn.init.normal_(network.head[-1].weight, std=0.05)
    return VariationalDequantization(FOUR, network, couplings=3)


@settings(deadline=None)
@given(st.integers(2, 2**12), st.floats(-100, 100), st.floats(1, 50), st.data())
def test_no_rounding_leaves_a_cell(levels, low, width, data):
    scale = Quantization(levels, low, low + width)
    k = torch.tensor(data.draw(st.lists(st.integers(0, levels - 1), min_size=1, max_size=20)))
    for edge in (0.0, 1e-30, 1e-7, 0.3, 1 - 2.0**-24, 1.0):
        x = within_cell(scale, k, torch.full(k.shape, edge))
        assert x.dtype == torch.float32
        assert torch.equal(scale.cell_of(x), k)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([2, 17, 256, 1000]),
    st.sampled_from([(-1.0, 1.0), (0.0, 1.0)]),
    st.integers(0, 1000),
    st.floats(0, 30),
)
def test_dequantized_levels_come_back(levels, ends, seed, far):
    """However far the flow carries the noise."""
    scale, generator = Quantization(levels, *ends), torch.Generator().manual_seed(seed)
    k = torch.randint(levels, (50, 4), generator=generator)
    network = perceptron(4, seed)
    with torch.no_grad():
        network.leave.weight.mul_(far)
    for dequantizer in (UniformDequantization(scale), VariationalDequantization(scale, network)):
        x, gain = dequantizer(k, generator)
        assert torch.equal(scale.cell_of(x), k)
        assert torch.isfinite(gain).all()
        assert gain.shape == (50,)


def test_a_network_that_gives_zero_is_uniform():
    k = torch.arange(4).repeat(500, 1)
    unet = UNet((2, 4), 8, (1,), 1, (), 1)
    plain, expected = UniformDequantization(FOUR)(k, torch.Generator().manual_seed(3))
    assert torch.equal(expected, torch.full((500,), 4 * math.log(2), dtype=torch.float64))  # cells of 1/2
    assert torch.equal(plain, FOUR.dequantized(k, torch.Generator().manual_seed(3)))
    for flow, shape in (
        (VariationalDequantization(FOUR, perceptron(4, zero=True)), (500, 4)),
        (VariationalDequantization(FOUR, unet), (500, 1, 4)),
    ):
        x, gain = flow(k.reshape(shape), torch.Generator().manual_seed(3))
        assert torch.equal(gain, expected)
        assert torch.allclose(x.flatten(1), plain, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 5), (3, 2, 2)])
def test_the_determinant_is_that_of_the_jacobian(shape, generator):
    flow = images(shape).double()
    k = torch.randint(4, (1, *shape), generator=generator)
    z = torch.logit(torch.rand(1, *shape, generator=generator).double())
    full = jacobian(lambda z: flow.move(k, z)[0].flatten(), z).reshape(k.numel(), k.numel())
    assert float(flow.move(k, z)[1].detach()) == pytest.approx(float(torch.linalg.slogdet(full)[1]), abs=1e-9)
    assert torch.count_nonzero(full - full.diag().diag()) > 0  # dimensions depend on each other


@torch.no_grad()
def test_the_density_at_a_draw_is_what_was_reported(generator):
    flow, shape = images((1, 3, 4)), (8, 1, 3, 4)
    k = torch.randint(4, shape, generator=generator)
    x, gain = flow(k, generator)
    flow, u = flow.double(), (x.double() - FOUR.low) / FOUR.cell - k
    assert torch.allclose(flow.log_density(k, u) + 12 * math.log(2), gain, atol=2e-3)
    start = torch.logit(torch.rand(shape, generator=generator).double())
    end, log_det = flow.move(k, start)
    expected = log_slope(start).flatten(1).sum(1) - log_det - log_slope(end).flatten(1).sum(1)
    assert torch.allclose(flow.log_density(k, end.sigmoid()), expected, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_the_density_integrates_to_one(seed):
    points, weights = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(400))
    u, weights = (points + 1) / 2, weights / 2
    network = perceptron(1, seed).double()
    line = VariationalDequantization(FOUR, network, couplings=1)
    for k in range(4):
        mass = weights * line.log_density(torch.full((400, 1), k), u[:, None]).exp()
        assert float(mass.sum()) == pytest.approx(1, abs=1e-4)
    plane = VariationalDequantization(FOUR, perceptron(2, seed).double(), couplings=3)
    grid = torch.stack(torch.meshgrid(u, u, indexing="ij"), dim=-1).reshape(-1, 2)
    mass = plane.log_density(torch.tensor([[3, 1]]).expand(len(grid), 2), grid).exp().reshape(400, 400)
    assert float(weights @ mass @ weights) == pytest.approx(
        1, abs=5e-3
    )  # poles at the corners, which a product rule sees badly


def test_a_checkerboard():
    assert index_sum(torch.zeros(7, 1, 2, 3)).tolist() == [[[0, 1, 2], [1, 2, 3]]]
    assert index_sum(torch.zeros(7, 3)).tolist() == [0, 1, 2]


class Likelihood(Objective):
    """`-log p(x)` of a mixture in closed form, in nats."""

    def __init__(self, denoiser) -> None:
        super().__init__()
        self.denoiser, self.times = denoiser, Stratified()

    def at(self, x0, t, *, generator=None, **cond) -> Loss:
        nats = -self.denoiser.log_prob(x0, torch.zeros((), dtype=torch.float64))
        return Loss(nats, {"nats": nats.detach()}, t)


def exact_nats(oracle: AnalyticMixture, k: torch.Tensor) -> torch.Tensor:
    """`-log P(k)`, the density's integral over the cells."""
    low = FOUR.low + FOUR.cell * exact(k)[:, None]
    std = exact(oracle.variances).sqrt()[:, None]
    below, above = (torch.special.ndtr((edge - exact(oracle.means)) / std) for edge in (low, low + FOUR.cell))
    return -((above - below).prod(-1) * exact(oracle.weights)).sum(-1).log()


def mixture(means, std: float) -> AnalyticMixture:
    means = torch.tensor(means)
    return AnalyticMixture(torch.full((len(means),), 1 / len(means)), means, torch.full((len(means),), std**2), VP())


MIXTURES = {
    # Off the middle of cells of 1/2 whose edges are -1, -1/2, 0, 1/2, 1.
    "line": mixture([[-0.9], [-0.55], [0.1], [0.75]], 0.06),
    # Along a diagonal of each of two cells: neither axis alone tells where an example lies.
    "plane": mixture([[-0.9, -0.9], [-0.75, -0.75], [-0.6, -0.6], [0.1, 0.9], [0.25, 0.75], [0.4, 0.6]], 0.05),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_a_trained_dequantizer_codes_in_fewer_bits(name):
    """It codes close to the exact `-log P(k)`, where uniform noise does not use the shape of the density in a cell."""
    oracle, generator = MIXTURES[name], torch.Generator().manual_seed(0)
    dims = oracle.means.shape[1]
    component = torch.randint(len(oracle.means), (4000,), generator=generator)
    x = oracle.means[component] + oracle.variances[component].sqrt()[:, None] * torch.randn(
        4000, dims, generator=generator
    )
    k = FOUR.cell_of(x)[((x > -1) & (x < 1)).all(1)]
    flow = VariationalDequantization(FOUR, perceptron(dims, zero=True), couplings=2)
    objective = DequantizedLoss(Likelihood(oracle), flow)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(250):
        rows = torch.randint(len(k), (256,), generator=generator)
        objective(k[rows], generator=generator).total.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    unit = dims * math.log(2)
    with torch.no_grad():
        trained = objective(k, generator=generator).total.mean()
        uniform = DequantizedLoss(Likelihood(oracle), UniformDequantization(FOUR))(k, generator=generator).total.mean()
    least = exact_nats(oracle, k).mean() / unit
    assert least < trained < uniform
    assert trained - least < 0.15 * (uniform - least)
    if name == "plane":
        k = torch.tensor([[0, 0]]).expand(2000, 2)
        assert torch.corrcoef(flow(k, generator)[0].T)[0, 1].detach() > 0.5


def test_bits_are_those_of_the_formula(generator):
    oracle, k = MIXTURES["line"], torch.randint(4, (50, 1), generator=generator)
    for dequantizer in (UniformDequantization(FOUR), VariationalDequantization(FOUR, perceptron(1, 5))):
        x, gain = dequantizer(k, torch.Generator().manual_seed(1))
        loss = DequantizedLoss(Likelihood(oracle), dequantizer)(k, generator=torch.Generator().manual_seed(1))
        t = torch.full((50,), 0.5)
        at = DequantizedLoss(Likelihood(oracle), dequantizer).at(k, t, generator=torch.Generator().manual_seed(1))
        expected = (gain - oracle.log_prob(x, torch.zeros(()))) / math.log(2)
        assert at.t is t
        for total in (loss.total, at.total, loss.parts["bits_per_dim"]):
            assert torch.allclose(total.double(), expected.double(), atol=1e-4)
        assert torch.allclose(loss.parts["dequantization"], gain / math.log(2))


class Squared(Objective):
    """A loss in nats that depends on x and on a denoiser."""

    def __init__(self, denoiser, times=None) -> None:
        super().__init__()
        self.denoiser, self.times = denoiser, Stratified()

    def at(self, x0, t, *, generator=None, **cond) -> Loss:
        x_t = self.denoiser.corruption.corrupt(x0, t, generator=generator)
        return Loss(((self.denoiser(x_t, t) - x0) ** 2).sum(1), {}, t)


def test_both_are_trained_and_saved(tmp_path, generator):
    from unnoise.shared.serialization import serializable
    from unnoise.shared.training import load

    serializable("test_dequantization.Squared")(Squared)
    denoiser = Learned(MLP(2, width=16, depth=1), VP())
    objective = DequantizedLoss(
        Squared(denoiser), VariationalDequantization(FOUR, perceptron(2), couplings=4, limit=2.0)
    )
    assert objective.denoiser is denoiser
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    k = torch.randint(4, (16, 2), generator=generator)
    Trainer(objective, Training(steps=3, learning_rate=1e-2), folder=tmp_path).fit(iter([{"x0": k}] * 3))
    after = objective.state_dict()
    for part in ("objective.denoiser.network.leave.weight", "dequantizer.network.leave.weight"):
        assert not torch.equal(before[part], after[part])
    stored = load(tmp_path).average
    assert (stored.dequantizer.couplings, stored.dequantizer.limit, stored.dequantizer.quantization) == (4, 2.0, FOUR)
    assert serialize(deserialize(json.loads(json.dumps(serialize(UniformDequantization(FOUR)))))) == serialize(
        UniformDequantization(FOUR)
    )


def test_the_objective_draws_its_own_times(generator):
    """`MaximumLikelihood` draws log-SNRs; the gradient of its loss reaches the dequantizer through x."""
    flow = VariationalDequantization(FOUR, perceptron(2))
    inner = MaximumLikelihood(Learned(MLP(2, width=16, depth=1), VP()))
    k = torch.randint(4, (64, 2), generator=generator)
    x, gain = flow(k, generator.manual_seed(1))
    expected = inner(x, generator=generator)
    loss = DequantizedLoss(inner, flow)(k, generator=generator.manual_seed(1))
    assert torch.equal(loss.t, expected.t)
    assert torch.allclose(loss.total, ((expected.total + gain) / (2 * math.log(2))).to(loss.total), rtol=1e-5)
    alone, both = ((total.mean(), flow.network.leave.weight) for total in (gain, loss.total * 2 * math.log(2)))
    first, second = (torch.autograd.grad(*pair)[0] for pair in (alone, both))
    assert not torch.allclose(first, second.to(first), rtol=0.01)


def test_what_is_refused():
    k = torch.zeros(2, 3, dtype=torch.int64)
    for make, words in (
        (lambda: VariationalDequantization(FOUR, perceptron(3), couplings=0), "couplings=0"),
        (lambda: VariationalDequantization(FOUR, perceptron(3), limit=0.0), "limit=0.0"),
        (lambda: VariationalDequantization(FOUR, MLP(6, outputs=2))(k), "twice the channels of the data"),
        (lambda: UniformDequantization(FOUR)(k + 0.5), "x0 has fractions"),
        (lambda: UniformDequantization(FOUR)(k + 4), r"levels outside of 0\.\.3"),
        (lambda: VariationalDequantization(FOUR, perceptron(3))(k - 1), r"levels outside of 0\.\.3"),
        (lambda: VariationalDequantization(FOUR, perceptron(3))(k + 0.5), "x0 has fractions"),
    ):
        with pytest.raises(UsageError, match=words):
            make()
