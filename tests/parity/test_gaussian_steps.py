"""Steps, bound terms, guidance and losses of openai/guided-diffusion, for every kind of mean and variance."""

import math

import pytest
import torch
from helpers import Fixture, Formula, Recorded, assert_close, mean_and_variance

from unnoise.continuous import (
    DDIM,
    Ancestral,
    Clipped,
    DenoisingLoss,
    Hybrid,
    Learned,
    OutputError,
    PosteriorMean,
    Tabulated,
    Variational,
    VariationalBound,
    clean,
    cosine_betas,
    large,
    learned_diagonal,
    learned_range,
    linear_betas,
    noise,
    posterior,
    small,
)
from unnoise.shared.gaussian.guidance import ClassifierGradient, ClassifierGuided
from unnoise.shared.quantization import Quantization
from unnoise.shared.tensors import like

FIXTURE = Fixture("gaussian_steps")
READS = (
    "model_out|model_v|x_start|noise|step_noise|cond_grad",
    r"[a-z0-9_]+\.(t|x_t|prior_bpd)",
    r"[a-z0-9_]+\.q_mean_variance\.(mean|variance|log_variance)",
    r"[a-z0-9_]+\.q_posterior\.(mean|variance|log_variance_clipped)",
    r"[a-z0-9_]+\.(EPSILON|START_X|PREVIOUS_X)\.[A-Z_]+\.(no)?clip\.(mean|variance|log_variance|pred_xstart|vb_terms_bpd|p_sample)",
    r"[a-z0-9_]+\.(EPSILON|START_X)\.(no)?clip\.(ddim_eta(0|0\.5|1)|ddim_reverse)",
    r"[a-z0-9_]+\.(EPSILON|START_X)\.ddim_eta0\.5_with_cond_score(\.pred_xstart)?",
    r"[a-z0-9_]+\.(EPSILON|START_X)\.LEARNED_RANGE\.p_sample_with_cond_mean",
    r"[a-z0-9_]+\.(EPSILON|START_X)\.LEARNED_RANGE\.training_losses\.(RESCALED_)?(KL\.loss|MSE\.(loss|mse|vb))",
)
SCHEDULES = {
    name: Tabulated(betas)
    for name, betas in (
        ("linear_1000", linear_betas(1000)),
        ("cosine_1000", cosine_betas(1000)),
        ("cosine_4000", cosine_betas(4000)),
    )
}
MEANS = {"EPSILON": lambda schedule: noise, "START_X": lambda schedule: clean, "PREVIOUS_X": PosteriorMean}
VARIANCES = {"FIXED_SMALL": small, "FIXED_LARGE": large, "LEARNED": learned_diagonal, "LEARNED_RANGE": learned_range}
OUT, V, X0, NOISE, Z, GRADIENT = (
    FIXTURE[k] for k in ("model_out", "model_v", "x_start", "noise", "step_noise", "cond_grad")
)
KINDS = sorted({tuple(k.split(".")[1:3]) for k in FIXTURE.names() if k.endswith(".p_sample")})
DIMS = 48


@pytest.fixture(params=SCHEDULES)
def name(request):
    return request.param


def times(name):
    steps = SCHEDULES[name].steps
    n = FIXTURE[f"{name}.t"].long() + 1
    return n.double() / steps, (n - 1).double() / steps


def denoiser(name, mean_kind, clip, *, only=None, learned=False, schedule=None):
    rows = slice(None) if only is None else slice(only, only + 1)
    schedule = schedule or SCHEDULES[name]
    network = Formula(lambda x, time: torch.cat([OUT, V], dim=1)[rows] if learned else OUT[rows])
    network.outputs, network.conditions = 1 + learned, ()
    inner = Learned(network, schedule, MEANS[mean_kind](SCHEDULES[name]))
    return Clipped(inner) if clip else inner


def close(actual, key, clip=True):
    assert_close(actual, FIXTURE[key], 1e-10 if clip or "linear" in key else 1e-8)


def test_every_kind_is_tested():
    assert len(KINDS) == 9


