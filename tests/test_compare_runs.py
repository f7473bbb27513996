"""`unnoise compare` of an own run, a checkpoint of diffusers and samples in files, each evaluated by the commands."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from unnoise.experiments import evaluation
from unnoise.experiments.cli import main
from unnoise.shared.data import image_dataset
from unnoise.shared.metrics.judge import Judge
from unnoise.shared.metrics.measurement import Evaluation, Measurement, Protocol

MEASURES = ["frechet", "sure", "agreement"]
WITHOUT = ["--without", "code-length", "memorization", "kid", "precision", "recall", "density", "coverage"]


@pytest.fixture
def unnoise(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder of its own, with a judge of few steps; returns its status, output and errors."""
    judge = Judge(image_dataset("digits"), steps=5)
    monkeypatch.setattr(evaluation, "judge_of", lambda *_: judge)
    monkeypatch.chdir(tmp_path)

    def run(line, *more):
        status = main([*line.split(), *more])
        return status, *capsys.readouterr()

    return run


def done(found):
    status, out, error = found
    assert status == 0, error
    return out


def rows(text):
    """The rows of the first table of a comparison by the name of the run."""
    table = text.split("\n\n")[0].splitlines()
    return {line.split("  ")[0]: line.split() for line in table}


@pytest.mark.slow
def test_a_run_a_checkpoint_of_diffusers_and_samples_in_files_share_a_table(unnoise, tmp_path):
    """One protocol for all of them, and no column for other numbers of samples until --apart is given."""
    train = "train ddpm-smoke --training.steps 8 --network.variant ddpm --network.width 32 --out run"
    done(unnoise(train))
    done(unnoise("export run published"))
    done(unnoise("import published imported"))
    done(unnoise("sample run --count 60 --steps 4 --out pngs"))
    done(unnoise("sample run --count 60 --steps 4 --out samples.npz"))
    done(unnoise("sample imported --count 60 --steps 4 --out of_imported"))
    done(unnoise("evaluate run --samples 60 --steps 4", *WITHOUT))
    for samples in ("pngs", "samples.npz", "of_imported"):
        done(unnoise(f"evaluate {samples} --data digits", *WITHOUT[:1], *WITHOUT[2:]))
    found = rows(done(unnoise("compare run of_imported pngs samples.npz --measures", *MEASURES)))
    names = ["of_imported", "pngs", "samples.npz", "real held-out data"]
    assert all(name in found for name in names)
    assert found["of_imported"][1] == "DDIM()"
    evaluations = {n: Evaluation.from_json(json.loads((tmp_path / n).read_text())) for n in FILES}
    for measure in MEASURES:
        values = [evaluations[n][measure] for n in FILES]
        assert values[0] == pytest.approx(values[1], abs=1e-6)  # of a run, and of its samples in a folder
        assert values[1] == values[2]

    assert evaluations[FILES[3]]["frechet"] != evaluations[FILES[0]]["frechet"]
    status, _, error = unnoise("evaluate imported --data digits --samples 60")
    assert status == 2
    assert "measure samples of it: `unnoise sample RUN" in error
    done(unnoise("sample run --count 30 --steps 4 --out few"))
    done(unnoise("evaluate few --data digits", *WITHOUT[:1], *WITHOUT[2:]))
    status, out, error = unnoise("compare run few")
    assert (status, out) == (2, "")
    assert "number of samples: 60 and 30" in error
    assert "such as `unnoise evaluate run --samples 30`" in error  # no more samples can be drawn of a folder
    status, _, error = unnoise("compare pngs few")
    assert "such as `unnoise sample RUN --count 60` and `unnoise evaluate` of these samples" in error
    assert "frechet (b)" in done(unnoise("compare run few --apart --measures frechet"))


FILES = (
    "run/evaluation.json",
    "pngs/evaluation.json",
    "samples.npz.evaluation.json",
    "of_imported/evaluation.json",
)


def test_another_resize_is_refused(unnoise, tmp_path):
    """The message has the field and both values."""
    protocol = Protocol("inception", "67ab", "TensorFlow 1 bilinear to 299 x 299", "digits, train", "12cd", 500)
    other = replace(protocol, resize="bicubic to 299 x 299, antialiased")
    for name, found in (("a", protocol), ("b", other)):
        (tmp_path / name).mkdir()
        about = Evaluation({}, [Measurement("fid", 10.0, found, better="lower")])
        (tmp_path / name / "evaluation.json").write_text(json.dumps(about.as_json()))
    status, out, error = unnoise("compare a b")
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert "resize: TensorFlow 1 bilinear to 299 x 299 and bicubic to 299 x 299, antialiased" in error
    assert "`unnoise evaluate b`" in error
