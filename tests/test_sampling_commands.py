"""`unnoise sample`: labels, guidance, samplers, formats and places of samples, prompts and gaps, and seeds."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import unnoise
from unnoise.continuous import DenoisingLoss, Learned, LinearBetas
from unnoise.discrete import Absorbing, Categorical, ContinuousBound, LogLinearNoise, carried
from unnoise.experiments.cli import main
from unnoise.experiments.evaluation import draw
from unnoise.experiments.pretrained.imported import run_of
from unnoise.shared.data import Batches, characters, image_dataset, train_tokenizer
from unnoise.shared.networks import CaptionEncoder, DiT, UNet
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training

LINES = "the cat sat on the mat and the dog ran to the red barn"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of small runs: `named` has classes with names and was also trained without labels."""
    home = tmp_path_factory.mktemp("runs")
    for n in range(6):
        folder = home / "set" / "train" / ("cat", "dog", "owl")[n % 3]
        folder.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(n).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{n}.png")
    (home / "lines.txt").write_text(f"{LINES}\n" * 60)
    train_tokenizer([LINES], 270).save(home / "tokenizer.json")
    text = ("--data.name", home / "lines.txt", "--data.batch", 2)
    lines = {
        "named": ("ddpm-smoke", "--data.name", home / "set", "--data.classes", 3, "--loss.drop-label", 0.2),
        "d3pm": ("d3pm-smoke", "--data.batch", 16),
        "mdlm": ("mdlm-smoke", *text),
        "sedd": ("sedd-smoke", *text),
        "udlm": ("udlm-smoke", *text),
        "subwords": ("mdlm-smoke", *text, "--data.tokenizer", home / "tokenizer.json"),
    }
    for name, line in lines.items():
        more = ("--data.batch", 2) if name == "named" else ()
        assert command("train", *line, *more, "--out", home / name, *("--training.steps", 2)) == 0
    return home


def command(*arguments):
    return main([str(a) for a in arguments])


def refused(capsys, words, *arguments):
    """The command is refused with one line that has these words."""
    capsys.readouterr()
    status = command(*arguments)
    err = capsys.readouterr().err
    assert (status, err.count("\n"), err.startswith("unnoise: ")) == (2, 1, True), err
    assert re.search(words, err), err


@pytest.fixture
def sampled(tmp_path, runs, capsys):
    """Draws two samples of a run, and returns its arrays."""

    def sampled(run, *options):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        assert command("sample", runs / run, "--count", 2, "--out", path, *options) == 0, capsys.readouterr().err
        with np.load(path) as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items() if name != "origin"}

    return sampled


def by_python(runs, name, count, label=None, steps=None):
    """The quantization levels that the library draws."""
    checkpoint = unnoise.load(runs / name)
    run, denoiser = run_of(checkpoint), checkpoint.average.denoiser
    steps = run.grid(denoiser, steps or run.sampling_steps)
    conditions = None if label is None else lambda rows: {"label": torch.tensor(label)[rows % len(label)]}
    sampler = run.sampler_of(denoiser)
    return draw(run, sampler, checkpoint.shape, checkpoint.quantization, count, steps, conditions=conditions).levels


def test_labels_by_number_and_by_name(runs, sampled, capsys):
    found = sampled("named", "--labels", "owl", "0")
    assert "of the classes owl, cat:" in capsys.readouterr().out
    assert found["arr_1"].tolist() == [2, 0]
    assert torch.equal(found["arr_0"], by_python(runs, "named", 2, [2, 0]).movedim(1, -1).byte())
    assert sampled("named", "--labels", "1")["arr_1"].tolist() == [1, 1]
    assert "of the class dog in turn:" in capsys.readouterr().out
    assert sampled("named")["arr_1"].tolist() == [0, 1]
    assert "arr_1" not in sampled("mdlm")


@pytest.mark.parametrize("label", ["3", "-1", "bird", "1.0", ""])
def test_labels_out_of_range(runs, capsys, label):
    words = f"--labels {re.escape(label)}: give numbers from 0 to 2, or one of cat, dog, owl"
    refused(capsys, words, "sample", runs / "named", "--labels", "1", label)


