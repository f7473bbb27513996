"""Categorical bounds and samplers against enumeration of all trajectories, and identities that the papers prove."""

import itertools

import pytest
import torch
from helpers import Formula

from unnoise.discrete import (
    Absorbing,
    AnalyticCategorical,
    Ancestral,
    BandDiagonal,
    Categorical,
    ConstantNoise,
    Dense,
    DiscretizedGaussian,
    ExponentialNoise,
    GaussianTarget,
    LogLinearNoise,
    Marginal,
    Mixture,
    NearestNeighbor,
    Product,
    ScoreEntropyDenoiser,
    TabulatedNoise,
    Uniform,
    VariationalBound,
    linear,
    mutual_information,
    reciprocal,
    scaled_by_noise,
    unscaled,
)
from unnoise.discrete.schedules import betas_between
from unnoise.discrete.transition.base import CLEAN
from unnoise.shared.random import categorical

D = torch.float64
RING = torch.tensor([[1], [2], [0]])
STEP_BETAS = torch.tensor([0.3, 0.5, 0.9], dtype=D)
KINDS = {
    "uniform": lambda: Uniform(3, STEP_BETAS),
    "mask": lambda: Absorbing(2, reciprocal(3)),
    "mask category": lambda: Absorbing(3, reciprocal(3), mask=1),
    "gaussian": lambda: DiscretizedGaussian(3, STEP_BETAS),
    "band": lambda: BandDiagonal(3, STEP_BETAS),
    "neighbors": lambda: NearestNeighbor(RING, TabulatedNoise(STEP_BETAS)),
    "target": lambda: GaussianTarget(3, TabulatedNoise(STEP_BETAS), reach=1.0, width=1.5),
    "dense": lambda: Dense(torch.rand(3, 3, 3, dtype=D, generator=torch.Generator().manual_seed(2)).softmax(-1)),
    "mixture": lambda: Mixture(
        NearestNeighbor(RING, TabulatedNoise(STEP_BETAS)), Uniform(3, torch.tensor([0.2, 0.1, 0.6], dtype=D))
    ),
    "mixture, mask": lambda: Mixture(DiscretizedGaussian(2, STEP_BETAS), Absorbing(2, reciprocal(3))),
}


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=D), torch.as_tensor(expected, dtype=D), rtol=tolerance, atol=tolerance
    )


def time(n, steps):
    return torch.as_tensor(n, dtype=D) / steps


class Both(torch.nn.Module):
    """A random table over (tokens at both positions, time): an arbitrary network, with outputs that depend on both."""

    def __init__(self, states, categories):
        super().__init__()
        self.table = 2 * torch.randn(
            4001, 2, states**2, categories, dtype=D, generator=torch.Generator().manual_seed(4)
        )
        self.states = states

    def forward(self, x, time_input):
        pair = x[:, 0] * self.states + x[:, 1]
        row = torch.round(time_input * 4).long()  # time inputs are 1000 t
        return torch.stack([self.table[row, 0, pair], self.table[row, 1, pair]], 1)


def grid(states):
    return torch.cartesian_prod(torch.arange(states), torch.arange(states))


def one_step(transition, n, steps):
    """Returns q(x_n | x_(n-1)) over pairs of tokens, `(K^2, K^2)`."""
    q = transition.pushforward(torch.eye(transition.states, dtype=D), time(n - 1, steps), time(n, steps))
    return torch.kron(q, q)


def reverse_step(denoiser, n, steps):
    """Returns p(x_(n-1) | x_n) over pairs of tokens, from the distributions at both positions, `(K^2, K^2)`."""
    pairs = grid(denoiser.corruption.states)
    p = denoiser.step_distribution(pairs, time(n, steps), time(n - 1, steps))
    return (p[:, 0, :, None] * p[:, 1, None, :]).flatten(1)


def in_expectation(value, transition, x0, t):
    """Returns `E_q(x_t | x_0) value(x_t)` by enumeration of both positions; `value` is a function of a batch."""
    pairs = grid(transition.states)
    chance = transition.pushforward(transition.one_hot(x0, D), CLEAN, t)
    weight = chance[0, pairs[:, 0]] * chance[1, pairs[:, 1]]
    real = weight > 0
    return (weight[real] * value(pairs[real])).sum()


