"""Parts of one's own that do not fit: one line with the remedy, before anything is trained or sampled."""

from dataclasses import dataclass

import pytest
import torch

from unnoise import discrete
from unnoise.continuous import (
    DDIM,
    Clipped,
    DenoisingLoss,
    Hybrid,
    Learned,
    MinSNR,
    OutputError,
    Shifted,
    Tabulated,
    Variational,
    VariationalBound,
    clean,
    noise,
    velocity,
)
from unnoise.discrete import Absorbing, Categorical, LogLinearNoise
from unnoise.sde import (
    VP,
    ChangeOfVariables,
    EnergyDenoiser,
    Langevin,
    MaximumLikelihood,
    NoiseLevels,
    Potential,
    ProbabilityFlow,
)
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian import NoisyClassifier, Schedule
from unnoise.shared.networks import MLP, Encoder, Transformer
from unnoise.shared.quantization import Quantization


@dataclass(frozen=True)
class Backwards(Schedule):
    def __call__(self, t):
        return t, (1 - t**2).sqrt()


@dataclass(frozen=True)
class Wave(Schedule):
    def __call__(self, t):
        sigma = 0.5 + 0.4 * torch.sin(9 * t)
        return (1 - sigma**2).sqrt(), sigma


@dataclass(frozen=True)
class Circle(Schedule):
    def __call__(self, t):
        return torch.cos(torch.pi / 2 * t), torch.sin(torch.pi / 2 * t)


@dataclass(frozen=True)
class Broken(Schedule):
    def __call__(self, t):
        return torch.ones_like(t), (t - 0.5).sqrt()


def learned():
    return Learned(MLP(2, 8, 1), VP())


def loss(**parts):
    return DenoisingLoss(learned(), **parts)


def tokens():
    return Categorical(Transformer(5, 4, width=8, depth=1, heads=2, outputs=4), Absorbing(4, LogLinearNoise()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Learned(MLP(2), Backwards()), r"Backwards\(\) has alpha=0.03077, sigma=0.9995 at t=0.0308: .*grow"),
        (lambda: Learned(MLP(2), Wave()), r"Wave\(\) has alpha=0.4\d*, sigma=0.\d* at t=0.1\d*: sigma / alpha must"),
        (lambda: Learned(MLP(2), Broken()), r"Broken\(\) has alpha=1, sigma=nan at t=0.0154: .*finite"),
        (lambda: Learned(MLP(2), Circle(), noise), "zero SNR, where x_1 is pure noise and noise prediction does not"),
        (lambda: Learned(MLP(2), VP), r"schedule is the class VP: give Learned\(network, schedule\)"),
        (lambda: Learned(VP(), MLP(2)), "schedule is a MLP: give Learned"),
        (lambda: Learned(MLP(2), VP(), "velocity"), "predicts='velocity': give the prediction itself, such as noise"),
        (lambda: loss(weight="snr"), r"weight='snr': give a function \(schedule, t\)"),
        (lambda: loss(weight=1.0), r"weight=1.0: give a function \(schedule, t\)"),
        (lambda: loss(weight=lambda schedule, t: 1.0), "the weight returned 1.0: give a function"),
        (
            lambda: loss(times=lambda batch, generator: torch.rand(()))(torch.zeros(3, 2)),
            r"times returned shape \(\) for 3",
        ),
        (
            lambda: DenoisingLoss.simple(MLP(2)),
            "this loss works on a GaussianDenoiser, not on MLP: wrap a network first, as in Learned",
        ),
        (
            lambda: DenoisingLoss.simple(tokens()),
            "this loss works on a GaussianDenoiser, not on Categorical: .* are in unnoise.discrete",
        ),
        (
            lambda: DenoisingLoss.simple(NoisyClassifier(Encoder((1, 8, 8), 3, 8, (1,), 1), VP())),
            "this loss works on a GaussianDenoiser, not on NoisyClassifier",
        ),
        (lambda: learned().on(3), r"schedule=3: give a schedule, such as VP\(\)"),
        (lambda: learned().on(Wave()), r"Wave\(\) has alpha="),
        (lambda: NoisyClassifier(Encoder((1, 8, 8), 3, 8, (1,), 1), Backwards()), r"Backwards\(\) has alpha="),
        (lambda: EnergyDenoiser(Potential(MLP(2)), Backwards()), r"Backwards\(\) has alpha="),
        (lambda: Learned(MLP(2), VP(), time_input="quarter_log"), "time_input='quarter_log': give the function itself"),
        (lambda: MinSNR(-1.0), "gamma=-1.0: give the largest weight, a positive number"),
        (lambda: OutputError("noise"), "predicts='noise': give the prediction itself"),
        (lambda: Shifted(VP, 1.0), "shift=1.0: give a schedule and a number"),
        (lambda: Shifted(VP(), "a"), "shift='a': give a schedule and a number"),
        (lambda: Clipped(learned(), 1.0, -1.0), "low=1.0, high=-1.0: give the ends of the range"),
        (lambda: Tabulated("linear"), "betas='linear': give numbers, as a tensor or a list"),
        (lambda: NoiseLevels({"a": 1}), "sigmas={'a': 1}: give numbers"),
        (lambda: DDIM(MLP(2)), r"DDIM works on a GaussianDenoiser, not on MLP: wrap a network first, as in Learned\("),
        (lambda: DDIM(tokens()), "DDIM works on a GaussianDenoiser, not on Categorical: .*unnoise.discrete"),
        (lambda: DDIM(loss()), "DDIM works on a GaussianDenoiser, not on DenoisingLoss: give its denoiser"),
        (lambda: ProbabilityFlow(tokens()), "ProbabilityFlow works on a GaussianDenoiser, not on Categorical"),
        (lambda: ChangeOfVariables(tokens()), "works on a GaussianDenoiser, not on Categorical"),
        (lambda: Langevin(tokens()), "Langevin works on a GaussianDenoiser, not on Categorical"),
        (lambda: discrete.Ancestral(learned()), "Ancestral works on a CategoricalDenoiser, not on Learned"),
        (lambda: discrete.Unmasking(learned()), "Unmasking works on a CategoricalDenoiser, not on Learned"),
        (lambda: discrete.D3PMLoss(learned()), "D3PMLoss works on a CategoricalDenoiser, not on Learned"),
        (lambda: discrete.ContinuousBound(learned()), "ContinuousBound works on a CategoricalDenoiser, not on Learned"),
        (
            lambda: discrete.VariationalBound(learned()),
            "VariationalBound works on a CategoricalDenoiser, not on Learned",
        ),
        (
            lambda: VariationalBound(tokens(), Quantization(4)),
            "a chain works on a GaussianDenoiser, not on Categorical",
        ),
        (lambda: Variational(tokens(), Quantization(4)), "Variational works on a GaussianDenoiser, not on Categorical"),
        (lambda: Hybrid(MLP(2), Quantization(4)), "Hybrid works on a GaussianDenoiser, not on MLP: wrap a network"),
        (lambda: MaximumLikelihood(tokens()), "this loss works on a GaussianDenoiser, not on Categorical"),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(UsageError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_zero_snr_is_reached_by_predictions_that_determine_x_0():
    for predicts in (velocity, clean):
        assert Learned(MLP(2), Circle(), predicts)(torch.ones(1, 2), torch.tensor(1.0)).isfinite().all()