def test_forward_process(name):
    schedule, (t, s) = SCHEDULES[name], times(name)
    x_t = schedule.corrupt(X0, t, generator=Recorded(NOISE))
    close(x_t, f"{name}.x_t")
    alpha, sigma = schedule(t)
    whole = FIXTURE[f"{name}.q_mean_variance.variance"]
    close(like(alpha, X0) * X0, f"{name}.q_mean_variance.mean")
    close(like(sigma**2, X0).expand_as(whole), f"{name}.q_mean_variance.variance")
    close(like((sigma**2).log(), X0).expand_as(whole), f"{name}.q_mean_variance.log_variance")
    mean, variance = posterior(schedule, x_t, X0, t, s)
    close(mean, f"{name}.q_posterior.mean")
    close(like(variance, X0).expand_as(whole), f"{name}.q_posterior.variance")
    close(like(small(schedule, t, s).log(), X0).expand_as(whole), f"{name}.q_posterior.log_variance_clipped")
    bound = VariationalBound(denoiser(name, "EPSILON", False), Quantization(256))
    # At the end of the cosine table the reference's own formula cancels (it is 3e-9 off the closed form below), hence
    # the tolerance there.
    prior = bound.prior(X0) / (DIMS * math.log(2))
    # The reference codes x_T with N(0, I), this package with N(0, sigma_T^2), from which sampling starts.
    alpha2 = schedule.alphas_cumprod[-1]
    published = 0.5 * (alpha2 * X0**2 - alpha2 - torch.log1p(-alpha2)).mean(dim=(1, 2, 3)) / math.log(2)
    assert_close(published, FIXTURE[f"{name}.prior_bpd"], 1e-10 if "linear" in name else 1e-8)
    assert_close(prior, 0.5 * (alpha2 / (1 - alpha2) * X0**2).mean(dim=(1, 2, 3)) / math.log(2), 1e-9)
    assert float((prior - published).abs().max()) < alpha2**2


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("mean_kind", "kind"), KINDS)
def test_reverse_step_and_bound_terms(name, mean_kind, kind, clip):
    key, learned = f"{name}.{mean_kind}.{kind}.{'clip' if clip else 'noclip'}", kind.startswith("LEARNED")
    (t, s), schedule, x_t, variance = times(name), SCHEDULES[name], FIXTURE[f"{name}.x_t"], VARIANCES[kind]
    close(denoiser(name, mean_kind, clip, learned=learned)(x_t, t), f"{key}.pred_xstart", clip)
    # Where the network predicts the mean, the reference clips x_0 in its output only, and steps to the predicted mean.
    clip_step = clip and mean_kind != "PREVIOUS_X"
    model = denoiser(name, mean_kind, clip_step, learned=learned)
    x0, v = mean_and_variance(model, x_t, t)
    close(posterior(schedule, x_t, x0, t, s)[0], f"{key}.mean", clip_step)
    own = like(variance(schedule, t, s, v), x_t).expand_as(x_t)
    # In the last step the reference uses the log-variance; its variances have the posterior's 0 or beta_1 there.
    first = like(s == 0, x_t) & kind.startswith("FIXED")
    close(own.log(), f"{key}.log_variance", clip)
    listed = FIXTURE[f"{key}.variance"]
    assert_close(torch.where(first, listed, own), listed, 1e-10)
    bound = VariationalBound(model, Quantization(256), variance=variance, tanh=True)
    terms = bound.term(X0, t, generator=Recorded(NOISE)) / (DIMS * math.log(2))
    close(terms, f"{key}.vb_terms_bpd", clip_step)
    samples = []
    for i in range(len(t)):  # one at a time, since a sampler's times are scalars
        sampler = Ancestral(denoiser(name, mean_kind, clip_step, only=i, learned=learned), variance)
        samples.append(sampler.step(x_t[i : i + 1], t[i], s[i], generator=Recorded(Z[i : i + 1])))
        alone = VariationalBound(sampler.denoiser, Quantization(256), variance=variance, tanh=True)
        term = alone.term(X0[i : i + 1], t[i], generator=Recorded(NOISE[i : i + 1])) / (DIMS * math.log(2))
        torch.testing.assert_close(term[0], terms[i], rtol=1e-12, atol=1e-14)
    close(torch.cat(samples), f"{key}.p_sample", clip_step)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", ["0", "0.5", "1"])
@pytest.mark.parametrize("mean_kind", ["EPSILON", "START_X"])
def test_ddim(name, mean_kind, eta, clip):
    (t, s), x_t = times(name), FIXTURE[f"{name}.x_t"]
    steps = []
    for i in range(len(t)):
        sampler = DDIM(denoiser(name, mean_kind, clip, only=i), float(eta))
        steps.append(sampler.step(x_t[i : i + 1], t[i], s[i], generator=Recorded(Z[i : i + 1])))
    close(torch.cat(steps), f"{name}.{mean_kind}.{'clip' if clip else 'noclip'}.ddim_eta{eta}", clip)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("mean_kind", ["EPSILON", "START_X"])
