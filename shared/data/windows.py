"""Token ids in memory-mapped files, and windows of equal length over them."""

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
    """Documents of token ids in memory-mapped chunks; one after the other the documents are one stream.

    Args:
        chunks: for each chunk its token ids, 1-D of any integer type, and the offsets at which its documents, or parts
            of documents, begin and end, `(parts + 1,)`.
        last: for each chunk whether a part is the last of its document, bool `(parts,)`; None where all parts are whole
            documents.

    Attributes:
        chunks: for each chunk its token ids, and the places in the stream where the documents end that end in it,
            int64.
        count: number of tokens.
        documents: number of documents.
    """

    def __init__(
        self, chunks: Iterable[tuple[np.ndarray, np.ndarray]], last: Iterable[np.ndarray] | None = None
    ) -> None:
        self.chunks: list[tuple[np.ndarray, np.ndarray]] = []
        self.count = 0
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
        """Returns the tokens in a column of lists without copying them from the mapped file.

        Args:
            rows: the rows.
            column: name of the column that holds lists of token ids.
            last: name of the bool column that is true where a row ends its document.
        """
        chunks = rows.data.column(column).chunks
        ends = (c.to_numpy(zero_copy_only=False) for c in rows.data.column(last).chunks)
        return cls(
            ((c.values.to_numpy(zero_copy_only=True), c.offsets.to_numpy(zero_copy_only=True)) for c in chunks), ends
        )

    def stream(self, start: int, out: np.ndarray) -> None:
        """Fills `out` with the tokens of the stream from position `start` on, as many as `out` has room for."""
        chunk, filled = int(np.searchsorted(self._first_token, start, side="right")) - 1, 0
        start -= int(self._first_token[chunk])
        while filled < len(out):
            part = self.chunks[chunk][0][start : start + len(out) - filled]
            out[filled : filled + len(part)] = part
            chunk, start, filled = chunk + 1, 0, filled + len(part)

    def lengths(self) -> np.ndarray:
        """Returns the number of tokens of each document, `(documents,)`."""
        return np.diff(np.concatenate([np.zeros(1, np.int64), *(ends for _, ends in self.chunks)]))

    def document(self, index: int, most: int | None = None) -> np.ndarray:
        """Returns the tokens of one document, or the first `most` of them."""
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

    `rows` is an index (B = 1), a slice or a tensor of indices `(B,)`.

    Attributes:
        tokens: the tokens that the windows are cut from.
        shape: `(N, L)`.
        kept: number of tokens of the text that lie in some window, without added end and padding tokens.
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
        """Writes window `row` to `out`, int64 `(L,)`."""


class StreamWindows(Windows):
    """Windows that cut the stream of all documents every L tokens; tokens that do not fill a last window are dropped.

    Args:
        tokens: the documents.
        length: L.
        end: a token that each window then begins and ends with, around L - 2 tokens of the stream; None for windows of
            L tokens of the stream.

    Raises:
        UsageError: where there are fewer tokens than one window needs.
    """

    def __init__(self, tokens: Tokens, length: int, end: int | None = None) -> None:
        self.tokens, self.end, self._body = tokens, end, length if end is None else length - 2
        if self._body < 1 or tokens.count < self._body:
            least = 1 + length - self._body
            raise UsageError(
                f"length={length}: the text has {tokens.count} tokens: give a length of {least} to {tokens.count}"
            )
        self.shape = (tokens.count // self._body, length)
        self.kept = self.shape[0] * self._body

    def read(self, row: int, out: np.ndarray) -> None:
        """Writes tokens `row * body` to `(row + 1) * body` of the stream to `out`."""
        if self.end is not None:
            out[0] = out[-1] = self.end
            out = out[1:-1]
        self.tokens.stream(row * self._body, out)


class DocumentWindows(Windows):
    """Windows of one document each: its first L tokens, followed by `padding` where it is shorter.

    Args:
        tokens: the documents.
        length: L.
        padding: id of the padding token.

    Raises:
        UsageError: for a length below 1, or a text without documents.
    """

    def __init__(self, tokens: Tokens, length: int, padding: int) -> None:
        if length < 1 or not tokens.documents:
            raise UsageError(
                f"length={length}, {tokens.documents} documents: give a length of 1 or more and a text that is not "
                "blank"
            )
        self.tokens, self.padding, self.shape = tokens, padding, (tokens.documents, length)
        self.kept = int(np.minimum(tokens.lengths(), length).sum())

    def read(self, row: int, out: np.ndarray) -> None:
        """Writes document `row` to `out`, cut or padded to L tokens."""
        document = self.tokens.document(row, len(out))
        out[: len(document)] = document
        out[len(document) :] = self.padding


class Layout(Protocol):
    """How documents become windows, such as `Packed()` or `Padded()`.

    Called with the tokens, the length L of a window and the ids of the end and the padding token; returns `Windows`.
    """

    @property
    def pads(self) -> bool:
        """Whether the vocabulary has one more token, `padding`, which fills windows."""
        ...

    @property
    def extra(self) -> int:
        """Number of tokens of a window that are not tokens of the text."""
        ...

    def __call__(self, tokens: Tokens, length: int, *, end: int, padding: int) -> Windows: ...


@dataclass(frozen=True)
class Packed:
    """Documents with an end token after each, run together and cut every L tokens, without padding.

    Called as a `Layout`; returns `StreamWindows`.

    Attributes:
        ends: whether every window also begins and ends with an end token, as for MDLM on OpenWebText (Sahoo et al.
            2024, appendix C.1).
    """

    ends: bool = False
    pads = False

    @property
    def extra(self) -> int:
        """Number of tokens of a window that are not tokens of the text: 2 with `ends`, else 0."""
        return 2 * self.ends

    def __call__(self, tokens: Tokens, length: int, *, end: int, padding: int) -> Windows:
        """Returns windows of `length` tokens of the stream of all documents; `end` is the id of the end token."""
        return StreamWindows(tokens, length, end if self.ends else None)


@dataclass(frozen=True)
class Padded:
    """One document in a window, cut at L tokens or filled up with a padding token that the model learns to predict.

    Called as a `Layout`; returns `DocumentWindows`.
    """

    pads = True
    extra = 0

    def __call__(self, tokens: Tokens, length: int, *, end: int, padding: int) -> Windows:
        """Returns windows of one document each, of `length` tokens; `padding` is the id of the padding token."""
        return DocumentWindows(tokens, length, padding)
