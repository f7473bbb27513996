"""What decides a file's meaning beside its weights: told by the file, given as flags, known by a released name, assumed, or asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...shared.errors import UsageError
from .weights import quoted

LARGEST = 1e9
"""Of what a setting may be."""


class Settings:
    """The settings of one file. The file's own word counts first, and a flag that contradicts it is refused; then flags; then
    the name, which tells nothing where a flag contradicts it.

    Args:
        source: the file.
        given: flags by name, None for those that were not given.
        told: what the file says, by the same names.
        named: what the released files of its name were trained with.

    Attributes:
        assumed: a sentence for each value that nothing tells.

    Raises:
        UsageError: for a flag that says something else than the file.
    """

    def __init__(
        self, source: str, given: Mapping[str, Any], told: Mapping[str, Any] | None = None, named: Mapping[str, Any] | None = None
    ) -> None:
        self.source, self.assumed = source, ()
        self.given = {name: value for name, value in given.items() if value is not None}
        self.told: dict[str, Any] = {}
        for name, value in (told or {}).items():
            self.tell(name, value)
        # What is said otherwise is not the released file; networks of all sizes are the same.
        contradicted = any(not same(self.given.get(name, value), value) for name, value in (named or {}).items() if name != "image_size")
        self.named = {} if contradicted else dict(named or {})

    @property
    def known(self) -> bool:
        """Whether the file's name is a released one, whose settings are all known."""
        return bool(self.named)

    def tell(self, name: str, value: Any) -> None:
        """Adds what the file says."""
        for held, whose in ((self.given, "leave it out, or correct it"), (self.told, "give a whole file")):
            if name in held and not same(held[name], value):
                raise UsageError(f"{self.source}: {name}={quoted(held[name])}, but the file says {quoted(value)}: {whose}")
        self.told[name] = value

    def get(self, name: str) -> Any:
        """The value, or None for one that nothing tells."""
        return next((held[name] for held in (self.told, self.given, self.named) if name in held), None)

    def ask(self, why: str, **examples: Any) -> list[Any]:
        """The values of these settings; one error asks for all that are missing.

        Args:
            why: what the file does not tell, and for which network.
            examples: a value of each, for the error.
        """
        if missing := [name for name in examples if self.get(name) is None]:
            such = ", ".join(f"{name}={examples[name]!r}" for name in missing)
            raise UsageError(f"{self.source}: {why}: give {', '.join(missing)} as in its training, such as {such}")
        return [self.get(name) for name in examples]

    def numbers(self, why: str, **examples: float) -> list[float]:
        """The same for positive numbers."""
        values = self.ask(why, **examples)
        for name, value in zip(examples, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST:
                raise UsageError(f"{self.source}: {name}={quoted(value)} is not a positive number: give one such as {examples[name]!r}")
        return [float(value) for value in values]

    def counts(self, why: str, **examples: int) -> list[int]:
        """The same for whole numbers from 1 on."""
        values = self.ask(why, **examples)
        for name, value in zip(examples, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < LARGEST:
                raise UsageError(f"{self.source}: {name}={quoted(value)} is not a number of steps: give one such as {examples[name]!r}")
        return values

    def assume(self, name: str, value: Any, why: str) -> Any:
        """The value that is told, or this one, which is then said, but for a released file, of which it is known."""
        held = self.get(name)
        if held is None and not self.known:
            self.say(f"{name}={value!r}: {why}")
        return value if held is None else held

    def say(self, sentence: str) -> None:
        """Adds an assumption."""
        self.assumed = (*self.assumed, sentence)

    def refuse_unused(self, why: str, *names: str) -> None:
        """Refuses flags that this network has no use for."""
        if unused := [name for name in names if name in self.given]:
            such = ", ".join(f"{name}={quoted(self.given[name])}" for name in unused)
            raise UsageError(f"{self.source}: {such} without use, as {why}: leave it out")


def same(a: Any, b: Any) -> bool:
    """Whether two plain values are equal; what else a file may hold equals none."""
    return all(isinstance(value, bool | int | float | str) for value in (a, b)) and isinstance(a, bool) == isinstance(b, bool) and a == b
