"""Runs command lines and code of the documentation, or parses them, each in a process of its own.

Reads a request from each line of the standard input and answers with a line, the list of what failed. A request has
`output`, the file that is written to, and `lines`, a list of objects: `folder` has the files that the line names,
`words` are the arguments of `unnoise`, `run` states whether to run the line, and `of` is the name of the recipe of the
run that `sample` and `evaluate` read; or `code` is a file of Python code. A line that is only parsed does everything
up to its work: its recipe is built from its options, and tried as training tries it where the data are small.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import datasets  # noqa: F401 - imported once, for the processes of all lines
import scipy.linalg  # noqa: F401
import tokenizers  # noqa: F401
from decoded_once import decoded_once

import unnoise.shared.figures  # noqa: F401
from unnoise.experiments import evaluation
from unnoise.experiments.cli import ablate, commands, compare, doctor, evaluating, recipes, sampling, slurm, training
from unnoise.experiments.cli.main import main, run
from unnoise.experiments.recipe import Recipe
from unnoise.experiments.recipes import find
from unnoise.experiments.studies import demo
from unnoise.shared.data import image_dataset

SMALL = ("digits", "shakespeare")
"""Bundled data that are read in a moment."""


def execute(words: list[str]) -> int:
    """Runs a line with few samples; the classifier that measures them is trained for a moment only."""
    samples = words[0] == "evaluate" and evaluating.has_samples(Path(words[1]))
    if words[0] in ("sample", "evaluate") and "--count" not in words and not samples:
        words = [*words, "--count", "4"]
    full = evaluation.judge_of
    evaluation.judge_of = lambda images, progress, steps=600: full(images, progress, 5)
    return main(words)


def parse(words: list[str], of: str | None) -> int:
    """Parses a line: its command, recipe, options and parts."""

    def tried(recipe: Recipe, *_: Any) -> None:
        if getattr(recipe.data, "name", "") in SMALL:
            data = recipe.load("train")
            recipe.check(recipe.objective(data.shape, data.quantization), data.shape, data.quantization)

    def passed(*_: Any, **__: Any) -> Any:
        return None

    for module, name, stand_in in (
        (training, "train", tried),
        (training, "reproduce", passed),
        (sampling, "sample", passed),
        (evaluating, "evaluate", passed),
        (evaluating.EvaluateSamples, "execute", passed),
        (sampling, "load", passed),
        (sampling, "run_of", lambda _: find(str(of))),
        *((command, "execute", passed) for command in (demo.Demo, commands.Import, commands.Export)),
        *((command, "execute", passed) for command in (recipes.Recipes, commands.Parts, commands.PlotSchedules)),
        (compare.Compare, "execute", passed),
        (ablate, "begin", passed),
        (doctor.Doctor, "execute", passed),
        (slurm, "submit", passed),
    ):
        setattr(module, name, stand_in)
    return run(words)


def work(line: dict[str, Any]) -> int:
    """Runs one line, a command or a file of code, in its folder."""
    os.chdir(line["folder"])
    if "code" not in line:
        return execute(line["words"]) if line["run"] else parse(line["words"], line["of"])
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`torch.jit.script`")
    sys.path.insert(0, line["folder"])
    runpy.run_path(line["code"], run_name="__main__")
    return 0


def status(line: dict[str, Any], output: str) -> int:
    """Returns the exit status of a line in a process of its own, which writes to a file."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = work(line)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    with decoded_once("digits"):
        for split in ("train", "test"):
            image_dataset("digits", split=split)
        for request in sys.stdin:
            asked = json.loads(request)
            failed = [line for line in asked["lines"] if status(line, asked["output"])]
            print(json.dumps([line.get("words") or line["code"] for line in failed]), flush=True)
