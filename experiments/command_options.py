"""The options of the commands as dataclasses, and how they are read from the command line."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..shared.errors import UsageError
from ..shared.random import whole_seed
from .import_export import Flags


@dataclass(frozen=True)
class Sample:
    """Draws samples of a trained run and writes them as one picture, or as one text file.

    The samples depend on the seed, and not on how many are drawn at a time.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run, such as runs/demo/ddpm, or of one of its checkpoints."""
    out: Path | None = None
    """File to write the samples to; None writes images to samples.png and text to samples.txt."""
    count: int = 64
    """Number of samples."""
    steps: str | None = None
    """Sampling steps, such as 50; None takes those of the recipe.
    Models with a table of steps also take ddim50, quad50, trailing50, or numbers in sections, such as 90,60,60."""
    seed: int = 0
    """Seed of the samples, a whole number."""

    def __post_init__(self) -> None:
        whole_seed(self.seed)


@dataclass(frozen=True)
class Schedules:
    """Draws all noise schedules: alpha-bar, log-SNR and beta over time."""

    out: Path = Path("schedules.png")
    """File to write the picture to."""
    steps: int = 1000
    """Number of steps of the tables of betas."""


@dataclass(frozen=True)
class Evaluate:
    """Measures the code length and the sample quality of a trained run on held-out data.

    Writes evaluation.json to the folder of the run.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run, such as runs/demo/ddpm."""
    data: str | None = None
    """Data to evaluate on: a bundled set, a folder or a set on the Hugging Face Hub; None takes those of the run.
    Needed for an imported checkpoint, and for data that have moved since training."""
    count: int | None = None
    """Number of samples to draw and of held-out examples to code, such as 100; None takes all held-out examples."""
    steps: str | None = None
    """Sampling steps, written as for `unnoise sample`, such as 50; None takes the steps of the recipe."""
    seed: int = 0
    """Seed of the samples and of the times of the bound, a whole number."""

    def __post_init__(self) -> None:
        whole_seed(self.seed)


@dataclass(frozen=True)
class Import:
    """Converts a pretrained checkpoint to a run for `unnoise sample` and `unnoise evaluate`.

    Recognizes files of DDPM, improved-diffusion, guided-diffusion, score_sde, NCSNv2, EDM, MDLM and SEDD by their
    contents, and folders of diffusers. Options are needed where neither the file nor its published name determines the
    network and its training: an error then names the missing ones. Assumptions are printed. No code in a file is run.
    """

    file: tyro.conf.Positional[str]
    """A file, a folder, or a name on the Hugging Face Hub such as google/ddpm-cifar10-32 or owner/name/file.pth."""
    out: tyro.conf.Positional[Path]
    """Folder of the new run, such as runs/imported."""
    data: str | None = None
    """Data for `unnoise evaluate`: a bundled set, a folder or a set on the Hugging Face Hub."""
    tokenizer: Path | None = None
    """Path of the tokenizer.json of a model of text; without it, samples are written as token ids."""
    flags: Annotated[Flags, tyro.conf.arg(name="")] = field(default_factory=Flags)


@dataclass(frozen=True)
class Export:
    """Converts a run, with its averaged weights, or a pretrained checkpoint to a folder of the diffusers library.

    `diffusers.DDPMPipeline.from_pretrained` opens the folder.
    """

    run: tyro.conf.Positional[str]
    """Folder of the run, or a file, folder or name that `unnoise import` reads."""
    out: tyro.conf.Positional[Path]
    """The new folder, such as exported."""
    flags: Annotated[Flags, tyro.conf.arg(name="")] = field(default_factory=Flags)


def parse(cls: type, arguments: list[str], command: str) -> Any:
    """Returns a dataclass from options; an error of tyro becomes one line."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(cls, args=arguments, prog=f"unnoise {command}")
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{condensed(message.getvalue())} (`unnoise {command} --help` lists the options)") from None


def condensed(box: str) -> str:
    """Returns the message of an error box of tyro in one line."""
    lines: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m|\[/?bold\]", "", box).splitlines():
        text = line.strip("│ \t")
        if text.startswith(("Argument helptext", "For full helptext")):
            break
        if lines and lines[-1].startswith("Perhaps you meant"):
            lines[-1] = f"({lines[-1].lower()} {text.split()[0]})"
            break
        if text and text[0] not in "╭╰─-":
            lines.append(text)
    text = " ".join(lines) or "the options cannot be read"
    if wrong := re.search(r"Error parsing (\S+): no type matching (.*) could be instantiated from \[(.*?)\]", text):
        takes = re.sub(r"[{}]", "", wrong[2]).replace("|", " or ").replace("INT INT", "two whole numbers such as 8 8")
        text = f"{wrong[1]} takes {takes.replace('INT', 'a whole number')}, not {wrong[3]}"
    return text
