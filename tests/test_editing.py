"""Editing hooks, on continuous and categorical signals."""

import itertools

import pytest
import torch
from helpers import Recorded

from unnoise import discrete, sde
from unnoise.continuous import DDIM, Ancestral, Cosine, Tabulated, UniPC, linear_betas, small
from unnoise.shared.editing import Inpainting, RePaint, sdedit
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian, AnalyticMixture
from unnoise.shared.gaussian.inverse import Masked, Replacement
from unnoise.shared.random import Streams

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.4], [0.4, 0.5]], dtype=torch.float64)
TABLE = Tabulated(linear_betas(1000))
MASK = torch.tensor([True, False])
SCHEDULES = {"table": lambda: TABLE, "cosine": Cosine, "vp": sde.VP, "sub-vp": sde.SubVP, "ve": sde.VE}


def exact(schedule=TABLE):
    return AnalyticGaussian(MEAN, COVARIANCE, schedule)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("s", "t"), [(0.0, 0.5), (0.2, 0.6), (0.5, 1.0)])
def test_going_up_composes(name, s, t, generator):
    """q(x_t | x_s) after q(x_s | x_0) is q(x_t | x_0): mean and variance."""
    schedule = SCHEDULES[name]()
    s, t = (torch.tensor(v, dtype=torch.float64) for v in (s, t))
    x0 = torch.full((100_000, 1), 0.7, dtype=torch.float64)
    x_s = schedule.corrupt(x0, s, generator=generator)
    x_t = schedule.diffuse(x_s, s, t, generator=generator)
    alpha, sigma = schedule(t)
    assert float((x_t.mean() - alpha * 0.7) / sigma) == pytest.approx(0, abs=0.013)
    assert float(x_t.std() / sigma) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    "make", [lambda: discrete.Uniform(4, discrete.cosine(10)), lambda: discrete.Absorbing(4, discrete.reciprocal(10))]
)
def test_going_up_composes_for_symbols(make, generator):
    transition = make()
    s, t = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    x0 = torch.full((50_000, 1), 2)
    x_t = transition.diffuse(transition.corrupt(x0, s, generator=generator), s, t, generator=generator)
    distribution = transition.pushforward(transition.one_hot(x0[:1], torch.float64), torch.zeros_like(t), t)[0, 0]
    counts = torch.bincount(x_t.flatten(), minlength=transition.states).double() / len(x_t)
    torch.testing.assert_close(counts, distribution, rtol=0, atol=0.01)


@pytest.mark.parametrize("make", [lambda d: Ancestral(d, small), lambda d: DDIM(d), UniPC, sde.ProbabilityFlow])
def test_inpainting_keeps_what_is_known(make, generator):
    known = torch.tensor([[0.9, 0.0]], dtype=torch.float64).expand(50, 2)
    x = Inpainting(make(exact()), known, MASK)(shape=(50, 2), steps=40, generator=generator)
    assert torch.equal(x[:, 0], known[:, 0].to(x))
    assert float(x[:, 1].std()) > 0.05
    assert not torch.equal(x[:, 1], known[:, 1])


def test_the_known_part_is_at_the_level_of_the_state():
    known, t, s = torch.full((3, 2), 0.9, dtype=torch.float64), torch.tensor(0.7), torch.tensor(0.4)
    x = Inpainting(DDIM(exact()), known, MASK).step(
        torch.zeros_like(known), t, s, generator=Recorded(torch.ones_like(known))
    )
    alpha, sigma = TABLE(s.double())
    torch.testing.assert_close(x[:, 0], 0.9 * alpha.expand(3) + sigma)


def test_repaint_comes_closer_to_the_conditional_distribution(generator):
    """The second number given the first, of a correlated Gaussian.

    Replacement alone falls short of its mean, resampling reaches it.
    """
    value = 1.2
    known = torch.tensor([[value, 0.0]], dtype=torch.float64).expand(4000, 2)
    wanted = float(MEAN[1] + COVARIANCE[0, 1] / COVARIANCE[0, 0] * (value - MEAN[0]))
    spread = float((COVARIANCE[1, 1] - COVARIANCE[0, 1] ** 2 / COVARIANCE[0, 0]).sqrt())
    means = []
    for sampler in (
        Inpainting(Ancestral(exact(), small), known, MASK),
        RePaint(Ancestral(exact(), small), known, MASK, jump=4, repeats=10),
    ):
        x = sampler(shape=(4000, 2), steps=200, generator=generator)
        assert torch.equal(x[:, 0], known[:, 0].to(x))
        means.append(float(x[:, 1].mean()))
    assert abs(means[1] - wanted) < 0.4 * abs(means[0] - wanted)
    assert abs(means[1] - wanted) < 0.05
    assert float(x[:, 1].std()) == pytest.approx(spread, rel=0.1)


