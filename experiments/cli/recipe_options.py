"""The options of a recipe, made from its fields: `--data.batch 64`, `--sampler "DDIM(eta=0.5)"`, `--sampler.eta 0.5`.

A field whose type is a kind of part is written in the notation of parts, and each argument of the chosen part is an
option too. All other fields are read by their types.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import tyro

from ...shared.errors import UsageError
from ..catalog import GIVEN, Catalog, builds, kind_of
from ..image_data import Images
from ..notation import OWN, arguments_of, changed, completed, read, write
from ..parts import Part, parameters_of
from ..recipe import Recipe
from ..tensor_data import Tensors
from ..text_data import Text

DATA = Catalog({"Data": [Images, Text, Tensors]})
"""The kinds of data that `--data` takes."""
FLAT = (".npy", ".npz", ".safetensors")
"""The endings of files of arrays that `--data` takes by their names; tables can have images, too."""
SHARED_ARGUMENTS = frozenset(
    {
        "variance",
        "weight",
        "times",
        "padding",
        "classes",
        "outputs",
        "image",
        "augment",
        "logits",
        "head",
        "reverse",
        "predicts",
        "time_input",
    }
)
"""Arguments that parts take from other settings of the recipe: they have no options of their own."""


class Setting(NamedTuple):
    """A setting of a recipe.

    Attributes:
        path: its name, with dots, such as `data.batch`.
        value: its value.
        kind: the kind of part that it holds, or an empty text.
        type: its type; for a part the text of the annotation.
        help: one or two sentences.
    """

    path: str
    value: Any
    kind: str
    type: Any
    help: str


def settings_of(owner: Any, catalog: Catalog, without: Sequence[str] = (), prefix: str = "") -> Iterator[Setting]:
    """Yields the settings of a recipe, those of its groups (data, loss, training, figure) by names with dots."""
    docs, hints = field_docs(type(owner)), type_hints(type(owner))
    for f in fields(owner):
        path, value = f"{prefix}{f.name}", getattr(owner, f.name)
        if path in without or not f.init:
            continue
        kind = kind_of(f.type, catalog.kinds)
        kind = kind if kind in catalog.kinds else ""
        if not kind and is_dataclass(value) and not isinstance(value, type | Part):
            yield from settings_of(value, catalog, without, f"{path}.")
        else:
            yield Setting(path, value, kind, f.type if kind else hints[f.name], docs.get(f.name, ""))


def with_parts(recipe: Recipe, arguments: Sequence[str], without: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Returns the recipe with the parts that options name, and the other arguments of the command line."""
    parts = {s.path: s for s in settings_of(recipe, recipe.catalog, without) if s.kind}
    rest, given = [], list(arguments)
    while given:
        word = given.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        path = name.replace("-", "_")
        head, dot, inner = path.partition(".")
        if word.startswith("--") and path == "data" and (equals or given):
            recipe = replace(recipe, data=data_of(value if equals else given.pop(0), recipe))
            parts = {s.path: s for s in settings_of(recipe, recipe.catalog, without) if s.kind}
            continue
        if word.startswith("--") and (target := recipe.shorthands.get(head)) and head not in without:
            rest.append(f"{option(f'{target}{dot}{inner}')}{equals}{value}")
            continue
        if not word.startswith("--") or path not in parts or not (equals or given):
            rest.append(word)
            continue
        found = part_of(value if equals else given.pop(0), recipe, parts[path])
        recipe = with_setting(recipe, path, with_kept(found, value_at(recipe, path)))
    return recipe, rest


def data_of(text: str, recipe: Recipe) -> Any:
    """Returns the data that `--data` names.

    It is `Images(...)`, `Text(...)`, `Tensors(...)` or own data in the notation of parts, with the batch size and the
    seed of the recipe's data where they are not given; a file of arrays, which are read as `Tensors`; or another name
    for data of the recipe's own kind.

    Raises:
        UsageError: for arguments that the data do not have.
    """
    kept = {name: getattr(recipe.data, name) for name in ("batch", "seed") if hasattr(recipe.data, name)}
    if Path(text).suffix.lower() in FLAT:
        return Tensors(text, **kept)
    if "(" not in text and not OWN.match(text):
        return recipe.with_data(text).data
    try:
        found = read(text, DATA, "Data", complete=False)
    except UsageError as error:
        raise UsageError(f"--data: {error}") from error
    if not isinstance(found, Part):
        raise UsageError(f"--data {text}: give a name, or data such as Tensors(name='latents.npy')")
    takes = parameters_of(found.build)
    given = {name: value for name, value in kept.items() if name in takes}
    return found.build(**given | dict(found.arguments))


