"""Outlines of what commands and recipes can be given, from outlines.json: help and refusals without an import of torch.

An outline is a dataclass of options with the names, types, defaults and help of those of a command or recipe. It is
read as these are, so a page or a refusal is the same. `outlining` writes the file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from ...shared.launcher import launched_rank

FILE = Path(__file__).with_name("outlines.json")
DESCRIPTION = "Diffusion models for research: train the recipes of the papers, or your own, sample and measure them."
CONFIG = (tyro.conf.PositionalMetavarFromFieldName,)
SIMPLE = {c.__name__: c for c in (bool, int, float, str, Path, type(None))}
"""Types by the names that outlines.json has for them."""
LATE = 60.0
"""Seconds between the files of one installation: a source that is newer than outlines.json by more was edited."""


def up_to_date() -> bool:
    """Returns whether no module of this package was edited after outlines.json was written."""
    if not FILE.exists():
        return False
    home, written = Path(__file__).parents[2], FILE.stat().st_mtime
    modules = (path for family in home.iterdir() if family.is_dir() for path in family.rglob("*.py"))
    return all(path.stat().st_mtime < written + LATE for path in modules)


@functools.cache
def outlines() -> dict[str, Any]:
    """Returns what outlines.json contains."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def of_command(name: str) -> type:
    """Returns the outline of a command without a recipe or run."""
    return made(outlines()["commands"][name])


def of_recipe(recipe: str) -> type:
    """Returns the outline of the command `train` with a recipe."""
    return made(outlines()["recipes"][recipe])


def keeps_parts(recipe: str, arguments: Sequence[str]) -> bool:
    """Returns whether no argument changes which options there are: a part, data, a run that is resumed, own files."""
    parts = outlines()["options"][outlines()["recipes"][recipe]["parts"]]
    changing = {"data", "resume", "module", *parts}
    names = [word.removeprefix("--").partition("=")[0].replace("-", "_") for word in arguments if word[:2] == "--"]
    return not any(name in changing or f"{name.partition('.')[0]}." in changing for name in names)


def read(outline: type, arguments: Sequence[str], prog: str) -> Any:
    """Returns the options that arguments give.

    Raises:
        SystemExit: for help, and for options that cannot be read, which is printed by the process of rank 0.
    """
    return tyro.cli(outline, args=arguments, prog=prog, config=CONFIG, console_outputs=launched_rank() == 0)


def read_every(arguments: Sequence[str], commands: Mapping[str, type] | None = None) -> None:
    """Prints the page of all commands, by default from their outlines, or refuses other options.

    Raises:
        SystemExit: always.
    """
    commands = commands or {name: of_command(name) for name in outlines()["commands"]}
    members = tuple(Annotated[cls, tyro.conf.subcommand(name, prefix_name=False)] for name, cls in commands.items())
    every: Any = Union[members]  # noqa: UP007
    tyro.cli(every, args=arguments, prog="unnoise", description=DESCRIPTION, config=CONFIG)


def made(outline: Mapping[str, Any]) -> type:
    """Returns an outline as a dataclass."""
    cls = make_dataclass("Options", [option(outlines()["options"][number]) for number in outline["options"]])
    cls.__doc__ = outline["about"]
    return cls


def option(described: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """Returns a field of an outline from its description."""
    kind = described["type"]
    if group := kind.get("group") if isinstance(kind, dict) else None:
        cls = made(group)
        return described["field"], Annotated[cls, named(described)], field(default_factory=cls)
    marks: Mapping[str, Any] = {"positional": tyro.conf.Positional, "append": tyro.conf.UseAppendAction}
    marked: Any = Annotated[type_of(kind), named(described)]
    for mark in described.get("marks", ()):
        marked = marks[mark][marked]
    default = {"default": value_of(described["default"], kind)} if "default" in described else {}
    return described["field"], marked, field(**default)


def named(described: Mapping[str, Any]) -> Any:
    """Returns the name, help and placeholder of an option as an annotation."""
    return tyro.conf.arg(**{key: described.get(key) for key in ("name", "help", "metavar")})


def type_of(kind: Any) -> Any:
    """Returns a type from its description, such as `{"or": ["int", "NoneType"]}`."""
    if isinstance(kind, str):
        return SIMPLE[kind]
    ((form, inner),) = kind.items()
    if form == "in":
        return Literal[tuple(inner)]
    inner = tuple(map(type_of, inner))
    return Union[inner] if form == "or" else tuple[(*inner, ...)] if form == "any number of" else tuple[inner]  # noqa: UP007


def value_of(value: Any, kind: Any) -> Any:
    """Returns a default from its description."""
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if kind == "Path" else value
