"""The captions that images are sampled from: of the command line, of a file, or those of the held-out images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...shared.data import SubwordTokenizer, tokenizer_file
from ...shared.data.captions import requested_tokens
from ...shared.data.sources import Absent
from ...shared.denoiser import Denoiser
from ...shared.errors import UsageError
from ...shared.networks import CaptionEncoder
from ..image_data import Images
from ..recipe import Data, Recipe


def requested(options: Any) -> list[str] | None:
    """Returns the captions of the options `--caption` and `--captions`, in this order; None without them.

    Raises:
        UsageError: for a file that cannot be read or has no captions.
    """
    if options.captions is None:
        return list(options.caption) or None
    return [*options.caption, *lines_of(options.captions)]


def lines_of(path: Path) -> list[str]:
    """Returns the lines of a file, without empty ones.

    Raises:
        UsageError: for a file that cannot be read or has no such lines.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--captions {path} cannot be read ({error}): give a text file, a caption a line") from error
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise UsageError(f"--captions {path} has no captions: write one in each line")
    return found


def tokens_of(captions: list[str], options: Any, recipe: Recipe, denoiser: Denoiser) -> Tensor:
    """Returns captions as token ids of the model, `(number of captions, length)`.

    Raises:
        UsageError: for a model without captions or without a tokenizer, and for captions that it cannot read.
    """
    encoder = next((part for part in denoiser.modules() if isinstance(part, CaptionEncoder)), None)
    if "tokens" not in (denoiser.conditions or ()) or encoder is None:
        raise UsageError("--caption: this model has no captions: leave out --caption and --captions")
    return requested_tokens(captions, tokenizer_of(options, recipe.data), encoder.length)


def tokenizer_of(options: Any, data: Data) -> SubwordTokenizer:
    """Returns the tokenizer of the captions of a run; of a run without one, that of `--tokenizer`.

    Raises:
        UsageError: for a run without a tokenizer, and for a second one.
    """
    if isinstance(data, Images) and data.caption_length is not None:
        if options.tokenizer is not None:
            raise UsageError(f"--tokenizer {options.tokenizer}: the run has its own: leave it out")
        return data.read_tokenizer()
    if options.tokenizer is None:
        raise UsageError("--caption needs the tokenizer of the model's captions: give --tokenizer tokenizer.json")
    return tokenizer_file(options.tokenizer)


def of_samples(options: Any, recipe: Recipe, count: int) -> list[str] | None:
    """Returns the caption of each of `count` samples, the requested ones in turn; None for a model without captions."""
    if (captions := requested(options)) is None:
        with own_captions(recipe.data):
            return recipe.data.captions(torch.arange(count))
    return [captions[n % len(captions)] for n in range(count)]


def held_out(data: Data, rows: Tensor) -> dict[str, Tensor]:
    """Returns the conditions, by name, of the samples whose numbers are `rows`, such as captions of held-out images.

    Raises:
        UsageError: if the data no longer exist.
    """
    with own_captions(data):
        return data.conditions(rows)


@contextmanager
def own_captions(data: Data) -> Iterator[None]:
    """Within the block, the error for data that no longer exist names `--caption`, if they have captions."""
    try:
        yield
    except Absent as error:
        if data.caption_sizes():
            raise UsageError(f"{error}; captions of your own need no data: give --caption") from error
        raise


def without(data: Data) -> Data:
    """Returns the data without captions, whose other conditions need no held-out captions."""
    if not isinstance(data, Images):
        return data
    return replace(data, caption_length=None, tokenizer=None, vocabulary=None)
