"""The notation of parts: the name of a part and those of its arguments that differ from their defaults.

`MinSNR(gamma=3.0)`, `PredictorCorrector(predictor=ReverseDiffusion(), corrector=Langevin(snr=0.1))`. It is what `repr`
prints and what the command line reads. On reading, a name can be written in small letters and with hyphens,
`min-snr(gamma=3)`, arguments can be given in their order, and parts of one's own are `my_file.py:MyClass(x=1)`. Text is
parsed by `ast` and never evaluated.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from ..shared.errors import UsageError, shown
from ..shared.training.averages import Average
from ..shared.training.posthoc import Wanted
from ..shared.values import state_of
from .catalog import GIVEN, Catalog, builds
from .gaussian_parts import GAUSSIAN
from .own_files import named_in_file
from .parts import Part, parameters_of, takes_parts, write

OWN = re.compile(r"^\s*([\w./~\\-]+\.py|[A-Za-z_][\w.]*):([A-Za-z_]\w*)\s*(\(.*\))?\s*$", re.DOTALL)
"""A part of one's own: `FILE.py:NAME` or `MODULE:NAME`, with arguments in parentheses or without."""
PIECES = re.compile(r"""("[^"]*"|'[^']*')|(?<=[A-Za-z])-(?=[A-Za-z])""")


def read(text: str, catalog: Catalog, kind: str, complete: bool = True) -> Any:
    """Returns the part, function or constant that the notation stands for.

    A class whose arguments are all given is constructed; one that needs a denoiser, data, ... is a `Part`.

    Args:
        text: the notation, such as `velocity` or `min-snr(gamma=5)`.
        catalog: the parts of a family.
        kind: the kind of the part, such as `Weight`.
        complete: whether a class whose arguments are all given is constructed; else it stays a `Part`.

    Raises:
        UsageError: for an unknown name, which suggests the nearest ones, for an argument that the part does not have,
            and for text that is not in the notation.
    """
    if own := OWN.match(text):
        found = named_in_file(own[1], own[2])
        return constructed(found, call_of(f"own{own[3]}", text) if own[3] else None, catalog, text, complete)
    return value_of(tree_of(text), catalog, kind, text, complete)


def average_named(text: str) -> Wanted:
    """Returns the weights that a text names: `raw`, or an average in the notation of parts, such as `power(0.08)`.

    Raises:
        UsageError: for anything else.
    """
    if text == "raw":
        return "raw"
    found = read(text, GAUSSIAN, "Average")
    if not isinstance(found, Average):
        raise UsageError(f'{shown(text)} is not an average: give raw, or an average such as "power(std=0.08)"')
    return found


def tree_of(text: str) -> ast.expr:
    """Returns the syntax tree of text in the notation."""
    try:
        return ast.parse(PIECES.sub(lambda m: m[1] or "_", text.strip()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(
            f"{shown(text)} is not in the notation of parts: write a name such as velocity, or a name with arguments "
            "such as min-snr(gamma=5)"
        ) from None


def call_of(text: str, whole: str) -> ast.Call:
    """Returns the call in a syntax tree."""
    tree = tree_of(text)
    if not isinstance(tree, ast.Call):
        raise UsageError(f"{shown(whole)}: write arguments in parentheses, such as my_file.py:MyClass(x=1)")
    return tree


def value_of(tree: ast.expr, catalog: Catalog, kind: str, text: str, complete: bool = True) -> Any:
    """Returns the value of a syntax tree: a literal, a tuple, or a part by its name."""
    try:
        return ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    if isinstance(tree, ast.Tuple | ast.List):
        return tuple(value_of(item, catalog, kind, text) for item in tree.elts)
    call = tree if isinstance(tree, ast.Call) else None
    name = call.func if call else tree
    if not isinstance(name, ast.Name):
        raise UsageError(f"{shown(text)}: give a number, a text in quotation marks, or a part by its name")
    if name.id in ("inf", "nan") and call is None:
        return float(name.id)
    if kind == "number":
        raise UsageError(f"{shown(text)}: {name.id} stands where a number belongs: give a number")
    return constructed(catalog.find(name.id, kind, bare=call is None), call, catalog, text, complete)


def constructed(found: Any, call: ast.Call | None, catalog: Catalog, text: str, complete: bool = True) -> Any:
    """Returns a named part with the arguments of a call; a function or a constant without a call as it is."""
    if not callable(found) or (call is None and not builds(found)):
        if call is not None:
            raise UsageError(f"{shown(text)}: {write(found)} takes no arguments")
        return found
    takes = parameters_of(found)
    arguments: dict[str, Any] = {}
    if call is not None:
        names = [name for name in takes if name not in GIVEN]
        given = [(names[i] if i < len(names) else f"number {i + 1}", v) for i, v in enumerate(call.args)]
        for name, tree in given + [(str(word.arg), word.value) for word in call.keywords]:
            if name not in takes:
                refuse_argument(found, name)
            if name in GIVEN:
                raise UsageError(f"{shown(text)}: the recipe gives {name} itself: leave it out")
            arguments[name] = value_of(tree, catalog, catalog.kind_of(takes[name]), text)
    given = Part(found, tuple(arguments.items()))
    return completed(given) if complete else given


def refuse_argument(found: Any, name: str) -> None:
    """Raises for an argument that a part does not have."""
    takes = [*parameters_of(found)]
    near = difflib.get_close_matches(name, takes, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(takes) or 'none'}"
    raise UsageError(f"{getattr(found, '__name__', found)} has no argument {name}: {hint}")


def completed(given: Part[Any]) -> Any:
    """Returns the object of a class all of whose arguments are given, and any other part as it is."""
    values, takes = dict(given.arguments), parameters_of(given.build)
    waiting = any(isinstance(v, Part) and not takes_parts(takes[name]) for name, v in values.items())
    if not isinstance(given.build, type) or waiting or given.missing():
        return given
    try:
        return given.build(**values)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"{write(given)}: {error}") from error


def changed(value: Any, path: str, text: str, catalog: Catalog) -> Any:
    """Returns a part with one of its arguments replaced.

    Args:
        value: a part, or an object that was constructed from its arguments.
        path: the name of the argument; a name with dots is an argument of the part that is an argument.
        text: the new value in the notation.
        catalog: the parts of a family.

    Raises:
        UsageError: for an argument that the part does not have.
    """
    name, _, rest = path.partition(".")
    takes = arguments_of(value)
    if name not in takes:
        refuse_argument(value.build if isinstance(value, Part) else type(value), name)
    build = value.build if isinstance(value, Part) else type(value)
    kind = catalog.kind_of(parameters_of(build)[name])
    new = changed(takes[name], rest, text, catalog) if rest else literal(text, catalog, kind)
    if isinstance(value, Part):
        return value.changed(**{name: new})
    return completed(Part(build, tuple((takes | {name: new}).items())))


def literal(text: str, catalog: Catalog, kind: str) -> Any:
    """Returns the value of an argument: in the notation, or as plain text where it has no other meaning."""
    try:
        return read(text, catalog, kind)
    except UsageError:
        if kind == "str":
            return text
        raise


def arguments_of(value: Any) -> dict[str, Any]:
    """Returns the arguments of a part, or of an object that keeps them, by name; an empty dict for a function."""
    if isinstance(value, Part):
        defaults = {n: p.default for n, p in parameters_of(value.build).items()}
        return defaults | dict(value.arguments)
    if (
        inspect.isroutine(value)
        or isinstance(value, type | str | int | float | tuple | list | Mapping)
        or value is None
    ):
        return {}
    takes = parameters_of(type(value))
    return {name: v for name, v in state_of(value).items() if name in takes}
