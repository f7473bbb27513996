"""The commands of `unnoise` by name, and refusals of unknown and incomplete ones."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import NamedTuple

from ...shared.errors import UsageError
from ..recipes import RECIPES


class Command(NamedTuple):
    """The class of a command by the name of its module, which is imported when the command runs."""

    module: str
    name: str

    def load(self) -> type:
        """Imports the class."""
        return getattr(importlib.import_module(self.module, __package__), self.name)


COMMANDS = {
    "demo": Command("..studies.demo", "Demo"),
    "check-data": Command(".check_data", "CheckData"),
    "train": Command(".training", "Train"),
    "sample": Command(".sampling", "Sample"),
    "evaluate": Command(".evaluating", "Evaluate"),
    "ablate": Command(".ablate", "Ablate"),
    "compare": Command(".compare", "Compare"),
    "doctor": Command(".doctor", "Doctor"),
    "consolidate": Command(".commands", "Consolidate"),
    "reproduce": Command(".training", "Reproduce"),
    "import": Command(".commands", "Import"),
    "export": Command(".commands", "Export"),
    "submit": Command(".slurm", "Submit"),
    "recipes": Command(".recipes", "Recipes"),
    "parts": Command(".commands", "Parts"),
    "plot-schedules": Command(".commands", "PlotSchedules"),
}
NEEDS = {
    "train": "recipe",
    "reproduce": "recipe",
    "sample": "run",
    "evaluate": "run",
    "check-data": "data",
    "ablate": "name",
}
"""What the first argument of a command names, whose settings are its options."""


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


def refuse_missing(name: str, arguments: Sequence[str]) -> None:
    """Raises for a command without the recipe, run or data as its first argument.

    Raises:
        UsageError: for such a command.
    """
    if name not in NEEDS or (arguments and not arguments[0].startswith("-")):
        return
    lists = {"recipe": "; `unnoise recipes` lists them", "name": "; `unnoise ablate --help` lists the ablations"}
    needs = NEEDS[name]
    raise UsageError(f"give a {needs}: unnoise {name} {needs.upper()} [options]{lists.get(needs, '')}")
