"""Networks in half, bfloat16 and double precision do what they do in float32."""

import copy

import pytest
import torch
from torch import nn

from unnoise import continuous, discrete, sde
from unnoise.shared.calling import precision
from unnoise.shared.gaussian.dequantization import DequantizedLoss, VariationalDequantization
from unnoise.shared.gaussian.guidance import ClassifierFree, ClassifierGuided, ClassifierLoss, NoisyClassifier
from unnoise.shared.gaussian.inverse import DPS, Masked, MomentMatching, PseudoInverse
from unnoise.shared.networks import MLP, CaptionEncoder, DiT, Encoder, ImageDiT, RefineNet, Transformer, UNet
from unnoise.shared.networks.adapters import CenteredInput
from unnoise.shared.networks.embeddings import Fourier, TimeEmbedding
from unnoise.shared.networks.unet_variants import ADM, NCSNPP
from unnoise.shared.quantization import Quantization
from unnoise.shared.time_inputs import log_noise_level
from unnoise.shared.training import Trainer, Training

SHAPE, K = (2, 4, 6), 5
TOLERANCE = {torch.float64: 2e-4, torch.float16: 0.01, torch.bfloat16: 0.08}
"""Of the size of what float32 gives: about a thousand, twenty and twenty roundings of each type."""
DTYPES = [pytest.param(dtype, id=str(dtype)[6:]) for dtype in TOLERANCE]
SCALE = Quantization(17)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def woken(network, seed=0):
    """The network with every weight moved: fresh ones end in zeros."""
    generator = seeded(seed)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return network.eval()


class Plain(nn.Module):
    """A network that is not of this package, and casts what it computes from the time."""

    def __init__(self):
        super().__init__()
        self.time, self.conv = nn.Linear(1, 8), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x, time):
        return self.conv(x) + self.time((time[:, None] / 1000).to(x.dtype)).mean(1)[:, None, None, None]


NETWORKS = {
    "unet": lambda: UNet(SHAPE, 8, (1, 2), 1),
    "adm": lambda: UNet(SHAPE, 8, (1, 2), 1, variant=ADM),
    "dit": lambda: ImageDiT(SHAPE, patch=2, width=16, depth=2, heads=2),
    "refinenet": lambda: RefineNet(SHAPE, 4, (1, 2), (1, 1)),
    "centered": lambda: CenteredInput(UNet(SHAPE, 8, (1,), 1)),
    "own": Plain,
}
TEXT = {
    "transformer": lambda states, out: Transformer(states, 6, width=16, depth=2, heads=2, outputs=out),
    "dit": lambda states, out: DiT(states, 6, width=16, depth=2, heads=2, outputs=out, embedding=16),
}


def near(found, expected, dtype):
    assert found.isfinite().all()
    assert found.dtype in (torch.float32, torch.float64)
    found, expected = found.detach(), expected.detach()
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    assert error <= TOLERANCE[dtype], float(error)


def compared(denoiser, calls, dtype):
    """What each call gives for the denoiser, cast, beside what it gives in float32."""
    other = copy.deepcopy(denoiser).to(dtype)
    for call in calls:
        torch.manual_seed(0)
        near(call(other), call(denoiser), dtype)


def learned(network, seed=0):
    torch.manual_seed(seed)
    return continuous.Learned(
        woken(network()), continuous.Tabulated(continuous.linear_betas(1000)), predicts=sde.velocity
    ).eval()


