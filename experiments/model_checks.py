"""Checks of a run's model on its data: classes without examples, conditions without effect, the color of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..shared.data import ImageDataset
from ..shared.data.feeding import feed
from ..shared.denoiser import Denoiser
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import Streams
from ..shared.sampler import device_of
from ..shared.tensors import times_at
from .doctor import Check
from .evaluation import draw
from .recipe import Recipe

TIMES = (0.25, 0.5, 0.75, 0.95)
"""Times at which the effect of a condition is measured."""
ROWS = 8
"""Number of examples on which the effect of a condition is measured."""
REFERENCE = 2000
"""Most images that samples are compared with."""


def classes_seen(label: Tensor | None, classes: int | None, names: tuple[str, ...] | None = None) -> Check | None:
    """Looks for classes of the model without a training example.

    Args:
        label: the class labels of the training data, `(N,)`.
        classes: number of classes of the model.
        names: names of the classes.
    """
    if label is None or classes is None:
        return None
    counts = torch.bincount(label.clamp(0, classes - 1), minlength=classes)
    absent = [str(names[n] if names else n) for n in range(classes) if not counts[n]]
    figure = f"{classes - len(absent)} of {classes} classes have training examples, the rarest {int(counts.min()):,}"
    if not absent:
        return Check(figure)
    which = ", ".join(absent[:5]) + ", ..." * (len(absent) > 5)
    return Check(
        figure,
        f"the model has never seen {len(absent)} of its {classes} classes ({which}), and draws samples of them: add "
        f"examples, or train with --data.classes {classes - len(absent)}",
    )


@torch.no_grad()
def effect_of_conditions(denoiser: Denoiser, x0: Tensor, conditions: Mapping[str, Tensor]) -> list[Check]:
    """Looks for conditions that do not change the estimate of x_0.

    Noisy examples are given their conditions, and then those of the next example. The change of the estimate is
    measured relative to it: root mean squares for real numbers, and half the L1 distance for probabilities. A
    condition that all examples share is left out.

    Args:
        denoiser: the denoiser.
        x0: examples as the model takes them, `(B, ...)`.
        conditions: their conditions by name, which differ between neighbors.
    """
    found = []
    for name, value in conditions.items():
        if torch.equal(value, value.roll(1, 0)):
            continue
        other = {**conditions, name: value.roll(1, 0)}
        change = 0.0
        for number, time in enumerate(TIMES):
            source, t = Streams(number, range(len(x0))), times_at(torch.tensor(time, dtype=torch.float64), x0)
            x_t = denoiser.corruption.corrupt(x0, t, generator=source)
            first, second = (denoiser(x_t, t, **given) for given in (conditions, other))
            change = max(change, relative_change(first, second, probabilities=first.ndim > x_t.ndim))
        figure = f"another {name} changes the estimate of x_0 by up to {change:.1%}"
        wrong = (
            f"the condition {name} has no effect: another one changes the estimate of x_0 by at most {change:.2g} of "
            "its size: check that the network uses it and that its values belong to their examples (unnoise "
            "check-data), lower --loss.drop-label, or train longer"
        )
        found.append(Check(figure, wrong if change < 0.002 else ""))
    return found


def relative_change(first: Tensor, second: Tensor, probabilities: bool) -> float:
    """Returns the size of a difference between estimates relative to that of the first, from 0.

    Args:
        first, second: the estimates, means or log-probabilities.
        probabilities: whether they are log-probabilities.
    """
    if probabilities:
        return float((first.exp() - second.exp()).abs().sum(-1).mean() / 2)
    return float((first - second).square().mean().sqrt() / first.square().mean().sqrt().clamp(min=1e-12))


def color_of_samples(samples: Tensor, data: Tensor, levels: int) -> Check:
    """Looks for a shift of the mean or the contrast of samples against the data, in each channel.

    A shift counts from four standard errors and 3 % of the range of the pixels on.

    Args:
        samples, data: images as quantization levels, `(N, C, H, W)`.
        levels: number of quantization levels.
    """
    made, real = (k.double().flatten(2) / (levels - 1) for k in (samples, data))
    worst, lines = (0.0, ""), []
    for what, of in (("mean", lambda x: x.mean(2)), ("contrast", lambda x: x.std(2, correction=0))):
        a, b = of(made), of(real)
        errors = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt().clamp(min=1e-6)
        for channel, (one, two, se) in enumerate(zip(a.mean(0), b.mean(0), errors, strict=True)):
            where = what if a.shape[1] == 1 else f"{what} of channel {channel}"
            shift, deviation = float(one - two), float(se)
            text = f"{where} {float(one):.3f} in samples, {float(two):.3f} in data, standard error {deviation:.3f}"
            worst = max(worst, (abs(shift) / deviation, text))
            if abs(shift) > max(4 * deviation, 0.03):
                lines.append(text)
    figure = f"largest shift of color: {worst[1]}"
    if not lines:
        return Check(figure)
    return Check(
        figure,
        f"the color of {len(samples)} samples is shifted against the data ({'; '.join(lines[:3])}): train longer or "
        "with a longer average, clip the estimates of x_0 (--clip), or take more sampling steps",
    )


def balanced(images: ImageDataset, classes: int | None) -> Tensor:
    """Returns at most 2,000 images; of a model with labels as many of each class as samples have of each."""
    if classes is None or images.label is None:
        few = images.subset(REFERENCE).k
        return torch.as_tensor(few[torch.arange(len(few))])
    rows = [torch.nonzero(images.label == n).flatten() for n in range(classes)]
    rows = [r for r in rows if len(r)]
    each = max(1, min(min(map(len, rows)), REFERENCE // len(rows)))
    return torch.as_tensor(images.k[torch.cat([r[torch.arange(each) * len(r) // each] for r in rows])])


def model_checks(
    recipe: Recipe,
    denoiser: Denoiser,
    quantization: Quantization,
    shape: tuple[int, ...],
    examples: Any,
    *,
    count: int,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Check]:
    """Returns what the checks of a model find.

    Args:
        recipe: the recipe of the run.
        denoiser: the denoiser with averaged weights.
        quantization: quantization of the data.
        shape: shape of one example.
        examples: the training data.
        count: number of samples to draw; 0 for none, which leaves out the check of their color.
        seed: seed of the samples.
        progress: how to report progress.
    """
    label, names = getattr(examples, "label", None), getattr(examples, "names", None)
    seen, device = classes_seen(label, recipe.classes, names), device_of(denoiser)
    checks = [] if seen is None else [seen]
    if seen is None or not seen.wrong:  # batches refuse data without some class
        batches = recipe.batches(examples)
        first = next(feed(batches, range(min(ROWS, batches.batch))))
        conditions = {k: torch.as_tensor(v).to(device) for k, v in first.items()}
        checks += effect_of_conditions(denoiser, conditions.pop("x0"), conditions)
    if count and isinstance(examples, ImageDataset):
        sampler = recipe.sampler_of(denoiser)
        steps = recipe.grid(denoiser, recipe.sampling_steps)
        made = draw(recipe, sampler, shape, quantization, count, steps, seed=seed, progress=progress)
        checks.append(color_of_samples(made.levels, balanced(examples, recipe.classes), quantization.levels))
    return checks