def test_repaint_walks_each_stretch_as_often_as_asked():
    grid = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64)
    path = RePaint(DDIM(exact()), torch.zeros(1, 2), MASK, jump=2, repeats=3).path(grid)
    steps = [(round(float(t), 1), round(float(s), 1)) for t, s in path]
    first = [(1.0, 0.8), (0.8, 0.6)]
    second = [(0.6, 0.4), (0.4, 0.2)]
    assert steps == [
        *first,
        (0.6, 1.0),
        *first,
        (0.6, 1.0),
        *first,
        *second,
        (0.2, 0.6),
        *second,
        (0.2, 0.6),
        *second,
        (0.2, 0.0),
    ]
    short = RePaint(DDIM(exact()), torch.zeros(1, 2), MASK, jump=9, repeats=2).path(grid[2:])
    assert [(round(float(t), 1), round(float(s), 1)) for t, s in short] == [*second, (0.2, 0.6), *second, (0.2, 0.0)]
    assert RePaint(DDIM(exact()), torch.zeros(1, 2), MASK, jump=2, repeats=1).path(grid) == list(
        itertools.pairwise(grid)
    )


def test_known_symbols_stay(generator):
    p = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    for transition in (discrete.Uniform(4, discrete.cosine(20)), discrete.Absorbing(4, discrete.reciprocal(20))):
        padded = torch.cat([p, torch.zeros(transition.states - 4, dtype=torch.float64)])
        oracle = discrete.AnalyticCategorical(padded, transition)
        known, mask = torch.full((300, 2), 3), MASK
        for sampler in (
            Inpainting(discrete.Ancestral(oracle), known, mask),
            RePaint(discrete.Ancestral(oracle), known, mask, jump=3, repeats=2),
        ):
            x = sampler(shape=(300, 2), steps=20, generator=generator)
            assert (x[:, 0] == 3).all()
            assert len(x[:, 1].unique()) > 1
            assert int(x.max()) <= 3


def test_sdedit_goes_from_the_guide_to_the_distribution(generator):
    oracle = AnalyticMixture(torch.tensor([1.0]), torch.tensor([[0.5, 0.5]]), torch.tensor([0.01]), TABLE)
    guide = torch.full((1000, 2), -0.8, dtype=torch.float64)
    distances = []
    for strength in (0.02, 0.2, 0.5, 1.0):
        x = sdedit(Ancestral(oracle, small), guide, strength, steps=400, generator=generator)
        distances.append(float((x.mean(0) - 0.5).norm()))
    assert distances[0] > 2 * distances[1] > 4 * distances[2]
    assert distances[0] > 1.0
    assert max(distances[2:]) < 0.03
    free = x - x.mean(0)
    assert float(free.std()) == pytest.approx(0.1, rel=0.1)


def test_bad_edits_are_refused():
    known = torch.zeros(2, 3)
    for make, words in (
        (lambda: Inpainting(DDIM(exact()), known, torch.ones(4)), r"a mask of shape \(4,\) does not fit"),
        (lambda: Inpainting(DDIM(exact()), known, torch.full((3,), 0.5)), "1 or True where the signal is known"),
        (lambda: RePaint(DDIM(exact()), known, torch.ones(3), jump=0), "jump=0"),
        (lambda: sdedit(DDIM(exact()), known, 0.0, steps=10), "strength=0.0"),
        (lambda: RePaint(UniPC(exact()), known, torch.ones(3)), "UniPC looks back"),
        (
            lambda: RePaint(Inpainting(UniPC(exact()), known, torch.ones(3)), known, torch.ones(3)),
            "Inpainting looks back",
        ),
        (lambda: sdedit(DDIM(exact()), known, 0.0005, steps=10), "from the grid's last noisy time"),
    ):
        with pytest.raises(UsageError, match=words):
            make()


