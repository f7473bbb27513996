"""The measures in the table of the demo."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from unnoise.experiments import evaluation
from unnoise.experiments.evaluation import bits_per_dim, draw
from unnoise.experiments.gaussian import GaussianRecipe
from unnoise.experiments.papers import ddpm, score_sde
from unnoise.experiments.studies import demo
from unnoise.shared.code_length import CodeLength, perplexity
from unnoise.shared.data import image_dataset
from unnoise.shared.errors import UsageError
from unnoise.shared.metrics.errors import standard_error
from unnoise.shared.metrics.judge import Judge, SampleQuality, judge_of, marginal_bits_per_dim
from unnoise.shared.metrics.measurement import finite
from unnoise.shared.progress import silent
from unnoise.shared.training import precision


@pytest.fixture(scope="module")
def digits():
    return image_dataset("digits"), image_dataset("digits", split="test")


def test_the_baseline(digits):
    assert marginal_bits_per_dim(*digits)[0] == pytest.approx(2.42, abs=0.005)


@pytest.mark.parametrize("classes", [10, None])
def test_the_bits_of_a_label_are_counted(digits, monkeypatch, classes):
    recipe = ddpm.smoke()
    recipe = replace(recipe, data=replace(recipe.data, classes=classes))
    seen = []

    def free(self, denoiser, quantization):
        def measure(k, generator, progress, **cond):
            seen.append(cond)
            return CodeLength(*[torch.zeros(len(k))] * 3)

        return measure

    monkeypatch.setattr(GaussianRecipe, "code_length_of", free)
    test = digits[1]
    mean, error = bits_per_dim(recipe, recipe.objective(test.shape, test.quantization).denoiser, test)
    assert (mean, error) == (pytest.approx(math.log2(classes or 1) / 64), pytest.approx(0, abs=1e-8))
    if classes:
        assert torch.equal(torch.cat([cond["label"] for cond in seen]), test.label)
    else:
        assert seen == [{}]


def test_samples_are_drawn_in_parts_without_a_trace(digits, monkeypatch):
    recipe = score_sde.smoke()
    torch.manual_seed(0)
    denoiser = recipe.objective(digits[1].shape, digits[1].quantization).denoiser
    for p in denoiser.parameters():
        torch.nn.init.normal_(p, std=0.1)
    sampler = recipe.sampler_of(denoiser)
    whole = draw(recipe, sampler, digits[1].shape, digits[1].quantization, 12)
    monkeypatch.setattr(evaluation, "CHUNK", 5)
    parts = draw(recipe, sampler, digits[1].shape, digits[1].quantization, 12)
    assert (
        whole.levels != parts.levels
    ).float().mean() < 0.01  # rounding of batched products may move a level at its edge
    assert whole.evaluations == parts.evaluations == 2 * recipe.sampling_steps - 1


def test_the_judge(digits):
    train, test = digits
    judge = Judge(train, steps=60)
    real, noise = (
        judge.quality(test.k),
        judge.quality(torch.randint(0, 17, test.k.shape, generator=torch.Generator().manual_seed(0))),
    )
    assert real.count == len(test.k)
    assert real.classes == 10
    assert judge.accuracy(test) > 0.9
    assert noise.frechet > 5 * real.frechet
    assert noise.sure < real.sure


def test_a_set_has_one_judge_in_a_process():
    train = image_dataset("digits")
    few = train._replace(k=train.k[:64], label=train.label[:64])
    same = few._replace(k=few.k.clone())
    other = few._replace(label=few.label.flip(0))
    assert judge_of(few, steps=2) is judge_of(same, steps=2)
    assert judge_of(few, steps=2) is not judge_of(other, steps=2)
    assert judge_of(few, steps=2) is not judge_of(few, steps=3)


def test_one_example_has_no_standard_error(recwarn):
    assert math.isnan(standard_error(torch.ones(1)))
    assert not recwarn.list
    assert standard_error(torch.tensor([1.0, 3.0])) == pytest.approx(1.0)  # s = sqrt(2), of two values


@pytest.mark.parametrize("count", [1, 0])
def test_one_image_is_refused_before_the_judge_is_trained(digits, monkeypatch, count):
    def fail(*_, **__):
        raise AssertionError("work was done")

    monkeypatch.setattr(evaluation, "judge_of", fail)
    monkeypatch.setattr(evaluation, "bits_per_dim", fail)
    recipe = ddpm.smoke()
    denoiser = recipe.objective(digits[0].shape, digits[0].quantization).denoiser
    with pytest.raises(UsageError, match=f"count={count}: .*at least 2"):
        recipe.evaluate(denoiser, count=count, steps=2)
    one = digits[1]._replace(k=digits[1].k[:1], label=digits[1].label[:1])
    monkeypatch.setattr(type(recipe), "load", lambda self, split="train", progress=None: one)
    with pytest.raises(UsageError, match="the test split has 1 image"):
        recipe.evaluate(denoiser, count=None, steps=2)


def test_perplexities_beyond_float64_are_infinite():
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(709.0) < math.inf == perplexity(710.0)


def test_results_are_json_without_nan():
    found = {"a": math.nan, "b": [1.0, math.inf, {"c": -math.inf}], "d": "NaN", "e": 3, "f": None}
    assert finite(found) == {"a": None, "b": [1.0, None, {"c": None}], "d": "NaN", "e": 3, "f": None}


def test_the_models_of_the_demo_are_trained_alike():
    trainings = [recipe.training for recipe in demo.Demo(seed=3).recipes().values()]
    assert trainings == [trainings[0]] * 3
    assert (trainings[0].seed, trainings[0].precision) == (3, "auto")
    assert trainings[0].watch_every <= trainings[0].steps // 4  # the first pictures come early
    half = demo.Demo(steps=trainings[0].steps // 2).recipes()["ddpm"].training
    assert (half.warmup, half.cooldown) == (trainings[0].warmup // 2, trainings[0].cooldown // 2)


@pytest.mark.parametrize("native", [True, False])
def test_the_demo_rounds_networks_in_sampling_alone_and_where_bfloat16_is_native(digits, monkeypatch, native):
    seen = []

    def drawn(recipe, sampler, *_, **__):
        seen.append(("draw", torch.is_autocast_enabled("cpu")))
        return evaluation.SamplingRun(digits[1].k, 4, 4, 0.0)

    def coded(*_, **__):
        seen.append(("code", torch.is_autocast_enabled("cpu")))
        return 1.0, 0.1

    monkeypatch.setattr(demo, "draw", drawn)
    monkeypatch.setattr(demo, "bits_per_dim", coded)
    monkeypatch.setattr(precision, "native_bfloat16", lambda device: native)
    recipe = demo.Demo().recipes()["ddpm"]
    recipe = replace(recipe, network=ddpm.smoke().network)
    model = demo.Model("DDPM", recipe, recipe.objective(digits[1].shape, digits[1].quantization).denoiser)
    judge = SimpleNamespace(quality=lambda k: SampleQuality(0.0, 1.0, 10, len(k)))
    demo.measure(demo.Demo(smoke=True), {"ddpm": model}, judge, *digits, silent)
    assert seen == [("code", False), *[("draw", native)] * 4]
