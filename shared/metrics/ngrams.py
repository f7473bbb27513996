"""Comparisons of samples with text by their n-grams: divergence of frequencies, and overlap with the training text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data import TextDataset
from ..data.windows import StreamWindows
from ..errors import UsageError
from .errors import ratio_of_sums
from .text import check_tokens

AT_ONCE = 1 << 16
"""The number of tokens of the training text that are searched at a time."""
BUCKETS = 20
"""Binary logarithm of the number of buckets into which hashes are sorted before they are looked up."""


def divergence(samples: Tensor, reference: Tensor, n: int, padding: int | None = None) -> float:
    """Returns the Jensen-Shannon divergence of the n-gram frequencies of two texts, in bits, from 0 to 1.

    It is `H((p + q) / 2) - (H(p) + H(q)) / 2`, with p and q the relative frequencies of the n-grams of all rows. Finite
    texts of one distribution have a positive divergence, more so for larger n: compare with that of two real texts of
    the same sizes.

    Args:
        samples: tokens `(N, L)`.
        reference: tokens `(M, L')`.
        n: the length of the n-grams.
        padding: a token whose n-grams are left out.

    Raises:
        UsageError: for n outside 1 to L, or a text without n-grams.
    """
    from scipy.special import xlogy

    a, b = grams(samples, n, padding), grams(reference, n, padding)
    _, kinds = np.unique(np.concatenate([a, b]), return_inverse=True)
    most = int(kinds.max()) + 1
    p, q = (np.bincount(part, minlength=most) / len(part) for part in (kinds[: len(a)], kinds[len(a) :]))
    nats = xlogy(p, p).sum() / 2 + xlogy(q, q).sum() / 2 - xlogy((p + q) / 2, (p + q) / 2).sum()
    return max(0.0, float(nats) / float(np.log(2)))


def counts(samples: Iterable[Tensor], vocabulary: int, n: int) -> Tensor:
    """Returns how often each n-gram occurs in each sample, float32 `(N, K^n)`: features of short texts.

    Args:
        samples: the tokens of each sample, 1-D, or all as `(N, L)`.
        vocabulary: K.
        n: the length of the n-grams.

    Raises:
        UsageError: if `K^n` is above a million.
    """
    if vocabulary**n > 1_000_000:
        raise UsageError(f"n={n}: {vocabulary} tokens have {vocabulary**n:,} n-grams: give a smaller n")
    found = []
    for sample in samples:
        codes = torch.zeros(max(0, len(sample) - n + 1), dtype=torch.int64)
        for i in range(n):
            codes = codes * vocabulary + sample[i : i + len(codes)].long().cpu()
        found.append(torch.bincount(codes, minlength=vocabulary**n).float())
    return torch.stack(found)


def grams(samples: Tensor, n: int, padding: int | None = None) -> np.ndarray:
    """Returns the n-grams of all rows `(N, L)` that do not contain the padding token, as 64-bit hashes, 1-D uint64.

    Raises:
        UsageError: for n outside 1 to L, or rows without such n-grams.
    """
    check_length(samples, n)
    rows = samples.long().cpu().numpy()
    found = hashes_of(n)(rows)[countable(rows, n, padding)]
    if not len(found):
        raise UsageError(f"n={n}: no sample has {n} tokens without padding: give a smaller n")
    return found


def check_length(samples: Tensor, n: int) -> None:
    """Raises `UsageError` unless samples are tokens `(N, L)` that contain n-grams."""
    check_tokens(samples)
    if samples.ndim != 2 or len(samples) == 0 or not 1 <= n <= samples.shape[1]:
        raise UsageError(f"n={n} for samples of shape {tuple(samples.shape)}: give (N, L) and n from 1 to L")


class Overlap(NamedTuple):
    """How much of samples occurs in a text.

    Attributes:
        share: share of the n-grams of the samples that occur in the text, from 0 to 1.
        longest: the largest number of successive tokens of one sample that occur in the text.
        error: standard error of the share, over the samples.
    """

    share: float
    longest: int
    error: float


class Stream:
    """The tokens of a text, read in parts; n-grams of rows that are not successive are not formed.

    Args:
        text: a data set, or windows `(N, L)`.
        most: number of tokens that are read, from the beginning.

    Attributes:
        length: number of tokens that are read.
        total: number of tokens of the text.
    """

    def __init__(self, text: TextDataset | Tensor, most: int = 1 << 60) -> None:
        self.windows = windows = text.windows if isinstance(text, TextDataset) else text
        total = windows.tokens.count if isinstance(windows, StreamWindows) else windows.shape[0] * windows.shape[1]
        self.length, self.total = min(total, most), total

    def digest(self) -> str:
        """Returns the first 12 hexadecimal digits of the SHA-256 of the tokens."""
        content = hashlib.sha256()
        for part in self.parts(1):
            content.update(np.ascontiguousarray(part, np.int64).data)
        return content.hexdigest()[:12]

    def parts(self, n: int) -> Iterator[np.ndarray]:
        """Yields rows of tokens, `(rows, length)`, that contain all n-grams of the text, a few of them twice."""
        if isinstance(self.windows, StreamWindows):
            for start in range(0, self.length, AT_ONCE):
                part = np.empty(min(AT_ONCE + n - 1, self.length - start), np.int64)
                self.windows.tokens.stream(start, part)
                yield part[None]
            return
        width = self.windows.shape[1]
        rows, size = max(1, self.length // width), max(1, AT_ONCE // width)
        for start in range(0, rows, size):
            yield self.windows[start : min(start + size, rows)].long().numpy()


def overlap(groups: list[Tensor], stream: Stream, n: int, padding: int | None = None) -> list[Overlap]:
    """Returns how much of each group of samples occurs in a text, such as in the training text.

    N-grams are compared by 64-bit hashes: the probability that any of a million n-grams is found by chance in a billion
    is below 1e-4.

    Args:
        groups: tokens `(N, L)` of each group, such as samples and held-out text.
        stream: the text.
        n: the length of the n-grams whose share is computed.
        padding: a token whose n-grams are left out.

    Raises:
        UsageError: for n outside 1 to L, or samples without n-grams.
    """
    for group in groups:
        grams(group, n, padding)
    arrays, made = [group.long().cpu().numpy() for group in groups], []
    for rows, found in zip(arrays, occurring(arrays, stream, n, padding), strict=True):
        share, error = ratio_of_sums(*(torch.from_numpy(x.sum(1)) for x in (found, countable(rows, n, padding))))
        made.append(Overlap(share, longest_run(rows, stream, n, found, padding), error))
    return made


def longest_run(samples: np.ndarray, stream: Stream, n: int, found: np.ndarray, padding: int | None) -> int:
    """Returns the largest number of successive tokens of a sample that occur in a text, by bisection.

    `found` are the n-grams of each sample that occur in it, for the length n that is tried first.
    """
    known = found.any()
    low, high, rows = (n, samples.shape[1], samples[found.any(1)]) if known else (0, n - 1, samples)
    while low < high:
        n = (low + high + 1) // 2
        (found,) = occurring([rows], stream, n, padding)
        if found.any():
            low, rows = n, rows[found.any(1)]  # a longer run can only be in a row that has one of this length
        else:
            high = n - 1
    return low


def countable(rows: np.ndarray, n: int, padding: int | None) -> np.ndarray:
    """Returns which n-grams of rows `(N, L)` do not contain the padding token, bool `(N, L - n + 1)`."""
    return np.logical_not(np.lib.stride_tricks.sliding_window_view(rows == padding, n, axis=1).any(2))


def occurring(samples: list[np.ndarray], stream: Stream, n: int, padding: int | None) -> list[np.ndarray]:
    """Returns which n-grams of rows `(N, L)` occur in a text, bool `(N, L - n + 1)` for each group of rows.

    Those that contain the padding token do not.
    """
    hashed = hashes_of(n)
    own = [hashed(rows) for rows in samples]
    wanted = np.unique(np.concatenate([h.reshape(-1) for h in own]))
    bucket = np.zeros(1 << BUCKETS, bool)
    bucket[wanted >> np.uint64(64 - BUCKETS)] = True
    seen = np.zeros(len(wanted), bool)
    for part in stream.parts(n):
        if part.shape[1] < n:
            continue
        found = hashed(part).reshape(-1)
        found = found[bucket[found >> np.uint64(64 - BUCKETS)]]
        place = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
        seen[place[wanted[place] == found]] = True
    return [
        seen[np.searchsorted(wanted, h)] & countable(rows, n, padding) for rows, h in zip(samples, own, strict=True)
    ]


def hashes_of(n: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from rows `(N, L)` to the 64-bit hashes of their n-grams, uint64 `(N, L - n + 1)`.

    The hash is the sum of `mixed(x_i) b^i` modulo 2^64, b odd, from prefix sums, and then mixed once more.
    """
    base = 0x9E3779B97F4A7C15
    inverse = pow(base, -1, 1 << 64)

    def hashed(rows: np.ndarray) -> np.ndarray:
        length = rows.shape[1]
        values = mixed(np.arange(int(rows.max()) + 1, dtype=np.uint64) + np.uint64(1))[rows] * powers(base, length)
        sums = np.zeros((len(rows), length + 1), np.uint64)
        np.cumsum(values, axis=1, out=sums[:, 1:])
        return mixed((sums[:, n:] - sums[:, :-n]) * powers(inverse, length - n + 1))

    return hashed


@lru_cache(maxsize=8)
def powers(base: int, count: int) -> np.ndarray:
    """Returns `base^i` modulo 2^64 for i = 0 to count - 1, uint64."""
    steps = np.full(count, base, np.uint64)
    steps[:1] = 1
    return np.cumprod(steps, dtype=np.uint64)


def mixed(x: np.ndarray) -> np.ndarray:
    """Returns 64-bit numbers whose bits all depend on all bits of x (the finalizer of SplitMix64, one to one)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
