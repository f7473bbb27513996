"""Guidance and conditioning: exact on mixtures, where Bayes' rule is known."""

import math

import pytest
import torch
from helpers import Formula, Recording, mean_and_variance, tweedie
from scipy import stats

from unnoise import sde
from unnoise.continuous import (
    DDIM,
    Ancestral,
    Clipped,
    Cosine,
    DenoisingLoss,
    DPMSolverPP,
    Learned,
    Tabulated,
    UniPC,
    linear_betas,
    small,
    zero_terminal,
)
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian, AnalyticMixture
from unnoise.shared.gaussian.guidance import (
    ClassifierFree,
    ClassifierGradient,
    ClassifierGuided,
    ClassifierLoss,
    ConditionDropout,
    NoisyClassifier,
)
from unnoise.shared.gaussian.prediction import velocity
from unnoise.shared.networks import MLP
from unnoise.shared.sampler import counted
from unnoise.shared.training import Trainer, Training

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[-0.9, 0.0], [0.5, 0.6], [0.8, -0.5]], dtype=torch.float64)
VARIANCES = torch.tensor([0.04, 0.06, 0.1], dtype=torch.float64)
SCHEDULES = {"table": lambda: Tabulated(linear_betas(1000)), "cosine": Cosine, "vp": sde.VP, "ve": sde.VE}


def mixture(schedule):
    return AnalyticMixture(WEIGHTS, MEANS, VARIANCES, schedule)


class Perfect(torch.nn.Module):
    """The exact classifier of the mixture."""

    def __init__(self, schedule):
        super().__init__()
        self.oracle = mixture(schedule)

    def forward(self, x, t):
        return self.oracle.log_label(x, t)

    def on(self, schedule):
        return Perfect(schedule)


def states(schedule, t, generator):
    label = torch.arange(9) % 3
    x0 = MEANS[label] + VARIANCES[label, None].sqrt() * torch.randn(9, 2, dtype=torch.float64, generator=generator)
    return schedule.corrupt(x0, t, generator=generator), label


# ---- classifier guidance


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("t", [0.02, 0.3, 0.9])
def test_a_perfect_classifier_turns_the_denoiser_into_the_conditional_one(name, t, generator):
    schedule = SCHEDULES[name]()
    t, oracle = torch.tensor(t, dtype=torch.float64), mixture(schedule)
    guided = ClassifierGuided(unlabeled(schedule), Perfect(schedule))
    x, label = states(schedule, t, generator)
    torch.testing.assert_close(guided(x, t, label=label), oracle(x, t, label=label))
    torch.testing.assert_close(
        guided.score(x, t, label=label), tweedie(guided, x, t, label=label), rtol=1e-6, atol=1e-6
    )


def unlabeled(schedule):
    """The mixture as a model without labels."""
    oracle = mixture(schedule)
    oracle.conditions = ()
    return oracle


SAMPLERS = {
    "ddim": lambda d: DDIM(d),
    "dpm-solver++": DPMSolverPP,
    "unipc": UniPC,
    "ancestral": lambda d: Ancestral(d, small),
    "flow": sde.ProbabilityFlow,
    "euler-maruyama": sde.EulerMaruyama,
    "reverse-diffusion": sde.ReverseDiffusion,
}


@pytest.mark.parametrize("sampler", [*SAMPLERS, "ancestral form"])
def test_every_sampler_takes_a_guided_denoiser(sampler, generator):
    """With an exact classifier the samples are those of the chosen component, in the ancestral form too."""
    schedule = Tabulated(linear_betas(1000)) if sampler not in ("flow", "euler-maruyama") else sde.VP()
    oracle, classifier = unlabeled(schedule), Perfect(schedule)
    if sampler == "ancestral form":
        made = Ancestral(oracle, small, gradient=ClassifierGradient(classifier))
    else:
        made = SAMPLERS[sampler](ClassifierGuided(oracle, classifier))
    label = torch.full((2000,), 1)
    x = made(schedule.prior((2000, 2), generator=generator).double(), steps=200, generator=generator, label=label)
    for axis in range(2):
        expected = stats.norm(float(MEANS[1, axis]), float(VARIANCES[1].sqrt()))
        assert stats.kstest(x[:, axis].numpy(), expected.cdf).statistic < 0.05


def test_a_conditional_model_may_be_guided_by_a_classifier_too(generator):
    schedule = sde.VP()
    t = torch.tensor(0.4, dtype=torch.float64)
    x, label = states(schedule, t, generator)
    guided = ClassifierGuided(mixture(schedule), Perfect(schedule), scale=2.0)
    gradient = ClassifierGradient(Perfect(schedule), 2.0)(x, t, label=label)
    expected = mixture(schedule).score(x, t, label=label) + gradient
    torch.testing.assert_close(guided.score(x, t, label=label), expected)


