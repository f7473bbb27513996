"""Equality by value: objects are equal if they were constructed from equal arguments.

`equal`, `hash_of_type` and `notation` are the `__eq__`, `__hash__` and `__repr__` of processes and schedules. The
notation is also that of other parts of a model, such as weights and time inputs.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from .tensors import Table

FEW = 4
"""A tensor of at most so many numbers is written out, a longer one by its shape."""


def equal(self: Any, other: object) -> bool:
    """Returns whether two objects are of one class and have equal constructor arguments; for use as `__eq__`.

    Objects of different classes give NotImplemented. Tensors are compared entry by entry. A class keeps each
    constructor argument as an attribute of the same name; a class that does not is compared by all of its attributes.
    """
    if self is other:
        return True
    return same(state_of(self), state_of(other)) if type(self) is type(other) else NotImplemented


def hash_of_type(self: Any) -> int:
    """Returns the hash of the class, as tensors cannot be hashed; for use as `__hash__` beside `equal`."""
    return hash(type(self))


def notation(self: Any) -> str:
    """Returns the class and those of its arguments that differ from their defaults, as text; for use as `__repr__`."""
    defaults = {name: p.default for name, p in inspect.signature(type(self).__init__).parameters.items()}
    given = {
        name: value
        for name, value in state_of(self).items()
        if not same(value, defaults.get(name, inspect.Parameter.empty))
    }
    return f"{type(self).__name__}({', '.join(f'{name}={written(value)}' for name, value in given.items())})"


def keep_inherited(cls: type) -> None:
    """Sets the inherited equality, hash and notation on the class itself, or `@dataclass` would add its own.

    For use in `__init_subclass__` of a class with `equal`, `hash_of_type` and `notation`.
    """
    for name in ("__eq__", "__hash__", "__repr__"):
        if name not in vars(cls):
            setattr(cls, name, getattr(cls, name))


def state_of(value: Any) -> dict[str, Any]:
    """Returns the values that decide an object's behavior, by name.

    These are its constructor arguments, or all of its attributes if it does not keep the arguments.
    """
    names = [name for name in inspect.signature(type(value).__init__).parameters if name != "self"]
    kept = all(hasattr(value, name) for name in names)  # also in slots
    return {name: getattr(value, name) for name in names} if kept else vars(value)


def written(value: Any) -> str:
    """Returns a value as one line of text: a long tensor by its shape, a function by its name."""
    if isinstance(value, Tensor | Table):
        tensor = value.values if isinstance(value, Table) else value
        return str(tensor.tolist()) if tensor.numel() <= FEW else f"tensor of shape {tuple(tensor.shape)}"
    return getattr(value, "__name__", None) or repr(value)


def same(a: Any, b: Any) -> bool:
    """Returns whether two values are equal; tensors are if their shape, dtype and every entry are.

    Values of different types are not, except for numbers such as 20 and 20.0. Dictionaries, lists and tuples are
    compared item by item, objects without an `__eq__` of their own by `state_of`.
    """
    if a is b:
        return True
    if type(a) is not type(b):
        return {type(a), type(b)} == {int, float} and a == b
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, Table):
        return same(a.values, b.values)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if (
        type(a).__eq__ is object.__eq__
        and hasattr(a, "__dict__")
        and not isinstance(a, type)
        and not inspect.isroutine(a)
    ):
        return same(state_of(a), state_of(b))
    return bool(a == b)
