"""Checkpoints of earlier versions are read, and give the numbers that they gave when they were written."""

import json
from pathlib import Path

import pytest
from old_checkpoints import OF_FLOAT32, again, assert_same, drawn_by_the_command, numbers, read, run_numbers

HOME = Path(__file__).parent / "fixtures" / "checkpoints"
OLD = json.loads((HOME / "descriptions.json").read_text())
RUNS = {path.parent.name: json.loads(path.read_text()) for path in sorted(HOME.glob("*/expected.json"))}


def called(entry):
    return entry["description"].get("class") or entry["description"].get("function")


def test_every_old_name_is_read():
    assert len(OLD["names"]) == 167
    assert {called(entry) for entry in OLD["entries"]} == set(OLD["names"])
    for entry in OLD["entries"]:
        read(entry)


@pytest.mark.parametrize(
    "number", range(len(OLD["entries"])), ids=[f"{i}-{called(e)}" for i, e in enumerate(OLD["entries"])]
)
def test_old_descriptions_give_the_same_numbers(number):
    entry = OLD["entries"][number]
    rough = entry["kind"] in OF_FLOAT32
    assert_same(numbers(entry, read(entry)), entry["gives"], rough, called(entry))
    today = again(entry, read(entry))
    assert_same(numbers(today, read(today)), entry["gives"], rough, called(entry))


@pytest.mark.parametrize("name", RUNS)
def test_old_runs_give_the_same_numbers_and_go_on(name, tmp_path):
    run = RUNS[name]
    assert_same(run_numbers(HOME / name, run["given"], tmp_path), run["gives"], True)


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run["given"]["samples"]])
def test_old_runs_are_sampled_by_the_command(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert drawn_by_the_command(HOME / name) == 0, capsys.readouterr().err
