"""Requests to stop, deadlines, and restarts by a launcher."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from damaged_runs import Killed, losses, names, refused, same, train
from torch.distributed import HashStore

from unnoise.experiments import load
from unnoise.experiments.program import launch_line
from unnoise.shared import distributed
from unnoise.shared.distributed import fresh_store
from unnoise.shared.errors import Interrupted, Notice, UsageError
from unnoise.shared.training import Training, resume, saving, stopping
from unnoise.shared.training.stopping import AT_ONCE, GO_ON, SAVE, Interruption, TooLate

cli = import_module("unnoise.experiments.cli.main")


def send(number):
    return lambda average, step: os.kill(os.getpid(), number) if step == 3 else None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_between_two_lines_of_the_log_changes_nothing(tmp_path, number):
    """The line after it has the means of all steps, of both processes."""
    settings = {"log_every": 5, "save_every": 5, "steps": 10, "watch_every": 1}
    train(tmp_path / "one", **settings)
    with pytest.raises(Interrupted) as caught:
        train(tmp_path / "two", watch=send(number), **settings)
    assert (caught.value.step, caught.value.unsaved, load(tmp_path / "two").step) == (4, "", 4)
    train(tmp_path / "two", resumed=True, **settings)
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert same(load(tmp_path / "two").objective, load(tmp_path / "one").objective)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice(average, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path, watch=twice, watch_every=1)
    assert not isinstance(caught.value, Interrupted)
    assert names(tmp_path) == ["00000002"]


def test_signals_to_the_group_of_a_run_leave_its_workers_alone(tmp_path):
    """A launcher and a terminal send them to every process; the workers still feed the present step."""
    seen = []

    def signalled(average, step):
        if step == 3:
            for worker in multiprocessing.active_children():
                seen.append(os.getpgid(worker.pid) != os.getpgid(0))
                for number in (signal.SIGINT, signal.SIGUSR1):
                    os.kill(worker.pid, number)
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(tmp_path, watch=signalled, watch_every=1, workers=1)
    assert (seen, load(tmp_path).step) == ([True], 4)


def test_without_time_for_a_checkpoint_the_run_stops_at_once(tmp_path, monkeypatch):
    """And the one before is used."""
    real = saving.save_file
    monkeypatch.setattr(saving, "save_file", lambda *a: (time.sleep(0.2), real(*a)))
    with pytest.raises(Interrupted) as caught:
        train(tmp_path, watch=send(signal.SIGTERM), watch_every=1, deadline=0.1)
    assert caught.value.step == 3
    assert re.search(r"a checkpoint 0.\d s, and deadline=0.1 seconds$", caught.value.unsaved)
    assert names(tmp_path) == ["00000002"]
    with pytest.raises(Interrupted) as caught:
        train(tmp_path, resumed=True, watch=send(signal.SIGTERM), watch_every=1, deadline=30.0)
    assert (caught.value.step, caught.value.unsaved, load(tmp_path).step) == (4, "", 4)


def test_a_deadline_is_held_with_measured_times(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    asked = Interruption(deadline=10.0)
    for lasts in (1.0, 1.0, 7.0, 1.0, 1.0):
        now[0] += lasts
        assert asked() == GO_ON
    with asked.saving():
        now[0] += 4.0
    assert (asked.step, asked.save) == (1.0, 4.0)
    asked.handle(signal.SIGTERM, None)
    now[0] += 6.0
    assert asked() == SAVE  # 6 + 4 seconds
    now[0] += 0.5
    assert asked() == AT_ONCE
    asked = Interruption(deadline=4.5)
    asked.steps, asked.save = [1.0], 4.0
    with pytest.raises(TooLate):
        asked.handle(signal.SIGTERM, None)
    asked = Interruption(deadline=4.5)
    asked.steps, asked.save = [1.0], 4.0
    asked.handle(signal.SIGINT, None)  # from a person, who does not end the process
    assert asked() == SAVE


@pytest.mark.parametrize("value", [0, -1, "soon"])
def test_a_deadline_is_a_positive_number(value):
    with pytest.raises(UsageError, match=f"deadline={value}"):
        Training(deadline=value)


def test_a_restart_by_torchrun_continues_its_own_run(tmp_path, monkeypatch):
    """Without --resume, and not that of another start; before the first checkpoint it starts anew."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")

    def kill(average, step):
        if step == 3:
            raise Killed

    train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "run", watch=kill, watch_every=1)
    refused(lambda: train(tmp_path / "run"), "already has a run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.warns(Notice, match="continues at step 2: torchrun has restarted the processes"):
        train(tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    with pytest.warns(Notice, match="torchrun has restarted the processes before the first checkpoint"):
        train(tmp_path / "fresh")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    refused(lambda: train(tmp_path / "run"), "already has a run")
    for own in ("none", ""):  # without --rdzv-id
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", own)
        refused(lambda: train(tmp_path / "run"), "already has a run")


def test_a_restart_on_another_node_is_one(tmp_path, monkeypatch):
    """The torchrun of a node on which no process failed does not count it, and has another number of its own."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    train(tmp_path / "run")
    first = distributed.launcher()
    monkeypatch.setattr(distributed.os, "getppid", lambda: 1)
    assert distributed.launcher() != first
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [True, value])
    refused(lambda: train(tmp_path / "run"), "already has a run")
    monkeypatch.setattr(resume, "of_main", lambda value: first if isinstance(value, str) else value)
    with pytest.warns(Notice, match="torchrun has restarted the processes"):
        train(tmp_path / "run")


@pytest.mark.parametrize(
    ("unsaved", "line"),
    [
        ("", "stopped after step 5 and saved in run; "),
        ("late", "stopped after step 5 without saving it, because late; "),
    ],
)
def test_the_command_line_says_whether_the_step_is_saved(monkeypatch, capsys, unsaved, line):
    def stop(arguments):
        raise Interrupted(5, Path("run"), unsaved)

    monkeypatch.setattr(cli, "run", stop)
    assert cli.main(["train", "a"]) == 130
    assert capsys.readouterr().err == f"\nunnoise: {line}continue with: unnoise train a --resume\n"


def test_processes_that_are_started_anew_do_not_read_what_dead_ones_wrote(monkeypatch):
    """torchrun keeps its store; each start has a prefix of its own there."""
    store, number = HashStore(), threading.local()
    launcher = import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(launcher, "rendezvous", lambda url: iter([(store, number.rank, 3)]))

    def start(rank):
        number.rank = rank
        return fresh_store()

    with ThreadPoolExecutor(3) as pool:
        (first, *_), (second, *_), (third, *_) = pool.map(start, (2, 0, 1))
        first.set("address", "of a process that is dead")
        assert second.get("address") == third.get("address") == b"of a process that is dead"
        again = [found[0] for found in pool.map(start, (0, 1, 2))]
    assert not any(part.check(["address"]) for part in again)
    again[0].set("address", "new")
    assert [part.get("address") for part in again] == [b"new"] * 3


def test_all_processes_of_a_run_stop_after_one_step_and_continue_from_one_checkpoint(tmp_path):
    """Whichever of them is asked; and where none is intact, all say so."""
    command = [sys.executable, str(Path(__file__).parent / "stopping_ranks.py"), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    lines = dict(re.findall(r"^(\w+(?: \d)?): (.*)$", found.stdout, re.M))  # other lines are of the libraries
    saved = int(lines["saved"])
    assert 3 <= saved <= 5, lines
    assert lines["one 0"] == lines["one 1"] == f"stopped after step {saved}"
    assert lines["zero 0"] == lines["zero 1"]
    assert lines["none 0"] == lines["none 1"]
    assert lines["none 0"].startswith("UsageError the checkpoint ")
    assert lines["older 0"] == lines["older 1"] == f"from step {saved}"
    assert lines["left"] == "00000006 00000007.damaged 00000008"


def test_the_line_to_continue_with_starts_as_many_processes(monkeypatch):
    assert launch_line() == ["unnoise"]
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert launch_line() == ["torchrun", "--nproc-per-node", "2", "-m", "unnoise"]


def test_the_process_group_outlives_the_error_that_ends_a_run(monkeypatch):
    """DistributedDataParallel would free it with Python's lock held, which a thread of gloo can be waiting for."""

    held = SimpleNamespace()
    groups: list[object] = []
    monkeypatch.setattr(distributed, "launched", lambda: 2)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *arguments, **settings: None)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed.dist, "group", SimpleNamespace(WORLD=held))
    monkeypatch.setattr(distributed, "GROUPS", groups)
    with pytest.raises(Interrupted), distributed.processes("cpu"):
        raise Interrupted(3, None)
    assert groups == [held]
