"""Trains, samples, measures, resumes and reproduces every recipe whose name ends in -smoke: `make smoke`.

Prints a line for each recipe, and the errors of those that fail; the exit status is 1 if one fails. The classifier that
measures samples is trained for a moment only, so the measured numbers have no meaning.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from unnoise.experiments import evaluation
from unnoise.experiments.cli import main
from unnoise.experiments.recipe import NoFigure
from unnoise.experiments.recipes import RECIPES


def commands_of(name: str, out: Path) -> list[list[str]]:
    """Returns the commands for a recipe, which write into a folder."""
    run = str(out / name)
    commands = [["train", name, "--out", run], ["sample", run, "--count", "4"], ["evaluate", run, "--count", "8"]]
    commands += [["train", name, "--out", run, "--resume", "--training.steps", str(RESUMED)]]
    figure = not isinstance(RECIPES[name]().figure, NoFigure)
    return commands + [["reproduce", name, "--out", f"{run}-figure"]] * figure


RESUMED = 12
"""The number of steps to which a run is continued: more than its recipe has."""


def problem(words: list[str]) -> str:
    """Returns what a command printed if it failed, and an empty text otherwise."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        status = main(words)
    return f"unnoise {' '.join(words)}: {errors.getvalue()[-500:]}" if status else missing(words)


def missing(words: list[str]) -> str:
    """Returns which result of a command is missing."""
    command, name, *rest = words
    folder = Path(rest[1]) if command in ("train", "reproduce") else Path(name)
    resumed = f"checkpoints/{RESUMED:08d}" if "--resume" in words else "checkpoints/*"
    results = {"train": resumed, "sample": "samples.*", "evaluate": "evaluation.json", "reproduce": "table.md"}
    if not list(folder.glob(results[command])):
        return f"unnoise {' '.join(words)}: no {results[command]}"
    if command == "evaluate":
        found = json.loads((folder / "evaluation.json").read_text())
        measured = [one["name"] for one in found["measurements"]]
        if not any("bits_per" in name for name in measured) or len(measured) < 2:
            return f"unnoise {' '.join(words)}: measured are only {', '.join(measured) or 'none'}"
    return ""


def tried(name: str) -> tuple[str, float, list[str]]:
    """Returns the name of a recipe, the seconds that its commands took, and what failed."""
    full, start = evaluation.judge_of, time.perf_counter()
    evaluation.judge_of = lambda images, progress, steps=600: full(images, progress, min(steps, 40))
    with tempfile.TemporaryDirectory() as folder:
        failed = [text for words in commands_of(name, Path(folder)) if (text := problem(words))]
    evaluation.judge_of = full
    return name, time.perf_counter() - start, failed


def run_all() -> int:
    """Runs all smoke recipes, two at a time, and returns the exit status."""
    names, status = [name for name in RECIPES if name.endswith("-smoke")], 0
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for name, seconds, failed in pool.map(tried, names):
            print(f"{name:32} {'failed' if failed else 'ok':7} {seconds:5.1f} s", flush=True)
            for text in failed:
                print(f"    {text}")
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(run_all())
