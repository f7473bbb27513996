"""The command `unnoise submit`: a command of this package as a job of Slurm, by submitit."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import tyro

from ...shared.errors import UsageError
from ...shared.training.folder import writable
from ..program import program

CARRIED = ("train", "reproduce", "sample", "evaluate", "ablate")
"""The commands that a job can run."""
CONTINUED = ("train", "reproduce", "sample", "ablate")
"""Those of them that continue where they were stopped."""
INTERRUPTED = 130
"""Exit status of a command that was stopped by a signal."""


@dataclass(frozen=True)
class Submit:
    """Submits `unnoise train`, `reproduce`, `sample`, `evaluate` or `ablate` as a job of Slurm: a process for each GPU.

    Written before the command, as in `unnoise submit --nodes 2 --gpus-per-node 8 --hours 24 train ddpm-cifar10 --out
    runs/cifar10`. Before its time ends, a job saves what it has done, is requeued and continues, except for `evaluate`;
    after a node that failed, training continues from its newest checkpoint. Needs submitit: pip install
    'unnoise[slurm]'.
    """

    command: tyro.conf.Positional[tuple[str, ...]]
    """The command with its options, such as train ddpm-cifar10 --out runs/cifar10."""
    nodes: int = 1
    """Number of nodes."""
    gpus_per_node: int = 1
    """Number of GPUs of each node, 0 for a job on CPUs."""
    jobs: int = 1
    """Number of equal jobs, which share the runs of an ablation: for ablate alone, with one process each."""
    processes_per_node: int | None = None
    """Number of processes of each node; None for one for each GPU."""
    cpus_per_process: int = 8
    """Number of CPU cores of each process; data are read and augmented on them."""
    memory: int | None = None
    """Memory of each node in GB, such as 256; None for the default of the cluster."""
    hours: float = 24.0
    """Hours until the job is stopped, such as 0.5; it is then requeued."""
    requeues: int = 100
    """How often the job is requeued at the end of its time."""
    notice: int = 180
    """Seconds before the end of its time at which the job is asked to save and stop."""
    partition: str | None = None
    """Partition; None for the default of the cluster."""
    account: str | None = None
    """Account that is charged; None for the user's default."""
    slurm: tuple[str, ...] = ()
    """Further parameters of sbatch, such as qos=high constraint=h100."""
    logs: Path = Path("runs/slurm")
    """Folder of the job's script and logs."""
    local: bool = False
    """Whether to run the processes on this machine, without Slurm, to try a command; waits for their end."""

    def __post_init__(self) -> None:
        least = {"nodes": 1, "jobs": 1, "gpus_per_node": 0, "cpus_per_process": 1, "requeues": 0, "notice": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise UsageError(f"{name}={getattr(self, name)}: give a whole number of at least {smallest}")
        for name in ("processes_per_node", "memory"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name}={value}: give a whole number of at least 1")
        if not self.hours * 3600 > self.notice:
            raise UsageError(f"hours={self.hours:g}: give more than the {self.notice} s of --notice")
        if wrong := [text for text in self.slurm if not text.partition("=")[2]]:
            raise UsageError(f"slurm={wrong[0]}: give NAME=VALUE, such as qos=high")
        ablates = self.command[:1] == ("ablate",)
        if self.jobs > 1 and not ablates:
            raise UsageError(f"jobs={self.jobs}: only an ablation is shared by several jobs: leave out --jobs")
        if ablates and self.nodes * self.processes > 1:
            raise UsageError("a job of an ablation has one process: give --jobs N in place of nodes, GPUs or processes")
        if self.local and self.nodes > 1:
            raise UsageError(f"nodes={self.nodes}: --local runs on this machine alone: leave out --nodes")

    @property
    def processes(self) -> int:
        """The number of processes of each node."""
        return max(self.gpus_per_node, 1) if self.processes_per_node is None else self.processes_per_node

    def parameters(self) -> dict[str, Any]:
        """Returns the parameters of submitit's `AutoExecutor`."""
        given = {"partition": self.partition, "account": self.account}
        more = {"requeue": True} | dict(text.split("=", 1) for text in self.slurm)
        return {
            "name": "-".join(self.command[:2]).replace("/", "-"),
            "nodes": self.nodes,
            "tasks_per_node": self.processes,
            "gpus_per_node": self.gpus_per_node,
            "cpus_per_task": self.cpus_per_process,
            "timeout_min": max(round(self.hours * 60), 1),
            "slurm_signal_delay_s": self.notice,
            "slurm_srun_args": ["--kill-on-bad-exit=1"],  # a process that fails must not leave the others waiting
            "slurm_additional_parameters": more,
            **({} if self.memory is None else {"mem_gb": self.memory}),
            **{f"slurm_{name}": value for name, value in given.items() if value is not None},
        }


def options_for(
    arguments: Sequence[str], main: Callable[[list[str]], int], check: Callable[[str, list[str]], object]
) -> tuple[type, list[str]]:
    """Returns the class of the command `submit`, and its own arguments, those before the command of the job.

    Args:
        arguments: the arguments after `submit`.
        main: runs a command by its arguments and returns its exit status.
        check: raises for a command, given as its name and arguments, whose options cannot be read.
    """
    start = next((i for i, word in enumerate(arguments) if word in CARRIED), None)
    if start is None:
        raise UsageError(
            f"give a command to submit, one of {', '.join(CARRIED)}, as in unnoise submit [options] train ddpm-cifar10"
        )
    command = tuple(arguments[start:])

    def execute(options: Any) -> None:
        check(command[0], list(command[1:]))
        submit(options, Job(main, command, options.requeues))

    given: Any = ("command", tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]], command)
    cls = make_dataclass("Submit", [given], bases=(Submit,), namespace={"execute": execute}, frozen=True)
    cls.__doc__ = Submit.__doc__
    return cls, list(arguments[:start])


