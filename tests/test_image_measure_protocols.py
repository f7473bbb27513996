"""The protocols of measures of images say what they depend on; what cannot be measured is refused before sampling."""

import numpy as np
import pytest
import torch

from unnoise.experiments import evaluation
from unnoise.experiments.image_measures import RealImages, enough, measure_images
from unnoise.experiments.papers import ddpm
from unnoise.shared.data import image_dataset
from unnoise.shared.data.images import ImageDataset
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.metrics.features import Features
from unnoise.shared.metrics.images import image_measures
from unnoise.shared.metrics.pixels import Pixels
from unnoise.shared.metrics.references import read_reference, reference_of
from unnoise.shared.quantization import Quantization

Q = Quantization()


class Classes(Features):
    """The first five pixels as features, which are also the logits of classes."""

    name, resize, digest, size = "classes", "", "0123456789ab", 5

    def of(self, k, quantization):
        return k.flatten(1)[:, :5].float() / 10

    def logits(self, features):
        return features * 10


def sorted_images(count=200, size=4):
    """Images of five classes, sorted by class."""
    k = torch.zeros(count, 1, size, size, dtype=torch.uint8)
    k.flatten(1)[torch.arange(count), torch.arange(count) * 5 // count] = 100
    return k


def measured(k, which, seed=0):
    reference = reference_of(Classes(), sorted_images(80) // 2, Q, "some")
    return image_measures(Classes(), k, Q, reference, which=which, seed=seed)


def test_the_inception_score_does_not_depend_on_the_order_of_classes():
    (score,) = measured(sorted_images(), ["inception_score"])
    assert 4 < score.value <= 5  # a split of one class has the score 1
    assert score.protocol.settings == "10 splits of shuffled images"


def test_seeds_of_subsets_stand_in_the_protocol():
    k = sorted_images()
    first, again, other = (measured(k, ["kid", "inception_score"], seed) for seed in (0, 0, 1))
    assert first == again
    for a, b in zip(first, other, strict=True):
        assert a.protocol != b.protocol
        assert b.protocol.settings == f"{a.protocol.settings}, seed 1"


def test_samples_of_any_seed_are_measured_on_the_same_subsets(monkeypatch):
    seeds = []
    monkeypatch.setattr(
        evaluation, "measure_images", lambda *_, **given: seeds.append(given.get("seed", 0)) or ({}, [])
    )
    recipe, data = ddpm.smoke(), image_dataset("digits")
    denoiser = recipe.objective(data.shape, data.quantization).denoiser
    for seed in (0, 3):
        recipe.evaluate(denoiser, count=4, steps=1, seed=seed, without=("code-length",))
    assert seeds == [0, 0]


def test_large_images_are_averaged_before_pixels_are_compared():
    generator = torch.Generator().manual_seed(0)
    k = torch.randint(0, 256, (6, 3, 64, 96), generator=generator).to(torch.uint8)
    found = Pixels().of(k, Q)
    assert found.shape == (6, 3 * 32 * 32)
    blocks = k.double().view(6, 3, 32, 2, 32, 3).mean((3, 5)).flatten(1) / 255
    assert torch.allclose(found.double(), blocks, atol=1e-6)
    (share,) = image_measures(Pixels(), k[:2], Q, reference_of(Pixels(), k, Q, "large"), which=["memorized"])
    assert share.value == 1
    assert share.protocol.resize == "averaged to at most 32 x 32"
    assert Pixels().resize_of((3, 32, 32)) == ""
    assert torch.equal(Pixels().of(k[..., :32, :32], Q), k[..., :32, :32].flatten(1).float() / 255)


def test_measures_without_enough_images_are_left_out_with_a_fact():
    k = sorted_images(20)
    real = RealImages("some", ImageDataset(k, None, Q))
    facts, found = measure_images(k[:6], Q, real, judge_of=None, features=[Classes()], without=("memorization",))
    assert facts["left_out_classes"] == "inception_score need at least 10 images"
    assert "inception_score" not in [m.name for m in found]
    reference = reference_of(Classes(), k[:4], Q, "four")
    kept, fact = enough(["frechet", "inception_score", "recall"], 9, "classes", reference)
    assert kept == ["frechet"]
    assert fact == {"left_out_classes": "inception_score, recall need at least 10 images and 6 training images"}


def test_nothing_is_computed_where_all_measures_are_left_out(monkeypatch):
    monkeypatch.setattr(Classes, "of", lambda *_: pytest.fail("features were computed"))
    reference = reference_of(Pixels(), sorted_images(8), Q, "some")
    assert image_measures(Classes(), sorted_images(8), Q, reference, which=[]) == []


@pytest.fixture
def work(monkeypatch):
    """A model of digits; coding and sampling fail, as they are work that would be lost."""
    for name in ("bits_per_dim", "draw"):
        monkeypatch.setattr(evaluation, name, lambda *_, **__: pytest.fail("work was done"))
    recipe, data = ddpm.smoke(), image_dataset("digits")
    return recipe, recipe.objective(data.shape, data.quantization).denoiser


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (None, "statistics=.*ref.npz: there is no such file: give an .npz"),
        (
            {"mu": np.zeros(3), "sigma": np.eye(3)},
            "mu in .*ref.npz has the shape .3,.: statistics of features of size 5",
        ),
        ({"arr_0": np.zeros((9, 16, 16, 3), np.uint8)}, "ref.npz is of images of 16 x 16 pixels, .* have 8 x 8: give"),
    ],
)
def test_statistics_are_refused_before_any_work(work, tmp_path, arrays, words):
    if arrays is not None:
        np.savez(tmp_path / "ref.npz", **arrays)
    recipe, denoiser = work
    with pytest.raises(UsageError, match=words) as error:
        recipe.evaluate(denoiser, count=8, steps=1, features=(Classes(),), statistics=tmp_path / "ref.npz")
    assert "\n" not in str(error.value)


def test_references_of_the_same_size_are_read_once(tmp_path, monkeypatch):
    pixels = sorted_images(9).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "ref.npz", arr_0=pixels)
    real, extractor = RealImages("some", None, statistics=tmp_path / "ref.npz"), Classes()
    real.read_statistics([extractor, Pixels()], (1, 4, 4), lambda items, *_: items)
    assert real.reference(extractor, (1, 4, 4), None) is real.references[extractor]
    assert read_reference(tmp_path / "ref.npz", extractor, shape=(1, 4, 4)).count == 9


def test_fewer_samples_than_features_are_announced_before_sampling(work):
    recipe, denoiser = work
    words = "4 samples are fewer than the 5 features of classes, so that .* biased: --samples 5 or more"
    with pytest.warns(Notice, match=words), pytest.raises(pytest.fail.Exception):
        recipe.evaluate(denoiser, count=8, steps=1, samples=4, features=(Classes(),))


def test_samples_are_kept_in_bytes(monkeypatch):
    kept = []
    monkeypatch.setattr(evaluation, "measure_images", lambda k, *_, **__: kept.append(k.dtype) or ({}, []))
    recipe, data = ddpm.smoke(), image_dataset("digits")
    denoiser = recipe.objective(data.shape, data.quantization).denoiser
    recipe.evaluate(denoiser, count=4, steps=1, without=("code-length",))
    assert kept == [torch.uint8]
