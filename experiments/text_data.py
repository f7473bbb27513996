"""Text as the data of a recipe: how it is read, shown and measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast
from warnings import warn

import torch
from torch import Tensor

from ..shared.data import (
    Batches,
    CharacterTokenizer,
    Packed,
    Padded,
    SubwordTokenizer,
    TextDataset,
    characters,
    sparse_chain,
    subwords,
    text8,
    tokenizer_file,
)
from ..shared.data.detokenizers import of_corpus
from ..shared.data.sources import absolute, bundled
from ..shared.denoiser import Denoiser
from ..shared.errors import Notice, UsageError
from ..shared.memory import refuse_beyond
from ..shared.metrics.measurement import Evaluation
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.serialization import serializable
from .recipe import Data, Form, Recipe
from .text_measures import evaluate_text, refuse_without_effect

CHAIN = {"train": 200_000, "validation": 2_000, "test": 2_000}
"""The number of windows of the Markov chain in each split."""
WHOLE = "all"
"""The name of a file that is read whole, among splits."""


@functools.lru_cache(maxsize=3)
def of_chain(split: str, length: int) -> Tensor:
    """Returns the windows of a split of the Markov chain, which are drawn once in a process."""
    seed = {"train": 0, "validation": 1, "test": 2}[split]
    return sparse_chain().sample(CHAIN[split], length, torch.Generator().manual_seed(seed)).to(torch.uint8)


@serializable("experiments.Text", formerly="unnoise.experiments.texts.Text")
@dataclass(frozen=True)
class Text(Data):
    """The text to train on."""

    name: str = "shakespeare"
    """Name of the text: shakespeare, chain or text8, a file, a folder of split files, or a set on the Hub.
    Files are text, Parquet, JSON or CSV; chain is a Markov chain whose entropy is known.
    The last tenth of a single file is held out, from the end of a document, a line or a word:
    its first half as the split validation, its second half as test."""
    batch: int = 64
    """Number of windows in a batch."""
    length: int = 128
    """Number of tokens in a window."""
    column: str = "text"
    """Name of the column that has the text, for Parquet, JSON and CSV files and sets on the Hub."""
    tokenizer: str | None = None
    """Path of a tokenizer.json, whose contents the run keeps; None reads text as 27 characters.
    These are a to z, and one space for everything else."""
    layout: Literal["packed", "ends", "padded"] = "packed"
    """How documents fill windows: end to end (packed), also with end tokens (ends), or one in each (padded).
    ends begins and ends every window with an end token; padded fills the rest with padding."""
    documents: Literal["file", "paragraphs", "lines"] | None = None
    """What one document of a .txt file is: the whole file, a paragraph, or a line without its break.
    None takes the file, and lines in the padded layout. Perplexity per word depends on it, because the end of
    each document counts as a word."""
    crop: bool = False
    """Whether training takes random windows out of blocks of twice the length, as D3PM does."""
    seed: int = 0
    """Seed of the order of the windows, a whole number."""
    held_out: float | None = None
    """Share of the documents that is held out for tests, such as 0.1, or their number, such as 100000.
    None takes the set's own split test, or validation. Which ones are held out does not depend on the seed."""

    picture: ClassVar[str] = "samples.txt"

    def __post_init__(self) -> None:
        if self.tokenizer is None and self.layout != "packed":
            raise UsageError(
                f"layout={self.layout} needs a tokenizer, since text of 27 characters is always packed: give "
                "--data.tokenizer tokenizer.json too"
            )
        if self.tokenizer is None and self.documents is not None:
            raise UsageError(
                f"documents={self.documents} needs a tokenizer, since text of 27 characters has no documents: give "
                "--data.tokenizer tokenizer.json too"
            )
        if self.tokenizer is not None and self.crop:
            raise UsageError(
                "crop=True is for text of 27 characters, and cannot be used with a tokenizer: leave out --data.crop or "
                "--data.tokenizer"
            )

    def load(self, split: str = "train", progress: Progress = silent) -> TextDataset:
        """Loads a split. The summary of `train` reports when a set has no text to test on.

        Raises:
            UsageError: for a single file that is too short to have a test window, and as `characters` and `subwords`.
        """
        if self.name == "chain":
            windows = of_chain(split, self.length)
            summary = f"{len(windows):,} windows of {self.length} tokens of a Markov chain"
            return TextDataset(
                windows, CharacterTokenizer(), windows.numel(), windows.numel(), windows.numel(), summary=summary
            )
        own = self.measured_split() if split == "test" else split
        data = self._read(own)
        if split == "test" and own != split:
            return replace(data, summary=f"{data.summary}; the split {own}, since no split test can be measured on")
        if split != "train" or self.name in ("text8", *bundled()):
            return data
        try:
            test = self._read(self.measured_split())
        except UsageError as error:
            if Path(self.name).is_file() and self.held_out is None:
                part = f"the last twentieth of {self.name}, which is held out for tests, is shorter than a window"
                raise UsageError(f"{part} ({error}): give more text, or a smaller --data.length") from error
            return replace(data, summary=f"{data.summary}; `unnoise evaluate` will have no text to measure on: {error}")
        held_out = f"{len(test.windows):,} windows for tests"
        where = (
            f"the last tenth of the file is held out, with {held_out}"
            if Path(self.name).is_file() and self.held_out is None
            else f"held out: {held_out}"
        )
        return replace(data, summary=f"{data.summary}; {where}")

    def measured_split(self) -> str:
        """Returns the split that a model is measured on: `test`, or `validation` where it alone can be read."""
        if self.held_out is not None or self.name in ("chain", "text8", *bundled()) or Path(self.name).is_file():
            return "test"
        for split in ("test", "validation"):
            try:
                self._read(split)
            except UsageError:
                continue
            return split
        return "test"

    def _read(self, split: str, detokenizer: str = "none") -> TextDataset:
        if self.name == "text8" and self.tokenizer is None:
            return text8(split, self.length)
        crop = self.crop and split == "train"
        if Path(self.name).is_file() and self.held_out is None:
            split = {"train": "train[:90%]", "validation": "train[90%:95%]", "test": "train[95%:]", WHOLE: "train"}[
                split
            ]
        if self.tokenizer is not None:
            layout = {"packed": Packed(), "ends": Packed(ends=True), "padded": Padded()}[self.layout]
            tokenizer = cast(SubwordTokenizer, self.read_tokenizer())
            return subwords(
                self.name,
                split,
                self.length,
                tokenizer,
                layout,
                column=self.column,
                documents=self.documents,
                held_out=self.held_out,
                detokenizer=detokenizer,
            )
        return characters(
            self.name,
            split,
            self.length,
            column=self.column,
            crop=crop,
            held_out=self.held_out,
            detokenizer=detokenizer,
        )

    def read_tokenizer(self) -> CharacterTokenizer | SubwordTokenizer:
        """Returns the tokenizer, read from its file or from the contents that the run keeps."""
        if self.tokenizer is None:
            return CharacterTokenizer()
        return (
            SubwordTokenizer.of_json(self.tokenizer)
            if self.tokenizer.startswith("{")
            else tokenizer_file(self.tokenizer)
        )

    def self_contained(self) -> Text:
        """Returns the same text with its absolute path and the contents of its tokenizer, independent of the folder."""
        tokenizer, path = self.read_tokenizer(), absolute(self.name, ("chain", "text8"))
        return replace(
            self, name=path, tokenizer=tokenizer.json if isinstance(tokenizer, SubwordTokenizer) else self.tokenizer
        )

    @property
    def classes(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """None: models of text have no class labels."""
        return None

    @property
    def padding(self) -> int | None:
        return self.read_tokenizer().size if self.tokenizer is not None and self.layout == "padded" else None

    def later(self) -> dict[str, Callable[[], Any]]:
        """Returns the training text under the name `text`."""
        return {"text": self.load}

    def batches(self, examples: TextDataset, form: Form, bytes_per_logit: int) -> Batches:
        need = bytes_per_logit * self.batch * examples.length * examples.vocabulary
        if not torch.cuda.is_available():
            refuse_beyond(
                need,
                f"steps on {self.batch} x {examples.length} tokens of {examples.vocabulary:,}",
                "give a smaller --data.batch or --data.length",
            )
        return examples.batches(self.batch, seed=self.seed)

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        return {}

    def conditions_of(self, examples: TextDataset) -> dict[str, Tensor]:
        return {}

    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        texts = self.read_tokenizer().decode(levels, self.padding)
        path.write_text("\n\n".join(texts) + "\n")
        return "".join(f"  {text}\n" for text in texts[:3])

    def corpus(self, name: str) -> tuple[TextDataset, str]:
        """Returns another text in the tokens and windows of this one, and what it is and how it was read, in words.

        A file is read whole; of other sets the split test, or validation where there is no test.

        Args:
            name: the text, as the setting `name`; or `DETOKENIZER:NAME`, such as `ptb:penn.txt`. Without a detokenizer
                it is the one whose corpus the name contains, else `none`, and a `Notice` says which.

        Raises:
            UsageError: for an unknown detokenizer, and as `load`.
        """
        place, rules = of_corpus(name)
        other = replace(self, name=place, held_out=None, crop=False)
        if place in ("chain", "text8"):
            split, found = "test", other.load("test")
        else:
            split = WHOLE if Path(place).is_file() else other.measured_split()
            found = other._read(split, rules)
        short = Path(place).name if Path(place).exists() else place
        if place == name:
            message = f"{short} is read with the detokenizer {rules}; another is given as in ptb:{short}"
            warn(Notice(message), stacklevel=2)
        return found, f"{short}, {'the whole file' if split == WHOLE else split}, detokenizer {rules}"

    @property
    def wrapping(self) -> str:
        """How documents fill windows, in words."""
        if self.layout == "padded":
            return "one document in each window, cut or padded"
        return f"documents end to end{', end tokens at both ends of each window' * (self.layout == 'ends')}"

    def evaluate(self, recipe: Recipe, denoiser: Denoiser, **options: Any) -> Evaluation:
        return evaluate_text(recipe, denoiser, self, **options)

    def refuse_measures(self, features: Sequence[str], without: Sequence[str], samples: int | None) -> None:
        refuse_without_effect(features, None, without, samples, None)
