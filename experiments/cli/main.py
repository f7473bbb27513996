"""The command `unnoise` and its sub-commands."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Annotated, Any, Union

import tyro

from unnoise import __version__

from ...shared.distributed import processes
from ...shared.errors import Interrupted, UsageError, notices
from ...shared.launcher import launched_rank
from ...shared.random import whole_seed
from ...shared.training.folder import refuse_several
from ..own_files import own_module
from ..program import launch_line
from ..recipes import RECIPES
from . import ablate, check_data, commands, compare, doctor, evaluating, recipes, sampling, slurm, training
from .arguments import values_of

DESCRIPTION = "Diffusion models for research: train the recipes of the papers, or your own, sample and measure them."


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
    for file in values_of("--module", rest):
        own_module(file)
    refuse_unknown(name)
    for seed in values_of("--seed", rest):
        whole_seed(int(seed) if re.fullmatch(r"-?\d{1,4000}", seed) else 0)  # another text is an error of its type
    if name in ALONE:
        refuse_several()
    devices = ["auto", *values_of("--device", rest)]
    with processes(devices[-1]):
        return run_command(name, rest, arguments)


def run_command(name: str, rest: list[str], arguments: Sequence[str]) -> int:
    """Runs a command, given its name and the arguments after it."""
    if name in COMMANDS:
        parsed(name, rest).execute()
        return 0
    members = tuple(Annotated[cls, tyro.conf.subcommand(name, prefix_name=False)] for name, cls in COMMANDS.items())
    every: Any = Union[members]  # noqa: UP007
    tyro.cli(every, args=arguments or ["--help"], prog="unnoise", description=DESCRIPTION, config=CONFIG)
    return 0


def parsed(name: str, arguments: list[str]) -> Any:
    """Returns the command of a name with the options of its arguments.

    Raises:
        SystemExit: for options that cannot be read, which is printed.
    """
    cls, left = command_class(name, arguments)
    named = [] if cls is COMMANDS[name] or name == "submit" else arguments[:1]
    prog = shlex.join(["unnoise", name, *named])
    return tyro.cli(cls, args=left, prog=prog, config=CONFIG, console_outputs=launched_rank() == 0)


CONFIG = (tyro.conf.PositionalMetavarFromFieldName,)
ALONE = ("demo", "reproduce", "ablate")
"""The commands that write a folder, and refuse to run in several processes of a launcher."""
COMMANDS: dict[str, type] = {
    "demo": commands.Demo,
    "check-data": check_data.CheckData,
    "train": training.Train,
    "sample": sampling.Sample,
    "evaluate": evaluating.Evaluate,
    "ablate": ablate.Ablate,
    "compare": compare.Compare,
    "doctor": doctor.Doctor,
    "consolidate": commands.Consolidate,
    "reproduce": training.Reproduce,
    "import": commands.Import,
    "export": commands.Export,
    "submit": slurm.Submit,
    "recipes": recipes.Recipes,
    "parts": commands.Parts,
    "plot-schedules": commands.PlotSchedules,
}


def command_class(name: str, arguments: list[str]) -> tuple[type, list[str]]:
    """Returns the class of a command, and the arguments that are left for it.

    The options of `train`, `reproduce`, `sample` and `evaluate` are those of the recipe or run that is named.

    Raises:
        UsageError: for such a command without the recipe or run as its first argument.
    """
    needs = {"train": "recipe", "reproduce": "recipe", "sample": "run", "evaluate": "run", "check-data": "data"}
    needs |= {"ablate": "name"}
    if name not in (*needs, "submit") or (arguments and arguments[0] in ("-h", "--help")):
        return COMMANDS[name], arguments
    if name == "submit":
        return slurm.options_for(arguments, main, parsed)
    if not arguments or arguments[0].startswith("-"):
        lists = {"recipe": "; `unnoise recipes` lists them", "name": "; `unnoise ablate --help` lists the ablations"}
        lists = lists.get(needs[name], "")
        raise UsageError(f"give a {needs[name]}: unnoise {name} {needs[name].upper()} [options]{lists}")
    if name in ("check-data", "ablate"):
        return (check_data if name == "check-data" else ablate).options_for(arguments[0], arguments[1:])
    module = {"sample": sampling, "evaluate": evaluating}.get(name, training)
    return module.options_for(name, arguments[0], arguments[1:])


def refuse_unknown(name: str) -> None:
    """Raises for an unknown command; the message suggests the nearest one.

    Raises:
        UsageError: for an unknown command.
    """
    if name in COMMANDS or name.startswith("-"):
        return
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    families = {recipe.rpartition("-")[0] for recipe in RECIPES}
    if name in RECIPES or name in families:
        near = [f"unnoise train {name if name in RECIPES else f'{name}-smoke'}"]
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
    raise UsageError(f"there is no command {name}: {hint}")
