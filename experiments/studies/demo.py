"""The demo: a DDPM, a D3PM and a score SDE with the same network, data and training, compared in the same units."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ...continuous import DDIM
from ...sde import VP, Langevin, PredictorCorrector, ProbabilityFlow, ReverseDiffusion
from ...shared.data import ImageDataset
from ...shared.denoiser import Denoiser
from ...shared.errors import UsageError
from ...shared.gaussian.denoiser import GaussianDenoiser
from ...shared.metrics.judge import Judge, SampleQuality, judge_of, labels_of, marginal_bits_per_dim
from ...shared.progress import Progress, bar
from ...shared.random import Streams
from ...shared.sampler import Sampler, device_of
from ...shared.training import Training
from ...shared.training.folder import curve, locked, read_object, writable, write_text
from ...shared.training.precision import Precision, precision_of
from .. import report
from ..code_lengths import Bound, Exact, TokenBound
from ..evaluation import SamplingRun, bits_per_dim, draw
from ..evaluation import cost as cost_of
from ..gaussian import GaussianRecipe
from ..papers import d3pm_images, ddpm, score_sde
from ..program import program
from ..recipe import Recipe
from ..reproduce import train_recipe

FAMILIES: dict[str, tuple[str, Callable[[], Recipe], Callable[[], Recipe]]] = {
    "ddpm": ("DDPM", ddpm.digits, ddpm.smoke),
    "d3pm": ("D3PM", d3pm_images.digits, d3pm_images.smoke),
    "score-sde": ("VP-SDE", score_sde.digits, score_sde.smoke),
}
SHORT: dict[str, Any] = {
    "steps": 800,
    "learning_rate": 3e-3,
    "warmup": 50,
    "cooldown": 480,
    "ema": 0.99,
    "precision": "auto",
    "watch_every": 200,
}
"""Training of each model, where it differs from the recipes: half of their steps, at a higher learning rate."""
CODES = {"ddpm": Bound(terms=25), "d3pm": TokenBound(terms=25)}
"""Bounds of a quarter of the steps of the chains, drawn for each digit: their noise is in the standard error."""


@dataclass(frozen=True)
class Demo:
    """Trains a DDPM, a D3PM and a VP score SDE on the bundled digits and writes runs/demo/report.html.

    This takes about 6 minutes on two cores.
    """

    out: Path = Path("runs/demo")
    """Folder for all results; an existing demo in it is kept under another name."""
    steps: int | None = None
    """Number of training steps of each model; None for 800."""
    resume: bool = False
    """Whether an interrupted demo is continued instead of started again."""
    smoke: bool = False
    """Whether to take tiny networks and a few steps: a test of some seconds that everything runs."""
    seed: int = 0
    """Seed of training and sampling, a whole number."""

    def execute(self) -> None:
        """Runs the demo."""
        run(self)

    def recipes(self) -> dict[str, Recipe]:
        """Returns the three recipes, with equal training.

        Raises:
            UsageError: for fewer than one step, and a seed that is not a whole number.
        """
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps={self.steps}: give a whole number of at least 1")
        if self.smoke:
            recipes = {name: smoke() for name, (_, _, smoke) in FAMILIES.items()}
        else:
            recipes = {name: digits() for name, (_, digits, _) in FAMILIES.items()}
            recipes |= {name: replace(recipes[name], code_length=code) for name, code in CODES.items()}
        return {name: replace(r, training=self._training(r)) for name, r in recipes.items()}

    def _training(self, recipe: Recipe) -> Training:
        training = replace(recipe.training, seed=self.seed, **({} if self.smoke else SHORT))
        if self.steps is None:
            return training
        share = self.steps / training.steps
        warmup, cooldown = round((training.warmup or 0) * share), round(training.cooldown * share)
        return replace(training, steps=self.steps, warmup=warmup, cooldown=cooldown)


@dataclass(frozen=True)
class Row:
    """A row of the comparison."""

    model: str
    sampler: str
    quality: SampleQuality | None = None
    run: SamplingRun | None = None
    bits: tuple[float, float] | None = None
    kind: str = ""

    def cells(self) -> list[str]:
        """Returns the cells of the row as text."""
        q, r = self.quality, self.run
        bits = ["", ""] if self.bits is None else [f"{self.bits[0]:.2f} ± {self.bits[1]:.2f}", self.kind]
        samples = ["", "", ""] if q is None else [f"{q.frechet:.2f}", f"{q.sure:.3f}", f"{q.classes} of 10"]
        cost = ["", "", ""] if r is None else [str(r.steps), str(r.evaluations), f"{r.seconds:.0f}"]
        return [self.model, self.sampler, *bits, *samples, *cost]


HEAD = ["model", "sampler", "bits/dim", "kind", "Fréchet", "sure", "digits", "steps", "evaluations", "seconds"]


class Model(NamedTuple):
    """A trained model: its title in the report, its recipe, and its averaged denoiser."""

    title: str
    recipe: Recipe
    denoiser: Denoiser


def run(demo: Demo, write_out: Callable[[str], None] = print, progress: Progress = bar) -> Path:
    """Runs the demo and returns the path of its report."""
    start = time.perf_counter()
    recipes, folder = demo.recipes(), prepare(demo)
    first = recipes["ddpm"]
    train, test = first.load("train"), first.load("test")
    torch.manual_seed(demo.seed)
    write_out(
        f"unnoise demo: three families of diffusion models on {len(train.k)} digits of "
        f"{'x'.join(map(str, train.shape))} and {train.quantization.levels} quantization levels,\n"
        f"each trained for {first.training.steps} steps of {first.data.batch} images, with one U-Net. Results are "
        f"written to {folder}/."
    )
    models: dict[str, Model] = {}
    for i, (name, recipe) in enumerate(recipes.items()):
        title = FAMILIES[name][0]
        pictures = folder / name / f"{Path(recipe.picture).stem}-*.png"
        write_out(f"\n[{i + 1}/5] training {title}; every {recipe.training.watch_every} steps samples in {pictures}")
        objective = train_recipe(recipe, train, folder / name, progress, resume=demo.resume)
        models[name] = Model(title, recipe, objective.denoiser)
    trained_after = time.perf_counter() - start

    write_out("\n[4/5] sampling and measuring")
    judge = judge_of(train, progress, steps=20 if demo.smoke else 600)
    rows, pictures = measure(demo, models, judge, train, test, progress)

    write_out("\n[5/5] drawing pictures and writing the report")
    draw_figures(folder, models, pictures, test)
    page = write_report(demo, folder, models, judge, rows, test, trained_after, start)
    write_out(report.table(HEAD, [row.cells() for row in rows]))
    write_out(
        f"\ndone in {(time.perf_counter() - start) / 60:.1f} minutes. Open {page}, or read "
        f"{page.with_suffix('.md')}.\nNext:  {program()} sample {folder}/ddpm --count 100 --out more.png    "
        f"{program()} recipes    {program()} train ddpm-digits --help"
    )
    return page


def prepare(demo: Demo) -> Path:
    """Creates and returns the folder of the demo; renames an earlier demo there, unless it is resumed."""
    settings, mark = {"steps": demo.steps, "smoke": demo.smoke, "seed": demo.seed}, demo.out / "demo.json"
    if demo.out.exists() and any(demo.out.iterdir() if demo.out.is_dir() else [1]):
        if not mark.is_file():
            raise UsageError(f"{demo.out} exists and is not a demo: choose another folder with --out")
        again = f"remove {demo.out}, or choose another folder with --out"
        if demo.resume and (stored := read_object(mark, again)) != settings:
            raise UsageError(f"the demo in {demo.out} has other settings, {stored}: resume it with these settings")
        if not demo.resume:
            for part in (demo.out / name for name in FAMILIES):
                if part.is_dir():
                    with locked(part):  # refuses while another demo trains there
                        pass
            number = next(n for n in range(1, 10_000) if not demo.out.with_name(f"{demo.out.name}.{n}").exists())
            demo.out.rename(demo.out.with_name(f"{demo.out.name}.{number}"))
    folder = writable(demo.out)
    write_text(mark, json.dumps(settings))
    return folder


def rows_of(name: str, model: Model) -> list[tuple[str, str, Sampler, int]]:
    """Returns the samplers of the table, (model, name, sampler, steps), with the sampler of the paper first.

    The DDPM has two samplers of its own family, and a stochastic and a deterministic one of the VP SDE, with the same
    number of network evaluations.
    """
    own, steps = model.recipe.sampler_of(model.denoiser), model.recipe.sampling_steps
    half, quarter = max(steps // 2, 2), max(steps // 4, 2)
    if name == "d3pm":
        return [(model.title, "ancestral", own, steps)]
    denoiser = cast(GaussianDenoiser, model.denoiser)
    if name == "score-sde":
        return [
            (model.title, "predictor-corrector", own, steps),
            (model.title, "probability flow, Heun", ProbabilityFlow(denoiser), half),
        ]
    first_row = denoiser.corruption.log_snr(torch.full((), denoiser.corruption.t_min, dtype=torch.float64))
    vp = denoiser.on(VP(t_last=float(VP().time(first_row))))  # as little noise as in the first row of the table
    corrected = PredictorCorrector(ReverseDiffusion(vp), Langevin(vp, snr=0.1))
    return [
        (model.title, "ancestral", own, steps),
        (model.title, "DDIM", DDIM(denoiser), half),
        ("DDPM crossing", "VP probability flow, Heun", ProbabilityFlow(vp), quarter),
        ("DDPM crossing", "VP predictor-corrector", corrected, half),
    ]


def measure(
    demo: Demo, models: dict[str, Model], judge: Judge, train: ImageDataset, test: ImageDataset, progress: Progress
) -> tuple[list[Row], dict[str, Tensor]]:
    """Measures all models; returns the rows of the table, and the images of the first picture by title."""
    count, shape, quantization = 40 if demo.smoke else len(test.k), test.shape, test.quantization
    held_out = test._replace(k=test.k[:count], label=labels_of(test)[:count])
    chosen = torch.randperm(len(train.k), generator=torch.Generator().manual_seed(demo.seed))[:count]
    rows = [
        Row("baseline: pixels alone", "", bits=marginal_bits_per_dim(train, test), kind="exact"),
        Row("real, held out", "", judge.quality(held_out.k)),
        Row("real, training", "", judge.quality(train.k[chosen])),
    ]
    pictures = {"real digits, held out": in_turn(held_out)}
    for name, model in models.items():
        recipe = model.recipe
        bits = bits_per_dim(recipe, model.denoiser, held_out, seed=demo.seed, progress=progress)
        code = bits, recipe.kind
        for who, title, sampler, steps in rows_of(name, model):
            with arithmetic_of(model).cast(device_of(model.denoiser)):
                samples = draw(recipe, sampler, shape, quantization, count, steps, seed=demo.seed, progress=progress)
            rows.append(Row(who, title, judge.quality(samples.levels), samples, *code))
            if code[0] or "crossing" in who:
                pictures[f"{who}: {title}"] = samples.levels
            code = None, ""  # in the first row of a model alone
    return rows, {title: k.float() / (quantization.levels - 1) for title, k in pictures.items()}


def arithmetic_of(model: Model) -> Precision:
    """Returns the arithmetic in which the network of a model was trained on this device, and samples are drawn."""
    return precision_of(model.recipe.training.precision, device_of(model.denoiser))[0]


def in_turn(images: ImageDataset) -> Tensor:
    """Returns real digits, as quantization levels, in the order of the samples: 0 to 9, repeatedly."""
    order = [torch.nonzero(labels_of(images) == digit).flatten() for digit in range(10)]
    rounds = min(len(rows) for rows in order)
    return images.k[torch.stack([rows[:rounds] for rows in order], dim=1).flatten()]


def draw_figures(folder: Path, models: dict[str, Model], pictures: dict[str, Tensor], test: ImageDataset) -> None:
    """Draws samples.png, one film strip for each family, and losses.png."""
    from ...shared.figures import save_curves, save_panels, save_strip

    save_panels(folder / "samples.png", {title: x[:80] for title, x in pictures.items()}, columns=10, across=3)
    curves = {}
    for name, model in models.items():
        curves[model.title] = (*curve(folder / name / "metrics.jsonl", "loss"), model.recipe.loss_unit)
        save_strip(folder / f"film-{name}.png", film(model, test), f"{model.title}: destroying and making digits")
    save_curves(folder / "losses.png", curves)


def film(
    model: Model, test: ImageDataset, rows: int = 3, frames: int = 10
) -> dict[str, tuple[list[float], list[Tensor]]]:
    """Returns states of the forward process on real digits, and of the sampler from noise, each with their times."""
    recipe, corruption, generator = model.recipe, model.denoiser.corruption, torch.Generator().manual_seed(1)
    x0 = recipe.form(test.quantization, in_turn(test)[:rows], generator)
    grid = corruption.grid(max(frames, recipe.sampling_steps))
    chosen = torch.linspace(0, len(grid) - 2, frames - 1).round().long().tolist()
    times = [float(grid[i]) for i in chosen] + [0.0]
    noised = [corruption.corrupt(x0, torch.tensor(t, dtype=torch.float64), generator=generator) for t in times[:-1]]
    start = corruption.prior((rows, *test.shape), generator=Streams(3, range(rows)), device=device_of(model.denoiser))
    labels: dict[str, Any] = recipe.conditions(torch.arange(rows, device=start.device))
    path = recipe.sampler_of(model.denoiser).trajectory(
        start, steps=len(grid) - 1, generator=Streams(4, range(rows)), **labels
    )
    states = [start, *path]
    made = [*(states[i] for i in chosen), states[-1]]

    def shown(states: list[Tensor]) -> list[Tensor]:
        return [recipe.levels(test.quantization, x.cpu()).float() / (test.quantization.levels - 1) for x in states]

    return {"destroyed": (times[::-1], shown([x0, *reversed(noised)])), "made": (times, shown(made))}


def write_report(
    demo: Demo,
    folder: Path,
    models: dict[str, Model],
    judge: Judge,
    rows: list[Row],
    test: ImageDataset,
    trained_after: float,
    start: float,
) -> Path:
    """Writes report.md, report.html and results.json, and returns the path of report.html."""
    first, dims, levels = models["ddpm"].recipe, test.dims, test.quantization.levels
    exact = cast(GaussianRecipe, models["score-sde"].recipe).code_length
    assert isinstance(exact, Exact)
    count = next(row.quality.count for row in rows if row.quality)
    millions = sum(p.numel() for p in models["ddpm"].denoiser.parameters()) / 1e6
    films = "\n\n".join(f"![{m.title} destroying and making digits](film-{name}.png)" for name, m in models.items())
    minutes = trained_after / 60, (time.perf_counter() - start - trained_after) / 60
    text = f"""# Three families of diffusion on the same digits

