"""Packages whose modules are imported when they are first used, so that a program waits for what it uses alone."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_LATER: list[str] = []  # modules that mark classes for checkpoints and may not have been imported


def lazily(
    package: str, modules: Mapping[str, str], packages: tuple[str, ...] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__getattr__` and `__dir__` of a package that imports a module when one of its names is first used.

    Args:
        package: the `__name__` of the package.
        modules: the names that each module, by its name relative to the package, defines for it, with spaces between
            them. The package also imports them under `TYPE_CHECKING`, for editors and type checkers. A name that a
            module has too is not among them, as an import of that module would take its place.
        packages: modules and sub-packages that are attributes themselves.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def attribute(name: str) -> Any:
        if name in packages:
            return importlib.import_module(f".{name}", package)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{homes[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes, *packages})

    return attribute, names


@contextmanager
def uncollected() -> Iterator[None]:
    """Within the block Python does not search for unused cycles of objects, a fifth of the time of an import of torch.

    Modules that are imported stay in use, so there is little to find.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def imported_later(*modules: str) -> None:
    """Registers modules that mark classes and functions for checkpoints, for `import_until`."""
    _LATER.extend(modules)


def import_until(known: Callable[[], bool]) -> None:
    """Imports registered modules, each once and in the order of registration, until a condition holds."""
    while not known() and _LATER:
        importlib.import_module(_LATER.pop(0))
