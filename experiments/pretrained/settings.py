"""Settings of a pretrained network that its weights alone do not determine, such as its schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ...shared.errors import UsageError
from .weights import quoted

LARGEST = 1e9
"""The largest value of a numeric setting."""


class Settings:
    """The settings of one checkpoint, each taken from the first of these sources that has it.

    1. The file itself; a flag that contradicts it is refused.
    2. Flags of the caller.
    3. The published checkpoint that the file is named after, unless a flag or the file contradicts the name.

    Args:
        source: the file, for errors.
        flags: values by name, None for those that were not given.
        from_file: values that the file contains, by the same names.
        from_name: values of the published checkpoint that the file is named after.
        name: that published checkpoint, so that `assumed` mentions it; "" where `from_name` does not come from a name.
        contradiction: what in the file contradicts the name, in words; "" for nothing.

    Raises:
        UsageError: for a flag that contradicts the file.
    """

    def __init__(
        self,
        source: str,
        flags: Mapping[str, Any],
        from_file: Mapping[str, Any] | None = None,
        from_name: Mapping[str, Any] | None = None,
        name: str = "",
        contradiction: str = "",
    ) -> None:
        self.source, self.name = source, name
        self.notes: tuple[str, ...] = ()
        self.used_of_name: set[str] = set()
        self.also_required: list[tuple[str, dict[str, Any]]] = []
        self.flags = {name: value for name, value in flags.items() if value is not None}
        self.from_file: dict[str, Any] = {}
        for setting, value in (from_file or {}).items():
            self.add_from_file(setting, value)
        known = self.flags | (self.from_file if name else {})
        published = dict(from_name or {})
        # Another value means another checkpoint than the published one; but a network runs on images of any size.
        different = [k for k, v in published.items() if k in known and not same(known[k], v) and k != "image_size"]
        if different and not contradiction:
            k = different[0]
            contradiction = f"{k} is {quoted(known[k])}, but {quoted(published[k])} in the published checkpoint"
        self.from_name = {} if different or contradiction else published
        self.name_ignored = (
            f"; the file name does not either, as this is not the published {name}: {contradiction}"
            if name and contradiction
            else ""
        )

    @property
    def assumed(self) -> tuple[str, ...]:
        """One sentence for the values that the name gives, and one for each assumption."""
        values = ", ".join(f"{k}={self.from_name[k]!r}" for k in self.from_name if k in self.used_of_name)
        if self.name and values:
            return (f"{values}: as in the published checkpoint {self.name}, recognized by the file name", *self.notes)
        return self.notes

    @property
    def is_published(self) -> bool:
        """Whether the file is taken for a published checkpoint, whose settings are all known."""
        return bool(self.from_name)

    def add_from_file(self, name: str, value: Any) -> None:
        """Adds a value that the file contains."""
        for known, remedy in ((self.flags, "leave it out, or correct it"), (self.from_file, "give the complete file")):
            if name in known and not same(known[name], value):
                raise UsageError(
                    f"{self.source}: {name}={quoted(known[name])}, but the file specifies {quoted(value)}: {remedy}"
                )
        self.from_file[name] = value

    def get(self, name: str) -> Any:
        """Returns the value, or None if no source contains it."""
        known = next((known for known in (self.from_file, self.flags, self.from_name) if name in known), None)
        if known is self.from_name:
            self.used_of_name.add(name)
        return None if known is None else known[name]

    def require_too(self, why: str, **examples: Any) -> None:
        """Adds settings to the error that `require` raises for any others; see there."""
        self.also_required.append((why, examples))

    def require(self, why: str, **examples: Any) -> list[Any]:
        """Returns the values of these settings.

        Args:
            why: what the file does not determine, and for which network.
            examples: a value of each setting, for the error.

        Raises:
            UsageError: where values are missing; one error names all of them, those of `require_too` included.
        """
        if any(self.get(name) is None for name in examples):
            whys: list[str] = []
            missing: dict[str, Any] = {}
            for reason, needed in ((why, examples), *self.also_required):
                new = {name: value for name, value in needed.items() if self.get(name) is None and name not in missing}
                whys, missing = [*whys, reason] if new else whys, missing | new
            such = ", ".join(f"{name}={value!r}" for name, value in missing.items())
            raise UsageError(
                f"{self.source}: {'; '.join(whys)}{self.name_ignored}: "
                f"give {', '.join(missing)} as in its training, such as {such}"
            )
        return [self.get(name) for name in examples]

    def numbers(self, why: str, **examples: float) -> list[float]:
        """Returns the values of these settings as positive numbers; see `require`."""
        values = self.require(why, **examples)
        for name, value in zip(examples, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST:
                raise UsageError(
                    f"{self.source}: {name}={quoted(value)} is not a positive number: "
                    f"give one such as {examples[name]!r}"
                )
        return [float(value) for value in values]

    def counts(self, why: str, **examples: int) -> list[int]:
        """Returns the values of these settings as whole numbers of at least 1; see `require`."""
        values = self.require(why, **examples)
        for name, value in zip(examples, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < LARGEST:
                raise UsageError(
                    f"{self.source}: {name}={quoted(value)} is not a whole number above 0: "
                    f"give one such as {examples[name]!r}"
                )
        return values

    def assume(self, name: str, value: Any, why: str) -> Any:
        """Returns the setting where a source has it; else `value`, and adds that to the assumptions."""
        known = self.get(name)
        if known is None:
            self.note(f"{name}={value!r}: {why}")
        return value if known is None else known

    def note(self, sentence: str) -> None:
        """Adds an assumption."""
        self.notes = (*self.notes, sentence)

    def note_raw_weights(self, contents: Any, average: Any) -> None:
        """Notes that a list `[model, optimizer, epoch, step, ema]` without averages gives its raw weights."""
        if isinstance(contents, list | tuple) and len(contents) > 4 and average is None:
            self.note("the raw weights are used: the file's fifth entry does not contain averaged weights")

    @contextlib.contextmanager
    def naming_file(self) -> Iterator[None]:
        """Puts the file's name in front of errors that are raised within it."""
        try:
            yield
        except UsageError as error:
            message = str(error)
            if message.startswith(self.source):
                raise
            raise UsageError(f"{self.source}: {message}") from error

    def refuse_unused(self, why: str, *names: str) -> None:
        """Raises `UsageError` for flags that have no effect on this network."""
        if unused := [name for name in names if name in self.flags]:
            such = ", ".join(f"{name}={quoted(self.flags[name])}" for name in unused)
            raise UsageError(f"{self.source}: {such} has no effect, because {why}: leave it out")


def same(a: Any, b: Any) -> bool:
    """Returns whether two plain values are equal; values of any other type equal nothing."""
    return (
        all(isinstance(value, bool | int | float | str) for value in (a, b))
        and isinstance(a, bool) == isinstance(b, bool)
        and a == b
    )


def attach(denoiser: nn.Module, **attributes: Any) -> None:
    """Sets attributes of a denoiser that its class does not declare: `quantization`, `shape`, `assumed`, `clip`, ..."""
    for name, value in attributes.items():
        setattr(denoiser, name, value)
