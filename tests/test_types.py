"""Networks in half, bfloat16 and double precision do what they do in float32; data of every type are read or refused in one line."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from unnoise import continuous, discrete, sde
from unnoise.shared.calling import precision
from unnoise.shared.dequantisation import Dequantised, Variational
from unnoise.shared.errors import UsageError
from unnoise.shared.guidance import ClassifierFree, ClassifierGuided, NoisyClassifier, Recognition
from unnoise.shared.inverse import DPS, Masked, MomentMatching, PseudoInverse
from unnoise.shared.labels import log_noise_level
from unnoise.shared.networks import MLP, DiT, Encoder, ImageDiT, RefineNet, TokenEncoder, Transformer, UNet
from unnoise.shared.networks.embeddings import Fourier, TimeEmbedding
from unnoise.shared.networks.recentred import Recentred
from unnoise.shared.networks.style import ADM, NCSNPP
from unnoise.shared.scale import Scale
from unnoise.shared.training import Trainer, Training

SHAPE, K = (2, 4, 6), 5
TOLERANCE = {torch.float64: 2e-4, torch.float16: 0.01, torch.bfloat16: 0.08}
"""Of the size of what float32 gives: about a thousand, twenty and twenty roundings of each type."""
DTYPES = [pytest.param(dtype, id=str(dtype)[6:]) for dtype in TOLERANCE]
SCALE = Scale(17)


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
    """A network of one's own, which casts what it makes of the time."""

    def __init__(self):
        super().__init__()
        self.time, self.conv = nn.Linear(1, 8), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x, time):
        return self.conv(x) + self.time((time[:, None] / 1000).to(x.dtype)).mean(1)[:, None, None, None]


