"""Guidance and truncation of tokens, held to formulas and enumerated distributions."""

import itertools

import pytest
import torch
from enumeration import JOINT, ONE, Both, JointOracle, at_time, pairs, walk
from torch import Tensor, nn

from unnoise.discrete import (
    Absorbing,
    Ancestral,
    Categorical,
    ClassifierFree,
    ClassifierGuided,
    D3PMLoss,
    Euler,
    FirstHitting,
    LogLinearNoise,
    ScoreEntropyDenoiser,
    Temperature,
    TopP,
    Uniform,
    Unmasking,
    carried,
    cosine,
    every_neighbor,
    first_order,
    reverse_rates,
)
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.guidance import ConditionDropout
from unnoise.shared.networks import UNet
from unnoise.shared.random import categorical
from unnoise.shared.sampler import counted

SECOND = torch.tensor([[0.02, 0.20, 0.10], [0.15, 0.05, 0.03], [0.25, 0.05, 0.15]], dtype=torch.float64)


class OfLabel(nn.Module):
    """A network with a class: another table for each of two, and for none."""

    conditions = ("label",)

    def __init__(self, states: int, levels: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(Both(states, levels, seed) for seed in range(3))

    def null(self, condition: str) -> Tensor:
        return torch.tensor(2)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        label = torch.full((len(x),), 2) if label is None else label
        return torch.stack([each(x, time) for each in self.each])[label, torch.arange(len(x))]


def conditional(transition, **settings) -> Categorical:
    return Categorical(OfLabel(transition.states, transition.states), transition, **settings)


LABEL = torch.arange(16) % 2


# ---- classifier-free guidance


def test_no_guidance_is_the_denoiser_itself():
    denoiser = conditional(Absorbing(3, LogLinearNoise()), head=carried)
    guided, x, t = ClassifierFree(denoiser, 0.0), pairs(4), ONE * 0.6
    assert torch.equal(guided(x, t, label=LABEL), denoiser(x, t, label=LABEL))
    with counted(guided) as evaluations:
        guided(x, t, label=LABEL)
        assert evaluations.calls == 1
        ClassifierFree(denoiser, 1.0)(x, t, label=LABEL)
    assert evaluations.calls == 3


@pytest.mark.parametrize("w", [-0.5, 0.7, 3.0])
@pytest.mark.parametrize("null", [None, 2, torch.tensor(2)])
def test_guidance_is_a_product_of_powers(w, null):
    denoiser, x, t = conditional(Uniform(4, LogLinearNoise())), pairs(4), ONE * 0.6
    ours = ClassifierFree(denoiser, w, null=null)(x, t, label=LABEL).exp()
    given, free = denoiser(x, t, label=LABEL).exp(), denoiser(x, t).exp()
    product = given ** (1 + w) / free**w
    torch.testing.assert_close(ours, product / product.sum(-1, keepdim=True), rtol=1e-9, atol=1e-12)


def test_a_carried_symbol_stays_under_guidance(generator):
    denoiser = conditional(Absorbing(3, LogLinearNoise()), head=carried)
    guided = ClassifierFree(denoiser, 2.0)
    p = guided(torch.tensor([[1, 3]]), ONE * 0.5, label=LABEL[:1]).exp()
    torch.testing.assert_close(p[0, 0], torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=p.dtype))
    assert torch.isfinite(p).all()
    assert int(Unmasking(guided)(shape=(16, 2), steps=4, generator=generator, label=LABEL).max()) < 3


def test_an_impossible_symbol_stays_impossible():
    logits = torch.tensor([[0.0, -torch.inf, 1.0], [0.0, 1.0, -torch.inf]], dtype=torch.float64)

    class Sure(nn.Module):
        def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
            return logits[label][:, None].expand(len(x), 2, 3)

    denoiser = Categorical(Sure(), Uniform(3, LogLinearNoise()))
    p = ClassifierFree(denoiser, 1.5, null=1)(torch.tensor([[0, 1]]), ONE, label=torch.tensor([0])).exp()
    assert float(p[0, 0, 1]) == 0
    assert float(p[0, 0, 2]) > 0.99
    assert torch.isfinite(p).all()


