"""The exceptions of bad input and of stopped training, and the warning category of this package."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class UsageError(ValueError):
    """Raised for bad input; its message is one line that names the value and the remedy.

    The command line prints it without a traceback.
    """


class Notice(UserWarning):
    """A warning about something that does not stop the program, such as a run that is resumed with other settings.

    The command line prints it as one line.
    """


class Interrupted(KeyboardInterrupt):
    """Raised where training was asked to stop, after the current step and its checkpoint.

    Attributes:
        step: number of steps that were done.
        folder: the run's folder; None if nothing is saved.
        unsaved: why there is no checkpoint of that step; an empty text if there is one.
    """

    def __init__(self, step: int, folder: Path | None, unsaved: str = "") -> None:
        super().__init__(
            f"stopped after step {step}{f' without a checkpoint of it, because {unsaved}' * bool(unsaved)}"
        )
        self.step, self.folder, self.unsaved = step, folder, unsaved


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns `did you mean NAME? ` with the name that is nearest to an unknown one, or an empty text."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {near[0]}? " if near else ""


def shown(value: Any, most: int = 80) -> str:
    """Returns a value as one line of text for a message, cut after `most` characters."""
    try:
        text = " ".join(str(value).split())
    except ValueError:  # an int of thousands of digits
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= most else f"{text[: most - 3]}..."


@contextmanager
def notices(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block, passes the text of each `Notice` to the function `say`; other warnings are shown as before."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, kind: type[Warning], *at: Any) -> None:
            say(str(message)) if issubclass(kind, Notice) else shown(message, kind, *at)

        warnings.showwarning = show
        yield
