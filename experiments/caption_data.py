"""Captions of images as the condition of a model: their tokenizer, and the captions of samples."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from ..shared.data import CaptionTokens, SubwordTokenizer, caption_tokens, tokenizer_file, train_tokenizer
from ..shared.denoiser import Denoiser
from ..shared.errors import UsageError
from ..shared.networks import CaptionEncoder
from .parts import Part, write

VOCABULARY = 1024
"""The number of tokens of a tokenizer that is trained on the captions of a data set."""

NO_CAPTIONS = (
    "and the data give none: give --data.caption-length, such as 24, with data that have captions, or a network "
    "without the argument tokens"
)


def tokenizer_of(text: str) -> SubwordTokenizer:
    """Returns the tokenizer in a file, or in the contents of a file that a run keeps."""
    return tokenizer_in(text) if text.startswith("{") else tokenizer_file(text)


@functools.lru_cache(maxsize=2)
def tokenizer_in(json: str) -> SubwordTokenizer:
    """Returns the tokenizer in the contents of a file."""
    return SubwordTokenizer.of_json(json)


@functools.lru_cache(maxsize=4)
def trained_tokenizer(captions: tuple[str, ...], vocabulary: int) -> SubwordTokenizer:
    """Returns a tokenizer of captions: byte pairs of words in small letters, up to `vocabulary` tokens."""
    return train_tokenizer(captions, vocabulary, uniform_words=True)


@functools.lru_cache(maxsize=4)
def tokens_of(captions: tuple[str, ...], tokenizer: SubwordTokenizer, length: int) -> CaptionTokens:
    """Returns captions as token ids; the last results are kept."""
    return caption_tokens(captions, tokenizer, length)


def no_captions(name: str, reason: str) -> str:
    """Returns a message for the data set `name`, which has no captions for a reason."""
    return (
        f"the model is conditioned on captions, and {name} has {reason}: take a set with captions, or leave out "
        "--data.caption-length"
    )


def refuse_settings_of_captions(length: int | None, tokenizer: str | None, vocabulary: int | None) -> None:
    """Raises for settings of captions that do not fit each other.

    Raises:
        UsageError: for a length that has no room for text, and settings that have no effect.
    """
    if length is not None and length < 2:
        raise UsageError(f"caption_length={length}: give 2 or more, for text and an end token")
    if length is None and (tokenizer, vocabulary) != (None, None):
        name = "tokenizer" if tokenizer is not None else "vocabulary"
        raise UsageError(f"{name} is for captions: give --data.caption-length too, such as 24, or --data.{name} None")
    if tokenizer is not None and vocabulary is not None:
        raise UsageError(f"vocabulary={vocabulary} has no effect, as a tokenizer is given: leave out one of them")
    if vocabulary is not None and vocabulary < 257:
        raise UsageError(f"vocabulary={vocabulary}: give 257 or more, for 256 bytes and the end token")


def refuse_encoder_without_captions(network: Any, sizes: dict[str, int]) -> None:
    """Raises for a network whose encoder of captions takes its sizes from the data, for data without captions.

    Args:
        network: the network of a recipe.
        sizes: the sizes of the captions of the data, by name.

    Raises:
        UsageError: with what to change.
    """
    parts = network.parts() if isinstance(network, Part) else ()
    if not sizes and any(part.build is CaptionEncoder and part.missing() for part in parts):
        raise UsageError(f"{write(network)} has an encoder of captions, {NO_CAPTIONS}")


def refuse_captions_without_effect(denoiser: Denoiser, conditions: dict[str, Tensor]) -> None:
    """Raises for captions of the data that the network does not take, and for captions that it never receives.

    Args:
        denoiser: the denoiser that is to be trained.
        conditions: the conditions of the data, by name.

    Raises:
        UsageError: with what to change.
    """
    takes = denoiser.conditions
    if takes is None:
        return
    if "tokens" in conditions and "tokens" not in takes:
        raise UsageError(
            "the data have captions, and the network does not take them: give a network with an encoder of captions, "
            'such as --network "UNet(tokens=CaptionEncoder)", or --data.caption-length None'
        )
    if "tokens" in takes and "tokens" not in conditions:
        raise UsageError(f"the network takes captions, {NO_CAPTIONS}")