def test_other_conditions_go_to_both_halves(generator):
    class Two(nn.Module):
        conditions = ("label", "extra")

        def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
            seen.append((label is not None, extra is not None))
            return torch.zeros(*x.shape, 3)

        def null(self, condition: str) -> Tensor:
            return torch.tensor(0)

    seen: list[tuple[bool, bool]] = []
    guided = ClassifierFree(Categorical(Two(), Uniform(3, LogLinearNoise())), 1.0)
    Ancestral(guided)(shape=(2, 2), steps=1, generator=generator, label=LABEL[:2], extra=LABEL[:2])
    assert seen == [(True, True), (False, True)]


def test_dropout_trains_for_it(generator):
    denoiser = conditional(Uniform(4, cosine(5)))
    objective = ConditionDropout(D3PMLoss(denoiser), p=0.5)
    seen = []
    denoiser.network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["label"]), with_kwargs=True
    )
    loss = objective(torch.zeros(16, 2, dtype=torch.int64), generator=generator, label=LABEL)
    dropped = seen[0] == 2
    assert 0 < int(dropped.sum()) < 16
    assert torch.equal(seen[0][~dropped], LABEL[~dropped])
    assert torch.isfinite(loss.total).all()


# ---- guidance by a classifier


class Bayes:
    """`log p(c | x_t)` of two classes with their own distributions, for one-hot pairs that may be between tokens."""

    def __init__(self, transition, prior: float = 0.4) -> None:
        self.transition, self.prior = transition, torch.tensor([prior, 1 - prior], dtype=torch.float64)

    def __call__(self, hot: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
        each = (
            torch.stack([at_time(self.transition, distribution, t) for distribution in (JOINT, SECOND)])
            * self.prior[:, None, None]
        )
        hot = hot.double()
        both = torch.einsum("bi,cij,bj->bc", hot[:, 0], each, hot[:, 1]).log().log_softmax(-1)
        return both.gather(1, label[:, None]).squeeze(1)


def mixed() -> Tensor:
    return 0.4 * JOINT + 0.6 * SECOND


@pytest.mark.parametrize(
    "make", [lambda: Uniform(3, LogLinearNoise(eps=0.1)), lambda: Absorbing(3, LogLinearNoise(eps=0.1))]
)
def test_a_perfect_classifier_is_bayes_rule(make):
    """Ratios and rates of the mixture, guided exactly, are those of the class."""
    transition, t = make(), ONE * 0.5
    x = pairs(transition.states)
    guided = ClassifierGuided(JointOracle(mixed(), transition), Bayes(transition), change=every_neighbor)
    for label, distribution in enumerate((JOINT, SECOND)):
        of_class = JointOracle(distribution, transition)
        label = torch.full((len(x),), label)
        ours, truth = reverse_rates(guided, x, t, label=label), reverse_rates(of_class, x, t)
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sampler", [lambda d: d.step_distribution, lambda d: Euler(d).distribution])
def test_guided_steps_lead_to_the_distribution_of_the_class(sampler):
    transition = Uniform(3, LogLinearNoise(eps=0.1))
    guided = ClassifierGuided(JointOracle(mixed(), transition), Bayes(transition), change=every_neighbor)
    distribution, errors = sampler(guided), []
    for steps in (64, 128):
        grid = torch.linspace(1, 0.05, steps + 1, dtype=torch.float64)
        end = walk(
            at_time(transition, JOINT, ONE).flatten(),
            lambda x, t, s: distribution(x, t, s, label=torch.zeros(9, dtype=torch.int64)),
            grid,
            3,
        )
        errors.append(float((end - at_time(transition, JOINT, grid[-1]).flatten()).abs().sum()))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)
    assert errors[1] < 0.05


