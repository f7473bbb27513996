"""Experiments on text: their data, their transformer, and the measures of code length and samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self, TypeVar

from ..discrete import CategoricalDenoiser, VariationalBound
from ..shared.code_length import perplexity
from ..shared.data import (
    Batches,
    TextDataset,
)
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
from .text_data import Text

C = TypeVar("C", bound=CategoricalDenoiser, default=CategoricalDenoiser)

LARGEST_VOCABULARY, JUDGED = 64, 50_000
"""An n-gram model measures samples of up to this many tokens; it is fitted to at most so many training windows."""
AT_ONCE = 2**26
"""The number of logits that are held at a time when text is coded."""
CHAIN = {"train": 200_000, "validation": 2_000, "test": 2_000}
"""The number of windows of the Markov chain in each split."""


@serializable("experiments.TextNetwork", formerly="unnoise.experiments.texts.TextNetwork")
@dataclass(frozen=True)
class TextNetwork:
    """The transformer; the data determine its vocabulary and length."""

    kind: Literal["t5", "dit"] = "t5"
    """Architecture: the encoder of D3PM (t5), or the transformer of MDLM and SEDD (dit).
    t5 has relative positions; dit has rotary positions and adaptive normalization."""
    width: int = 128
    """Number of channels of each token, such as 768."""
    depth: int = 4
    """Number of layers."""
    heads: int = 4
    """Number of attention heads."""
    hidden: int | None = None
    """Width of the hidden layers of the feed-forward blocks; None for four times --network.width."""
    dropout: float = 0.0
    """Dropout probability, from 0 to 1."""
    timed: bool = True
    """Whether the network has a time input, with dit; the network of MDLM has none."""

    def build(self, states: int, length: int, outputs: int) -> nn.Module:
        """Returns the network for tokens of `states` states and `outputs` logits."""
        sizes = (states, length, self.width, self.depth, self.heads, self.hidden, outputs, self.dropout)
        return Transformer(*sizes) if self.kind == "t5" else DiT(*sizes, timed=self.timed)


@dataclass(frozen=True)
class TextExperiment(Experiment[C]):
    """An experiment on text. Subclasses add the settings of their paper, and build its model from them."""

    text: Text = field(default_factory=Text)
    network: TextNetwork = field(default_factory=TextNetwork)
    training: Training = field(default_factory=Training)
    """Settings of the training."""
    sampling_steps: int = 128
    """Number of steps of the sampler."""
    bound_terms: int = 100
    """Number of stratified times at which the bound is evaluated for each window, such as 100."""

    picture = "samples.txt"
    bytes_per_logit = 16
    """Approximate memory of a training step, in bytes for each logit."""

    def load(self, split: str = "train", progress: Progress = silent) -> TextDataset:
        return self.text.load(split)

    def batches(self, data: TextDataset) -> Batches:
        need = self.bytes_per_logit * self.text.batch * data.length * data.vocabulary
        if not torch.cuda.is_available():
            refuse_beyond(
                need,
                f"steps on {self.text.batch} x {data.length} tokens of {data.vocabulary:,}",
                "give a smaller --text.batch or --text.length",
            )
        return data.batches(self.text.batch, seed=self.text.seed)

    def self_contained(self) -> Self:
        return replace(self, text=self.text.self_contained())

    def with_data(self, name: str) -> Self:
        return replace(self, text=replace(self.text, name=name))

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        return {}

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return x

    @property
    def padding(self) -> int | None:
        """The padding token, which the loss leaves out, or None."""
        return (
            self.text.read_tokenizer().size
            if self.text.tokenizer is not None and self.text.layout == "padded"
            else None
        )

    def code_length(self, denoiser: C, quantization: Quantization) -> CodeLengthOf:
        bound = VariationalBound(denoiser, terms=self.bound_terms, padding=self.padding)
        return lambda k, generator, progress, **cond: bound(k.long(), generator=generator, progress=progress, **cond)

    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        texts = self.text.read_tokenizer().decode(levels, self.padding)
        path.write_text("\n\n".join(texts) + "\n")
        return "".join(f"  {text}\n" for text in texts[:3])

    def evaluate(
        self,
        denoiser: C,
        *,
        count: int | None,
        steps: int | Tensor,
        seed: int = 0,
        trained_on: Mapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> dict[str, Any]:
        test, train = splits(self, progress)
        warning = refuse_other_data(len(train.windows), lambda: self.batches(train), trained_on)
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
        return {"train": train.summary, "held_out": test.summary} | warning | results | named | spent

    def code(
        self,
        denoiser: C,
        test: TextDataset,
        count: int | None = None,
        *,
        seed: int = 0,
        progress: Progress = silent,
    ) -> dict[str, Any]:
        """Measures the bound on held-out windows, in bits per token and character and as perplexity per token and word.

        The bound of padded windows includes their length; the figures given the padding, which papers report, are
        returned beside it.
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
        # A ratio of sums, as for perplexities: long windows have a larger weight, and the standard error is that of the
        # windows' deviations from the mean.
        error = standard_error(whole - mean * tokens) / float(tokens.mean())
        given = mean - windows * math.log(test.length + 1) / float(tokens.sum())
        prior, path, data = (float(v) / math.log(2) for v in nats.sum(1) / tokens.sum())
        of_text: dict[str, Any] = {"lossy": test.lossy}  # no figures of text that the tokens do not encode
        if not test.lost_characters:
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
