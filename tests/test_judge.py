"""The judge of a data set: its file in the cache, what it says about real images, sets without labels."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from unnoise.experiments.image_measures import RealImages, measure_images
from unnoise.shared.data import image_dataset
from unnoise.shared.data.images import ImageDataset
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.metrics import judge as module
from unnoise.shared.metrics.features import in_float32
from unnoise.shared.metrics.frechet import frechet_distance
from unnoise.shared.metrics.judge import Judge, judge_of, whitening_of
from unnoise.shared.networks import classifier as networks
from unnoise.shared.networks.classifier import PooledClassifier, mirrored, moved, train_pooled_classifier
from unnoise.shared.quantization import Quantization


@pytest.fixture(scope="module")
def digits():
    return image_dataset("digits").subset(80), image_dataset("digits", split="test")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder for the cache, and a process that has trained no judge."""
    monkeypatch.setenv("UNNOISE_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_JUDGES", {})
    return tmp_path / "judges"


def stripes(count, size=16):
    """Images of two classes: horizontal and vertical stripes of random phase and contrast."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(count) % 2
    place = torch.arange(size) + torch.randint(8, (count, 1), generator=generator)
    rows = ((place % 8 < 4) * torch.randint(80, 256, (count, 1), generator=generator))[:, None, :, None]
    k = torch.where(label[:, None, None, None] == 0, rows, rows.transpose(2, 3)).expand(-1, -1, size, size)
    return ImageDataset(k.to(torch.uint8).contiguous(), label, Quantization())


def test_a_judge_is_trained_once_for_all_processes(digits, cache, monkeypatch):
    first = judge_of(digits[0], steps=2)
    monkeypatch.setattr(module, "_JUDGES", {})  # as in another process

    def fail(*_, **__):
        raise AssertionError("a judge was trained")

    monkeypatch.setattr(module, "train_classifier", fail)
    again = judge_of(digits[0], steps=2)
    assert again is not first
    assert again.digest == first.digest
    assert torch.equal(again.reference, first.reference)
    assert again.quality(digits[1].k) == first.quality(digits[1].k)
    with pytest.raises(AssertionError, match="a judge was trained"):
        judge_of(digits[0], steps=3)
    with pytest.raises(AssertionError, match="a judge was trained"):
        judge_of(digits[0]._replace(label=None), steps=2)


def test_a_damaged_judge_is_trained_again(digits, cache, monkeypatch):
    first = judge_of(digits[0], steps=2)
    (file,) = cache.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    monkeypatch.setattr(module, "_JUDGES", {})
    with pytest.warns(Notice, match="the judge of these images: .* is damaged .* and computed again"):
        assert judge_of(digits[0], steps=2).digest == first.digest
    kept = {name: value for name, value in load_file(file).items() if name != "reference"}
    save_file(kept, file)
    monkeypatch.setattr(module, "_JUDGES", {})
    with pytest.warns(Notice, match="is damaged .it has no reference. and computed again"):
        assert judge_of(digits[0], steps=2).digest == first.digest
    assert [p.suffix for p in sorted(cache.iterdir())] == [".lock", ".safetensors"]


def test_no_files_without_a_cache(digits, cache, monkeypatch):
    monkeypatch.setenv("UNNOISE_CACHE", "none")
    assert judge_of(digits[0], steps=1) is judge_of(digits[0], steps=1)
    assert not cache.exists()


def test_a_judge_is_a_feature_extractor(digits):
    judge = Judge(digits[0], steps=2)
    k, quantization = digits[1].k[:20], digits[1].quantization
    features = judge.of(k, quantization)
    assert judge.name == "judge"
    assert judge.size == features.shape[1] == 64
    torch.testing.assert_close(judge.logits(features), judge.classifier(judge.unit(k)))
    with pytest.raises(
        UsageError, match="trained on images of 1x8x8 with 17 quantization levels, and these are of 1x4x8"
    ):
        judge.of(k[:, :, :4], quantization)
    with pytest.raises(UsageError, match="with 256 quantization levels"):
        judge.of(k, Quantization())


def test_larger_images_have_whitened_features():
    train = stripes(120)
    judge = Judge(train, steps=20)
    assert isinstance(judge.classifier, PooledClassifier)
    covariance = torch.cov(judge.reference.T)
    assert judge.reference.mean(0).abs().max() < 1e-3
    assert (covariance.diagonal() < 1.001).all()
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-2
    torch.testing.assert_close(
        judge.logits(judge.features(train.k)), judge.classifier(judge.unit(train.k)), atol=1e-3, rtol=1e-3
    )


def test_whitening_has_an_inverse():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.tensor([1.0, 2, 5, 0.0])) + 3
    mean, whiten, unwhiten = whitening_of(x)
    torch.testing.assert_close((x - mean) @ whiten @ unwhiten + mean, x, atol=1e-4, rtol=1e-4)
    expected = torch.tensor([0.0, 1, 1, 1])
    torch.testing.assert_close(((x - mean) @ whiten).var(0).sort().values, expected, atol=0.02, rtol=0)


def test_a_set_without_labels_is_judged_by_its_mirrorings(digits):
    train, test = (images._replace(label=None) for images in digits)
    judge = Judge(image_dataset("digits")._replace(label=None), steps=25)
    assert judge.name == "mirrored"
    assert judge.classes == 4
    assert judge.accuracy(test) > 0.4
    noise = torch.randint(0, 17, test.k.shape, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(judge.features(noise), judge.reference) > 5 * judge.distances(test.k)[0]
    assert judge.remarks(test) == ("", "")
    with pytest.raises(UsageError, match="without labels has no classes"):
        judge.quality(train.k)


def test_mirrorings():
    x = torch.arange(4.0).reshape(1, 1, 2, 2).expand(4, 1, 2, 2)
    found = mirrored(x, torch.arange(4)).flatten(1).tolist()
    assert found == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]


def test_remarks_on_labels_that_cannot_be_learned_and_on_distant_images(digits):
    train, test = digits
    random = torch.randint(10, (80,), generator=torch.Generator().manual_seed(0))
    far, unsure = Judge(train._replace(label=random), steps=2).remarks(test)
    assert re.fullmatch(r"the judge says nothing here: accuracy 0.\d\d on held-out images", unsure)
    judge = Judge(train, steps=30)
    real, training = judge.distances(test.k)
    assert real < 3 * training
    assert judge.remarks(test._replace(k=16 - test.k))[0].startswith("the judge says nothing here: distance ")


def test_distances_are_of_sets_of_equal_number(digits):
    """Of training images the distance of a part from the other part is that of held-out images."""
    judge = Judge(digits[0], steps=2)
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(5):
        order = torch.randperm(80, generator=generator)
        found.append(frechet_distance(judge.reference[order[:40]], judge.reference[order[40:]]))
    assert judge.distances(digits[1].k)[1] == pytest.approx(sum(found) / 5)
    spread = torch.arange(40) * len(digits[1].k) // 40  # held-out images of all classes where they are sorted
    held_out = frechet_distance(judge.features(digits[1].k[spread]), judge.reference)
    assert judge.distances(digits[1].k)[0] == pytest.approx(held_out)


def test_a_set_of_three_images_has_a_judge_without_remarks(digits):
    few = digits[0].subset(3)
    judge = Judge(few, steps=1)
    assert all(d != d for d in judge.distances(few.k))
    assert judge.remarks(few)[0] == ""


def test_the_weights_with_the_lowest_loss_on_images_not_trained_on_are_kept(monkeypatch):
    """Those images have the labels of the other class: what is learned makes their loss worse."""
    train, losses = stripes(60), []
    checked = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:6].sort().values
    label = torch.arange(60) % 2
    label[checked] = 1 - label[checked]

    class Watched(PooledClassifier):
        def forward(self, x):
            found = super().forward(x)
            if not self.training:
                losses.append(float(torch.nn.functional.cross_entropy(found, label[checked])))
            return found

    monkeypatch.setattr(networks, "CHECK_EVERY", 2)
    monkeypatch.setattr(networks, "PooledClassifier", Watched)
    kept = train_pooled_classifier(train.k, label, 2, unit=lambda k: k / 255, batch=16, steps=16)
    kept(train.k[checked] / 255)
    *looks, last = losses
    assert len(looks) == 8
    assert last == pytest.approx(min(looks), abs=1e-6)
    assert last < looks[-1] - 0.01


def test_moved_images_are_near_and_differ():
    x = torch.zeros(50, 1, 16, 16)
    x[:, :, 8, 8] = 1
    found = moved(x, torch.Generator().manual_seed(0)).flatten(1)
    place = found.argmax(1)
    assert len(place.unique()) > 10
    assert ((place // 16 - 8).abs() <= 3).all()
    one = torch.ones(3, 1, 16, 16)
    torch.testing.assert_close(moved(one, torch.Generator().manual_seed(0)), one)


def test_measures_are_exact_where_the_model_runs_under_autocast(digits, cache, monkeypatch):
    """The judge is trained, kept and applied in float32, whatever the precision of the model that is measured."""
    train, test = digits

    def measured():
        monkeypatch.setattr(module, "_JUDGES", {})
        monkeypatch.setenv("UNNOISE_CACHE", "none")
        real = RealImages("digits", train, test)
        return measure_images(test.k[:40], test.quantization, real, judge_of=lambda k, p: judge_of(k, p, steps=2))[1]

    exact = measured()
    with torch.autocast("cpu", torch.bfloat16):
        assert measured() == exact
        judge = judge_of(train, steps=2)
        features = judge_of(train, steps=2).features(test.k[:10])
        with in_float32():
            assert torch.is_autocast_enabled("cpu") is False
            assert not torch.equal(judge.features(test.k[:10]), features)
        assert torch.is_autocast_enabled("cpu")
