"""What a run does with a network that is left in training mode, or gives NaN.

It is reported, once, and never becomes a sample.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import Own
from torch import nn

from unnoise import continuous, discrete, sde
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.gaussian.dequantization import VariationalDequantization
from unnoise.shared.gaussian.guidance import ClassifierGradient, NoisyClassifier
from unnoise.shared.quantization import Quantization
from unnoise.shared.sampler import counted

TABLE = continuous.Tabulated(continuous.linear_betas(1000))
X, K = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0)), 5
TOKENS = torch.randint(0, K, (3, 7), generator=torch.Generator().manual_seed(0))
MASKED, UNIFORM = (
    discrete.Absorbing(K, discrete.LogLinearNoise()),
    discrete.Uniform(K, discrete.linear(1000, 1e-4, 0.02)),
)


def logits():
    """A fixed network of tokens."""
    return lambda x, time: F.one_hot(x, K + 1)[..., :K].float()


class Dropping(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, time):
        return self.layer(x) if x.is_floating_point() else self.layer(logits()(x, time))


def notices(ask):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ask()
    return [str(w.message) for w in found if issubclass(w.category, Notice)]


RUNS = {
    "sampler": lambda d: continuous.DDIM(d)(X, steps=2),
    "clipped": lambda d: continuous.DDIM(continuous.Clipped(d))(X, steps=2),
    "bound": lambda d: continuous.VariationalBound(d, Quantization(17), terms=2)(X.clamp(-1, 1)),
    "curve": lambda d: continuous.VariationalBound(
        d.on(continuous.Tabulated(continuous.linear_betas(40))), Quantization(17)
    ).rate_distortion(X.clamp(-1, 1)),
    "density": lambda d: sde.ChangeOfVariables(d.on(sde.VP()), integrator=sde.FixedSteps())(X),
    "encode": lambda d: continuous.encode(d, X, 3),
    "flow": lambda d: sde.ProbabilityFlow(d.on(sde.VP())).encode(X, steps=2),
}


@pytest.mark.parametrize("run", RUNS)
def test_training_mode_is_said_once(run):
    denoiser = continuous.Learned(Dropping(nn.Dropout2d(0.1)), TABLE)
    assert len(notices(lambda: RUNS[run](denoiser))) == 1
    assert notices(lambda: RUNS[run](denoiser)) == []  # once for each network
    assert notices(lambda: RUNS[run](continuous.Learned(Dropping(nn.Dropout2d(0.1)), TABLE).eval())) == []
    assert len(notices(lambda: RUNS[run](continuous.Learned(Dropping(nn.BatchNorm2d(2)), TABLE)))) == 1


def test_training_mode_without_anything_random_is_not_worth_a_word():
    for layer in (nn.Dropout(0.0), nn.Identity(), nn.GroupNorm(1, 2)):
        assert notices(lambda layer=layer: RUNS["sampler"](continuous.Learned(Dropping(layer), TABLE))) == []
    assert (
        notices(lambda: continuous.DenoisingLoss.simple(continuous.Learned(Dropping(nn.Dropout(0.1)), TABLE))(X)) == []
    )  # training is for it
    tokens = discrete.Categorical(Dropping(nn.Dropout(0.1)), UNIFORM)
    assert len(notices(lambda: discrete.Ancestral(tokens)(shape=(3, 7), steps=2))) == 1
    tokens = discrete.Categorical(Dropping(nn.Dropout(0.1)), UNIFORM)
    assert len(notices(lambda: discrete.VariationalBound(tokens, terms=2)(TOKENS))) == 1


def test_classifiers_and_dequantizers_are_networks_too():
    plain = Own(lambda x, time: x)
    plain.conditions = ()
    real = continuous.Learned(plain, TABLE)
    classifier = NoisyClassifier(Dropping(nn.Sequential(nn.Dropout(0.1), nn.Flatten(), nn.Linear(72, 2))), TABLE)
    label = torch.zeros(4, dtype=torch.int64)
    sampler = continuous.Ancestral(real, gradient=ClassifierGradient(classifier))
    assert len(notices(lambda: sampler(X, steps=2, label=label))) == 1
    levels, spread = (
        torch.zeros(4, 2, 6, 6, dtype=torch.int64),
        VariationalDequantization(Quantization(17), Dropping(nn.Dropout2d(0.1))),
    )
    assert (
        len(notices(lambda: sde.ChangeOfVariables(real.on(sde.VP()), spread, integrator=sde.FixedSteps())(levels))) == 1
    )


def test_nan_of_a_network_does_not_become_a_sample():
    nan = continuous.Learned(Own(lambda x, time: x * torch.nan), TABLE)
    with pytest.raises(UsageError, match="the samples contain NaN"):
        continuous.DDIM(nan)(X, steps=2)
    with pytest.raises(UsageError, match="code length is NaN"):
        continuous.VariationalBound(nan, Quantization(17), terms=2)(X.clamp(-1, 1))
    once = iter([True])
    late = discrete.Categorical(
        Own(lambda x, time: logits()(x, time) * (torch.nan if next(once, False) else 1.0)), MASKED
    )
    with pytest.raises(UsageError, match="the network returned NaN, from which no token can be sampled"):
        discrete.Ancestral(late)(shape=(3, 7), steps=4)  # in its first step alone
    bad = Own(lambda x, time: logits()(x, time) * torch.nan)
    masked, uniform = discrete.Categorical(bad, MASKED), discrete.Categorical(bad, UNIFORM)
    for sampler in (
        discrete.Ancestral(masked),
        discrete.Unmasking(masked),
        discrete.FirstHitting(masked),
        discrete.Ancestral(uniform),
    ):
        with pytest.raises(UsageError, match="the network returned NaN"):
            sampler(shape=(3, 7), steps=4)
    assert not bad._forward_hooks
    for denoiser in (masked, uniform):
        with pytest.raises(UsageError, match="code length is NaN"):
            discrete.VariationalBound(denoiser, terms=2)(TOKENS)
    ruled_out = discrete.Categorical(
        Own(lambda x, time: logits()(x, time).fill_(-torch.inf).index_fill_(-1, torch.tensor(0), 0.0)), UNIFORM
    )
    assert discrete.VariationalBound(ruled_out, terms=2)(TOKENS).nats.isinf().any()  # what is impossible is no NaN


def test_evaluations_are_counted_as_before():
    denoiser = continuous.Learned(Own(lambda x, time: x), TABLE)
    with counted(denoiser) as count:
        continuous.DDIM(denoiser)(X, steps=5)
    assert count.calls == 5