def with_kept(new: Any, old: Any) -> Any:
    """Returns a part with those arguments that it needs, and that were not given, taken from the part it replaces."""
    if not isinstance(new, Part):
        return new
    kept = {name: value for name, value in arguments_of(old).items() if name in new.missing() and name not in GIVEN}
    return completed(new.changed(**{n: v for n, v in kept.items() if v not in (None, inspect.Parameter.empty)}))


def part_of(text: str, recipe: Recipe, setting: Setting) -> Any:
    """Returns the part that the text of an option stands for.

    Raises:
        UsageError: which names the option.
    """
    if setting.kind == "Transition" and text.endswith(".npy"):
        from ..categorical_builders import transition_file  # which imports the categorical family

        return transition_file(text)
    if setting.kind == "Transition" and re.fullmatch(r"[\w./-]+\.(npz|csv|txt|pt|pth|safetensors)", text):
        raise UsageError(f"{option(setting.path)} {text}: matrices are read from .npy files, which numpy.save writes")
    try:
        found = (
            None if text.lower() == "none" else read(text, recipe.catalog, setting.kind, "Part[" not in setting.type)
        )
    except UsageError as error:
        raise UsageError(f"{option(setting.path)}: {error}") from error
    if setting.path == "guidance" and isinstance(found, int | float) and not isinstance(found, bool):
        return read(f"ClassifierFree(w={found})", recipe.catalog, setting.kind)
    if "Part" in setting.type and inspect.isfunction(found):
        return Part(found)  # a function of one's own that returns the object
    if isinstance(found, Part) and "Part" not in setting.type:
        refuse_incomplete(found, option(setting.path))
    if "tuple[" in setting.type:
        return () if found is None else found if isinstance(found, tuple) else (found,)
    if isinstance(found, int | float) and "float" in setting.type:
        return found
    if isinstance(found, str | int | float | tuple) or (found is None and "None" not in setting.type):
        raise UsageError(f"{option(setting.path)}={text}: give the name of a part, such as {write(setting.value)}")
    return found


def refuse_incomplete(part: Part[Any], name: str) -> None:
    """Raises for a part in place of an object: a class without all of its arguments, or a call of a function.

    Raises:
        UsageError: with the option of that name.
    """
    for inner in part.parts():
        if needs := inner.missing():
            remedy = f"{inner.name}({', '.join(f'{n}=...' for n in needs)})"
            raise UsageError(f"{name}: {inner.name} needs {', '.join(needs)}: write {remedy}")
    raise UsageError(
        f"{name}: {part.name} is called here, and a function stands for itself: write {part.name} without arguments, "
        "or a class with these arguments and a method __call__"
    )


def options_of(recipe: Recipe, without: Sequence[str] = ()) -> list[tuple[str, Any, Any]]:
    """Returns fields for a dataclass of options: a group for each field of the recipe, and an option for each part."""
    groups: dict[str, list[tuple[str, Any, Any]]] = {}
    own: list[tuple[str, Any, Any]] = []
    for s in settings_of(recipe, recipe.catalog, without):
        group, _, name = s.path.rpartition(".")
        if s.kind:
            takes = f"{s.help}\n{choices(recipe.catalog, s.kind)}"
            (groups.setdefault(group, []) if group else own).append(as_field(name, str, write(s.value), takes, s.kind))
            for path, value, text in arguments_in(s.value):
                at = f"{name}.{path}"
                (groups.setdefault(group, []) if group else own).append(
                    as_field(at, str, write(value), text, '"(...)"' if isinstance(value, tuple) else "VALUE")
                )
        else:
            (groups.setdefault(group, []) if group else own).append(as_field(name, s.type, s.value, s.help))
    for group, members in groups.items():
        cls = make_dataclass(group.title(), [(n, t, f) for n, t, f in members])
        cls.__doc__ = field_docs(type(recipe)).get(group, group)
        named = Annotated[cls, tyro.conf.arg(name=group)]
        own.append((group.replace(".", "__"), named, field(default_factory=cls)))
    return own


def as_field(name: str, kind: Any, default: Any, text: str, metavar: str | None = None) -> tuple[str, Any, Any]:
    """Returns a field of a dataclass of options."""
    arg = tyro.conf.arg(name=name, help=text, metavar=metavar and metavar.upper())
    return name.replace(".", "__"), Annotated[kind, arg], field(default=default)


