"""Kills training runs with SIGKILL at random moments, continues them, and compares them with runs that nobody killed.

`python -m benchmarks.crash` kills a run in one process 50 times, on data in memory and on a stream, in turn at random
steps, while a checkpoint is written, and during the start; and 10 times one process of two that torchrun has started,
which torchrun starts anew. Each run trains with dropout, random flips or augmentation, condition dropout,
micro-batches and three averages of the weights. It is continued by the same command. At the end weights, averages,
optimizer, position of the data and log must be those of an uninterrupted run bit for bit; after each kill no
checkpoint may be damaged, and at most one interval between checkpoints may be lost.

`--kills 3 --rank-kills 1` is a short form. The exit status is 1 where anything differs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from unnoise.continuous import CosineBetas, DenoisingLoss, Learned
from unnoise.shared.data import Batches
from unnoise.shared.data.augmentation import Augmentation
from unnoise.shared.data.image_stream import image_stream
from unnoise.shared.data.streaming import StreamedBatches
from unnoise.shared.distributed import processes, rank
from unnoise.shared.gaussian.guidance import ConditionDropout
from unnoise.shared.networks import UNet
from unnoise.shared.objective import Stratified
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import Source, uniform
from unnoise.shared.tensors import like
from unnoise.shared.training import Trainer, Training
from unnoise.shared.training.averages import HalfLife, PowerFunction
from unnoise.shared.training.checkpoint import first_intact, list_checkpoints, read
from unnoise.shared.training.folder import read_metrics

LEVELS, SIZE, BATCH = Quantization(256), 8, 8
TIMES = ("seconds", "data_wait", "flop_utilization", "images_per_second")
"""The entries of a line of the log that depend on the clock."""
LONGEST = 120.0
"""Seconds without a step after which a run counts as one that needs a hand."""


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    kills: int = 50
    """Kills of a run in one process; half of them on data in memory, half on a stream."""
    rank_kills: int = 10
    """Kills of one process of two under torchrun."""
    every: int = 4
    """Number of steps between checkpoints."""
    seed: int = 0
    """Seed of the moments."""
    worker: tuple[str, ...] = ()
    """Folder, steps and interval of a process that torchrun starts; used by the benchmark itself."""


@dataclass
class Result:
    """What became of a run.

    Attributes:
        name: the run.
        moments: what the process was doing at each kill.
        lost: steps that were lost by each kill.
        wrong: what was wrong, a line each.
    """

    name: str
    moments: Counter[str] = field(default_factory=Counter)
    lost: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def flipped(quantization: Quantization, k: Tensor, source: Source) -> Tensor:
    """Returns dequantized images, each mirrored with probability 1/2."""
    mirror = like(uniform((len(k),), source, device=k.device) < 0.5, k)
    return quantization.dequantized(torch.where(mirror, k.flip(-1), k), source)


def stream_files(folder: Path) -> Path:
    """Writes random images as Parquet files, in the layout of image sets on the Hub."""
    import datasets
    import datasets.utils.logging
    import numpy as np
    from PIL import Image

    datasets.utils.logging.disable_progress_bar()
    features, generator = datasets.Features({"img": datasets.Image()}), np.random.default_rng(0)
    for shard in range(3):
        rows = []
        for _ in range(20):
            image = BytesIO()
            Image.fromarray(generator.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(image, "png")
            rows.append({"img": {"bytes": image.getvalue(), "path": None}})
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(str(folder / f"train-{shard:05d}-of-00003.parquet"))
    return folder


def train(folder: Path, steps: int, every: int, files: Path | None, resume: bool) -> None:
    """Trains into a folder, from data in memory or from the files of a stream."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    condition: dict[str, Any] = {"classes": 4} if files is None else {"augment": 9}
    network = UNet((1, SIZE, SIZE), width=8, multipliers=(1,), blocks=1, dropout=0.3, **condition)
    objective: Any = DenoisingLoss.simple(Learned(network, CosineBetas(20)), times=Stratified())
    config = Training(
        steps=steps,
        learning_rate=1e-3,
        warmup=2,
        log_every=3,
        save_every=every,
        micro_batch=4,
        averages=(PowerFunction(0.1), HalfLife(100)),
        device="cpu",
    )
    batches: Any
    if files is None:
        k = torch.randint(0, 256, (40, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        objective = ConditionDropout(objective, 0.3)
        batches = Batches(k, BATCH, LEVELS, flipped, {"label": torch.arange(40) % 4}, seed=3)
    else:
        found = image_stream(str(files))
        more: Any = {"form": Quantization.dequantized, "augment": Augmentation(0.5), "block": 16, "seed": 3}
        batches = StreamedBatches(found.stream, found.decode, BATCH, found.quantization, found.shape, **more)
    Trainer(objective, config, folder=folder).fit(batches, resume=resume)


def forked(call: Callable[[], None], log: Path) -> int:
    """Runs a function in a process of its own, whose number is returned; its errors are written to a log."""
    child = os.fork()
    if child:
        return child
    status = 1
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            call()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def ended(child: int) -> int | None:
    """Returns the exit status of a child process that has ended; None for one that runs."""
    number, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if number else None


def position(folder: Path) -> int:
    """Returns the batches that a run has taken by its latest sign: a line of the log, or a checkpoint."""
    steps = [int(path.name) for path in list_checkpoints(folder / "checkpoints")]
    with suppress(OSError):
        for line in (folder / "metrics.jsonl").read_bytes()[-2000:].split(b"\n"):
            with suppress(ValueError, KeyError, TypeError):
                steps.append(json.loads(line)["step"])
    return max(steps, default=0)


def unfinished(folder: Path) -> set[tuple[str, int]]:
    """Returns the checkpoints that are being written or deleted, or were when a process was killed: name and time."""
    found = set[tuple[str, int]]()
    for path in (folder / "checkpoints").glob(".*.part"):
        with suppress(OSError):
            found.add((path.name, path.stat().st_ctime_ns))
    return found


def waits_for(happens: Callable[[], bool], runs: Callable[[], bool]) -> bool:
    """Waits until something happens, and returns whether it did before the run ended or stood still."""
    until = time.monotonic() + LONGEST
    while time.monotonic() < until and runs():
        if happens():
            return True
        time.sleep(0.002)
    return False


def examine(
    folder: Path, every: int, before: int, moment: str, result: Result, left: Collection[tuple[str, int]] = ()
) -> int:
    """Examines a folder after a kill, and returns the step of the newest checkpoint.

    `before` is that of before, and `left` are the unfinished checkpoints of before.
    """
    damaged: list[str] = []
    saved, seen = 0, position(folder)
    if list_checkpoints(folder / "checkpoints"):
        _, (description, _) = first_intact(
            folder, read, say=lambda errors, used: damaged.extend(e.found for e in errors)
        )
        saved = description["step"]
    result.moments["while a checkpoint was written" if unfinished(folder) - set(left) else moment] += 1
    result.lost.append(max(seen - saved, 0))
    result.wrong += damaged
    if seen - saved > every:
        result.wrong.append(f"{seen - saved} steps were lost")
    if saved < before:
        result.wrong.append(f"the checkpoint of step {before} is lost")
    return saved


def kill_one_process(root: Path, kills: int, every: int, files: Path | None, draws: random.Random) -> Result:
    """Kills a run in one process, continues it, and compares it with one that nobody killed."""
    result = Result(f"one process, {'data in memory' if files is None else 'stream'}")
    steps, folder, log = (kills + 4) * every, root / "killed", root / "log.txt"
    root.mkdir()
    moments = ["at a step", "checkpoint", "at a step", "checkpoint", "during the start"]
    saved = 0
    for number in range(kills):
        left, moment = unfinished(folder), moments[number % len(moments)]
        child = forked(lambda: train(folder, steps, every, files, True), log)
        target = min(saved + draws.randint(0, 2 * every), steps - every - 1)
        status: list[int] = []

        def runs(child: int = child, status: list[int] = status) -> bool:
            if not status and (found := ended(child)) is not None:
                status.append(found)
            return not status

        if moment == "during the start":
            time.sleep(draws.uniform(0.0, 0.3))
        else:
            waits_for(lambda target=target: position(folder) >= target, runs)
            if moment == "checkpoint":
                waits_for(lambda left=left: bool(unfinished(folder) - left), runs)
            time.sleep(draws.uniform(0.0, 0.02))
        if not runs():
            result.wrong.append(f"the run ended by itself before kill {number + 1}, with status {status[0]}")
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        saved = examine(folder, every, saved, "at a step" if moment == "checkpoint" else moment, result, left)
    for place in (folder, root / "whole"):
        child = forked(lambda place=place: train(place, steps, every, files, True), log)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            result.wrong.append(f"{place.name} ended with status {code}: {cause(log)}")
            return result
    result.wrong += differences(folder, root / "whole")
    return result


def kill_ranks(root: Path, kills: int, every: int, draws: random.Random) -> Result:
    """Kills one process of two that torchrun has started and starts anew."""
    result = Result("one process of two under torchrun")
    steps, folder, log = (kills + 4) * every, root / "killed", root / "log.txt"
    folder.mkdir(parents=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = ["-m", "benchmarks.crash", "--worker"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        more = ["--max-restarts", str(kills), *worker, str(folder), str(steps), str(every)]
        run = subprocess.Popen([*launch, *more], env=environment, stdout=file, stderr=file)
        saved = 0
        for number in range(kills):
            pids, left = [folder / f"pid-{number}-{rank}" for rank in range(2)], unfinished(folder)
            target = min(saved + draws.randint(0, 2 * every), steps - every - 1)
            runs = lambda: run.poll() is None  # noqa: E731
            waits_for(lambda pids=pids: all(path.exists() for path in pids), runs)
            waits_for(lambda target=target: position(folder) >= target, runs)
            if number % 2:
                waits_for(lambda left=left: bool(unfinished(folder) - left), runs)
            time.sleep(draws.uniform(0.0, 0.02))
            if not runs():
                result.wrong.append(f"torchrun ended before kill {number + 1}: {cause(log)}")
                return result
            chosen = draws.randrange(2)
            os.kill(int(pids[chosen].read_text()), signal.SIGKILL)
            saved = examine(folder, every, saved, f"of rank {chosen}", result, left)
        if run.wait():
            result.wrong.append(f"torchrun ended with status {run.returncode}: {cause(log)}")
            return result
        whole = [*launch, *worker, str(root / "whole"), str(steps), str(every)]
        if subprocess.run(whole, env=environment, stdout=file, stderr=file).returncode:
            result.wrong.append(f"the uninterrupted run has failed: {cause(log)}")
            return result
    result.wrong += differences(folder, root / "whole")
    return result


def cause(log: Path) -> str:
    """Returns the errors in a log, the last ones, in one line."""
    found = [line.strip() for line in log.read_text().splitlines() if "Error" in line and "error_file" not in line]
    return "; ".join(found[-4:]) or "no error in its log"


def work(folder: Path, steps: int, every: int) -> None:
    """Trains as one of the processes of torchrun; writes its number for the one who kills it."""
    with processes("cpu"):
        folder.mkdir(exist_ok=True)
        part = folder / f".pid-{rank()}"
        part.write_text(str(os.getpid()))
        part.rename(folder / f"pid-{os.environ['TORCHELASTIC_RESTART_COUNT']}-{rank()}")
        train(folder, steps, every, None, resume=False)


def differences(folder: Path, whole: Path) -> list[str]:
    """Returns in what a run differs from another one, in a line each."""
    (_, (description, tensors)), (_, (other, others)) = (first_intact(path, read) for path in (folder, whole))
    wrong = [f"{name} differs" for name in tensors.keys() ^ others.keys()]
    wrong += [f"{k} differs" for k in tensors.keys() & others.keys() if not torch.equal(tensors[k], others[k])]
    wrong += [f"{k} differs" for k in ("step", "batches", "log") if description[k] != other[k]]
    logs = [[without_times(line) for line in read_metrics(path / "metrics.jsonl")] for path in (folder, whole)]
    if logs[0] != logs[1]:
        wrong.append("metrics.jsonl differs")
    names = [[path.name for path in list_checkpoints(path / "checkpoints")] for path in (folder, whole)]
    return wrong if names[0] == names[1] else [*wrong, f"the checkpoints are {names[0]}, not {names[1]}"]


def without_times(line: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a line of the log without what depends on the clock."""
    return {name: value for name, value in line.items() if name not in TIMES}


def table(results: list[Result], every: int) -> str:
    """Returns the results as a table."""
    lines = [
        f"checkpoints every {every} steps",
        "| run | kills | moments | steps lost, mean | most | equal to the uninterrupted run |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        moments = ", ".join(f"{count} {moment}" for moment, count in r.moments.most_common() if count)
        mean = sum(r.lost) / max(len(r.lost), 1)
        equal = "no" if r.wrong else "yes"
        lines.append(f"| {r.name} | {len(r.lost)} | {moments} | {mean:.1f} | {max(r.lost, default=0)} | {equal} |")
    return "\n".join([*lines, *(f"{r.name}: {line}" for r in results for line in r.wrong)])


def main(settings: Settings) -> int:
    """Runs the benchmark, prints its table, and returns 1 where anything is wrong."""
    if settings.worker:
        folder, steps, every = settings.worker
        work(Path(folder), int(steps), int(every))
        return 0
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports once what each process would import
    draws, results = random.Random(settings.seed), list[Result]()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "files").mkdir()
        of_stream = settings.kills // 2
        if settings.kills - of_stream:
            results.append(kill_one_process(root / "one", settings.kills - of_stream, settings.every, None, draws))
        if of_stream:
            files = stream_files(root / "files")
            results.append(kill_one_process(root / "stream", of_stream, settings.every, files, draws))
        if settings.rank_kills:
            results.append(kill_ranks(root / "ranks", settings.rank_kills, settings.every, draws))
    print(table(results, settings.every))
    return int(any(r.wrong for r in results))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
