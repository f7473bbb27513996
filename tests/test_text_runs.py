"""Text from a file, with a tokenizer and with a prompt, by the command line."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unnoise.discrete import (
    Absorbing,
    Categorical,
    Dense,
    FirstHitting,
    Infilling,
    LogLinearNoise,
    Unmasking,
    nearest,
    prefix,
    sliding,
)
from unnoise.experiments import recipes
from unnoise.experiments.cli import main
from unnoise.experiments.papers import d3pm_text
from unnoise.shared.data import Packed, characters, documents, shakespeare, subwords, train_tokenizer
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.guidance import ClassifierFree
from unnoise.shared.networks import UNet
from unnoise.shared.serialization import serialize

LINES = [
    f"the {a} fox saw {b} dogs and {c} cats"
    for a in ("quick", "old", "red")
    for b in ("two", "ten", "six")
    for c in ("five", "no")
] * 12
TINY = [
    "--network.width",
    "16",
    "--network.depth",
    "1",
    "--network.heads",
    "2",
    "--training.steps",
    "4",
    "--data.length",
    "16",
]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my.txt"
    path.write_text("\n".join(LINES))
    return path


def test_checkpoints_of_every_recipe_can_be_loaded():
    """`unnoise.experiments.load` alone, in a process of its own, knows every recipe's class."""
    one_of_each = {type(preset()): preset() for preset in recipes.RECIPES.values()}
    code = (
        "import json, sys; from unnoise.experiments import load; from unnoise.shared.serialization import deserialize; "
        "print(*(type(deserialize(d)).__name__ for d in json.load(sys.stdin)))"
    )
    described = json.dumps([serialize(recipe) for recipe in one_of_each.values()])
    known = subprocess.run([sys.executable, "-c", code], input=described, check=True, capture_output=True, text=True)
    assert known.stdout.split() == [cls.__name__ for cls in one_of_each]


def test_of_a_single_file_the_end_is_held_out(corpus, capsys):
    assert main(["train", "mdlm-smoke", "--data.name", "my.txt", *TINY, "--out", "run"]) == 0
    assert main(["evaluate", "run", "--count", "4"]) == 0
    assert json.loads(Path("run/evaluation.json").read_text())["windows"] == 4
    assert main(["train", "mdlm-smoke", "--data.name", "my.txt", *TINY, "--resume", "--out", "nowhere"]) == 2
    assert "nothing to resume" in capsys.readouterr().err


def test_a_run_keeps_its_tokenizer(corpus, capsys):
    first, other = (train_tokenizer(LINES[i::2], size) for i, size in ((0, 280), (1, 290)))
    first.save("tok.json")
    layout = ["--data.name", "my.txt", "--data.tokenizer", "tok.json", "--data.layout", "padded", "--data.batch", "4"]
    assert main(["train", "mdlm-smoke", *layout, *TINY, "--out", "run"]) == 0
    assert main(["evaluate", "run", "--count", "4"]) == 0
    before = json.loads(Path("run/evaluation.json").read_text())
    other.save("tok.json")
    Path("tok.json").unlink()
    assert main(["evaluate", "run", "--count", "4"]) == 0
    after = json.loads(Path("run/evaluation.json").read_text())
    assert {k: v for k, v in after.items() if k != "sampling_seconds"} == {
        k: v for k, v in before.items() if k != "sampling_seconds"
    }
    assert "sample_entropy_bits" in after
    assert main(["train", "mdlm-smoke", "--data.layout", "padded", "--out", "other"]) == 2
    assert "text of 27 characters is always packed" in capsys.readouterr().err


def test_ends_of_windows_are_paid_for(corpus):
    tokenizer = train_tokenizer(LINES, 280)
    plain, framed = (subwords(str(corpus), "train", 16, tokenizer, layout) for layout in (Packed(), Packed(ends=True)))
    # All windows at 1 nat a token, over the characters that they hold: 14 of 16 tokens are text.
    assert plain.bits_per_character(1.0) == pytest.approx(plain.tokens / (plain.characters * math.log(2)))
    assert framed.bits_per_character(1.0) == pytest.approx(plain.bits_per_character(1.0) * 16 / 14)
    assert framed.perplexity_per_word(1.0) == pytest.approx(math.exp(plain.tokens / plain.words * 16 / 14))
    for text in (plain, characters(str(corpus), "train", 16)):
        assert text.decode(text.encode("the quick fox")[None]) == ["the quick fox"]