NETWORKS = {
    "unet": lambda: UNet(SHAPE, 8, (1, 2), 1),
    "adm": lambda: UNet(SHAPE, 8, (1, 2), 1, style=ADM),
    "dit": lambda: ImageDiT(SHAPE, patch=2, width=16, depth=2, heads=2),
    "refinenet": lambda: RefineNet(SHAPE, 4, (1, 2), (1, 1)),
    "recentred": lambda: Recentred(UNet(SHAPE, 8, (1,), 1)),
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


def compared(denoiser, asks, dtype):
    """What each call gives for the denoiser, cast, beside what it gives in float32."""
    other = copy.deepcopy(denoiser).to(dtype)
    for ask in asks:
        torch.manual_seed(0)
        near(ask(other), ask(denoiser), dtype)


def learned(network, seed=0):
    torch.manual_seed(seed)
    return continuous.Learned(woken(network()), continuous.Tabulated(continuous.linear_betas(1000)), predicts=sde.velocity).eval()


X0 = SCALE.continuous(torch.randint(0, 17, (3, *SHAPE), generator=seeded(3)))
LEVELS = SCALE.quantise(X0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_of_any_precision_gives_what_it_gives_in_float32(network, dtype):
    asks = [
        lambda d: continuous.DDIM(d)(shape=(3, *SHAPE), steps=4, generator=seeded()),
        lambda d: continuous.Ancestral(continuous.Clipped(d))(shape=(3, *SHAPE), steps=4, generator=seeded()),
        lambda d: continuous.Simple(d)(X0, generator=seeded()).total,
        lambda d: sde.FlowMatching(d.on(sde.VP()))(X0, generator=seeded()).total,
        lambda d: continuous.VariationalBound(continuous.Clipped(d), SCALE, terms=4)(X0, generator=seeded()).nats,
        lambda d: (
            sde.ChangeOfVariables(d.on(sde.VP()), sde.Uniform(SCALE), integrator=sde.Steps(), trace=sde.Hutchinson(2))(
                LEVELS, generator=seeded()
            ).nats
        ),
    ]
    compared(learned(NETWORKS[network]), asks, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fourier_features_energies_and_vectors(dtype):
    torch.manual_seed(0)
    denoiser = sde.Learned(woken(UNet(SHAPE, 8, (1, 2), 1, style=NCSNPP)), sde.VE(), label=log_noise_level).eval()
    compared(denoiser, [lambda d: sde.ScoreMatching(d)(X0, generator=seeded()).total], dtype)
    energy = sde.EnergyDenoiser(sde.Potential(woken(MLP(3, 16))), sde.VP()).eval()
    x = torch.randn(5, 3, generator=seeded(1))
    asks = [
        lambda d: continuous.DDIM(d)(shape=(5, 3), steps=3, generator=seeded()),
        lambda d: d.log_density(x, torch.tensor(0.5)),
        lambda d: sde.ScoreMatching(d)(x, generator=seeded()).total,
    ]
    compared(energy, asks, dtype)
    vectors = sde.Learned(woken(MLP(3, 16)), sde.VP()).eval()
    compared(vectors, [lambda d: sde.Implicit(d)(x, generator=seeded()).total], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_guidance_conditions_and_inverse_problems(dtype):
    torch.manual_seed(0)
    network = UNet(SHAPE, 8, (1, 2), 1, classes=3, vector=4, image=1, tokens=TokenEncoder(7, 5, 8, 1, 2), augment=2, outputs=2)
    denoiser = continuous.Learned(woken(network), continuous.Tabulated(continuous.linear_betas(100))).eval()
    cond = {"label": torch.tensor([0, 1, 2]), "tokens": torch.randint(0, 7, (3, 5), generator=seeded())}
    cond |= {n: torch.randn(3, *s, generator=seeded(4)) for n, s in {"vector": (4,), "image": (1, 4, 6), "augment": (2,)}.items()}
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
    compared(classifier, [lambda c: Recognition(c)(X0, label=cond["label"], generator=seeded()).total], dtype)
    plain = learned(NETWORKS["unet"]).on(sde.VP())
    pair = nn.ModuleList([plain, classifier])
    measured = Masked(torch.arange(6) < 3)
    asks = [
        lambda m: continuous.DDIM(continuous.Clipped(ClassifierGuided(*m)))(**run, label=cond["label"], generator=seeded()),
        lambda m: continuous.DDIM(PseudoInverse(m[0], measured, measured(X0)))(**run, generator=seeded()),
        lambda m: continuous.DDIM(continuous.Clipped(MomentMatching(m[0], measured, measured(X0), noise=5.0)))(**run, generator=seeded()),
        lambda m: DPS(continuous.DDIM(m[0]), measured, measured(X0))(**run, generator=seeded()),
    ]
    compared(pair, asks, dtype)
    spread = Variational(SCALE, woken(UNet((4, 4, 6), 8, (1,), 1)))
    bound = Dequantised(sde.MaximumLikelihood(plain), spread).eval()
    compared(bound, [lambda b: b(LEVELS, generator=seeded()).total], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("network", TEXT)
def test_networks_of_tokens(network, dtype):
    torch.manual_seed(0)
    x0 = torch.randint(0, K, (4, 6), generator=seeded())
    mask, uniform = discrete.Absorbing(K, discrete.LogLinear()), discrete.Uniform(K, discrete.linear(1000, 1e-4, 0.02))
    asks = [
        lambda d: discrete.VariationalBound(d, terms=8)(x0, generator=seeded()).nats,
        lambda d: d(d.corruption.corrupt(x0, 0.7, generator=seeded()), 0.7).exp(),
    ]
    for denoiser in (
        discrete.Categorical(woken(TEXT[network](K + 1, K)), mask, head=discrete.carried),
        discrete.Categorical(woken(TEXT[network](K, K)), uniform),
        discrete.ScoreEntropyDenoiser(woken(TEXT[network](K + 1, K)), mask),
    ):
        objective = discrete.Hybrid if denoiser.corruption.steps else discrete.ContinuousBound
        compared(denoiser, [*asks, lambda d, objective=objective: objective(d)(x0, generator=seeded()).total], dtype)
        samples = discrete.Ancestral(copy.deepcopy(denoiser).to(dtype))(shape=(4, 6), steps=5, generator=seeded())
        assert samples.dtype == torch.int64
        assert samples.max() < K


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_time_input_is_not_rounded(dtype):
    """999 is no number of bfloat16: every network must tell it from 1000."""
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
    objectives = {"simple": continuous.Simple, "score": sde.ScoreMatching, "flow": sde.FlowMatching, "edm": lambda d: sde.EDMLoss(d, 0.5)}
    for make in objectives.values():
        loss = make(denoiser)(x, generator=seeded()).total
        assert loss.dtype == wanted
        if wanted == torch.float32:
            near(loss, make(denoiser)(x.float(), generator=seeded()).total, torch.float64)
    assert continuous.DDIM(denoiser)(x, steps=2).dtype == wanted
    assert continuous.encode(denoiser, x, 3).dtype == wanted
    near(continuous.DDIM(denoiser)(x, steps=2), continuous.DDIM(denoiser)(x.float(), steps=2), torch.float64)
    sde.ChangeOfVariables(denoiser.on(sde.VP()), integrator=sde.Steps())(x, generator=seeded())


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
    continuous.Simple(denoiser)(X0, generator=seeded()).total.mean().backward()
    grads = [p.grad for p in denoiser.parameters() if p.grad is not None]
    assert len(grads) > 10
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in grads)


def test_batches_of_numpy_are_trained_on():
    def batches():
        while True:
            yield {"x0": X0.numpy()}

    Trainer(continuous.Simple(learned(NETWORKS["own"])), Training(steps=2, warmup=1)).fit(batches())


GAUSSIAN = {
    "simple": lambda d, x: continuous.Simple(d)(x),
    "scores": lambda d, x: sde.ScoreMatching(d)(x),
    "likelihood": lambda d, x: sde.MaximumLikelihood(d)(x),
    "edm": lambda d, x: sde.EDMLoss(d)(x),
    "flow": lambda d, x: sde.FlowMatching(d)(x),
    "sampler": lambda d, x: continuous.DDIM(d)(x, steps=2),
    "flow sampler": lambda d, x: sde.ProbabilityFlow(d)(x, steps=2),
    "encode": lambda d, x: continuous.encode(d, x, 3),
    "bound": lambda d, x: continuous.VariationalBound(d, SCALE, terms=2)(x),
    "density": lambda d, x: sde.ChangeOfVariables(d.on(sde.VP()))(x),
    "denoiser": lambda d, x: d(x, 0.5),
    "corrupt": lambda d, x: d.corruption.corrupt(x, 0.5),
}
CATEGORICAL = {
    "hybrid": lambda d, x: discrete.Hybrid(d)(x),
    "cross-entropy": lambda d, x: discrete.CrossEntropy(d)(x),
    "sampler": lambda d, x: discrete.Ancestral(d)(x, steps=2),
    "bound": lambda d, x: discrete.VariationalBound(d)(x),
    "denoiser": lambda d, x: d(x, 0.5),
    "step": lambda d, x: d.step_law(x, 0.5, 0.0),
    "corrupt": lambda d, x: d.corruption.corrupt(x, 0.5),
}
"""Doors of each family by name."""


@pytest.mark.parametrize("door", GAUSSIAN)
@pytest.mark.parametrize("kind", ["uint8", "int64", "bool", "complex64", "numpy", "list"])
def test_what_is_no_real_tensor_is_refused_in_one_line(door, kind):
    given = {"numpy": X0.numpy(), "list": X0.tolist()}
    x = given[kind] if kind in given else X0.abs().to(getattr(torch, kind))
    if door == "sampler" and kind == "list":
        x = [1, 2, 4, 6]
    with pytest.raises(UsageError) as error:
        GAUSSIAN[door](learned(NETWORKS["own"]), x)
    assert "\n" not in str(error.value)
    assert re.search(r"scale.continuous|as_tensor|dequantiser|give (a tensor|shape)", str(error.value))


@pytest.mark.parametrize("door", CATEGORICAL)
@pytest.mark.parametrize("kind", ["float32", "bool", "complex64", "numpy"])
def test_what_are_no_integers_is_refused_in_one_line(door, kind):
    denoiser = discrete.Categorical(TEXT["transformer"](K, K), discrete.Uniform(K, discrete.linear(10, 0.01, 0.3)))
    x = torch.randint(0, K, (3, 6), generator=seeded())
    x = x.numpy() if kind == "numpy" else x.to(getattr(torch, kind))
    with pytest.raises(UsageError, match=r"integers in 0\.\.4|as_tensor"):
        CATEGORICAL[door](denoiser, x)


@pytest.mark.parametrize("door", CATEGORICAL)
def test_integers_of_any_width_are_the_same_tokens(door):
    denoiser = discrete.Categorical(TEXT["transformer"](K, K), discrete.Uniform(K, discrete.linear(10, 0.01, 0.3)))
    x = torch.randint(0, K, (3, 6), generator=seeded())
    torch.manual_seed(1)
    expected = CATEGORICAL[door](denoiser, x)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        torch.manual_seed(1)
        found = CATEGORICAL[door](denoiser, x.to(dtype))
        for a, b in zip(expected, found, strict=True):
            if isinstance(a, torch.Tensor):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_tokens_of_any_width_in_every_sampler_editing_and_guidance():
    process = discrete.Absorbing(K, discrete.LogLinear())
    denoiser = discrete.Categorical(TEXT["dit"](K + 1, K), process, head=discrete.carried)
    start = torch.full((2, 6), K)
    known, hidden = torch.tensor([1, 2, 0, 0, 0, 0]), torch.arange(6) >= 2
    classifier = nn.Linear(K + 1, 1)
    guided = discrete.ClassifierGuided(denoiser, lambda hot, t, **cond: classifier(hot).sum((1, 2)))
    runs = {
        "ancestral": lambda x, k: discrete.Ancestral(denoiser)(x, steps=3, generator=seeded()),
        "unmasking": lambda x, k: discrete.Unmasking(denoiser)(x, steps=3, generator=seeded()),
        "first": lambda x, k: discrete.FirstHitting(denoiser)(x, steps=3, generator=seeded()),
        "leaps": lambda x, k: discrete.TauLeaping(denoiser, jumps=discrete.single)(
            x, steps=torch.tensor([0.9, 0.4, 0]), generator=seeded()
        ),
        "infilling": lambda x, k: discrete.Infilling(discrete.Unmasking(denoiser), k, ~hidden)(x, steps=3, generator=seeded()),
        "guided": lambda x, k: discrete.Ancestral(guided)(x, steps=3, generator=seeded()),
    }
    for name, run in runs.items():
        expected = run(start, known)
        for dtype in (torch.uint8, torch.int32):
            assert torch.equal(run(start.to(dtype), known.to(dtype)), expected), name


def test_levels_for_the_dequantizer():
    spread = sde.Uniform(SCALE)
    expected = spread(LEVELS, seeded())[0]
    for dtype in (torch.uint8, torch.int32, torch.float32):
        assert torch.equal(spread(LEVELS.to(dtype), seeded())[0], expected)
    for bad in (LEVELS.bool(), LEVELS.to(torch.complex64), LEVELS.numpy()):
        with pytest.raises(UsageError, match="give a tensor of levels"):
            spread(bad, seeded())


@pytest.mark.parametrize("t", [500, 1.5, -0.1, float("nan"), torch.tensor(500), torch.tensor([0.1, 0.2, 3.0]), None, "half"])
def test_times_that_are_none_are_refused_in_one_line(t):
    x = torch.randint(0, K, (3, 6), generator=seeded())
    table, in_time = discrete.Uniform(K, discrete.linear(10, 0.01, 0.3)), discrete.Absorbing(K, discrete.LogLinear())
    gaussian = learned(NETWORKS["own"])
    for process, states in ((table, K), (in_time, K + 1)):
        denoiser = discrete.Categorical(TEXT["transformer"](states, K), process)
        for ask in (
            lambda: process.corrupt(x, t),  # noqa: B023
            lambda: denoiser(x, t),  # noqa: B023
            lambda: denoiser.step_law(x, t, 0.0),  # noqa: B023
            lambda: denoiser.ratio(x, t),  # noqa: B023
            lambda: discrete.CrossEntropy(denoiser).at(x, t),  # noqa: B023
        ):
            with pytest.raises(UsageError, match="^t="):
                ask()
    for ask in (
        lambda: gaussian(X0, t),
        lambda: gaussian.corruption.corrupt(X0, t),
        lambda: gaussian.score(X0, t),
        lambda: continuous.Simple(gaussian).at(X0, t),
        lambda: sde.FlowMatching(gaussian).at(X0, t),
        lambda: sde.ScoreMatching(gaussian).at(X0, t),
    ):
        with pytest.raises(UsageError, match="^t="):
            ask()


def test_times_as_numbers_are_times():
    gaussian, at = learned(NETWORKS["own"]), torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(gaussian(X0, 0.5), gaussian(X0, at))
    assert torch.equal(gaussian.score(X0, 0.5), gaussian.score(X0, at))
    x = torch.randint(0, K, (3, 6), generator=seeded())
    for process, states in ((discrete.Uniform(K, discrete.linear(10, 0.01, 0.3)), K), (discrete.Absorbing(K, discrete.LogLinear()), K + 1)):
        denoiser = discrete.Categorical(TEXT["transformer"](states, K), process)
        x_t = process.corrupt(x, 0.5, generator=seeded())
        assert torch.equal(x_t, process.corrupt(x, at, generator=seeded()))
        for ask in (
            lambda t, d=denoiser, z=x_t: d(z, t),
            lambda t, d=denoiser, z=x_t: d.step_law(z, t, 0 * t),
            denoiser_ratio(denoiser, x_t),
        ):
            assert torch.equal(ask(0.5), ask(at))
    with pytest.raises(UsageError, match=r"times of shape \(2,\)"):
        gaussian.corruption.corrupt(X0, torch.rand(2))


def denoiser_ratio(denoiser, x_t):
    return lambda t: denoiser.ratio(x_t, t)


@pytest.mark.parametrize("x", [(4, 2, 4, 6), [4, 2, 4, 6]])
def test_a_shape_for_a_start(x):
    with pytest.raises(UsageError, match=r"give shape=\(4, 2, 4, 6\)"):
        continuous.DDIM(learned(NETWORKS["own"]))(x, steps=2)
    for shape in (4, torch.tensor(x), (4, 2, 4.0, 6), (0, 2, 4, 6), "4"):
        with pytest.raises(UsageError, match="shape="):
            continuous.DDIM(learned(NETWORKS["own"]))(shape=shape, steps=2)
