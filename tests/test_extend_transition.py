"""A transition matrix of one's own: two methods, and all that follows compared with matrices and enumeration."""

import math
from dataclasses import dataclass

import pytest
import torch
from enumeration import JOINT, ONE, Given, JointOracle, at_time, pairs, walk
from test_discrete_processes import PROCESSES, SCHEDULES
from torch import Tensor

from unnoise.discrete import (
    Ancestral,
    Categorical,
    ContinuousBound,
    D3PMLoss,
    Dense,
    Euler,
    GaussianTarget,
    GenericTransition,
    LogLinearNoise,
    Marginal,
    Product,
    TauLeaping,
    Uniform,
    VariationalBound,
    reverse_rates,
    single,
)
from unnoise.shared.errors import UsageError
from unnoise.shared.networks import Transformer
from unnoise.shared.random import categorical
from unnoise.shared.serialization import deserialize, serializable, serialize
from unnoise.shared.tensors import like

D = torch.float64


@serializable("tests.Cycle")
@dataclass(frozen=True)
class Cycle(GenericTransition):
    """Moves to the next category of a cycle after a geometric (a table) or exponential (in time) holding time."""

    categories: int
    stay: float = 0.7
    steps: int | None = None

    def shifts(self, s: Tensor, t: Tensor) -> Tensor:
        """The distribution of the shift from s to t, `(K,)` or `(B, K)`: by the Fourier transform of one step."""
        turn = torch.exp(-2j * math.pi * torch.arange(self.categories, dtype=D) / self.categories)
        if self.steps is None:
            power = torch.exp(-4 * (1 - self.stay) * (t - s).double()[..., None] * (1 - turn))
        else:
            power = (self.stay + (1 - self.stay) * turn) ** (self.row(t) - self.row(s))[..., None]
        return torch.fft.ifft(power).real.clamp(min=0)

    def matrix(self, s: Tensor, t: Tensor) -> Tensor:
        k = torch.arange(self.categories)
        return self.shifts(s, t)[..., (k - k[:, None]) % self.categories]

    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        q = self.matrix(s, t).to(p)
        return p @ q if q.ndim == 2 else (p.reshape(len(p), -1, self.states) @ q).view(p.shape)

    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        q = self.matrix(s, t).mT
        return q[x_t] if q.ndim == 2 else q[like(torch.arange(len(x_t)), x_t), x_t]


class Masks(GenericTransition):
    """Absorption in an added mask, by the constructor."""

    unmasked_is_clean = True

    def __init__(self, categories: int, eps: float = 0.0, steps: int | None = None) -> None:
        super().__init__(categories, steps, categories + 1)
        self.eps = eps

    def kept(self, s: Tensor, t: Tensor) -> Tensor:
        return (1 - (1 - self.eps) * t) / (1 - (1 - self.eps) * s)

    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        kept, mask = like(self.kept(s, t), p), self.one_hot(torch.tensor(self.categories)).to(p)
        return kept * p + (1 - kept) * p.sum(-1, keepdim=True) * mask

    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        hit = self.one_hot(x_t, D)
        kept = like(self.kept(s, t), hit)
        return kept * hit + (1 - kept) * (x_t == self.categories).double()[..., None]


@dataclass(frozen=True)
class Wrapped(GenericTransition):
    """The two methods of another transition, and nothing else of it."""

    inner: object

    @property
    def categories(self) -> int:
        return self.inner.categories

    @property
    def states(self) -> int:
        return self.inner.states

    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.inner.pushforward(p, s, t)

    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.inner.likelihood(x_t, s, t)


def at(n: int, steps: int) -> Tensor:
    return torch.tensor(n / steps, dtype=D)


def table(steps: int = 6) -> tuple[Cycle, Dense]:
    """The chain, and the same one from its matrices, written out entry by entry."""
    one = torch.zeros(3, 3, dtype=D)
    for i in range(3):
        one[i, i], one[i, (i + 1) % 3] = 0.7, 0.3
    return Cycle(3, 0.7, steps), Dense(one.expand(steps, 3, 3))


