"""The command `unnoise evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ...shared.distributed import is_main
from ...shared.metrics.measurement import Evaluation, Origin, four_digits
from ...shared.progress import bar
from ...shared.training import Checkpoint
from ...shared.training.checkpoint import is_checkpoint
from ...shared.training.folder import writable, write_text
from ..recipe import Recipe
from ..sample_evaluation import evaluate_samples
from .arguments import UNNAMED, Modules
from .computing import Computing, computing
from .sampling import data_of, folder_of, options_of_run, positive, settings_used, with_steps
from .weights import Weighted

FEATURES = ("judge",)
"""The features that compare samples by default."""


@dataclass(frozen=True)
class Evaluate:
    """Measures the code length and the sample quality of a trained run, or samples in a folder or file.

    Writes evaluation.json to the folder of the run or of the samples, or FILE.evaluation.json beside a file, and keeps
    earlier results. Each number is printed with the protocol by which it was measured: numbers can be compared where
    the protocols are equal. Code lengths have standard errors. Samples of images are compared with the training set by
    a judge, a small classifier of real images: `frechet` is the Fréchet distance of its features, `sure` the share of
    samples that it assigns to a class with p > 0.8, `classes` the number of classes that it finds; beside each stands
    the same number of real held-out images. The judge is trained once for a set and kept in the cache. A model with
    captions is sampled from those of the held-out images; `agreement` is then the share of samples that the judge
    assigns to the class of the image with the caption. Other features are Inception's (fid, kid_inception, ...), DINOv2
    or CLIP. `unnoise evaluate RUN --help` also lists the sampler's settings. Several GPUs share the work:
    `torchrun --nproc-per-node 8 -m unnoise evaluate RUN`.

    Samples from anywhere: `unnoise evaluate FOLDER --data NAME`, where FOLDER has images, or FILE.npz, or FILE.txt.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run, such as runs/demo/ddpm, or samples: a folder of images, or a .npz, .npy or .txt file."""
    data: str | None = None
    """Data to evaluate on: a bundled set, a folder or a set on the Hugging Face Hub; None takes those of the run.
    Needed for an imported checkpoint, and for data that have moved since training."""
    count: int | None = None
    """Number of held-out examples to code, such as 100; None takes all."""
    samples: int | None = None
    """Number of samples to draw, such as 10000; None for as many as are coded, of text at most 200."""
    features: tuple[str, ...] = FEATURES
    """Features of images by which samples are compared: judge, inception, dinov2, clip or FILE.py:NAME, several with
    spaces between them."""
    statistics: Path | None = None
    """An .npz file with reference statistics of Inception features, as those of ADM and EDM."""
    without: tuple[str, ...] = ()
    """What is left out, such as code-length, samples, judge, memorization, or a measure such as kid."""
    judge_model: str | None = None
    """A causal language model of the transformers library that codes samples of text, such as gpt2-large."""
    zero_shot: str | None = None
    """Another text to code too, such as wikitext or a file, which the model was not trained on."""
    steps: str | None = None
    """Sampling steps, written as for `unnoise sample`, such as 50; None takes the steps of the recipe."""
    seed: int = 0
    """Seed of the samples and of the times of the bound, a whole number."""
    module: Modules = ()
    weights: Annotated[Weighted, UNNAMED] = field(default_factory=Weighted)
    computing: Annotated[Computing, UNNAMED] = field(default_factory=Computing)


@dataclass(frozen=True)
class EvaluateSamples:
    """Measures samples in a folder or file beside a data set, whatever drew them.

    A folder has images of any format; an .npz file has images, tokens or arrays of real numbers as arr_0, samples,
    images or x; a .txt file has texts, separated by an empty line. Writes evaluation.json to the folder, or
    FILE.evaluation.json beside the file, and keeps earlier results.
    """

    samples: tyro.conf.Positional[Path]
    """A folder of images, or a .npz, .npy or .txt file."""
    data: str | None = None
    """The data set that samples are compared with, its training and held-out splits: a bundled set, a folder, a file
    or a set on the Hugging Face Hub."""
    size: int | None = None
    """Height and width to which the images of the data set are scaled and cropped, such as 64; None leaves them."""
    features: tuple[str, ...] = FEATURES
    """Features of images by which samples are compared: judge, inception, dinov2, clip or FILE.py:NAME, several with
    spaces between them."""
    statistics: Path | None = None
    """An .npz file with reference statistics of Inception features, as those of ADM and EDM."""
    without: tuple[str, ...] = ()
    """What is left out, such as judge, memorization, or a measure such as kid."""
    tokenizer: Path | None = None
    """Path of a tokenizer.json for texts, and for token ids of its vocabulary; None for 27 characters."""
    judge_model: str | None = None
    """A causal language model of the transformers library that codes texts, such as gpt2-large."""
    seed: int = 0
    """Seed of random subsets, a whole number."""
    device: str = "auto"
    """A torch device for networks of features, such as cuda:1 or cpu; auto for the GPU where there is one."""
    module: Modules = ()

    def execute(self) -> None:
        """Measures the samples, and writes and prints the results."""
        folder = self.samples.is_dir()
        named = self.samples / "evaluation.json" if folder else beside(self.samples)
        writable(named.parent)
        found = evaluate_samples(
            self.samples,
            self.data,
            size=self.size,
            tokenizer=self.tokenizer,
            features=self.features,
            statistics=self.statistics,
            without=self.without,
            judge_model=self.judge_model,
            seed=self.seed,
            device=self.device,
            progress=bar,
        )
        if is_main():
            report(found, named)


def beside(file: Path) -> Path:
    """Returns the path of the results on a file of samples."""
    return file.with_name(f"{file.name}.evaluation.json")


def has_samples(path: Path) -> bool:
    """Returns whether a path is a file or folder of samples, and not a run."""
    if path.suffix.lower() in (".npz", ".npy", ".txt") and not path.is_dir():
        return True
    own = is_checkpoint(path) or path.parent.name == "checkpoints" or (path / "metrics.jsonl").exists()
    return path.is_dir() and not own and not any((*path.glob("checkpoints"), *path.glob("*/checkpoints")))


def options_for(command: str, run: str, arguments: Sequence[str]) -> tuple[type, list[str]]:
    """Returns the class of the command, of a run with the sampler's settings, and the arguments left for it."""
    if has_samples(Path(run)):
        return EvaluateSamples, [run, *arguments]
    return options_of_run(Evaluate, evaluate, run, arguments)


