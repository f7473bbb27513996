"""The sizes of the figures on a GPU, the sections of their page, and how their works take turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from unnoise.experiments import report
from unnoise.shared.cuda_graphs import Recorder

from . import contenders, timing


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements."""

    device: str = "cuda"
    images: contenders.Settings = field(default_factory=lambda: contenders.Settings(rounds=9, batch=128, width=128))
    """Network and batch of the images; the default is DDPM's network for CIFAR-10, 35.7 M parameters."""
    steps: int = 10
    """Steps of a turn."""
    compile: bool = True
    """Whether networks are also compiled."""
    sampled: tuple[int, ...] = (1, 16, 256)
    """Batches of samples."""
    tokens: tuple[int, int, int] = (8, 1024, 50257)
    """Batch, length and vocabulary of the categorical losses."""
    text: tuple[int, int, int] = (768, 12, 12)
    """Width, depth and heads of the network of text."""
    trained: tuple[str, ...] = ("--training.precision", "auto")
    """Further options of `unnoise train` for the digits and Fashion-MNIST."""
    digits: str = "ddpm-digits"
    """Recipe of the digits."""
    pictures: tuple[str, ...] = ("--training.steps", "2000", "--training.cooldown", "700", "--sampling-steps", "100")
    """Further options of `unnoise train ddpm-mnist` for Fashion-MNIST; the network of the digits for none."""
    measured: int | None = 1000
    """Held-out examples that are coded, and samples."""
    fashion: Path | None = None
    """Folder with train.parquet and test.parquet of Fashion-MNIST; None leaves it out."""


REHEARSAL = Sizes(
    device="cpu",
    images=contenders.Settings(rounds=1, batch=2, size=8, width=32, multipliers=(1, 1), blocks=1),
    steps=1,
    compile=False,
    sampled=(1, 2),
    tokens=(2, 8, 50),
    text=(16, 1, 2),
    trained=("--training.device", "cpu"),
    digits="ddpm-smoke",
    pictures=(),
    measured=8,
)
"""The smallest sizes, on the CPU: they show that everything runs, and measure nothing."""


class Section:
    """A section of the page, a file that is written again after each row.

    Args:
        path: the file.
        title: its heading.
        head: the heading of the columns.
        about: what the figures mean, in a paragraph.
    """

    def __init__(self, path: Path, title: str, head: list[str], about: str = "") -> None:
        self.path, self.title, self.head, self.about = path, title, head, about
        self.rows, self.notes = list[list[str]](), list[str]()

    def add(self, *cells: str) -> None:
        """Adds a row."""
        self.rows.append(list(cells))
        self.write()

    def note(self, text: str) -> None:
        """Adds a line below the table."""
        self.notes.append(text)
        self.write()

    def write(self) -> None:
        """Writes the section."""
        table = report.table(self.head, self.rows) if self.rows else ""
        parts = (f"## {self.title}", self.about, table, "\n".join(f"- {note}" for note in self.notes))
        self.path.write_text("\n\n".join(text for text in parts if text) + "\n")


def waited(device: torch.device) -> None:
    """Waits for a device to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def repeated(work: Callable[[], object], device: torch.device, times: int) -> Callable[[], None]:
    """Returns a function that calls `work` a number of times and waits for the device to finish."""

    def whole() -> None:
        for _ in range(times):
            work()
        waited(device)

    return whole


def in_turns(works: dict[str, Callable[[], None]], sizes: Sizes) -> dict[str, list[float]]:
    """Returns the seconds of each function in each round, after a round to warm up; each is the first in turn."""
    rounds = sizes.images.rounds
    clock = timing.processor_seconds if sizes.device == "cpu" else timing.wall_seconds
    times, _ = timing.turns(works, clock, timing.Effort(turn=0.0, seconds=0.0, least=rounds, most=rounds))
    return times


def spread(ratios: list[float]) -> list[str]:
    """Returns the median of ratios and their quartiles, as two cells."""
    if not ratios:
        return ["", ""]
    low, middle, high = timing.quartiles(ratios)
    return [f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]


class Calls(Recorder):
    """In place of CUDA graphs, for a rehearsal: the network is called again."""

    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return function
