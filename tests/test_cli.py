"""The command line and the demo, as a user meets them."""

import json
import os
import re
import signal
import threading
import time
from dataclasses import replace

import pytest
from PIL import Image

from unnoise.experiments import evaluation
from unnoise.experiments.cli import main
from unnoise.experiments.image_data import Images
from unnoise.experiments.recipes import RECIPES
from unnoise.experiments.studies import demo
from unnoise.experiments.text_data import Text
from unnoise.shared.errors import UsageError


def run(capsys, *arguments):
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), "did you mean train?"),
        (("train", "dppm-digits"), "did you mean ddpm-digits?"),
        (("train", "xyz"), "lists them"),
        (("udlm", "--help"), "no command udlm: did you mean unnoise train udlm-smoke"),
        (("ddpm-digits",), "no command ddpm-digits: did you mean unnoise train ddpm-digits"),
        (("train", "udlm"), "did you mean udlm-chain or udlm-shakespeare or udlm-smoke or udlm-text8"),
        (("train", "ddmp-digits"), "did you mean ddpm-digits"),
        (("train",), "give a recipe: unnoise train RECIPE"),
        (("train", "ddpm-digits", "--training.steps", "0"), "steps=0"),
        (("train", "ddpm-digits", "--data.name", "/nowhere"), "there is no folder /nowhere"),
        (("train", "ddpm-digits", "--out", "/proc/unnoise"), "cannot write to the folder /proc/unnoise"),
        (("demo", "--out", "/proc/unnoise"), "cannot write to the folder /proc/unnoise"),
        (("demo", "--steps", "0"), "steps=0"),
        (("train", "ddpm-digits", "--training.device", "gpu"), "device=gpu is not available here"),
        (("train", "ddpm-digits", "--training.betas", "2", "3"), r"betas=\(2.0, 3.0\)"),
        (("train", "ddpm-digits", "--training.seed", "99999999999999999999"), "seed=9+"),
        (("train", "ddpm-digits", "--network.width", "9", "--out", "a"), "width=9.*: width must be even"),
        (("train", "ddpm-digits", "--network.heads", "0", "--out", "b"), "heads=0"),
        (("train", "d3pm-digits", "--schedule.steps", "20"), "sampling_steps=100: .*20 steps, so give a number from 1"),
        (("train", "ddpm-digits", "--data.size", "0", "0", "--out", "c"), r"size=\(0, 0\)"),
        (("train", "ddpm-digits", "--data.name", "digit"), "there is no folder digit, .*did you mean digits"),
        (("train", "mdlm-smoke", "--data.name", "a/b/my.txt"), "there is no file a/b/my.txt: give the path"),
        (("sample", "runs/none"), "there is no checkpoint in runs/none"),
        (("evaluate", "runs/none"), "there is no checkpoint in runs/none"),
        (("sample", "--count", "3"), r"give a run: unnoise sample RUN \[options\]"),
        (("reproduce", "--out", "x"), "give a recipe: unnoise reproduce RECIPE"),
    ],
)
def test_wrong_input_gives_one_line_and_no_traceback(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *arguments)
    assert status not in (0, None)
    assert re.search(words, err)
    assert err.startswith("unnoise: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "ddpm-digits", "--training.steps", "many"), "--training.steps.*many"),
        (("train", "ddpm-digits", "--stepz", "3"), "Unrecognized options: --stepz, 3"),
        (("demo", "--steps", "a lot"), "--steps.*a lot"),
        (("train", "ddpm-digits", "--data.size", "8"), "--data.size.*'8'.*INT INT"),
        (("train", "ddpm-digits", "--data.classes", "x"), "--data.classes.*'x'"),
        (("train", "ddpm-digits", "--out"), "--out"),
        (("recipes", "ddpm", "all"), "Unrecognized options: all"),
    ],
)
def test_options_that_cannot_be_read_are_shown_with_their_help(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert re.search(words, " ".join(err.replace("│", " ").split())), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "reproduce"])
def test_what_fails_leaves_no_empty_folder(capsys, tmp_path, monkeypatch, command):
    """The folder goes, with the parents that were made for it; what was there stays."""
    monkeypatch.chdir(tmp_path)
    assert run(capsys, command, "ddpm-smoke", "--data.name", "/nowhere")[0] == 2
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    for out in ("mine", "mine/a/b"):
        assert run(capsys, command, "ddpm-smoke", "--data.name", "/nowhere", "--out", out)[0] == 2
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    if command == "train":
        assert "nothing to resume in mine/c" in run(capsys, "train", "ddpm-smoke", "--resume", "--out", "mine/c")[2]
        assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_help_teaches(capsys):
    assert "demo" in run(capsys, "--help")[1]
    for name in ("demo", "sample", "evaluate"):
        status, out, _ = run(capsys, name, "--help")
        assert not status
        assert "--seed" in out
    status, out, _ = run(capsys, "train", "ddpm-digits", "--help")
    assert not status
    assert "--training.learning-rate" in out
    assert all(name in run(capsys, "recipes")[1] for name in RECIPES)


