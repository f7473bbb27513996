"""Real-valued arrays as the data of a recipe: how they are read, conditioned on, written and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from torch import Tensor

from unnoise import __version__

from ..shared.data import Batches
from ..shared.data.sources import absolute
from ..shared.data.tensors import TensorDataset, pooled, pooled_size, tensor_dataset
from ..shared.denoiser import Denoiser
from ..shared.distributed import is_main
from ..shared.errors import UsageError, did_you_mean
from ..shared.metrics.features import digest_of
from ..shared.metrics.frechet import frechet_distance, remark_on_bias
from ..shared.metrics.measurement import Evaluation, Measurement, Origin, Protocol
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.serialization import serializable
from ..shared.standardization import Standardization
from ..shared.values import notation
from .evaluation import bits_per_dim, cost, draw, origin_of, refuse_of_text, refuse_other_data, short_name, splits
from .parts import write
from .recipe import Data, Form, Recipe

REFERENCE = 10_000
"""The largest number of training examples that samples are compared with, evenly spaced."""
WITHOUT = ("code-length", "samples")
"""What an evaluation of arrays can leave out."""


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

    def evaluate(self, recipe: Recipe, denoiser: Denoiser, **options: Any) -> Evaluation:
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
    samples: int | None = None,
    features: Sequence[Any] = (),
    without: Sequence[str] = (),
    statistics: Path | None = None,
    **of_text: Any,
) -> Evaluation:
    """Measures the code length of held-out examples per dimension, and compares samples with training examples.

    The processes of a run share the work, `size` examples at a time (None for 300); the results are those of all
    examples on the process of rank 0, and empty on the others.

    The code length is `-log p(x)` of a density in the units of the data: it depends on these units, and can be
    negative. `frechet` is the Fréchet distance of the values that the model sees, averaged over blocks of `blocks`
    along each axis after the channels, and `frechet_of_held_out` that of the held-out examples.

    Args:
        recipe: the recipe.
        denoiser: the denoiser.
        count: the number of held-out examples; None for all.
        steps: the number of sampling steps, or a grid of times.
        seed: the seed of the samples, and of noise and times of the code length.
        trained_on: what the checkpoint recorded about its training batches.
        progress: how to report progress.
        size: the number of examples that are computed at a time.
        samples: the number of samples; None for as many as are coded.
        features: refused, except for the name `judge`: arrays are compared by blocks of their values.
        without: what is left out, `code-length` or `samples`.
        statistics: refused: arrays have no reference statistics.
        of_text: refused: options of text.

    Raises:
        UsageError: for fewer than two examples, for settings without effect on arrays, and for data other than those of
            `trained_on`.
    """
    if count is not None and count < 2:
        raise UsageError(f"count={count}: a standard error needs at least 2 examples; give --count 2 or more")
    refuse_of_text(of_text)
    refuse_without_effect([f for f in features if f != "judge"], without, statistics, samples)
    test, train = splits(recipe, progress)
    if train.shape != test.shape or len(test.k) < 2:
        raise UsageError(
            f"the training data are {train.summary}, and the held-out data {test.summary}: give two or more held-out "
            "examples of the shape of the others"
        )
    warning = refuse_other_data(len(train.k), lambda: recipe.batches(train), trained_on)
    about: dict[str, Any] = {"train": train.summary, "held_out": test.summary} | warning
    whole: Any = test
    test = test if count is None else test.subset(count)
    name, found = short_name(recipe.data), []
    if "code-length" not in without:
        coded: Any = test
        bits, error = bits_per_dim(recipe, denoiser, coded, seed=seed, progress=progress, size=size, shared=True)
        kind = f"{'upper bound on' if recipe.kind == 'upper bound' else 'exact'} -log p(x) of a density"
        about |= {"standard_error": error, "kind": kind}
        protocol = Protocol(
            reference=f"{name}, held out, {test.summary}",
            reference_hash=content_of(test.k[:]),
            samples=len(test.k),
            settings=f"{kind}, {write(getattr(recipe, 'code_length', ''))}",
            coded=True,
        )
        nats = math.log(2)
        for unit, factor in (("nats", nats), ("bits", 1.0)):
            own = f"{unit}_per_dim_of_density", bits * factor, protocol, Origin(seed=seed, version=__version__)
            found.append(Measurement(*own, error * factor, f"{unit}/dim", "lower"))
    if "samples" in without:
        return Evaluation(about, found) if is_main() else Evaluation({}, [])
    run = draw(
        recipe,
        recipe.sampler_of(denoiser),
        test.shape,
        cast(Any, test.quantization),
        samples or len(test.k),
        steps,
        seed=seed,
        progress=progress,
        size=size,
        shared=True,
    )
    if not is_main():
        return Evaluation({}, [])
    facts, distance = compared(run.levels, train, whole, name)
    return Evaluation(about | facts | cost(run), [*found, distance.of(origin_of(recipe, run, seed))])


def compared(
    x: Tensor, train: TensorDataset, test: TensorDataset | None, name: str
) -> tuple[dict[str, Any], Measurement]:
    """Returns mean and deviation of samples, and their Fréchet distance from training examples by values of blocks."""
    blocks = pooled_size(train.shape)

    def features(values: Tensor) -> Tensor:
        return pooled(train.quantization.standardized(values), blocks)

    some = train.subset(REFERENCE)
    reference = features(some.k[:])
    alike = None if test is None else test.subset(min(len(x), len(test.k)))  # distances depend on the number
    real = None if alike is None or len(alike.k) < 2 else frechet_distance(features(alike.k[:]), reference)
    about: dict[str, Any] = {"count": len(x), "frechet_of_held_out": real, "blocks": blocks}
    for of, values in ({"sample": x} | ({} if test is None else {"held_out": test.k[:]})).items():
        values = values.double()
        about |= {f"{of}_mean": float(values.mean()), f"{of}_standard_deviation": float(values.std())}
    protocol = Protocol(
        "blocks of values",
        resize=f"averaged over {blocks} values along each axis",
        reference=f"{name}, train, {some.summary}",
        reference_hash=content_of(some.k[:]),
        samples=len(x),
    )
    fewer = "" if real is None or alike is None or len(alike.k) == len(x) else f"real data: {len(alike.k):,} examples"
    notes = (remark_on_bias(len(x), len(reference), reference.shape[1]), fewer)
    note, distance = "; ".join(filter(None, notes)), frechet_distance(features(x), reference)
    return about, Measurement("frechet", distance, protocol, better="lower", held_out=real, note=note)


def content_of(x: Tensor) -> str:
    """Returns the first 12 hexadecimal digits of the SHA-256 of arrays."""
    return digest_of({"x": x})


def refuse_without_effect(
    features: Sequence[Any], without: Sequence[str], statistics: Path | None, samples: int | None
) -> None:
    """Raises `UsageError` for settings that have no effect on arrays, or contradict each other."""
    if features or statistics is not None:
        given = f"statistics={statistics}" if statistics is not None else f"features={', '.join(map(str, features))}"
        raise UsageError(f"{given} is of images: for arrays, leave it out")
    for part in without:
        if part not in WITHOUT:
            raise UsageError(
                f"without={part}: {did_you_mean(part, WITHOUT)}of arrays, choose from {', '.join(WITHOUT)}"
            )
    if set(WITHOUT) <= set(without):
        raise UsageError("without code-length and samples nothing is left to measure: leave out one of the two")
    if samples is not None and (samples < 2 or "samples" in without):
        raise UsageError(f"samples={samples}: give 2 or more, and not without samples")
