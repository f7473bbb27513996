"""Transitions by structure, reverse models and objectives of categorical diffusion."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unnoise.discrete import (
    Absorbing,
    Ancestral,
    Categorical,
    CategoricalOracle,
    DiscretizedGaussian,
    Hybrid,
    Marginal,
    Product,
    Uniform,
    VariationalBound,
    cosine,
    linear,
    reciprocal,
)
from unnoise.shared.errors import UsageError


def dense(transition):
    """One-step matrices written out from the paper's definitions, (T, K, K)."""
    size, out = transition.states, []
    eye = torch.eye(size, dtype=torch.float64)
    for beta in transition.schedule:
        if isinstance(transition, Uniform):
            q = (1 - beta) * eye + beta / size
        elif isinstance(transition, Absorbing):
            q = (1 - beta) * eye
            q[:, transition.levels if transition.mask is None else transition.mask] += beta
        else:
            q = torch.zeros(size, size, dtype=torch.float64)
            norm = sum(math.exp(-4 * m**2 / ((size - 1) ** 2 * float(beta))) for m in range(-(size - 1), size))
            for i, j in itertools.product(range(size), repeat=2):
                if i != j:
                    q[i, j] = math.exp(-4 * (i - j) ** 2 / ((size - 1) ** 2 * float(beta))) / norm
            q += torch.diag(1 - q.sum(1))
        out.append(q)
    return torch.stack(out)


def make(kind, levels, steps):
    return {
        "uniform": lambda: Uniform(levels, cosine(steps)),
        "mask": lambda: Absorbing(levels, reciprocal(steps)),
        "level": lambda: Absorbing(levels, reciprocal(steps), mask=levels // 2),
        "gaussian": lambda: DiscretizedGaussian(levels, linear(steps, 0.02, 1.0)),
    }[kind]()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["uniform", "mask", "level", "gaussian"]), st.integers(2, 9), st.integers(1, 12), st.data())