def evaluate(options: Any, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Measures a run and writes evaluation.json."""
    recipe = recipe if options.data is None else recipe.with_data(options.data)
    count = None if options.count is None else positive("count", options.count)
    own = {name: getattr(options, name) for name in ("samples", "statistics", "judge_model", "zero_shot")}
    own = {name: value for name, value in own.items() if value is not None}
    own |= {"features": options.features} if options.features != FEATURES else {}
    own |= {"without": options.without} if options.without else {}
    with computing(options.computing, checkpoint.average.denoiser) as denoiser:
        recipe = with_steps(recipe, denoiser, options.steps)
        quantization, _ = data_of(checkpoint, options.run)
        recipe.refuse_unfit(denoiser, quantization)
        steps = recipe.grid(denoiser, recipe.sampling_steps)
        path = writable(folder_of(options.run)) / "evaluation.json"
        found = recipe.evaluate(
            denoiser,
            count=count,
            steps=steps,
            seed=options.seed,
            trained_on=checkpoint.description["batches"],
            progress=bar,
            size=options.computing.batch,
            **own,
        )
    if not is_main():
        return
    weights = str(checkpoint.description["weights"]["average.*"])
    precision = options.computing.arithmetic
    origin = Origin(weights=weights, precision=precision)
    facts = {"step": checkpoint.step, "weights": weights, "precision": precision}
    report(found.of(origin, **facts, **settings_used(recipe, options.seed)), path)


def report(found: Evaluation, path: Path) -> None:
    """Prints measurements with their protocols and facts, and writes them to a file; an earlier file is kept."""
    for measurement in found.measurements:
        print(measurement.line())
    for key, value in found.about.items():
        print(f"{key:24} {four_digits(value) if isinstance(value, float) else value}")
    if path.exists():  # earlier results are kept, and written before they are replaced
        names = (path.with_name(f"{path.name.removesuffix('.json')}-{n}.json") for n in range(1, 1_000_000))
        write_text(next(name for name in names if not name.exists()), path.read_text())
    write_text(path, json.dumps(found.as_json(), indent=1, allow_nan=False))
    print(f"written to {path}")
