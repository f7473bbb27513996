"""Data sets of text: windows of token ids, with the tokenizer that gives them a meaning."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..code_length import perplexity
from ..errors import UsageError
from ..quantization import Quantization
from ..random import Source, uniform
from .batches import Batches
from .tokenizers import Tokenizer
from .windows import Windows


@dataclass(frozen=True)
class Crop:
    """A `form` of `Batches` that takes `length` tokens of each window, at an offset drawn from the batches' seed."""

    length: int

    def __call__(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        """Returns crops `(B, length)`, int64, of windows k `(B, M)`; every offset that fits is equally likely."""
        u = uniform((len(k), 1), generator, dtype=torch.float64, device=k.device)
        offset = (u * (k.shape[1] - self.length + 1)).long()
        return quantization.quantized(k.gather(1, offset + torch.arange(self.length)))


@dataclass(frozen=True, eq=False)
class TextDataset:
    """Windows of token ids, with the tokenizer that gives them a meaning.

    The totals count the whole split, including the few tokens that do not fill a last window, so that a code length in
    nats per token becomes bits per character and perplexity per word whatever the tokenizer is.

    Attributes:
        windows: `windows[rows]` reads rows, int64 `(B, M)`; M is `length`, or the length of the blocks that crops are
            taken from.
        tokenizer: the tokenizer; `decode` uses it.
        tokens: number of tokens of the split, including ends of documents and excluding padding.
        characters: number of characters that they stand for.
        words: number of words that they stand for; with a subword tokenizer, the end of each document counts as one (as
            in D3PM's LM1B).
        padding: id of the padding token, where there is one.
        crop: length of the random crops that batches hold; None for whole windows.
        framing: number of tokens in a window over the number of tokens of text in it; above 1 where each window has end
            tokens added to it (`Packed(ends=True)`).
        lost_characters: number of characters that decoding the tokens does not return, at least; above 0, a code length
            of the tokens is not a code length of the text.
        unknown_tokens: number of tokens that stand for text which the tokenizer does not know.
        summary: one line on what was loaded and what was left out.
    """

    windows: Windows | Tensor
    tokenizer: Tokenizer
    tokens: int
    characters: int
    words: int
    padding: int | None = None
    crop: int | None = None
    framing: float = 1.0
    lost_characters: int = 0
    unknown_tokens: int = 0
    summary: str = ""

    @property
    def lossy(self) -> str:
        """A sentence on what the tokenizer loses, or "" if it loses nothing."""
        if not self.lost_characters:
            return ""
        share = f"{self.lost_characters:,} of {self.characters:,} characters cannot be decoded from the tokens"
        unknown = f" ({self.unknown_tokens:,} of {self.tokens:,} tokens are unknown)" if self.unknown_tokens else ""
        return f"the tokenizer is lossy: {share}{unknown}, so there are no bits per character or perplexity per word"

    @property
    def vocabulary(self) -> int:
        """K, the number of tokens, including the padding token where there is one."""
        return self.tokenizer.size + (self.padding is not None)

    @property
    def length(self) -> int:
        """L, the number of tokens in an example."""
        return self.crop or self.windows.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example, `(L,)`."""
        return (self.length,)

    @property
    def quantization(self) -> Quantization:
        """The quantization whose K levels are the tokens."""
        return Quantization(self.vocabulary)

    @cached_property
    def content(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the text: of its decoded documents, whatever the tokenizer.

        For windows in memory, which have no documents, it is that of their tokens.
        """
        found = hashlib.sha256()
        if isinstance(self.windows, Tensor):
            found.update(self.windows.contiguous().numpy().data)
            return found.hexdigest()[:12]
        tokens = self.windows.tokens
        for index in range(tokens.documents):
            text = self.tokenizer.detokenize(tokens.document(index).tolist())
            found.update(text.strip().encode("utf-8", "replace") + b"\0")
        return found.hexdigest()[:12]

    def encode(self, text: str) -> Tensor:
        """Returns a text as token ids `(L,)`, int64, without an end token, such as for a prompt.

        Raises:
            UsageError: for a text of which the tokenizer encodes nothing.
        """
        (found,) = self.tokenizer.encode([text])
        if len(found.tokens) < 2:
            raise UsageError(
                f"{text!r} contains nothing that this vocabulary of {self.tokenizer.size} tokens can encode: give a "
                "text with letters"
            )
        return torch.as_tensor(found.tokens[:-1].astype("int64"))

    def decode(self, ids: Tensor) -> list[str]:
        """Returns rows of token ids `(B, L)` as texts without padding; ids outside of the vocabulary become `_`."""
        return self.tokenizer.decode(ids, self.padding)

    def frequencies(self, rows: int = 4096) -> Tensor:
        """Returns the relative frequency of each token in the windows, padding included, float64 `(K,)`.

        Args:
            rows: number of windows that are read at a time.
        """
        counts = torch.zeros(self.vocabulary, dtype=torch.int64)
        for start in range(0, len(self.windows), rows):
            counts += torch.bincount(self.windows[start : start + rows].flatten(), minlength=self.vocabulary)
        return counts / counts.sum(dtype=torch.float64)

    def bits_per_character(self, nats: float) -> float:
        """Returns `nats framing tokens / (characters log 2)`, the bits per character of a mean code length.

        Args:
            nats: mean code length in nats per token; the mean leaves padding out and includes the end tokens of
                windows.

        Raises:
            UsageError: for a lossy tokenizer, whose tokens do not determine the text.
        """
        self._refuse_lossy()
        return nats * self.framing * self.tokens / (self.characters * math.log(2))

    def perplexity_per_word(self, nats: float) -> float:
        """Returns `exp(nats framing tokens / words)`, the perplexity per word of a mean code length.

        With a subword tokenizer the end of each document is one of the words, so the figure depends on what the
        documents of a text are.

        Args:
            nats: mean code length in nats per token, as for `bits_per_character`.

        Raises:
            UsageError: as `bits_per_character`.
        """
        self._refuse_lossy()
        return perplexity(nats * self.framing * self.tokens / self.words)

    def _refuse_lossy(self) -> None:
        if self.lost_characters:
            raise UsageError(f"{self.lossy}: take a tokenizer that encodes every text, such as train_tokenizer's")

    def batches(self, batch: int, *, seed: int = 0) -> Batches:
        """Returns endless batches `{"x0": (batch, L)}` of tokens, int64 in 0..K-1.

        Args:
            batch: number of examples in a batch.
            seed: seed of the order and of the crops.
        """
        form = Quantization.quantized if self.crop is None else Crop(self.crop)
        identity = self.tokenizer.fingerprint
        return Batches(self.windows, batch, self.quantization, form, seed=seed, shape=self.shape, tokenizer=identity)