A DDPM (Ho et al. 2020), a D3PM with discretized-Gaussian transitions (Austin et al. 2021) and a VP score SDE (Song et
al. 2021) were trained on {len(judge.reference)} digits of 8 x 8 pixels and {levels} gray levels, with the same U-Net
configuration ({millions:.2f} M parameters), {first.training.steps} steps of {first.data.batch} images, the same
optimizer and the same averaging of weights. All three are conditioned on the class label; sample i is of digit i mod
10.

## Samples

![samples of each family beside real digits](samples.png)

## The comparison

{report.table(HEAD, [row.cells() for row in rows])}

- **bits/dim**: code length of the {len(test.k)} held-out digits with their {levels} quantization levels, in bits for
  each of {dims} pixels, ± standard error over the digits. "Upper bound" is a variational bound; "exact up to uniform
  dequantization" is the density of the dequantized digits by the probability flow (solver tolerance
  {exact.tolerance:g}). The label of a digit is coded first, and its log2(10) / {dims} = {math.log2(10) / dims:.2f}
  bits/dim are included, so every figure is an upper bound for digits without labels. The baseline codes each pixel
  independently, by its frequencies in the training set. Lower is better.
- **Fréchet**: Fréchet distance between a classifier's features of {count} images and of all training digits. The rows
  of real digits are for comparison; samples can have a smaller distance, because all digits are drawn equally often.
  Lower is better.