class Network(torch.nn.Module):
    """Logits that depend on both tokens and on the time."""

    def __init__(self, states: int, categories: int) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(
            torch.randn(states, states, 2, categories, generator=torch.Generator().manual_seed(2))
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.table[x[:, 0], x[:, 1]] * torch.cos(0.002 * time)[:, None, None]


def close(a: object, b: object, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_a_table_is_dense_on_the_same_matrices():
    """Probabilities, start, objective, bound and the distribution of the sampler."""
    own, dense = table()
    x = pairs(3)
    close(own.stationary(), dense.stationary())
    close(own.likelihood(x, at(2, 6), at(5, 6)), dense.likelihood(x, at(2, 6), at(5, 6)))
    for reverse in (Product(), Marginal(), Product(1e-3)):
        ours, theirs = (Categorical(Network(3, 3), process, reverse) for process in (own, dense))
        for n in (1, 2, 6):
            t, s = at(n, 6).expand(9), at(n - 1, 6).expand(9)
            for a, b in zip(ours.divergence(x, x.flip(0), t, s), theirs.divergence(x, x.flip(0), t, s), strict=True):
                close(a, b, 1e-5)
        losses = [D3PMLoss(d, 0.1)(x, generator=torch.Generator().manual_seed(0)) for d in (ours, theirs)]
        close(losses[0].total, losses[1].total, 1e-5)
        codes = [
            VariationalBound(d, steps=own.grid(4))(x, generator=torch.Generator().manual_seed(0))
            for d in (ours, theirs)
        ]
        for a, b in zip(codes[0], codes[1], strict=True):
            close(a, b, 1e-6)
        samples = [
            Ancestral(d, categorical)(shape=(64, 2), steps=4, generator=torch.Generator().manual_seed(1))
            for d in (ours, theirs)
        ]
        assert torch.equal(*samples)


def test_the_exact_denoiser_samples_the_data():
    """By enumeration, from q(x_1) back to the data; of dependent tokens the error falls with the number of steps."""
    own, errors = Cycle(3), []
    for steps in (64, 128, 256):
        start, grid = at_time(own, JOINT, ONE).flatten(), torch.linspace(1, 0, steps + 1, dtype=D)
        distribution = walk(start, JointOracle(JOINT, own).step_distribution, grid, 3)
        errors.append(float((distribution - JOINT.flatten()).abs().sum()))
    assert errors[-1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.2)
    own, _ = table()
    independent = torch.outer(JOINT.sum(1), JOINT.sum(0))
    oracle = JointOracle(independent, own)
    end = walk(at_time(own, independent, ONE).flatten(), oracle.step_distribution, own.grid(5), 3)
    close(end, independent.flatten())


@pytest.mark.parametrize("kind", PROCESSES)
def test_rates_follow_from_the_two_methods(kind):
    """Against those in closed form, for every process and schedule."""
    for schedule, _ in SCHEDULES:
        inner = PROCESSES[kind][0](schedule)
        own, x = Wrapped(inner), torch.arange(inner.states)
        for t in (0.004, 0.31, 0.7, 0.999, 1 - 1e-6):
            for name in ("inflow", "outflow"):
                found, expected = (
                    getattr(process, name)(x, torch.tensor(t, dtype=D)).clone() for process in (own, inner)
                )
                for rates in (found, expected):
                    rates[x, x] = 0
                assert float((found - expected).abs().max()) < 1e-5 * float(expected.max()), (schedule, t, name)
        times = torch.tensor([0.2, 0.9], dtype=D)
        batch = own.inflow(x.expand(2, -1), times)
        for row, t in zip(batch, times, strict=True):
            off = ~torch.eye(len(x), dtype=torch.bool)
            close(row[off], inner.inflow(x, t)[off], 1e-6)


def test_rates_of_many_categories_and_of_many_sizes():
    """Rates from 1e-40 to 1 beside each other, and paths of two short jumps where there is no direct one."""
    inner, x, t = GaussianTarget(64), torch.arange(64), torch.tensor(0.4, dtype=D)
    found, expected = (process.inflow(x, t).clone() for process in (Wrapped(inner), inner))
    for rates in (found, expected):
        rates[x, x] = 0
    assert float((found - expected).abs().max()) < 1e-7 * float(expected.max())
    assert (found >= 0).all()
    cycle = Cycle(64).inflow(x, t)
    assert int((cycle > 0).sum()) == 64  # one category leads to each


def test_rates_serve_samplers_objective_and_bound():
    """In continuous time: the reverse rates undo the forward ones, and the loss is that of a built-in process."""
    own = Cycle(3)
    oracle, t = JointOracle(JOINT, own), ONE * 0.6
    close(own.outflow(torch.tensor([1]), t)[0, [0, 2]], torch.tensor([0.0, 1.2], dtype=D), 1e-8)
    h = 1e-5
    step = oracle.step_distribution(pairs(3), t, t - h)
    off = 1 - own.one_hot(pairs(3), D)
    close(step * off / h, reverse_rates(oracle, pairs(3), t) * off, 1e-3)
    uniform = Uniform(3, LogLinearNoise(1e-2))
    x0, losses, codes = pairs(3), [], []
    for process in (Wrapped(uniform), uniform):
        denoiser = Categorical(Network(3, 3), process)
        losses.append(
            ContinuousBound(denoiser)
            .at(
                x0,
                torch.linspace(0.05, 0.95, 9, dtype=D),
                generator=Given(*[torch.rand(9, 2, dtype=D, generator=torch.Generator().manual_seed(3))]),
            )
            .total
        )
        assert Euler(denoiser)(shape=(4, 2), steps=5, generator=torch.Generator().manual_seed(0)).max() < 3
        assert TauLeaping(denoiser, single)(shape=(4, 2), steps=5, generator=torch.Generator().manual_seed(0)).max() < 3
        codes.append(VariationalBound(denoiser, terms=4)(x0, generator=torch.Generator().manual_seed(0)).nats)
    assert all(torch.isfinite(v).all() for v in (*losses, *codes))
    same = Wrapped(uniform).path_rate(
        Product(), torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(1)), x0, x0.flip(0), t
    )
    built_in = uniform.path_rate(
        Product(), torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(1)), x0, x0.flip(0), t
    )
    close(same.divergence, built_in.divergence, 1e-5)