WRAPPED = {
    "Inpainting": Inpainting,
    "RePaint": lambda sampler, known, mask: RePaint(sampler, known, mask, jump=5, repeats=2),
    "Replacement": lambda sampler, known, mask: Replacement(sampler, Masked(mask), known),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_fill_ins_of_one_signal_are_independent(name):
    """The mean of 1000 fill-ins of one row varies from run to run as that of independent samples does, by sd /
    sqrt(1000).
    """
    exact = AnalyticGaussian(torch.zeros(2), torch.tensor([[1.0, 0.95], [0.95, 1.0]]), sde.VP())
    sampler = WRAPPED[name](Ancestral(exact), torch.tensor([[1.0, 0.0]]), torch.tensor([True, False]))
    runs = [
        sampler(shape=(1000, 2), steps=20, generator=torch.Generator().manual_seed(seed))[:, 1] for seed in range(16)
    ]
    independent = float(torch.stack(runs).std(1).mean()) / 1000**0.5
    assert (
        float(torch.stack([run.mean() for run in runs]).std()) < 1.8 * independent
    )  # 16 runs: 1.8 is 4.5 standard deviations


def test_fill_ins_of_one_text_are_independent():
    """The same of tokens, whose known part is uniform noise with a chance at each level."""
    chain = discrete.Uniform(2, discrete.LogLinearNoise())
    both = discrete.Categorical(Copying(), chain)
    sampler = Inpainting(discrete.Ancestral(both), torch.tensor([[1, 0]]), torch.tensor([True, False]))
    runs = [
        sampler(shape=(1000, 2), steps=10, generator=torch.Generator().manual_seed(seed))[:, 1].double()
        for seed in range(16)
    ]
    independent = float(torch.stack(runs).std(1).mean()) / 1000**0.5
    assert float(torch.stack([run.mean() for run in runs]).std()) < 1.8 * independent


class Copying(torch.nn.Module):
    """Logits of the second token by the first one."""

    conditions = ()

    def forward(self, x, time):
        return torch.nn.functional.one_hot(x.flip(-1).clamp(max=1), 2).float()


@pytest.mark.parametrize("name", ["Inpainting", "RePaint"])
def test_known_rows_are_one_for_each_sample_or_one_for_all(name):
    exact = AnalyticGaussian(torch.zeros(2), torch.eye(2), sde.VP())
    mask, row = torch.tensor([True, False]), torch.tensor([1.0, 0.0])
    for known in (row, row[None], row.expand(5, 2)):
        x = WRAPPED[name](Ancestral(exact), known, mask)(shape=(5, 2), steps=3, generator=Streams(0, range(5)))
        assert (x[:, 0] == 1).all()
        assert len(set(x[:, 1].tolist())) == 5
    each = torch.stack([torch.arange(5.0), torch.zeros(5)], 1)
    assert torch.equal(WRAPPED[name](Ancestral(exact), each, mask)(shape=(5, 2), steps=3)[:, 0], each[:, 0])
    for known in (row.expand(2, 2), torch.ones(5, 3)):
        with pytest.raises(UsageError, match=r"known of shape .*\(5, 2\): give one row"):
            WRAPPED[name](Ancestral(exact), known, mask[:1])(shape=(5, 2), steps=3)


def test_known_tokens_are_one_row_for_each_sample_or_one_for_all():
    denoiser = discrete.Categorical(Copying(), discrete.Absorbing(2, discrete.LogLinearNoise()), head=discrete.carried)
    known, mask = torch.tensor([[1, 0]]), torch.tensor([True, False])
    for rows in (known, known[0], known.expand(5, 2)):
        x = discrete.Infilling(discrete.Ancestral(denoiser), rows, mask)(shape=(5, 2), steps=3)
        assert (x[:, 0] == 1).all()
    each = torch.tensor([[n % 2, 0] for n in range(5)])
    assert torch.equal(
        discrete.Infilling(discrete.Ancestral(denoiser), each, mask)(shape=(5, 2), steps=3)[:, 0], each[:, 0]
    )
    with pytest.raises(UsageError, match="one row"):
        discrete.Infilling(discrete.Ancestral(denoiser), known.expand(2, 2), mask)(shape=(5, 2), steps=3)


def test_known_signals_and_masks_may_be_arrays():
    exact, known, mask = (
        AnalyticGaussian(torch.zeros(2), torch.eye(2), sde.VP()),
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([True, False]),
    )
    seeded = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    expected = Inpainting(Ancestral(exact), known, mask)(shape=(5, 2), steps=3, generator=seeded())
    found = Inpainting(Ancestral(exact), known.numpy(), mask.numpy())(shape=(5, 2), steps=3, generator=seeded())
    assert torch.equal(found, expected)
    denoiser = discrete.Categorical(Copying(), discrete.Absorbing(2, discrete.LogLinearNoise()), head=discrete.carried)
    x = discrete.Infilling(discrete.Ancestral(denoiser), known.long().numpy(), mask.numpy())(shape=(5, 2), steps=3)
    assert (x[:, 0] == 1).all()