def submit(options: Submit, job: Job) -> None:
    """Submits the jobs, and prints their numbers, their logs and how to stop them; local ones are waited for."""
    submitit = submitit_module()
    if not options.local and shutil.which("sbatch") is None:
        raise UsageError(
            "this machine has no Slurm (no sbatch): submit from a login node, or run the processes here with --local"
        )
    executor = submitit.AutoExecutor(folder=writable(options.logs), cluster="local" if options.local else "slurm")
    executor.update_parameters(**options.parameters())
    for _ in range(options.jobs):
        follow(executor.submit(job), options, job)


def follow(submitted: Any, options: Submit, job: Job) -> None:
    """Prints the number and the log of a submitted job; a local one is waited for, and its output printed."""
    log = submitted.paths.stdout
    print(f"job {submitted.job_id}: {program()} {shlex.join(job.arguments)}\nlog: {log}", flush=True)
    if not options.local:
        print(f"stop it with: scancel {submitted.job_id}")
        return
    submitted.wait()
    print(log.read_text() if log.is_file() else "", end="")
    for path in (s.paths.stderr for s in [submitted, *submitted._sub_jobs]):
        print(path.read_text() if path.is_file() else "", end="")


def submitit_module() -> Any:
    """Returns the package submitit.

    Raises:
        UsageError: where it is not installed.
    """
    try:
        import submitit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError("jobs of Slurm need submitit: pip install 'unnoise[slurm]'") from error
    return submitit


@dataclass(frozen=True)
class Job:
    """What each process of a job runs.

    The processes are connected as those of torchrun, by the same variables of the environment. Slurm sends SIGUSR2
    before the time of the job ends: training then saves a checkpoint, and process 0 requeues the job. A requeued job
    continues the run. After SIGTERM, as from `scancel`, the job is not requeued.

    Attributes:
        main: runs a command by its arguments and returns its exit status.
        arguments: the command.
        requeues: how often the job is requeued.
    """

    main: Callable[[list[str]], int]
    arguments: tuple[str, ...]
    requeues: int = 100

    def __call__(self) -> None:
        submitit_module().helpers.TorchDistributedEnvironment().export(overwrite=True)
        self.run(os.environ)

    def run(self, environment: Any) -> None:
        """Runs the command in one process of the job, whose variables of the environment are given.

        Raises:
            SystemExit: with the exit status of the command, if it is not 0.
        """
        asked: list[int] = []

        def stop(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            os.kill(os.getpid(), signal.SIGTERM)  # training saves and stops; what cannot continue stops at once

        signals = {signal.SIGUSR2: stop, signal.SIGTERM: signal.default_int_handler}
        before = {number: signal.signal(number, handler) for number, handler in signals.items()}
        restarts = int(environment.get("SLURM_RESTART_COUNT", "0") or 0)
        try:
            status = self.main(self.continued(restarts))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if status == INTERRUPTED and environment.get("RANK", "0") != "0":
            return  # srun would end process 0, which may still be saving, at another exit status
        if status == INTERRUPTED and asked:
            print(self.requeued(environment.get("SLURM_JOB_ID"), restarts), flush=True)
        if status:
            raise SystemExit(status)

    def continued(self, restarts: int) -> list[str]:
        """Returns the command, with --resume for a training job that was requeued."""
        resumes = restarts > 0 and self.arguments[0] == "train" and "--resume" not in self.arguments
        return [*self.arguments, *["--resume"] * resumes]

    def requeued(self, number: str | None, restarts: int) -> str:
        """Requeues the job where it can continue, and returns a line that says what was done and why."""
        if self.arguments[0] not in CONTINUED:
            return f"the job is not requeued, because {self.arguments[0]} starts from its beginning: give more --hours"
        resume = " with --resume" * (self.arguments[0] == "train")
        if number is None:
            return f"the job is not requeued, because it does not run under Slurm: give the command again{resume}"
        if restarts >= self.requeues:
            return f"the job is not requeued, because it was {restarts} times already: submit it again{resume}"
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scontrol", "requeue", number], check=True, timeout=60)
            return f"job {number} is requeued at the end of its time, for the {restarts + 1}. time"
        return f"job {number} could not be requeued (scontrol has failed): submit it again{resume}"
