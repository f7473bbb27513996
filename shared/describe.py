"""Objects as plain JSON and back, so that a checkpoint tells by itself what it holds.

A class or function that is marked `@described` can stand in a checkpoint. A class keeps each constructor argument as an
attribute of the same name. Reading a description looks names up among the marked ones only: nothing is imported or evaluated
because a file says so.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UsageError

T = TypeVar("T")
_KNOWN: dict[str, Any] = {}


def described(thing: T) -> T:
    """Marks a class or a module-level function of this package as one that checkpoints may name."""
    _KNOWN[_name(thing)] = thing
    return thing


def formerly(name: str) -> Callable[[T], T]:
    """Marks a class as what checkpoints of earlier versions call by another name."""

    def mark(thing: T) -> T:
        _KNOWN[name] = thing
        return thing

    return mark


def describe(value: Any, role: str = "") -> Any:
    """`value` as JSON types; `role` is the name of the argument that it is.

    Raises:
        UsageError: for a value that no description can hold, with its type.
    """
    value = value.item() if isinstance(value, np.generic) else uncompiled(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, tuple | list):
        return [describe(v) for v in value]
    if callable(value) and _KNOWN.get(_name(value)) is value:
        return {"function": _name(value)}
    if _KNOWN.get(_name(type(value))) is type(value):
        refuse_moved(value)
        return {"class": _name(type(value)), "arguments": {k: describe(getattr(value, k), k) for k in _arguments(type(value))}}
    if isinstance(value, nn.Module) and role in ("network", "inner"):
        return {"external": _name(type(value))}
    raise UsageError(
        f"a checkpoint cannot describe {_name(type(value))}: mark your class or function with unnoise.shared.describe.described"
    )


def uncompiled(value: Any) -> Any:
    """The module that `torch.compile` wrapped; everything else as it is."""
    return value._modules.get("_orig_mod", value) if isinstance(value, nn.Module) else value


def refuse_moved(value: Any) -> None:
    """Refuses a denoiser that `on(schedule)` put on another schedule than its own, which a description would forget.

    Raises:
        UsageError: with what to do.
    """
    home, there = getattr(value, "schedule", None), getattr(value, "corruption", None)
    if isinstance(value, nn.Module) and home and there and home != there:
        raise UsageError(
            f"a checkpoint cannot describe a {type(value).__name__} that was moved to another schedule: save it on its own, and move it "
            "with on(schedule) after loading"
        )


def build(description: Any, network: nn.Module | None = None) -> Any:
    """The object that `describe` described; `network` stands in for a network that is not of this package.

    Raises:
        UsageError: where the description names something that is not known here, or arguments that do not fit.
    """
    if isinstance(description, list):
        return tuple(build(d, network) for d in description)
    if not isinstance(description, Mapping):
        return description
    if "tensor" in description:
        return torch.tensor(description["tensor"], dtype=getattr(torch, description["dtype"]))
    if "external" in description:
        if network is None:
            raise UsageError(f"this checkpoint holds a network of your own, {description['external']}: give it as load(path, network=...)")
        return copy.deepcopy(network)  # a student and its teacher are two
    name = description.get("class") or description.get("function")
    if name not in _KNOWN:
        raise UsageError(f"the checkpoint names {name}, which is not loaded: use unnoise.experiments.load, or import its module first")
    if "function" in description:
        return _KNOWN[name]
    arguments = {k: build(v, network) for k, v in description["arguments"].items()}
    try:
        return _KNOWN[name](**arguments)
    except TypeError as error:
        raise UsageError(f"the checkpoint's {name} does not fit this version of the package: {error}") from error


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"


def _arguments(cls: type) -> list[str]:
    return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