def test_guidance_needs_training_without_labels(runs, sampled, capsys):
    raw = ("--average", "raw")  # the average of two steps is still that of an untrained network
    plain, guided = (sampled("named", *raw, *options)["arr_0"] for options in ((), ("--guidance", "3")))
    assert not torch.equal(plain, guided)
    assert torch.equal(plain, sampled("named", *raw, "--guidance", "0")["arr_0"])
    notation = ("--guidance", "ClassifierFree(w=1)", "--guidance.w", "3")
    assert torch.equal(guided, sampled("named", *raw, *notation)["arr_0"])
    words = "needs a network that was also trained without labels: train with loss.drop_label"
    refused(capsys, words, "sample", runs / "d3pm", "--guidance", "1.5")
    refused(capsys, words, "evaluate", runs / "d3pm", "--guidance", "1.5")
    refused(capsys, "--guidance: .*gidance is not a", "sample", runs / "d3pm", "--guidance", "gidance")


def test_samplers_are_changed_at_sampling_time(runs, sampled, capsys):
    plain = sampled("named")["arr_0"]
    ddim = sampled("named", "--sampler", "ddim")["arr_0"]
    assert "by DDIM of" in capsys.readouterr().out
    eta = sampled("named", "--sampler", "ddim", "--sampler.eta", "1")["arr_0"]
    assert torch.equal(eta, sampled("named", "--sampler", "DDIM(eta=1)")["arr_0"])
    assert torch.equal(eta, plain)  # DDIM with eta = 1 is DDPM with the smaller variance
    others = [
        plain,
        ddim,
        sampled("named", "--clip", "None")["arr_0"],
        sampled("named", "--spacing", "quadratic")["arr_0"],
        sampled("named", "--variance", "large")["arr_0"],
        sampled("named", "--steps", "7")["arr_0"],
    ]
    for n, one in enumerate(others):
        for other in others[:n]:
            assert not torch.equal(one, other)
    refused(capsys, "eta=-1: give a number from 0", "sample", runs / "named", "--sampler", "ddim(eta=-1)")
    refused(capsys, "did you mean DDIM", "sample", runs / "named", "--sampler", "dimm")
    refused(capsys, "steps=101", "sample", runs / "named", "--steps", "101")
    refused(capsys, "steps=0", "sample", runs / "named", "--steps", "0")
    refused(capsys, "steps=quick is unknown", "sample", runs / "named", "--steps", "quick")
    refused(capsys, "count=0", "sample", runs / "named", "--count", "0")
    assert command("sample", runs / "named", "--network.width", "16") == 2  # not a setting of sampling
    assert "--network.width" in capsys.readouterr().err


def test_arrays_have_the_quantization_levels_in_eight_bits(runs, sampled):
    found = sampled("d3pm")["arr_0"]
    levels = by_python(runs, "d3pm", 2)
    assert (found.dtype, found.shape) == (torch.uint8, (2, 8, 8, 1))
    assert torch.equal(found[..., 0].double(), torch.round(levels[:, 0].double() * 255 / 16))
    tokens = sampled("mdlm")["arr_0"]
    assert torch.equal(tokens, by_python(runs, "mdlm", 2))


def test_folders_and_pictures(runs, sampled, tmp_path):
    expected = sampled("d3pm")["arr_0"]
    assert command("sample", runs / "d3pm", "--count", 2, "--out", tmp_path / "new" / "folder") == 0
    *files, labels, about = sorted((tmp_path / "new" / "folder").iterdir())
    assert [p.name for p in files] == ["000000.png", "000001.png"]
    assert [p.name for p in (labels, about)] == ["metadata.jsonl", "samples.json"]
    for path, image in zip(files, expected, strict=True):
        with Image.open(path) as picture:
            assert (picture.mode, np.asarray(picture).tolist()) == ("L", image[..., 0].tolist())
    assert command("sample", runs / "d3pm", "--count", 2, "--out", tmp_path / "both.PNG") == 0
    with Image.open(tmp_path / "both.PNG") as picture:
        values = set(np.asarray(picture.convert("L")).flatten().tolist())
    assert set(expected.flatten().tolist()) <= values


