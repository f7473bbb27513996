"""Evaluations of images: what is measured and left out, by which protocol, and samples in files from anywhere."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from unnoise import __version__
from unnoise.experiments import evaluation
from unnoise.experiments.cli import main
from unnoise.experiments.cli.evaluating import has_samples
from unnoise.experiments.evaluation import captions_in_turn, requested_labels
from unnoise.experiments.image_measures import extractors
from unnoise.experiments.papers import ddpm
from unnoise.experiments.sample_evaluation import evaluate_samples
from unnoise.shared.data import image_dataset
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.metrics.features import Features
from unnoise.shared.metrics.frechet import Moments
from unnoise.shared.metrics.judge import Judge
from unnoise.shared.metrics.measurement import Evaluation, Measurement, Origin
from unnoise.shared.metrics.references import content_hash

OF_JUDGE = ["frechet", "sure", "classes", "kid_judge", "precision_judge", "recall_judge"]
OF_JUDGE += ["density_judge", "coverage_judge"]
OF_RUN = [*OF_JUDGE[:3], "agreement", *OF_JUDGE[3:]]
"""The measures of a judge of samples with class labels."""


class Means(Features):
    """Means of rows, as features of a reader's own."""

    name, resize, digest = "means", "", "0123456789ab"

    def of(self, k, quantization):
        return k.float().mean(3).flatten(1)


@pytest.fixture(scope="module")
def judge():
    return Judge(image_dataset("digits"), steps=5)


@pytest.fixture
def judged(judge, monkeypatch):
    """A judge that is trained for a moment only."""
    monkeypatch.setattr(evaluation, "judge_of", lambda *_: judge)


@pytest.fixture(scope="module")
def model():
    recipe, data = ddpm.smoke(), image_dataset("digits")
    torch.manual_seed(0)
    return recipe, recipe.objective(data.shape, data.quantization).denoiser


def names(found):
    return [m.name for m in found.measurements]


def measured(model, **options):
    recipe, denoiser = model
    return recipe.evaluate(denoiser, **({"count": 8, "steps": 2} | options))


def test_each_number_has_its_protocol_and_origin(judged, model, judge):
    found = measured(model)
    assert names(found) == ["bits_per_dim", *OF_RUN, "memorized_pixels"]
    test, train = image_dataset("digits", split="test").subset(8), image_dataset("digits")
    bits, distance = found.measurement("bits_per_dim"), found.measurement("frechet")
    assert (bits.unit, bits.better, bits.error) == ("bits/dim", "lower", found["standard_error"])
    assert bits.protocol.short() == (
        f"8 examples, of digits, held out, 8 images of 1x8x8 #{content_hash(test.k)[:6]}, "
        "with the bits of the class label"
    )
    assert bits.note == "upper bound, Bound(terms=4)"
    assert bits.origin.sampler == ""
    assert distance.origin.short().startswith("Ancestral(), 2 steps, 2 evaluations, seed 0, unnoise ")
    assert (distance.protocol.features, distance.protocol.features_hash) == ("judge", judge.digest)
    assert distance.protocol.reference_hash == content_hash(train.k)
    assert distance.held_out == found["frechet_of_held_out"] == judge.quality(test.k).frechet
    assert f"accuracy of the judge {judge.accuracy(test):.3f}" in distance.note
    quality = judge.quality(test.k)
    assert found.measurement("agreement").held_out == judge.accuracy(test) == found["agreement_of_held_out"]
    assert (found.measurement("sure").held_out, found.measurement("classes").held_out) == (
        quality.sure,
        quality.classes,
    )
    flat = {"train", "held_out", "standard_error", "kind", "count", "steps", "evaluations", "seconds"}
    assert flat <= set(found)
    assert Evaluation.from_json(json.loads(json.dumps(found.as_json()))).measurement("frechet") == distance


def test_what_is_left_out_is_not_computed(judged, model, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("this was left out")

    assert names(measured(model, without=("code-length", "kid"))) == [n for n in OF_RUN if n != "kid_judge"] + [
        "memorized_pixels"
    ]
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "judge_of", fail)
        assert names(measured(model, without=("judge", "memorization"))) == ["bits_per_dim"]
        patch.setattr(evaluation, "draw", fail)
        found = measured(model, without=("samples",))
        assert names(found) == ["bits_per_dim"]
        assert "steps" not in found
    monkeypatch.setattr(evaluation, "bits_per_dim", fail)
    assert "bits_per_dim" not in measured(model, without=("code-length", "memorization"))


def test_other_numbers_of_samples(judged, model):
    found = measured(model, samples=12, without=("memorization",))
    assert found["count"] == found.measurement("frechet").protocol.samples == 12
    assert found.measurement("bits_per_dim").protocol.samples == 8
    assert "real data" not in found.measurement("precision_judge").note  # as many real images as samples
    assert found.measurement("precision_judge").held_out is not None
    few = measured(model, samples=3, without=("memorization", "code-length"))
    assert few["left_out_judge"] == "precision, recall, density, coverage need at least 4 images and 6 training images"
    assert names(few) == ["frechet", "sure", "classes", "agreement", "kid_judge"]


