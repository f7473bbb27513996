"""Parts by kind and name, for the notation of parts and for help; each family has a catalog of its own.

A kind is the type of an argument or of a recipe's field, by the name that its annotation has: `Schedule`, `Weight`.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..shared import networks, objective, time_inputs
from ..shared.errors import UsageError, shown
from ..shared.training import averages
from ..shared.training.parallel import Replicated, Sharded
from .constants import CONSTANTS

BUILDERS: set[Any] = set()
"""Functions that construct a part from their arguments, of each family; other functions are parts themselves."""


def classes(base: type, *modules: Any) -> list[type]:
    """Returns the public concrete classes of the modules that derive from a class."""
    found = [getattr(module, name) for module in modules for name in module.__all__]
    return [
        c for c in dict.fromkeys(found) if isinstance(c, type) and issubclass(c, base) and not inspect.isabstract(c)
    ]


def key_of(name: str) -> str:
    """Returns a name in small letters without hyphens and underscores, by which names are compared."""
    return re.sub(r"[-_]", "", name).lower()


def builds(found: Any) -> bool:
    """Returns whether a name without arguments stands for an object to construct: a class, or one of `BUILDERS`."""
    return isinstance(found, type) or (inspect.isroutine(found) and found in BUILDERS)


GIVEN = frozenset({"denoiser", "network", "shape", "features", "quantization", "categories", "text", "sampling_steps"})
"""Arguments that the recipe gives: they are left out when arguments are written in their order."""


NUMBERS = frozenset({"int", "float", "bool", "int | None", "float | None"})
"""Annotations of arguments that are numbers."""


class Catalog:
    """The parts of a family.

    Args:
        kinds: the parts of each kind: classes, functions and constants.

    Attributes:
        kinds: the parts of each kind by their public names.
    """

    ENDINGS = ("", "betas", "noise", "function")
    """Endings of names that can be left out, as in `linear` for `LinearBetas` and `power` for `PowerFunction`."""

    def __init__(self, kinds: Mapping[str, Iterable[Any]]) -> None:
        self.kinds = {kind: {public_name(part): part for part in parts} for kind, parts in kinds.items()}

    def find(self, name: str, kind: str, bare: bool = False) -> Any:
        """Returns the part of a kind by its name, or of any kind for a kind without parts.

        `bare` is whether the name stands without arguments.

        Raises:
            UsageError: for an unknown name; the message lists the names, or suggests the nearest one.
        """
        within = self.kinds.get(kind) or {n: part for parts in self.kinds.values() for n, part in parts.items()}
        if name in within and not (bare and within[name] in BUILDERS):
            return within[name]
        keys = [key_of(name) + ending for ending in self.ENDINGS]
        found = [part for key in keys for n, part in within.items() if key_of(n) == key]
        if found:  # a name alone rather stands for a class than for a function that needs arguments
            return next((part for part in found if isinstance(part, type)), found[0]) if bare else found[0]
        if near := difflib.get_close_matches(key_of(name), map(key_of, within), n=2, cutoff=0.7):
            hint = f"did you mean {' or '.join(n for n in within if key_of(n) in near)}?"
        else:
            hint = f"choose from {', '.join(within)}, or give your own as FILE.py:NAME"
        article = "an" if kind.startswith(tuple("AEIOU")) else "a"
        raise UsageError(f"{shown(name)} is not {article} {kind or 'part'} of this family: {hint}")

    def kind_of(self, parameter: inspect.Parameter) -> str:
        """Returns the kind of an argument, by its annotation, or by its name where that is a tensor or a function."""
        if str(parameter.annotation) in NUMBERS:
            return "number"
        by_name = {"schedule": "NoiseSchedule"}.get(parameter.name, parameter.name)
        return kind_of(parameter.annotation, self.kinds) or (by_name if by_name in self.kinds else "")


def kind_of(annotation: Any, kinds: Iterable[str]) -> str:
    """Returns the first kind whose name is in an annotation, `str` for texts and an empty text otherwise."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    words = re.findall(r"\w+", text)
    return next((word for word in words if word in kinds), "str" if words and words[0] in ("str", "Path") else "")


def public_name(part: Any) -> str:
    """Returns the name of a part: of a class or function its own, of a constant that of the constant."""
    if isinstance(part, type) or inspect.isroutine(part):
        return part.__name__
    return next(name for name, constant in CONSTANTS.items() if constant is part)


def constants(kind: str) -> list[Any]:
    """Returns the public constants of a class, by its name."""
    return [value for value in CONSTANTS.values() if type(value).__name__ == kind]


def of_module(module: Any, *names: str) -> list[Any]:
    """Returns what a module defines under some names."""
    return [getattr(module, name) for name in names]


NETWORKS = [c for c in classes(nn.Module, networks) if c is not networks.Encoder]
SHARED: dict[str, list[Any]] = {
    "TimeSampling": of_module(objective, "independent", "Stratified", "antithetic"),
    "TimeInput": of_module(
        time_inputs,
        *("thousandths", "step_index", "nearest_index", "thousandth_index", "song_vp", "quarter_log"),
        *("noise_level", "log_noise_level", "log_half_noise_level", "reversed_index"),
    ),
    "Module": NETWORKS,
    "Encoder": [networks.Encoder],
    "UNetVariant": constants("UNetVariant"),
    "Average": of_module(averages, "Decay", "HalfLife", "PowerFunction"),
    "Parallel": [Replicated, Sharded],
}
"""The parts of both families."""
