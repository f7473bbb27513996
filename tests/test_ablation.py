"""Ablations: what a grid contains, that no run is done twice, and that failures and stops lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from unnoise.continuous import DDIM, Cosine, LinearBetas, velocity
from unnoise.experiments.ablation import Ablation, Setup, runs
from unnoise.experiments.ablation.grid import split_levels
from unnoise.experiments.ablation.runs import Plan, claimed, work
from unnoise.experiments.cli import main
from unnoise.experiments.cli.ablate import factor_of
from unnoise.experiments.parts import part
from unnoise.experiments.recipes import find
from unnoise.experiments.studies.ablations import ABLATIONS
from unnoise.shared import progress
from unnoise.shared.errors import UsageError
from unnoise.shared.metrics.measurement import Evaluation, Measurement
from unnoise.shared.training import Training

BASE = find("ddpm-smoke")
VARY = {
    "schedule": {"linear": {"schedule": LinearBetas(100)}, "cosine": {"schedule": Cosine()}},
    "sampler": {"ancestral": lambda setup: setup, "ddim": {"sampler": part(DDIM)}},
}


@pytest.fixture
def counted(monkeypatch):
    """Runs that take no time: a list of trainings and one of measurements, whose numbers are those of the seed."""
    trained, measured = [], []

    def train(plan, case, progress):
        trained.append(case.name)
        (plan.trained(case) / "checkpoints" / f"{case.setup.recipe.training.steps:08d}").mkdir(parents=True)

    def measure(setup, folder, seed, progress):
        measured.append((setup.key, seed))
        return Evaluation({}, [Measurement("bits_per_dim", 2.0 + seed), Measurement("frechet", 1.0)])

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "measured", measure)
    return trained, measured


def silent(line):
    """Says nothing."""


def plan_in(folder, **changes):
    plan = Plan.of(Ablation(BASE, **{"vary": VARY, "seeds": 2} | changes), folder)
    plan.write()
    return plan


def test_a_grid_has_every_combination_with_every_seed():
    ablation = Ablation(BASE, VARY, seeds=3)
    cases = list(ablation.cases())
    assert len(cases) == 12
    assert [case.seed for case in cases] == [0] * 4 + [1] * 4 + [2] * 4  # whole grids first
    chosen = next(c for c in cases if c.seed == 1 and dict(c.levels) == {"schedule": "cosine", "sampler": "ddim"})
    recipe = chosen.setup.recipe
    assert recipe == replace(
        BASE,
        schedule=Cosine(),
        sampler=part(DDIM),
        training=replace(BASE.training, seed=1),
        data=replace(BASE.data, seed=1),
    )
    assert len({(c.setup.training_key, c.seed) for c in cases}) == 6  # the sampler does not change the training
    assert len({(c.setup.key, c.seed) for c in cases}) == 12
    assert len(list(Ablation(BASE, VARY, seeds=(4, 7), skip=lambda at: at["sampler"] == "ddim").cases())) == 4


def test_whatever_changes_the_training_is_trained_apart():
    """Each setting of the recipe but those of sampling and measuring changes the key of its training."""
    setup = Setup(BASE)
    assert replace(setup, recipe=replace(BASE, predicts=velocity)).training_key != setup.training_key
    assert replace(setup, recipe=replace(BASE, sampling_steps=3)).training_key == setup.training_key
    assert replace(setup, average="raw").training_key == setup.training_key
    assert replace(setup, average="raw").key != setup.key
    assert replace(setup, recipe=replace(BASE, sampling_steps=3)).key != setup.key


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = plan_in(tmp_path)
    again = Plan.read(tmp_path)
    assert again == plan
    assert [case.setup.key for case in again.cases] == [case.setup.key for case in plan.cases]
    with pytest.raises(UsageError, match=r"has no ablation\.json"):
        Plan.read(tmp_path / "runs")
    (tmp_path / "ablation.json").write_text('{"cases": [{}]}')
    with pytest.raises(UsageError, match="cannot be read"):
        Plan.read(tmp_path)
    plan.write()
    text = (tmp_path / "ablation.json").read_text().replace('"continuous.LinearBetas"', '"mine.py:Sine"')
    (tmp_path / "ablation.json").write_text(text)
    with pytest.raises(UsageError, match=r"mine.py:Sine, a part of your own, .* give --module with the path of mine"):
        Plan.read(tmp_path)


def test_finished_runs_are_not_run_again_and_models_are_trained_once(tmp_path, counted):
    trained, measured = counted
    assert work(plan_in(tmp_path), say=silent) == 8
    assert len(trained) == 4
    assert len(measured) == 8
    assert work(plan_in(tmp_path), say=silent) == 0
    more = {**VARY, "schedule": {**VARY["schedule"], "other": {"schedule": LinearBetas(50)}}}
    assert work(plan_in(tmp_path, vary=more), say=silent) == 4  # a new level and nothing else
    assert work(plan_in(tmp_path, seeds=3), say=silent) == 4  # a new seed
    results = plan_in(tmp_path).results()
    assert results.missing == 0
    assert [run.value("bits_per_dim") for run in results.runs] == [2.0] * 4 + [3.0] * 4


def test_a_run_that_raises_is_a_row_and_does_not_stop_the_others(tmp_path, counted, monkeypatch):
    trained, _ = counted
    full, lines = runs.train, []

    def train(plan, case, progress):
        if case.levels["schedule"] == "cosine" and case.seed == 1:
            raise RuntimeError("out of paper")
        full(plan, case, progress)

    monkeypatch.setattr(runs, "train", train)
    plan = plan_in(tmp_path)
    assert work(plan, say=lines.append) == 8
    failures = [run.failure for run in plan.results().runs if run.failure]
    assert failures == ["RuntimeError: out of paper"] * 2
    assert sum(line.startswith("failed: schedule=cosine") for line in lines) == 2
    assert len(list((tmp_path / "runs").glob("*.log"))) == 2  # with its traceback
    assert work(plan, say=silent) == 0
    monkeypatch.setattr(runs, "train", full)
    assert plan.retry() == 2
    assert work(plan, say=silent) == 2
    assert not any(run.failure for run in plan.results().runs)


def test_a_measure_that_does_not_exist_loses_no_work(tmp_path, counted):
    """A line says so after the first run; with the right name the results that are there are reported."""
    _, measured = counted
    lines = []
    work(plan_in(tmp_path, measures=("bits_per_dims", "frechet")), say=lines.append)
    assert lines[0].endswith("bits_per_dims was not measured, frechet 1")
    results = plan_in(tmp_path, measures=("bits_per_dim",)).results()
    assert results.missing == 0
    assert not any(run.failure for run in results.runs)
    assert len(measured) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (0, 1, 0)}, "give each seed once"),
        ({"vary": {**VARY, "family": {"own": {}, "whole": BASE}}}, "family=whole is a whole recipe"),
        ({"skip": lambda at: at["sampler"] == "ancestral"}, "skip leaves out the baseline"),
        ({"measures": ()}, "name at least one measurement"),
    ],
)
def test_wrong_ablations_in_python(changes, message):
    with pytest.raises(UsageError, match=message):
        Ablation(BASE, **{"vary": VARY} | changes)


def test_a_model_that_is_not_trained_to_its_end_is_not_measured(tmp_path, monkeypatch):
    """`load` takes an earlier checkpoint where the newest one is damaged."""
    monkeypatch.setattr(runs, "load", lambda *_, **__: SimpleNamespace(step=BASE.training.steps - 1))
    with pytest.raises(UsageError, match="the newest checkpoint in .* is damaged: remove the folder"):
        runs.measured(Setup(BASE), tmp_path, 0, progress.silent)


def test_models_are_measured_on_the_device_of_their_training(tmp_path, monkeypatch):
    """A GPU that trains also draws the samples."""
    monkeypatch.setattr(Training, "chosen_device", lambda self: "the GPU")
    monkeypatch.setattr(runs, "load", lambda folder, *, device, average: (_ for _ in ()).throw(LookupError(device)))
    with pytest.raises(LookupError, match="the GPU"):
        runs.measured(Setup(BASE), tmp_path, 0, progress.silent)


def test_a_stop_is_not_a_failure_and_a_process_that_dies_is_counted(tmp_path, counted, monkeypatch):
    full = runs.measured

    def stopped(*_):
        raise KeyboardInterrupt

    plan = plan_in(tmp_path)
    monkeypatch.setattr(runs, "measured", stopped)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            work(plan, say=silent)
    monkeypatch.setattr(runs, "measured", full)
    first = plan.cases[0]
    runs.attempts_file(plan.result(first)).write_text("3")  # as three processes that were killed leave it
    work(plan, say=silent)
    results = plan.results()
    assert "the process ended 3 times" in results.runs[0].failure
    assert sum(bool(run.failure) for run in results.runs) == 1


def test_two_processes_share_the_runs(tmp_path, counted, monkeypatch):
    """Two workers on one folder: each run is done once, and both end when all runs have results."""
    trained, measured = counted
    full = runs.measured

    def slow(*given):
        time.sleep(0.02)
        return full(*given)

    monkeypatch.setattr(runs, "measured", slow)
    plan, done = plan_in(tmp_path), []
    threads = [threading.Thread(target=lambda: done.append(work(plan, wait=0.01, say=silent))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == 8
    assert min(done) > 0
    assert len(set(measured)) == len(measured) == 8
    assert len(set(trained)) == len(trained) == 4


def test_a_claim_ends_with_its_process(tmp_path):
    """Another process cannot have a claim while it is held, and has it at once when its holder is killed."""
    code = (
        "import sys, time; from pathlib import Path; from unnoise.experiments.ablation.runs import claimed\n"
        "with claimed(Path(sys.argv[1])) as own: print(own, flush=True); time.sleep(60)"
    )
    path = tmp_path / "run.json"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=os.environ)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        with claimed(path) as own:
            assert not own
    finally:
        holder.kill()
        holder.communicate()
    with claimed(path) as own:
        assert own


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("linear,cosine(s=0.02, steps=5)", ["linear", "cosine(s=0.02, steps=5)"]),
        ("noise, velocity", ["noise", "velocity"]),
        ("'a,b',\"c\"", ["a,b", "c"]),
        ("(1, 2),(3,)", ["(1, 2)", "(3,)"]),
    ],
)
def test_levels_are_separated_by_commas_outside_of_parentheses(text, levels):
    assert split_levels(text) == levels


def test_levels_of_the_command_line():
    recipe = BASE
    name, levels = factor_of("loss.weight=snr,min-snr(gamma=3)", recipe)
    assert name == "loss.weight"
    found = [level(Setup(recipe)).recipe.loss.weight for level in levels.values()]
    assert [repr(weight) for weight in found][1] == "MinSNR(gamma=3.0)" or found[1].gamma == 3
    _, levels = factor_of("training.learning_rate=1e-3,1e-4", recipe)
    assert [level(Setup(recipe)).recipe.training.learning_rate for level in levels.values()] == [1e-3, 1e-4]
    _, levels = factor_of("dequantize=false", recipe)
    assert not levels["false"](Setup(recipe)).recipe.dequantize
    _, levels = factor_of("average=raw,decay(0.5)", recipe)
    assert [level(Setup(recipe)).average for level in levels.values()] == ["raw", "decay(0.5)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ddpm-smoke"], "give --vary"),
        (["ddpm-smok", "--vary", "predicts=noise"], "did you mean ddpm-smoke?"),
        (["ddpm-smoke", "--vary", "schedul=linear"], "did you mean schedule?"),
        (["ddpm-smoke", "--vary", "predicts=nois"], "did you mean noise?"),
        (["ddpm-smoke", "--vary", "predicts=noise,noise"], "names noise twice"),
        (["ddpm-smoke", "--vary", "predicts=noise,"], "empty level"),
        (["ddpm-smoke", "--vary", "average=rw"], "--vary average=rw: rw is not an Average"),
        (["ddpm-smoke", "--vary", "dequantize=yes"], "give true or false"),
        (
            ["ddpm-smoke", "--vary", "training.steps=5,x"],
            "--vary training.steps=x: the setting does not take this value",
        ),
        (["ddpm-smoke", "--vary", "predicts=noise", "--without", "kod"], "without=kod: did you mean kid?"),
        (["ddpm-smoke", "--vary", "predicts=noise", "--features", "inceptoin"], "did you mean inception?"),
        (["ddpm-smoke", "--vary", "predicts=noise", "--samples", "1"], "samples=1: a Fréchet distance needs"),
        (["mdlm-smoke", "--vary", "sampling_steps=4", "--features", "inception"], "features=inception are of images"),
        (
            ["ddpm-smoke", "--vary", "training.seed=1,2"],
            "--vary training.seed: all combinations are run with the seeds",
        ),
        (["ddpm-smoke", "--vary", "predicts=noise", "--data.seed", "5"], "--data.seed 5: the runs have the seeds 0, 1"),
        (["ddpm-smoke", *2 * ["--vary", "predicts=noise,clean"]], "--vary predicts is given twice"),
        (["runs/my-run"], "`unnoise recipes` and `unnoise ablate --help` list the names"),
        (["ddpm-smoke", "--vary", "predicts=noise", "--seeds", "0"], "seeds=0: give at least 1"),
        (["ddpm-smoke", "--vary", "predicts=noise", "--processes", "0"], "--processes 0: give a whole number"),
        (["ddpm-smoke", "--vary", "predicts=noise", "--out", "."], "contains something else than an ablation"),
    ],
)
def test_wrong_ablations_are_refused_in_a_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("mine")
    assert main(["ablate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_ablations_of_this_package_are_whole(name, tmp_path):
    """Their plans are written and read, levels differ, and their smallest forms have two levels and two seeds."""
    ablation = ABLATIONS[name]()
    plan = Plan.of(ablation, tmp_path)
    plan.write()
    assert Plan.read(tmp_path) == plan
    assert len({(case.setup.key, case.seed) for case in plan.cases}) == len(plan.cases)
    assert len(ablation.all_seeds) >= 3
    small = list(ablation.smaller().cases())
    assert {case.seed for case in small} == {0, 1}
    assert all(case.setup.recipe.training.steps == 4 for case in small)


COMMAND = ["ablate", "ddpm-smoke", "--vary", "predicts=noise,velocity", "--seeds", "2", "--count", "8"]
COMMAND += ["--without", "judge", "memorization", "--measures", "bits_per_dim", "--training.steps", "4"]


def test_an_ablation_from_the_command_line(tmp_path, monkeypatch, capsys):
    """A grid in this process, its report, and the same command again, which runs nothing."""
    monkeypatch.chdir(tmp_path)
    command = [*COMMAND, "--processes", "1"]
    assert main([*command]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "runs" / "ablations" / "ddpm-smoke"
    assert "4 runs in runs/ablations/ddpm-smoke/, 0 of them finished" in out
    assert "velocity" in (folder / "report.md").read_text()
    assert len((folder / "results.csv").read_text().splitlines()) == 5
    results = sorted((folder / "runs").glob("*.json"))
    assert len({json.loads(path.read_text())["evaluation"]["bits_per_dim"] for path in results}) == 4
    results[0].unlink()
    assert main(["ablate", str(folder), "--worker"]) == 0  # as a process of several does its work
    assert "done in" in capsys.readouterr().out
    assert main([*command]) == 0
    assert "4 of them finished" in capsys.readouterr().out
    assert main(["ablate", str(folder)]) == 0  # the folder alone
    out = capsys.readouterr().out
    assert "4 runs in runs/ablations/ddpm-smoke/, 4 of them finished\n" in out.replace(f"{tmp_path}/", "")


def test_a_stop_writes_the_report_of_what_is_there(tmp_path, counted, monkeypatch, capsys):
    """Ctrl-C loses nothing; another grid in the same folder says which runs its report leaves out."""
    full, number = runs.measured, []

    def stopped(*given):
        number.append(1)
        if len(number) == 3:
            raise KeyboardInterrupt
        return full(*given)

    monkeypatch.setattr(runs, "measured", stopped)
    command = [*COMMAND, "--processes", "1", "--out", str(tmp_path / "grid")]
    assert main(command) == 130
    assert "**Partial: 2 of 4 runs are missing.**" in (tmp_path / "grid" / "report.md").read_text()
    capsys.readouterr()
    assert main([*command, "--training.steps", "5"]) == 0
    assert "has 2 finished runs of other settings" in capsys.readouterr().out
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "2 of them finished; 2 to do with 2 trainings in 1 process\n" in out
    assert "has 4 finished runs of other settings" in out


@pytest.mark.slow
def test_a_killed_ablation_goes_on_and_repeats_no_finished_run(tmp_path):
    """Two processes are killed half-way, the command is given again, and then two commands at once."""
    folder = tmp_path / "grid"
    command = [sys.executable, "-m", "unnoise", *COMMAND, "--seeds", "4", "--processes", "2", "--out", str(folder)]

    def start():
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)

    def finished():
        return {path.name: path.stat().st_mtime_ns for path in (folder / "runs").glob("*.json")}

    first = start()
    while len(finished()) < 3:
        time.sleep(0.05)
        assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)  # with its processes
    first.communicate()
    before = finished()
    assert 3 <= len(before) < 8
    both = [start(), start()]
    output = [process.communicate()[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    after = finished()
    assert len(after) == 8
    assert {name: after[name] for name in before} == before
    done = [line for path in (folder / "logs").glob("*.log") for line in path.read_text().splitlines()]
    lines = [line.partition(": ")[2].partition(": ")[0] for line in done if line.startswith("done in")]
    assert len(lines) == len(set(lines))  # no run was done by two processes
    assert not list((folder / "runs").glob("*.attempts"))
    assert "0 missing" in (folder / "report.md").read_text()
