"""The script of NCSN: its presets, its loss as published, its sampler, and a smoke run of its figure."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import Formula

from unnoise.experiments.evaluation import bits_per_dim, draw
from unnoise.experiments.gaussian_builders import annealed_langevin
from unnoise.experiments.gaussian_parts import GAUSSIAN
from unnoise.experiments.image_data import Images
from unnoise.experiments.notation import read
from unnoise.experiments.papers import ncsn
from unnoise.experiments.parts import Context, built, part, write
from unnoise.sde import DenoisingLoss, Learned, NoiseLevels, ReverseDiffusion, geometric_sigmas
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian, AnalyticMixture
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import normal_like
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.time_inputs import noise_level
from unnoise.shared.training.averages import Decay

PRESETS = (ncsn.cifar10, ncsn.cifar10_v2, ncsn.celeba64_v2, ncsn.lsun128_v2, ncsn.digits, ncsn.mnist, ncsn.smoke)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.__name__)
def test_presets_can_be_serialized(preset):
    assert deserialize(json.loads(json.dumps(serialize(preset())))) == preset()
    assert read(write(preset().sampler), GAUSSIAN, "Sampler") == preset().sampler
    assert preset.__doc__


def values_of(recipe):
    """The smallest and largest noise level and their number, the Langevin steps at each, their size, and denoising."""
    schedule = tuple(recipe.schedule[name] for name in ("low", "high", "steps"))
    return schedule + tuple(recipe.sampler[name] for name in ("repeats", "epsilon", "denoise"))


def test_published_settings():
    first, second = ncsn.cifar10(), ncsn.cifar10_v2()
    assert values_of(first) == (0.01, 1.0, 10, 100, 2e-5, False)
    assert (first.training.steps, first.training.learning_rate, first.training.ema, first.data.batch) == (
        200_000,
        1e-3,
        Decay(0.0, warmup=False),
        128,
    )
    assert values_of(second) == (0.01, 50.0, 232, 5, 6.2e-6, True)
    assert (second.training.steps, second.training.learning_rate) == (300_000, 1e-4)
    assert second.training.ema == Decay(0.999, warmup=False)
    assert values_of(ncsn.celeba64_v2()) == (0.01, 90.0, 500, 5, 3.3e-6, True)
    assert values_of(ncsn.lsun128_v2())[1:4] == (190.0, 1086, 3)
    for recipe, snr in ((first, 0.316), (second, 0.176)):
        oracle = AnalyticGaussian(torch.zeros(2), torch.eye(2), built(recipe.schedule, Context()))
        assert recipe.sampler_of(oracle).corrector.snr == pytest.approx(snr, abs=5e-4)
    assert all(preset().sampling_steps == preset().schedule["steps"] for preset in PRESETS[:-1])


@pytest.mark.parametrize(("preset", "low"), [(ncsn.digits, 0.02), (ncsn.mnist, 0.01)])
def test_small_sets_follow_the_published_rules(preset, low):
    recipe = preset()
    rules = ncsn.by_the_rules(recipe.data.load(), low, recipe.sampler["repeats"])
    assert recipe.schedule["low"] == low
    assert recipe.schedule["steps"] == rules["steps"]
    assert recipe.schedule["high"] == pytest.approx(rules["high"], rel=0.003)
    assert recipe.sampler["epsilon"] == pytest.approx(rules["epsilon"], rel=0.01)


def test_the_loss_is_the_published_one(generator):
    """`sigma^2 ||s + (x~ - x) / sigma^2||^2 / 2`, summed over D dimensions, is D / 2 times the objective.

    For each example and noise level.
    """
    schedule = NoiseLevels(geometric_sigmas(0.01, 1.0, 10))
    network = Formula(lambda x, label: torch.sin(3 * x) + label[:, None, None, None])
    objective = DenoisingLoss.score_matching(Learned(network, schedule, time_input=noise_level))
    x0 = torch.rand(10, 1, 4, 4, dtype=torch.float64, generator=generator)
    t = torch.arange(1, 11, dtype=torch.float64) / 10
    sigma = geometric_sigmas(0.01, 1.0, 10)[:, None, None, None]
    noisy = x0 + sigma * normal_like(x0, torch.Generator().manual_seed(3))
    score = objective.denoiser.score(noisy, t)
    published = 0.5 * sigma.flatten() ** 2 * (score + (noisy - x0) / sigma**2).square().flatten(1).sum(1)
    found = objective.at(x0, t, generator=torch.Generator().manual_seed(3)).total
    torch.testing.assert_close(16 / 2 * found, published)


def test_training_visits_each_noise_level(generator):
    objective = ncsn.smoke().objective((1, 8, 8), Quantization(17))
    t = objective(torch.rand(400, 1, 8, 8, generator=generator), generator=generator).t
    assert sorted(set((t * 19).round().int().tolist())) == list(range(1, 20))
    torch.testing.assert_close(t * 19, (t * 19).round())


def test_the_form_of_the_data(generator):
    quantization, k = Quantization(17), torch.arange(17).reshape(1, 1, 1, 17)
    recipe = ncsn.smoke()
    x = recipe.form(quantization, k, generator)
    assert 0 < float(x.min()) < 1 / 17
    assert 16 / 17 < float(x.max()) < 1
    assert torch.equal(recipe.levels(quantization, x), k)


def test_samples_of_an_exact_model(generator):
    """A network that knows four images returns them through the recipe's own sampler and noise levels."""
    recipe, images = ncsn.digits(), Images("digits").load()
    k = images.k[:4].long()
    points = (k.flatten(1).double() + 0.5) / 17
    schedule = recipe.objective((1, 8, 8), Quantization(17)).denoiser.corruption
    oracle = AnalyticMixture(
        torch.full((4,), 0.25, dtype=torch.float64), points, torch.zeros(4, dtype=torch.float64), schedule
    )
    found = recipe.sampler_of(oracle)(shape=(60, 64), steps=recipe.sampling_steps, generator=generator)
    drawn = recipe.levels(images.quantization, found)
    which = (drawn[:, None] == k.flatten(1)).all(-1)
    assert which.any(1).all()
    assert which.any(0).all()
    epsilon = recipe.sampler["epsilon"]
    noisy = annealed_langevin(oracle, epsilon, recipe.sampler["repeats"], denoise=False)(
        shape=(60, 64), steps=19, generator=generator
    )
    left = (noisy[:, None] - points).square().mean(-1).min(1).values.sqrt().mean()
    from unnoise.sde.noise_levels import variance_ratio

    ratio = (4.53 / 0.02) ** (1 / 18)
    assert float(left) == pytest.approx(0.02 * variance_ratio(epsilon, ratio, 5, 0.02) ** 0.5, rel=0.03)


