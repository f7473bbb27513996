"""What the scripts share that train a recipe and draw a paper's figure from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.objective import Objective
from ..shared.progress import Progress
from ..shared.sampler import Sampler
from ..shared.training import Trainer, Training
from ..shared.training.folder import writable, write_text
from .evaluation import SamplingRun, draw, judge_of
from .experiment import Experiment
from .images import ImageExperiment
from .report import table

SAMPLES = 500


def train_recipe(experiment: Experiment, data: Any, folder: Path, progress: Progress, *, resume: bool) -> Objective:
    """Trains one recipe into a folder, with pictures of samples on the way."""
    experiment = experiment.settled()
    torch.manual_seed(experiment.training.seed)
    name = Path(experiment.picture)

    def watch(average: Objective, step: int) -> None:
        few = draw(
            experiment,
            experiment.sampler(average.denoiser),
            data.shape,
            data.quantization,
            30,
            min(25, experiment.sampling_steps),
        )
        experiment.show(folder / f"{name.stem}-{step:06d}{name.suffix}", few.levels, data.quantization, columns=10)

    objective = experiment.objective(data.shape, data.quantization)
    # What these refuse must not show after an hour of training.
    experiment.sampler(objective.denoiser)
    experiment.code_length(objective.denoiser, data.quantization)
    trainer = Trainer(
        objective, experiment.training, folder=folder, experiment=experiment, progress=progress, watch=watch
    )
    return trainer.fit(experiment.batches(data), resume=resume)


def trained(experiment: Experiment, data: Any, folder: Path, progress: Progress) -> Objective:
    """The averaged objective of a recipe in a folder.

    As it lies there if it is finished, else trained, or trained to its end.
    """
    return train_recipe(experiment, data, folder, progress, resume=True)


def fitted(objective: Objective, training: Training, batches: Any, folder: Path, progress: Progress) -> Objective:
    """The averaged objective of a part that is no recipe of its own, such as a classifier.

    Loaded, resumed or trained.
    """
    torch.manual_seed(training.seed)
    return Trainer(objective, training, folder=folder, progress=progress).fit(batches, resume=True)


class Study:
    """A table of sampling runs, each measured against the training set by a classifier of real images.

    Args:
        experiment: the recipe.
        folder: where pictures and tables go.
        progress: how to report progress.
        samples: in each run.
    """

    def __init__(self, experiment: ImageExperiment, folder: Path, progress: Progress, samples: int = SAMPLES) -> None:
        self.experiment, self.folder, self.progress = experiment, writable(folder), progress
        self.images, test = experiment.data.load("train", progress), experiment.data.load("test", progress)
        for images in (self.images, test):
            if images.label is None:
                raise UsageError(
                    f"{experiment.data.name} has {images.unlabelled}, and samples are measured by a classifier: take a set with labels"
                )
        quick = experiment.training.steps <= 100  # a smoke run
        self.judge, self.samples = judge_of(self.images, progress, 40 if quick else 600), 20 if quick else samples
        self.real = self.judge.quality(test.k)
        self.accuracy = self.judge.accuracy(test)

    def run(
        self, sampler: Sampler, steps: int | Tensor, recipe: ImageExperiment | None = None
    ) -> tuple[SamplingRun, dict[str, float]]:
        """Draws samples, each class asked in turn where the recipe has labels, and measures them."""
        drawn = draw(
            recipe or self.experiment,
            sampler,
            self.images.shape,
            self.images.quantization,
            self.samples,
            steps,
            progress=self.progress,
        )
        quality = self.judge.quality(drawn.levels)
        measured = {"frechet": quality.frechet, "sure": quality.sure, "evaluations": float(drawn.evaluations)}
        if (recipe or self.experiment).data.classes is not None:
            measured["agreement"] = self.judge.agreement(drawn.levels, torch.arange(self.samples) % self.judge.classes)
        return drawn, measured

    def write(
        self, title: str, text: str, head: Sequence[str], rows: Sequence[Sequence[str]], results: Mapping[str, Any]
    ) -> Path:
        """Writes `results.json` and `table.md`, and returns the latter."""
        write_text(self.folder / "results.json", json.dumps(results, indent=1))
        measured = (
            f"{self.samples} samples a row, against the training set of {len(self.images.k)}; the Fréchet distance is of the features of a "
            f"small classifier (accuracy {self.accuracy:.3f} on held-out images), for which {self.real.count} held-out images are at "
            f"{self.real.frechet:.2f}. Distances compare within this page only."
        )
        page = f"# {title}\n\n{text}\n\n![{title}](figure.png)\n\n{table(list(head), [list(r) for r in rows])}\n\n{measured}\n"
        return write_text(self.folder / "table.md", page)


class Sweep:
    """Sampling runs as lines of Fréchet distance by evaluations, rows of a table, and panels of samples.

    Args:
        study: runs and measures them.
        head: what the first cells of a row are.
    """

    def __init__(self, study: Study, *head: str) -> None:
        self.study, self.head = (
            study,
            [*head, "evaluations", "Fréchet distance", "sure", "agreement with the asked label"],
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
        recipe: ImageExperiment | None = None,
        shown: bool = True,
        part: str = "",
        **more: float,
    ) -> None:
        """One run: a point of a line, in the figure's part of that name, and a row that starts with `cells`; with
        samples if it is shown.

        `more` goes into the results.
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
        """Writes the figure, the samples, `results.json` and `table.md`, and returns the last."""
        from ..shared.figures import Lines, save_lines, save_panels

        axes = "network evaluations for each sample", "Fréchet distance"
        save_lines(
            self.study.folder / "figure.png",
            {part or title: Lines(*axes, lines, True, True) for part, lines in self.lines.items()},
        )
        save_panels(self.study.folder / "samples.png", self.panels, columns=10, across=across)
        return self.study.write(title, f"{text}\n\n![samples](samples.png)", self.head, self.rows, self.results)
