"""Experiments on text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..discrete import VariationalBound
from ..shared.code_length import perplexity
from ..shared.data import (
    Batches,
    CharacterTokenizer,
    Packed,
    Padded,
    SubwordTokenizer,
    TextDataset,
    characters,
    pieces,
    sparse_chain,
    text8,
    tokenizer_file,
)
from ..shared.data.sources import absolute, bundled
from ..shared.denoiser import Denoiser
from ..shared.errors import UsageError
from ..shared.memory import refuse_beyond
from ..shared.metrics import NGram, distinct, entropy, generative_perplexity
from ..shared.metrics.errors import standard_error
from ..shared.networks import DiT, Transformer
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import whole_seed
from ..shared.sampler import device_of
from ..shared.serialization import serializable
from ..shared.training import Training
from .evaluation import draw, refuse_other_data, splits
from .experiment import CodeLengthOf, Experiment

LETTERS, JUDGED = (
    64,
    50_000,
)  # symbols up to which n-grams judge samples; windows of the training text that they see, at most
AT_ONCE = 2**26  # numbers of logits held at a time when text is coded
CHAIN = {"train": 200_000, "validation": 2_000, "test": 2_000}  # windows of the Markov chain


@serializable("experiments.Text", formerly="unnoise.experiments.texts.Text")
@dataclass(frozen=True)
class Text:
    """Text to train on."""

    name: str = "shakespeare"
    """A bundled set (shakespeare), `chain` for a Markov chain whose entropy is known, `text8`, a text, Parquet, JSON or
    CSV file, a folder of files named after the splits, or a set on the hub. Of a single file the last tenth of the
    characters is held out, from the end of a document, a line or a word on: the first half of it is `validation`, the
    second `test`."""
    batch: int = 64
    """Windows in a batch."""
    length: int = 128
    """Tokens in a window."""
    column: str = "text"
    """Where the text is."""
    tokenizer: str | None = None
    """A tokenizer file (tokenizer.json), which a run keeps, or None for 27 symbols.

    A to z and one space for everything else.
    """
    layout: Literal["packed", "ends", "padded"] = "packed"
    """Documents end to end, with an end token at both ends of a window too, or one in a window with padding.

    For tokenizers.
    """
    documents: Literal["file", "paragraphs", "lines"] | None = None
    """What a document of a .txt file is, for tokenizers: the whole file with its line breaks, its paragraphs, or its
    lines without their breaks. None for the file, and for lines in the padded layout. Perplexity per word counts each
    document's end as a word, and so depends on it."""
    crop: bool = False
    """Train on random pieces of blocks of twice the length, as D3PM."""
    seed: int = 0
    """Of the order of the windows."""

    def __post_init__(self) -> None:
        if self.tokenizer is None and self.layout != "packed":
            raise UsageError(
                f"layout={self.layout} is for a tokenizer, and 27 symbols are packed: give --text.tokenizer tokenizer.json too"
            )
        if self.tokenizer is None and self.documents is not None:
            raise UsageError(
                f"documents={self.documents} is for a tokenizer, and 27 symbols run together: give --text.tokenizer tokenizer.json too"
            )
        if self.tokenizer is not None and self.crop:
            raise UsageError(
                "crop is for 27 symbols, and windows of a tokenizer are trained on as they are: leave one of both out"
            )

    def load(self, split: str = "train") -> TextDataset:
        """A split. A single file is refused where it leaves no window to test on; of other sets `train` says so in its
        summary.

        Raises:
            UsageError: as `characters` and `pieces`.
        """
        if self.name == "chain":
            chain, seed = sparse_chain(), {"train": 0, "validation": 1, "test": 2}[split]
            windows = chain.sample(CHAIN[split], self.length, torch.Generator().manual_seed(seed)).to(torch.uint8)
            said = f"{len(windows):,} windows of {self.length} symbols of a Markov chain"
            return TextDataset(
                windows, CharacterTokenizer(), windows.numel(), windows.numel(), windows.numel(), summary=said
            )
        data = self._read(split)
        if split != "train" or self.name in ("text8", *bundled()):
            return data
        try:
            test = self._read("test")
        except UsageError as error:
            if Path(self.name).is_file():
                part = f"the last twentieth of {self.name}, which is held out for tests, has no window"
                raise UsageError(f"{part} ({error}): give more text or a smaller length") from error
            return replace(data, summary=f"{data.summary}; `unnoise evaluate` will have no text to measure on: {error}")
        where = "the last tenth of the file is held out, of it" if Path(self.name).is_file() else "held out:"
        return replace(data, summary=f"{data.summary}; {where} {len(test.windows):,} windows for tests")

    def _read(self, split: str) -> TextDataset:
        if self.name == "text8" and self.tokenizer is None:
            return text8(split, self.length)
        crop = self.crop and split == "train"
        if Path(self.name).is_file():
            split = {"train": "train[:90%]", "validation": "train[90%:95%]", "test": "train[95%:]"}[split]
        if self.tokenizer is not None:
            layout = {"packed": Packed(), "ends": Packed(ends=True), "padded": Padded()}[self.layout]
            return pieces(
                self.name, split, self.length, self.alphabet(), layout, column=self.column, documents=self.documents
            )
        return characters(self.name, split, self.length, column=self.column, crop=crop)

    def alphabet(self) -> CharacterTokenizer | SubwordTokenizer:
        """What the tokens stand for."""
        if self.tokenizer is None:
            return CharacterTokenizer()
        return (
            SubwordTokenizer.of_json(self.tokenizer)
            if self.tokenizer.startswith("{")
            else tokenizer_file(self.tokenizer)
        )

    def settled(self) -> Text:
        """The same with the absolute path of its text, and the tokenizer itself.

        A run then means the same in any folder.
        """
        alphabet, path = self.alphabet(), absolute(self.name, ("chain", "text8"))
        return replace(
            self, name=path, tokenizer=alphabet.json if isinstance(alphabet, SubwordTokenizer) else self.tokenizer
        )


