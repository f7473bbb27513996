"""Training of recipes, and tables of sampling runs, for the figures of the papers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.objective import Objective
from ..shared.progress import Progress
from ..shared.sampler import Sampler
from ..shared.training import Trainer, Training
from ..shared.training.folder import writable, write_text
from .evaluation import SamplingRun, draw, judge_of
from .recipe import D, Recipe
from .report import table

SAMPLES = 500
Part = TypeVar("Part", bound=Objective)


def train_recipe(recipe: Recipe[D], data: Any, folder: Path, progress: Progress, *, resume: bool) -> Objective[D]:
    """Trains one recipe into a folder and returns its averaged objective; writes samples during training."""
    recipe = recipe.self_contained()
    torch.manual_seed(recipe.training.seed)
    name = Path(recipe.picture)

    def watch(average: Objective[Any], step: int) -> None:
        few = draw(
            recipe,
            recipe.sampler_of(average.denoiser),
            data.shape,
            data.quantization,
            30,
            min(25, recipe.sampling_steps),
        )
        recipe.show(folder / f"{name.stem}-{step:06d}{name.suffix}", few.levels, data.quantization, columns=10)

    objective = recipe.objective(data.shape, data.quantization)
    recipe.check(objective.denoiser, data.quantization)
    trainer = Trainer(objective, recipe.training, folder=folder, experiment=recipe, progress=progress, watch=watch)
    return cast("Objective[D]", trainer.fit(recipe.batches(data), resume=resume))


def trained(recipe: Recipe[D], data: Any, folder: Path, progress: Progress) -> Objective[D]:
    """Returns the averaged objective of a recipe in a folder: loaded if it is finished, else trained or resumed."""
    return train_recipe(recipe, data, folder, progress, resume=True)


def fitted(objective: Part, training: Training, batches: Any, folder: Path, progress: Progress) -> Part:
    """Returns the averaged objective of a part of a recipe, such as a classifier: loaded, resumed or trained."""
    torch.manual_seed(training.seed)
    return cast(Part, Trainer(objective, training, folder=folder, progress=progress).fit(batches, resume=True))


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
        self.images, test = recipe.data.load("train", progress), recipe.data.load("test", progress)
        for images in (self.images, test):
            if images.label is None:
                raise UsageError(
                    f"{recipe.data.name} has {images.no_labels}, and a classifier measures the samples: take a "
                    "set with labels"
                )
        quick = recipe.training.steps <= 100  # a smoke run
        self.judge, self.samples = judge_of(self.images, progress, 40 if quick else 600), 20 if quick else samples
        self.real = self.judge.quality(test.k)
        self.accuracy = self.judge.accuracy(test)

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


class Sweep:
    """Sampling runs, collected as curves of Fréchet distance by evaluations, table rows, and panels of samples.

    Args:
        study: runs and measures the samplers.
        head: the headings of the first columns.
    """

    def __init__(self, study: Study, *head: str) -> None:
        self.study, self.head = (
            study,
            [*head, "evaluations", "Fréchet distance", "sure", "agreement with the requested label"],
        )
        self.lines: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
        self.rows: list[list[str]] = []
        self.results: dict[str, dict[str, float]] = {}
        self.panels: dict[str, Tensor] = {}

    def run(
        self,
        line: str,
        cells: Sequence[str],
        sampler: Sampler,
        steps: int | Tensor,
        recipe: Recipe | None = None,
        shown: bool = True,
        part: str = "",
        **more: float,
    ) -> None:
        """Adds one run: a point of a curve, a row of the table and, if `shown`, a panel of samples.

        Args:
            line: the name of the curve.
            cells: the first cells of the row.
            sampler, steps: the run.
            recipe: the recipe of the conditions; None for that of the study.
            shown: whether its samples are shown.
            part: the name of the plot that has the curve.
            more: further numbers for the results, by name.
        """
        drawn, measured = self.study.run(sampler, steps, recipe)
        name = ", ".join([*cells, f"{drawn.evaluations} evaluations"])
        x, y = self.lines.setdefault(part, {}).setdefault(line, ([], []))
        x.append(drawn.evaluations)
        y.append(measured["frechet"])
        self.results[name] = measured | more
        agreement = f"{measured['agreement']:.3f}" if "agreement" in measured else "-"
        self.rows.append(
            [*cells, str(drawn.evaluations), f"{measured['frechet']:.2f}", f"{measured['sure']:.3f}", agreement]
        )
        if shown:
            self.panels[name] = drawn.levels[:40].float() / (self.study.images.quantization.levels - 1)

    def write(self, title: str, text: str, across: int) -> Path:
        """Writes the figure, the samples, `results.json` and `table.md`, and returns the path of the table."""
        from ..shared.figures import Lines, save_lines, save_panels

        axes = "network evaluations for each sample", "Fréchet distance"
        save_lines(
            self.study.folder / "figure.png",
            {part or title: Lines(*axes, lines, True, True) for part, lines in self.lines.items()},
        )
        save_panels(self.study.folder / "samples.png", self.panels, columns=10, across=across)
        return self.study.write(title, f"{text}\n\n![samples](samples.png)", self.head, self.rows, self.results)
