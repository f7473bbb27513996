"""The short forms of `benchmarks/crash.py`: runs that are killed and continued equal those that nobody killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import crash

ROOT = Path(__file__).parent.parent


def killed(*arguments):
    """The lines of the table, of a process of its own, which can be forked."""
    command = [sys.executable, "-m", "benchmarks.crash", *arguments]
    found = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return [line for line in found.stdout.splitlines() if line.startswith("| one process")]


def test_three_kills_of_a_run():
    lines = killed("--kills", "3", "--rank-kills", "0")
    assert [line.split(" | ")[1] for line in lines] == ["2", "1"]
    assert all(line.endswith("| yes |") for line in lines)


@pytest.mark.slow
def test_a_kill_of_one_process_of_two():
    (line,) = killed("--kills", "0", "--rank-kills", "1")
    assert line.startswith("| one process of two under torchrun | 1 | 1 ")
    assert line.endswith("| yes |")


def test_a_difference_is_found(tmp_path):
    """Between two runs of other seeds, and where a step is missing."""
    for name, steps in (("one", 3), ("two", 3), ("short", 2)):
        crash.train(tmp_path / name, steps, 2, None, resume=False)
    assert crash.differences(tmp_path / "one", tmp_path / "two") == []
    assert "step differs" in crash.differences(tmp_path / "one", tmp_path / "short")
    log = tmp_path / "two" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"loss": ', '"loss": 1'))
    assert crash.differences(tmp_path / "one", tmp_path / "two") == ["metrics.jsonl differs"]


def test_steps_that_are_lost_are_counted(tmp_path):
    crash.train(tmp_path, 4, 2, None, resume=False)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9}\n{"st')
    result = crash.Result("a run")
    assert crash.examine(tmp_path, 4, 4, "at a step", result) == 4
    assert (result.lost, result.wrong) == ([5], ["5 steps were lost"])
    tensors = tmp_path / "checkpoints" / "00000004" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert crash.examine(tmp_path, 4, 4, "at a step", result) == 2
    assert "is damaged" in result.wrong[1]
    assert result.wrong[-1] == "the checkpoint of step 4 is lost"


def test_the_stream_of_the_benchmark_has_random_images(tmp_path):
    stream = crash.image_stream(str(crash.stream_files(tmp_path)))
    assert stream.shape == (1, crash.SIZE, crash.SIZE)
    assert torch.is_tensor(stream.decode([next(iter(stream.stream))])[0])
