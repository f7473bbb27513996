"""The command `unnoise doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from ...shared.errors import UsageError
from ...shared.progress import bar
from ..doctor import CHECKS, Run, report
from ..model_checks import model_checks
from .arguments import Modules
from .sampling import data_of, folder_of, load, run_of


@dataclass(frozen=True)
class Doctor:
    """Reads a run, and says in a line each what looks wrong and what to try, with the figure.

    Looks at its log: loss, gradients, learning rate, held-out loss, waiting for data, use of the device. Looks at its
    newest checkpoint: numbers that are not finite, age of the averaged weights, effect of the conditions, classes
    without training examples, and the color of samples against that of the data.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run, such as runs/demo/ddpm, or of one of its checkpoints."""
    count: int = 64
    """Number of samples to draw, whose color is compared with that of the data; 0 for none."""
    data: str | None = None
    """Data of the run, where they have moved since training.
    A bundled set, a folder or a set on the Hugging Face Hub."""
    seed: int = 0
    """Seed of the samples, a whole number."""
    module: Modules = ()

    def execute(self) -> None:
        """Prints the report."""
        print(examined(self.run, self.count, self.data, self.seed))


def examined(run: Path, count: int, data: str | None, seed: int) -> str:
    """Returns the report on a run.

    Raises:
        UsageError: for another number of samples than 0 or at least 2, and a run that cannot be loaded.
    """
    if count < 0 or count == 1:
        raise UsageError(f"count={count}: give at least 2 samples, or 0 for none")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint, notes = load(run, device=device), []
    found = Run.of(folder_of(run), checkpoint)
    checks = [check for examine in CHECKS if (check := examine(found)) is not None]
    if not found.lines:
        notes.append(f"the log, because {found.folder / 'metrics.jsonl'} has no lines")
    if checks[0].wrong:
        notes.append("the model, because its weights are not finite")
        return report(str(run), checks, notes)
    try:
        recipe = run_of(checkpoint)
        recipe = recipe if data is None else recipe.with_data(data)
        quantization, shape = data_of(checkpoint, run)
        examples = recipe.load("train", bar)
    except UsageError as error:
        notes.append(f"the model on its data, because {error}")
        return report(str(run), checks, notes)
    denoiser = checkpoint.average.denoiser
    checks += model_checks(recipe, denoiser, quantization, shape, examples, count=count, seed=seed, progress=bar)
    if not count:
        notes.append("the color of samples, because of --count 0")
    return report(str(run), checks, notes)
