"""Data, times and starts of every type are read, or refused in one line."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from unnoise import continuous, discrete, sde
from unnoise.shared.errors import UsageError
from unnoise.shared.metrics.text import NGram, distinct, entropy
from unnoise.shared.networks import MLP, DiT, Transformer, UNet
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training

SHAPE, K = (2, 4, 6), 5
SCALE = Quantization(17)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


X0 = SCALE.continuous(torch.randint(0, 17, (3, *SHAPE), generator=seeded(3)))
LEVELS = SCALE.quantize(X0)
TABLE, IN_TIME = discrete.Uniform(K, discrete.linear(10, 0.01, 0.3)), discrete.Absorbing(K, discrete.LogLinearNoise())


class Own(nn.Module):
    """A network that is not of this package."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x, time):
        return self.conv(x)


def gaussian():
    return continuous.Learned(Own(), continuous.Tabulated(continuous.linear_betas(1000)), predicts=sde.velocity)


def categorical(process=TABLE):
    return discrete.Categorical(Transformer(process.states, 6, width=16, depth=1, heads=2, outputs=K), process)


def tokens():
    return torch.randint(0, K, (3, 6), generator=seeded())


GAUSSIAN = {
    "simple": lambda d, x: continuous.DenoisingLoss.simple(d)(x),
    "scores": lambda d, x: sde.DenoisingLoss.score_matching(d)(x),
    "likelihood": lambda d, x: sde.MaximumLikelihood(d)(x),
    "edm": lambda d, x: sde.DenoisingLoss.edm(d)(x),
    "flow": lambda d, x: sde.DenoisingLoss.flow_matching(d)(x),
    "sampler": lambda d, x: continuous.DDIM(d)(x, steps=2),
    "flow sampler": lambda d, x: sde.ProbabilityFlow(d)(x, steps=2),
    "encode": lambda d, x: continuous.encode(d, x, 3),
    "bound": lambda d, x: continuous.VariationalBound(d, SCALE, terms=2)(x),
    "density": lambda d, x: sde.ChangeOfVariables(d.on(sde.VP()))(x),
    "denoiser": lambda d, x: d(x, 0.5),
    "corrupt": lambda d, x: d.corruption.corrupt(x, 0.5),
}
CATEGORICAL = {
    "hybrid": lambda d, x: discrete.D3PMLoss(d)(x),
    "cross-entropy": lambda d, x: discrete.CrossEntropy(d)(x),
    "sampler": lambda d, x: discrete.Ancestral(d)(x, steps=2),
    "bound": lambda d, x: discrete.VariationalBound(d)(x),
    "denoiser": lambda d, x: d(x, 0.5),
    "step": lambda d, x: d.step_distribution(x, 0.5, 0.0),
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
        GAUSSIAN[door](gaussian(), x)
    assert "\n" not in str(error.value)
    assert re.search(r"quantization.continuous|as_tensor|dequantizer|give (a tensor|shape)", str(error.value))


@pytest.mark.parametrize("door", CATEGORICAL)
@pytest.mark.parametrize("kind", ["float32", "bool", "complex64", "numpy"])
def test_what_are_no_integers_is_refused_in_one_line(door, kind):
    denoiser = categorical()
    x = tokens()
    x = x.numpy() if kind == "numpy" else x.to(getattr(torch, kind))
    with pytest.raises(UsageError, match=r"integers in 0\.\.4|as_tensor"):
        CATEGORICAL[door](denoiser, x)


@pytest.mark.parametrize("door", CATEGORICAL)
def test_integers_of_any_width_are_the_same_tokens(door):
    denoiser = categorical()
    x = tokens()
    torch.manual_seed(1)
    expected = CATEGORICAL[door](denoiser, x)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        torch.manual_seed(1)
        found = CATEGORICAL[door](denoiser, x.to(dtype))
        for a, b in zip(expected, found, strict=True):
            if isinstance(a, torch.Tensor):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_tokens_of_any_width_in_every_sampler_editing_and_guidance():
    network = DiT(K + 1, 6, width=16, depth=1, heads=2, outputs=K, embedding=16)
    denoiser = discrete.Categorical(network, IN_TIME, head=discrete.carried)
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
        "infilling": lambda x, k: discrete.Infilling(discrete.Unmasking(denoiser), k, ~hidden)(
            x, steps=3, generator=seeded()
        ),
        "guided": lambda x, k: discrete.Ancestral(guided)(x, steps=3, generator=seeded()),
    }
    for name, run in runs.items():
        expected = run(start, known)
        for dtype in (torch.uint8, torch.int32):
            assert torch.equal(run(start.to(dtype), known.to(dtype)), expected), name


def test_levels_for_the_dequantizer():
    dequantizer = sde.UniformDequantization(SCALE)
    expected = dequantizer(LEVELS, seeded())[0]
    for dtype in (torch.uint8, torch.int32, torch.float32):
        assert torch.equal(dequantizer(LEVELS.to(dtype), seeded())[0], expected)
    for bad in (LEVELS.bool(), LEVELS.to(torch.complex64), LEVELS.numpy()):
        with pytest.raises(UsageError, match="give a tensor of quantization levels"):
            dequantizer(bad, seeded())