def test_structure_agrees_with_dense_matrices(kind, levels, steps, data):
    transition = make(kind, levels, steps)
    j = data.draw(st.integers(1, steps))
    i = data.draw(st.integers(0, j - 1))
    one_step = dense(transition)
    q = torch.eye(transition.states, dtype=torch.float64)
    for n in range(i, j):
        q = q @ one_step[n]
    s, t = torch.tensor(i / steps, dtype=torch.float64), torch.tensor(j / steps, dtype=torch.float64)
    states = torch.arange(transition.states)
    torch.testing.assert_close(transition.likelihood(states, s, t).T.double(), q, rtol=1e-10, atol=1e-12)
    p = torch.rand(3, transition.states, dtype=torch.float64, generator=torch.Generator().manual_seed(j)).softmax(-1)
    torch.testing.assert_close(transition.pushforward(p, s, t), p @ q, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(q.sum(1), torch.ones_like(q[0]), rtol=1e-10, atol=1e-12)
    # The posterior by Bayes' rule, for every pair of x_t and x_0 that can meet.
    before = torch.eye(transition.states, dtype=torch.float64)
    for n in range(i):
        before = before @ one_step[n]
    for x0, x_t in itertools.product(range(levels), range(transition.states)):
        joint = before[x0] * q[:, x_t]
        if joint.sum() > 1e-12:
            point = transition.one_hot(torch.tensor([x0]), torch.float64)
            for model in (transition.posterior, lambda x, p, t, s: Product()(transition, x, p, t, s)):
                torch.testing.assert_close(model(torch.tensor([x_t]), point, t, s)[0], joint / joint.sum(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["uniform", "mask", "level", "gaussian"])
def test_times_of_a_batch_agree_with_single_times(kind):
    transition = make(kind, 5, 8)
    n = torch.tensor([1, 4, 8])
    t, s = n.double() / 8, (n - 1).double() / 8
    x = torch.randint(0, 5, (3, 2, 2), generator=torch.Generator().manual_seed(0))
    p = torch.rand(3, 2, 2, transition.states, dtype=torch.float64).softmax(-1)
    zero = torch.zeros_like(t)
    for b in range(3):
        one = slice(b, b + 1)
        torch.testing.assert_close(transition.likelihood(x, s, t)[one], transition.likelihood(x[one], s[b], t[b]))
        torch.testing.assert_close(transition.likelihood(x, zero, t)[one], transition.likelihood(x[one], zero[b], t[b]))
        torch.testing.assert_close(transition.pushforward(p, zero, s)[one], transition.pushforward(p[one], zero[b], s[b]))
        torch.testing.assert_close(transition.posterior(x, p, t, s)[one], transition.posterior(x[one], p[one], t[b], s[b]))


def test_the_forward_law_and_the_prior(generator):
    for kind in ("uniform", "mask", "level", "gaussian"):
        transition = make(kind, 5, 40)
        t = torch.tensor(0.5, dtype=torch.float64)
        x = transition.corrupt(torch.full((40_000,), 3), t, generator=generator)
        expected = transition.likelihood(torch.arange(transition.states), torch.zeros_like(t), t)[:, 3]
        observed = torch.bincount(x, minlength=transition.states) / 40_000
        assert (observed - expected).abs().max() < 0.01
        start = torch.bincount(transition.prior((40_000,), generator=generator), minlength=transition.states) / 40_000
        assert (start - transition.stationary()).abs().max() < 0.01
        last = transition.likelihood(torch.arange(transition.states), torch.zeros_like(t), torch.ones_like(t))
        assert (last.T - transition.stationary()).abs().max() < 0.02


class Table(torch.nn.Module):
    """A network whose logits are a table over (x_t): enough to be wrong in every way."""

    def __init__(self, states, levels):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(states, levels, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))

    def forward(self, x, label):
        return self.table[x] + 0.001 * label.reshape(-1, *[1] * x.ndim)[: len(x)] * torch.arange(self.table.shape[1])


@pytest.mark.parametrize("reverse", [Product(), Marginal()])
@pytest.mark.parametrize("kind", ["uniform", "mask", "level", "gaussian"])
def test_hybrid_in_expectation_is_the_bound(kind, reverse):
    """T x the mean of the sampled term over all n and x_t equals path + data terms of the bound, both enumerated from single calls."""
    levels, steps = 3, 5
    transition = make(kind, levels, steps)
    denoiser = Categorical(Table(transition.states, transition.states), transition, reverse)
    x0 = torch.tensor([[0, 2]]).repeat(60_000 // steps, 1)
    generator = torch.Generator().manual_seed(0)
    bound = VariationalBound(denoiser)(x0, generator=generator)
    loss = Hybrid(denoiser, ce=0.0)(x0, generator=generator)
    sampled = steps * 2 * loss.total.detach()
    error = float(sampled.std() / len(sampled) ** 0.5 + bound.nats.std() / len(bound.nats) ** 0.5)
    assert abs(float(sampled.mean() - (bound.path + bound.data).mean())) < 4 * error
    torch.testing.assert_close(loss.parts["bits_per_dim"], loss.total.detach() * steps / math.log(2))


def test_hybrid_adds_lambda_times_the_cross_entropy():
    transition = make("uniform", 4, 6)
    denoiser = Categorical(Table(4, 4), transition)
    x0 = torch.randint(0, 4, (32, 3), generator=torch.Generator().manual_seed(0))
    plain, mixed = (Hybrid(denoiser, ce)(x0, generator=torch.Generator().manual_seed(5)) for ce in (0.0, 0.25))
    torch.testing.assert_close(mixed.total, plain.total + 0.25 * mixed.parts["cross_entropy"])


def test_bound_against_enumeration_of_all_trajectories():
    """K = 3, two positions, T = 3: -E_q log p(x_0..T) / q(x_1..T | x_0) summed over every trajectory, for a network that is wrong."""
    transition = Uniform(3, torch.tensor([0.3, 0.5, 0.9]))
    steps, one_step = 3, dense(transition)
    for reverse in (Product(), Marginal()):
        denoiser = Categorical(Table(3, 3), transition, reverse)
        at = [torch.tensor(n / steps, dtype=torch.float64) for n in range(steps + 1)]
        with torch.no_grad():
            laws = [None, *(denoiser.step_law(torch.arange(3)[:, None], at[n], at[n - 1])[:, 0] for n in range(1, steps + 1))]
        total = 0.0
        for start in (0, 2):  # positions are independent under this network
            for path in itertools.product(range(3), repeat=steps):
                q = math.prod(float(one_step[n][a, b]) for n, (a, b) in enumerate(itertools.pairwise((start, *path))))
                p = 1 / 3 * math.prod(float(laws[n][b, a]) for n, (a, b) in enumerate(itertools.pairwise((start, *path)), 1))
                total += q * (math.log(q) - math.log(p))
        x0 = torch.tensor([[0, 2]]).repeat(40_000, 1)
        nats = VariationalBound(denoiser)(x0, generator=torch.Generator().manual_seed(0)).nats
        assert abs(float(nats.mean()) - total) < 4 * float(nats.std() / 200)


def test_absorbing_bound_is_a_reweighted_masked_language_model_loss():
    """With 1 / (T - t + 1) the term at n costs -log p(x_0) / n at masked positions (Austin et al. 2021, appendix A.3)."""
    steps = 6
    transition = Absorbing(4, reciprocal(steps))
    denoiser = Categorical(Table(5, 5), transition)
    x0 = torch.tensor([[1, 3, 0]])
    bound = VariationalBound(denoiser)
    for n in range(1, steps + 1):
        t = torch.tensor([n / steps], dtype=torch.float64)
        x_t = transition.corrupt(x0, t, generator=torch.Generator().manual_seed(n))
        with torch.no_grad():
            log_p = denoiser(x_t, t).gather(-1, x0[..., None])[..., 0]
        expected = -(log_p * (x_t == 4)).sum() / n
        if n == 1:  # the data term counts unmasked positions too, where the carried symbol is certain only to the posterior
            continue
        term = bound.term(x0, torch.tensor([n]), generator=torch.Generator().manual_seed(n))
        torch.testing.assert_close(term[0], expected.double(), rtol=1e-5, atol=1e-6)


def test_a_mask_is_never_predicted():
    transition = Absorbing(4, reciprocal(5))
    denoiser = Categorical(Table(5, 5), transition)
    p = denoiser(torch.tensor([[4, 1]]), torch.tensor(0.6, dtype=torch.float64)).exp()
    assert (p[..., 4] == 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(1, 2, dtype=p.dtype))
    assert (Ancestral(denoiser)(shape=(50, 6), steps=5, generator=torch.Generator().manual_seed(0)) < 4).all()


def test_a_certain_network_does_not_lose_the_symbol(generator):
    """Where p0 gives no chance to anything that leads to x_t, an unmasked symbol stays what it is."""
    transition = Absorbing(4, reciprocal(5))
    p0 = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]])
    t, s = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    for reverse in (Product(), Marginal()):
        torch.testing.assert_close(reverse(transition, torch.tensor([1]), p0, t, s), torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]]))


