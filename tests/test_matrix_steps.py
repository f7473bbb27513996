"""Steps of chains of matrices: draws, products of low rank, and work in blocks of rows, against their definitions."""

import pytest
import torch

from unnoise.discrete import (
    Absorbing,
    Categorical,
    Dense,
    DiscretizedGaussian,
    LogLinearNoise,
    Marginal,
    Product,
    Uniform,
    carried,
    linear,
)
from unnoise.discrete.transition import interpolating
from unnoise.discrete.transition.generic import generic_divergence, generic_draw
from unnoise.shared import blocks
from unnoise.shared.random import quantile, row_quantile

T = 200
SMOOTH = DiscretizedGaussian(128, linear(T, 0.01, 0.2))
CHAINS = {
    "gaussian": DiscretizedGaussian(6, linear(T, 0.01, 0.2)),
    "gaussian-odd": DiscretizedGaussian(5, linear(T, 0.01, 0.2)),
    "smooth": SMOOTH,
    "dense": Dense(torch.rand(T, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)),
}


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


class Fixed(torch.nn.Module):
    """A network that returns the same output for every input."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x_t, time):
        return self.out


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "NUMBERS", 128)


@pytest.mark.parametrize("reverse", [Product(), Marginal(), Product(eps=0.01)], ids=str)
@pytest.mark.parametrize("kind", CHAINS)
def test_draws_are_those_of_the_definition(kind, reverse, small_blocks, generator):
    chain = CHAINS[kind]
    logits = 3 * torch.randn(4, 50, chain.categories, dtype=torch.float64, generator=generator)
    x0 = torch.randint(0, chain.categories, (4, 50), generator=generator)
    for n, m in ((2, 1), (120, 119), (120, 40)):
        t, s = (torch.tensor(v / T, dtype=torch.float64) for v in (n, m))
        x_t = chain.corrupt(x0, t, generator=generator)
        expected = generic_draw(chain, reverse, logits, x_t, t, s, seeded())
        assert torch.equal(chain.draw(reverse, logits, x_t, t, s, seeded()), expected)
        single = chain.draw(reverse, logits.float(), x_t, t, s, seeded())
        assert (single != expected).sum() <= 1  # but for a quantile within the rounding of float32


def test_an_output_that_rules_out_every_neighbor_leaves_the_token(generator):
    matrices = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf]]).expand(1, 2, 3)
    t, s = (torch.tensor(v / 4, dtype=torch.float64) for v in (3, 2))
    x_t = torch.tensor([[0, 2]])
    assert torch.equal(Dense(matrices).draw(Product(), logits, x_t, t, s, generator), x_t)


def test_products_of_low_rank_have_the_precision_of_float32():
    ranks, precisions = [], set()
    for n in range(1, T + 1, 8):
        product = SMOOTH.products(torch.tensor([n]))
        factors = SMOOTH.factors(torch.tensor([n]), product)
        ranks.append(128 if factors is None else len(factors[0]))
        if factors is not None:
            left, right = factors
            precisions.add(left.dtype)
            p = torch.eye(128, dtype=torch.float64)
            found = p.to(left) @ left.T @ right
            torch.testing.assert_close(found.double(), p @ product[0], rtol=2e-6, atol=0)
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == 128
    assert ranks[-1] <= 3
    assert precisions == {torch.float32, torch.float64}


@pytest.mark.parametrize("reverse", [Product(), Marginal()], ids=str)
def test_losses_of_low_rank_are_those_of_the_definition(reverse, generator):
    n = torch.tensor([90, 110, 150, T])
    t, s = n.double() / T, (n - 1).double() / T
    logits = (3 * torch.randn(4, 130, 128, generator=generator)).requires_grad_()
    x0 = torch.randint(0, 128, (4, 130), generator=generator)
    x_t = SMOOTH.corrupt(x0, t, generator=generator)
    assert SMOOTH.factors(n[:1] - 1, SMOOTH.products(n[:1] - 1)) is not None
    found = []
    for terms in (
        SMOOTH.divergence(reverse, logits, x0, x_t, t, s),
        generic_divergence(SMOOTH, reverse, logits.double(), x0, x_t, t, s),
    ):
        gradients = [torch.autograd.grad(v.sum(), logits, retain_graph=True)[0] for v in terms]
        found.append([*(v.float() for v in terms), *gradients])
    for closed, plain in zip(*found, strict=True):
        torch.testing.assert_close(closed, plain, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("reverse", [Product(), Marginal()], ids=str)
@pytest.mark.parametrize("process", [Uniform(9, linear(T, 0.01, 0.2)), Absorbing(9, LogLinearNoise())], ids=["u", "a"])
def test_draws_from_some_rows_are_those_from_all(process, reverse, small_blocks, monkeypatch, generator):
    logits = 3 * torch.randn(4, 50, 9, generator=generator)
    t, s = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    x_t = process.corrupt(torch.randint(0, 9, (4, 50), generator=generator), t, generator=generator)
    found = process.draw(reverse, logits, x_t, t, s, seeded())
    assert 0 < (found != x_t).sum() < 200
    if process.unmasked_is_clean:  # only the logits at masks count
        blank = torch.where((x_t == process.mask_token)[..., None], logits, torch.nan)
        assert torch.equal(process.draw(reverse, blank, x_t, t, s, seeded()), found)
    monkeypatch.setattr(blocks, "eager_on_cpu", lambda x: False)
    everywhere = process.draw(reverse, logits, x_t, t, s, seeded())
    assert torch.equal(everywhere, found)
    # From p0 with its weight, else a fresh token with its, else x_t: one uniform number decides.
    a, b, c, g, pi_t = process.pair(reverse, x_t, t, s)
    p0 = logits.softmax(-1)
    p_t = torch.where(x_t < 9, p0.gather(-1, x_t.clamp(max=8)[..., None]).squeeze(-1).double(), 0.0)
    h = 1 - (1 - g) * p_t
    stays = torch.where(b > 0, a * (c * g * p_t + (1 - c) * h * pi_t) - b * c * (1 - g) * p_t, 1.0)
    parts = torch.stack([b * c + 0 * stays, b * (1 - c) * h, stays], -1)
    u = (1 - torch.rand(x_t.shape, dtype=torch.float64, generator=seeded())) * parts.sum(-1)
    first, second = parts[..., 0], parts[..., :2].sum(-1)
    fresh = process.quantile(((u - first) / parts[..., 1].clamp(min=interpolating.TINY)).clamp(0, 1))
    drawn = quantile(p0, (u / first.clamp(min=interpolating.TINY)).clamp(max=1))
    assert torch.equal(found, torch.where(u <= first, drawn, torch.where(u <= second, fresh, x_t)))


def test_a_step_of_carried_tokens_reads_the_output_at_masks_alone(generator):
    process, out = Absorbing(9, LogLinearNoise()), 3 * torch.randn(4, 50, 9, generator=generator)
    t, s = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    x_t = process.corrupt(torch.randint(0, 9, (4, 50), generator=generator), t, generator=generator)
    denoiser = Categorical(Fixed(out), process, head=carried)
    expected = process.draw(Product(), carried(out, x_t, process), x_t, t, s, seeded())
    assert torch.equal(denoiser.draw(x_t, t, s, generator=seeded()), expected)
    denoiser = Categorical(Fixed(torch.where((x_t == 9)[..., None], out, torch.nan)), process, head=carried)
    assert torch.equal(denoiser.draw(x_t, t, s, generator=seeded()), expected)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 9])
def test_quantiles_from_sums_made_once_are_those_of_the_rows(size, generator):
    p = torch.rand(7, size, dtype=torch.float64, generator=generator) * (torch.rand(7, size, generator=generator) > 0.3)
    p[:, size // 2] += 0.1
    row = torch.randint(0, 7, (500,), generator=generator)
    u = 1 - torch.rand(500, dtype=torch.float64, generator=generator)
    u[:7], row[:7] = 1.0, torch.arange(7)
    found = row_quantile(p.cumsum(-1), row, u)
    assert torch.equal(found, quantile(p[row], u))
    assert (p[row, found] > 0).all()


@pytest.mark.parametrize("kind", ["gaussian", "gaussian-odd"])
def test_large_and_small_signals_are_corrupted_alike(kind, generator):
    chain = CHAINS[kind]
    x0 = torch.randint(0, chain.categories, (3, 4, 4), generator=generator)
    for t in (torch.tensor([0.005, 0.3, 1.0], dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)):
        u = 1 - torch.rand(x0.shape, dtype=torch.float64, generator=seeded())
        expected = quantile(chain.rows(x0, chain.row(t)), u)
        assert torch.equal(chain.corrupt(x0, t, generator=seeded()), expected)


def test_rows_in_blocks_are_the_rows(small_blocks, generator):
    p = torch.rand(3, 5, 40, dtype=torch.float64, generator=generator)
    u = torch.rand(3, 5, dtype=torch.float64, generator=generator)
    cumulative = p.cumsum(-1)
    whole = torch.searchsorted(cumulative, u[..., None] * cumulative[..., -1:]).squeeze(-1)
    assert torch.equal(quantile(p, u), whole)
    assert torch.equal(quantile(p[0, 0], u[0, 0]), whole[0, 0])
