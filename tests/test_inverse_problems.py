"""The script on linear inverse problems: its colors, its measures and its smoke run."""

import json
import math
from dataclasses import replace

import pytest
import torch

from unnoise.experiments.image_data import Images
from unnoise.experiments.papers import inverse_problems
from unnoise.experiments.papers.inverse_problems import (
    Restoration,
    centered,
    hue_error,
    in_gray,
    problems,
    psnr,
)
from unnoise.experiments.pixel_values import palette, tinted
from unnoise.shared.data import ImageDataset
from unnoise.shared.errors import UsageError
from unnoise.shared.progress import silent
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize

PRESETS = ("digits", "mnist", "smoke", "cifar10", "celeba64")


def test_the_smoke_run_restores_every_problem_by_every_method(tmp_path):
    recipe = inverse_problems.smoke()
    page = recipe.figure.draw(recipe, tmp_path)
    text, results = page.read_text(), json.loads((tmp_path / "results.json").read_text())
    names = [p.name for p in problems((3, 8, 8))]
    methods = ("measurement", "replacement", "DPS", "Pi-GDM", "moment matching")
    assert list(results) == [f"{p}, {m}" for p in names for m in methods]
    assert text.count("\n| ") == len(results) + 2
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert all(math.isfinite(v) for r in results.values() for v in r.values())
    for p in names:
        assert results[f"{p}, replacement"]["residual"] < 1e-3  # it reproduces the measurement
        calls = [results[f"{p}, {m}"]["evaluations"] for m in methods]
        assert calls == [0, 4, 8, 4, 4]
    before = {p: p.stat().st_mtime for p in tmp_path.rglob("*.safetensors")}
    assert recipe.figure.draw(recipe, tmp_path).read_text() == text
    assert before == {p: p.stat().st_mtime for p in tmp_path.rglob("*.safetensors")}


def test_presets_can_be_serialized_and_their_parts_can_be_built():
    for preset in PRESETS:
        recipe = getattr(inverse_problems, preset)()
        assert deserialize(json.loads(json.dumps(serialize(recipe)))) == recipe
    smoke = inverse_problems.smoke()
    denoiser = smoke.objective((3, 8, 8), Quantization(17)).denoiser
    k = smoke.load("test").k[:2]
    length = smoke.code_length_of(denoiser, Quantization(17))(k, torch.Generator().manual_seed(0), silent)
    assert length.nats.shape == (2,)
    assert set(next(iter(smoke.batches(smoke.load())))) == {"x0"}


def test_digits_are_tinted_by_their_label_and_look_alike_in_gray():
    gray, colored = Images("digits").load(), inverse_problems.digits().load()
    assert colored.shape == (3, 8, 8)
    assert colored.k.dtype == torch.uint8
    assert int(colored.k.max()) <= 16
    assert torch.equal(colored.label, gray.label)
    colors = palette(10)
    torch.testing.assert_close(colors.mean(1), torch.full((10,), 0.5))
    assert 0 < float(colors.min()) < float(colors.max()) < 1
    half = gray.k.float() / 2
    assert float((colored.k.float().mean(1, keepdim=True) - half).abs().max()) <= 0.5  # of rounding alone
    mean = torch.stack([colored.k[colored.label == c].float().mean((0, 2, 3)) for c in range(10)])
    torch.testing.assert_close(mean / mean.sum(1, keepdim=True), colors / 1.5, rtol=0, atol=0.01)
    assert tinted(colored) is colored


def test_hue_error_is_an_angle():
    images = (100 * palette(10))[:, :, None, None]
    for apart in range(10):
        expected = 36.0 * min(apart, 10 - apart)
        torch.testing.assert_close(
            hue_error(images, images.roll(apart, 0)), torch.full((10,), expected), rtol=0, atol=1e-3
        )
    torch.testing.assert_close(hue_error(images, 0.3 * images), torch.zeros(10), rtol=0, atol=1e-3)


def test_measures():
    quantization = Quantization(11)
    k = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    assert psnr(k + 1, k, quantization) == pytest.approx(20.0, abs=1e-5)
    assert torch.equal(quantization.cell_of(centered(quantization, torch.arange(11))), torch.arange(11))
    gray = in_gray(ImageDataset(torch.tensor([1, 2, 6], dtype=torch.uint8).reshape(1, 3, 1, 1), None, quantization))
    assert gray.k.tolist() == [[[[3]]]]
    for problem in problems((3, 8, 6)):
        y = problem.operator(torch.randn(2, 3, 8, 6))
        assert int((y[0] != 0).sum()) == problem.numbers
    half = problems((3, 8, 8))[0].operator(torch.ones(1, 3, 8, 8))
    assert torch.equal(half[..., :4], torch.ones(1, 3, 8, 4))
    assert torch.equal(half[..., 4:], torch.zeros(1, 3, 8, 4))


def test_what_cannot_be_is_refused(tmp_path):
    labeled = replace(inverse_problems.smoke(), data=Images("digits", classes=10))
    unlabeled = ImageDataset(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), None, Quantization(17))
    for make, words in (
        (lambda: Restoration().draw(labeled, tmp_path), "the model is unconditional"),
        (lambda: Restoration(noise=-1.0), "noise=-1.0"),
        (lambda: Restoration(count=0), "count=0"),
        (lambda: Restoration(zeta=0.0), "zeta=0.0"),
        (lambda: Restoration(iterations=0), "iterations=0"),
        (lambda: tinted(unlabeled), "tinted by their label"),
    ):
        with pytest.raises(UsageError, match=words):
            make()
