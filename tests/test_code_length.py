"""Code lengths, scales and distances."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from unnoise.shared.code_length import CodeLength, discretized_gaussian, gaussian_kl, sampled_steps
from unnoise.shared.errors import UsageError
from unnoise.shared.metrics import frechet_distance
from unnoise.shared.quantization import Quantization


def test_offsets_are_those_of_the_papers():
    assert Quantization(256, -1, 1).offset_nats / math.log(2) == pytest.approx(7)  # score SDE on [-1, 1]
    assert Quantization(256, 0, 1).offset_nats / math.log(2) == pytest.approx(8)
    assert Quantization(256).spacing / 2 == pytest.approx(1 / 255)  # half a bin of DDPM's decoder


@given(st.integers(2, 300), st.floats(-3, 0.5), st.floats(0.6, 4))
def test_levels_survive_every_form(levels, low, high):
    scale, k = Quantization(levels, low, high), torch.arange(levels)
    assert torch.equal(scale.quantize(scale.continuous(k)), k)
    generator = torch.Generator().manual_seed(levels)
    assert (scale.cell_of(scale.dequantized(k, generator)) - k).abs().max() <= (0 if levels < 200 else 1)
    assert scale.continuous(k)[[0, -1]].tolist() == pytest.approx([low, high], abs=1e-5)


@pytest.mark.parametrize("std", [1e-4, 0.01, 0.3, 30.0])
@pytest.mark.parametrize("mean", [-1.4, -0.99, 0.1, 1.0, 3.0])
def test_discretised_gaussian_sums_to_one(mean, std):
    scale = Quantization(17)
    log_p = discretized_gaussian(
        torch.arange(17), torch.full((17,), mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64), scale
    )
    assert torch.isfinite(log_p).all()
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)
    best = int(((scale.continuous(torch.arange(17)) - mean).abs()).argmin())
    assert int(log_p.argmax()) == (best if std < 1 else int(log_p.argmax()))


def test_discretised_gaussian_against_the_normal_distribution():
    scale, normal = Quantization(9, 0, 1), torch.distributions.Normal(torch.tensor(0.4, dtype=torch.float64), 0.2)
    log_p = discretized_gaussian(
        torch.arange(9), torch.full((9,), 0.4, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64), scale
    )
    edges = torch.cat([torch.tensor([-torch.inf]), (torch.arange(8) + 0.5) / 8, torch.tensor([torch.inf])]).double()
    torch.testing.assert_close(log_p.exp(), normal.cdf(edges[1:]) - normal.cdf(edges[:-1]))
    rough = discretized_gaussian(
        torch.arange(9),
        torch.full((9,), 0.4, dtype=torch.float64),
        torch.tensor(0.2, dtype=torch.float64),
        scale,
        tanh=True,
    )
    assert 0 < (rough.exp() - log_p.exp()).abs().max() < 1e-3


def test_gaussian_kl_against_torch():
    q, p = torch.distributions.Normal(0.3, 0.5), torch.distributions.Normal(-0.2, 1.5)
    expected = torch.distributions.kl_divergence(q, p)
    values = [torch.tensor(v) for v in (0.3, 0.25, -0.2, 2.25)]
    torch.testing.assert_close(gaussian_kl(*values), expected)


def test_codelength_units():
    code = CodeLength(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0]))
    assert float(code.bits_per_dim(3)) == pytest.approx(2 / math.log(2))


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 60))
def test_sampled_steps(first, count, terms):
    last = first + count - 1
    steps, weight = sampled_steps(first, last, terms, 3, torch.Generator().manual_seed(0))
    assert steps.min() >= first
    assert steps.max() <= last
    assert weight * len(steps) == pytest.approx(count)
    if terms >= count:
        assert torch.equal(steps[:, 0], torch.arange(first, last + 1))


def test_sampled_steps_are_unbiased():
    steps, weight = sampled_steps(2, 11, 4, 20_000, torch.Generator().manual_seed(0))
    values = torch.arange(12.0) ** 2
    assert float((weight * values[steps].sum(0)).mean()) == pytest.approx(float(values[2:].sum()), rel=0.01)


def test_frechet_distance_against_the_formula(generator):
    a = torch.randn(500, 6, generator=generator, dtype=torch.float64) @ torch.randn(
        6, 6, generator=generator, dtype=torch.float64
    )
    b = torch.randn(400, 6, generator=generator, dtype=torch.float64) + 0.5
    root = linalg.sqrtm(torch.cov(a.T).numpy() @ torch.cov(b.T).numpy()).real.trace()
    expected = (a.mean(0) - b.mean(0)).square().sum() + torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a[:3], a[:3]) == pytest.approx(0, abs=1e-6)  # fewer examples than features
    with pytest.raises(UsageError, match="NaN"):
        frechet_distance(a * torch.nan, b)
