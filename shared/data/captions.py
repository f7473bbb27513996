"""Captions of images as token ids of one length, on which a network is conditioned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError, shown
from .tokenizers import Encoded, SubwordTokenizer

PADDING = -1
"""The token that fills the rest of a row; a row of it alone is the empty caption, the null of guidance."""
CHUNK = 10_000
"""The number of captions that are encoded at a time."""


class CaptionTokens(NamedTuple):
    """Captions as token ids.

    Attributes:
        tokens: token ids, int64 `(N, length)`, each caption followed by its end token and by -1.
        cut: number of captions that were longer, of which the first `length - 1` tokens and the end token are left.
        unknown: number of captions with text that the tokenizer does not know.
    """

    tokens: Tensor
    cut: int
    unknown: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What the tokens do not have of the captions, a line for each fact."""
        length = self.tokens.shape[1]
        cut = f"{counted(self.cut)} more than {length} tokens, of which the first {length - 1} are read"
        unknown = f"{counted(self.unknown)} text that the tokenizer does not know"
        return tuple(note for note, count in ((cut, self.cut), (unknown, self.unknown)) if count)


def counted(count: int) -> str:
    """Returns the beginning of a note on a number of captions: `1 caption has`, `2 captions have`."""
    return f"{count:,} caption{' has' if count == 1 else 's have'}"


def caption_tokens(captions: Sequence[str], tokenizer: SubwordTokenizer, length: int) -> CaptionTokens:
    """Encodes captions to rows of one length; an empty caption is a row of padding.

    Args:
        captions: the captions; those of white space alone count as empty.
        tokenizer: their tokenizer.
        length: number of tokens of a row, with the end token; longer captions are cut and counted.

    Raises:
        UsageError: for a length below 2, which has no room for text and an end token.
    """
    if length < 2:
        raise UsageError(f"a caption of {length} tokens has no room for text and its end token: give 2 or more")
    rows, cut, unknown = torch.full((len(captions), length), PADDING), 0, 0
    for start in range(0, len(captions), CHUNK):
        part = captions[start : start + CHUNK]
        for row, caption, encoded in zip(rows[start : start + CHUNK], part, tokenizer.encode(part), strict=True):
            if not caption.strip():
                continue
            ids = encoded.tokens.astype(np.int64)
            cut, unknown = cut + (len(ids) > length), unknown + (encoded.unknown_tokens > 0)
            ids = ids if len(ids) <= length else np.append(ids[: length - 1], ids[-1])
            row[: len(ids)] = torch.from_numpy(ids)
    return CaptionTokens(rows, cut, unknown)


def requested_tokens(captions: Sequence[str], tokenizer: SubwordTokenizer, length: int) -> Tensor:
    """Returns captions to sample from as token ids, int64 `(N, length)`, as in training; they are never cut.

    Raises:
        UsageError: for a caption that is longer, or that has text which the tokenizer does not know.
    """
    for caption, encoded in zip(captions, tokenizer.encode(captions), strict=True):
        if len(encoded.tokens) > length:
            raise UsageError(
                f"the caption {shown(caption)!r} has {len(encoded.tokens)} tokens with its end token, and the model "
                f"takes {length}: give a shorter one"
            )
        if encoded.unknown_tokens:
            raise UsageError(
                f"the model's tokenizer does not know {unknown_words(caption, encoded, tokenizer)} in the caption "
                f"{shown(caption)!r}: use other words"
            )
    return caption_tokens(captions, tokenizer, length).tokens


def unknown_words(caption: str, encoded: Encoded, tokenizer: SubwordTokenizer) -> str:
    """Returns the words of a caption with unknown tokens, quoted; a count where no single word has them."""
    words = [word for word in caption.split() if tokenizer.encode([word])[0].unknown_tokens]
    return ", ".join(repr(shown(word)) for word in words) or f"{encoded.unknown_tokens} tokens"
