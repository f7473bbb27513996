"""How good sampled text is, and the baselines that a model of text has to beat."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..tensors import is_integer


class NGram:
    """An n-gram model of symbols with Witten-Bell smoothing (Witten and Bell 1991, method C), interpolated over all
    lower orders.

    `P(w | h) = (c(h w) + T(h) P(w | h')) / (c(h) + T(h))`: c counts in the text, T(h) is the number of different
    symbols seen after context h, h' is h without its oldest symbol, and below the empty context lies the uniform law.
    Every symbol has a positive probability in every context. The first symbols of a window have the shorter contexts
    that there are.

    Args:
        order: symbols in an n-gram, 1 for frequencies alone.
        symbols: K.

    Raises:
        UsageError: for an order or a number of symbols below one, or n-grams too many to number, `K^order >= 2^63`.
    """

    def __init__(self, order: int, symbols: int) -> None:
        if order < 1 or symbols < 1 or symbols**order >= 1 << 63:
            raise UsageError(f"order={order}, symbols={symbols}: give 1 or more, with symbols^order below 2^63")
        self.order, self.symbols, self._tables = order, symbols, []

    def fit(self, text: Tensor) -> NGram:
        """Counts the n-grams of a stream `(L,)` or of windows `(N, L)`, in place of those counted before; returns
        itself.

        Raises:
            UsageError: for symbols outside 0 to K - 1, or no text.
        """
        windows = self._checked(text)
        self._tables = []
        for m in range(1, min(self.order, windows.shape[1]) + 1):
            grams, counts = np.unique(self._codes(windows, m), return_counts=True)
            contexts, first = np.unique(grams // self.symbols, return_index=True)
            self._tables.append(
                (grams, counts, contexts, np.add.reduceat(counts, first), np.diff(np.append(first, len(grams))))
            )
        return self

    def bits(self, windows: Tensor) -> Tensor:
        """`-log2 P` of each window, `(N, L)` -> float64 `(N,)`; a stream `(L,)` is one window.

        Raises:
            UsageError: before `fit`, or for symbols outside 0 to K - 1.
        """
        x = self._checked(windows)
        p = np.full(x.shape, 1 / self.symbols)
        for m, table in enumerate(self._fitted()[: x.shape[1]], start=1):
            p[:, m - 1 :] = self._mixed(table, self._codes(x, m), p[:, m - 1 :])
        return torch.from_numpy(-np.log2(p).sum(1))

    def probabilities(self, contexts: Tensor) -> Tensor:
        """`P(. | h)` for contexts `(N, m)` of any m, of which the last `order - 1` symbols count: float64 `(N, K)`."""
        count, length = contexts.shape
        symbols = torch.arange(self.symbols).repeat(count)[:, None]
        x = self._checked(torch.cat([contexts.repeat_interleave(self.symbols, 0), symbols], 1))
        p = np.full(len(x), 1 / self.symbols)
        for m, table in enumerate(self._fitted()[: length + 1], start=1):
            p = self._mixed(table, self._codes(x[:, length + 1 - m :], m)[:, 0], p)
        return torch.from_numpy(p.reshape(count, self.symbols))

    def _fitted(self) -> list[tuple[np.ndarray, ...]]:
        if not self._tables:
            raise UsageError("this n-gram model has seen no text: call fit(text) first")
        return self._tables

    def _checked(self, text: Tensor) -> np.ndarray:
        tokens(text)
        windows = (text if text.ndim > 1 else text[None]).cpu().numpy()
        if windows.ndim != 2 or windows.size == 0:
            raise UsageError(f"text of shape {tuple(text.shape)}: give symbols (N, L) or (L,), one or more")
        if windows.min() < 0 or windows.max() >= self.symbols:
            raise UsageError(f"symbols from {windows.min()} to {windows.max()}: this model has 0 to {self.symbols - 1}")
        return windows

    def _codes(self, x: np.ndarray, m: int) -> np.ndarray:
        """The m-grams of each window as numbers in base K, `(N, L - m + 1)`, int64."""
        last = x.shape[1] - m + 1
        codes = np.zeros((len(x), last), np.int64)
        for i in range(m):
            codes = codes * self.symbols + x[:, i : i + last]
        return codes

    def _mixed(self, table: tuple[np.ndarray, ...], codes: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Witten and Bell's mixture of one order with the order below."""
        grams, counts, contexts, totals, kinds = table
        gram, seen = _found(grams, codes)
        context, known = _found(contexts, codes // self.symbols)
        total, kind = totals[context] * known, kinds[context] * known
        return np.where(known, (counts[gram] * seen + kind * lower) / np.maximum(total + kind, 1), lower)


class Generated(NamedTuple):
    """A judge's view of samples, to be printed together: samples that repeat themselves have a low perplexity and a low
    entropy.

    Attributes:
        perplexity: of the judge, per token.
        entropy: mean unigram entropy of a sample, bits.
    """

    perplexity: float
    entropy: float


def generative_perplexity(judge: NGram, samples: Tensor) -> Generated:
    """`2^(bits / tokens)` of samples `(N, L)` under a model of the data, with their `entropy` beside it.

    Zheng et al. 2024.
    """
    perplexity = 2.0 ** float(judge.bits(samples).sum() / samples.numel())
    return Generated(perplexity, entropy(samples, judge.symbols))


def entropy(samples: Tensor, symbols: int) -> float:
    """Entropy of the frequencies of the symbols in a sample, in bits, averaged over samples `(N, L)`; at most
    `log2 min(K, L)`.

    Raises:
        UsageError: for no samples, or symbols outside 0 to K - 1.
    """
    tokens(samples)
    if samples.ndim != 2 or samples.numel() == 0 or int(samples.min()) < 0 or int(samples.max()) >= symbols:
        raise UsageError(f"samples of shape {tuple(samples.shape)}: give (N, L) with symbols 0 to {symbols - 1}")
    total = 0.0
    for sample in samples:  # K may be 50,000: one sample's counts at a time
        p = torch.bincount(sample.long(), minlength=symbols).double() / len(sample)
        total -= float(torch.xlogy(p, p).sum())
    return total / len(samples) / float(np.log(2))


def distinct(samples: Tensor, n: int) -> float:
    """Share of different n-grams among all n-grams of samples `(N, L)`, in (0, 1] (Li et al. 2016, distinct-n).

    Raises:
        UsageError: for n outside 1 to L.
    """
    tokens(samples)
    if samples.ndim != 2 or not 1 <= n <= samples.shape[1]:
        raise UsageError(f"n={n} for samples of shape {tuple(samples.shape)}: give (N, L) and n from 1 to L")
    grams = samples.unfold(1, n, 1).reshape(-1, n)
    return len(grams.unique(dim=0)) / len(grams)


def tokens(text: Tensor) -> None:
    """Raises `UsageError` unless the text is a tensor of integers of any width."""
    if not isinstance(text, Tensor) or not is_integer(text):
        what = text.dtype if isinstance(text, Tensor) else type(text).__name__
        raise UsageError(f"text of {what}: give a tensor of integers, such as torch.as_tensor(text).long()")


def _found(table: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where codes stand in a sorted table, and whether they do."""
    place = np.minimum(np.searchsorted(table, codes), len(table) - 1)
    return place, table[place] == codes