def test_schedules_of_the_papers():
    assert float(reciprocal(10)[0]) == pytest.approx(0.1)
    assert float(reciprocal(10)[-1]) == 1
    kept = torch.cumprod(1 - cosine(1000), 0)
    half = torch.cos(torch.tensor((0.5 + 0.008) / 1.008 * math.pi / 2)) / math.cos(0.008 / 1.008 * math.pi / 2)
    assert float(kept[499]) == pytest.approx(float(half), rel=1e-6)


def test_bad_input_is_refused_in_one_line():
    for call, words in (
        (lambda: Absorbing(4, reciprocal(5), mask=4), "mask=4: choose one of the symbols 0..3"),
        (lambda: Uniform(1, reciprocal(5)), "levels=1"),
        (lambda: Uniform(4, torch.tensor([0.5, 1.0, 0.5])), "1 at the last step only"),
        (lambda: Uniform(4, cosine(5)).grid(6), "this table has 5 steps"),
        (
            lambda: DiscretizedGaussian(4, linear(5)).likelihood(
                torch.zeros(2, 1, dtype=torch.int64), torch.tensor([0.2, 0.4]), torch.tensor([0.8, 1.0])
            ),
            "one step apart",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            call()


def test_the_oracle_is_bayes_rule():
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    transition = Uniform(3, cosine(4))
    t = torch.tensor(0.5, dtype=torch.float64)
    q = transition.likelihood(torch.arange(3), torch.zeros_like(t), t).T
    expected = p[:, None] * q / (p[:, None] * q).sum(0)
    torch.testing.assert_close(CategoricalOracle(p, transition)(torch.arange(3), t).exp(), expected.T)
