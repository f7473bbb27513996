"""The commands that take no recipe and no run of this package: import, export and the lists."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ...shared.errors import UsageError
from ...shared.training.checkpoint import list_checkpoints, newest
from ...shared.training.parts import PARTS
from ...shared.training.saving import consolidate
from ..catalog import key_of
from ..categorical_parts import CATEGORICAL
from ..gaussian_parts import GAUSSIAN
from ..pretrained.exporting import Flags, bring, send
from ..program import program
from .arguments import UNNAMED
from .recipe_options import signature_text


@dataclass(frozen=True)
class Parts:
    """Lists the parts that options of recipes take, with their arguments, by kind.

    A part is written as its name with those arguments that differ from their defaults, as in `min-snr(gamma=3)`.
    Capitals, hyphens and underscores do not matter. A part of your own is FILE.py:NAME.
    """

    kind: tyro.conf.Positional[str] = ""
    """Kind of part, such as Schedule, Sampler or Transition, or a part such as ddim; empty for all."""

    def execute(self) -> None:
        """Prints the parts."""
        kinds = {kind: c for c in (GAUSSIAN, CATEGORICAL) for kind in c.kinds}
        names = {key_of(name) for catalog in (GAUSSIAN, CATEGORICAL) for of in catalog.kinds.values() for name in of}
        wanted = key_of(self.kind)
        if wanted and wanted not in names | {kind.lower() for kind in kinds}:
            raise UsageError(f"there is no kind and no part {self.kind}: choose from the kinds {', '.join(kinds)}")
        for family, catalog in {"Gaussian": GAUSSIAN, "categorical": CATEGORICAL}.items():
            for kind, parts in catalog.kinds.items():
                chosen = [p for name, p in parts.items() if wanted in ("", kind.lower(), key_of(name))]
                if chosen:
                    print(f"{kind} ({family} recipes)")
                    for part in chosen:
                        about = "" if part is None else (getattr(part, "__doc__", None) or "").strip().splitlines()
                        print(f"  {signature_text(part)}\n      {about[0] if about else ''}")


@dataclass(frozen=True)
class PlotSchedules:
    """Draws all noise schedules: alpha-bar, log-SNR and beta over time."""

    out: Path = Path("schedules.png")
    """File to write the picture to."""
    steps: int = 1000
    """Number of steps of the tables of betas."""

    def execute(self) -> None:
        """Writes the picture."""
        from ..studies.schedules import plot
        from .outputs import output_path

        print(f"written to {plot(output_path(self.out, ('.png', '.jpg', '.webp')), self.steps)}")


@dataclass(frozen=True)
class Consolidate:
    """Puts the checkpoints of a run with divided weights together to one file each.

    Runs with --training.parallel sharded write a file for each process, and one at their end. Every command reads both;
    one file is easier to copy, and other programs read it.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run, such as runs/imagenet64, or of one checkpoint."""

    def execute(self) -> None:
        """Puts the checkpoints together, and prints their files."""
        folder = newest(self.run)
        folders = [folder] if folder == self.run else list_checkpoints(self.run / "checkpoints")
        for one in folders:
            divided = (one / PARTS).is_dir()
            consolidate(one)
            print(f"{one / 'tensors.safetensors'}{'' if divided else ' (was one file already)'}")


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
    flags: Annotated[Flags, UNNAMED] = field(default_factory=Flags)

    def execute(self) -> None:
        """Imports the checkpoint."""
        report = bring(self.file, self.out, self.flags, self.data, self.tokenizer)
        for key, value in report.about.items():
            print(f"{key:12} {value}")
        for line in report.assumed:
            print(f"{'assumed':12} {line}")
        next_ = report.usage.format(unnoise=program(), run=self.out, data="" if self.data else " --data NAME")
        print(f"written to {self.out}/; next: {next_}")


@dataclass(frozen=True)
class Export:
    """Converts a run, with its averaged weights, or a pretrained checkpoint to a folder of the diffusers library.

    `diffusers.DDPMPipeline.from_pretrained` opens the folder.
    """

    file: tyro.conf.Positional[str]
    """Folder of the run, or a file, folder or name that `unnoise import` reads."""
    out: tyro.conf.Positional[Path]
    """The new folder, such as exported."""
    flags: Annotated[Flags, UNNAMED] = field(default_factory=Flags)

    def execute(self) -> None:
        """Exports the run."""
        for line in send(self.file, self.out, self.flags):
            print(f"{'assumed':12} {line}")
        print(f'written to {self.out}/: diffusers.DDPMPipeline.from_pretrained("{self.out}") opens it')
