"""Models of images with captions: training, sampling and measuring, from the command line and in Python."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unnoise.experiments import evaluation
from unnoise.experiments.categorical import CategoricalLoss, CategoricalRecipe
from unnoise.experiments.cli import main
from unnoise.experiments.gaussian import GaussianLoss, GaussianRecipe
from unnoise.experiments.image_data import Images, held_out
from unnoise.experiments.papers import text_to_image
from unnoise.experiments.parts import part
from unnoise.shared.data import Batches, train_tokenizer
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.guidance import ClassifierFree, ConditionDropout
from unnoise.shared.metrics.judge import Judge
from unnoise.shared.networks import CaptionEncoder, UNet
from unnoise.shared.training import load

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
TEST = ["a blue square", "a red square", "White", "a green square"]
ENCODER = part(CaptionEncoder, width=8, depth=1, heads=2)
NETWORK = part(UNet, width=8, multipliers=(1,), blocks=1, attention=(), heads=1)


def write_images(folder, captions):
    folder.mkdir(parents=True)
    lines = []
    for n, caption in enumerate(captions):
        color = next(color for name, color in COLORS.items() if name in caption.lower())
        Image.new("RGB", (8, 8), color).save(folder / f"{n}.png")
        lines.append({"file_name": f"{n}.png", "caption": caption, "label": list(COLORS.values()).index(color)})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Images of one color, whose captions name it, and whose labels are the colors."""
    home = tmp_path_factory.mktemp("squares")
    write_images(home / "set" / "train", [f"a {name} square" for name in COLORS] * 4)
    write_images(home / "set" / "test", TEST)
    return home / "set"


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory):
    """A run whose data are gone."""
    home = tmp_path_factory.mktemp("run")
    shutil.copytree(squares, home / "set")
    words = ["--data.name", home / "set", "--data.batch", 16, "--data.caption-length", 6]
    words += ["--training.steps", 30, "--training.learning-rate", 1e-2, "--training.ema", 0.5]
    assert command("train", "openmoji-smoke", "--out", home / "run", *words, "--training.watch-every", 0) == 0
    (home / "set").rename(home / "gone")
    return home / "run"


@pytest.fixture
def sampled(run, tmp_path):
    """Returns the samples of the run, an array, for options of the command line."""

    def sample(*options, count=4):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        assert command("sample", run, "--count", count, "--steps", 3, "--out", path, *options) == 0
        return np.load(path)

    return sample


def command(*arguments):
    return main([str(a) for a in arguments])


