"""Writes outlines.json, from which `outline` makes help and refusals. To be run again after a change of an option.

`make outlines` does so: `python -m unnoise.experiments.cli.outlining`.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..recipes import RECIPES
from . import training
from .outline import FILE, SIMPLE
from .recipe_options import field_docs, settings_of
from .table import COMMANDS

MARKS = {"Positional": "positional", "UseAppendAction": "append"}


class Options:
    """Descriptions of options, each once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, described: Any) -> int:
        """Returns the number of a description."""
        return self.numbers.setdefault(json.dumps(described, ensure_ascii=False), len(self.numbers))

    def outline(self, cls: type) -> dict[str, Any]:
        """Returns the outline of a dataclass of options."""
        hints = get_type_hints(cls, include_extras=True)
        numbers = [self.number(self.described(f, hints[f.name], cls)) for f in fields(cls)]
        return {"about": inspect.getdoc(cls) or "", "options": numbers}

    def described(self, f: Field[Any], hint: Any, cls: type) -> dict[str, Any]:
        """Returns the description of an option, a field of a class."""
        kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        found: dict[str, Any] = {"field": f.name}
        for note in notes:
            given = {key: getattr(note, key, None) for key in ("name", "help", "metavar")}
            found |= {key: value for key, value in given.items() if value is not None}
        if isinstance(kind, type) and is_dataclass(kind):
            return {**found, "type": {"group": self.outline(kind)}}
        if "help" not in found:
            found["help"] = field_docs(cls).get(f.name, "")
        if marks := [MARKS[str(note)] for note in notes if str(note) in MARKS]:
            found["marks"] = marks
        found["type"] = type_name(kind)
        if f.default is not MISSING:
            found["default"] = str(f.default) if isinstance(f.default, Path) else f.default
        return found


def type_name(kind: Any) -> Any:
    """Returns the description of a type, as `outline.type_of` reads it."""
    inner, origin = get_args(kind), get_origin(kind)
    if origin is Literal:
        return {"in": list(inner)}
    if origin in (Union, types.UnionType):
        return {"or": [type_name(part) for part in inner]}
    if origin is tuple and inner[-1] is Ellipsis:
        return {"any number of": [type_name(inner[0])]}
    if origin is tuple:
        return {"tuple": [type_name(part) for part in inner]}
    return next(name for name, known in SIMPLE.items() if kind is known)


def outlines() -> str:
    """Returns the text of outlines.json: a line for each command, recipe and option."""
    table = Options()
    commands = {name: table.outline(command.load()) for name, command in COMMANDS.items()}
    recipes = {name: of_recipe(name, table) for name in RECIPES}
    blocks = [f'"{key}": {{\n{lines_of(of)}\n}}' for key, of in {"commands": commands, "recipes": recipes}.items()]
    return "{\n" + ",\n".join([*blocks, '"options": [\n' + ",\n".join(table.numbers) + "\n]"]) + "\n}\n"


def lines_of(outlines: Mapping[str, Any]) -> str:
    """Returns the members of a JSON object, a line each."""
    return ",\n".join(f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in outlines.items())


def of_recipe(name: str, table: Options) -> dict[str, Any]:
    """Returns the outline of the command `train` with a recipe."""
    recipe, cls = RECIPES[name](), training.options_for("train", name, [])[0]
    parts = [setting.path for setting in settings_of(recipe, recipe.catalog) if setting.kind]
    return {**table.outline(cls), "parts": table.number([*parts, *(f"{short}." for short in recipe.shorthands)])}


if __name__ == "__main__":
    FILE.write_text(outlines(), encoding="utf-8")
    print(f"written to {FILE}")
