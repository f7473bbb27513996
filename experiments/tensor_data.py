"""Real-valued arrays as the data of a recipe: how they are read, conditioned on, written and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from torch import Tensor

from ..shared.data import Batches
from ..shared.data.sources import absolute
from ..shared.data.tensors import TensorDataset, pooled, pooled_size, tensor_dataset
from ..shared.denoiser import Denoiser
from ..shared.distributed import is_main
from ..shared.errors import UsageError
from ..shared.metrics.frechet import frechet_distance
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.serialization import serializable
from ..shared.standardization import Standardization
from ..shared.values import notation
from .evaluation import bits_per_dim, draw, refuse_other_data, splits
from .recipe import Data, Form, Recipe

REFERENCE = 10_000
"""The largest number of training examples that samples are compared with, evenly spaced."""


@serializable("experiments.Tensors")
@dataclass(frozen=True)
class Tensors(Data):
    """The real-valued arrays to train on: latents of images, series, point sets."""

    name: str = "data.npy"
    """Path of a file with examples (N, ...), which ends in .npy, .npz, .safetensors, .arrow or .parquet,
    or of a folder with a file for each split, such as train.npy and test.npy."""
    batch: int = 64
    """Number of examples in a batch."""
    classes: int | None = None
    """Number of class labels that the model is conditioned on, from the array label of the file; None for none."""
    array: str | None = None
    """Name of the examples in the file, such as latents; None for x, or the only array of real numbers."""
    scale: Literal["all", "channels", "none"] = "all"
    """What has mean 0 and variance 1 for the model: all values together, each of the channels, the first axis of an
    example, or none. Samples are written in the units of the data."""
    held_out: float = 0.1
    """Share of a single file that is held out for evaluation, such as 0.1, or the number of examples, such as 5000."""
    seed: int = 0
    """Seed of the order of the examples, a whole number."""

    picture: ClassVar[str] = "samples.npz"
    real_valued: ClassVar[bool] = True
    __repr__ = notation

    def load(self, split: str = "train", progress: Progress = silent) -> TensorDataset:
        return tensor_dataset(
            self.name,
            split=split,
            array=self.array,
            scale=self.scale,
            held_out=self.held_out,
            classes=self.classes,
            progress=progress,
        )

    def batches(self, examples: TensorDataset, form: Form, bytes_per_logit: int) -> Batches:
        conditions = self.conditions_of(examples)
        return Batches(examples.k, self.batch, examples.quantization, form, conditions, self.seed)

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        return {} if self.classes is None else {"label": rows % self.classes}

    def conditions_of(self, examples: TensorDataset) -> dict[str, Tensor]:
        if self.classes is None:
            return {}
        if examples.label is None:
            raise UsageError(f"{self.name} has no labels: write an array label beside the examples")
        return {"label": examples.label}

    def self_contained(self) -> Tensors:
        return replace(self, name=absolute(self.name, ()))

    def show(self, path: Path, levels: Tensor, quantization: Quantization | Standardization, columns: int) -> str:
        return save_arrays(path, levels)

    def evaluate(self, recipe: Recipe, denoiser: Denoiser, **options: Any) -> dict[str, Any]:
        return evaluate_tensors(recipe, denoiser, **options)


def save_arrays(path: Path, samples: Tensor, label: Tensor | None = None) -> str:
    """Writes samples to a .npy file, or as `x` with the labels as `label` to a .npz file, and returns a line on them.

    Both are files that `Tensors` reads.
    """
    arrays: dict[str, Any] = {"x": samples.numpy()} | ({} if label is None else {"label": label.cpu().numpy()})
    with path.open("wb") as file:
        if path.suffix.lower() == ".npy":
            np.save(file, arrays["x"])
        else:
            np.savez(file, **arrays)
    return f"  mean {float(samples.mean()):.4g}, standard deviation {float(samples.std()):.4g} of all values\n"


def evaluate_tensors(
    recipe: Recipe,
    denoiser: Denoiser,
    *,
    count: int | None,
    steps: int | Tensor,
    seed: int = 0,
    trained_on: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    size: int | None = None,
) -> dict[str, Any]:
    """Measures the code length of held-out examples per dimension, and compares samples with training examples.

    The processes of a run share the work, `size` examples at a time (None for 300); the results are those of all
    examples on the process of rank 0, and empty on the others.

    The code length is `-log p(x)` of a density in the units of the data: it depends on these units, and can be
    negative. `frechet` is the Fréchet distance of the values that the model sees, averaged over blocks of `blocks`
    along each axis after the channels, and `frechet_of_held_out` that of the held-out examples.

    Raises:
        UsageError: for fewer than two examples, and for data other than those of `trained_on`.
    """
    if count is not None and count < 2:
        raise UsageError(f"count={count}: a standard error needs at least 2 examples; give --count 2 or more")
    test, train = splits(recipe, progress)
    if train.shape != test.shape or len(test.k) < 2:
        raise UsageError(
            f"the training data are {train.summary}, and the held-out data {test.summary}: give two or more held-out "
            "examples of the shape of the others"
        )
    warning = refuse_other_data(len(train.k), lambda: recipe.batches(train), trained_on)
    data = {"train": train.summary, "held_out": test.summary} | warning
    test = test if count is None else test.subset(count)
    bits, error = bits_per_dim(recipe, denoiser, cast(Any, test), seed=seed, progress=progress, size=size, shared=True)
    results: dict[str, Any] = data | {
        "nats_per_dim_of_density": bits * math.log(2),
        "bits_per_dim_of_density": bits,
        "standard_error": error,
        "kind": f"{'upper bound on' if recipe.kind == 'upper bound' else 'exact'} -log p(x) of a density",
    }
    run = draw(
        recipe,
        recipe.sampler_of(denoiser),
        test.shape,
        cast(Any, test.quantization),
        len(test.k),
        steps,
        seed=seed,
        progress=progress,
        size=size,
        shared=True,
    )
    if not is_main():
        return {}
    blocks = pooled_size(test.shape)

    def features(x: Tensor) -> Tensor:
        return pooled(test.quantization.standardized(x), blocks)

    reference = train.subset(REFERENCE).k[:]
    held_out = test.k[:]
    return results | {
        "frechet": frechet_distance(features(run.levels), features(reference)),
        "frechet_of_held_out": frechet_distance(features(held_out), features(reference)),
        "blocks": blocks,
        "sample_mean": float(run.levels.double().mean()),
        "sample_standard_deviation": float(run.levels.double().std()),
        "held_out_mean": float(held_out.double().mean()),
        "held_out_standard_deviation": float(held_out.double().std()),
        "steps": run.steps,
        "evaluations": run.evaluations,
        "seconds": round(run.seconds, 2),
    }