def refused(capsys, words, *arguments):
    capsys.readouterr()
    assert command(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(words, error), error


def test_samples_have_their_captions_in_turn(sampled, tmp_path, capsys):
    both = sampled("--caption", "a red square", "--caption", "A green square")
    assert both["captions"].tolist() == ["a red square", "A green square"] * 2
    assert "of the captions 'a red square', 'A green square'" in capsys.readouterr().out
    (tmp_path / "captions.txt").write_text("a red square\n\n  a green square\n")
    of_file = sampled("--captions", tmp_path / "captions.txt")
    assert (of_file["arr_0"] == both["arr_0"]).all()  # small letters and capitals are one word
    red = sampled("--caption", "a red square")
    assert (red["arr_0"][0] == both["arr_0"][0]).all()
    assert (red["arr_0"][1] != both["arr_0"][1]).any()


def test_guidance_knows_the_empty_caption(sampled):
    """With w = -1, guidance gives the estimate without the caption."""
    without = sampled("--caption", "", "--guidance", "None")["arr_0"].astype(int)
    assert np.abs(sampled("--caption", "a red square", "--guidance", "-1")["arr_0"] - without).max() <= 1
    assert np.abs(sampled("--caption", "a red square", "--guidance", "0")["arr_0"] - without).max() > 1


def test_a_folder_of_samples_is_a_set_with_captions(run, tmp_path):
    words = ("--count", 2, "--steps", 2, "--caption", "a red square", "--caption", "White")
    assert command("sample", run, "--out", tmp_path / "set" / "train", *words) == 0
    data = Images(str(tmp_path / "set"), caption_length=6)
    assert data.load().captions == ("a red square", "White")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--caption", "a very dark red square"], r"'a very dark red square' has \d+ tokens .* and the model takes 6"),
        (["--caption", "a", "--tokenizer", "t.json"], "--tokenizer t.json: the run has its own: leave it out"),
        (["--captions", "none.txt"], "--captions none.txt cannot be read"),
        (["--captions", "empty.txt"], "--captions empty.txt has no captions"),
        ([], "there is no folder .*set.*; captions of your own need no data: give --caption"),
    ],
)
def test_captions_that_cannot_be_sampled(run, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    held_out.cache_clear()
    (tmp_path / "empty.txt").write_text("\n \n")
    refused(capsys, words, "sample", run, "--count", 1, *options)


def test_a_run_keeps_the_tokenizer_that_was_trained_on_its_captions(run, squares):
    recipe = load(run).experiment
    captions = Images(str(squares), caption_length=6).load().captions
    assert recipe.data.read_tokenizer() == train_tokenizer(captions, 300, uniform_words=True)
    assert recipe.data.vocabulary is None


def test_samples_and_captions_of_held_out_images(squares):
    data, rows = Images(str(squares), caption_length=6), torch.tensor([5, 2])
    assert data.captions(rows) == ["a red square", "White"]
    assert data.conditions(rows).keys() == {"tokens"}
    test = data.load("test")
    assert data.conditions(rows)["tokens"].equal(data.conditions_of(test)["tokens"][[1, 2]])
    both = replace(data, classes=4).conditions(rows)
    assert both["label"].tolist() == [0, 3]  # of the image with the caption


def test_batches_have_the_tokens_of_their_images(squares):
    for data in (Images(str(squares), batch=8, caption_length=6), Images(str(squares), 8, caption_length=6, smaller=2)):
        images = data.load()
        batches = data.batches(images, lambda quantization, k, source: k, 16)
        assert isinstance(batches, Batches)
        batch = batches.at(0, range(8))
        of_color = {tuple(k[:, 0, 0].tolist()): t for k, t in zip(images.k, data.tokens(images).tokens, strict=True)}
        assert all(
            of_color[tuple(k[:, 0, 0].tolist())].equal(t) for k, t in zip(batch["x0"], batch["tokens"], strict=True)
        )
        assert ("image" in batch) == (data.smaller is not None)


def test_captions_without_a_test_split(squares, tmp_path):
    shutil.copytree(squares / "train", tmp_path / "set" / "train")
    data = Images(str(tmp_path / "set"), caption_length=6)
    assert "samples are drawn of the captions of the split train" in data.load().summary
    assert data.captions(torch.arange(2)) == ["a red square", "a green square"]


def test_captions_are_dropped_and_guided(squares):
    gaussian = GaussianRecipe(
        data=Images(str(squares), caption_length=6),
        network=NETWORK.changed(tokens=ENCODER),
        loss=GaussianLoss(drop_caption=0.25),
        guidance=part(ClassifierFree, w=1.0),
    )
    categorical = CategoricalRecipe(
        data=gaussian.data, network=gaussian.network, loss=CategoricalLoss(drop_caption=0.25)
    )
    images = gaussian.load()
    for recipe in (gaussian, categorical):
        objective = recipe.objective(images.shape, images.quantization)
        assert isinstance(objective, ConditionDropout)
        assert (objective.p, objective.condition) == (0.25, "tokens")
        recipe.check(objective, images.shape, images.quantization)
    assert (
        gaussian.sampler_of(gaussian.objective(images.shape, images.quantization).denoiser).denoiser.condition
        == "tokens"
    )


def checked(recipe):
    images = recipe.load()
    recipe.check(recipe.objective(images.shape, images.quantization), images.shape, images.quantization)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": NETWORK}, "the data have captions, and the network does not take them"),
        ({"data": {"caption_length": None}}, "has an encoder of captions, and the data give none"),
        (
            {
                "data": {"caption_length": None},
                "network": NETWORK.changed(tokens=ENCODER.changed(vocabulary=9, length=6)),
            },
            "the network takes captions, and the data give none",
        ),
        (
            {"guidance": part(ClassifierFree, w=1.0), "network": NETWORK.changed(tokens=ENCODER)},
            "trained without captions: train with loss.drop_caption",
        ),
        (
            {"data": {"caption_length": None, "vocabulary": 300}},
            "vocabulary is for captions: give --data.caption-length",
        ),
        ({"data": {"tokenizer": "t.json", "vocabulary": 300}}, "vocabulary=300 has no effect, as a tokenizer is given"),
        ({"data": {"vocabulary": 100}}, "vocabulary=100: give 257 or more"),
        ({"data": {"caption_length": 1}}, "caption_length=1: give 2 or more"),
        ({"data": {"name": "digits"}}, "conditioned on captions, and digits has no captions"),
    ],
)
def test_what_does_not_fit_captions_is_refused_before_training(squares, changes, words):
    recipe = GaussianRecipe(data=Images(str(squares), caption_length=6), network=NETWORK.changed(tokens=ENCODER))
    changes = {"data": {}} | changes
    recipe = replace(recipe, **changes | {"data": replace(recipe.data, **changes["data"])})
    with pytest.raises(UsageError, match=words) as error:
        checked(recipe)
    assert "\n" not in str(error.value)


def test_samples_are_measured_against_the_class_of_their_caption(squares, monkeypatch):
    """A model that paints the color that the caption names agrees with every image, and bits are given the caption."""
    data = Images(str(squares), caption_length=6)
    recipe = replace(text_to_image.smoke(), data=data)
    test, train = data.load("test"), data.load()
    colors = {tuple(t.tolist()): k for t, k in zip(data.tokens(test).tokens, test.k, strict=True)}

    def draw(*arguments, conditions, **options):
        rows = torch.stack([colors[tuple(t.tolist())] for t in conditions(torch.arange(4))["tokens"]])
        return evaluation.SamplingRun(rows, 1, 1, 0.0)

    class Colors(Judge):
        def agreement(self, k, label):
            return float((k[:, :, 0, 0] == test.k[:, :, 0, 0]).all(1).float().mean())

    monkeypatch.setattr(evaluation, "draw", draw)
    monkeypatch.setattr(evaluation, "judge_of", lambda *_: Colors(train, steps=1))
    denoiser = recipe.objective(train.shape, train.quantization).denoiser
    found = recipe.evaluate(denoiser, count=None, steps=2)
    assert found["agreement"] == found["agreement_of_held_out"] == 1.0
    assert found["kind"] == "upper bound, given the caption"
