"""Processes that share the runs of an ablation on one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from types import FrameType
from typing import Any

import torch

from ...shared.errors import UsageError
from ...shared.progress import Progress
from .grid import Case
from .runs import ATTEMPTS, Plan, numbers_of, read_result, work

WORKER = "--worker"
"""The option of a process that only does runs; it is not shown in help."""
PARENT = "UNNOISE_ABLATION_PARENT"
"""The variable of the environment with the number of the process that started a worker."""
POLL = 0.5
"""Seconds between two looks at the processes and their results."""


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def natural_processes(runs: int) -> int:
    """Returns how many processes share `runs` runs: one for each GPU, without GPUs one for each core."""
    return max(1, min(runs, torch.cuda.device_count() or cores()))


def environment(number: int, processes: int) -> dict[str, str]:
    """Returns the environment of process `number` of `processes`: its share of the cores, and one GPU in turn."""
    share = max(1, cores() // processes)
    own = {name: str(min(share, threads_in(name) or share)) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    own[PARENT] = str(os.getpid())
    if count := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        own["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number % count]
    return os.environ | own


def threads_in(name: str) -> int:
    """Returns the number of threads that a variable of the environment limits this process to; 0 for none."""
    given = os.environ.get(name, "")
    return int(given) if given.isdecimal() else 0


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within the block SIGTERM, as from `kill` or a cluster, stops as Ctrl-C does, and only the first signal counts.

    A run that is stopped so is not counted as one in which the process ended, and the processes of an ablation stop
    with the command that started them.
    """

    def stop_once(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def ended_with_parent() -> Iterator[None]:
    """Within the block this process gets SIGTERM when the process that started it has ended, also when killed."""
    over, parent = Event(), int(os.environ.get(PARENT, os.getppid()))

    def watch() -> None:
        while not over.wait(2 * POLL):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def work_as_worker(plan: Plan) -> None:
    """Does runs of a plan in one of several processes, until it is asked to stop or its parent has ended."""
    with stopped_by_signals(), ended_with_parent():
        work(plan, say=lambda line: print(line, flush=True))


def work_in_processes(
    plan: Plan, processes: int, options: Sequence[str], progress: Progress, say: Callable[[str], Any]
) -> None:
    """Does the runs of a plan in processes of their own, whose output is in the folder `logs`.

    A process that ends during a run is replaced, and the run goes on from its newest checkpoint.

    Args:
        plan: the plan, which is written in its folder.
        processes: the number of processes.
        options: further arguments of their command lines, such as `--module FILE.py`.
        progress: how to report the number of finished runs.
        say: receives a line for each finished run.

    Raises:
        UsageError: where the processes end without doing their work.
    """
    command = [sys.executable, "-m", "unnoise", "ablate", str(plan.folder.resolve()), WORKER, *options]
    logs = plan.folder / "logs"
    logs.mkdir(exist_ok=True)
    with ExitStack() as stack:

        def start(number: int) -> subprocess.Popen[bytes]:
            log = stack.enter_context((logs / f"process-{number}.log").open("ab"))
            return subprocess.Popen(command, env=environment(number, processes), stdout=log, stderr=log)

        workers = {number: start(number) for number in range(processes)}
        try:
            waiting = plan.pending()
            for case in progress(newly_done(plan, waiting, workers, start, logs), len(waiting), "runs"):
                say(line_of(plan, case))
            for worker in workers.values():
                worker.wait()
        finally:
            stop(workers)


def newly_done(
    plan: Plan,
    waiting: Sequence[Case],
    workers: dict[int, subprocess.Popen[bytes]],
    start: Callable[[int], subprocess.Popen[bytes]],
    logs: Path,
) -> Iterator[Case]:
    """Yields each run when it has a result, and replaces processes that ended before."""
    left, replaced = list(waiting), 0
    while left:
        found = [case for case in left if plan.done(case)]
        replaced = 0 if found else replaced
        yield from found
        left = [case for case in left if case not in found]
        for number, worker in workers.items():
            if not left or worker.poll() in (None, 0):
                continue
            replaced += 1
            if worker.returncode == 2 or replaced > (ATTEMPTS + 1) * len(workers):  # and no run has a result meanwhile
                path = logs / f"process-{number}.log"
                last = next(iter(path.read_text(errors="replace").strip().splitlines()[-1:]), "no output")
                raise UsageError(f"the processes of the ablation end without doing its runs ({last}): see {path}")
            workers[number] = start(number)
        if left and all(worker.poll() == 0 for worker in workers.values()):
            left = [case for case in left if not plan.done(case)]
            if left:
                raise UsageError(f"the processes have ended, and {len(left)} runs have no result: start again")
        time.sleep(POLL if left else 0)


def stop(workers: dict[int, subprocess.Popen[bytes]]) -> None:
    """Asks processes that still run to save and stop, and waits for them."""
    for worker in workers.values():
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
    for worker in workers.values():
        worker.wait()


def line_of(plan: Plan, case: Case) -> str:
    """Returns a line on a run that has a result."""
    data = read_result(plan.result(case))
    if "failure" in data:
        return f"failed: {case.name}: {data['failure']}"
    return f"done in {data['seconds']:.0f} s: {case.name}: {numbers_of(plan, data['evaluation'])}"