def test_a_mask_of_ones_own():
    """It starts from masks, and where data tokens remain at t = 1 from the averaged distribution."""
    all_masked, some_left = Masks(3), Masks(3, eps=0.04)
    close(all_masked.stationary(), torch.tensor([0, 0, 0, 1.0], dtype=D))
    close(some_left.stationary(), torch.tensor([0.04 / 3] * 3 + [0.96], dtype=D))
    assert all_masked.survival(ONE) == 0
    assert some_left.survival(ONE) == 0  # it starts from several
    assert all_masked.survival(ONE * 0.75) == pytest.approx(0.25)
    assert torch.isinf(all_masked.inflow(torch.tensor([3]), ONE)[0, :3]).all()
    denoiser = Categorical(Network(4, 3), all_masked)
    with pytest.raises(UsageError, match="rates are infinite at t=1"):
        reverse_rates(denoiser, pairs(4), ONE)
    assert Ancestral(denoiser)(shape=(5, 2), steps=8, generator=torch.Generator().manual_seed(0)).max() < 3


def test_values_defaults_and_checkpoints():
    own = Cycle(5)
    assert (own.states, own.steps, own.t_min) == (5, None, 1e-3)
    assert (Cycle(5, steps=4).t_min, Masks(3).states, Masks(3).t_min, Masks(3, steps=7).t_min) == (0.0, 4, 1e-3, 0.0)
    assert own == Cycle(5)
    assert own != Cycle(5, 0.6)
    assert hash(own) == hash(Cycle(5))
    assert Masks(3) == Masks(3)
    assert Masks(3) != Masks(3, 0.1)
    assert repr(own) == "Cycle(categories=5)"
    assert repr(Cycle(5, steps=4)) == "Cycle(categories=5, steps=4)"
    assert deserialize(serialize(Cycle(5, 0.6, 4))) == Cycle(5, 0.6, 4)
    with pytest.raises(AttributeError, match="has no attribute 'mask_token'"):
        own.mask_token  # noqa: B018


