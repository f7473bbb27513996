"""A run's folder: everything that a run writes lies below it, and one process at a time writes there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any
from warnings import warn

import torch

from ..errors import Notice, UsageError, shown

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None  # type: ignore[assignment]


def writable(folder: Path | str) -> Path:
    """Creates the folder if need be and checks that it can be written.

    Raises:
        UsageError: where it cannot.
    """
    try:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, TypeError, ValueError) as error:  # what is no path, too
        raise UsageError(
            f"cannot write to the folder {shown(folder, 200)} ({said(error)}): choose another with --out"
        ) from error
    return folder


def said(error: Exception) -> str:
    """An error's own words, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within it an error of the disk becomes one line that names what is written.

    Raises:
        UsageError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path} ({said(error)}): make room, or choose another place") from error


def write_text(path: Path, text: str) -> Path:
    """Writes a file in one rename, so that a full disk leaves the one before as it was.

    Raises:
        UsageError: where it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    with naming(path):
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    return path


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UsageError: where there is none, with the remedy.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({said(error)}): {remedy}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no JSON object: {remedy}")
    return found


def refuse_several() -> None:
    """Refuses what a launcher such as torchrun starts as one of several processes.

    Raises:
        UsageError: with what to do.
    """
    told = os.environ.get("WORLD_SIZE", "")
    size = int(told) if told.isdecimal() else 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        size = max(size, torch.distributed.get_world_size())
    if size > 1:
        raise UsageError(
            f"this is one of {size} processes (WORLD_SIZE), and each would train and write the same run: start one, without torchrun or "
            "with --nproc-per-node 1"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it no other process or thread enters the block for the same folder. The system lifts the lock of a process
    that dies.

    A system without such locks, and a file system without them, goes without.

    Raises:
        UsageError: where another is in the block.
    """
    if fcntl is None:
        yield
        return
    path = folder / ".lock"
    try:
        file = path.open("a")
        while not held(file.fileno(), path):
            file.close()  # of a lock that was given back, and its file removed, in the meantime
            file = path.open("a")
    except BlockingIOError:
        file.close()
        raise UsageError(
            f"another process trains into {folder}: wait for it, end it, or choose another folder"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write to the folder {folder} ({said(error)}): choose another with --out") from error
    try:
        yield
    finally:
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                path.unlink()
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # children of a fork hold the file open, too
        file.close()


def held(descriptor: int, path: Path) -> bool:
    """Takes the lock of an open file; False where the file is no longer at `path`.

    Raises:
        BlockingIOError: where another holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


class Metrics:
    """Appends one JSON object a line to `metrics.jsonl`; lines beyond the step that a run resumes from are dropped.

    Lines that cannot be read are left out, and the file as it was is kept beside it.

    Raises:
        UsageError: where the file cannot be read or written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        lines, broken = parsed(self.path) if step else ([], 0)
        kept = [(line, values) for line, values in lines if values["step"] <= step]
        told = [values["seconds"] for _, values in kept if number(values.get("seconds"))]
        self.seconds = float(told[-1]) if told else 0.0
        try:
            if broken:
                copy = next(
                    p for n in count(1) if not (p := self.path.with_name(f"metrics.damaged-{n}.jsonl")).exists()
                )
                shutil.copyfile(self.path, copy)
                warn(
                    Notice(
                        f"{broken} lines of {self.path} cannot be read and are left out; the file as it was is kept in {copy}"
                    ),
                    stacklevel=4,
                )
            trimmed = self.path.with_suffix(".part")
            trimmed.write_bytes(b"".join(line + b"\n" for line, _ in kept))
            os.replace(trimmed, self.path)
        except OSError as error:
            raise UsageError(
                f"cannot write {self.path} ({said(error)}): move it away or make room, and go on with the run"
            ) from error

    def write(self, **values: Any) -> None:
        """Appends one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` that are objects with a number `step`; none if there is no such file.

    Raises:
        UsageError: where the file cannot be read.
    """
    return [values for _, values in parsed(path)[0]]


def curve(path: Path, ending: str) -> tuple[list[float], list[float]]:
    """Steps and values of the first name with that ending in a `metrics.jsonl`, as far as they can be read; none of
    them is a `Notice`.

    Raises:
        UsageError: where the file cannot be read.
    """
    lines = read_metrics(path)
    name = next((key for line in lines for key in line if key.endswith(ending)), ending)
    points = [(line["step"], line[name]) for line in lines if number(line.get(name))]
    if not points:
        warn(Notice(f"{path} holds no {ending} that can be read, and its curve is left out"), stacklevel=2)
    return [x for x, _ in points], [y for _, y in points]


def parsed(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], int]:
    """The lines that can be read, as they stand and as objects, and how many cannot, but for a last one that a crash
    left half-written.

    Raises:
        UsageError: where the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise UsageError(f"cannot read {path} ({said(error)}): move it away, and go on with the run") from error
    found = [(line, read) for line in lines if (read := values_of(line)) is not None]
    return found, sum(bool(line.strip()) for line in lines[:-1]) - len(found) + (values_of(lines[-1]) is not None)


def values_of(line: bytes) -> dict[str, Any] | None:
    """A line as an object with a number `step`, or None."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and number(values.get("step")) else None


def number(value: Any) -> bool:
    """Whether a value of JSON is a number that steps and seconds can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
