"""Runs command lines of the documentation, or parses them, each in a process of its own.

`python doc_commands.py < lines.json`, in the folder with the files that the lines name. The file has a list of objects:
`words` are the arguments of `unnoise`, `run` states whether to run the line, and `of` is the name of the recipe of the
run that `sample` and `evaluate` read. A line that is only parsed does everything up to its work: its recipe is built
from its options, and tried as training tries it where the data are small.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import datasets  # noqa: F401 - imported once, for the processes of all lines
import scipy.linalg  # noqa: F401
import tokenizers  # noqa: F401

import unnoise.shared.figures  # noqa: F401
from unnoise.experiments import evaluation
from unnoise.experiments.cli import commands, sampling, training
from unnoise.experiments.cli.main import main, run
from unnoise.experiments.recipe import Recipe
from unnoise.experiments.recipes import find

SMALL = ("digits", "shakespeare")
"""Bundled data that are read in a moment."""


def execute(words: list[str]) -> int:
    """Runs a line with few samples; the classifier that measures them is trained for a moment only."""
    if words[0] in ("sample", "evaluate") and "--count" not in words:
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
        (sampling, "evaluate", passed),
        (sampling, "load", passed),
        (sampling, "own_network", passed),
        (sampling, "run_of", lambda _: find(str(of))),
        *((command, "execute", passed) for command in (commands.Demo, commands.Import, commands.Export)),
        *((command, "execute", passed) for command in (commands.Recipes, commands.Parts, commands.PlotSchedules)),
    ):
        setattr(module, name, stand_in)
    return run(words)


def status(line: dict[str, Any]) -> int:
    """Returns the exit status of a line in a process of its own."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        if "folder" in line:
            Path(line["folder"]).mkdir(parents=True, exist_ok=True)
            os.chdir(line["folder"])
        code = execute(line["words"]) if line["run"] else parse(line["words"], line["of"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    failed = [line["words"] for line in json.load(sys.stdin) if status(line)]
    for words in failed:
        print("failed: unnoise", *words)
    sys.exit(len(failed) > 0)