X0 = SCALE.continuous(torch.randint(0, 17, (3, *SHAPE), generator=seeded(3)))
LEVELS = SCALE.quantize(X0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_of_any_precision_gives_what_it_gives_in_float32(network, dtype):
    calls = [
        lambda d: continuous.DDIM(d)(shape=(3, *SHAPE), steps=4, generator=seeded()),
        lambda d: continuous.Ancestral(continuous.Clipped(d))(shape=(3, *SHAPE), steps=4, generator=seeded()),
        lambda d: continuous.DenoisingLoss.simple(d)(X0, generator=seeded()).total,
        lambda d: sde.DenoisingLoss.flow_matching(d.on(sde.VP()))(X0, generator=seeded()).total,
        lambda d: continuous.VariationalBound(continuous.Clipped(d), SCALE, terms=4)(X0, generator=seeded()).nats,
        lambda d: (
            sde.ChangeOfVariables(
                d.on(sde.VP()), sde.UniformDequantization(SCALE), integrator=sde.FixedSteps(), trace=sde.Hutchinson(2)
            )(LEVELS, generator=seeded()).nats
        ),
    ]
    compared(learned(NETWORKS[network]), calls, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fourier_features_energies_and_vectors(dtype):
    torch.manual_seed(0)
    denoiser = sde.Learned(
        woken(UNet(SHAPE, 8, (1, 2), 1, variant=NCSNPP)), sde.VE(), time_input=log_noise_level
    ).eval()
    compared(denoiser, [lambda d: sde.DenoisingLoss.score_matching(d)(X0, generator=seeded()).total], dtype)
    energy = sde.EnergyDenoiser(sde.Potential(woken(MLP(3, 16))), sde.VP()).eval()
    x = torch.randn(5, 3, generator=seeded(1))
    calls = [
        lambda d: continuous.DDIM(d)(shape=(5, 3), steps=3, generator=seeded()),
        lambda d: d.log_density(x, torch.tensor(0.5)),
        lambda d: sde.DenoisingLoss.score_matching(d)(x, generator=seeded()).total,
    ]
    compared(energy, calls, dtype)
    vectors = sde.Learned(woken(MLP(3, 16)), sde.VP()).eval()
    compared(vectors, [lambda d: sde.ImplicitScoreMatching(d)(x, generator=seeded()).total], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_guidance_conditions_and_inverse_problems(dtype):
    torch.manual_seed(0)
    network = UNet(
        SHAPE, 8, (1, 2), 1, classes=3, vector=4, image=1, tokens=CaptionEncoder(7, 5, 8, 1, 2), augment=2, outputs=2
    )
    denoiser = continuous.Learned(woken(network), continuous.Tabulated(continuous.linear_betas(100))).eval()
    cond = {"label": torch.tensor([0, 1, 2]), "tokens": torch.randint(0, 7, (3, 5), generator=seeded())}
    cond |= {
        n: torch.randn(3, *s, generator=seeded(4))
        for n, s in {"vector": (4,), "image": (1, 4, 6), "augment": (2,)}.items()
    }
    run = {"shape": (3, *SHAPE), "steps": 3}
    compared(
        denoiser,
        [
            lambda d: continuous.Ancestral(continuous.Clipped(ClassifierFree(d, 1.5)), continuous.learned_range)(
                **run, **cond, generator=seeded()
            ),
            lambda d: continuous.Hybrid(d, SCALE)(X0, **cond, generator=seeded()).total,
        ],
        dtype,
    )
    torch.manual_seed(0)
    classifier = NoisyClassifier(woken(Encoder(SHAPE, 3, 8, (1, 2), heads=1)), sde.VP()).eval()
    compared(classifier, [lambda c: ClassifierLoss(c)(X0, label=cond["label"], generator=seeded()).total], dtype)
    plain = learned(NETWORKS["unet"]).on(sde.VP())
    pair = nn.ModuleList([plain, classifier])
    measured = Masked(torch.arange(6) < 3)
    calls = [
        lambda m: continuous.DDIM(continuous.Clipped(ClassifierGuided(*m)))(
            **run, label=cond["label"], generator=seeded()
        ),
        lambda m: continuous.DDIM(PseudoInverse(m[0], measured, measured(X0)))(**run, generator=seeded()),
        lambda m: continuous.DDIM(continuous.Clipped(MomentMatching(m[0], measured, measured(X0), noise=5.0)))(
            **run, generator=seeded()
        ),
        lambda m: DPS(continuous.DDIM(m[0]), measured, measured(X0))(**run, generator=seeded()),
    ]
    compared(pair, calls, dtype)
    dequantizer = VariationalDequantization(SCALE, woken(UNet((4, 4, 6), 8, (1,), 1)))
    bound = DequantizedLoss(sde.MaximumLikelihood(plain), dequantizer).eval()
    compared(bound, [lambda b: b(LEVELS, generator=seeded()).total], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("network", TEXT)
def test_networks_of_tokens(network, dtype):
    torch.manual_seed(0)
    x0 = torch.randint(0, K, (4, 6), generator=seeded())
    mask, uniform = (
        discrete.Absorbing(K, discrete.LogLinearNoise()),
        discrete.Uniform(K, discrete.linear(1000, 1e-4, 0.02)),
    )
    calls = [
        lambda d: discrete.VariationalBound(d, terms=8)(x0, generator=seeded()).nats,
        lambda d: d(d.corruption.corrupt(x0, 0.7, generator=seeded()), 0.7).exp(),
    ]
    for denoiser in (
        discrete.Categorical(woken(TEXT[network](K + 1, K)), mask, head=discrete.carried),
        discrete.Categorical(woken(TEXT[network](K, K)), uniform),
        discrete.ScoreEntropyDenoiser(woken(TEXT[network](K + 1, K)), mask),
    ):
        objective = discrete.D3PMLoss if denoiser.corruption.steps else discrete.ContinuousBound
        compared(denoiser, [*calls, lambda d, objective=objective: objective(d)(x0, generator=seeded()).total], dtype)
        samples = discrete.Ancestral(copy.deepcopy(denoiser).to(dtype))(shape=(4, 6), steps=5, generator=seeded())
        assert samples.dtype == torch.int64
        assert samples.max() < K


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_time_input_is_not_rounded(dtype):
    """bfloat16 cannot represent 999: every network must tell it from 1000."""
    label = torch.arange(1.0, 1001)
    for encode in (TimeEmbedding(32, 8), TimeEmbedding(32, 8, Fourier())):
        expected = encode.encode(label)
        torch.testing.assert_close(encode.to(dtype).encode(label), expected, rtol=0, atol=1e-6)
    heard = []

    class Hears(Plain):
        def forward(self, x, time):
            heard.append((x.dtype, time.clone()))
            return super().forward(x, time)

    denoiser = continuous.Learned(Hears().to(dtype), continuous.Tabulated(continuous.linear_betas(1000)))
    denoiser(X0, torch.tensor([0.998, 0.999, 1.0], dtype=torch.float64))
    assert heard[0][0] == dtype
    torch.testing.assert_close(heard[0][1], torch.tensor([998.0, 999.0, 1000.0]))
    rotary = DiT(K, 600, width=16, depth=1, heads=2).rotary
    expected = rotary.cos.clone()
    assert torch.equal(rotary.to(dtype).cos, expected)


@pytest.mark.parametrize("x_dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_data_of_any_precision(x_dtype):
    """The state and the losses are float32, or float64 where the data are."""
    denoiser, x = learned(NETWORKS["unet"]), X0.to(x_dtype)
    wanted = torch.float64 if x_dtype == torch.float64 else torch.float32
    objectives = {
        "simple": continuous.DenoisingLoss,
        "score": sde.DenoisingLoss.score_matching,
        "flow": sde.DenoisingLoss.flow_matching,
        "edm": lambda d: sde.DenoisingLoss.edm(d, 0.5),
    }
    for make in objectives.values():
        loss = make(denoiser)(x, generator=seeded()).total
        assert loss.dtype == wanted
        if wanted == torch.float32:
            near(loss, make(denoiser)(x.float(), generator=seeded()).total, torch.float64)
    assert continuous.DDIM(denoiser)(x, steps=2).dtype == wanted
    assert continuous.encode(denoiser, x, 3).dtype == wanted
    near(continuous.DDIM(denoiser)(x, steps=2), continuous.DDIM(denoiser)(x.float(), steps=2), torch.float64)
    sde.ChangeOfVariables(denoiser.on(sde.VP()), integrator=sde.FixedSteps())(x, generator=seeded())


def test_float32_is_untouched():
    """Where precisions agree the network gets the very tensors."""
    seen = []

    class Sees(Plain):
        def forward(self, x, time, vector):
            seen.append(vector)
            return super().forward(x, time)

    vector = torch.ones(3, 2)
    continuous.Learned(Sees(), continuous.Tabulated(continuous.linear_betas(100)))(X0, torch.tensor(0.5), vector=vector)
    assert seen[0] is vector
    assert precision(nn.Sequential(nn.ReLU(), nn.Linear(1, 1).half())) == torch.float16
    assert precision(nn.ReLU()) is None


def test_a_network_in_half_precision_is_trained():
    denoiser = learned(NETWORKS["unet"]).to(torch.bfloat16).train()
    continuous.DenoisingLoss.simple(denoiser)(X0, generator=seeded()).total.mean().backward()
    grads = [p.grad for p in denoiser.parameters() if p.grad is not None]
    assert len(grads) > 10
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in grads)


def test_batches_of_numpy_are_trained_on():
    def batches():
        while True:
            yield {"x0": X0.numpy()}

    Trainer(continuous.DenoisingLoss.simple(learned(NETWORKS["own"])), Training(steps=2, warmup=1)).fit(batches())