def test_samples_have_to_show_the_labels_that_they_were_drawn_with():
    """Sample i of a model with class labels has the label i mod 10; without labels there is nothing to show."""
    recipe, test = ddpm.smoke(), image_dataset("digits", split="test")
    assert requested_labels(recipe, test, 12).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert requested_labels(replace(recipe, data=replace(recipe.data, classes=None)), test, 3) is None
    assert requested_labels(recipe, test._replace(label=None), 3) is None


def test_captions_are_taken_in_turn_where_there_are_more_samples():
    class Data:
        @staticmethod
        def caption_sizes():
            return {"length": 1}

        @staticmethod
        def conditions_of(images):
            return {"tokens": torch.arange(3)[:, None]}

    class Recipe:
        data = Data

    images = image_dataset("digits").subset(3)
    conditions = captions_in_turn(Recipe, images)
    assert conditions(torch.arange(5))["tokens"].flatten().tolist() == [0, 1, 2, 0, 1]


def test_features_of_ones_own_and_statistics(judged, model, tmp_path):
    own = tmp_path / "features_of_mine.py"
    own.write_text(
        "from unnoise.shared.metrics.features import Features\n\n\nclass Means(Features):\n"
        "    name, resize, digest = 'means', '', '0123456789ab'\n\n"
        "    def of(self, k, quantization):\n        return k.float().mean(3).flatten(1)\n"
    )
    by_name = measured(model, features=(f"{own}:Means",), without=("code-length", "memorization"))
    assert names(by_name)[:2] == ["frechet_means", "kid_means"]
    assert "judge" not in by_name
    train = image_dataset("digits")
    moments = Moments.of(Means().of(train.k, train.quantization))
    np.savez(tmp_path / "ref.npz", mu=moments.mean.numpy(), sigma=moments.covariance.numpy())
    options = {"features": (Means(),), "without": ("code-length", "memorization")}
    by_file = measured(model, statistics=tmp_path / "ref.npz", **options)
    assert names(by_file) == ["frechet_means"]
    assert by_file["frechet_means"] == pytest.approx(by_name["frechet_means"], rel=1e-6)
    assert by_file.measurement("frechet_means").protocol.reference == "ref.npz"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "samples=0: .* at least 2; give 2 or more"),
        ({"samples": 5, "without": ("samples",)}, "samples=5 has no effect without samples"),
        ({"statistics": "a.npz", "without": ("samples",)}, "statistics=a.npz has no effect without samples"),
        ({"without": ("kind",)}, "without=kind: did you mean kid. of images, choose from code-length"),
        ({"without": ("samples", "code-length")}, "nothing is left to measure"),
        ({"features": ("judgment",)}, "features=judgment: did you mean judge. choose from judge, inception"),
        ({"features": ("evaluation.py:Nothing",)}, "there is no file evaluation.py"),
        ({"zero_shot": "wikitext"}, "zero_shot=wikitext has no effect on these data, which are not text"),
    ],
)
def test_bad_options_are_refused_before_any_work(model, monkeypatch, options, words):
    def fail(*_, **__):
        raise AssertionError("work was done")

    for name in ("judge_of", "bits_per_dim", "draw", "splits"):
        monkeypatch.setattr(evaluation, name, fail)
    with pytest.raises(UsageError, match=words) as error:
        measured(model, **options)
    assert "\n" not in str(error.value)


def test_statistics_bring_inception_with_them(tmp_path, monkeypatch):
    (tmp_path / "a.npz").touch()
    asked = []
    monkeypatch.setattr(
        "unnoise.experiments.image_measures.extractor_named", lambda name, **_: asked.append(name) or Means()
    )
    with pytest.warns(Notice, match=r"the statistics in .*a.npz are compared on Inception features"):
        judged, others = extractors(("judge",), (), tmp_path / "a.npz")
    assert (judged, asked, len(others)) == (True, ["inception"], 1)
    assert extractors(("judge", "clip"), ("judge",))[0] is False
    assert extractors(("inception",), ("samples",)) == (False, [])


def test_remarks_of_the_judge_go_with_its_numbers(judged, model, judge, monkeypatch):
    monkeypatch.setattr(Judge, "remarks", lambda *_: ("", "the judge says nothing here: accuracy 0.35"))
    found = {m.name: m for m in measured(model, without=("code-length", "memorization")).measurements}
    assert found["sure"].better == ""
    assert found["sure"].note.startswith("the judge says nothing here")
    assert found["frechet"].better == "lower"
    monkeypatch.setattr(Judge, "remarks", lambda *_: ("the judge says nothing here: distance 9", ""))
    for m in measured(model, without=("code-length", "memorization")).measurements:
        assert m.better == ""
        assert m.note.startswith("the judge says nothing here: distance 9")


