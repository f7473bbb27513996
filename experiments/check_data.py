"""What a model will be trained on: a batch as the network sees it, ranges, labels, and duplicates of the test data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..shared.data import ImageDataset, TextDataset
from ..shared.data.batches import Examples
from ..shared.data.images import find_images
from ..shared.data.sources import Absent
from ..shared.errors import UsageError, shown
from ..shared.figures import save_grid
from ..shared.progress import Progress, silent
from .image_data import Images
from .recipe import Recipe
from .tensor_data import Tensors
from .text_data import Text

ARRAYS = (".npy", ".npz", ".safetensors")
"""The endings of files of arrays alone."""
AT_ONCE = 1000
"""The number of examples that are read at a time."""
SHOWN = 64
"""The number of examples in the picture."""


def check_data(recipe: Recipe, picture: Path, progress: Progress = silent) -> str:
    """Returns a text on the data of a recipe, and writes a picture of the first training batch if it has images.

    Args:
        recipe: the recipe.
        picture: path of the PNG; the text is written beside it, with the ending .txt.
        progress: how to report progress.

    Raises:
        UsageError: for data that cannot be trained on, as in training.
    """
    train = recipe.load("train", progress)
    lines = {"train": train.summary}
    try:
        test = recipe.load("test", progress)
        lines["held out"] = test.summary
    except UsageError as error:
        test, lines["held out"] = None, f"none: {error}"
    batch = next(iter(recipe.batches(train)))
    for name, value in batch.items():
        lines[f"batch: {name}"] = described(value)
    if isinstance(train, ImageDataset):
        lines |= of_images(recipe, train, test, progress)
        levels = recipe.levels(train.quantization, batch["x0"][:SHOWN])
        save_grid(picture, levels.float() / (train.quantization.levels - 1))
        lines["picture"] = f"{picture}: the first {len(levels)} examples of the first batch, as the network sees them"
    elif isinstance(train, TextDataset):
        lines |= of_text(recipe, train, test, batch["x0"][:3], progress)
    text = "".join(f"{name:16} {line}\n" for name, line in lines.items())
    picture.with_suffix(".txt").write_text(text)
    return text


def described(value: Tensor) -> str:
    """Returns type, shape and range of a tensor in one line: `float32 (64, 1, 8, 8), -1 to 1, mean -0.39`."""
    kind = str(value.dtype).removeprefix("torch.")
    real = value.double()
    text = f"{kind} {tuple(value.shape)}, {float(real.min()):.4g} to {float(real.max()):.4g}"
    return f"{text}, mean {float(real.mean()):.4g}, standard deviation {float(real.std(correction=0)):.4g}"


def of_images(recipe: Recipe, train: ImageDataset, test: ImageDataset | None, progress: Progress) -> dict[str, str]:
    """Returns lines on quantization levels, labels, captions and duplicates of images."""
    counts = torch.zeros(train.quantization.levels, dtype=torch.int64)
    for part in parts(train.k, progress, "counting quantization levels"):
        counts += torch.bincount(part.flatten().long(), minlength=len(counts))
    present = counts.nonzero()[:, 0]
    low, high = train.quantization.low, train.quantization.high
    lines = {
        "levels": f"{len(present)} of {len(counts)} quantization levels occur, {int(present[0])} to "
        f"{int(present[-1])}; they stand for {low:g} to {high:g}"
    }
    if train.label is not None:
        lines["labels"] = label_map(train, test)
    if train.captions is not None:
        lines["captions"] = "; ".join(shown(caption, 60) for caption in train.captions[:3])
    if isinstance(recipe.data, Images) and recipe.data.caption_length is not None:
        used = (recipe.data.tokens(train).tokens >= 0).sum(1).double()  # padding is -1
        lines["caption tokens"] = f"{float(used.mean()):.1f} on average, {int(used.max())} at most"
    return lines | {"duplicates": duplicates(train.k, None if test is None else test.k, "image", progress)}


def label_map(train: ImageDataset, test: ImageDataset | None) -> str:
    """Returns a text with the number of examples of each label: `0 = cat: 500 train, 100 held out; 1 = dog: ...`."""
    assert train.label is not None
    held = Counter([] if test is None or test.label is None else test.label.tolist())
    own = Counter(train.label.tolist())
    rows = []
    for n in sorted(own | held):
        name = f"{n} = {train.names[n]}" if train.names is not None and n < len(train.names) else f"{n}"
        rows.append(f"{name}: {own[n]:,} train" + (f", {held[n]:,} held out" if held else ""))
    return "; ".join(rows)


def of_text(
    recipe: Recipe, train: TextDataset, test: TextDataset | None, x0: Tensor, progress: Progress
) -> dict[str, str]:
    """Returns lines on the tokens of a text, its first windows, and duplicates of windows."""
    counts, padding = torch.zeros(train.quantization.levels, dtype=torch.int64), recipe.data.padding
    for part in parts(train.windows, progress, "counting tokens"):
        counts += torch.bincount(part.flatten().long(), minlength=len(counts))
    total = int(counts.sum())
    lines = {
        "tokens": f"{total:,} in windows of {train.length}; {int((counts > 0).sum()):,} of {len(counts):,} different "
        "tokens occur",
        "unknown": f"{train.unknown_tokens / max(1, train.tokens):.2%} of {train.tokens:,} tokens are unknown"
        + (f"; {train.lossy}" if train.lossy else ""),
    }
    if padding is not None:
        lines["padding"] = f"{int(counts[padding]) / total:.1%} of the tokens in windows are padding"
    for n, text in enumerate(train.decode(x0), 1):
        lines[f"example {n}"] = shown(text, 300)
    held = None if test is None else test.windows
    return lines | {"duplicates": duplicates(train.windows, held, "window", progress)}


def parts(k: Examples, progress: Progress, label: str) -> Iterator[Tensor]:
    """Yields examples, `AT_ONCE` at a time."""
    starts = range(0, len(k), AT_ONCE)
    return (k[torch.arange(start, min(start + AT_ONCE, len(k)))] for start in progress(starts, len(starts), label))


def duplicates(train: Examples, test: Examples | None, noun: str, progress: Progress) -> str:
    """Returns a text on examples that are equal to another of the training data, by a hash of their values."""
    first: dict[bytes, int] = {}
    again = 0
    for n, digest in enumerate(digests(train, progress, "looking for duplicates")):
        again += digest in first
        first.setdefault(digest, n)
    text = f"{again:,} of {len(train):,} training {noun}s are equal to an earlier one"
    if test is None:
        return text
    both = [(n, first[d]) for n, d in enumerate(digests(test, progress, "looking for duplicates")) if d in first]
    example = f", such as {noun} {both[0][0]}, which is {both[0][1]} of train" if both else ""
    return f"{len(both):,} of {len(test):,} held-out {noun}s are in train{example}; {text}"


def digests(k: Examples, progress: Progress, label: str) -> Iterator[bytes]:
    """Yields a hash of the values of each example."""
    for part in parts(k, progress, label):
        for row in part.to(torch.int32).flatten(1).numpy():
            yield hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def data_named(name: str) -> Images | Text | Tensors:
    """Returns data of a name with the default settings: real-valued arrays, images where it has some, or else text.

    Raises:
        UsageError: for data that cannot be read.
    """
    if name in ("chain", "text8", "shakespeare") or name.lower().endswith(".txt"):
        return Text(name)
    if Path(name).suffix.lower() in ARRAYS:
        return Tensors(name)
    try:
        find_images(name, "train")
    except Absent:
        raise
    except UsageError as error:
        columns = str(error).partition("its columns are ")[2].partition(";")[0].split(", ")
        texts = "text" in columns or not columns[0]
        if "has no images" not in str(error) or not texts or Path(name).suffix.lower() in (".arrow", ".tar"):
            raise
        return Text(name)
    return Images(name)