def test_the_gradient_is_of_each_example_by_itself(generator):
    schedule = sde.VP()
    t = torch.tensor(0.4, dtype=torch.float64)
    x, label = states(schedule, t, generator)
    gradient = ClassifierGradient(Perfect(schedule), 3.0)
    whole = gradient(x, t, label=label)
    torch.testing.assert_close(gradient(x[4:6], t, label=label[4:6]), whole[4:6])
    h = 1e-6
    bumped = [
        (Perfect(schedule)(x + h * e, t) - Perfect(schedule)(x - h * e, t)) / (2 * h)
        for e in torch.eye(2, dtype=torch.float64)
    ]
    by_hand = 3.0 * torch.stack(bumped, -1)[torch.arange(9), label]
    torch.testing.assert_close(whole, by_hand, rtol=1e-5, atol=1e-6)


class TwoLayers(torch.nn.Module):
    """A classifier of vectors and times."""

    def __init__(self):
        super().__init__()
        self.body = MLP(2, 32, 2, outputs=2)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x, time):
        return self.head(self.body(x, time))


def test_the_noisy_classifier_learns_bayes_rule(generator):
    """Trained on noisy draws of the mixture, it comes close to the best cross-entropy that there is.

    On VE it is the same classifier.
    """
    torch.manual_seed(0)
    schedule = sde.VP()
    classifier = NoisyClassifier(TwoLayers(), schedule)

    def batches():
        source = torch.Generator().manual_seed(1)
        while True:
            label = torch.multinomial(WEIGHTS, 256, replacement=True, generator=source)
            x0 = MEANS[label] + VARIANCES[label, None].sqrt() * torch.randn(
                256, 2, dtype=torch.float64, generator=source
            )
            yield {"x0": x0.float(), "label": label}

    config = Training(steps=400, learning_rate=5e-3, warmup=20, cooldown=200, ema=0.9)
    trained = Trainer(ClassifierLoss(classifier), config).fit(batches()).denoiser
    t = torch.rand(4000, dtype=torch.float64, generator=generator)
    label = torch.multinomial(WEIGHTS, 4000, replacement=True, generator=generator)
    x0 = MEANS[label] + VARIANCES[label, None].sqrt() * torch.randn(4000, 2, dtype=torch.float64, generator=generator)
    x = schedule.corrupt(x0, t, generator=generator)
    best = -mixture(schedule).log_label(x, t)[torch.arange(4000), label].mean()
    reached = -trained(x.float(), t)[torch.arange(4000), label].mean()
    assert float(best) - 0.01 < float(reached) < float(best) + 0.04
    ve, home = sde.VE(), torch.tensor(0.3, dtype=torch.float64)
    there = ve.time(schedule.log_snr(home))
    moved = trained.on(ve)(x.float() / schedule(home)[0].float(), there)
    torch.testing.assert_close(moved, trained(x.float(), home), rtol=1e-3, atol=1e-3)


# ---- classifier-free guidance


