"""Objects as JSON values and back, so that a checkpoint contains what is needed to rebuild its model.

A class or function marked `@serializable("family.Name")` can be written to a checkpoint under this name, which does not
change when its module moves. A class itself, such as a sampler's, is written as its name. For its objects to be
written it must keep each constructor argument as an attribute of the same name. On reading, names are looked up among
the marked classes and functions only: a file cannot run code, nor choose what is imported. A name that is not known
imports further modules of this package, in an order that does not depend on the file (`lazy.imported_later`).
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UsageError
from .lazy import import_until

T = TypeVar("T")

_KNOWN: dict[str, Any] = {}  # name in checkpoints -> class or function
_NAMES: dict[Any, str] = {}  # class or function -> name in checkpoints
Conversion = Callable[[dict[str, Any]], dict[str, Any]]
_EARLIER: dict[str, Conversion | str] = {}  # earlier name -> conversion of the arguments, or its module


def serializable(
    name: str, *, formerly: str | Sequence[str] = (), renamed: Mapping[str, str] | None = None
) -> Callable[[T], T]:
    """Marks a class, or a function at the top level of a module, as serializable under a name.

    A decorator. For its objects to be written, a class must keep each constructor argument as an attribute of the same
    name.

    Args:
        name: its name in checkpoints, such as `"my_lab.Cosine"`. Do not change it later: files contain it.
        formerly: its names in files of earlier versions.
        renamed: today's name of each constructor argument that has another name in files of earlier versions, by that
            earlier name.

    Raises:
        UsageError: for a name, of today or earlier, that another class or function has already, and for an earlier name
            of an argument that is an argument today.
    """
    if not isinstance(name, str):
        raise UsageError(
            f'@serializable needs the name for checkpoints: write @serializable("my_project.{name_of(name)}")'
        )

    def mark(thing: T) -> T:
        holder = _KNOWN.get(name, thing)
        if full_name(holder) != full_name(thing):
            raise UsageError(
                f"the name {name} for {full_name(thing)} already stands for {full_name(holder)} in checkpoints: "
                "choose another name"
            )
        before = [formerly] if isinstance(formerly, str) else list(formerly)
        for old in before:
            if (other := _KNOWN.get(old)) is not None and full_name(other) != full_name(thing):
                raise UsageError(
                    f"formerly={old!r} of {full_name(thing)} is the name of {full_name(other)} in checkpoints"
                )
        for old in renamed or {}:
            if isinstance(thing, type) and old in arguments_of(thing):
                raise UsageError(f"renamed={{{old!r}: ...}} of {full_name(thing)}: {old} is an argument today")
        _KNOWN[name], _NAMES[thing] = thing, name
        for old in [*before, *([name] if renamed else [])]:
            earlier(
                old,
                lambda arguments: {
                    "class": name,
                    "arguments": {(renamed or {}).get(k, k): v for k, v in arguments.items()},
                },
            )
        return thing

    return mark


def earlier(name: str, convert: Conversion | str) -> None:
    """Registers how the description of a class or function in files of earlier versions is converted to today's.

    Args:
        name: its name in those files.
        convert: a function from its arguments in those files, by name ({} for a function), to today's description,
            `{"class": name, "arguments": {...}}`; or the name of the module that registers it, which is imported where
            a file has the name.
    """
    _EARLIER[name] = convert


def serialize(value: Any, role: str = "") -> Any:
    """Returns a description of `value` in JSON types, from which `deserialize` rebuilds it.

    It contains constructor arguments, not the weights of networks.

    Args:
        value: a serializable object, class or function; a number, string, None or tensor; or a tuple or list of these.
        role: the name of the constructor argument whose value it is. A network that is not serializable is described by
            its class alone, if its role is `network` or `inner`.

    Raises:
        UsageError: for a value that cannot be described, with its type.
    """
    value = value.item() if isinstance(value, np.generic) else uncompiled(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, tuple | list):
        return [serialize(v) for v in value]
    if (isinstance(value, type) or inspect.isroutine(value)) and value in _NAMES:
        return {"function": _NAMES[value]}
    own_network = isinstance(value, nn.Module) and role in ("network", "inner")
    if type(value) in _NAMES and not (own_network and forgets_arguments(value)):
        refuse_moved(value)
        arguments = {k: serialize(argument(value, k), k) for k in arguments_of(type(value))}
        return {"class": _NAMES[type(value)], "arguments": arguments}
    if own_network:
        return {"external": full_name(type(value))}
    marked = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    raise UsageError(
        f"a checkpoint cannot contain {full_name(marked)}: mark the class "
        'or function with @serializable("my_project.NAME") from unnoise.shared.serialization'
    )


def uncompiled(value: Any) -> Any:
    """Returns the module inside one from `torch.compile`, and any other value as it is."""
    return value._modules.get("_orig_mod", value) if isinstance(value, nn.Module) else value


def refuse_moved(value: Any) -> None:
    """Raises for a denoiser that `on(schedule)` put on another schedule than that of training, which is not written.

    Raises:
        UsageError: for such a denoiser.
    """
    trained, present = getattr(value, "schedule", None), getattr(value, "corruption", None)
    if isinstance(value, nn.Module) and trained and present and trained != present:
        raise UsageError(
            f"a checkpoint cannot contain a {type(value).__name__} on another schedule than that of training: "
            "save it on that, and call on(schedule) after loading"
        )


def deserialize(description: Any, network: nn.Module | None = None) -> Any:
    """Returns the object that `serialize` described; lists become tuples.

    Serializable networks get newly initialized weights, which those of the checkpoint replace afterwards.

    Args:
        description: from `serialize`, or from a file of an earlier version.
        network: takes the place of networks that are not serializable; each gets a copy.

    Raises:
        UsageError: for a name that is not registered, arguments that do not fit the class, and a network that is needed
            and not given.
    """
    if isinstance(description, list):
        return tuple(deserialize(d, network) for d in description)
    if not isinstance(description, Mapping):
        return description
    if "tensor" in description:
        return torch.tensor(description["tensor"], dtype=getattr(torch, description["dtype"]))
    if "external" in description:
        if network is None:
            raise UsageError(
                f"this checkpoint was saved with a network of your own, {description['external']}: "
                "give it as load(path, network=...)"
            )
        return copy.deepcopy(network)  # a student and its teacher have one each
    description = current_name(description)
    name = description.get("class") or description.get("function")
    if name not in _KNOWN and ":" in str(name):
        file = str(name).rpartition(":")[0]
        raise UsageError(
            f"the checkpoint contains {name}, a part of your own, and no file is imported because a checkpoint names "
            f"it: give --module with the path of {file}; in Python, call unnoise.experiments.own_files.own_module first"
        )
    if name not in _KNOWN:
        raise UsageError(
            f"the checkpoint contains {name}, which no imported module defines: load it by unnoise.load, which imports "
            "this package's own, or for a class or function of yours import its module first (on the command line give "
            "--module FILE.py)"
        )
    if "function" in description:
        return _KNOWN[name]
    if not isinstance(_KNOWN[name], type):  # a file may not call a function
        raise UsageError(f"the checkpoint contains {name} as a class, and it is a function: the file was changed")
    arguments = {k: deserialize(v, network) for k, v in description["arguments"].items()}
    try:
        return _KNOWN[name](**arguments)
    except TypeError as error:
        raise UsageError(f"{name} in the checkpoint does not fit its class in this version: {error}") from error


def current_name(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the description of one class or function with today's name and arguments."""
    name = description.get("class") or description.get("function")
    if name is None:
        return description
    import_until(lambda: name in _KNOWN or name in _EARLIER)
    if name not in _EARLIER:
        return description
    if isinstance(convert := _EARLIER[name], str):
        importlib.import_module(convert)
        convert = _EARLIER[name]
    assert callable(convert)
    today = convert(description.get("arguments", {}))
    return {"function": today["class"]} if "function" in description else today