def pictures(folder, *values):
    """Images of 8x8, all of one value, by which they are named."""
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        Image.new("L", (8, 8), value).save(folder / f"{value:03}.png")


@pytest.mark.filterwarnings("default::unnoise.shared.errors.Notice")
def test_what_was_trained_on_is_not_held_out(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    full = evaluation.judge_of  # the figures of a classifier that is trained for a moment only
    monkeypatch.setattr(evaluation, "judge_of", lambda images, progress, steps=600: full(images, progress, 5))
    pictures(tmp_path / "set", *range(16))
    options = ("--data.name", "set", "--data.classes", "None", "--data.batch", 2, "--training.steps", 2, "--out", "run")
    status, out, err = run(capsys, "train", "d3pm-smoke", *options)
    assert status == 0, err
    assert (
        "will have no images to measure on: the folder set has no split test, its 16 images are all the split train"
        in out
    )
    evaluate = ("evaluate", tmp_path / "run", "--steps", 2)
    assert re.search("move those to hold out .* and train again", run(capsys, *evaluate)[2])
    pictures(tmp_path / "set" / "test", 3, 4, 5, 6)
    pictures(tmp_path / "set" / "train", *(n for n in range(16) if not 3 <= n < 7))
    for n in range(16):
        (tmp_path / "set" / f"{n:03}.png").unlink()
    status, _, err = run(capsys, *evaluate)
    assert status == 2
    assert "12 training examples now, and this run was trained on 16: held-out examples may have been trained on" in err
    assert not (tmp_path / "run" / "evaluation.json").exists()
    pictures(tmp_path / "set" / "train", 20, 21, 22, 23)  # as many again, others
    status, _, err = run(capsys, *evaluate)
    assert status == 0, err
    message = "the training examples have other values now than in training: held-out examples may have been trained on"
    assert err.startswith(f"unnoise: {message}\n")
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["warning"] == message
    for n in range(20, 24):
        (tmp_path / "set" / "train" / f"{n:03}.png").unlink()
    pictures(tmp_path / "set" / "train", *range(16))
    (tmp_path / "elsewhere" / "set").mkdir(parents=True)  # a run has its data's own place
    monkeypatch.chdir(tmp_path / "elsewhere")
    status, _, err = run(capsys, *evaluate)
    assert status == 0, err
    assert "unnoise:" not in err
    assert "warning" not in json.loads((tmp_path / "run" / "evaluation.json").read_text())
    (tmp_path / "set").rename(tmp_path / "moved")
    status, _, err = run(capsys, *evaluate)
    assert status == 2
    assert f"there is no folder {tmp_path / 'set'}: " in err
    assert err.endswith("; put the data of the run back, or give their new place with --data\n")
    assert run(capsys, *evaluate, "--data", "../moved")[0] == 0
    status, _, err = run(capsys, *evaluate, "--data", "digits")
    assert status == 2
    assert "and this run was trained on 16" in err


def test_text_that_was_trained_on_is_not_held_out(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "my.txt"
    text.write_text("the cat sat on the mat and the dog ran to the red barn\n" * 90)
    options = (
        "--data.name",
        "my.txt",
        "--data.length",
        16,
        "--data.batch",
        4,
        "--training.steps",
        2,
        "--training.warmup",
        1,
    )
    status, _, err = run(capsys, "train", "mdlm-smoke", *options, "--out", "run")
    assert status == 0, err
    (tmp_path / "run" / "my.txt").write_text("x")
    monkeypatch.chdir(tmp_path / "run")
    evaluate = ("evaluate", ".", "--steps", 2, "--count", 2)
    status, _, err = run(capsys, *evaluate)
    assert status == 0, err
    assert "unnoise:" not in err
    text.write_text(text.read_text() * 2)
    status, _, err = run(capsys, *evaluate)
    assert status == 2
    assert re.search(r"have 5\d\d training examples now, and this run was trained on 2\d\d", err), err
    text.rename(tmp_path / "other.txt")
    status, _, err = run(capsys, *evaluate)
    assert status == 2
    assert f"there is no file {text}: " in err
    (tmp_path / "moved.txt").write_text("the cat sat on the mat and the dog ran to the red barn\n" * 90)
    assert run(capsys, *evaluate, "--data", "../moved.txt")[0] == 0


def test_relative_names_of_earlier_runs_are_read_where_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "set", 1, 2)
    experiment = replace(RECIPES["ddpm-smoke"](), data=Images("set", classes=None))
    assert len(experiment.load().k) == 2
    assert experiment.self_contained().data.name == str(tmp_path / "set")
    for name in ("digits", "someone/set", ""):
        assert Images(name).self_contained().name == name
    for name in ("chain", "text8", "someone/set"):
        (tmp_path / name.split("/")[0]).mkdir()
        assert Text(name).self_contained().name == name


@pytest.mark.parametrize("recipe", ["ddpm-smoke", "d3pm-smoke", "score-sde-smoke"])
def test_train_sample_evaluate_resume(capsys, tmp_path, monkeypatch, recipe):
    monkeypatch.chdir(tmp_path)
    full = evaluation.judge_of  # the figures of a classifier that is trained for a moment only
    monkeypatch.setattr(evaluation, "judge_of", lambda images, progress, steps=600: full(images, progress, 5))
    status, out, err = run(capsys, "train", recipe)
    assert status == 0, err
    folder = tmp_path / "runs" / recipe
    assert sorted(p.name for p in folder.glob("*.png")) == ["samples-000004.png", "samples-000008.png"]
    assert "already has a run: continue it" in run(capsys, "train", recipe)[2]
    assert run(capsys, "train", recipe, "--resume", "--training.steps", 10)[0] == 0
    status, out, err = run(capsys, "sample", f"runs/{recipe}", "--count", 5, "--out", "pictures/five.png")
    assert status == 0, err
    assert (tmp_path / "pictures" / "five.png").stat().st_size > 0
    assert run(capsys, "evaluate", f"runs/{recipe}", "--count", 20)[0] == 0
    results = json.loads((folder / "evaluation.json").read_text())
    assert results["step"] == 10
    assert 0 < results["bits_per_dim"] < 50
    assert results["evaluations"] >= 4
    assert "give a name that ends in .png" in run(capsys, "sample", f"runs/{recipe}", "--out", "a.txt")[2]
    assert "pictures exists already" in run(capsys, "sample", f"runs/{recipe}", "--out", "pictures")[2]
    assert "cannot write to the folder /proc" in run(capsys, "sample", f"runs/{recipe}", "--out", "/proc/x/y.png")[2]
    assert "steps=0" in run(capsys, "sample", f"runs/{recipe}", "--steps", 0)[2]
    broken = next((folder / "checkpoints").glob("*10")) / "tensors.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    status, _, err = run(capsys, "sample", broken.parent)
    assert status == 2
    assert "is damaged" in err


def test_ctrl_c_says_how_to_resume(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "runs" / "ddpm-smoke" / "metrics.jsonl"

    def interrupt_after_a_step():
        while not (log.exists() and log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_after_a_step, daemon=True).start()
    status, _, err = run(
        capsys,
        "train",
        "ddpm-smoke",
        "--training.steps",
        10**6,
        "--training.save-every",
        10**6,
        "--training.watch-every",
        0,
        "--training.log-every",
        1,
    )
    assert status == 130
    message = re.search(r"stopped after step (\d+) and saved in runs/ddpm-smoke; continue with: (.*)$", err.strip())
    assert "train ddpm-smoke --training.steps 1000000" in message[2]
    assert message[2].endswith("--resume")
    status, _, err = run(capsys, "train", "ddpm-smoke", "--training.steps", int(message[1]) + 1, "--resume")
    assert status == 0, err


def test_demo_smoke(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "demo", "--smoke")
    assert status == 0, err
    folder = tmp_path / "runs" / "demo"
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r'src="(?!data:)', page)
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", page)
    text = (folder / "report.md").read_text()
    for word in ("2.42", "upper bound", "exact up to uniform dequantization", "crossing", "predictor-corrector"):
        assert word in text
    results = json.loads((folder / "results.json").read_text())
    assert [r["model"] for r in results[:3]] == ["baseline: pixels alone", "real, held out", "real, training"]
    assert all(r["evaluations"] > 0 for r in results[3:])
    monkeypatch.setattr(demo, "draw_figures", lambda *_: None)  # they are drawn already
    assert run(capsys, "demo", "--smoke", "--resume")[0] == 0
    assert "has other settings" in run(capsys, "demo", "--smoke", "--resume", "--seed", 1)[2]

    def stops(*_, **__):
        raise UsageError("stops here")

    monkeypatch.setattr(demo, "train_recipe", stops)
    assert "stops here" in run(capsys, "demo", "--smoke")[2]  # a second run keeps the first
    assert (tmp_path / "runs" / "demo.1" / "report.html").exists()
    assert not (tmp_path / "runs" / "demo" / "report.html").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert "exists and is not a demo" in run(capsys, "demo", "--smoke", "--out", "mine")[2]
