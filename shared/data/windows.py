"""Tokens in memory-mapped files, and windows of equal length over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

Rows = Tensor | slice | int


class Tokens:
    """Documents of tokens in chunks that are memory-mapped; together the documents are one stream.

    Args:
        chunks: for each chunk its tokens, 1-D of any integer type, and where its documents, or parts of them, begin and
            end, `(parts + 1,)`.
        last: for each chunk whether a part is the last of its document, bool `(parts,)`; None where all are whole
            documents.

    Attributes:
        chunks: for each its tokens, and where in the stream the documents end that end in it, int64.
        count, documents: tokens and documents.
    """

    def __init__(
        self, chunks: Iterable[tuple[np.ndarray, np.ndarray]], last: Iterable[np.ndarray] | None = None
    ) -> None:
        self.chunks, self.count = [], 0
        for (tokens, bounds), ends in zip(chunks, repeat(slice(None)) if last is None else last, strict=False):
            if len(bounds) > 1:
                self.chunks.append(
                    (tokens[bounds[0] : bounds[-1]], bounds[1:][ends].astype(np.int64) - bounds[0] + self.count)
                )
                self.count += int(bounds[-1] - bounds[0])
        self._first_token = np.cumsum([0, *(len(tokens) for tokens, _ in self.chunks)])
        self._first_document = np.cumsum([0, *(len(ends) for _, ends in self.chunks)])
        self.documents = int(self._first_document[-1])

    @classmethod
    def of_arrow(cls, rows: Dataset, column: str, last: str) -> Tokens:
        """The lists of a column, where they lie in the file: nothing is copied.

        `last` is the column that says where a document ends.
        """
        chunks = rows.data.column(column).chunks
        ends = (c.to_numpy(zero_copy_only=False) for c in rows.data.column(last).chunks)
        return cls(
            ((c.values.to_numpy(zero_copy_only=True), c.offsets.to_numpy(zero_copy_only=True)) for c in chunks), ends
        )

    def stream(self, start: int, out: np.ndarray) -> None:
        """Fills `out` with the tokens from `start` on."""
        chunk, filled = int(np.searchsorted(self._first_token, start, side="right")) - 1, 0
        start -= int(self._first_token[chunk])
        while filled < len(out):
            part = self.chunks[chunk][0][start : start + len(out) - filled]
            out[filled : filled + len(part)] = part
            chunk, start, filled = chunk + 1, 0, filled + len(part)

    def lengths(self) -> np.ndarray:
        """Tokens of each document, `(documents,)`."""
        return np.diff(np.concatenate([np.zeros(1, np.int64), *(ends for _, ends in self.chunks)]))

    def document(self, index: int, most: int | None = None) -> np.ndarray:
        """The tokens of one document, or the first few of them."""
        stop = self._end(index)
        start = self._end(index - 1) if index else 0
        out = np.empty(stop - start if most is None else min(stop - start, most), self.chunks[0][0].dtype)
        self.stream(start, out)
        return out

    def _end(self, index: int) -> int:
        chunk = int(np.searchsorted(self._first_document, index, side="right")) - 1
        return int(self.chunks[chunk][1][index - int(self._first_document[chunk])])


class Windows(ABC):
    """N windows of L tokens; `windows[rows]` reads some of them, int64 `(B, L)`.

    Attributes:
        tokens: what they are cut from.
        shape: `(N, L)`.
        kept: tokens of the text that are in one.
    """

    tokens: Tokens
    shape: tuple[int, int]
    kept: int

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Rows) -> Tensor:
        index = (rows if isinstance(rows, Tensor) else torch.arange(len(self))[rows]).reshape(-1).tolist()
        out = np.empty((len(index), self.shape[1]), np.int64)
        for row, line in zip(index, out, strict=True):
            self.read(row, line)
        return torch.from_numpy(out)

    @abstractmethod
    def read(self, row: int, out: np.ndarray) -> None:
        """Writes one window to `out`, `(L,)`."""


class StreamWindows(Windows):
    """The stream of all documents, cut every L tokens; what is left at the end is dropped.

    With `end`, each window begins and ends with that token and holds L - 2 tokens of the stream between.
    """

    def __init__(self, tokens: Tokens, length: int, end: int | None = None) -> None:
        self.tokens, self.end, self._body = tokens, end, length if end is None else length - 2
        if self._body < 1 or tokens.count < self._body:
            raise UsageError(
                f"length={length}: the text has {tokens.count} tokens: give a length of {1 + length - self._body} to that many"
            )
        self.shape = (tokens.count // self._body, length)
        self.kept = self.shape[0] * self._body

    def read(self, row: int, out: np.ndarray) -> None:
        """Tokens `row * body` to `(row + 1) * body` of the stream."""
        if self.end is not None:
            out[0] = out[-1] = self.end
            out = out[1:-1]
        self.tokens.stream(row * self._body, out)


class DocumentWindows(Windows):
    """One document each: its first L tokens, then `padding`."""

    def __init__(self, tokens: Tokens, length: int, padding: int) -> None:
        if length < 1 or not tokens.documents:
            raise UsageError(
                f"length={length}, {tokens.documents} documents: give a length of 1 or more and a text that is not blank"
            )
        self.tokens, self.padding, self.shape = tokens, padding, (tokens.documents, length)
        self.kept = int(np.minimum(tokens.lengths(), length).sum())

    def read(self, row: int, out: np.ndarray) -> None:
        """Document `row`."""
        document = self.tokens.document(row, len(out))
        out[: len(document)] = document
        out[len(document) :] = self.padding


class Layout(Protocol):
    """How documents become windows.

    Attributes:
        pads: whether there is one token more, for padding, `padding`.
        extra: tokens of a window that are none of the text's.
    """

    pads: bool
    extra: int

    def __call__(self, tokens: Tokens, length: int, *, end: int, padding: int) -> Windows: ...


@dataclass(frozen=True)
class Packed:
    """Documents with an end after each, run together and cut every L tokens: no padding.

    Attributes:
        ends: also begin and end every window with an end, as MDLM does on OpenWebText (Sahoo et al. 2024, appendix
            C.1).
    """

    ends: bool = False
    pads = False

    @property
    def extra(self) -> int:
        """Two, with ends."""
        return 2 * self.ends

    def __call__(self, tokens: Tokens, length: int, *, end: int, padding: int) -> Windows:
        """Windows of the stream."""
        return StreamWindows(tokens, length, end if self.ends else None)


@dataclass(frozen=True)
class Padded:
    """One document a window, cut at L tokens or filled up with a padding token that the model learns like any other."""

    pads = True
    extra = 0

    def __call__(self, tokens: Tokens, length: int, *, end: int, padding: int) -> Windows:
        """Windows of documents."""
        return DocumentWindows(tokens, length, padding)
