"""The entries of the ledger: what a recipe is expected to give by its paper, what it costs, and what it gave here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..recipe import Recipe

UNITS = ("bits/dim", "bits/char")
"""The measures that are units, and are written behind their value; others are written before it."""
SHORT = {"Fréchet distance": "Fréchet", "PSNR in dB": "PSNR, dB", "agreement with the label": "agreement"}
"""Short names of measures."""
TEST_SET = "the held-out test set"
FID_50K = "50,000 samples against the training set"
SAMPLES_50K = "50,000 samples"


@dataclass(frozen=True)
class Expected:
    """A figure of a paper, with how it was measured.

    Attributes:
        measure: what is measured, such as `FID`, `IS`, `bits/dim` or `perplexity per word`.
        value: the published value, as the paper writes it.
        protocol: how the paper measured it.
        at: the settings that the value belongs to, such as `1000 steps`, where they are not those of the recipe alone.
        source: where the paper gives it, such as `table 1`; empty where the number of the table is not known.
        error: the published deviation; empty for none.
        bound: whether the value is an upper bound.
        recalled: whether the value is quoted from memory and was not read in the paper.
    """

    measure: str
    value: str
    protocol: str
    at: str = ""
    source: str = ""
    error: str = ""
    bound: bool = False
    recalled: bool = False

    def text(self) -> str:
        """Returns the value with its measure, such as `FID 3.17` or `<= 3.75 bits/dim`."""
        number = "<= " * self.bound + self.value
        return f"{number} {self.measure}" if self.measure in UNITS else f"{self.measure} {number}"

    def line(self) -> str:
        """Returns the value with its error, settings, protocol and source."""
        error = f" ± {self.error}" * bool(self.error)
        remarks = [self.at, self.protocol, self.source, "quoted from memory" * self.recalled]
        return f"{self.text()}{error}: {'; '.join(remark for remark in remarks if remark)}"


@dataclass(frozen=True)
class Here:
    """A result of a run of the recipe with this package.

    Attributes:
        measure: what was measured.
        value: the result as its page writes it.
        page: the page, relative to the folder `docs`.
        date: the day of the run, year-month-day.
        at: the settings that the result belongs to, such as the sampler.
        scale: what differs from the recipe, such as the number of training steps; empty where nothing does.
        seeds: the number of seeds.
    """

    measure: str
    value: str
    page: str
    date: str
    at: str = ""
    scale: str = ""
    seeds: int = 1

    def text(self) -> str:
        """Returns the result with its measure, such as `Fréchet distance 1.70` or `2.050 bits/dim`."""
        return f"{self.value} {self.measure}" if self.measure in UNITS else f"{self.measure} {self.value}"

    def short(self) -> str:
        """Returns the result without its error and in few letters, such as `Fréchet 1.70`."""
        return replace(self, measure=SHORT.get(self.measure, self.measure), value=self.value.split(" ± ")[0]).text()

    def line(self) -> str:
        """Returns the result with its settings, scale, seeds, date and page."""
        seeds = f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        remarks = [self.at, self.scale or "as the recipe", seeds, self.date, f"docs/{self.page}"]
        return f"{self.text()}: {'; '.join(remark for remark in remarks if remark)}"


@dataclass(frozen=True)
class Cost:
    """What the training of a recipe sees, computed from its settings.

    Attributes:
        steps: number of training steps.
        batch: number of examples in a batch.
        length: number of tokens of an example of text; None for images.
    """

    steps: int
    batch: int
    length: int | None = None

    @property
    def seen(self) -> int:
        """The number of images, or of tokens, that the training sees, repetitions included."""
        return self.steps * self.batch * (self.length or 1)

    def text(self) -> str:
        """Returns the cost in words."""
        of = "images" if self.length is None else f"windows of {self.length} tokens"
        unit = "images" if self.length is None else "tokens"
        return f"{in_words(self.seen)} {unit}: {self.steps:,} steps of {self.batch:,} {of}"


def in_words(count: int) -> str:
    """Returns a number with three digits, such as `102 M`."""
    for size, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            return f"{count / size:.3g}{name}"
    return str(count)


@dataclass(frozen=True)
class Entry:
    """The entry of a recipe.

    Attributes:
        recipe: the name of the recipe.
        data: the data in words.
        shape: shape of one example, `(channels, height, width)` or `(length,)`.
        levels: number of quantization levels, or of tokens.
        network: the network in words.
        parameters: number of trained parameters of the network.
        expected: figures of the paper, the first one as the headline.
        hardware: the GPUs and hours of the paper, where they are known.
        time: how long training takes here, where it is known.
        here: results of runs with this package.
        options: options that the command `unnoise train` needs, such as `--data.name FOLDER`.
        note: a remark on the figures, such as that the paper has none.
        test: whether the recipe is a test of a few seconds, without results.
    """

    recipe: str
    data: str
    shape: tuple[int, ...]
    levels: int
    network: str
    parameters: int
    expected: tuple[Expected, ...] = ()
    hardware: str = ""
    time: str = ""
    here: tuple[Here, ...] = ()
    options: str = ""
    note: str = ""
    test: bool = False

    def cost(self, recipe: Recipe) -> Cost:
        """Returns the cost of the training, computed from the settings of the recipe."""
        return Cost(recipe.training.steps, recipe.data.batch, self.shape[0] if len(self.shape) == 1 else None)

    def headline(self) -> str:
        """Returns the first expected figure of each measure, a line each."""
        first = {figure.measure: figure.text() for figure in reversed(self.expected)}
        order = dict.fromkeys(figure.measure for figure in self.expected)
        return "a test" if self.test else "\n".join(first[measure] for measure in order) or "no figure"

    def result(self) -> str:
        """Returns the first result of a run here in short form."""
        if self.test:
            return "tested"
        return self.here[0].short() if self.here else "not yet"


@dataclass(frozen=True)
class Paper:
    """A paper and the entries of its recipes.

    Attributes:
        title: the title, or what the recipes have in common.
        authors: the authors in short form; empty for a study of this package.
        year: the year; 0 for a study of this package.
        arxiv: the numbers of the paper on arXiv, and of further papers that the recipes follow.
        entries: the entries of the recipes.
    """

    title: str
    authors: str
    year: int
    arxiv: tuple[str, ...]
    entries: tuple[Entry, ...]

    def line(self) -> str:
        """Returns the title with authors, year and numbers on arXiv."""
        by = f" ({self.authors} {self.year})" if self.authors else ""
        return f"{self.title}{by}{', arXiv ' + ', '.join(self.arxiv) if self.arxiv else ''}"


def fid(
    value: str,
    at: str = "",
    source: str = "",
    protocol: str = FID_50K,
    *,
    error: str = "",
    recalled: bool = False,
) -> Expected:
    """Returns a published FID, of 50,000 samples against the training set unless given otherwise."""
    return Expected("FID", value, protocol, at, source, error, recalled=recalled)


def inception_score(value: str, at: str = "", source: str = "", error: str = "") -> Expected:
    """Returns a published Inception score of 50,000 samples."""
    return Expected("IS", value, SAMPLES_50K, at, source, error)


def bits(
    value: str,
    at: str = "",
    source: str = "",
    *,
    unit: str = "bits/dim",
    protocol: str = TEST_SET,
    error: str = "",
    bound: bool = True,
    recalled: bool = False,
) -> Expected:
    """Returns a published code length of the test set, an upper bound unless given otherwise."""
    return Expected(unit, value, protocol, at, source, error, bound, recalled)


def digits(paper: str, parameters: int, *here: Here, channels: int = 1, data: str = "digits", note: str = "") -> Entry:
    """Returns the entry of the recipe of a paper for the bundled digits."""
    return Entry(
        recipe=f"{paper}-digits",
        data=f"{data} 8 x 8",
        shape=(channels, 8, 8),
        levels=17,
        network="U-Net of this package",
        parameters=parameters,
        time="about two and a half minutes on two cores",
        here=here,
        note=note,
    )


def mnist(paper: str, parameters: int, *here: Here, channels: int = 1, data: str = "MNIST") -> Entry:
    """Returns the entry of the recipe of a paper for the bundled part of MNIST."""
    return Entry(
        recipe=f"{paper}-mnist",
        data=f"{data} 28 x 28",
        shape=(channels, 28, 28),
        levels=256,
        network="U-Net of this package",
        parameters=parameters,
        time="hours on two cores, minutes on a GPU",
        here=here,
    )


def smoke(paper: str, parameters: int, *, channels: int = 1) -> Entry:
    """Returns the entry of the smallest recipe of a paper, a test on the digits."""
    return Entry(
        recipe=f"{paper}-smoke",
        data="digits 8 x 8",
        shape=(channels, 8, 8),
        levels=17,
        network="U-Net of this package",
        parameters=parameters,
        time="a few seconds",
        test=True,
    )


CIFAR10 = {"data": "CIFAR-10 32 x 32", "shape": (3, 32, 32), "levels": 256}
"""The data of the recipes for CIFAR-10."""


def folder(data: str, size: int) -> dict:
    """Returns the data of a recipe for a folder of images, with the option that names the folder."""
    return {
        "data": f"{data} {size} x {size}",
        "shape": (3, size, size),
        "levels": 256,
        "options": "--data.name FOLDER",
    }