def test_code_length_of_the_flow():
    """Finite, and close to that of noise of the largest noise level before training."""
    recipe, images = ncsn.smoke(), Images("digits").load("test")
    torch.manual_seed(0)
    denoiser = recipe.objective(images.shape, images.quantization).denoiser
    bits, error = bits_per_dim(recipe, denoiser, images._replace(k=images.k[:40], label=images.label[:40]))
    assert 0 < error < bits < 20
    drawn = draw(recipe, recipe.sampler_of(denoiser), images.shape, images.quantization, 3)
    assert (drawn.evaluations, drawn.levels.shape) == (4 * 2 + 1, (3, 1, 8, 8))


def test_what_it_refuses(tmp_path):
    recipe, quantization = ncsn.digits(), Quantization(17)
    for given, words in (
        ({"sampling_steps": 20}, "steps=20: .*19"),
        ({"sampler": recipe.sampler.changed(epsilon=8e-4)}, "above which the chain diverges"),
        ({"schedule": recipe.schedule.changed(low=5.0)}, "0 < low < high"),
        ({"data": Images("digits", classes=10)} | ncsn.refinenet(), "CenteredInput.* has no argument classes"),
    ):
        other = replace(recipe, **given)
        with pytest.raises(UsageError, match=words):
            other.check(other.objective((1, 8, 8), quantization), (1, 8, 8), quantization)
    other = replace(recipe, sampler=part(ReverseDiffusion))
    with pytest.raises(UsageError, match="this figure is of annealed_langevin"):
        other.figure.draw(other, tmp_path)


def test_smoke_draws_the_figure(tmp_path):
    page = ncsn.smoke().figure.draw(ncsn.smoke(), tmp_path / "run").read_text()
    for picture in ("figure.png", "samples.png"):
        assert picture in page
        assert (tmp_path / "run" / picture).stat().st_size > 3000
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {f"annealed Langevin, {n}, {4 * n} evaluations" for n in (1, 2, 5, 10)} < set(results)
    assert {"annealed Langevin, denoised, 5, 21 evaluations", "reverse diffusion, 0, 4 evaluations"} < set(results)
    assert "nan" not in page