def test_the_first_order_is_exact_where_the_classifier_is_linear():
    weights = torch.randn(2, 4, dtype=torch.float32, generator=torch.Generator().manual_seed(0))

    def linear(hot: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
        return (hot * weights).sum((1, 2)) * (1 + label)

    x, cond = pairs(4), {"label": LABEL}
    both = [change(linear, x, ONE * 0.5, 4, cond) for change in (first_order, every_neighbor)]
    torch.testing.assert_close(both[0], both[1], rtol=1e-5, atol=1e-6)
    expected = (weights - weights.gather(1, x.T)[..., None].permute(1, 0, 2)) * (1 + LABEL)[:, None, None]
    torch.testing.assert_close(both[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: Uniform(4, LogLinearNoise()), lambda: Absorbing(3, LogLinearNoise())])
def test_the_first_order_meets_small_changes(make):
    """A classifier that is flattened to `a log p(c | x)`.

    The two differ by the square of a, in every distribution that they give.
    """
    denoiser = Categorical(Both(4, 4), make())
    net = Both(4, 4, seed=7).table[0, 0, 0]

    def classifier(size: float):
        return lambda hot, t, **cond: torch.sin(size * (hot.double() * net).sum((1, 2))).double()

    gaps = []
    for size in (0.1, 0.05):
        distributions = [
            ClassifierGuided(denoiser, classifier(size), change=change).step_distribution(
                pairs(4), ONE * 0.6, ONE * 0.4
            )
            for change in (first_order, every_neighbor)
        ]
        gaps.append(float((distributions[0] - distributions[1]).abs().max()))
    assert 3 < gaps[0] / gaps[1] < 10
    assert gaps[1] < 1e-3


def test_the_scale_multiplies_and_zero_is_none():
    transition = Uniform(3, LogLinearNoise(eps=0.1))
    denoiser, classifier = JointOracle(mixed(), transition), Bayes(transition)
    x, t, s, label = pairs(3), ONE * 0.6, ONE * 0.4, torch.zeros(9, dtype=torch.int64)
    none = ClassifierGuided(denoiser, classifier, scale=0.0)
    torch.testing.assert_close(none.step_distribution(x, t, s, label=label), denoiser.step_distribution(x, t, s))
    torch.testing.assert_close(none(x, t, label=label), denoiser(x, t))
    change = every_neighbor(classifier, x, t, 3, {"label": label})
    plain, strong = (
        denoiser.step_distribution(x, t, s),
        ClassifierGuided(denoiser, classifier, 2.5, every_neighbor).step_distribution(x, t, s, label=label),
    )
    expected = plain * torch.exp(2.5 * change)
    torch.testing.assert_close(strong, expected / expected.sum(-1, keepdim=True))


def test_a_guided_denoiser_is_a_denoiser(generator):
    """Its divergence is that of its step distribution, and its rate the limit over small steps, 0 at the truth."""
    transition = Uniform(3, LogLinearNoise(eps=0.1))
    x0, x_t, t = pairs(3), pairs(3).flip(0), ONE * 0.5
    guided = ClassifierGuided(JointOracle(mixed(), transition), Bayes(transition), change=every_neighbor)
    label = torch.zeros(9, dtype=torch.int64)
    rate = guided.path_rate(x0, x_t, t, label=label).divergence
    for h in (1e-4, 1e-5):
        kl = guided.divergence(x0, x_t, t, t - h, label=label).divergence
        # The step distribution meets the guided rates as steps become small.
        torch.testing.assert_close(kl / h, rate, rtol=200 * h, atol=200 * h)
    x = Ancestral(guided, last=categorical)(shape=(9, 2), steps=4, generator=generator, label=label)
    assert int(x.max()) < 3


# ---- truncation


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_temperature_is_a_power(temperature):
    denoiser, x, t = Categorical(Both(4, 4), Absorbing(3, LogLinearNoise()), head=carried), pairs(4), ONE * 0.4
    p = denoiser(x, t).exp() ** (1 / temperature)
    torch.testing.assert_close(
        Temperature(denoiser, temperature)(x, t).exp(), p / p.sum(-1, keepdim=True), rtol=1e-9, atol=1e-12
    )
    cold = Temperature(denoiser, 1e-3)(x, t).exp()
    torch.testing.assert_close(cold, nn.functional.one_hot(denoiser(x, t).argmax(-1), 4).double(), rtol=0, atol=1e-6)


def smallest(p: Tensor, mass: float) -> set[int]:
    """The smallest set that holds the mass; of several of one size the heaviest, of equal ones the first."""
    for size in range(1, len(p) + 1):
        sets = [c for c in itertools.combinations(range(len(p)), size) if float(p[list(c)].sum()) >= mass - 1e-12]
        if sets:
            return set(max(sets, key=lambda c: (round(float(p[list(c)].sum()), 10), [-i for i in c])))
    raise AssertionError


@pytest.mark.parametrize("mass", [0.01, 0.5, 0.75, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_set(mass):
    transition = Uniform(4, LogLinearNoise())
    equal = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64)
    steps = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64)
    for denoiser in (
        Categorical(Both(4, 4), transition),
        Categorical(Flat(equal), transition),
        Categorical(Flat(steps), transition),
    ):
        x, t = pairs(4), ONE * 0.4
        p, cut = denoiser(x, t).exp(), TopP(denoiser, mass)(x, t).exp()
        for row, ours in zip(p.view(-1, 4), cut.view(-1, 4), strict=True):
            kept = smallest(row, mass)
            expected = torch.tensor([float(row[k]) if k in kept else 0.0 for k in range(4)], dtype=torch.float64)
            torch.testing.assert_close(ours, expected / expected.sum(), rtol=1e-9, atol=1e-12)
        assert torch.equal(TopP(denoiser, 1)(x, t), denoiser(x, t))


class Flat(nn.Module):
    """The same probabilities everywhere."""

    def __init__(self, p: Tensor) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.p.log().expand(*x.shape, -1)


def test_wrappers_compose_and_sample(generator):
    denoiser = TopP(
        Temperature(ClassifierFree(conditional(Absorbing(3, LogLinearNoise()), head=carried), 1.0), 0.5), 0.8
    )
    for make in (Ancestral, Unmasking, FirstHitting, Euler):
        x = make(denoiser)(shape=(16, 2), steps=4, generator=generator, label=LABEL)
        assert int(x.max()) < 3


def test_bad_wrappers_are_refused_in_one_line():
    transition = Absorbing(3, LogLinearNoise())
    denoiser, labeled = Categorical(Both(4, 4), transition), conditional(transition)
    ratios = ScoreEntropyDenoiser(Both(4, 4), transition)
    for call, words in (
        (lambda: Temperature(denoiser, 0.0), "temperature=0.0"),
        (lambda: Temperature(ratios, 0.5), "Temperature needs logits of x_0, which ScoreEntropyDenoiser does not have"),
        (lambda: TopP(denoiser, 0.0), "p=0.0"),
        (lambda: TopP(denoiser, 1.1), "p=1.1"),
        (lambda: ClassifierFree(denoiser, 1.0), "does not define what stands for no label"),
        (lambda: ClassifierFree(labeled, 1.0, condition="text"), "guidance by text needs a denoiser that takes it"),
        (lambda: ClassifierFree(labeled, -1.0), "w=-1.0: give a strength above -1"),
        (lambda: ClassifierFree(labeled, 1.0, null="none"), "null='none'"),
        (lambda: ClassifierFree(labeled, 1.0)(pairs(4), ONE), "give label="),
    ):
        with pytest.raises(UsageError, match=words):
            call()


def test_a_network_without_a_null_for_the_condition_is_refused():
    class Half(nn.Module):
        """A network with a null for one of its conditions."""

        conditions = ("label", "extra")

        def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
            return torch.zeros(*x.shape, 3)

        def null(self, condition: str) -> Tensor:
            if condition == "extra":
                raise UsageError("nothing stands for no extra")
            return torch.tensor(0)

    denoiser = Categorical(Half(), Uniform(3, LogLinearNoise()))
    assert ClassifierFree(denoiser, 1.0).condition == "label"
    with pytest.raises(UsageError, match="nothing stands for no extra"):
        ClassifierFree(denoiser, 1.0, condition="extra")
    assert ClassifierFree(denoiser, 1.0, condition="extra", null=1).null == 1

    network = UNet((1, 4, 4), 32, (1,), 1, attention=(), classes=3, categories=3, null_label=False)
    with pytest.raises(UsageError, match="label"):
        ClassifierFree(Categorical(network, Uniform(3, LogLinearNoise())), 1.0)
