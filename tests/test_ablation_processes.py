"""Processes of an ablation: their share of the machine, how they are stopped, and what an unusable GPU does."""

from __future__ import annotations

import os
import signal
import time

import pytest

from unnoise.continuous import Cosine, LinearBetas
from unnoise.experiments.ablation import Ablation, parallel, runs
from unnoise.experiments.ablation.parallel import ended_with_parent, environment, stopped_by_signals
from unnoise.experiments.ablation.runs import Plan, attempts_file, read_result, work
from unnoise.experiments.recipes import find
from unnoise.shared.errors import UsageError


def test_processes_share_the_cores(monkeypatch):
    """Each has its share, and never more threads than the user allows."""
    monkeypatch.setattr(parallel, "cores", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    found = environment(1, 3)
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == ("4", "1")
    assert environment(1, 40)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert environment(1, 3)["OMP_NUM_THREADS"] == "4"


def test_processes_have_a_gpu_each_of_those_that_are_visible(monkeypatch):
    monkeypatch.setattr(parallel.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [environment(n, 3)["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [environment(n, 2)["CUDA_VISIBLE_DEVICES"] for n in range(2)] == ["5", "7"]
    assert parallel.natural_processes(9) == 2


def test_a_signal_of_a_cluster_stops_as_ctrl_c_does():
    """So that a run that is stopped is not counted as one in which the process ended; the second one is ignored."""
    before, reached = signal.getsignal(signal.SIGTERM), []

    def stopped():
        with stopped_by_signals():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert reached
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_process_ends_with_its_parent(monkeypatch):
    """A worker whose parent was killed stops, and saves its training."""
    monkeypatch.setattr(parallel, "POLL", 0.01)
    monkeypatch.setenv(parallel.PARENT, str(os.getppid()))
    with stopped_by_signals(), ended_with_parent():
        time.sleep(0.1)
    monkeypatch.setenv(parallel.PARENT, "999999999")
    with pytest.raises(KeyboardInterrupt), stopped_by_signals(), ended_with_parent():
        time.sleep(5)


def test_a_process_whose_gpu_is_lost_ends_and_its_run_alone_has_failed(tmp_path, monkeypatch):
    """After a failed assertion in a kernel all further calls raise: another process has to do the other runs."""

    def train(*_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    def synchronize():
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(runs.torch.cuda, "synchronize", synchronize)
    levels = {"linear": {"schedule": LinearBetas(100)}, "cosine": {"schedule": Cosine()}}
    plan = Plan.of(Ablation(find("ddpm-smoke"), {"schedule": levels}, 1), tmp_path)
    plan.write()
    with pytest.raises(SystemExit) as stop:
        work(plan, say=lambda line: None)
    assert stop.value.code == 1
    first, second = plan.cases
    assert "device-side assert" in read_result(plan.result(first))["failure"]
    assert not attempts_file(plan.result(first)).exists()
    assert not plan.done(second)
    monkeypatch.setattr(runs.torch.cuda, "synchronize", lambda: None)
    assert work(plan, say=lambda line: None) == 1


class Ended:
    """A process that has ended with a status."""

    def __init__(self, returncode):
        self.returncode = returncode

    def poll(self):
        return self.returncode


def test_processes_that_end_are_replaced_as_long_as_runs_get_results(tmp_path, monkeypatch):
    """Each of six runs ends its process three times, and a fault of the machine ends all of them at once."""
    monkeypatch.setattr(parallel, "POLL", 0)
    plan = Plan.of(Ablation(find("ddpm-smoke"), {"steps": {"own": {}, "7": {"sampling_steps": 7}}}, 3), tmp_path)
    plan.write()
    (tmp_path / "process-0.log").write_text("Traceback\nImportError: no torch\n")
    started = []

    def start(number):
        started.append(number)
        if len(started) % 4 == 0:
            runs.failed(plan.result(plan.pending()[0]), "the process ended 3 times")
        return Ended(1)

    found = list(parallel.newly_done(plan, plan.pending(), {0: Ended(1)}, start, tmp_path))
    assert len(found) == 6
    assert len(started) == 24
    plan.retry()
    started.clear()
    with pytest.raises(UsageError, match=r"end without doing its runs \(ImportError: no torch\)"):
        list(
            parallel.newly_done(plan, plan.pending(), {0: Ended(1)}, lambda n: started.append(n) or Ended(1), tmp_path)
        )
    assert len(started) == 4
    with pytest.raises(UsageError, match="the processes have ended, and 6 runs have no result"):
        list(parallel.newly_done(plan, plan.pending(), {0: Ended(0)}, start, tmp_path))
