"""Objects as plain JSON and back, so that a checkpoint holds what is needed to rebuild its model.

A class or function that is marked `@serializable("family.Name")` can stand in a checkpoint under this name, which stays
the same when its module moves. A class keeps each constructor argument as an attribute of the same name. Reading looks
names up among the marked ones only: nothing is imported or evaluated because a file says so.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UsageError

T = TypeVar("T")


_KNOWN: dict[str, Any] = {}
_NAMES: dict[Any, str] = {}
_EARLIER: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def serializable(
    name: str, *, formerly: str | Sequence[str] = (), renamed: Mapping[str, str] | None = None
) -> Callable[[T], T]:
    """Marks a class, or a function at the top level of a module, as one that checkpoints may name.

    Args:
        name: what checkpoints call it from now on, such as `"my_lab.Cosine"`. Choose it once: files keep it.
        formerly: its names in files of earlier versions.
        renamed: new names of constructor arguments by those in files of earlier versions.

    Raises:
        UsageError: for a name that stands for something else already.
    """
    if not isinstance(name, str):
        raise UsageError(
            f'@serializable needs a name for checkpoints to keep: write @serializable("my_project.{name_of(name)}")'
        )

    def mark(thing: T) -> T:
        held = _KNOWN.get(name, thing)
        if full_name(held) != full_name(thing):
            raise UsageError(f"in checkpoints the name {name} already stands for {full_name(held)}: choose another")
        _KNOWN[name], _NAMES[thing] = thing, name
        for old in [formerly] if isinstance(formerly, str) else formerly:
            earlier(
                old,
                lambda arguments: {
                    "class": name,
                    "arguments": {(renamed or {}).get(k, k): v for k, v in arguments.items()},
                },
            )
        return thing

    return mark


def earlier(name: str, convert: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Says how what files of earlier versions call `name` is written today.

    Args:
        name: of a class or function in those files.
        convert: from its arguments in those files (none of a function) to today's description.
    """
    _EARLIER[name] = convert


def serialize(value: Any, role: str = "") -> Any:
    """Returns `value` as JSON types; `role` is the name of the argument that it is.

    Raises:
        UsageError: for a value that cannot be written, with its type.
    """
    value = value.item() if isinstance(value, np.generic) else uncompiled(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, tuple | list):
        return [serialize(v) for v in value]
    if inspect.isroutine(value) and value in _NAMES:
        return {"function": _NAMES[value]}
    if type(value) in _NAMES:
        refuse_moved(value)
        arguments = {k: serialize(argument(value, k), k) for k in arguments_of(type(value))}
        return {"class": _NAMES[type(value)], "arguments": arguments}
    if isinstance(value, nn.Module) and role in ("network", "inner"):
        return {"external": full_name(type(value))}
    raise UsageError(
        f"a checkpoint cannot hold {full_name(value if inspect.isroutine(value) else type(value))}: mark your class or function with "
        '@serializable("my_project.NAME") of unnoise.shared.serialization'
    )


def uncompiled(value: Any) -> Any:
    """Returns the module that `torch.compile` wrapped; everything else as it is."""
    return value._modules.get("_orig_mod", value) if isinstance(value, nn.Module) else value


def refuse_moved(value: Any) -> None:
    """Refuses a denoiser that `on(schedule)` put on another schedule than that of training, which a file would forget.

    Raises:
        UsageError: with what to do.
    """
    home, there = getattr(value, "schedule", None), getattr(value, "corruption", None)
    if isinstance(value, nn.Module) and home and there and home != there:
        raise UsageError(
            f"a checkpoint cannot hold a {type(value).__name__} that was moved to another schedule: save it on its own, and move it "
            "with on(schedule) after loading"
        )


def deserialize(description: Any, network: nn.Module | None = None) -> Any:
    """Returns the object that `serialize` wrote; `network` stands in for a network that is not of this package.

    Raises:
        UsageError: where the description names something that is not known here, or arguments that do not fit.
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
                f"this checkpoint holds a network of your own, {description['external']}: give it as load(path, network=...)"
            )
        return copy.deepcopy(network)  # a student and its teacher are two
    description = current_name(description)
    name = description.get("class") or description.get("function")
    if name not in _KNOWN:
        raise UsageError(
            f"the checkpoint names {name}, which is not loaded: use unnoise.load, or import the module that defines it first"
        )
    if "function" in description:
        return _KNOWN[name]
    arguments = {k: deserialize(v, network) for k, v in description["arguments"].items()}
    try:
        return _KNOWN[name](**arguments)
    except TypeError as error:
        raise UsageError(f"the checkpoint's {name} does not fit this version of the package: {error}") from error


def current_name(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the description of a class or function with the name and the arguments that it has today."""
    name = description.get("class") or description.get("function")
    if name not in _EARLIER:
        return description
    today = _EARLIER[name](description.get("arguments", {}))
    return {"function": today["class"]} if "function" in description else today


def current(description: Any) -> Any:
    """Returns a description in today's names throughout, so that it can be compared with one of today."""
    if isinstance(description, list):
        return [current(d) for d in description]
    if not isinstance(description, Mapping):
        return description
    return {k: v if k == "tensor" else current(v) for k, v in current_name(description).items()}


def argument(value: Any, name: str) -> Any:
    """Returns the attribute that holds a constructor argument.

    Raises:
        UsageError: where there is none.
    """
    try:
        return getattr(value, name)
    except AttributeError:
        raise UsageError(
            f"a checkpoint cannot hold a {type(value).__name__}: it does not keep its constructor argument {name} as an attribute; "
            f"write self.{name} = {name}, or make the class a dataclass"
        ) from None


def arguments_of(cls: type) -> list[str]:
    """Returns the names of the constructor's arguments, in their order.

    None for a class without a constructor of its own.
    """
    own = cls.__init__
    return (
        []
        if own in (object.__init__, nn.Module.__init__)
        else [name for name in inspect.signature(own).parameters if name != "self"]
    )


def name_of(thing: Any) -> str:
    """Returns the bare name of a class or function."""
    return getattr(thing, "__name__", type(thing).__name__)


def full_name(thing: Any) -> str:
    """Returns module and qualified name of a class or function."""
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
