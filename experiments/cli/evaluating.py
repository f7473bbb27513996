"""The command `unnoise evaluate`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ...shared.distributed import is_main
from ...shared.progress import bar
from ...shared.training import Checkpoint
from ...shared.training.folder import writable, write_text
from ..recipe import Recipe
from .computing import Computing, computing
from .sampling import data_of, folder_of, options_of_run, positive, settings_used, with_steps
from .training import Modules
from .weights import Weighted


@dataclass(frozen=True)
class Evaluate:
    """Measures the code length and the sample quality of a trained run on held-out data.

    Writes evaluation.json to the folder of the run, and keeps earlier results beside it. Code lengths have standard
    errors. Samples of images are compared with the training set by a small classifier of real images: `frechet` is the
    Fréchet distance of its features, `frechet_of_held_out` that of real held-out images, `sure` the share of samples
    that it assigns to a class with p > 0.8, `classes` the number of classes that it finds. A model with captions is
    sampled from those of the held-out images; `agreement` is then the share of samples that the classifier assigns to
    the class of the image with the caption, `agreement_of_held_out` that of these images. These can be compared between
    runs on the same data. `unnoise evaluate RUN --help` also lists the sampler's settings. Several GPUs share the work:
    `torchrun --nproc-per-node 8 -m unnoise evaluate RUN`.
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
    module: Modules = ()
    weights: Annotated[Weighted, tyro.conf.arg(name="")] = field(default_factory=Weighted)
    computing: Annotated[Computing, tyro.conf.arg(name="")] = field(default_factory=Computing)


def options_for(command: str, run: str, arguments: Sequence[str]) -> tuple[type, list[str]]:
    """Returns the class of the command with the sampler's settings of a run, and the arguments left for it."""
    return options_of_run(Evaluate, evaluate, run, arguments)


def evaluate(options: Any, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Measures a run and writes evaluation.json."""
    recipe = recipe if options.data is None else recipe.with_data(options.data)
    count = None if options.count is None else positive("count", options.count)
    with computing(options.computing, checkpoint.average.denoiser) as denoiser:
        recipe = with_steps(recipe, denoiser, options.steps)
        quantization, _ = data_of(checkpoint, options.run)
        recipe.refuse_unfit(denoiser, quantization)
        steps = recipe.grid(denoiser, recipe.sampling_steps)
        path = writable(folder_of(options.run)) / "evaluation.json"
        results: dict[str, Any] = dict(
            recipe.evaluate(
                denoiser,
                count=count,
                steps=steps,
                seed=options.seed,
                trained_on=checkpoint.description["batches"],
                progress=bar,
                size=options.computing.batch,
            )
        )
    if not is_main():
        return
    results |= {"step": checkpoint.step, "weights": checkpoint.description["weights"]["average.*"]}
    results |= {"precision": options.computing.precision} | settings_used(recipe, options.seed)
    for key, value in results.items():
        print(f"{key:20} {value if not isinstance(value, float) else format(value, '.4f')}")
    earlier = path.read_text() if path.exists() else None
    write_text(path, json.dumps(finite(results), indent=1, allow_nan=False))
    if earlier is not None:  # earlier results are kept
        number = next(n for n in range(1, 1_000_000) if not path.with_name(f"evaluation-{n}.json").exists())
        write_text(path.with_name(f"evaluation-{number}.json"), earlier)
    print(f"written to {path}")


def finite(value: Any) -> Any:
    """Returns results with None in place of NaN and infinity, which JSON cannot represent."""
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
