"""Runs a command that needs torch, in all processes of a launcher."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from ...shared.distributed import processes
from ...shared.lazy import uncollected
from ...shared.random import whole_seed
from ...shared.training.folder import refuse_several
from ..own_files import own_module
from .arguments import values_of
from .outline import read, read_every
from .table import COMMANDS, NEEDS, refuse_missing, refuse_unknown

ALONE = ("demo", "reproduce", "ablate")
"""The commands that write a folder, and refuse to run in several processes of a launcher."""


Main = Callable[[list[str]], int]
"""Runs the program by its arguments, and returns its exit status."""


def run_command(name: str, arguments: list[str], main: Main) -> int:
    """Runs a command, given its name and the arguments after it; `main` runs the commands of a job."""
    for file in values_of("--module", arguments):
        own_module(file)
    refuse_unknown(name)
    for seed in values_of("--seed", arguments):
        whole_seed(int(seed) if re.fullmatch(r"-?\d{1,4000}", seed) else 0)  # another text is an error of its type
    if name in ALONE:
        refuse_several()
    devices = ["auto", *values_of("--device", arguments)]
    with processes(devices[-1]):
        if name in COMMANDS:
            with uncollected():
                command = parsed(name, arguments, main)
            command.execute()
        else:
            read_every([name, *arguments], {name: command.load() for name, command in COMMANDS.items()})
        return 0


def parsed(name: str, arguments: list[str], main: Main) -> Any:
    """Returns the command of a name with the options of its arguments.

    Raises:
        SystemExit: for options that cannot be read, which is printed.
    """
    cls, left = command_class(name, arguments, main)
    named = [] if cls is COMMANDS[name].load() or name == "submit" else arguments[:1]
    return read(cls, left, shlex.join(["unnoise", name, *named]))


def command_class(name: str, arguments: list[str], main: Main) -> tuple[type, list[str]]:
    """Returns the class of a command, and the arguments that are left for it.

    The options of `train`, `reproduce`, `sample` and `evaluate` are those of the recipe or run that is named.

    Raises:
        UsageError: for such a command without the recipe or run as its first argument.
    """
    if name not in (*NEEDS, "submit") or (arguments and arguments[0] in ("-h", "--help")):
        return COMMANDS[name].load(), arguments
    refuse_missing(name, arguments)
    if name == "submit":
        from . import slurm

        return slurm.options_for(arguments, main, functools.partial(parsed, main=main))
    return options_of(name, arguments[0], arguments[1:])


def options_of(name: str, of: str, arguments: Sequence[str]) -> tuple[type, list[str]]:
    """Returns the class of a command with the options of what it is given, and the arguments that are left for it."""
    if name in ("train", "reproduce"):
        from . import training

        return training.options_for(name, of, arguments)
    if name == "sample":
        from . import sampling

        return sampling.options_for(name, of, arguments)
    if name == "evaluate":
        from . import evaluating

        return evaluating.options_for(name, of, arguments)
    if name == "ablate":
        from . import ablate

        return ablate.options_for(of, arguments)
    from . import check_data

    return check_data.options_for(of, arguments)