def test_formats_and_numbers_of_results_in_the_folder_of_the_run(runs, capsys):
    before = {p.name for p in (runs / "named").iterdir()}

    def written(*options):
        assert command("sample", runs / "named", "--count", 1, "--steps", 1, *options) == 0, capsys.readouterr().err
        new = {p.name for p in (runs / "named").iterdir()} - before
        before.update(new)
        assert len(new) == 1
        return new.pop()

    checkpoint = next((runs / "named" / "checkpoints").iterdir())
    assert [written(), written()] == ["samples.png", "samples-2.png"]
    content = (runs / "named" / "samples.png").read_bytes()
    assert [written("--format", f) for f in ("npz", "folder", "npz", "folder", "picture")] == [
        "samples.npz",
        "samples",
        "samples-2.npz",
        "samples-2",
        "samples-3.png",
    ]
    names = sorted(p.name for p in (runs / "named" / "samples-2").iterdir())
    assert names == ["000000.png", "metadata.jsonl", "samples.json"]  # with labels in the metadata
    assert command("sample", checkpoint, "--count", 1, "--steps", 1) == 0  # of one checkpoint, beside the others
    assert (runs / "named" / "samples-4.png").exists()
    assert (runs / "named" / "samples.png").read_bytes() == content
    refused(capsys, "samples are images: give picture, folder or npz", "sample", runs / "named", "--format", "text")
    refused(capsys, "samples are text: give text or npz", "sample", runs / "mdlm", "--format", "picture")