def test_classifier_free_is_the_published_combination(generator):
    schedule, oracle = sde.VP(), mixture(sde.VP())
    t = torch.tensor(0.5, dtype=torch.float64)
    x, label = states(schedule, t, generator)
    alpha, sigma = schedule(t)

    def noise(denoiser, **cond):
        return (x - alpha * denoiser(x, t, **cond)) / sigma

    guided = ClassifierFree(oracle, w=1.5)
    torch.testing.assert_close(noise(guided, label=label), 2.5 * noise(oracle, label=label) - 1.5 * noise(oracle))
    torch.testing.assert_close(
        guided.score(x, t, label=label), 2.5 * oracle.score(x, t, label=label) - 1.5 * oracle.score(x, t)
    )
    torch.testing.assert_close(ClassifierFree(oracle, 0.0)(x, t, label=label), oracle(x, t, label=label))
    # s of other codes: unconditional + s (conditional - unconditional), s = 1 + w.
    unconditional = oracle(x, t)
    torch.testing.assert_close(
        guided(x, t, label=label), unconditional + (1 + 1.5) * (oracle(x, t, label=label) - unconditional)
    )
    there = sde.VE().time(schedule.log_snr(t))
    torch.testing.assert_close(
        guided.on(sde.VE())(x / alpha, there, label=label), guided(x, t, label=label), rtol=1e-6, atol=1e-6
    )
    rows = torch.full((9,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(guided(x, rows, label=label), guided(x, t, label=label))


def test_both_guidances_together(generator):
    """Classifier-free guidance of a model that a classifier guides: both act."""
    schedule = sde.VP()
    model = Learned(MLP(2, 8, 1, classes=3), schedule)
    torch.nn.init.normal_(model.network.leave.weight)
    classifier = NoisyClassifier(TwoLayers(), schedule)
    classifier.network.conditions = ()
    t = torch.tensor(0.5, dtype=torch.float64)
    x, label = torch.randn(4, 2, generator=generator), torch.tensor([0, 1, 2, 0])
    both = ClassifierGuided(ClassifierFree(model, 1.0), classifier)(x, t, label=label)
    alpha, sigma = schedule(t)
    gradient = ClassifierGradient(classifier)(x, t, label=label)
    torch.testing.assert_close(both, ClassifierFree(model, 1.0)(x, t, label=label) + float(sigma**2 / alpha) * gradient)
    ClassifierFree(ClassifierGuided(model, classifier), 1.0)  # the classifier's network needs no null


def test_guidance_at_w_minus_one_is_no_condition(generator):
    oracle, t = mixture(sde.VP()), torch.tensor(0.5, dtype=torch.float64)
    x, label = states(sde.VP(), t, generator)
    torch.testing.assert_close(ClassifierFree(oracle, -1.0)(x, t, label=label), oracle(x, t))


def test_guidance_interval_and_its_cost():
    network = MLP(2, 8, 1, classes=3)
    torch.nn.init.normal_(network.leave.weight)
    model = Learned(network, Tabulated(linear_betas(100)))
    guided, label = ClassifierFree(model, 2.0, low=0.3, high=0.7), torch.tensor([0, 1, 2])
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for t, acts in ((0.2, False), (0.3, False), (0.31, True), (0.7, True), (0.71, False)):
        time = torch.tensor(t, dtype=torch.float64)
        with counted(guided) as count:
            out = guided(x, time, label=label)
        assert count.calls == 1 + acts
        assert torch.equal(out, model(x, time, label=label)) != acts
    with counted(guided) as count:
        DDIM(guided)(shape=(3, 2), steps=10, label=label)
    assert count.calls == 14  # rows 34, 45, 56 and 67 of the grid lie inside
    every = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    rows = guided(x, every, label=label)
    for i in range(3):
        torch.testing.assert_close(rows[i : i + 1], guided(x[i : i + 1], every[i], label=label[i : i + 1]))


def test_rescaled_guidance_has_the_conditional_spread(generator):
    oracle, t = mixture(sde.VP()), torch.tensor(0.5, dtype=torch.float64)
    x, label = states(sde.VP(), t, generator)
    plain, wanted = ClassifierFree(oracle, 4.0)(x, t, label=label), oracle(x, t, label=label)
    full = ClassifierFree(oracle, 4.0, rescale=1.0)(x, t, label=label)
    torch.testing.assert_close(full.std(1), wanted.std(1))
    part = ClassifierFree(oracle, 4.0, rescale=0.7)
    torch.testing.assert_close(part(x, t, label=label), 0.7 * full + 0.3 * plain)
    torch.testing.assert_close(part.score(x, t, label=label), tweedie(part, x, t, label=label))


def test_the_variance_is_that_of_the_conditional_half():
    network = MLP(2, 8, 1, classes=3, outputs=2)
    torch.nn.init.normal_(network.leave.weight)
    model, x, label = Learned(network, sde.VP()), torch.randn(3, 2), torch.tensor([0, 1, 2])
    t = torch.tensor(0.5, dtype=torch.float64)
    for guided in (ClassifierFree(model, 3.0), Clipped(ClassifierFree(model, 3.0))):
        _, v = mean_and_variance(guided, x, t, label=label)
        torch.testing.assert_close(v, mean_and_variance(model, x, t, label=label)[1])


def test_the_likelihood_of_a_guided_model_is_that_of_the_conditional_distribution(generator):
    """A perfect classifier's gradient has a divergence, which a likelihood counts."""
    schedule = sde.VP()
    label = torch.arange(12) % 3
    x0 = MEANS[label] + VARIANCES[label, None].sqrt() * torch.randn(12, 2, dtype=torch.float64, generator=generator)
    guided = ClassifierGuided(unlabeled(schedule), Perfect(schedule))
    nats = sde.ChangeOfVariables(guided, trace=sde.ExactTrace())(x0, label=label).nats
    variance = VARIANCES[label]
    exact = 0.5 * ((x0 - MEANS[label]) ** 2).sum(1) / variance + torch.log(2 * math.pi * variance)
    assert float((nats - exact).abs().mean()) < 0.01


def test_the_classifier_is_read_on_the_denoisers_schedule(generator):
    t = torch.tensor(0.4, dtype=torch.float64)
    x, label = states(sde.VE(), t, generator)
    guided = ClassifierGuided(unlabeled(sde.VE()), Perfect(sde.VP()))
    torch.testing.assert_close(guided(x, t, label=label), mixture(sde.VE())(x, t, label=label))
    table = Tabulated(linear_betas(100))
    moved = Ancestral(unlabeled(table), small, gradient=ClassifierGradient(Perfect(sde.VP())))
    home = Ancestral(unlabeled(table), small, gradient=ClassifierGradient(Perfect(table)))
    x, label = states(table, t, generator)
    for a, b in zip(
        moved.distribution(x, t, t / 2, label=label), home.distribution(x, t, t / 2, label=label), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_the_interval_is_one_of_noise_levels():
    model = Learned(MLP(2, 8, 1, classes=3), sde.VP())
    moved = ClassifierFree(model, 1.0, low=0.3, high=0.6).on(sde.VE())
    for before, after in ((0.3, moved.low), (0.6, moved.high)):
        levels = [s.log_snr(torch.tensor(v, dtype=torch.float64)) for s, v in ((sde.VP(), before), (sde.VE(), after))]
        torch.testing.assert_close(*levels)
    assert ClassifierFree(model, 1.0).on(sde.VE()).high == 1.0


def test_wrong_guidance_is_refused_when_built():
    plain = Learned(MLP(2), sde.VP())
    labeled = Learned(MLP(2, classes=3), sde.VP())
    to_zero = Tabulated(zero_terminal(linear_betas(100)))
    t = torch.tensor(0.5)
    for make, words in (
        (
            lambda: ClassifierFree(plain, 1.0),
            "guidance by label needs a denoiser that takes it, but this one takes none",
        ),
        (lambda: ClassifierFree(Clipped(plain), 1.0), "needs a denoiser that takes it"),
        (lambda: ClassifierFree(labeled, 1.0, condition="tokens"), "this one takes label"),
        (
            lambda: ClassifierFree(AnalyticGaussian(torch.zeros(1), torch.eye(1), sde.VP()), 1.0)(torch.zeros(1, 1), t),
            "give label=",
        ),
        (lambda: ClassifierFree(Learned(Recording(), sde.VP()), 1.0), "does not define what stands for no label"),
        (lambda: ClassifierFree(labeled, 1.0, null="none"), "null='none': give what stands for no label"),
        (
            lambda: labeled(torch.zeros(1, 2), t, label=torch.tensor([4])),
            "label out of range: this network has classes 0 to 2, and 3 for no label",
        ),
        (lambda: labeled(torch.zeros(1, 2), t, label=1), "label=1: give an int64 tensor"),
        (lambda: sde.EulerMaruyama(Learned(MLP(2), to_zero, velocity)), "zero SNR"),
        (lambda: DDIM(plain)(shape=(1, 2), steps="ddim10"), "steps='ddim10': give a whole number"),
        (lambda: DDIM(plain)(shape=(1, 2), steps=2, generator=0), "generator=0: give torch.Generator"),
        (lambda: ClassifierFree(labeled, 1.0, low=0.5, high=0.5), "give 0 <= low < high <= 1"),
        (
            lambda: ClassifierFree(labeled, 1.0)(torch.zeros(1, 2), t),
            "guidance needs the condition label: give label=",
        ),
        (lambda: ClassifierGuided(Learned(MLP(2), to_zero, velocity), Perfect(to_zero)), "zero SNR"),
        (lambda: ClassifierGradient(Perfect(sde.VP()))(torch.zeros(1, 2), t), "give label=..., one for each sample"),
        (lambda: ConditionDropout(DenoisingLoss.simple(plain)), "needs a denoiser that takes it"),
        (lambda: ConditionDropout(DenoisingLoss.simple(labeled), p=1.0), "p=1.0: give the share"),
        (
            lambda: ConditionDropout(DenoisingLoss.simple(Learned(Formula(None), sde.VP()))),
            "does not define what stands for no label",
        ),
        (
            lambda: ConditionDropout(DenoisingLoss.simple(labeled))(torch.zeros(1, 2)),
            "the batch has no label, which is dropped",
        ),
        (
            lambda: ClassifierLoss(NoisyClassifier(TwoLayers(), sde.VP()))(torch.zeros(1, 2)),
            "the batch has no label, which a classifier is trained on",
        ),
    ):
        with pytest.raises(UsageError, match=words) as error:
            make()
        assert "\n" not in str(error.value)