@pytest.mark.parametrize(
    "t", [500, 1.5, -0.1, float("nan"), torch.tensor(500), torch.tensor([0.1, 0.2, 3.0]), None, "half"]
)
def test_times_that_are_none_are_refused_in_one_line(t):
    x = tokens()
    real = gaussian()
    for process in (TABLE, IN_TIME):
        denoiser = categorical(process)
        for call in (
            lambda: process.corrupt(x, t),  # noqa: B023
            lambda: denoiser(x, t),  # noqa: B023
            lambda: denoiser.step_distribution(x, t, 0.0),  # noqa: B023
            lambda: denoiser.ratio(x, t),  # noqa: B023
            lambda: discrete.CrossEntropy(denoiser).at(x, t),  # noqa: B023
        ):
            with pytest.raises(UsageError, match="^t="):
                call()
    for call in (
        lambda: real(X0, t),
        lambda: real.corruption.corrupt(X0, t),
        lambda: real.score(X0, t),
        lambda: continuous.DenoisingLoss.simple(real).at(X0, t),
        lambda: sde.DenoisingLoss.flow_matching(real).at(X0, t),
        lambda: sde.DenoisingLoss.score_matching(real).at(X0, t),
    ):
        with pytest.raises(UsageError, match="^t="):
            call()


def test_times_as_numbers_are_times():
    real, at = gaussian(), torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(real(X0, 0.5), real(X0, at))
    assert torch.equal(real.score(X0, 0.5), real.score(X0, at))
    x = tokens()
    for process in (TABLE, IN_TIME):
        denoiser, x_t = categorical(process), process.corrupt(x, 0.5, generator=seeded())
        assert torch.equal(x_t, process.corrupt(x, at, generator=seeded()))
        assert torch.equal(denoiser(x_t, 0.5), denoiser(x_t, at))
        assert torch.equal(denoiser.step_distribution(x_t, 0.5, 0.0), denoiser.step_distribution(x_t, at, 0 * at))
        assert torch.equal(denoiser.ratio(x_t, 0.5), denoiser.ratio(x_t, at))
    with pytest.raises(UsageError, match=r"times of shape \(2,\) for 3 examples"):
        real.corruption.corrupt(X0, torch.rand(2))
    with pytest.raises(UsageError, match=r"times of shape \(2,\) for 3 examples"):
        real(X0, torch.rand(2))


@pytest.mark.parametrize("x", [(4, 2, 4, 6), [4, 2, 4, 6]])
def test_a_shape_for_a_start(x):
    with pytest.raises(UsageError, match=r"give shape=\(4, 2, 4, 6\)"):
        continuous.DDIM(gaussian())(x, steps=2)
    for shape in (4, torch.tensor(x), (4, 2, 4.0, 6), (0, 2, 4, 6), "4"):
        with pytest.raises(UsageError, match="shape="):
            continuous.DDIM(gaussian())(shape=shape, steps=2)
    assert continuous.DDIM(gaussian())(shape=tuple(np.array(x)), steps=2).shape == tuple(x)


def test_metrics_of_text_read_integers_alone():
    text = torch.randint(0, K, (20, 8), generator=seeded())
    calls = [lambda x: NGram(2, K).fit(x).bits(x).sum(), lambda x: entropy(x, K), lambda x: distinct(x, 2)]
    for call in calls:
        for dtype in (torch.uint8, torch.int16, torch.int32):
            assert call(text.to(dtype)) == call(text)
        for bad in (text.float(), text.bool(), text.numpy(), text.tolist()):
            with pytest.raises(UsageError, match="give a tensor of integers"):
                call(bad)


def test_labels_of_any_width_are_the_same_classes():
    network = MLP(3, 8, classes=4)
    x, label = torch.randn(4, 3, generator=seeded()), torch.tensor([0, 3, 4, 1])
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(network(x, torch.ones(4), label.to(dtype)), network(x, torch.ones(4), label))
    for bad in (label.float(), label.bool(), label.numpy()):
        with pytest.raises(UsageError, match="give an int64 tensor"):
            network(x, torch.ones(4), bad)


@pytest.mark.parametrize("change", [discrete.first_order, discrete.every_neighbor])
def test_classifiers_of_tokens_of_any_precision(change):
    class Score(nn.Module):
        def __init__(self, f=lambda y: y[:, 0]):
            super().__init__()
            self.out, self.f = nn.Linear(6 * K, 1), f

        def forward(self, hot, t, **cond):
            return self.f(self.out(hot.flatten(1)))

    x, t = tokens(), torch.tensor(0.5, dtype=torch.float64)
    torch.manual_seed(0)
    score = Score()
    expected = change(score, x, t, K, {})
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.03), (torch.float16, 0.01)):
        torch.testing.assert_close(change(score.to(dtype), x, t, K, {}).float(), expected, rtol=0, atol=tolerance)
    for f, words in (
        (lambda y: y, r"returned \(3, 1\) for 3 examples: return log p"),
        (lambda y: (y,), "of type tuple"),
    ):
        with pytest.raises(UsageError, match=words):
            change(Score(f), x, t, K, {})


def image_denoiser():
    return continuous.Learned(UNet((1, 8, 8), 8, (1,), 1, ()), continuous.Tabulated(continuous.linear_betas(1000)))


def test_steps_of_numpy_are_whole_numbers():
    denoiser = image_denoiser()
    x = torch.zeros(1, 1, 8, 8)
    assert torch.equal(continuous.DDIM(denoiser)(x, steps=np.int64(3)), continuous.DDIM(denoiser)(x, steps=3))
    with pytest.raises(UsageError, match="steps=2.5: give a whole number"):
        continuous.DDIM(denoiser)(x, steps=2.5)


def test_a_loader_of_pairs_is_told_how_to_become_batches():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4)), 2)
    trainer = Trainer(
        continuous.DenoisingLoss.simple(image_denoiser()),
        Training(steps=2, warmup=1),
    )
    with pytest.raises(
        UsageError,
        match=r'a batch is list: give dicts .* such as \(\{"x0": x, "label": label\} for x, label in loader\)',
    ):
        trainer.fit(loader)
    trainer.fit({"x0": x} for x, _ in loader)
    assert trainer.step == 2