@serializable("experiments.TextNetwork", formerly="unnoise.experiments.texts.TextNetwork")
@dataclass(frozen=True)
class TextNetwork:
    """The network; vocabulary and length come from the data."""

    kind: Literal["t5", "dit"] = "t5"
    """D3PM's encoder with relative positions, or the rotary, adaptive-norm transformer of MDLM and SEDD."""
    width: int = 128
    """Size of a state."""
    depth: int = 4
    """Layers."""
    heads: int = 4
    """Attention heads."""
    hidden: int | None = None
    """Width of the perceptrons; None for four times that of the states."""
    dropout: float = 0.0
    """Dropout."""
    timed: bool = True
    """Whether the network is told the time; MDLM's is not. For `dit`."""

    def build(self, states: int, length: int, outputs: int) -> nn.Module:
        """The network for `states` symbols in, `outputs` logits out."""
        sizes = (states, length, self.width, self.depth, self.heads, self.hidden, outputs, self.dropout)
        return Transformer(*sizes) if self.kind == "t5" else DiT(*sizes, timed=self.timed)


@dataclass(frozen=True)
class TextExperiment(Experiment):
    """A run on text. Sub-classes add what their paper adds, and say how to build it."""

    text: Text = field(default_factory=Text)
    network: TextNetwork = field(default_factory=TextNetwork)
    training: Training = field(default_factory=Training)
    sampling_steps: int = 128
    """Steps of the sampler."""
    bound_terms: int = 100
    """Times at which the bound is evaluated for each window, stratified."""

    picture = "samples.txt"
    bytes_per_logit = 16
    """Memory of a training step for each token of each window and each token that it could be, about."""

    def load(self, split: str = "train", progress: Progress = silent) -> TextDataset:
        return self.text.load(split)

    def batches(self, data: TextDataset) -> Batches:
        need, sizes = (
            self.bytes_per_logit * self.text.batch * data.length * data.vocabulary,
            f"{self.text.batch} x {data.length}",
        )
        if not torch.cuda.is_available():
            refuse_beyond(
                need, f"steps on {sizes} tokens of {data.vocabulary:,}", "give a smaller --text.batch or --text.length"
            )
        return data.batches(self.text.batch, seed=self.text.seed)

    def settled(self) -> TextExperiment:
        return replace(self, text=self.text.settled())

    def on(self, name: str) -> TextExperiment:
        return replace(self, text=replace(self.text, name=name))

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        return {}

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return x

    @property
    def padding(self) -> int | None:
        """The padding token, which costs nothing, or None."""
        return self.text.alphabet().size if self.text.tokenizer is not None and self.text.layout == "padded" else None

    def code_length(self, denoiser: Denoiser, quantization: Quantization) -> CodeLengthOf:
        bound = VariationalBound(denoiser, terms=self.bound_terms, padding=self.padding)
        return lambda k, generator, progress, **cond: bound(k.long(), generator=generator, progress=progress, **cond)

    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        texts = self.text.alphabet().decode(levels, self.padding)
        path.write_text("\n\n".join(texts) + "\n")
        return "".join(f"  {text}\n" for text in texts[:3])

    def evaluate(
        self,
        denoiser: Denoiser,
        *,
        count: int | None,
        steps: int | Tensor,
        seed: int = 0,
        trained_on: Mapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> dict[str, Any]:
        test, train = splits(self, progress)
        said = refuse_other_data(len(train.windows), lambda: self.batches(train), trained_on)
        results = self.code(denoiser, test, count, seed=seed, progress=progress)
        samples = draw(
            self,
            self.sampler(denoiser),
            test.shape,
            test.quantization,
            min(count or 200, 200),
            steps,
            seed=seed,
            progress=progress,
        )
        found = self.judged(samples.levels, train)
        units = {
            "generative_perplexity": "generative_perplexity_per_token_5_gram",
            "sample_entropy": "sample_entropy_bits",
        }
        named = {units.get(name, name): value for name, value in found.items()}
        spent = {"sampling_evaluations": samples.evaluations, "sampling_seconds": round(samples.seconds, 2)}
        return {"train": train.summary, "held_out": test.summary} | said | results | named | spent

    def code(
        self,
        denoiser: Denoiser,
        test: TextDataset,
        count: int | None = None,
        *,
        seed: int = 0,
        progress: Progress = silent,
    ) -> dict[str, Any]:
        """The bound on held-out windows in every unit: bits and nats a token, bits a character, perplexity a token, a
        word.

        Of padded windows the length is coded too; the published figures, which are given where the padding is, stand
        beside.
        """
        device, measure = device_of(denoiser), self.code_length(denoiser, test.quantization)
        generator, parts, real = torch.Generator(device).manual_seed(whole_seed(seed)), [], []
        windows, size = (
            min(count or len(test.windows), len(test.windows)),
            max(1, min(100, AT_ONCE // (test.length * test.vocabulary))),
        )
        for start in range(0, windows, size):
            k = test.windows[start : min(start + size, windows)].long()
            parts.append(torch.stack(measure(k.to(device), generator, progress)[:3]).cpu())
            real.append((k != self.padding).sum(1) if self.padding is not None else torch.full((len(k),), test.length))
        nats, tokens = torch.cat(parts, 1), torch.cat(real).double()  # (3, N) and (N,)
        whole = nats.sum(0)
        mean = float(whole.sum() / tokens.sum())
        # A ratio of sums, as perplexities are: long windows weigh more, and its error is that of what each window is
        # off the mean.
        error = standard_error(whole - mean * tokens) / float(tokens.mean())
        given = mean - windows * math.log(test.length + 1) / float(tokens.sum())
        prior, path, data = (float(v) / math.log(2) for v in nats.sum(1) / tokens.sum())
        of_text: dict[str, Any] = {"lossy": test.lossy}  # no figures of a text that the tokens do not give back
        if not test.lost:
            of_text = {
                "bits_per_character": test.bits_per_character(mean),
                "perplexity_per_word": test.perplexity_per_word(mean),
            }
        of_padding = {
            "bits_per_token_given_padding": given / math.log(2),
            "perplexity_per_token_given_padding": perplexity(given),
        }
        return {
            "bits_per_token": mean / math.log(2),
            "standard_error": error / math.log(2),
            "bits_per_token_prior_path_data": [round(v, 6) for v in (prior, path, data)],
            "perplexity_per_token": perplexity(mean),
            **of_text,
            "windows": windows,
            "kind": self.code_length_kind,
        } | (of_padding if self.padding is not None else {})

    def judged(self, samples: Tensor, train: TextDataset, order: int = 5) -> dict[str, Any]:
        """The entropy of samples and, for small vocabularies, their perplexity under an n-gram model of the training
        text beside it.
        """
        found = {
            "sample_entropy": entropy(samples, train.vocabulary),
            "distinct_4": distinct(samples, min(4, samples.shape[1])),
        }
        if train.vocabulary > LETTERS:
            return found
        judge = NGram(order, train.vocabulary).fit(train.windows[: min(len(train.windows), JUDGED)])
        return {"generative_perplexity": generative_perplexity(judge, samples).perplexity} | found
