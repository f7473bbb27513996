"""What samples are drawn under: class labels, captions, a prompt or gaps in a text, temperature and top-p."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...shared.data import CharacterTokenizer
from ...shared.data.tokenizers import character_ids, cleaned
from ...shared.denoiser import Denoiser
from ...shared.editing import Inpainting
from ...shared.errors import UsageError, shown
from ...shared.progress import Progress, silent
from ...shared.random import Streams
from ...shared.sampler import Sampler, counted, device_of
from ..evaluation import Drawing
from ..pretrained.given_data import GivenText
from ..recipe import Recipe
from ..text_data import Text
from . import captions


def filtered(denoiser: Denoiser, temperature: float, top_p: float) -> Denoiser:
    """Returns a denoiser of tokens with temperature and top-p filtering; others unchanged.

    Raises:
        UsageError: for such a setting and a denoiser that does not predict p(x_0).
    """
    if temperature == 1 and top_p == 1:
        return denoiser
    from ...discrete import Temperature, TopP  # Gaussian runs wait for no import of it
    from ...discrete.denoiser import CleanDenoiser

    if not isinstance(denoiser, CleanDenoiser):
        raise UsageError(
            f"--temperature {temperature}, --top-p {top_p}: only models that predict the probabilities of tokens take "
            "these: leave them out"
        )
    denoiser = denoiser if temperature == 1 else Temperature(denoiser, temperature)
    return denoiser if top_p == 1 else TopP(denoiser, top_p)


Conditions = Callable[[Tensor], dict[str, Tensor]]
"""Returns the conditions, by name, of the samples whose numbers are given."""


def conditions_for(options: Any, recipe: Recipe, denoiser: Denoiser, names: Sequence[str] | None) -> Conditions:
    """Returns the conditions of the samples: the requested labels and captions, else those of the recipe."""
    given: dict[str, Tensor] = {}
    if options.labels is not None:
        if recipe.classes is None:
            raise UsageError("--labels: this model has no class labels: leave out --labels")
        given["label"] = torch.tensor([label_of(text, recipe.classes, names) for text in options.labels])
    if (requested := captions.requested(options)) is not None:
        given["tokens"] = captions.tokens_of(requested, options, recipe, denoiser)
    others = captions.without(recipe.data) if "tokens" in given else recipe.data

    def of(rows: Tensor) -> dict[str, Tensor]:
        own = {name: value[rows.cpu() % len(value)].to(rows.device) for name, value in given.items()}
        complete = denoiser.conditions is not None and own.keys() >= set(denoiser.conditions)
        return own if complete else captions.held_out(others, rows) | own

    return of


def label_of(text: str, classes: int, names: Sequence[str] | None) -> int:
    """Returns the number of a class, given its number or name.

    Raises:
        UsageError: for another class.
    """
    if text in (names or ()):
        return list(names or ()).index(text)
    if text.isdecimal() and int(text) < classes:
        return int(text)
    known = f", or one of {', '.join(names[:10])}{', ...' * (len(names) > 10)}" if names else ""
    raise UsageError(f"--labels {text}: give numbers from 0 to {classes - 1}{known}")


class KnownText(NamedTuple):
    """Tokens that are known, `(length,)`, and a mask that is True where they are."""

    tokens: Tensor
    mask: Tensor

    @property
    def length(self) -> int:
        """The number of tokens of the text."""
        return len(self.tokens)


def text_for(options: Any, recipe: Recipe, shape: tuple[int, ...]) -> KnownText | None:
    """Returns the known tokens of a prompt, of a text with gaps, or none in a text of another length.

    Args:
        options: the options `prompt`, `infill` and `length`, each None if it is not given.
        recipe: the recipe of the run.
        shape: shape of one example, of text the length of the network's window.

    Returns:
        The known tokens; None where none of these options is given.

    Raises:
        UsageError: for images, for a prompt and a text with gaps together, for a text that is too long, and for one
            that leaves nothing to sample.
    """
    if options.prompt is None and options.infill is None and options.length is None:
        return None
    if not isinstance(recipe.data, Text | GivenText):
        raise UsageError("--prompt, --infill and --length are for models of text: leave them out")
    if options.prompt is not None and options.infill is not None:
        raise UsageError("--prompt and --infill: give one of them, as a text with gaps can start with the prompt")
    if options.prompt is not None and "_" in options.prompt:
        raise UsageError(f"--prompt {shown(options.prompt)!r}: gaps are filled by --infill: give the text there")
    if options.length is not None and options.length < 1:
        raise UsageError(f"--length {options.length}: give a whole number of at least 1")
    length = shape[0] if options.length is None else options.length
    name, text = ("--infill", options.infill) if options.infill is not None else ("--prompt", options.prompt or "")
    pieces = gaps(text) if options.infill is not None else [text]
    if options.infill is not None and "_" not in text:
        raise UsageError(f"--infill {shown(text)!r} has no gap: write an underscore for each unknown token")
    parts = [torch.full((len(p),), -1) if p.startswith("_") else tokens_of(p, recipe.data) for p in pieces]
    ids = torch.cat(parts)
    limit = length if options.infill is not None else min(length, shape[0]) - 1
    if len(ids) > limit and text:
        of = f"a text of {length} tokens" if length <= shape[0] else f"the network's window of {shape[0]} tokens"
        raise UsageError(
            f"{name} has {len(ids)} tokens, and {of} has room for {limit}: give a shorter one"
            + " or a larger --length" * (length < shape[0] or options.infill is not None)
        )
    ids = torch.cat([ids, torch.full((length - len(ids),), -1)])
    if length > shape[0] and bool((ids >= 0)[int((ids >= 0).int().argmin()) :].any()):
        raise UsageError(
            f"--infill with --length {length}: gaps are filled within {shape[0]} tokens, the network's window: give "
            f"--length {shape[0]} or less"
        )
    return KnownText(ids.clamp(min=0), ids >= 0)


def gaps(text: str) -> list[str]:
    """Returns the pieces of a text: runs of underscores, and what is between them."""
    return re.findall(r"_+|[^_]+", text)


def tokens_of(text: str, data: Text | GivenText) -> Tensor:
    """Returns the tokens of a part of a text, int64 `(L,)`, with the spaces at its ends and without an end token."""
    tokenizer = data.read_tokenizer()
    if isinstance(tokenizer, CharacterTokenizer):
        ids = character_ids(cleaned(text).encode())
    else:
        ids = tokenizer.encode([text], [" "])[0].tokens if text else character_ids(b"")
    return torch.from_numpy(ids.astype("int64"))


def holding(text: KnownText | None, sampler: Sampler[Any, Any]) -> Sampler:
    """Returns a sampler that keeps the known tokens."""
    return sampler if text is None or not bool(text.mask.any()) else fill(sampler, text.tokens, text.mask)


def fill(sampler: Sampler[Any, Any], known: Tensor, mask: Tensor) -> Sampler:
    """Returns a sampler that keeps known tokens: clean where the process has a mask, else corrupted to each time."""
    from ...discrete import Infilling

    corruption: Any = sampler.corruption
    masked = getattr(corruption, "mask_token", None) == corruption.categories
    return (Infilling if masked else Inpainting)(sampler, known, mask)


def windows(
    text: KnownText,
    sampler: Sampler[Any, Any],
    window: int,
    steps: int | Tensor,
    seed: int,
    conditions: Conditions,
    progress: Progress = silent,
) -> Drawing:
    """Returns a function that samples texts longer than the network's window, of given numbers.

    They are sampled window by window, each half known from the one before.
    """
    from ...discrete import sliding

    device, known = device_of(sampler.denoiser), int(text.mask.sum())

    def drawn(rows: Tensor) -> tuple[Tensor, int]:
        with counted(sampler.denoiser) as evaluations:
            x = sliding(
                sampler,
                text.length,
                window=window,
                overlap=window // 2,
                batch=len(rows),
                steps=steps,
                generator=Streams(seed, rows),
                progress=progress,
                prompt=text.tokens[:known].to(device) if known else None,
                fill=fill,
                **conditions(rows.to(device)),
            )
        return x, evaluations.calls

    return drawn