def current(description: Any) -> Any:
    """Returns a description with today's names of classes, functions and arguments, in nested descriptions too.

    It is for comparing a file of an earlier version with a description from today's `serialize`.
    """
    if isinstance(description, list):
        return [current(d) for d in description]
    if not isinstance(description, Mapping):
        return description
    return {k: v if k == "tensor" else current(v) for k, v in current_name(description).items()}


def forgets_arguments(value: Any) -> bool:
    """Returns whether an object does not keep some constructor argument as an attribute."""
    return not all(hasattr(value, name) for name in arguments_of(type(value)))


def argument(value: Any, name: str) -> Any:
    """Returns the attribute of `value` that has the name of the constructor argument `name`.

    Raises:
        UsageError: if there is no such attribute.
    """
    try:
        return getattr(value, name)
    except AttributeError:
        raise UsageError(
            f"a checkpoint cannot contain a {type(value).__name__}, which does not keep its constructor argument "
            f"{name}: write self.{name} = {name} in its __init__, or make it a dataclass"
        ) from None


def arguments_of(cls: type) -> list[str]:
    """Returns the names of the constructor's arguments in order; an empty list for a class without `__init__`."""
    own = cls.__init__
    if own in (object.__init__, nn.Module.__init__):
        return []
    return [name for name in inspect.signature(own).parameters if name != "self"]


def name_of(thing: Any) -> str:
    """Returns the bare name of a class or function."""
    return getattr(thing, "__name__", type(thing).__name__)


def full_name(thing: Any) -> str:
    """Returns module and qualified name of a class or function, separated by a dot."""
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
