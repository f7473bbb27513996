"""Karras et al. (2022): the loss by hand, its weight, the presets, the figure."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import Formula, Recorded

from unnoise.continuous import Heun
from unnoise.experiments.gaussian_builders import churned_heun
from unnoise.experiments.papers import edm
from unnoise.experiments.parts import part
from unnoise.sde import EDM, DenoisingLoss, Learned, Preconditioned, UniformDequantization
from unnoise.shared.errors import UsageError
from unnoise.shared.networks import MLP
from unnoise.shared.progress import silent
from unnoise.shared.quantization import Quantization
from unnoise.shared.sampler import counted
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.time_inputs import quarter_log
from unnoise.shared.training.averages import HalfLife

PRESETS = ("cifar10", "cifar10_classes", "ffhq64", "afhqv2_64", "imagenet64", "digits", "mnist", "smoke")


def denoiser_of(network, sigma_data: float = 0.5) -> Learned:
    return Learned(network, EDM(), Preconditioned(sigma_data), quarter_log, sigma_data)


@pytest.mark.parametrize("data", [0.5, 0.7])
def test_the_loss_is_that_of_the_paper(data, generator):
    """`lambda(sigma) ||D(y + n; sigma) - y||^2` with the coefficients of table 1, written out."""
    torch.manual_seed(0)
    network = MLP(3, width=16, depth=1)
    y, z = torch.randn(40, 3, generator=generator), torch.randn(40, 3, generator=generator)
    sigma = (-1.2 + 1.2 * torch.randn(40, generator=generator)).exp()
    loss = DenoisingLoss.edm(denoiser_of(network, data), data).at(y, sigma.double() / 80, generator=Recorded(z))
    s = sigma[:, None]
    c_skip, c_out = data**2 / (s**2 + data**2), s * data / (s**2 + data**2) ** 0.5
    c_in, c_noise = 1 / (s**2 + data**2) ** 0.5, sigma.log() / 4
    noisy = y + s * z
    d = c_skip * noisy + c_out * network(c_in * noisy, c_noise)
    weight = (sigma**2 + data**2) / (sigma * data) ** 2
    assert torch.allclose(loss.total, weight * ((d - y) ** 2).mean(1), rtol=1e-4)


def test_the_network_sees_and_is_asked_for_unit_variance(generator):
    """`lambda c_out^2 = 1`.

    Where F = 0, the loss of data with the standard deviation sigma_data is 1 at every noise level.
    """
    seen = []

    def silent(x, label):
        seen.append(x.std())
        return torch.zeros_like(x)

    denoiser = denoiser_of(Formula(silent))
    objective = DenoisingLoss.edm(denoiser)
    y = 0.5 * torch.randn(50_000, 2, generator=generator)
    for sigma in (0.002, 0.05, 0.3, 1.0, 10.0, 80.0):
        t = torch.full((len(y),), sigma / 80, dtype=torch.float64)
        c_out = denoiser.predicts(*denoiser.corruption(t[:1]))[1]
        assert float(objective.weight(denoiser.corruption, t[:1]) * c_out**2) == pytest.approx(1, abs=1e-12)
        assert float(objective.at(y, t, generator=generator).total.mean()) == pytest.approx(1, abs=0.02)
        assert float(seen[-1]) == pytest.approx(1, abs=0.02)


def test_published_settings():
    cifar = edm.cifar10()
    assert (cifar.data.batch, cifar.training.steps, cifar.training.learning_rate, cifar.training.warmup) == (
        512,
        390_625,
        1e-3,
        19_531,
    )
    assert cifar.training.ema == HalfLife(500_000, rampup=0.05)
    assert (cifar.network["dropout"], cifar.training.clip, cifar.sampler) == (0.13, math.inf, part(Heun))
    assert edm.cifar10_classes().data.classes == 10
    assert (edm.ffhq64().network["dropout"], edm.afhqv2_64().network["dropout"]) == (0.05, 0.25)
    large = edm.imagenet64()
    assert (large.training.steps, large.training.warmup, large.sampler["churn"], large.sampling_steps) == (
        610_352,
        2441,
        40.0,
        256,
    )
    assert large.training.ema == HalfLife(50e6, rampup=0.05)
    sampler = large.sampler_of(denoiser_of(Formula(lambda x, label: x)))
    assert (sampler.gamma, sampler.low, sampler.high, sampler.noise) == (40 / 256, 0.05, 50.0, 1.003)
    assert churned_heun(sampler.denoiser, 18, 80.0).gamma == math.sqrt(2) - 1


@pytest.mark.parametrize(("preset", "evaluations"), [("cifar10", 35), ("ffhq64", 79), ("imagenet64", 511)])
def test_evaluations_are_those_of_the_paper(preset, evaluations, generator):
    recipe, denoiser = getattr(edm, preset)(), denoiser_of(Formula(lambda x, label: -x))
    with counted(denoiser) as count:
        recipe.sampler_of(denoiser)(shape=(2, 1), steps=recipe.sampling_steps, generator=generator)
    assert count.calls == evaluations


def test_the_noise_levels_are_those_of_the_paper():
    """Equation 5, with i counted from the largest."""
    recipe = edm.cifar10()
    schedule = recipe.objective((3, 8, 8), Quantization()).denoiser.corruption
    n = recipe.sampling_steps
    expected = [(80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(n)]
    assert (schedule.grid(n) * 80).tolist() == pytest.approx([*expected, 0.0])


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_serialized(preset):
    recipe = getattr(edm, preset)()
    assert deserialize(json.loads(json.dumps(serialize(recipe)))) == recipe
    assert getattr(edm, preset).__doc__


def test_noise_levels_come_back(generator):
    quantization, k = Quantization(17), torch.arange(17).expand(4, 1, 17)
    for recipe in (edm.smoke(), edm.cifar10()):
        assert torch.equal(recipe.levels(quantization, recipe.form(quantization, k, generator)), k)


def test_smoke_draws_its_figure(tmp_path):
    page = edm.smoke().figure.draw(edm.smoke(), tmp_path).read_text()
    for picture in ("figure.png", "samples.png"):
        assert (tmp_path / picture).stat().st_size > 3000
        assert f"({picture})" in page
    rows = [line for line in page.splitlines() if line.startswith(("| Heun", "| Euler"))]
    assert sorted({int(row.split("|")[3]) for row in rows}) == [9, 17, 35, 69]
    assert len(rows) == 20
    assert len(json.loads((tmp_path / "results.json").read_text())) == 20
    assert "nan" not in page


def test_smoke_is_measured(generator):
    recipe = edm.smoke()
    images = recipe.load("test")
    denoiser = recipe.objective(images.shape, images.quantization).denoiser
    code = recipe.code_length_of(denoiser, images.quantization)
    bits = code(images.k[:4], generator, silent, label=images.label[:4]).bits_per_dim(images.dims)
    assert torch.isfinite(bits).all()
    # Untrained, F = 0: the model is a Gaussian of standard deviation sigma_data, whose code length is known.
    x, gain = UniformDequantization(images.quantization)(images.k[:200], generator)
    exact = gain / images.dims + 0.5 * (x.double().square() / 0.25 + math.log(2 * math.pi * 0.25)).flatten(1).mean(1)
    bits = code(images.k[:200], generator, silent, label=images.label[:200]).bits_per_dim(images.dims)
    assert float(bits.mean()) == pytest.approx(float(exact.mean()) / math.log(2), abs=0.1)


def test_what_is_refused():
    recipe = replace(edm.smoke(), sampler=part(churned_heun, churn=-1.0))
    with pytest.raises(UsageError, match=r"churn=-1\.0"):
        recipe.check(recipe.objective((1, 8, 8), Quantization(17)), (1, 8, 8), Quantization(17))
    with pytest.raises(UsageError, match=r"sigma_data=0\.0"):
        replace(edm.smoke(), predicts=Preconditioned(0.0))