def test_what_cannot_be_derived_is_refused():
    @dataclass(frozen=True)
    class Jumps(Cycle):
        """Changes with the square root of the time that is left until t = 0.5."""

        def matrix(self, s: Tensor, t: Tensor) -> Tensor:
            return super().matrix(*(0.7 - (0.5 - time).clamp(min=0).sqrt() for time in (s, t)))

    class Coarse(Masks):
        def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
            return super().likelihood(x_t, s, t).float()

    class Nameless(Masks):
        def __init__(self) -> None:
            pass

    x = torch.tensor([0])
    with pytest.raises(UsageError, match="a table of 4 steps has no rates: train Cycle with D3PMLoss"):
        Cycle(3, steps=4).inflow(x, ONE)
    with pytest.raises(UsageError, match="not smooth in time: write inflow.* and outflow"):
        Jumps(3).inflow(x, ONE * 0.5)
    with pytest.raises(UsageError, match="in torch.float32, from which rates cannot be derived"):
        Coarse(3).inflow(x, ONE * 0.5)
    with pytest.raises(AttributeError, match="Nameless does not set `categories`"):
        Nameless().states  # noqa: B018
    with pytest.raises(UsageError, match="categories=1"):
        Masks(1)


def test_a_dataclass_with_too_few_categories_is_refused():
    for number in (1, 0, -3):
        with pytest.raises(UsageError, match=f"categories={number}: categorical data need two categories or more"):
            Cycle(number)
    assert Cycle(2).states == 2


@dataclass(frozen=True)
class Ring(GenericTransition):
    """Moves to the next token, with parts that can be made wrong."""

    wrong: str = ""
    categories: int = 5

    def kept(self, v, s, t):
        return like(torch.exp(3 * (s - t)), v)

    def pushforward(self, p, s, t):
        kept = self.kept(p, s, t)
        moved = kept * p + (1 - kept) * p.roll(1, -1)
        return {"sums": 2 * moved, "shape": moved[..., :3]}.get(self.wrong, moved)

    def likelihood(self, x_t, s, t):
        same = self.one_hot(x_t, torch.float64)
        kept = torch.exp(3 * (s - t)) if self.wrong == "times" else self.kept(same, s, t)
        if self.wrong == "times" and kept.ndim:  # times along an axis of their own
            kept = kept[:, None, None, None]
        return kept * same + (1 - kept) * same.roll(1 if self.wrong == "transposed" else -1, -1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("sums", "Ring.pushforward takes a point mass at 0 to numbers of sum 2 .*rows of Q must be distributions"),
        ("shape", r"Ring.pushforward returned shape \(5, 3\) for 5 tokens: return \(5, 5\)"),
        ("transposed", "Ring.likelihood differs from pushforward: .* is the probability of x_t given x_s = k"),
        (
            "times",
            r"Ring.likelihood returned shape \(1, 3, 5\)|Ring.likelihood returned shape .* times of shape \(2,\)",
        ),
    ],
)
def test_wrong_matrices_are_refused_when_a_denoiser_is_built(wrong, words):
    Categorical(Transformer(5, 4, width=8, depth=1, heads=2), Ring())
    with pytest.raises(UsageError, match=words):
        Categorical(Transformer(5, 4, width=8, depth=1, heads=2), Ring(wrong))
