"""Two processes of a run, forked from this one: one of them is asked to stop, and they continue from a damaged folder.

Writes a line for each process and phase: `PHASE RANK: ...`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from damaged_runs import batches, config, objective
from two_processes import in_two_processes

from unnoise.shared.distributed import processes
from unnoise.shared.errors import Interrupted
from unnoise.shared.training import Trainer


def phase(name, work):
    """Runs `work(rank)` in two connected processes."""

    def connected(rank):
        try:
            with processes("cpu"):
                print(f"{name} {rank}: {work(rank)}", flush=True)
        except Exception as error:
            print(f"{name} {rank}: {type(error).__name__} {error}", flush=True)

    in_two_processes(connected)


def stopped(folder, asked):
    """A run of which the process of a rank is asked to stop in step 3."""

    def work(rank):
        def watch(average, step):
            if (step, rank) == (3, asked):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01 * rank)

        trainer = Trainer(objective(), config(steps=100, save_every=50, watch_every=1), folder=folder, watch=watch)
        try:
            trainer.fit(batches())
        except Interrupted as stop:
            return f"stopped after step {stop.step}{stop.unsaved}"
        return "went on"

    return work


def resumed(folder):
    def work(rank):
        trainer = Trainer(objective(), config(steps=8), folder=folder)
        begun = []
        real = trainer._log
        trainer._log = lambda: (begun.append(trainer.step), real())[1]
        trainer.fit(batches(), resume=True)
        return f"from step {begun[0]}"

    return work


if __name__ == "__main__":
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    phase("one", stopped(home / "one", 1))
    phase("zero", stopped(home / "zero", 0))
    last = max((home / "one" / "checkpoints").iterdir())
    other = last.with_name("00000006")
    last.rename(other)
    description = json.loads((other / "checkpoint.json").read_text())
    (other / "checkpoint.json").write_text("{")
    print("saved:", description["step"], flush=True)
    phase("none", resumed(home / "one"))
    older = other.with_name(f"{description['step']:08d}")
    other.rename(older)
    (older / "checkpoint.json").write_text(json.dumps(description))
    broken = other.with_name("00000007")
    broken.mkdir()
    (broken / "checkpoint.json").write_text("{")
    phase("older", resumed(home / "one"))
    print("left:", *sorted(path.name for path in older.parent.iterdir()), flush=True)
