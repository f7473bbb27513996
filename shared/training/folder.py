"""A run's folder: everything that a run writes lies below it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import UsageError


def writable(folder: Path | str) -> Path:
    """Creates the folder if need be and checks that it can be written.

    Raises:
        UsageError: where it cannot.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to the folder {folder} ({error.strerror}): choose another with --out") from error
    return folder


class Metrics:
    """Appends one JSON object a line to `metrics.jsonl`; lines beyond the step that a run resumes from are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
        self.seconds = kept[-1]["seconds"] if kept else 0.0
        trimmed = self.path.with_suffix(".part")
        trimmed.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(trimmed, self.path)

    def write(self, **values: Any) -> None:
        """Appends one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without a last one that a crash left half-written; none if there is no such file."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
