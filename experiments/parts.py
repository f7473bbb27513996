"""A part of a recipe: a class or function with some of its arguments; the recipe gives the others when it is built.

`part(DDIM, eta=0.5)` is DDIM before there is a denoiser. Building it with a denoiser gives `DDIM(denoiser, eta=0.5)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from ..shared.errors import UsageError
from ..shared.serialization import serializable
from ..shared.values import notation, same, state_of, written
from .constants import constant_name

T = TypeVar("T", covariant=True)


class Context:
    """Values that parts take by the names of their arguments, such as the denoiser or the shape of the data.

    Args:
        later: functions that compute values when a part takes them, by name.
        values: the values by name.

    Attributes:
        taken: the names that some part has taken.
    """

    def __init__(self, later: Mapping[str, Callable[[], Any]] | None = None, **values: Any) -> None:
        self._values, self._later, self.taken = values, dict(later or {}), set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self._values or name in self._later

    def take(self, name: str) -> Any:
        """Returns the value of that name."""
        self.taken.add(name)
        if name not in self._values:
            self._values[name] = self._later[name]()
        return self._values[name]

    def untaken(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values that no part has taken and that differ from their defaults, by name."""
        return {
            name: self._values[name]
            for name, default in defaults.items()
            if name not in self.taken and not same(self._values[name], default)
        }


NOT_BUILDERS: set[Any] = set()
"""Functions of one's own that may not build parts, since a checkpoint could call them with any arguments."""


@serializable("experiments.Part")
@dataclass(frozen=True)
class Part(Generic[T]):
    """A class, or a function that returns an object, with some of its arguments.

    Attributes:
        build: the class or function.
        arguments: the given arguments, pairs of a name and a value; a value can be a part.

    Raises:
        UsageError: for an argument that `build` does not have.
    """

    build: Callable[..., T]
    arguments: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.build):
            raise UsageError(f"part({self.build!r}): give a class or a function, such as part(DDIM, eta=0.5)")
        if not isinstance(self.build, type) and self.build in NOT_BUILDERS:
            raise UsageError(
                f"{self.name} is to build a part: annotate what it returns, such as -> Transition or -> Schedule, as "
                "checkpoints may call such functions alone"
            )
        takes = parameters_of(self.build)
        for name, _ in self.arguments:
            if name not in takes:
                names = ", ".join(takes) or "no arguments"
                raise UsageError(f"{self.name} has no argument {name}: it takes {names}")

    @property
    def name(self) -> str:
        """The name of the class or function."""
        return getattr(self.build, "__name__", type(self.build).__name__)

    def __getitem__(self, name: str) -> Any:
        """Returns an argument by name: the given value, or its default."""
        given = dict(self.arguments)
        return given[name] if name in given else parameters_of(self.build)[name].default

    def changed(self, **arguments: Any) -> Part[T]:
        """Returns the part with some of its arguments replaced or added."""
        return Part(self.build, tuple((dict(self.arguments) | arguments).items()))

    def built(self, context: Context) -> T:
        """Returns the object. Arguments that are not given are taken from the context, where it has their names.

        Raises:
            UsageError: for an argument that is neither given, nor in the context, nor optional.
        """
        given, arguments = dict(self.arguments), {}
        for name, parameter in parameters_of(self.build).items():
            if name in given:
                arguments[name] = given[name] if takes_parts(parameter) else built(given[name], context)
            elif name in context:
                arguments[name] = context.take(name)
            elif parameter.default is inspect.Parameter.empty:
                raise UsageError(f"{self!r} needs {name}: write {self.name}({name}=...)")
        try:
            return self.build(**arguments)
        except UsageError:
            raise
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self!r} cannot be built: {error}") from error

    def missing(self) -> list[str]:
        """Returns the names of the arguments that are neither given nor optional."""
        empty, given = inspect.Parameter.empty, dict(self.arguments)
        return [n for n, p in parameters_of(self.build).items() if p.default is empty and n not in given]

    def parts(self) -> Iterator[Part[Any]]:
        """Yields this part and the parts in its arguments."""
        yield self
        for _, value in self.arguments:
            if isinstance(value, Part):
                yield from value.parts()

    def constructors(self) -> Iterator[Any]:
        """Yields the class or function of this part and of the parts in its arguments."""
        return (inner.build for inner in self.parts())

    def __repr__(self) -> str:
        return write(self)


def part(build: Callable[..., T], /, **arguments: Any) -> Part[T]:
    """Returns a class, or a function that returns an object, with some of its arguments, as a part of a recipe.

    Names of arguments are checked here, and not by type checkers. `part(DDIM, eta=0.5).built(Context(denoiser=d))` is
    `DDIM(d, eta=0.5)`.

    Raises:
        UsageError: for an argument that it does not have.
    """
    return Part(build, tuple(arguments.items()))


def takes_parts(parameter: inspect.Parameter) -> bool:
    """Returns whether an argument is itself a part, by its annotation, so that it is not built with its owner."""
    return str(parameter.annotation).startswith("Part")


def built(value: Any, context: Context) -> Any:
    """Returns the object of a part, and any other value as it is."""
    return value.built(context) if isinstance(value, Part) else value


def parameters_of(build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a class or function by name, without `self`, `*args` and `**kwargs`."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if isinstance(build, type) and build.__init__ is object.__init__:
        return {}
    return {name: p for name, p in inspect.signature(build).parameters.items() if p.kind not in kinds}


def refuse_untaken(given: Any, context: Context, defaults: Mapping[str, Any], remedies: Mapping[str, str] = {}) -> None:
    """Raises for settings of a recipe that differ from their defaults and have no effect on the built part.

    Args:
        given: the part that was built.
        context: the context that it was built with.
        defaults: the settings by name, with the values that need no effect.
        remedies: what to give instead, by the name of the setting.

    Raises:
        UsageError: which names the setting.
    """
    for name, value in context.untaken(defaults).items():
        remedy = remedies.get(name, "leave it out, or give another part")
        raise UsageError(f"{write(given)} has no argument {name}, so {name}={write(value)} has no effect: {remedy}")


def write(value: Any) -> str:
    """Returns a value in the notation of parts."""
    if isinstance(value, Part):
        takes = parameters_of(value.build)
        given = {n: v for n, v in value.arguments if n not in takes or not same(v, takes[n].default)}
        return f"{value.name}({', '.join(f'{name}={write(v)}' for name, v in given.items())})"
    if isinstance(value, tuple | list):
        inner = ", ".join(map(write, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if (name := constant_name(value)) is not None:
        return name
    if type(value).__repr__ is notation and state_of(value).keys() <= parameters_of(type(value)).keys():
        return write(Part(type(value), tuple(state_of(value).items())))
    return written(value) if isinstance(value, Tensor) or callable(value) else repr(value)
