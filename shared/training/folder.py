"""A run's folder: everything that a run writes lies below it, and one process at a time writes there."""

from __future__ import annotations

import errno
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
    """Creates the folder where it does not exist, checks that it can be written, and returns it.

    Raises:
        UsageError: where it cannot be written.
    """
    try:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, TypeError, ValueError) as error:  # TypeError, ValueError: not a path
        raise UsageError(
            f"cannot write to the folder {shown(folder, 200)} ({reason(error)}): choose another with --out"
        ) from error
    return folder


def reason(error: Exception) -> str:
    """Returns an error's own message in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
"""Errors of a disk without space, or with a limit that is reached."""


def remedy(error: OSError) -> str:
    """Returns what to do about a disk that cannot be written."""
    return "free disk space" if error.errno in FULL or error.errno is None else "make the folder writable"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the block an error of the disk becomes a `UsageError` of one line that names the file.

    Raises:
        UsageError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path} ({reason(error)}): free disk space, or choose another place") from error


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk, so that they outlive a power failure.

    Folders of systems that cannot do that are passed over.

    Raises:
        OSError: where the disk refuses a file, as when it is full.
    """
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except PermissionError:
        if not folder:
            raise
        return  # Windows does not open folders
    try:
        os.fsync(descriptor)
    except OSError:
        if not folder:
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> Path:
    """Writes a file in one rename, so that a full disk leaves the previous file intact.

    Raises:
        UsageError: where it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    with naming(path):
        try:
            part.write_text(text, encoding="utf-8")
            flush(part)
            os.replace(part, path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    return path


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        UsageError: where the file cannot be read or does not contain one; the message ends in `remedy`.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({reason(error)}): {remedy}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} does not contain a JSON object: {remedy}")
    return found


def refuse_several() -> None:
    """Refuses to run as one of several processes that a launcher such as torchrun starts.

    Raises:
        UsageError: with the remedy.
    """
    world_size = os.environ.get("WORLD_SIZE", "")
    size = int(world_size) if world_size.isdecimal() else 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        size = max(size, torch.distributed.get_world_size())
    if size > 1:
        raise UsageError(
            f"this is one of {size} processes (WORLD_SIZE), and each would train and write the same run: start one, "
            "without torchrun or with --nproc-per-node 1"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block no other process or thread can enter it for the same folder.

    The operating system releases the lock of a process that dies. On operating systems and file systems without such
    locks, the block is entered without one.

    Raises:
        UsageError: where another process is in the block.
    """
    if fcntl is None:
        yield
        return
    path = folder / ".lock"
    try:
        file = path.open("a")
        while not take_lock(file.fileno(), path):
            file.close()  # of a lock that was released, and its file removed, in the meantime
            file = path.open("a")
    except BlockingIOError:
        file.close()
        raise UsageError(
            f"another process trains into {folder}: wait for it, end it, or choose another folder"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write to the folder {folder} ({reason(error)}): choose another with --out") from error
    try:
        yield
    finally:
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                path.unlink()
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # children of a fork hold the file open, too
        file.close()


def take_lock(descriptor: int, path: Path) -> bool:
    """Takes the lock of an open file, and returns False where the file is no longer at `path`.

    Raises:
        BlockingIOError: where another process has it.
    """
    assert fcntl is not None, "locked() returns early without it"
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

    Lines that cannot be read are left out, and a copy of the unchanged file is kept beside it.

    Args:
        folder: the run's folder.
        step: the step that the run resumes from; 0 begins an empty file.

    Attributes:
        seconds: duration of the run so far, from the last line that is kept; 0 without one.

    Raises:
        UsageError: where the file cannot be read or written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        lines, broken = parse_lines(self.path) if step else ([], 0)
        kept = [(line, values) for line, values in lines if values["step"] <= step]
        seconds = [values["seconds"] for _, values in kept if is_number(values.get("seconds"))]
        self.seconds = float(seconds[-1]) if seconds else 0.0
        try:
            if broken:
                copy = next(
                    p for n in count(1) if not (p := self.path.with_name(f"metrics.damaged-{n}.jsonl")).exists()
                )
                shutil.copyfile(self.path, copy)
                warn(
                    Notice(
                        f"{broken} lines of {self.path} cannot be read and are left out; the unchanged file is kept as "
                        f"{copy}"
                    ),
                    stacklevel=4,
                )
            trimmed = self.path.with_suffix(".part")
            trimmed.write_bytes(b"".join(line + b"\n" for line, _ in kept))
            flush(trimmed)
            os.replace(trimmed, self.path)
        except OSError as error:
            raise UsageError(
                f"cannot write {self.path} ({reason(error)}): move it away or free disk space, and resume the run"
            ) from error

    def write(self, **values: Any) -> None:
        """Appends one line with these values by name."""
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl` that are objects with a number `step`; an empty list without such a file.

    Raises:
        UsageError: where the file cannot be read.
    """
    return [values for _, values in parse_lines(path)[0]]


def curve(path: Path, ending: str) -> tuple[list[float], list[float]]:
    """Returns the steps and values of a quantity in a `metrics.jsonl`, such as of the ending `loss`.

    It is the first whose name has this ending. If no name has it, both lists are empty, and a `Notice` is issued as a
    warning.

    Raises:
        UsageError: where the file cannot be read.
    """
    lines = read_metrics(path)
    name = next((key for line in lines for key in line if key.endswith(ending)), ending)
    points = [(line["step"], line[name]) for line in lines if is_number(line.get(name))]
    if not points:
        warn(Notice(f"{path} has no {ending} that can be read, and its curve is left out"), stacklevel=2)
    return [x for x, _ in points], [y for _, y in points]


def parse_lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], int]:
    """Returns the readable lines of a JSON lines file, a list of pairs (bytes, object), and the number of the others.

    Readable is a JSON object with a number `step`. Blank lines are skipped, and so is a last line without a line break
    that cannot be read, as a crash in the middle of writing leaves: it is in neither result. A file that does not exist
    gives `[], 0`.

    Raises:
        UsageError: where the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise UsageError(f"cannot read {path} ({reason(error)}): move it away, and resume the run") from error
    found = [(line, read) for line in lines if (read := parse_line(line)) is not None]
    return found, sum(bool(line.strip()) for line in lines[:-1]) - len(found) + (parse_line(lines[-1]) is not None)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Returns a line as an object with a number `step`, or None."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and is_number(values.get("step")) else None


def is_number(value: Any) -> bool:
    """Returns whether a value of JSON is a number of the size of steps and seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