- **sure**: share of images that the classifier (accuracy {judge.accuracy(test):.3f} on held-out digits) assigns to a
  digit with p > 0.8.
- **evaluations**: network evaluations for each image. **seconds**: for all {count} images on this machine.
- **DDPM crossing**: the network that was trained as a DDPM, sampled on the VP SDE by its probability flow and its
  predictor-corrector sampler: `ddpm.on(VP())`.

## How digits are destroyed and made

{films}

## Losses

Each family has its own unit, so the curves show the progress of training and cannot be compared between families.

![loss curves](losses.png)

## Next steps

```
{program()} sample {folder}/ddpm --count 100 --out more.png
{program()} evaluate {folder}/d3pm
{program()} train ddpm-digits --network.width 64 --out runs/wide
{program()} recipes
```

Seed {demo.seed}; {minutes[0]:.1f} minutes of training and {minutes[1]:.1f} minutes of measuring; networks in
{arithmetic_of(models["ddpm"]).name} in training and sampling, and in float32 for code lengths;
Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads.
"""
    results = [
        {"model": r.model, "sampler": r.sampler, "bits_per_dim": r.bits and r.bits[0], "kind": r.kind}
        | (vars(r.quality) if r.quality else {})
        | (cost_of(r.run) if r.quality and r.run else {})
        for r in rows
    ]
    write_text(folder / "results.json", json.dumps(results, indent=1))
    return report.write(folder, "report", text, "unnoise demo")[1]