def test_a_set_without_labels_has_distances(model, monkeypatch):
    recipe, denoiser = model
    bare = {split: image_dataset("digits", split=split).subset(20)._replace(label=None) for split in ("train", "test")}
    monkeypatch.setattr(type(recipe), "load", lambda self, split="train", progress=None: bare[split])
    monkeypatch.setattr(evaluation, "judge_of", lambda images, progress: Judge(images, steps=2))
    found = recipe.evaluate(denoiser, count=8, steps=2, without=("code-length", "memorization"))
    assert names(found) == [
        f"{name}_mirrored" for name in ("frechet", "kid", "precision", "recall", "density", "coverage")
    ]


@pytest.fixture
def files(tmp_path):
    """Held-out digits as samples: an .npz file of bytes."""
    test = image_dataset("digits", split="test").subset(20)
    pixels = (test.k.float() * 255 / 16).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    origin = {"origin": {"sampler": "Heun()", "steps": 9, "seed": 4}, "kind": "images", "run": "mine"}
    np.savez(tmp_path / "s.npz", arr_0=pixels, origin=json.dumps(origin))
    return tmp_path


def test_samples_in_files_are_measured_as_those_of_a_run(judged, judge, files, capsys):
    assert main(["evaluate", str(files / "s.npz"), "--data", "digits"]) == 0
    shown = capsys.readouterr().out
    data = json.loads((files / "s.npz.evaluation.json").read_text())
    found = Evaluation.from_json(data)
    assert names(found) == [*OF_JUDGE, "memorized_pixels"]
    assert found.measurement("frechet").origin == Origin("Heun()", 9, seed=4)
    assert found["run"] == "mine"
    assert found["measured_by"] == f"unnoise {__version__}"
    exact = judge.quality(image_dataset("digits", split="test").subset(20).k)
    assert found["frechet"] == pytest.approx(exact.frechet, rel=1e-6)
    assert found["sure"] == exact.sure
    assert found.measurement("frechet").line() in shown
    assert main(["evaluate", str(files / "s.npz"), "--data", "digits", "--without", "judge"]) == 0
    assert json.loads((files / "s.npz.evaluation-1.json").read_text()) == data


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "has 20 images of 1x8x8: give the data set .* such as --data digits, or --statistics"),
        (["--data", "mnist5k"], "images of 1x8x8, and those of mnist5k are of 1x28x28: give a data set of the same"),
        (["--data", "digits", "--judge-model", "gpt2"], "--judge-model has no effect on images: leave it out"),
        (["--data", "digits", "--without", "loss"], "without=loss: .*of images, choose from"),
        (["--data", "digits", "--features", "incepton"], "features=incepton: did you mean inception"),
    ],
)
def test_samples_that_cannot_be_compared(files, capsys, options, words):
    assert main(["evaluate", str(files / "s.npz"), *options]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(words, line), line
    assert not (files / "s.npz.evaluation.json").exists()


def test_one_sample_and_a_folder_without_images(tmp_path, capsys):
    np.savez(tmp_path / "one.npz", arr_0=np.zeros((1, 8, 8, 1), np.uint8))
    assert main(["evaluate", str(tmp_path / "one.npz"), "--data", "digits"]) == 2
    assert "distances need at least 2, so give more samples" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", str(tmp_path / "empty"), "--data", "digits"]) == 2
    assert "empty" in capsys.readouterr().err


def test_runs_are_not_taken_for_samples(tmp_path):
    for made in ("run/checkpoints/8", "started", "runs/one/checkpoints", "photos/red"):
        (tmp_path / made).mkdir(parents=True)
    (tmp_path / "started" / "metrics.jsonl").touch()
    paths = [tmp_path / name for name in ("run", "run/checkpoints/8", "started", "runs", "missing")]
    assert not any(has_samples(path) for path in paths)
    assert has_samples(tmp_path / "photos")
    assert has_samples(tmp_path / "missing.npz")


def test_texts_and_arrays_in_files(tmp_path):
    (tmp_path / "s.txt").write_text("to be or not to be that is the question\n\nall the world is a stage\n")
    found = evaluate_samples(tmp_path / "s.txt", "shakespeare", without=("judge", "memorization", "n-grams"))
    assert names(found) == ["sample_entropy_bits"]
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    np.save(tmp_path / "data.npy", x)
    np.savez(tmp_path / "x.npz", x=x[:20])
    found = evaluate_samples(tmp_path / "x.npz", str(tmp_path / "data.npy"))
    assert names(found) == ["frechet"]
    assert found.measurement("frechet").protocol.reference.startswith("data.npy, train, ")
    for options, words in (
        ({"size": 4}, "--size has no effect on arrays"),
        ({"without": ("kid",)}, "without=kid: arr"),
    ):
        with pytest.raises(UsageError, match=words):
            evaluate_samples(tmp_path / "x.npz", str(tmp_path / "data.npy"), **options)


def test_lines_show_error_and_real_data():
    line = Measurement("sure", 0.5, error=0.25, held_out=1.0).line()
    assert line.startswith("sure                     0.5 ± 0.25 (real held-out data 1)")