def summed_bound(denoiser, x0, steps):
    """Returns the sum of prior, path and data of `VariationalBound` over a sampling grid, each in expectation."""
    transition = denoiser.corruption
    total = VariationalBound(denoiser, steps=steps).prior(x0[None])[0]
    for t, s in itertools.pairwise(transition.grid(steps)):

        def term(x_t, t=t, s=s):
            return denoiser.divergence(x0.expand_as(x_t), x_t, t, s, dtype=D).divergence.sum(1)

        total = total + in_expectation(term, transition, x0, t)
    return total


@pytest.mark.parametrize("reverse", [Product(), Marginal()], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_bound_and_sampler_against_every_trajectory(kind, reverse):
    """`-E_q log p(x_0..T) / q(x_1..T | x_0)` over all K^2T paths of two positions, and the sampler's distribution."""
    transition = KINDS[kind]()
    steps, states = 3, transition.states
    denoiser = Categorical(Both(states, states), transition, reverse)
    pairs, start = grid(states), transition.stationary()
    prior = torch.kron(start, start)
    forward, backward = (
        [f(n) for n in range(1, 4)]
        for f in (lambda n: one_step(transition, n, steps), lambda n: reverse_step(denoiser, n, steps))
    )
    for x0 in (torch.tensor([0, 1]), torch.tensor([1, 1])):
        index = int(x0[0] * states + x0[1])
        q = forward[0][index][:, None, None] * forward[1][:, :, None] * forward[2][None]
        p = prior * backward[2].T[None] * backward[1].T[:, :, None] * backward[0].T[index][:, None, None]
        p = p.clamp(min=torch.finfo(D).tiny)
        total = (q * (q.clamp(min=1e-300).log() - p.log()))[q > 1e-15].sum()
        close(summed_bound(denoiser, x0, steps), total)
    marginal = prior
    for step in reversed(backward):
        marginal = marginal @ step
    sampler = Ancestral(denoiser, last=categorical)
    p = prior
    for n in (3, 2):
        p = p @ backward[n - 1]
    drawn = p @ denoiser_last(denoiser, steps)
    close(drawn, marginal)
    x = sampler(shape=(60_000, 2), steps=steps, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(x[:, 0] * states + x[:, 1], minlength=len(pairs)) / len(x)
    assert ((counts - marginal).abs() < 5 * (marginal / len(x)).sqrt() + 1e-6).all()


def denoiser_last(denoiser, steps):
    """Returns the last step: p0 itself, where a token that is not the extra mask token stays as it is."""
    pairs, categories = grid(denoiser.corruption.states), denoiser.corruption.categories
    p0 = denoiser(pairs, time(1, steps)).exp()
    if denoiser.corruption.states > categories and isinstance(denoiser.corruption, Absorbing):
        p0 = torch.where((pairs < categories)[..., None], denoiser.corruption.one_hot(pairs, D), p0)
    return (p0[:, 0, :, None] * p0[:, 1, None, :]).flatten(1)


def test_the_bound_that_users_call_is_that_sum():
    """`VariationalBound` draws x_t; its mean is the sum in expectation, with `steps` in continuous time too."""
    x0 = torch.tensor([0, 2])
    for transition, steps in ((Uniform(3, STEP_BETAS), None), (Absorbing(3, LogLinearNoise(eps=0.0)), 3)):
        denoiser = Categorical(Both(transition.states, transition.states), transition)
        nats = VariationalBound(denoiser, steps=steps)(
            x0.repeat(40_000, 1), generator=torch.Generator().manual_seed(0)
        ).nats
        assert abs(float(nats.mean() - summed_bound(denoiser, x0, 3))) < 4 * float(nats.std() / 200)
        part = VariationalBound(denoiser, steps=steps, padding=2).prior(x0[None])
        close(part, VariationalBound(denoiser, steps=steps).prior(x0[None, :1]))


def test_absorbing_bound_is_a_reweighted_masked_language_model_loss():
    """With betas 1 / (T - t + 1), `L_n` is `-log p(x_0) / n` at masked positions (Austin et al. 2021, appendix A.3)."""
    steps, transition = 6, Absorbing(4, reciprocal(6))
    denoiser = Categorical(Both(5, 5), transition)
    pairs = grid(5)
    for n in range(2, steps + 1):
        x0 = torch.where(pairs == 4, torch.tensor([1, 3]), pairs)
        log_p = denoiser(pairs, time(n, steps)).gather(-1, x0[..., None])[..., 0]
        term = denoiser.divergence(x0, pairs, time(n, steps), time(n - 1, steps)).divergence
        close(term, -log_p * (pairs == 4) / n)


PROCESSES = {
    "uniform": lambda: Uniform(3, LogLinearNoise(eps=0.05, t_min=1e-9)),
    "mask": lambda: Absorbing(3, LogLinearNoise(eps=0.0, t_min=1e-9)),
    "target": lambda: GaussianTarget(3, ConstantNoise(2.0, t_min=1e-9), reach=1.0, width=1.5),
}


class Tilted(torch.nn.Module):
    """Bayes' rule with a wrong prior that depends on both positions.

    At small times it is certain of x_0, so that integrals over time exist.
    """

    def __init__(self, process):
        super().__init__()
        self.table = torch.randn(
            2, process.states**2, process.categories, dtype=D, generator=torch.Generator().manual_seed(4)
        )
        self.process = process

    def forward(self, x, time_input):
        reach = self.process.likelihood(x, CLEAN, time_input.double() / 1000)[..., : self.process.categories]
        pair = x[:, 0] * self.process.states + x[:, 1]
        return torch.stack([self.table[0, pair], self.table[1, pair]], 1) + reach.log()


def legendre(low, high, count=40):
    """Returns nodes and weights of Gauss-Legendre quadrature on [low, high] (Golub & Welsch 1969)."""
    k = torch.arange(1, count, dtype=D)
    beta = k / (4 * k**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return low + (high - low) * (nodes + 1) / 2, (high - low) * vectors[0] ** 2


@pytest.mark.parametrize("kind", PROCESSES)
def test_chains_of_many_steps_approach_the_integral(kind):
    """The bound of T steps tends to the integral of its rate, and the error halves when T doubles.

    For an absorbing process the integral is the loss of MDLM.
    """
    process = PROCESSES[kind]()
    network, x0 = Tilted(process), torch.tensor([0, 2])
    denoiser = Categorical(network, process, Marginal())
    nodes, weights = legendre(0.0, 1.0, 60)
    rates = [
        in_expectation(lambda x, t=t: denoiser.path_rate(x0.expand_as(x), x, t).divergence.sum(1), process, x0, t)
        for t in nodes
    ]
    path = (weights * torch.stack(rates)).sum()
    if kind == "mask":  # E -log p(x_0) / t at masked positions (Sahoo et al. 2024, eq. 10, alpha = 1 - t)
        for t, rate in zip(nodes[::20], rates[::20], strict=True):

            def nelbo(x, t=t):
                log_p = denoiser(x, t).gather(-1, x0.expand_as(x)[..., None])[..., 0]
                return (-log_p * (x == 3)).sum(1) / t

            close(rate, in_expectation(nelbo, process, x0, t))
    now = torch.tensor(1e-9, dtype=D)
    data = in_expectation(
        lambda x: denoiser.divergence(x0.expand_as(x), x, now, CLEAN).divergence.sum(1), process, x0, now
    )
    whole = path + data + VariationalBound(denoiser).prior(x0[None])[0]

    def chain(steps):
        if kind == "target":
            return Categorical(
                network,
                GaussianTarget(3, TabulatedNoise(torch.full((steps,), 2.0 / steps)), reach=1.0, width=1.5),
                Marginal(),
            )
        table = betas_between(process.noise, steps)
        return Categorical(network, Uniform(3, table) if kind == "uniform" else Absorbing(3, table), Marginal())

    # a grid in continuous time has a step to t_min beside those of equal length
    for make, more in ((chain, 0), (lambda steps: denoiser, 1)):
        short, long = (float(summed_bound(make(steps + more), x0, steps + more) - whole) for steps in (160, 320))
        assert abs(long) < 0.002 * float(whole)
        assert short / long == pytest.approx(2, abs=1e-3 if kind == "mask" else 0.3)


P_DATA = torch.tensor([0.6, 0.1, 0.3], dtype=D)
CONTINUOUS = {
    "uniform": lambda: Uniform(3, LogLinearNoise(eps=0.02, t_min=0.05)),
    "mask": lambda: Absorbing(3, LogLinearNoise(eps=0.01, t_min=0.05)),
    "target": lambda: GaussianTarget(3, ExponentialNoise(0.3, 9.0, t_min=0.05), reach=1.0, width=1.5),
}


class Ratios(torch.nn.Module):
    """A network of the exact `log q_t(y) / q_t(x_t)`, `(B, d)` to `(B, d, K)`, at the float64 time t if it is set."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle, self.t = oracle, None

    def forward(self, x, time_input):
        t = time_input.double() / 1000 if self.t is None else self.t.expand(len(x))
        q = self.oracle.corruption.pushforward(self.oracle.p.expand(len(x), -1), CLEAN, t).log()
        log = q[:, None] - q.gather(-1, x)[..., None]
        return log


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_the_exact_bound_in_continuous_time_is_the_entropy(kind):
    """With the exact posterior of x_0, prior, path and data add up to H(x_0) plus the mismatch of the prior."""
    process = CONTINUOUS[kind]()
    p = torch.cat([P_DATA, torch.zeros(process.states - 3, dtype=D)])
    oracle = AnalyticCategorical(p, process)
    states = torch.arange(process.states)

    def expected(f, t):
        """`E f(x_0, x_t)` over data and noise."""
        joint = p[:, None] * process.likelihood(states, CLEAN, t).T
        x0, x_t = (joint > 0).nonzero().T
        return (joint[x0, x_t] * f(x0, x_t)).sum()

    def path_of(denoiser):
        total = 0
        for t, w in zip(*legendre(process.t_min, 1.0), strict=True):
            total = total + w * expected(
                lambda x0, x_t, t=t: denoiser.path_rate(x0[:, None], x_t[:, None], t).divergence[:, 0], t
            )
        return total

    t_min = torch.tensor(process.t_min, dtype=D)
    last = process.pushforward(p, CLEAN, torch.ones((), dtype=D))
    # Sampling starts from the stationary distribution; for a mask from q(x_1), which the exact denoiser knows.
    start = (torch.xlogy(last, last) - torch.xlogy(last, process.stationary())).sum() if kind != "mask" else 0.0
    entropy = -(P_DATA * P_DATA.log()).sum()

    def data_of(denoiser):
        zeros = torch.zeros((), dtype=D)
        return expected(
            lambda x0, x_t: denoiser.divergence(x0[:, None], x_t[:, None], t_min, zeros).divergence[:, 0], t_min
        )

    prior = expected(lambda x0, x_t: VariationalBound(oracle).prior(x0[:, None]), torch.ones((), dtype=D))
    close(prior + path_of(oracle) + data_of(oracle), entropy + start, 1e-6)
    # The score entropy of exact ratios is the same path, and the reverse steps are the same.
    if kind == "target":  # its steps have no inverse, which reverse steps from ratios need
        return
    network = Ratios(oracle)
    score = ScoreEntropyDenoiser(network, process, offset=unscaled)
    for t, s in ((0.9, 0.4), (0.3, 0.0)):
        network.t = t = torch.tensor(t, dtype=D)
        s = torch.tensor(s, dtype=D)
        marginal = process.pushforward(p, CLEAN, t)
        close(score.ratio(states[:, None], t)[:, 0], marginal / marginal[:, None])
        x0, x_t = torch.cartesian_prod(torch.arange(3), states).T[:, :, None]
        here = process.likelihood(x_t, CLEAN, t).gather(-1, x0[..., None]).flatten() > 0
        close(score.path_rate(x0[here], x_t[here], t).divergence, oracle.path_rate(x0[here], x_t[here], t).divergence)
        x = states[:, None]
        close(score.step_distribution(x, t, s), oracle.step_distribution(x, t, s))
        close(
            score.divergence(x0[here], x_t[here], t, s).divergence,
            oracle.divergence(x0[here], x_t[here], t, s).divergence,
        )
        close(score.step_distribution(x, t.expand(len(x)), s.expand(len(x))), oracle.step_distribution(x, t, s))
        close(score(x, t).exp(), oracle(x, t).exp())


def test_ratios_scaled_by_the_noise():
    """An output of zeros means equal ratios at a mask, `kept / (1 - kept) / K` each, with the correct sum."""
    process = Absorbing(4, LogLinearNoise())
    oracle = AnalyticCategorical(torch.tensor([0.25] * 4 + [0.0], dtype=D), process)
    silent = Formula(lambda x, time_input: torch.zeros(*x.shape, 5, dtype=D))
    x, t = torch.full((2, 3), 4), torch.tensor([0.3, 0.8], dtype=D)
    close(ScoreEntropyDenoiser(silent, process, offset=scaled_by_noise).ratio(x, t), oracle.ratio(x, t), 1e-6)


def test_bound_in_continuous_time_as_users_call_it():
    """The estimate of `VariationalBound` agrees with the entropy; for score entropy with a batch of any size."""
    process = CONTINUOUS["mask"]()
    oracle = AnalyticCategorical(torch.cat([P_DATA, torch.zeros(1, dtype=D)]), process)
    x0 = torch.multinomial(P_DATA, 60_000, replacement=True, generator=torch.Generator().manual_seed(1)).view(-1, 2)
    entropy = -2 * float((P_DATA * P_DATA.log()).sum())
    for denoiser, rows in (
        (oracle, 30_000),
        (ScoreEntropyDenoiser(Ratios(oracle), process, offset=unscaled), 4),
        (ScoreEntropyDenoiser(Ratios(oracle), process, offset=unscaled), 3),
    ):
        nats = VariationalBound(denoiser, terms=8)(x0[:rows], generator=torch.Generator().manual_seed(0)).nats
        if rows > 4:
            assert abs(float(nats.mean()) - entropy) < 5 * float(nats.std()) / rows**0.5
        exact = VariationalBound(oracle, terms=8)(x0[:rows], generator=torch.Generator().manual_seed(0)).nats
        close(nats, exact, 1e-4)  # time inputs are float32


FREQUENCIES = torch.tensor([0.5, 0.2, 0.2, 0.07, 0.03], dtype=D)
FIVE = torch.tensor([[1, 2], [2, 3], [3, 4], [4, 0], [0, 1]])
ERASING = {
    "uniform": lambda n: Uniform(5, n),
    "mask": lambda n: Absorbing(5, n),
    "neighbors": lambda n: NearestNeighbor(FIVE, n),
    "mixture": lambda n: Mixture(NearestNeighbor(FIVE, n), Uniform(5, n)),
    "mixture, mask": lambda n: Mixture(NearestNeighbor(FIVE, n), Absorbing(5, n)),
    "target": lambda n: GaussianTarget(5, n, reach=2.0, width=2.0),
}


@pytest.mark.parametrize("kind", ERASING)
def test_information_falls_evenly(kind):
    """`I(x_n; x_0) = (1 - n / T) H(x_0)`, from the joint distribution (Austin et al. 2021, appendix A.4)."""
    steps = 12
    schedule = mutual_information(ERASING[kind], FREQUENCIES, steps)
    transition, entropy = ERASING[kind](schedule), -(FREQUENCIES * FREQUENCIES.log()).sum()
    for n in range(steps):
        conditional = transition.pushforward(transition.one_hot(torch.arange(5), D), CLEAN, time(n, steps))
        joint = FREQUENCIES[:, None] * conditional
        information = (torch.xlogy(joint, joint) - torch.xlogy(joint, FREQUENCIES[:, None] * joint.sum(0))).sum()
        close(information / entropy, 1 - n / steps, 1e-8)
    if kind == "mask":
        close(-torch.expm1(-schedule.events), reciprocal(steps), 1e-10)


def test_steps_of_log_linear_noise_are_the_reciprocal_table():
    close(betas_between(LogLinearNoise(eps=0.0), 7), reciprocal(7), 1e-12)
    assert linear(2).shape == (2,)
