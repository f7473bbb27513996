"""`unnoise submit`: the parameters of a job, and what its processes do at the end of its time."""

import os
import signal
import subprocess
from types import SimpleNamespace

import pytest

from unnoise.experiments.cli import main, slurm
from unnoise.experiments.cli.slurm import Job, Submit
from unnoise.shared.errors import UsageError

TRAIN = ("train", "ddpm-smoke", "--out", "runs/x")


def stopped_by(*numbers):
    """A command that receives signals and stops as training does."""

    def command(arguments):
        try:
            for number in numbers:
                os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            return 130
        return 0

    return command


@pytest.fixture
def scontrol(monkeypatch):
    calls = []
    monkeypatch.setattr(slurm.subprocess, "run", lambda command, **options: calls.append(command))
    return calls


def test_parameters_of_a_job():
    options = Submit(TRAIN, nodes=2, gpus_per_node=8, hours=1.5, memory=256, partition="big", slurm=("qos=high",))
    found = options.parameters()
    assert (found["nodes"], found["tasks_per_node"], found["gpus_per_node"]) == (2, 8, 8)
    assert (found["timeout_min"], found["mem_gb"], found["slurm_partition"]) == (90, 256, "big")
    assert found["slurm_additional_parameters"] == {"requeue": True, "qos": "high"}
    assert found["slurm_signal_delay_s"] == 180
    assert "slurm_account" not in found
    assert Submit(TRAIN, gpus_per_node=0).processes == 1
    assert Submit(TRAIN, gpus_per_node=4, processes_per_node=1).processes == 1
    assert Submit((*TRAIN, "--out", "ablate"), gpus_per_node=4).processes == 4  # a folder of this name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "nodes=0: give a whole number of at least 1"),
        ({"memory": 0}, "memory=0"),
        ({"hours": 0.05}, "hours=0.05: give more than the 180 s of --notice"),
        ({"slurm": ("qos",)}, "slurm=qos: give NAME=VALUE"),
        ({"nodes": 2, "local": True}, "--local runs on this machine alone"),
        ({"jobs": 2}, "only an ablation is shared by several jobs"),
    ],
)
def test_options_that_no_job_can_have(options, message):
    with pytest.raises(UsageError, match=message):
        Submit(TRAIN, **options)


def test_a_wrong_command_is_refused_before_it_is_queued(capsys, monkeypatch):
    monkeypatch.setattr(slurm, "submit", lambda *given: pytest.fail("it was submitted"))
    assert main(["submit", "--nodes", "2"]) == 2
    assert "give a command to submit" in capsys.readouterr().err
    assert main(["submit", "train", "ddpm-smok"]) == 2
    assert "ddpm-smoke" in capsys.readouterr().err
    assert main(["submit", "train", "ddpm-smoke", "--training.stepz", "3"]) == 2
    assert "training.stepz" in capsys.readouterr().err


def test_the_options_before_the_command_are_those_of_the_job(monkeypatch):
    jobs = []
    monkeypatch.setattr(slurm, "submit", lambda options, job: jobs.append((options, job)))
    assert main(["submit", "--gpus-per-node", "8", "train", "ddpm-smoke", "--training.steps", "9"]) == 0
    (options, job), *_ = jobs
    assert options.gpus_per_node == 8
    assert job.arguments == ("train", "ddpm-smoke", "--training.steps", "9")
    assert job.main is main


def test_without_submitit_or_slurm(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    assert main(["submit", *TRAIN]) == 2
    assert "pip install 'unnoise[slurm]'" in capsys.readouterr().err
    monkeypatch.setattr(slurm, "submitit_module", lambda: SimpleNamespace())
    monkeypatch.setenv("PATH", "")
    assert main(["submit", *TRAIN]) == 2
    assert "run the processes here with --local" in capsys.readouterr().err


def test_a_job_is_requeued_at_the_end_of_its_time(scontrol, capsys):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)]
    with pytest.raises(SystemExit, match="130"):
        Job(stopped_by(signal.SIGUSR2), TRAIN).run({"SLURM_JOB_ID": "17", "RANK": "0"})
    assert scontrol == [["scontrol", "requeue", "17"]]
    assert "job 17 is requeued at the end of its time, for the 1. time" in capsys.readouterr().out
    Job(stopped_by(signal.SIGUSR2), TRAIN).run({"SLURM_JOB_ID": "17", "RANK": "1"})  # process 0 may still be saving
    assert len(scontrol) == 1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)] == before


@pytest.mark.parametrize(
    ("numbers", "arguments", "environment", "line"),
    [
        ([signal.SIGTERM], TRAIN, {"SLURM_JOB_ID": "17"}, ""),
        (
            [signal.SIGUSR2],
            ("evaluate", "runs/x"),
            {"SLURM_JOB_ID": "17"},
            "because evaluate starts from its beginning",
        ),
        ([signal.SIGUSR2], ("sample", "runs/x"), {}, "under Slurm: give the command again\n"),
        ([signal.SIGUSR2], TRAIN, {}, "because it does not run under Slurm"),
        ([signal.SIGUSR2], TRAIN, {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "3"}, "because it was 3 times already"),
    ],
)
def test_a_job_that_is_not_requeued(numbers, arguments, environment, line, scontrol, capsys):
    with pytest.raises(SystemExit, match="130"):
        Job(stopped_by(*numbers), arguments, requeues=3).run(environment)
    assert not scontrol
    out = capsys.readouterr().out
    assert line in out
    assert bool(out) == bool(line)


def test_scontrol_that_fails(monkeypatch):
    def fails(*given, **options):
        raise subprocess.CalledProcessError(1, "scontrol")

    monkeypatch.setattr(slurm.subprocess, "run", fails)
    assert "could not be requeued" in Job(main, TRAIN).requeued("17", 0)


def test_a_requeued_job_continues_and_an_error_ends_it():
    seen = []
    Job(lambda arguments: seen.append(arguments) or 0, TRAIN).run({})
    Job(lambda arguments: seen.append(arguments) or 0, TRAIN).run({"SLURM_RESTART_COUNT": "1"})
    Job(lambda arguments: seen.append(arguments) or 0, ("reproduce", "x")).run({"SLURM_RESTART_COUNT": "1"})
    assert seen == [[*TRAIN], [*TRAIN, "--resume"], ["reproduce", "x"]]
    with pytest.raises(SystemExit, match="2"):
        Job(lambda arguments: 2, TRAIN).run({})


@pytest.mark.slow
def test_two_processes_on_this_machine(tmp_path, capsys):
    pytest.importorskip("submitit")
    run, logs = tmp_path / "run", tmp_path / "logs"
    command = ["train", "ddpm-smoke", "--out", str(run), "--training.device", "cpu"]
    local = ["--local", "--gpus-per-node", "0", "--processes-per-node", "2", "--logs", str(logs)]
    assert main(["submit", *local, *command]) == 0
    assert list((run / "checkpoints").iterdir())
    assert "job " in capsys.readouterr().out
    assert [path.name for path in logs.glob("*_1_log.out")]  # of the second process
    assert "global_rank=1(2)" in next(logs.glob("*_1_log.out")).read_text()