def masked(known=3):
    network = torch.nn.Module()
    network.forward = lambda x, label: torch.sin(torch.arange(5.0) + x[..., None])
    return Categorical(network, Absorbing(5, LogLinearNoise(eps=0.0)))


@pytest.mark.parametrize("sampler", [Unmasking, FirstHitting])
def test_a_prompt_begins_long_text_and_comes_once(sampler, generator):
    prompt = torch.tensor([4, 3, 4, 3])
    text = sliding(sampler(masked()), 40, window=8, overlap=3, batch=3, steps=8, generator=generator, prompt=prompt)
    assert (text[:, :4] == prompt).all()
    with pytest.raises(UsageError, match="the beginning of the text as prompt="):
        sliding(Infilling(sampler(masked()), *prefix(prompt, 8)), 40, window=8, overlap=3, batch=3, steps=8)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dense(torch.full((2, 3, 3), math.nan)), "row 0 of Q_1 does not sum to one"),
        (lambda: nearest(torch.full((5, 2), math.nan), 2), "the embeddings contain NaN or infinity"),
        (lambda: train_tokenizer("my.txt", 300), "such as documents"),
        (lambda: shakespeare(length=16).encode("!?"), "nothing that this vocabulary of 27 tokens can encode"),
        (lambda: ClassifierFree(masked(), 1.0), "is a Categorical: give a Gaussian denoiser .*see unnoise.discrete"),
        (
            lambda: UNet((1, 4, 4), 8, (1,), 1, (), categories=4)(torch.full((1, 1, 4, 4), 4), torch.ones(1)),
            "categories=K . 1, logits=K",
        ),
        (lambda: UNet((1, 4, 4), 8, (1,), 1, (), logits=2), "logits=2 with categories=None"),
        (
            lambda: Infilling(Unmasking(masked()), *prefix(torch.zeros(3).long(), 8))(shape=(2, 9), steps=3),
            "8 known positions do not fit 9",
        ),
    ],
)
def test_what_new_users_did_wrong(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_documents_feed_a_tokenizer(corpus):
    assert train_tokenizer(documents(str(corpus)), 280).size <= 280


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seconds_per_model": -1.0}, "seconds_per_model=-1.0: give a positive number of seconds, or None"),
        ({"seconds_per_model": 0.0}, "seconds_per_model=0.0: give a positive number"),
        ({"measured": (0, 8)}, r"measured=\(0, 8\): give a positive number of windows"),
        ({"measured": (8, -1)}, r"measured=\(8, -1\): give a positive number of windows"),
    ],
)
def test_settings_of_the_comparison_of_texts(settings, words):
    with pytest.raises(UsageError, match=words):
        d3pm_text.TextComparison(**settings)


def test_models_that_are_compared_have_the_size_and_the_training_of_the_recipe():
    recipe = d3pm_text.smoke()
    models = d3pm_text.TextComparison(neighbors=3).models(recipe)
    assert [repr(model.transition) for model in models.values()] == [
        "Absorbing(schedule=reciprocal(steps=100))",
        "with_mutual_information(transition=NearestNeighbor(neighbors=context_neighbors(count=3)), steps=100)",
        "with_mutual_information(transition=Uniform(), steps=100)",
        "Absorbing(schedule=LogLinearNoise())",
        "Absorbing(schedule=LogLinearNoise())",
        "Uniform(schedule=LogLinearNoise())",
    ]
    assert [model.network.name for model in models.values()] == ["Transformer"] * 3 + ["DiT", "DiT", "Transformer"]
    assert [model.network["timed"] for model in models.values() if model.network.name == "DiT"] == [False, True]
    for model in models.values():
        assert [model.network[name] for name in ("width", "depth", "heads")] == [16, 1, 2]
        assert (model.data, model.training, model.sampling_steps, model.code_length) == (
            recipe.data,
            recipe.training,
            recipe.sampling_steps,
            recipe.code_length,
        )
    # MDLM runs in continuous time and has no number of steps T.
    with pytest.raises(UsageError, match="has continuous time, and the figure compares transitions in T steps"):
        d3pm_text.TextComparison().models(models["MDLM"])


def test_the_comparison_takes_no_tokenizer(tmp_path):
    """Bits per token of n-grams are not bits per character."""
    recipe = d3pm_text.smoke()
    recipe = replace(recipe, data=replace(recipe.data, tokenizer="tokenizer.json"))
    with pytest.raises(UsageError, match="leave out --data.tokenizer"):
        recipe.figure.draw(recipe, tmp_path)
