"""What decides a file's meaning beside its weights.

Told by the file, given as flags, known by a released name, assumed, or asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from ...shared.errors import UsageError
from .weights import quoted

LARGEST = 1e9
"""Of what a setting may be."""


class Settings:
    """The settings of one file. The file's own word counts first, and a flag that contradicts it is refused; then
    flags; then the name, which tells nothing where a flag or the file contradicts it.

    Args:
        source: the file.
        given: flags by name, None for those that were not given.
        told: what the file says, by the same names.
        named: what the released files of its name were trained with.
        name: the released file that it is called as, so that what the name tells is said; "" where `named` follows from
            something else.
        against: what in the file contradicts the name, in words; "" for nothing.

    Raises:
        UsageError: for a flag that says something else than the file.
    """

    def __init__(
        self,
        source: str,
        given: Mapping[str, Any],
        told: Mapping[str, Any] | None = None,
        named: Mapping[str, Any] | None = None,
        name: str = "",
        against: str = "",
    ) -> None:
        self.source, self.name, self.said = source, name, ()
        self.read: set[str] = set()
        self.further: list[tuple[str, dict[str, Any]]] = []
        self.given = {name: value for name, value in given.items() if value is not None}
        self.told: dict[str, Any] = {}
        for setting, value in (told or {}).items():
            self.tell(setting, value)
        held = self.given | (self.told if name else {})
        # What is said otherwise is not the released file; networks of all sizes are the same.
        other = [
            k for k, value in (named or {}).items() if k in held and not same(held[k], value) and k != "image_size"
        ]
        if other and not against:
            against = f"{other[0]} is {quoted(held[other[0]])}, and {quoted(named[other[0]])} of the released file"
        self.named = {} if other or against else dict(named or {})
        self.aside = f"; nor does the name, as it is not the released {name}: {against}" if name and against else ""

    @property
    def assumed(self) -> tuple[str, ...]:
        """A sentence for what the name tells, and for each value that nothing tells."""
        values = ", ".join(f"{k}={self.named[k]!r}" for k in self.named if k in self.read)
        return (
            (f"{values}: as of the released {self.name}, by the file's name", *self.said)
            if self.name and values
            else self.said
        )

    @property
    def known(self) -> bool:
        """Whether the file's name is a released one, whose settings are all known."""
        return bool(self.named)

    def tell(self, name: str, value: Any) -> None:
        """Adds what the file says."""
        for held, whose in ((self.given, "leave it out, or correct it"), (self.told, "give a whole file")):
            if name in held and not same(held[name], value):
                raise UsageError(
                    f"{self.source}: {name}={quoted(held[name])}, but the file says {quoted(value)}: {whose}"
                )
        self.told[name] = value

    def get(self, name: str) -> Any:
        """The value, or None for one that nothing tells."""
        held = next((held for held in (self.told, self.given, self.named) if name in held), None)
        if held is self.named:
            self.read.add(name)
        return None if held is None else held[name]

    def later(self, why: str, **examples: Any) -> None:
        """Has an error that asks for something else ask for these too."""
        self.further.append((why, examples))

    def ask(self, why: str, **examples: Any) -> list[Any]:
        """The values of these settings; one error asks for all that are missing, and for what is missing of `later`.

        Args:
            why: what the file does not tell, and for which network.
            examples: a value of each, for the error.
        """
        if any(self.get(name) is None for name in examples):
            whys: list[str] = []
            missing: dict[str, Any] = {}
            for reason, wanted in ((why, examples), *self.further):
                new = {name: value for name, value in wanted.items() if self.get(name) is None and name not in missing}
                whys, missing = [*whys, reason] if new else whys, missing | new
            such = ", ".join(f"{name}={value!r}" for name, value in missing.items())
            said = f"{'; '.join(whys)}{self.aside}: give {', '.join(missing)} as in its training, such as {such}"
            raise UsageError(f"{self.source}: {said}")
        return [self.get(name) for name in examples]

    def numbers(self, why: str, **examples: float) -> list[float]:
        """The same for positive numbers."""
        values = self.ask(why, **examples)
        for name, value in zip(examples, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST:
                raise UsageError(
                    f"{self.source}: {name}={quoted(value)} is not a positive number: give one such as {examples[name]!r}"
                )
        return [float(value) for value in values]

    def counts(self, why: str, **examples: int) -> list[int]:
        """The same for whole numbers from 1 on."""
        values = self.ask(why, **examples)
        for name, value in zip(examples, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < LARGEST:
                raise UsageError(
                    f"{self.source}: {name}={quoted(value)} is not a number of steps: give one such as {examples[name]!r}"
                )
        return values

    def assume(self, name: str, value: Any, why: str) -> Any:
        """Returns the setting if something tells it; else `value`, which is added to the printed assumptions."""
        held = self.get(name)
        if held is None:
            self.say(f"{name}={value!r}: {why}")
        return value if held is None else held

    def say(self, sentence: str) -> None:
        """Adds an assumption."""
        self.said = (*self.said, sentence)

    def say_raw(self, contents: Any, average: Any) -> None:
        """Says that raw weights are taken of a list `[model, optimizer, epoch, step, ema]` without averages in its last
        entry.
        """
        if isinstance(contents, list | tuple) and len(contents) > 4 and average is None:
            self.say("the weights are the raw ones: the file's fifth entry, where averages are, holds none")

    @contextlib.contextmanager
    def of_file(self) -> Iterator[None]:
        """Errors within it begin with the file."""
        try:
            yield
        except UsageError as error:
            said = str(error)
            raise UsageError(said if said.startswith(self.source) else f"{self.source}: {said}") from error

    def refuse_unused(self, why: str, *names: str) -> None:
        """Refuses flags that this network has no use for."""
        if unused := [name for name in names if name in self.given]:
            such = ", ".join(f"{name}={quoted(self.given[name])}" for name in unused)
            raise UsageError(f"{self.source}: {such} without use, as {why}: leave it out")


def same(a: Any, b: Any) -> bool:
    """Whether two plain values are equal; what else a file may hold equals none."""
    return (
        all(isinstance(value, bool | int | float | str) for value in (a, b))
        and isinstance(a, bool) == isinstance(b, bool)
        and a == b
    )
