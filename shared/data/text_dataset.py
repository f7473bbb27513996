"""Sets of text: windows of tokens and what they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..code_length import perplexity
from ..errors import UsageError
from ..quantization import Quantization
from ..random import Source
from .batches import Batches
from .tokenizers import Tokenizer
from .windows import Windows


@dataclass(frozen=True)
class Crop:
    """A form of `Batches`.

    A random piece of `length` tokens of each window, which depends on the batches' seed and position alone.
    """

    length: int

    def __call__(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        """Pieces `(B, length)`, int64; every offset that fits is equally likely."""
        offset = torch.randint(k.shape[1] - self.length + 1, (len(k), 1), generator=generator)
        return quantization.quantized(k.gather(1, offset + torch.arange(self.length)))


@dataclass(frozen=True, eq=False)
class TextDataset:
    """Windows of tokens and what they mean.

    The totals are those of the split, so that a code length in nats per token becomes bits per character and perplexity
    per word whatever the tokenizer is; the few tokens that fill no last window are among them.

    Attributes:
        windows: `windows[rows]` reads rows, int64 `(B, M)`; M is `length`, or the block that crops are taken from.
        alphabet: what the tokens stand for; `decode` uses it.
        tokens: tokens of the split, ends of documents among them, padding not.
        characters: characters that they stand for.
        words: words that they stand for; with a tokenizer, the end of each document counts as one (as for D3PM's LM1B).
        padding: the padding token, where there is one.
        crop: batches hold random pieces of this length of the windows.
        framing: tokens of a window for each token of the text in it; above 1 where windows have ends of their own.
        lost: characters that the tokens do not give back, at least; above 0 a code length of the tokens is not one of
            the text.
        unknown: tokens that stand for anything the tokenizer does not know.
        summary: what was loaded and what was left out, in one line.
    """

    windows: Windows
    alphabet: Tokenizer
    tokens: int
    characters: int
    words: int
    padding: int | None = None
    crop: int | None = None
    framing: float = 1.0
    lost: int = 0
    unknown: int = 0
    summary: str = ""

    @property
    def lossy(self) -> str:
        """What the tokenizer loses, in words; nothing where it loses nothing."""
        if not self.lost:
            return ""
        unknown = f", {self.unknown:,} of {self.tokens:,} tokens being unknown" if self.unknown else ""
        share = f"{self.lost:,} of {self.characters:,} characters cannot be decoded from the tokens{unknown}"
        return f"the tokenizer is lossy: {share}, so there are no bits per character and no perplexity per word"

    @property
    def vocabulary(self) -> int:
        """K: tokens and, where there is one, the padding."""
        return self.alphabet.size + (self.padding is not None)

    @property
    def length(self) -> int:
        """L: tokens in an example."""
        return self.crop or self.windows.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example, `(L,)`."""
        return (self.length,)

    @property
    def quantization(self) -> Quantization:
        """K levels."""
        return Quantization(self.vocabulary)

    def encode(self, text: str) -> Tensor:
        """A text as tokens `(L,)`, int64, without an end: what a prompt is made of."""
        (found,) = self.alphabet.encode([text])
        if len(found.tokens) < 2:
            raise UsageError(
                f"{text!r} holds nothing that these {self.alphabet.size} symbols can write: give some letters"
            )
        return torch.as_tensor(found.tokens[:-1].astype("int64"))

    def decode(self, ids: Tensor) -> list[str]:
        """Rows of tokens `(B, L)` as texts, without the padding; ids that are no token are written `_`."""
        return self.alphabet.decode(ids, self.padding)

    def frequencies(self, rows: int = 4096) -> Tensor:
        """How often each token stands in the windows, padding among them: a law over K, float64.

        Read `rows` windows at a time.
        """
        counts = torch.zeros(self.vocabulary, dtype=torch.int64)
        for start in range(0, len(self.windows), rows):
            counts += torch.bincount(self.windows[start : start + rows].flatten(), minlength=self.vocabulary)
        return counts / counts.sum(dtype=torch.float64)

    def bits_per_character(self, nats: float) -> float:
        """`nats tokens / (characters log 2)` of a mean code length in nats per token (padding left out, ends of windows
        included).

        Raises:
            UsageError: where the tokenizer is lossy: its tokens are no code of the text.
        """
        self._refuse_lossy()
        return nats * self.framing * self.tokens / (self.characters * math.log(2))

    def perplexity_per_word(self, nats: float) -> float:
        """`exp(nats tokens / words)` of a mean code length in nats per token (padding left out, ends of windows
        included).

        With a tokenizer the end of each document is one of the words, so the figures of a text depend on what its
        documents are.

        Raises:
            UsageError: as `bits_per_character`.
        """
        self._refuse_lossy()
        return perplexity(nats * self.framing * self.tokens / self.words)

    def _refuse_lossy(self) -> None:
        if self.lost:
            raise UsageError(f"{self.lossy}: take a tokenizer that writes every text, such as train_tokenizer's")

    def batches(self, batch: int, *, seed: int = 0) -> Batches:
        """Endless batches `{"x0": (batch, L)}`, int64.

        Args:
            batch: examples in a batch.
            seed: of the order and of the crops.
        """
        form = Quantization.quantized if self.crop is None else Crop(self.crop)
        return Batches(
            self.windows, batch, self.quantization, form, seed=seed, shape=self.shape, alphabet=self.alphabet.named
        )