def test_nothing_is_overwritten(runs, tmp_path, capsys):
    (tmp_path / "a.png").write_text("years of work")
    (tmp_path / "folder").mkdir()
    for name in ("a.png", "folder"):
        words = f"{name} exists already, and nothing is overwritten"
        refused(capsys, words, "sample", runs / "named", "--out", tmp_path / name)
    refused(capsys, "ends in .png or .jpg", "sample", runs / "named", "--out", tmp_path / "a.gif")
    words = "ends in .npz"
    refused(capsys, words, "sample", runs / "named", "--out", tmp_path / "b.png", "--format", "npz")
    refused(capsys, "cannot write to the folder", "sample", runs / "named", "--out", tmp_path / "a.png" / "b.png")
    refused(capsys, "--labels x", "sample", runs / "named", "--labels", "x", "--out", tmp_path / "new" / "b.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "folder"]
    assert (tmp_path / "a.png").read_text() == "years of work"


def test_temperature_and_top_p(runs, sampled, capsys):
    plain = sampled("mdlm")["arr_0"]
    assert torch.equal(plain, sampled("mdlm", "--temperature", "1", "--top-p", "1")["arr_0"])
    coldest = sampled("mdlm", "--temperature", "0.0001")["arr_0"]
    assert not torch.equal(plain, coldest)
    assert not torch.equal(plain, sampled("mdlm", "--top-p", "0.3")["arr_0"])
    assert len(sampled("udlm", "--top-p", "0.00001")["arr_0"].unique()) <= len(sampled("udlm")["arr_0"].unique())
    words = "--temperature 0.5, --top-p 1.0: only models that predict the probabilities of tokens"
    refused(capsys, words, "sample", runs / "sedd", "--temperature", "0.5")
    refused(capsys, "--top-p 0.9", "sample", runs / "named", "--top-p", "0.9")
    refused(capsys, "temperature=0.0", "sample", runs / "mdlm", "--temperature", "0")
    refused(capsys, "p=1.5", "sample", runs / "mdlm", "--top-p", "1.5")


def text_of(path):
    return path.read_text().removesuffix("\n").split("\n\n")


@pytest.mark.parametrize("run", ["mdlm", "sedd", "udlm"])
@pytest.mark.parametrize("length", [16, 40])
def test_samples_start_with_the_prompt(runs, tmp_path, run, length):
    """Also with the space at its end, and in texts that are longer than the window."""
    options = ("--prompt", "The dog, ", "--length", length, "--out", tmp_path / "a.txt")
    assert command("sample", runs / run, "--count", 3, *options) == 0
    texts = text_of(tmp_path / "a.txt")
    assert [len(t) for t in texts] == [length] * 3
    assert all(t.startswith("the dog ") for t in texts)
    assert len({t[8:] for t in texts}) == 3


@pytest.mark.parametrize("run", ["mdlm", "sedd", "udlm"])
def test_gaps_are_filled(runs, tmp_path, run):
    """Known characters stay in their places; the underscores and what follows the text are sampled."""
    infill = "_ cat __t "
    assert command("sample", runs / run, "--count", 3, "--infill", infill, "--out", tmp_path / "a.txt") == 0
    texts = text_of(tmp_path / "a.txt")
    assert [len(t) for t in texts] == [16] * 3
    for place, character in enumerate(infill):
        assert {t[place] for t in texts} == {character} or (character == "_" and all(t[place] != "_" for t in texts))


def test_prompts_and_gaps_of_subword_tokens(runs, sampled, tmp_path):
    tokenizer = unnoise.shared.data.tokenizer_file(runs / "tokenizer.json")
    ids = tokenizer.encode(["the cat "])[0].tokens[:-1].tolist()
    found = sampled("subwords", "--prompt", "the cat ")["arr_0"]
    assert found[:, : len(ids)].tolist() == [ids] * 2
    found = sampled("subwords", "--infill", "___the cat ")["arr_0"]
    assert found[:, 3 : 3 + len(ids)].tolist() == [ids] * 2


def test_lengths(runs, sampled):
    assert sampled("mdlm", "--length", "5")["arr_0"].shape == (2, 5)
    assert sampled("sedd", "--length", "16")["arr_0"].equal(sampled("sedd")["arr_0"])
    assert sampled("mdlm", "--length", "17")["arr_0"].shape == (2, 17)


@pytest.mark.parametrize(
    ("run", "options", "words"),
    [
        ("mdlm", ["--prompt", "a" * 16], "--prompt has 16 tokens, and a text of 16 tokens has room for 15"),
        ("mdlm", ["--prompt", "abcde", "--length", "5"], "has room for 4: give a shorter one or a larger --length"),
        ("mdlm", ["--prompt", "a" * 16, "--length", "40"], "the network's window of 16 tokens has room for 15"),
        ("mdlm", ["--infill", "a" * 16 + "_"], "--infill has 17 tokens, and a text of 16 tokens"),
        ("mdlm", ["--infill", "_a", "--length", "40"], "gaps are filled within 16 tokens"),
        ("mdlm", ["--infill", "abc"], "--infill 'abc' has no gap: write an underscore"),
        ("mdlm", ["--infill", ""], "--infill '' has no gap"),
        ("mdlm", ["--prompt", "a", "--infill", "a_"], "--prompt and --infill: give one of them"),
        ("mdlm", ["--length", "0"], "--length 0: give a whole number of at least 1"),
        ("named", ["--prompt", "a"], "--prompt, --infill and --length are for models of text"),
        ("named", ["--length", "3"], "--prompt, --infill and --length are for models of text"),
        ("mdlm", ["--labels", "1"], "--labels: this model has no class labels"),
        ("mdlm", ["--caption", "a cat"], "--caption: this model has no captions"),
        ("mdlm", ["--sampler", "infilling"], "Infilling"),
        ("mdlm", ["--out", "a.png"], "ends in .txt or .npz"),
    ],
)
def test_refusals_are_one_line(runs, tmp_path, monkeypatch, capsys, run, options, words):
    monkeypatch.chdir(tmp_path)
    before = sorted((runs / run).iterdir())
    refused(capsys, words, "sample", runs / run, *options)
    assert sorted((runs / run).iterdir()) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", ["named", "d3pm", "mdlm", "sedd"])
def test_samples_depend_on_the_seed_and_not_on_their_count(sampled, run):
    two, five, other = (
        sampled(run, *options)["arr_0"]
        for options in (("--seed", 7), ("--seed", 7, "--count", 5), ("--seed", 8, "--count", 5))
    )
    assert five[:2].equal(two)
    assert not other.equal(five)


def test_captions(tmp_path, capsys):
    """Of a run that was trained in Python, with the tokenizer of its captions."""
    words = {"</s>": 0, "a": 1, "cat": 2, "dog": 3}
    tokenizer = Tokenizer(WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    network = UNet((1, 8, 8), 8, (1,), 1, (), heads=1, tokens=CaptionEncoder(4, 5, 8, 1, 1))
    captions = torch.randint(4, (8, 5), generator=torch.Generator().manual_seed(0))
    images = torch.randint(17, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    batches = Batches(images, 4, Quantization(17), conditions={"tokens": captions})
    objective = DenoisingLoss.simple(Learned(network, LinearBetas(50)))
    Trainer(objective, Training(steps=30, warmup=0, learning_rate=1e-2), folder=tmp_path / "run").fit(batches)

    def sampled(*options):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        status = command("sample", tmp_path / "run", "--count", 2, "--steps", 3, "--out", path, *options)
        assert status == 0, capsys.readouterr().err
        return np.load(path)["arr_0"].tolist()

    by = ("--tokenizer", tmp_path / "tokenizer.json")
    cat = sampled("--caption", "a cat", *by)
    assert cat == sampled("--caption", "a cat", *by)
    assert cat != sampled("--caption", "a dog", *by)
    assert cat != sampled()
    refused(capsys, "--caption needs the tokenizer", "sample", tmp_path / "run", "--caption", "a cat")
    refused(
        capsys, "none.json cannot be read", "sample", tmp_path / "run", "--caption", "a", "--tokenizer", "none.json"
    )
    refused(
        capsys,
        "has 10 tokens with its end token, and the model takes 5",
        "sample",
        tmp_path / "run",
        "--caption",
        "a " * 9,
        *by,
    )


def test_runs_that_were_trained_in_python(tmp_path, capsys):
    """Without a recipe: text with a prompt, and images of a class; evaluated on data that are given."""
    transition = Absorbing(27, LogLinearNoise())
    text = ContinuousBound(Categorical(DiT(28, 16, 16, 1, 2, outputs=27), transition, head=carried))
    network = UNet((1, 8, 8), 8, (1,), 1, (), heads=1, classes=10)
    images = DenoisingLoss.simple(Learned(network, LinearBetas(50)))
    for name, objective, batches in (
        ("text", text, characters("shakespeare", "train", 16).batches(8)),
        ("images", images, image_dataset("digits").batches(8, conditions=("label",))),
    ):
        Trainer(objective, Training(steps=2, warmup=0), folder=tmp_path / name).fit(batches)
    few = ("--count", 2, "--steps", 2)
    assert command("sample", tmp_path / "text", *few, "--prompt", "to be ", "--length", 20, "--top-p", 0.9) == 0
    assert [(len(t), t[:6]) for t in text_of(tmp_path / "text" / "samples.txt")] == [(20, "to be ")] * 2
    assert command("sample", tmp_path / "images", *few, "--labels", 7, 4, "--format", "npz", "--sampler", "ddpm") == 2
    assert "did you mean" in capsys.readouterr().err
    assert command("sample", tmp_path / "images", *few, "--labels", 7, 4, "--format", "npz", "--sampler.eta", 1) == 0
    assert np.load(tmp_path / "images" / "samples.npz")["arr_1"].tolist() == [7, 4]
    refused(capsys, "comes without data: give --data NAME", "evaluate", tmp_path / "text", *few)
    assert command("evaluate", tmp_path / "text", *few, "--data", "shakespeare") == 0
    found = json.loads((tmp_path / "text" / "evaluation.json").read_text())
    checkpoint = unnoise.load(tmp_path / "text")
    expected = run_of(checkpoint).with_data("shakespeare").evaluate(checkpoint.average.denoiser, count=2, steps=2)
    assert found["bits_per_token"] == expected["bits_per_token"]


def test_the_module_is_a_command():
    done = subprocess.run([sys.executable, "-m", "unnoise", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"unnoise {unnoise.__version__}\n"
