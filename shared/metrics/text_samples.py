"""Measures of sampled texts beside those of real held-out text, each with its protocol."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import CharacterTokenizer, TextDataset
from ..errors import UsageError, did_you_mean
from ..progress import Progress, silent
from .causal import CausalJudge, entropy_of
from .errors import ratio_of_sums, standard_error
from .mauve import mauve
from .measurement import Evaluation, Measurement, Origin, Protocol
from .ngrams import Stream, counts, divergence, grams, overlap
from .text import JUDGED, LARGEST_VOCABULARY, NGram

ORDER = 5
"""The order of the n-gram model of the training text that codes samples."""
OVERLAP = {"characters": 32, "tokens": 8}
"""The length of the n-grams that are looked for in the training text, about six words."""
SEARCHED = 100_000_000
"""The number of tokens of the training text, from its beginning, in which n-grams of samples are looked for."""
PARTS = ("n-grams", "judge", "memorization")
"""What can be left out: distinct n-grams and their divergence; the n-gram model and MAUVE; overlap with training."""
FEW, TOO_FEW = 1000, 100
"""The numbers of samples below which MAUVE has a note that it depends on chance, and below which it is not measured."""


def evaluate_texts(
    texts: Sequence[str] | Tensor,
    reference: TextDataset,
    origin: Origin = Origin(),  # noqa: B008 (frozen)
    *,
    train: TextDataset | None = None,
    name: str = "",
    judge_model: str | Path | CausalJudge | None = None,
    without: Sequence[str] = (),
    progress: Progress = silent,
) -> Evaluation:
    """Measures texts from anywhere against held-out text, with the same measures of real held-out text beside them.

    Measurements: `sample_entropy_bits`, `distinct_2` and `distinct_4`, `ngram_divergence_1` to `_4` (Jensen-Shannon, in
    bits); for vocabularies of at most 64 tokens `mauve_bigrams`; with training text also
    `generative_perplexity_per_token_5_gram`, and `overlap_32` (characters) or `overlap_8` (tokens) and `longest_run`,
    which show what is copied; with a causal language model NAME `generative_perplexity_NAME`, `sample_entropy_NAME` and
    `mauve_NAME`.

    Args:
        texts: the texts; or token ids `(N, L)` of the reference's tokenizer.
        reference: held-out text.
        origin: where the texts come from.
        train: the training text, or None.
        name: short name of the text, such as shakespeare, for the protocols.
        judge_model: a causal language model of the `transformers` library, a name or folder; None for none.
        without: what is left out, of `PARTS`.
        progress: how to report progress.

    Raises:
        UsageError: for no texts, an unknown part, or a causal model that cannot be loaded.
    """
    for part in without:
        if part not in PARTS:
            raise UsageError(f"without={part}: {did_you_mean(part, PARTS)}of text, choose from {', '.join(PARTS)}")
    judge = CausalJudge(judge_model) if isinstance(judge_model, str | Path) else judge_model
    about: dict[str, Any] = {}
    if isinstance(texts, Tensor):
        rows = checked(texts.long().cpu(), reference.tokenizer.size)
    else:
        rows, cut = tokenized(texts, reference)
        if cut:
            about["cut"] = f"{cut:,} of {len(texts):,} texts are longer than {rows.shape[1]} tokens, and are cut there"
    measures = TextMeasures(rows, reference, origin, name or "the text", progress)
    found = [measures.entropy()]
    if "n-grams" not in without:
        found += [measures.distinct(n) for n in (2, 4) if n <= measures.longest]
        found += measures.divergences(train)
        if measures.longest < 4:
            about["n_grams"] = f"not measured above n={measures.longest}: the longest text or window has so many tokens"
    if "judge" not in without:
        found += measures.of_ngram_model(train)
        found += measures.of_bigrams()
    if "memorization" not in without and train is not None:
        found += measures.overlap(train)
    if judge is not None:
        found += measures.of_causal_model(judge)
    few, small = min(len(rows), len(reference.windows)), reference.vocabulary <= LARGEST_VOCABULARY
    if few < TOO_FEW and (judge is not None or (small and "judge" not in without)):
        about["mauve"] = f"not measured: {few} samples or held-out windows, fewer than {TOO_FEW}"
    return Evaluation(about, found)


def checked(rows: Tensor, size: int) -> Tensor:
    """Returns tokens `(N, L)` from 0 to `size`, which is padding.

    Raises:
        UsageError: for others, and for no tokens.
    """
    if rows.ndim != 2 or rows.numel() == 0:
        raise UsageError(f"texts of shape {tuple(rows.shape)}: give tokens (N, L) of one text or more")
    if int(rows.min()) < 0 or int(rows.max()) > size:
        raise UsageError(
            f"texts have tokens from {int(rows.min())} to {int(rows.max())}, and the tokenizer has 0 to {size - 1} "
            f"({size} is padding): give tokens of the same tokenizer"
        )
    return rows


def tokenized(texts: Sequence[str], like: TextDataset) -> tuple[Tensor, int]:
    """Returns texts as tokens of a data set's tokenizer, cut after the length of its windows, shorter ones padded.

    The padding token is the number after those of the tokenizer. The second value is the number of texts that are cut.

    Raises:
        UsageError: for no texts, or one of which the tokenizer encodes nothing.
    """
    if not texts:
        raise UsageError("there are no texts: give one or more")
    found = [like.encode(text) for text in texts]
    cut = sum(len(text) > like.length for text in found)
    rows = [text[: like.length] for text in found]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=like.tokenizer.size), cut


def decoded_rows(text: TextDataset, rows: Tensor) -> list[str]:
    """Returns rows of tokens as texts, without padding."""
    return text.tokenizer.decode(rows, text.tokenizer.size)


def first_windows(text: TextDataset, count: int, skip: int = 0) -> Tensor:
    """Returns `count` windows of a text, or as many as there are, int64 `(N, length)`, after the first `skip`."""
    return text.windows[skip : min(skip + count, len(text.windows))].long()[:, : text.length]


def digest(rows: Tensor) -> str:
    """Returns the first 12 hexadecimal digits of the SHA-256 of tokens."""
    return hashlib.sha256(rows.contiguous().numpy().data).hexdigest()[:12]


class TextMeasures:
    """Measures of texts beside those of as many windows of held-out text, of the same lengths.

    Args:
        rows: the texts as tokens `(N, L)`; the number after those of the tokenizer is padding.
        reference: the held-out text.
        origin: where the texts come from.
        name: short name of the text.
        progress: how to report progress.
    """

    def __init__(self, rows: Tensor, reference: TextDataset, origin: Origin, name: str, progress: Progress) -> None:
        self.rows, self.reference, self.origin, self.name = rows, reference, origin, name
        self.progress, self.padding = progress, reference.tokenizer.size
        self.lengths = (rows != self.padding).sum(1)
        self.real = self.windows_of(reference)
        self.unit = "characters" if isinstance(reference.tokenizer, CharacterTokenizer) else "tokens"
        self.form = f"texts of at most {rows.shape[1]} of {reference.tokenizer.fingerprint}"
        self.longest = min(int((each != self.padding).sum(1).max()) for each in (rows, self.real))
        if not self.longest:
            raise UsageError("all texts are empty: give texts with a token or more")

    def windows_of(self, text: TextDataset, skip: int = 0) -> Tensor:
        """Returns as many windows of a text as there are samples, each as long as its sample if it is not padded."""
        windows = first_windows(text, len(self.rows), skip)[:, : self.rows.shape[1]]
        if text.padding is not None:
            return windows
        beyond = torch.arange(windows.shape[1]) >= self.lengths[: len(windows), None]
        return windows.masked_fill(beyond, self.padding)

    def measured(
        self,
        name: str,
        value: float,
        protocol: Protocol,
        *,
        error: float | None = None,
        held_out: float | None = None,
        better: str = "closer",
        unit: str = "",
        note: str = "",
    ) -> Measurement:
        """Returns a measurement; an error that is not finite is left out."""
        error = error if error is not None and math.isfinite(error) else None
        return Measurement(name, value, protocol, self.origin, error, unit, better, held_out, note)

    def protocol(self, settings: str = "", **fields: Any) -> Protocol:
        """Returns the protocol of a measure of these texts."""
        return Protocol(samples=len(self.rows), settings="; ".join(filter(None, (settings, self.form))), **fields)

    def against_held_out(self, settings: str = "", features: str = "", content: str = "") -> Protocol:
        """Returns the protocol of a measure of these texts against held-out text, on features with a hash."""
        return self.protocol(
            settings,
            features=features,
            features_hash=content,
            reference=f"{self.name}, held-out, {len(self.real):,} windows",
            reference_hash=digest(self.real),
        )

    def single(self, rows: Tensor) -> list[Tensor]:
        """Returns the tokens of each text without padding."""
        return [row[row != self.padding] for row in rows]

    def entropy(self) -> Measurement:
        """Returns the entropy of the token frequencies in one text, in bits, averaged over the texts."""
        own, real = (
            torch.stack([entropy_of(row) for row in self.single(rows) if len(row)]) for rows in (self.rows, self.real)
        )
        error, held_out = standard_error(own), float(real.mean())
        return self.measured(
            "sample_entropy_bits", float(own.mean()), self.protocol(), error=error, held_out=held_out, unit="bits"
        )

    def distinct(self, n: int) -> Measurement:
        """Returns the number of different n-grams over the number of all, of all texts together (distinct-n)."""
        own, real = (grams(rows, n, self.padding) for rows in (self.rows, self.real))
        share, held_out = (len(np.unique(found)) / len(found) for found in (own, real))
        fewer = f"held-out: of {len(self.real):,} windows, all that there are" * (len(self.real) < len(self.rows))
        return self.measured(f"distinct_{n}", share, self.protocol(), held_out=held_out, note=fewer)

    def divergences(self, train: TextDataset | None) -> list[Measurement]:
        """Returns the divergence of n-gram frequencies from those of held-out text, and that of training text."""
        protocol, found = self.against_held_out("Jensen-Shannon divergence"), []
        other = None if train is None else self.windows_of(train)
        for n in range(1, min(4, self.longest) + 1):
            value = divergence(self.rows, self.real, n, self.padding)
            beside = None if other is None else divergence(other, self.real, n, self.padding)
            name = f"ngram_divergence_{n}"
            found.append(self.measured(name, value, protocol, held_out=beside, better="lower", unit="bits"))
        return found

    def of_ngram_model(self, train: TextDataset | None) -> list[Measurement]:
        """Returns the perplexity per token under an n-gram model of the training text, for a small vocabulary."""
        if train is None or train.vocabulary > LARGEST_VOCABULARY:
            return []
        windows = first_windows(train, JUDGED)
        content = digest(windows)
        judge = ngram_model(windows, train.vocabulary, content)
        (value, error), (held_out, _) = (perplexity_by(judge, self.single(rows)) for rows in (self.rows, self.real))
        protocol = self.protocol(
            features=f"{ORDER}-gram model of {self.name}, train, {len(windows):,} windows",
            features_hash=content,
        )
        name = f"generative_perplexity_per_token_{ORDER}_gram"
        return [self.measured(name, value, protocol, error=error, held_out=held_out)]

    def of_bigrams(self) -> list[Measurement]:
        """Returns MAUVE on counts of bigrams, for a small vocabulary."""
        vocabulary = self.reference.vocabulary
        if vocabulary > LARGEST_VOCABULARY:
            return []
        return self.mauve("bigrams", "", lambda rows: counts(self.single(rows), vocabulary, 2))

    def mauve(self, name: str, content: str, features: Callable[[Tensor], Tensor]) -> list[Measurement]:
        """Returns MAUVE on features of texts, and that of as many further held-out windows, where there are any."""
        count = len(self.real)
        if min(len(self.rows), count) < TOO_FEW:
            return []
        real, further = features(self.real), self.windows_of(self.reference, skip=count)
        found = mauve(features(self.rows), real)
        beside = mauve(features(further), real).area if len(further) == count else None
        protocol = self.against_held_out(f"{found.clusters} clusters, c=5, 25 points", name, content)
        note = f"fewer than {FEW:,} samples: depends on chance" * (count < FEW)
        return [self.measured(f"mauve_{name}", found.area, protocol, held_out=beside, better="higher", note=note)]

    def overlap(self, train: TextDataset) -> list[Measurement]:
        """Returns the share of n-grams that occur in the training text, and the longest run that does."""
        n, stream = min(OVERLAP[self.unit], self.longest), Stream(train, SEARCHED)
        own, real = overlap([self.rows, self.real], stream, n, self.padding)
        part = f"first {stream.length:,} tokens of" if stream.length < stream.total else "all of"
        protocol = self.protocol(reference=f"{part} {self.name}, train", reference_hash=stream.digest())
        run, held_out = float(own.longest), float(real.longest)
        return [
            self.measured(f"overlap_{n}", own.share, protocol, error=own.error, held_out=real.share),
            self.measured("longest_run", run, protocol, held_out=held_out, unit=self.unit),
        ]

    def of_causal_model(self, judge: CausalJudge) -> list[Measurement]:
        """Returns perplexity, entropy and MAUVE by a causal language model, in its own tokens.

        Texts are those that the tokens decode to, as the held-out texts are: a tokenizer of 27 characters, for one,
        has no capital letters.
        """
        own, beside = (
            judge.score(decoded_rows(self.reference, rows), self.progress) for rows in (self.rows, self.real)
        )
        protocol = self.protocol(judge.settings, features=judge.name, features_hash=judge.digest)
        (value, error), (held_out, _) = own.perplexity, beside.perplexity
        note = f"at a sample entropy of {own.entropy:.2f} bits, of real text {beside.entropy:.2f}"
        perplexity, entropy = f"generative_perplexity_{judge.name}", f"sample_entropy_{judge.name}"

        def features(rows: Tensor) -> Tensor:
            texts = decoded_rows(self.reference, rows)
            return judge.features([text for text in texts if text], self.progress)  # padding alone has no features

        return [
            self.measured(perplexity, value, protocol, error=error, held_out=held_out, note=note),
            self.measured(
                entropy, own.entropy, protocol, error=own.entropy_error, held_out=beside.entropy, unit="bits"
            ),
            *self.mauve(judge.name, judge.digest, features),
        ]


_LAST: dict[tuple[str, int], NGram] = {}


def ngram_model(windows: Tensor, vocabulary: int, content: str) -> NGram:
    """Returns the n-gram model of windows with a hash of their content; the last one is kept, for the next samples."""
    if (content, vocabulary) not in _LAST:
        _LAST.clear()
        _LAST[content, vocabulary] = NGram(ORDER, vocabulary).fit(windows)
    return _LAST[content, vocabulary]


def perplexity_by(judge: NGram, texts: Sequence[Tensor]) -> tuple[float, float]:
    """Returns the perplexity per token of texts under an n-gram model, and its standard error over the texts."""
    real = [text for text in texts if len(text)]
    same = len({len(text) for text in real}) == 1
    bits = judge.bits(torch.stack(real)) if same else torch.cat([judge.bits(text) for text in real])
    mean, error = ratio_of_sums(bits, torch.tensor([len(text) for text in real]))
    return 2.0**mean, 2.0**mean * math.log(2) * error