def arguments_in(value: Any, depth: int = 3) -> Iterator[tuple[str, Any, str]]:
    """Yields path, value and help of the arguments of a part, and of parts in its arguments."""
    if not depth:
        return
    docs, given = argument_docs(value.build if isinstance(value, Part) else type(value)), arguments_of(value)
    for name, argument in given.items():
        if argument is inspect.Parameter.empty or (name in SHARED_ARGUMENTS and not isinstance(argument, Part)):
            continue
        yield name, argument, docs.get(name, "")
        if isinstance(argument, Part):
            for path, inner, text in arguments_in(argument, depth - 1):
                yield f"{name}.{path}", inner, text


def with_options(recipe: Recipe, options: Any, without: Sequence[str] = ()) -> Recipe:
    """Returns the recipe with the values of parsed options."""
    result = recipe
    for s in settings_of(recipe, recipe.catalog, without):
        group, _, name = s.path.rpartition(".")
        holder = getattr(options, group.replace(".", "__")) if group else options
        if not s.kind:
            if (new := getattr(holder, name)) != s.value:
                result = with_setting(result, s.path, new)
            continue
        if (text := getattr(holder, name)) != write(s.value):
            result = with_setting(result, s.path, part_of(text, result, s))
        for path, value, _ in arguments_in(s.value):
            text = getattr(holder, f"{name}__{path.replace('.', '__')}")
            if text != write(value):
                part = value_at(result, s.path)
                try:
                    result = with_setting(result, s.path, changed(part, path, text, recipe.catalog))
                except UsageError as error:
                    raise UsageError(f"{option(f'{s.path}.{path}')}: {error}") from error
    return result


def with_arguments(recipe: Recipe, arguments: Sequence[str], without: Sequence[str] = ()) -> Recipe:
    """Returns the recipe with the settings that arguments of the command line give.

    Raises:
        UsageError: for a value that a part cannot have.
        SystemExit: for other values that cannot be read, which is printed.
    """
    changed_, rest = with_parts(recipe, arguments, without)
    if not rest:
        return changed_
    cls = make_dataclass("Settings", options_of(changed_, without))
    return with_options(changed_, tyro.cli(cls, args=rest, prog="unnoise"), without)


def with_setting(owner: Any, path: str, value: Any) -> Any:
    """Returns a dataclass with one setting replaced, by its name with dots."""
    name, _, rest = path.partition(".")
    return replace(owner, **{name: with_setting(getattr(owner, name), rest, value) if rest else value})


def value_at(owner: Any, path: str) -> Any:
    """Returns a setting by its name with dots."""
    return functools.reduce(getattr, path.split("."), owner)


def option(path: str) -> str:
    """Returns the option of a setting."""
    return f"--{path.replace('_', '-')}"


def choices(catalog: Catalog, kind: str) -> str:
    """Returns the parts of a kind, for help."""
    return f"One of {', '.join(catalog.kinds[kind])}, or your own as FILE.py:NAME."


def signature_text(part: Any) -> str:
    """Returns a part with its arguments and their defaults, without those that a recipe gives."""
    if not builds(part):
        return write(part)
    own = [
        f"{name}={write(p.default)}" if p.default is not inspect.Parameter.empty else name
        for name, p in parameters_of(part).items()
        if name not in GIVEN
    ]
    return f"{part.__name__}({', '.join(own)})"


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Returns the descriptions of a dataclass's fields: the texts below them, or the section `Attributes`."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= argument_docs(base)
        if base.__module__ == "builtins" or "__dataclass_fields__" not in vars(base):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        assert isinstance(body, ast.ClassDef)
        for line, after in zip(body.body, body.body[1:], strict=False):
            text = after.value if isinstance(after, ast.Expr) else None
            if not isinstance(text, ast.Constant) or not isinstance(text.value, str):
                continue
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                found[line.target.id] = inspect.cleandoc(text.value)
    return found


@functools.cache
def argument_docs(build: Any) -> dict[str, str]:
    """Returns the descriptions of arguments in the section `Args` or `Attributes` of a docstring."""
    section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", inspect.getdoc(build) or "", re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^([\w, ]+): (.*(?:\n    .*)*)", textwrap.dedent(section[1]), re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


@functools.cache
def type_hints(cls: type) -> dict[str, Any]:
    """Returns the types of a dataclass's fields; Any where they cannot be resolved."""
    try:
        return get_type_hints(cls)
    except (NameError, TypeError):
        names = vars(sys.modules[cls.__module__])
        hints = {}
        for f in fields(cls):
            try:
                hints[f.name] = get_type_hints(type("One", (), {"__annotations__": {f.name: f.type}}), names)[f.name]
            except (NameError, TypeError):
                hints[f.name] = Any
        return hints
