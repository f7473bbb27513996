"""Training of recipes, and tables of sampling runs, for the figures of the papers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from ..shared.data import Batches
from ..shared.distributed import is_main
from ..shared.errors import UsageError
from ..shared.metrics.judge import judge_of
from ..shared.objective import Objective
from ..shared.progress import Progress
from ..shared.sampler import Sampler
from ..shared.training import Trainer, Training
from ..shared.training.folder import writable, write_text
from ..shared.training.held_out import HeldOut
from .evaluation import SamplingRun, bits_per_dim, draw
from .recipe import D, Recipe
from .report import table

if TYPE_CHECKING:
    from ..shared.figures import Lines

SAMPLES, SHOWN = 500, 40
Fitted = TypeVar("Fitted", bound=Objective)
COLUMNS = {
    "evaluations": ("evaluations", ".0f"),
    "frechet": ("Fréchet distance", ".2f"),
    "sure": ("sure", ".3f"),
    "agreement": ("agreement with the requested label", ".3f"),
}
"""Measured numbers in tables: heading and format, by their names in the results."""


def train_recipe(
    recipe: Recipe[D],
    data: Any,
    folder: Path,
    progress: Progress,
    *,
    resume: bool,
    say: Callable[[str], Any] | None = None,
) -> Objective[D]:
    """Trains one recipe into a folder and returns its averaged objective; writes samples during training.

    `say` receives one line with an estimate of the whole run after twenty steps, and one if there are no held-out data.
    """
    recipe = recipe.self_contained()
    torch.manual_seed(recipe.training.seed)
    name = Path(recipe.picture)

    def watch(average: Objective[Any], step: int) -> Path | None:
        if not is_main():
            return None
        few = draw(
            recipe,
            recipe.sampler_of(average.denoiser),
            data.shape,
            data.quantization,
            30,
            min(25, recipe.sampling_steps),
        )
        path = folder / f"{name.stem}-{step:06d}{name.suffix}"
        recipe.show(path, few.levels, data.quantization, 10, recipe.data.captions(torch.arange(30)))
        return path if path.suffix == ".png" else None

    objective = recipe.objective(data.shape, data.quantization)
    recipe.check(objective, data.shape, data.quantization)
    trainer = Trainer(
        objective,
        recipe.training,
        folder=folder,
        experiment=recipe,
        progress=progress,
        watch=watch,
        held_out=held_out_of(recipe, progress, say),
        say=say,
    )
    if say is not None and trainer.compute.reason:
        say(trainer.compute.reason)
    return cast("Objective[D]", trainer.fit(recipe.batches(data), resume=resume))


def held_out_of(recipe: Recipe, progress: Progress, say: Callable[[str], Any] | None = None) -> HeldOut | None:
    """Returns the held-out examples of a recipe, for their loss in the log; None where it is not asked for.

    Data without a split for it give None too, with a line to `say`.
    """
    if not recipe.training.held_out_every:
        return None
    try:
        test = recipe.load("test", progress)
        count = len(test.k) if hasattr(test, "k") else len(test.windows)
        few = replace(recipe, data=replace(recipe.data, batch=min(recipe.data.batch, count)))
        return HeldOut(cast(Batches, few.batches(test)), recipe.training.held_out_count, recipe.training.seed)
    except UsageError as error:
        if say is not None and is_main():
            say(f"no loss on held-out examples in the log: {error}")
        return None


def trained(recipe: Recipe[D], data: Any, folder: Path, progress: Progress) -> Objective[D]:
    """Returns the averaged objective of a recipe in a folder: loaded if it is finished, else trained or resumed."""
    return train_recipe(recipe, data, folder, progress, resume=True)


def fitted(
    objective: Fitted,
    training: Training,
    batches: Any,
    folder: Path,
    progress: Progress,
    experiment: Recipe | None = None,
) -> Fitted:
    """Returns the averaged objective of a part of a recipe, such as a classifier: loaded, resumed or trained.

    `experiment` is the recipe by which `unnoise sample` and `unnoise evaluate` read the run; None for a part that is
    not a model of the data.
    """
    torch.manual_seed(training.seed)
    trainer = Trainer(objective, training, folder=folder, experiment=experiment, progress=progress)
    return cast(Fitted, trainer.fit(batches, resume=True))


class Study:
    """Sampling runs of one data set, each measured against the training set by a classifier of real images.

    Args:
        recipe: the recipe.
        folder: the folder for pictures and tables.
        progress: how to report progress.
        samples: the number of samples in each run.
    """

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress, samples: int = SAMPLES) -> None:
        self.recipe, self.folder, self.progress = recipe, writable(folder), progress
        self.images, self.test = recipe.load("train", progress), recipe.load("test", progress)
        for images in (self.images, self.test):
            if images.label is None:
                raise UsageError(
                    f"{recipe.data.name} has {images.no_labels}, and a classifier measures the samples: take a "
                    "set with labels"
                )
        quick = recipe.training.steps <= 100  # a smoke run
        self.judge, self.samples = judge_of(self.images, progress, 40 if quick else 600), 20 if quick else samples
        self.real = self.judge.quality(self.test.k)
        self.accuracy = self.judge.accuracy(self.test)

    def trained(self, recipe: Recipe[D] | None = None, name: str = "") -> D:
        """Returns the denoiser of the recipe, or of a variant of it in a folder of that name, trained where needed."""
        return trained(recipe or self.recipe, self.images, self.folder / name, self.progress).denoiser

    def run(
        self, sampler: Sampler, steps: int | Tensor, recipe: Recipe | None = None
    ) -> tuple[SamplingRun, dict[str, float]]:
        """Draws samples, of each class in turn if the recipe has labels, and measures them."""
        drawn = draw(
            recipe or self.recipe,
            sampler,
            self.images.shape,
            self.images.quantization,
            self.samples,
            steps,
            progress=self.progress,
        )
        quality = self.judge.quality(drawn.levels)
        measured = {"frechet": quality.frechet, "sure": quality.sure, "evaluations": float(drawn.evaluations)}
        if (recipe or self.recipe).classes is not None:
            measured["agreement"] = self.judge.agreement(drawn.levels, torch.arange(self.samples) % self.judge.classes)
        return drawn, measured

    def write(
        self, title: str, text: str, head: Sequence[str], rows: Sequence[Sequence[str]], results: Mapping[str, Any]
    ) -> Path:
        """Writes `results.json` and `table.md`, and returns the path of the table."""
        write_text(self.folder / "results.json", json.dumps(results, indent=1))
        measured = (
            f"Each row has {self.samples} samples, compared with the training set of {len(self.images.k)} images. The "
            "Fréchet distance is that of the features of a small classifier "
            f"(accuracy {self.accuracy:.3f} on held-out images), by which {self.real.count} held-out images have a "
            f'distance of {self.real.frechet:.2f}; "sure" is the share of samples that it assigns to a class with '
            "p > 0.8. Distances can be compared within this page only."
        )
        figures = table(list(head), [list(r) for r in rows])
        page = f"# {title}\n\n{text}\n\n![{title}](figure.png)\n\n{figures}\n\n{measured}\n"
        return write_text(self.folder / "table.md", page)

    def compare(self, variants: Mapping[str, Recipe], what: str, title: str, text: str) -> Path:
        """Trains variants of the recipe, and writes bits/dim and sample quality of each; the figure is their samples.

        Args:
            variants: the variants by name; each is trained in a folder of its name, the recipe itself in that of the
                study.
            what: the heading of the column of names.
            title, text: title and text of the page.

        Returns:
            The path of the table.
        """
        sweep = Sweep(self, what, "bits/dim (bound)", measured=("frechet", "sure"))
        for name, recipe in variants.items():
            place = "" if recipe == self.recipe else name.replace(" + ", "-").replace(" ", "-").lower()
            denoiser = self.trained(recipe, place)
            bits, error = bits_per_dim(recipe, denoiser, self.test, progress=self.progress)
            sampler, grid = recipe.sampler_of(denoiser), recipe.grid(denoiser, recipe.sampling_steps)
            cells = (name, f"{bits:.3f} ± {error:.3f}")
            sweep.run("", cells, sampler, grid, recipe, name=name, bits_per_dim=bits, standard_error=error)
        return sweep.write(title, text, plots={})


@dataclass(frozen=True)
class Measured:
    """A sampling run of a sweep: its curve and plot, name, first cells of its row, numbers by name, and samples."""

    line: str
    part: str
    name: str
    cells: tuple[str, ...]
    numbers: dict[str, float]
    images: Tensor | None

    def cell(self, name: str) -> str:
        """Returns a number as text; "-" where it was not measured."""
        return format(self.numbers[name], COLUMNS.get(name, (name, ".2f"))[1]) if name in self.numbers else "-"


class Sweep:
    """Sampling runs, collected as curves of Fréchet distance by evaluations, table rows, and panels of samples.

    Args:
        study: runs and measures the samplers.
        head: the headings of the first columns.
        measured: the names of the numbers in the further columns, from `COLUMNS` or from `more` of the runs.

    Attributes:
        runs: the runs in their order.
        results: further numbers for `results.json`, by the name of a run or of a figure of their own.
    """

    def __init__(self, study: Study, *head: str, measured: Sequence[str] = tuple(COLUMNS)) -> None:
        self.study, self.head, self.measured = study, head, measured
        self.runs: list[Measured] = []
        self.results: dict[str, dict[str, float]] = {}

    def run(
        self,
        line: str,
        cells: Sequence[str],
        sampler: Sampler,
        steps: int | Tensor,
        recipe: Recipe | None = None,
        shown: bool = True,
        part: str = "",
        name: str = "",
        **more: float,
    ) -> dict[str, float]:
        """Adds one run: a point of a curve, a row of the table and, if `shown`, a panel of samples.

        Args:
            line: the name of the curve.
            cells: the first cells of the row.
            sampler, steps: the run.
            recipe: the recipe of the conditions; None for that of the study.
            shown: whether its samples are shown.
            part: the name of the plot that has the curve.
            name: the name of the run in the results and above its samples; "" for its cells and evaluations.
            more: further numbers for the results, by name.

        Returns:
            The numbers of the run by name, to which others can be added.
        """
        drawn, measured = self.study.run(sampler, steps, recipe)
        images = drawn.levels[:SHOWN].float() / (self.study.images.quantization.levels - 1) if shown else None
        name = name or ", ".join([*cells, f"{drawn.evaluations} evaluations"])
        self.runs.append(Measured(line, part, name, tuple(cells), measured | more, images))
        return self.runs[-1].numbers

    def curves(self, x: str, y: str, part: str = "") -> dict[str, tuple[list[float], list[float]]]:
        """Returns the curves of a plot, one number of each run by another, by their names."""
        lines: dict[str, tuple[list[float], list[float]]] = {}
        for run in (run for run in self.runs if run.part == part):
            xs, ys = lines.setdefault(run.line, ([], []))
            xs.append(run.numbers[x])
            ys.append(run.numbers[y])
        return lines

    def trade_off(self, strength: str) -> dict[str, Lines]:
        """Returns plots of the agreement with the label and of the Fréchet distance by a strength, and of both."""
        from ..shared.figures import Lines

        fidelity, distance = COLUMNS["agreement"][0], COLUMNS["frechet"][0]
        by_strength = self.curves(strength, "agreement")
        names = {line: [f"{x:g}" for x in xs] for line, (xs, _) in by_strength.items()}
        return {
            "fidelity": Lines(strength, fidelity, by_strength),
            "distance": Lines(strength, distance, self.curves(strength, "frechet")),
            f"trade-off, by {strength}": Lines(fidelity, distance, self.curves("agreement", "frechet"), points=names),
        }

    def write(self, title: str, text: str, across: int = 3, plots: Mapping[str, Lines] | None = None) -> Path:
        """Writes the figure, the samples, `results.json` and `table.md`, and returns the path of the table.

        Args:
            title, text: title and text of the page.
            across: the number of panels of samples in a row.
            plots: the plots of the figure, by their titles; None for the Fréchet distance by evaluations, and an empty
                dict for the samples as the figure.
        """
        from ..shared.figures import Lines, save_lines, save_panels

        if plots is None:
            axes = "network evaluations for each sample", "Fréchet distance"
            parts = dict.fromkeys(run.part for run in self.runs)
            plots = {
                part or title: Lines(*axes, self.curves("evaluations", "frechet", part), True, True) for part in parts
            }
        if plots:
            save_lines(self.study.folder / "figure.png", plots)
            text = f"{text}\n\n![samples](samples.png)"
        panels = {run.name: run.images for run in self.runs if run.images is not None}
        save_panels(self.study.folder / ("samples.png" if plots else "figure.png"), panels, columns=10, across=across)
        head = [*self.head, *(COLUMNS.get(name, (name,))[0] for name in self.measured)]
        rows = [[*run.cells, *(run.cell(name) for name in self.measured)] for run in self.runs]
        results = {run.name: run.numbers for run in self.runs} | self.results
        return self.study.write(title, text, head, rows, results)
