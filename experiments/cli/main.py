"""The command `unnoise` and its sub-commands.

This module, and what it imports, imports no torch: help, lists and refusals are printed at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from unnoise import __version__

from ...shared.errors import Interrupted, UsageError, notices
from ...shared.launcher import launched_rank
from ...shared.lazy import uncollected
from ..program import launch_line
from ..recipes import RECIPES, find
from .table import COMMANDS, NEEDS, refuse_missing, refuse_unknown


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; bad input prints one line on stderr and returns 2, without a traceback.

    Of the processes of a launcher that of rank 0 prints; an error is printed by each process that it stops.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    number = launched_rank()
    me = f"unnoise, process {number}" if number else "unnoise"
    try:
        with (
            notices(lambda text: None if number else print(f"unnoise: {text}", file=sys.stderr)),
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere) if number else nullcontext(),
        ):
            return run(arguments)
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:  # help, or options that cannot be read, which is printed already
        return stop.code if isinstance(stop.code, int) else 0
    except (UsageError, FloatingPointError, OSError) as error:
        print(f"{me}: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    except Interrupted as stop:
        if number:
            return 130
        resumes = "--resume" in arguments or arguments[0] in ("reproduce", "ablate")
        again = shlex.join([*launch_line(), *arguments, *([] if resumes else ["--resume"])])
        saved = f" and saved in {stop.folder}" if not stop.unsaved else f" without saving it, because {stop.unsaved}"
        print(f"\nunnoise: stopped after step {stop.step}{saved}; continue with: {again}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nunnoise: stopped", file=sys.stderr)
        return 130


def run(arguments: Sequence[str]) -> int:
    """Runs the command of the arguments."""
    if arguments and arguments[0] in ("--version", "version"):
        print(f"unnoise {__version__}")
        return 0
    name, *rest = arguments or ["--help"]
    if not any(word.partition("=")[0] == "--module" for word in rest):
        refuse_unknown(name)
        answer_from_outline(name, rest)
    if name == "recipes" and not rest:
        COMMANDS[name].load()().execute()
        return 0
    with uncollected():
        from .running import run_command

    return run_command(name, rest, main)


def answer_from_outline(name: str, arguments: list[str]) -> None:
    """Prints help, or refuses options, where outlines.json suffices; otherwise returns.

    Raises:
        SystemExit: for help, and for options that cannot be read, which is printed.
        UsageError: for a command that lacks its first argument, and an unknown recipe.
    """
    asks = bool(arguments) and arguments[0] in ("-h", "--help")
    if name in COMMANDS and not asks:
        refuse_missing(name, arguments)
    if NEEDS.get(name) == "recipe" and not asks:
        recipe = arguments[0]
        if recipe not in RECIPES and ":" not in recipe and not (Path(recipe) / "checkpoints").exists():
            find(recipe)  # raises
    of_command = asks or name not in (*NEEDS, "submit")
    if not of_command and not (name == "train" and arguments[0] in RECIPES):
        return
    from . import outline

    if not outline.up_to_date():
        return
    if name not in COMMANDS:
        outline.read_every([name, *arguments])
    elif of_command:
        outline.read(outline.of_command(name), arguments, shlex.join(["unnoise", name]))
    elif outline.keeps_parts(arguments[0], arguments):
        outline.read(outline.of_recipe(arguments[0]), arguments[1:], shlex.join(["unnoise", name, arguments[0]]))
