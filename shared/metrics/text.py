"""Measures of the quality of sampled text, and n-gram models as baselines for language models."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data import TextDataset
from ..errors import UsageError
from ..tensors import is_integer


class NGram:
    """An n-gram model of tokens with interpolated Witten-Bell smoothing (Witten and Bell 1991, method C).

    `P(w | h) = (c(h w) + T(h) P(w | h')) / (c(h) + T(h))`: c are counts in the text, T(h) is the number of different
    tokens after context h, and h' is h without its first token; the model of order zero is the uniform distribution.
    Every token has a positive probability in every context. The first tokens of a window have shorter contexts.

    Args:
        order: n, the number of tokens in an n-gram, 1 for token frequencies.
        vocabulary: number K of tokens; they are 0..K-1.

    Raises:
        UsageError: for an order or a vocabulary below one, or `K^order >= 2^63`, which does not fit into int64.
    """

    def __init__(self, order: int, vocabulary: int) -> None:
        if order < 1 or vocabulary < 1 or vocabulary**order >= 1 << 63:
            raise UsageError(
                f"order={order}, vocabulary={vocabulary}: both must be 1 or more, with vocabulary^order below 2^63"
            )
        self.order, self.vocabulary = order, vocabulary
        self._tables: list[tuple[np.ndarray, ...]] = []

    def fit(self, text: Tensor) -> NGram:
        """Counts the n-grams of a stream `(L,)` or of windows `(N, L)`; earlier counts are dropped.

        Returns:
            This model.

        Raises:
            UsageError: for tokens outside 0..K-1, or an empty text.
        """
        windows = self._checked(text)
        self._tables = []
        for m in range(1, min(self.order, windows.shape[1]) + 1):
            grams, counts = np.unique(self._codes(windows, m), return_counts=True)
            contexts, first = np.unique(grams // self.vocabulary, return_index=True)
            self._tables.append(
                (grams, counts, contexts, np.add.reduceat(counts, first), np.diff(np.append(first, len(grams))))
            )
        return self

    def bits(self, windows: Tensor) -> Tensor:
        """Returns the code length `-log2 P` of each window, float64 `(N,)`, for `(N, L)`; a stream `(L,)` is a window.

        It is the sum over the window's L tokens, in bits.

        Raises:
            UsageError: before `fit`, or for tokens outside 0..K-1.
        """
        x = self._checked(windows)
        p = np.full(x.shape, 1 / self.vocabulary)
        for m, table in enumerate(self._fitted()[: x.shape[1]], start=1):
            p[:, m - 1 :] = self._mixed(table, self._codes(x, m), p[:, m - 1 :])
        return torch.from_numpy(-np.log2(p).sum(1))

    def probabilities(self, contexts: Tensor) -> Tensor:
        """Returns `P(. | h)`, float64 `(N, K)`, for contexts `(N, m)`, of which the last `order - 1` tokens count.

        Raises:
            UsageError: before `fit`, or for tokens outside 0..K-1.
        """
        count, length = contexts.shape
        tokens = torch.arange(self.vocabulary).repeat(count)[:, None]
        x = self._checked(torch.cat([contexts.repeat_interleave(self.vocabulary, 0), tokens], 1))
        p = np.full(len(x), 1 / self.vocabulary)
        for m, table in enumerate(self._fitted()[: length + 1], start=1):
            p = self._mixed(table, self._codes(x[:, length + 1 - m :], m)[:, 0], p)
        return torch.from_numpy(p.reshape(count, self.vocabulary))

    def _fitted(self) -> list[tuple[np.ndarray, ...]]:
        if not self._tables:
            raise UsageError("this n-gram model has no counts yet: call fit(text) first")
        return self._tables

    def _checked(self, text: Tensor) -> np.ndarray:
        check_tokens(text)
        windows = (text if text.ndim > 1 else text[None]).cpu().numpy()
        if windows.ndim != 2 or windows.size == 0:
            raise UsageError(f"text of shape {tuple(text.shape)}: give one token or more, (N, L) or (L,)")
        if windows.min() < 0 or windows.max() >= self.vocabulary:
            raise UsageError(
                f"tokens from {windows.min()} to {windows.max()}: this model has tokens 0 to {self.vocabulary - 1}"
            )
        return windows

    def _codes(self, x: np.ndarray, m: int) -> np.ndarray:
        """Returns the m-grams of each window as numbers in base K, int64 `(N, L - m + 1)`."""
        last = x.shape[1] - m + 1
        codes = np.zeros((len(x), last), np.int64)
        for i in range(m):
            codes = codes * self.vocabulary + x[:, i : i + last]
        return codes

    def _mixed(self, table: tuple[np.ndarray, ...], codes: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Returns the smoothed probabilities of an order, from those of the order below."""
        grams, counts, contexts, totals, kinds = table
        gram, seen = _found(grams, codes)
        context, known = _found(contexts, codes // self.vocabulary)
        total, kind = totals[context] * known, kinds[context] * known
        return np.where(known, (counts[gram] * seen + kind * lower) / np.maximum(total + kind, 1), lower)


class PerplexityAndEntropy(NamedTuple):
    """Generative perplexity and entropy of samples, to be reported together: repetitive samples have both low.

    Attributes:
        perplexity: perplexity per token, under the n-gram model that judges the samples.
        entropy: entropy of the token frequencies in one sample, in bits per token, averaged over the samples.
    """

    perplexity: float
    entropy: float


def generative_perplexity(judge: NGram, samples: Tensor) -> PerplexityAndEntropy:
    """Returns the perplexity `2^(bits / tokens)` of samples `(N, L)` under a model of the data, and their entropy.

    Both are reported together, as in Zheng et al. (2024).

    Args:
        judge: the model, after `fit` on data.
        samples: integers in 0..K-1, K the vocabulary of the judge.

    Raises:
        UsageError: where the judge is not fitted, or for no samples or tokens outside 0..K-1.
    """
    perplexity = 2.0 ** float(judge.bits(samples).sum() / samples.numel())
    return PerplexityAndEntropy(perplexity, entropy(samples, judge.vocabulary))


def entropy(samples: Tensor, vocabulary: int) -> float:
    """Returns the entropy of the token frequencies in a sample, in bits, averaged over samples `(N, L)`.

    It is at most `log2 min(K, L)`, K the vocabulary.

    Raises:
        UsageError: for no samples, or tokens outside 0..K-1.
    """
    check_tokens(samples)
    if samples.ndim != 2 or samples.numel() == 0 or int(samples.min()) < 0 or int(samples.max()) >= vocabulary:
        raise UsageError(f"samples of shape {tuple(samples.shape)}: give (N, L) with tokens 0 to {vocabulary - 1}")
    total = 0.0
    for sample in samples:  # one at a time, since K counts for each sample could exceed the memory
        p = torch.bincount(sample.long(), minlength=vocabulary).double() / len(sample)
        total -= float(torch.xlogy(p, p).sum())
    return total / len(samples) / float(np.log(2))


def distinct(samples: Tensor, n: int) -> float:
    """Returns distinct-n (Li et al. 2016): the number of different n-grams divided by the number of all, in (0, 1].

    The n-grams are those of all samples `(N, L)` together.

    Raises:
        UsageError: for n outside 1 to L.
    """
    check_tokens(samples)
    if samples.ndim != 2 or not 1 <= n <= samples.shape[1]:
        raise UsageError(f"n={n} for samples of shape {tuple(samples.shape)}: give (N, L) and n from 1 to L")
    grams = samples.unfold(1, n, 1).reshape(-1, n)
    return len(grams.unique(dim=0)) / len(grams)


def check_tokens(text: Tensor) -> None:
    """Raises `UsageError` unless the text is a tensor of integers, of any integer dtype."""
    if not isinstance(text, Tensor) or not is_integer(text):
        what = text.dtype if isinstance(text, Tensor) else type(text).__name__
        raise UsageError(f"text of {what}: give a tensor of integers, such as torch.as_tensor(text).long()")


def _found(table: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of codes in a sorted table, and whether each is there."""
    place = np.minimum(np.searchsorted(table, codes), len(table) - 1)
    return place, table[place] == codes


LARGEST_VOCABULARY, JUDGED = 64, 50_000
"""An n-gram model measures samples of up to this many tokens; it is fitted to at most so many training windows."""


def judged(samples: Tensor, train: TextDataset, order: int = 5) -> dict[str, Any]:
    """Measures the entropy of samples and, for small vocabularies, their perplexity under an n-gram model.

    The n-gram model is fitted to the training text.
    """
    found = {
        "sample_entropy": entropy(samples, train.vocabulary),
        "distinct_4": distinct(samples, min(4, samples.shape[1])),
    }
    if train.vocabulary > LARGEST_VOCABULARY:
        return found
    judge = NGram(order, train.vocabulary).fit(train.windows[: min(len(train.windows), JUDGED)])
    return {"generative_perplexity": generative_perplexity(judge, samples).perplexity} | found
