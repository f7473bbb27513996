"""Half precision around the network leaves distributions and losses as they are; score entropy in closed form.

What is refused when built.
"""

import pytest
import torch

from unnoise.discrete import (
    Absorbing,
    BandDiagonal,
    Categorical,
    ConstantNoise,
    ContinuousBound,
    CrossEntropy,
    D3PMLoss,
    DiscretizedGaussian,
    ExponentialNoise,
    GaussianTarget,
    GeometricNoise,
    LogLinearNoise,
    Marginal,
    Mixture,
    NearestNeighbor,
    Product,
    ScoreEntropyDenoiser,
    Uniform,
    VariationalBound,
    carried,
    cosine,
    linear,
    mutual_information,
    nearest,
    reciprocal,
)
from unnoise.discrete.transition.generic import score_entropy
from unnoise.shared.errors import UsageError

K, T = 6, 10
NEAR = nearest(torch.randn(K, 3, generator=torch.Generator().manual_seed(0)), 3)
TRANSITIONS = {
    "uniform": Uniform(K, cosine(T)),
    "absorbing": Absorbing(K, reciprocal(T)),
    "level": Absorbing(K, reciprocal(T), mask=2),
    "gaussian": DiscretizedGaussian(K, linear(T, 0.1, 1.0)),
    "band": BandDiagonal(K, cosine(T), 2),
    "neighbors": NearestNeighbor(NEAR, cosine(T)),
    "mixture": Mixture(NearestNeighbor(NEAR, cosine(T)), Absorbing(K, reciprocal(T))),
    "target": GaussianTarget(K, ConstantNoise(3.0), 2.0, 4.0),
    "masked in time": Absorbing(K, LogLinearNoise()),
    "uniform in time": Uniform(K, GeometricNoise()),
}


class Fixed(torch.nn.Module):
    """A network that no autocast can change."""

    def forward(self, x, label):
        return torch.sin(torch.arange(K) + 1.7 * x[..., None])


@pytest.mark.parametrize("kind", TRANSITIONS)
@pytest.mark.parametrize("reverse", [Product(), Marginal()], ids=str)
def test_autocast_is_for_networks_alone(kind, reverse):
    transition = TRANSITIONS[kind]
    denoiser = Categorical(Fixed(), transition, reverse)
    x0 = torch.randint(0, K, (8, 16), generator=torch.Generator().manual_seed(1))
    objectives = [
        ContinuousBound(denoiser) if transition.steps is None else D3PMLoss(denoiser, 0.1),
        CrossEntropy(denoiser),
    ]

    def everything():
        losses = [objective(x0, generator=torch.Generator().manual_seed(2)).total for objective in objectives]
        distributions = denoiser.step_distribution(
            x0, torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
        )
        return [*losses, distributions]

    plain = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = everything()
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a, b)
        assert b.dtype == torch.float32
        assert b.isfinite().all()


@pytest.mark.parametrize("kind", ["masked in time", "uniform in time"])
def test_score_entropy_in_closed_form_is_the_definition(kind, generator):
    transition = TRANSITIONS[kind]
    x0 = torch.randint(0, K, (5, 40), generator=generator)
    t = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.99], dtype=torch.float64)
    x_t = transition.corrupt(x0, t, generator=generator)
    log_ratio = torch.randn(5, 40, transition.states, dtype=torch.float64, generator=generator)
    log_ratio = log_ratio.scatter(-1, x_t[..., None], 0.0).requires_grad_()
    closed, plain = transition.score_entropy(log_ratio, x0, x_t, t), score_entropy(transition, log_ratio, x0, x_t, t)
    torch.testing.assert_close(closed, plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        *(torch.autograd.grad(v.sum(), log_ratio)[0] for v in (closed, plain)), rtol=1e-10, atol=1e-10
    )


def test_survivors_are_coded_and_drawn_alike():
    """Under LogLinear(eps) a token is left at t = 1 with chance eps: it costs eps times what p0 at a window of masks
    says, and is drawn so."""
    process, x0 = Absorbing(K, LogLinearNoise(0.05)), torch.randint(0, K, (3, 7))
    denoiser = Categorical(Fixed(), process)
    masks, one = torch.full((3, 7), K), torch.ones((), dtype=torch.float64)
    log_p = denoiser(masks, one)
    nats = -log_p.gather(-1, x0[..., None]).squeeze(-1).double()
    torch.testing.assert_close(VariationalBound(denoiser).prior(x0), 0.05 * nats.sum(1), rtol=1e-6, atol=1e-6)
    distribution = torch.cat([0.05 * log_p[0, 0, :K].exp(), torch.tensor([0.95])])
    start = denoiser.start(torch.full((40_000, 7), K), one, generator=torch.Generator().manual_seed(0))
    found = torch.bincount(start.flatten(), minlength=K + 1) / start.numel()
    assert ((found - distribution).abs() < 5 * (distribution / start.numel()).sqrt()).all()
    assert (process.prior((50, 50)) == K).all()


def test_padding_costs_nothing(generator):
    denoiser = Categorical(Fixed(), Absorbing(K, LogLinearNoise()))
    x0 = torch.randint(0, K - 1, (4, 9), generator=generator)
    padded = torch.cat([x0, torch.full((4, 5), K - 1)], 1)
    whole, left = (
        VariationalBound(denoiser, padding=p)(padded, generator=torch.Generator().manual_seed(0)) for p in (None, K - 1)
    )
    assert (left.nats < whole.nats).all()
    priors = VariationalBound(denoiser, padding=K - 1).prior(padded), VariationalBound(denoiser).prior(x0)
    torch.testing.assert_close(*priors, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: ScoreEntropyDenoiser(Fixed(), TRANSITIONS["target"]),
            "GaussianTarget .T=None. cannot be trained with ratios: take Uniform or",
        ),
        (lambda: ScoreEntropyDenoiser(Fixed(), TRANSITIONS["uniform"]), "T=10"),
        (
            lambda: CrossEntropy(ScoreEntropyDenoiser(Fixed(), TRANSITIONS["uniform in time"])),
            "CrossEntropy needs logits of x_0",
        ),
        (
            lambda: ContinuousBound(ScoreEntropyDenoiser(Fixed(), TRANSITIONS["uniform in time"]), ce=0.1),
            "ce=0.1 needs logits of x_0",
        ),
        (
            lambda: Categorical(Fixed(), TRANSITIONS["uniform"], head=carried)(
                torch.zeros(1, 2).long(), torch.ones(())
            ),
            "carried takes an unmasked token for x_0, and under this Uniform it may be noise",
        ),
        (lambda: GeometricNoise(low=-1.0), "GeometricNoise.low=-1.0"),
        (lambda: LogLinearNoise(eps=2.0), "LogLinearNoise.eps=2.0"),
        (lambda: ExponentialNoise(base=1.0), "its events must increase"),
        (lambda: ConstantNoise(events=0.0), "its events must increase"),
        (lambda: BandDiagonal(8, LogLinearNoise()), "LogLinearNoise.*: give the betas of the steps as a tensor"),
        (lambda: DiscretizedGaussian(8, LogLinearNoise()), "LogLinearNoise.*: give the betas of the steps as a tensor"),
        (
            lambda: mutual_information(lambda s: Uniform(3, s), torch.tensor([1.0, 0.0, 0.0]), 5),
            "no information to erase",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_built(make, words):
    with pytest.raises(UsageError, match=words):
        make()