def test_ddim_upward(name, mean_kind, clip):
    """The reference's table continues to alpha-bar = 0; here the last step up goes to a longer table with that end."""
    t, x_t, key = (
        times(name)[0],
        FIXTURE[f"{name}.x_t"],
        f"{name}.{mean_kind}.{'clip' if clip else 'noclip'}.ddim_reverse",
    )
    schedule, up = SCHEDULES[name], []
    longer = Tabulated(torch.cat([schedule.betas, torch.ones(1)]))
    for i, n in enumerate(t * schedule.steps):
        model = denoiser(name, mean_kind, clip, only=i)
        x, x0 = x_t[i : i + 1], model(x_t[i : i + 1], t[i])
        if n < schedule.steps:
            up.append(DDIM(model).step(x, t[i], (n + 1) / schedule.steps))
        else:
            alpha, sigma = longer(torch.ones((), dtype=torch.float64))
            assert (alpha, sigma) == (0, 1)
            up.append((x - schedule(t[i])[0] * x0) / schedule(t[i])[1])
    close(torch.cat(up), key, clip)


class Constant(torch.nn.Module):
    """A classifier with a given gradient for every class."""

    def __init__(self, gradient):
        super().__init__()
        self.gradient = gradient

    def forward(self, x, t):
        return (self.gradient * x).flatten(1).sum(1, keepdim=True).expand(-1, 2)

    def on(self, schedule):
        return self


@pytest.mark.parametrize("mean_kind", ["EPSILON", "START_X"])
def test_classifier_guidance(name, mean_kind):
    (t, s), x_t, label = times(name), FIXTURE[f"{name}.x_t"], torch.ones(1, dtype=torch.int64)
    x0, ddim, ancestral = [], [], []
    for i in range(len(t)):
        classifier = Constant(GRADIENT[i : i + 1])
        guided = ClassifierGuided(denoiser(name, mean_kind, True, only=i), classifier)
        here = {"x": x_t[i : i + 1], "t": t[i], "s": s[i]}
        x0.append(guided(here["x"], t[i], label=label))
        ddim.append(DDIM(guided, 0.5).step(**here, generator=Recorded(Z[i : i + 1]), label=label))
        inner = denoiser(name, mean_kind, True, only=i, learned=True)
        sampler = Ancestral(inner, learned_range, gradient=ClassifierGradient(classifier))
        ancestral.append(sampler.step(**here, generator=Recorded(Z[i : i + 1]), label=label))
    close(torch.cat(x0), f"{name}.{mean_kind}.ddim_eta0.5_with_cond_score.pred_xstart")
    close(torch.cat(ddim), f"{name}.{mean_kind}.ddim_eta0.5_with_cond_score")
    close(torch.cat(ancestral), f"{name}.{mean_kind}.LEARNED_RANGE.p_sample_with_cond_mean")


@pytest.mark.parametrize("mean_kind", ["EPSILON", "START_X"])
def test_training_losses(name, mean_kind):
    (t, _), scale, key = times(name), Quantization(256), f"{name}.{mean_kind}.LEARNED_RANGE.training_losses"
    steps, model, plain = (
        SCHEDULES[name].steps,
        denoiser(name, mean_kind, False, learned=True),
        OutputError(MEANS[mean_kind](None)),
    )

    def close(actual, part):
        assert_close(actual, FIXTURE[f"{key}.{part}"], 1e-10 if "linear" in name else 1e-8)

    def loss(objective):
        return objective.at(X0, t, generator=Recorded(NOISE))

    unscaled = loss(Hybrid(model, scale, vlb=1 / steps, weight=plain, tanh=True))
    close(unscaled.total, "MSE.loss")
    close(unscaled.parts["mse"], "MSE.mse")
    close(unscaled.parts["bits_per_dim"] / steps, "MSE.vb")
    rescaled = loss(Hybrid(model, scale, vlb=0.001, weight=plain, tanh=True))
    close(rescaled.total, "RESCALED_MSE.loss")
    close(rescaled.parts["mse"], "RESCALED_MSE.mse")
    close(0.001 * rescaled.parts["bits_per_dim"], "RESCALED_MSE.vb")
    pure = loss(Variational(model, scale, learned_range, tanh=True))
    close(pure.total / steps, "KL.loss")
    close(pure.total, "RESCALED_KL.loss")


def test_simple_loss_is_the_mean_squared_error_of_the_noise(name):
    (t, _), model = times(name), denoiser(name, "EPSILON", False)
    loss = DenoisingLoss.simple(model, times=lambda batch, generator: t - 0.5 / model.corruption.steps)(
        X0, generator=Recorded(NOISE)
    )
    expected = ((OUT - NOISE) ** 2).mean(dim=(1, 2, 3))
    assert torch.allclose(loss.t, t)
    torch.testing.assert_close(loss.total.double(), expected, rtol=1e-5, atol=0)
