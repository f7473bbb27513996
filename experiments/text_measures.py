"""What is measured of models of text: code lengths of held-out text and of other corpora, and samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from typing import Protocol as Structure

import torch
from torch import Tensor

from unnoise import __version__

from ..shared.code_length import perplexity
from ..shared.data import TextDataset
from ..shared.denoiser import Denoiser
from ..shared.distributed import is_main
from ..shared.errors import UsageError, did_you_mean
from ..shared.metrics.causal import CausalJudge
from ..shared.metrics.errors import ratio_of_sums
from ..shared.metrics.measurement import Evaluation, Measurement, Origin, Protocol
from ..shared.metrics.text_samples import PARTS, evaluate_texts
from ..shared.progress import Progress, silent
from ..shared.random import Streams
from ..shared.sampler import device_of
from .chunks import in_chunks
from .evaluation import draw, name_of, refuse_other_data, splits
from .parts import write
from .recipe import Recipe

AT_ONCE = 2**26
"""The number of logits that are held at a time when text is coded."""
SAMPLES = 200
"""The largest number of samples that are drawn where their number is not given."""
CODED = {"bits_per_token": "bits/token", "nats_per_token": "nats/token", "bits_per_character": "bits/character"}
"""The units of code lengths."""
WITHOUT = ("code-length", "samples", *PARTS)
"""What an evaluation of text can leave out."""


class TextData(Structure):
    """What is needed of the data of a recipe of text."""

    @property
    def name(self) -> str:
        """Name of the text."""
        ...

    def measured_split(self) -> str:
        """Returns the split that a model is measured on."""
        ...

    def corpus(self, name: str) -> tuple[TextDataset, str]:
        """Returns another text in the tokens of this one, and what it is in words."""
        ...

    @property
    def wrapping(self) -> str:
        """How documents fill windows, in words."""
        ...


def evaluate_text(
    recipe: Recipe,
    denoiser: Denoiser,
    data: TextData,
    *,
    count: int | None,
    steps: int | Tensor,
    seed: int = 0,
    trained_on: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    size: int | None = None,
    samples: int | None = None,
    features: Sequence[Any] | None = None,
    without: Sequence[str] = (),
    statistics: Path | None = None,
    judge_model: str | Path | CausalJudge | None = None,
    zero_shot: str | None = None,
) -> Evaluation:
    """Measures the bound on held-out text and on another corpus, and samples; see `Recipe.evaluate`.

    Args:
        recipe: the recipe.
        denoiser: the denoiser.
        data: the settings of the text.
        count: the number of held-out windows that are coded; None for all.
        steps: the number of sampling steps, or a grid of times.
        seed: the seed of the samples, and of noise and times of the bound.
        trained_on: what the checkpoint recorded about its training batches.
        progress: how to report progress.
        size: the number of examples that are computed at a time.
        samples: the number of samples; None for as many as are coded, at most 200.
        features: refused, except for the name `judge`: measures of text have no features of images.
        without: what is left out, of `WITHOUT`.
        statistics: refused: measures of text have no reference statistics.
        judge_model: a causal language model of the `transformers` library, a name or folder, that codes samples too.
        zero_shot: another corpus to code, see `Text.corpus`.

    Raises:
        UsageError: for settings without effect on text, unknown parts, and data other than those of the training.
    """
    if count is not None and count < 1:
        raise UsageError(f"count={count}: give a whole number of windows of at least 1")
    refuse_without_effect(features, statistics, without, samples, judge_model)
    judge = None
    if is_main():  # before any work is lost
        named = isinstance(judge_model, str | Path)
        judge = CausalJudge(judge_model, device=device_of(denoiser)) if named else judge_model
    other = None if zero_shot is None else data.corpus(zero_shot)
    test, train = splits(recipe, progress)
    warning = refuse_other_data(len(train.windows), lambda: recipe.batches(train), trained_on)
    about: dict[str, Any] = {"train": train.summary, "held_out": test.summary} | warning
    name = name_of(data.name)
    found: list[Measurement] = []
    shared: dict[str, Any] = {"seed": seed, "progress": progress, "size": size, "shared": True}
    if "code-length" not in without:
        what = f"{name}, {data.measured_split()}"
        coded = code(recipe, denoiser, test, count, what=what, wrapping=data.wrapping, **shared)
        about, found = about | coded.about, [*found, *coded.measurements]
    if other is not None:
        coded = code(recipe, denoiser, other[0], count, what=other[1], wrapping=data.wrapping, **shared)
        coded = prefixed(coded, "zero_shot")
        about, found = about | coded.about, [*found, *coded.measurements]
    if "samples" not in without:
        number = samples or min(count or SAMPLES, SAMPLES)
        sampler = recipe.sampler_of(denoiser)
        drawn = draw(recipe, sampler, test.shape, test.quantization, number, steps, **shared)
        about |= {"sampling_evaluations": drawn.evaluations, "sampling_seconds": round(drawn.seconds, 2)}
        if is_main():
            own = write(getattr(recipe, "sampler", ""))
            origin = Origin(own, drawn.steps, drawn.evaluations, seed=seed, version=__version__)
            rest = [part for part in without if part in PARTS]
            measured = evaluate_texts(
                drawn.levels,
                test,
                origin,
                train=train,
                name=name,
                judge_model=judge,
                without=rest,
                progress=progress,
            )
            about, found = about | measured.about, [*found, *measured.measurements]
    return Evaluation(about, found) if is_main() else Evaluation({}, [])


def refuse_without_effect(
    features: Sequence[Any] | None,
    statistics: Path | None,
    without: Sequence[str],
    samples: int | None,
    judge_model: object | None,
) -> None:
    """Raises `UsageError` for settings that have no effect on text, or contradict each other."""
    if others := [feature for feature in features or () if feature != "judge"]:  # the default of images
        names = ", ".join(str(getattr(f, "name", f)) for f in others)
        raise UsageError(
            f"features={names} are of images: for text, leave them out, or give a judge model (gpt2-large)"
        )
    if statistics is not None:
        raise UsageError(f"statistics={statistics} are of images: for text, leave them out")
    for part in without:
        if part not in WITHOUT:
            raise UsageError(f"without={part}: {did_you_mean(part, WITHOUT)}of text, choose from {', '.join(WITHOUT)}")
    if samples is not None and samples < 1:
        raise UsageError(f"samples={samples}: give a whole number of at least 1, or leave samples out (without)")
    if "samples" in without and (samples is not None or judge_model is not None):
        given = f"samples={samples}" if samples is not None else f"judge_model={judge_model}"
        raise UsageError(f"{given} has no effect without samples: leave out one of the two")


def prefixed(found: Evaluation, prefix: str) -> Evaluation:
    """Returns an evaluation with other names for its facts and measurements, `PREFIX_NAME`."""
    renamed = [replace(m, name=f"{prefix}_{m.name}") for m in found.measurements]
    return Evaluation({f"{prefix}_{name}": value for name, value in found.about.items()}, renamed)


def zero_shot(
    recipe: Recipe,
    denoiser: Denoiser,
    corpus: str,
    detokenizer: str | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
    size: int | None = None,
) -> Evaluation:
    """Measures the bound on a corpus that the model was not trained on, in the tokens of its own tokenizer.

    Documents fill windows as in training, each window is coded alone, without the end of the window before it, and
    tokens that do not fill a last window are left out. Figures per word count white-space separated words, and the end
    of each document as one.

    Args:
        recipe: the recipe.
        denoiser: the denoiser.
        corpus: a file, a bundled text or a set on the Hub; see `Text.corpus`.
        detokenizer: name of the rules that undo the corpus's tokenization; None for those that its name suggests.
        count: the number of windows that are coded; None for all.
        seed: the seed of noise and times of the bound.
        progress: how to report progress.
        size: the number of windows that are coded at a time.

    Returns:
        `zero_shot_bits_per_token`, `zero_shot_perplexity_per_token`, `zero_shot_perplexity_per_word`, ....

    Raises:
        UsageError: for an unknown corpus or detokenizer.
    """
    data: Any = getattr(recipe.data, "text", recipe.data)
    text, what = data.corpus(corpus if detokenizer is None else f"{detokenizer}:{corpus}")
    options: dict[str, Any] = {"seed": seed, "progress": progress, "size": size}
    return prefixed(code(recipe, denoiser, text, count, what=what, wrapping=data.wrapping, **options), "zero_shot")


def code(
    recipe: Recipe,
    denoiser: Denoiser,
    test: TextDataset,
    count: int | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
    size: int | None = None,
    shared: bool = False,
    what: str = "held-out text",
    wrapping: str = "",
) -> Evaluation:
    """Measures the bound on held-out windows, in bits per token and character and as perplexity per token and word.

    The bound of padded windows includes their length; the figures given the padding, which papers report, are
    returned beside it. The noise of window i depends on (seed, i) alone. Standard errors are those over the windows, by
    the delta method; the numbers of characters and words for each token are those of the whole text, and known.

    Args:
        recipe: the recipe.
        denoiser: the denoiser.
        test: the held-out text.
        count: the number of windows; None for all.
        seed: the seed of the noise and of the times of the bound.
        progress: how to report progress.
        size: the number of windows that are coded at a time; None for 100, or fewer for a large vocabulary.
        shared: whether the processes of a run share the work, as `in_chunks`; the process of rank 0 returns the
            figures, the others nothing.
        what: what the text is, for the protocols, such as `shakespeare, test`.
        wrapping: how documents fill windows, for the protocols.
    """
    padding = recipe.data.padding
    device, measure = device_of(denoiser), recipe.code_length_of(denoiser, test.quantization)
    windows = min(count or len(test.windows), len(test.windows))
    size = size or max(1, min(100, AT_ONCE // (test.length * test.vocabulary)))

    def terms(rows: Tensor) -> Tensor:
        k = test.windows[rows].long()
        found = measure(k.to(device), Streams(seed, rows), progress)[:3]
        real = (k != padding).sum(1) if padding is not None else torch.full((len(k),), test.length)
        return torch.cat([torch.stack(found).cpu().double(), real.double()[None]]).T

    found = in_chunks(terms, windows, size, shared=shared)
    if shared and not is_main():
        return Evaluation({}, [])
    parts, tokens = found[:, :3].T, found[:, 3]  # (3, N) and (N,)
    nats, error = ratio_of_sums(parts.sum(0), tokens)
    about: dict[str, Any] = {
        "standard_error": error / math.log(2),
        "bits_per_token_prior_path_data": [round(float(v) / math.log(2), 6) for v in parts.sum(1) / tokens.sum()],
        "windows": windows,
        "kind": recipe.kind,
    }
    protocol = protocol_of(recipe, test, windows, what, wrapping)
    of_text = protocol_of(recipe, test, windows, what, wrapping, of_text=True)
    origin = Origin(seed=seed, version=__version__)
    figures = figures_of(test, nats, error)
    if padding is not None:
        given = figures_of(test, *ratio_of_sums(parts.sum(0) - math.log(test.length + 1), tokens))
        own = {name: given[name] for name in ("bits_per_token", "perplexity_per_token")}
        figures |= {f"{name}_given_padding": value for name, value in own.items()}
    if test.lost_characters:  # no figures of text that the tokens do not encode
        about["lossy"] = test.lossy
    return Evaluation(
        about,
        [
            Measurement(
                name,
                value,
                of_text if name in ("bits_per_character", "perplexity_per_word") else protocol,
                origin,
                own if math.isfinite(own) else None,
                CODED.get(name.removesuffix("_given_padding"), ""),
                "lower",
            )
            for name, (value, own) in figures.items()
        ],
    )


def figures_of(text: TextDataset, nats: float, error: float) -> dict[str, tuple[float, float]]:
    """Returns figures of a mean code length in nats per token, each with its standard error.

    Those of characters and words are left out for a lossy tokenizer. The error of `exp(c nats)` is `c exp(c nats)`
    times that of the nats (delta method).
    """
    figures = {
        "bits_per_token": (nats / math.log(2), error / math.log(2)),
        "nats_per_token": (nats, error),
        "perplexity_per_token": (perplexity(nats), perplexity(nats) * error),
    }
    if not text.lost_characters:
        of_word, tokens_per_word = text.perplexity_per_word(nats), text.framing * text.tokens / text.words
        figures["bits_per_character"] = (text.bits_per_character(nats), text.bits_per_character(error))
        figures["perplexity_per_word"] = (of_word, of_word * tokens_per_word * error)
    return figures


def protocol_of(
    recipe: Recipe, text: TextDataset, windows: int, what: str, wrapping: str, *, of_text: bool = False
) -> Protocol:
    """Returns the protocol of a code length.

    Figures per character and per word (`of_text`) of a whole text can be compared between tokenizers: their protocol
    has no tokenizer, and no number of windows.
    """
    terms = getattr(getattr(recipe, "code_length", None), "terms", None)
    bound = f"{recipe.kind}, {'all' if terms is None else terms} terms"
    whole = windows == len(text.windows)
    size = f"{text.characters:,} characters" if of_text else f"{text.tokens:,} tokens"
    context = f"windows of {text.length} tokens" if not (of_text and whole) else "windows"
    settings = [bound, wrapping, f"{context}, each coded alone"]
    settings += [] if of_text and whole else [text.tokenizer.fingerprint]
    return Protocol(
        reference=f"{what}, {size}",
        reference_hash=text.content,
        samples=0 if of_text and whole else windows,
        settings="; ".join(filter(None, settings)),
        coded=True,
    )
