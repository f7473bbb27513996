"""Sampling text given known tokens: infilling, and text longer than the window of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..shared.editing import checked_mask, expanded_rows
from ..shared.errors import UsageError
from ..shared.progress import Progress, silent
from ..shared.random import Source
from ..shared.sampler import Sampler, Step, device_of
from ..shared.serialization import serializable
from .denoiser import CategoricalDenoiser
from .transition import Transition
from .transition.base import as_tokens
from .unmasking import refuse_others


@serializable("discrete.Infilling")
class Infilling(Sampler[CategoricalDenoiser, Transition]):
    """Samples the unknown tokens given known ones, which stay clean in every state.

    Under absorption in an added mask token, x_t contains clean tokens anyway: the rest follows the model's conditional
    distribution, as exactly as the sampler follows the joint distribution. Called as the sampler, with
    `shape=(B, ...), steps=...`; returns tokens, int64 `(B, ...)`, the known ones in their places. Under other processes
    a network expects noise at every position: use `shared.editing.Inpainting` or `RePaint` there.

    Args:
        sampler: samples the rest, such as `Ancestral` or `Unmasking`.
        known: the tokens, int64, `(B, ...)`, or `(...)` for all samples alike; values where the mask is False are
            ignored.
        mask: broadcast against `known`, True where the token is known.

    Raises:
        UsageError: for another process, a mask that does not fit, or known tokens outside of the data's categories.
    """

    def __init__(self, sampler: Sampler[CategoricalDenoiser, Transition], known: Tensor, mask: Tensor) -> None:
        super().__init__(sampler.denoiser)
        refuse_others(sampler.denoiser, "Infilling")
        known = torch.as_tensor(known)
        self.sampler, self.known, self.mask = sampler, known, checked_mask(mask, known)
        self.looks_back, self.plans = sampler.looks_back, sampler.plans
        as_tokens(torch.where(self.mask, known, 0), self.corruption.categories, "known")

    def times(self, steps: int | Tensor) -> Tensor:
        """Returns the sampler's grid."""
        return self.sampler.times(steps)

    def path(self, grid: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns the sampler's pairs of times."""
        return self.sampler.path(grid)

    def start(self, shape: Sequence[int], t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        x = self.corruption.prior(shape, generator=generator, device=device_of(self.denoiser))
        return self.denoiser.start(self._held(x), t, generator=generator, **cond)

    def _held(self, x: Tensor) -> Tensor:
        """Returns the state with the known tokens in their places."""
        if self.known.shape[-1] != x.shape[-1]:
            raise UsageError(
                f"{self.known.shape[-1]} known positions do not fit {x.shape[-1]} that are sampled: give both the same "
                "length"
            )
        self.known, self.mask = self.known.to(x), self.mask.to(x.device)  # copied to the device once
        return torch.where(self.mask, expanded_rows(self.known, x, "known"), x)

    def begin(self) -> Step:
        inner = self.sampler.begin()

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            return self._held(inner(self._held(x), t, s, generator=generator, **cond))

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)


def prefix(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Returns `(known, mask)` of a signal of `length` that starts with `tokens` `(..., n)`.

    `known` is `(..., length)`, 0 at the other positions; `mask` is bool `(length,)`, True where it is known.
    `Infilling` and `shared.editing.Inpainting` take both.
    """
    return between(tokens, tokens[..., :0], length)


def suffix(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Returns `(known, mask)` of a signal of `length` that ends with `tokens` `(..., n)`, as `prefix`."""
    return between(tokens[..., :0], tokens, length)


def between(first: Tensor, last: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Returns `(known, mask)` of a signal of `length` that starts with `first` and ends with `last`, as `prefix`.

    `first` is `(..., m)` and `last` `(..., n)`, with m + n below `length`.

    Raises:
        UsageError: where every position is known.
    """
    free = length - first.shape[-1] - last.shape[-1]
    if free < 1:
        raise UsageError(
            f"{length - free} known tokens leave no position of length={length} to sample: give fewer tokens, or a "
            "larger length"
        )
    known = torch.cat([first, first.new_zeros(*first.shape[:-1], free), last], -1)
    place = torch.arange(length, device=first.device)
    return known, (place < first.shape[-1]) | (place >= length - last.shape[-1])


def sliding(
    sampler: Sampler[CategoricalDenoiser, Transition],
    length: int,
    *,
    window: int,
    overlap: int,
    batch: int,
    steps: int | Tensor,
    generator: Source = None,
    progress: Progress = silent,
    prompt: Tensor | None = None,
    fill: Callable[[Sampler[CategoricalDenoiser, Transition], Tensor, Tensor], Sampler] = Infilling,
    **cond: Any,
) -> Tensor:
    """Samples text longer than a network's window, block by block.

    The last `overlap` tokens of a block are the prefix of the next, and each block is sampled given these alone (Sahoo
    et al. 2024, semi-autoregressive generation).

    Args:
        sampler: a sampler under absorption in an added mask token, or under another process together with a `fill`.
        length: the length of the text in tokens.
        window: the number of positions that are sampled together, the network's length.
        overlap: how many of them are known from the block before, below the window; 0 for independent blocks.
        batch: the number of texts.
        steps: the number of sampling steps for each block, or a decreasing grid of times.
        generator: the source of noise.
        progress: how to report the blocks.
        prompt: `(n,)` or `(batch, n)`, n below the window: the beginning of the text.
        fill: `(sampler, known, mask) -> ` a sampler that keeps the known tokens: `Infilling`, or
            `shared.editing.Inpainting` for other processes.
        cond: conditions by name, the same for all blocks.

    Returns:
        int64, `(batch, length)`.

    Raises:
        UsageError: for lengths that do not fit each other, and for an `Infilling`.
    """
    if isinstance(sampler, Infilling):
        raise UsageError(
            "sampler=Infilling(...) would put its known tokens into every block: give the sampler inside it, and the "
            "beginning of the text as prompt="
        )
    if not 0 <= overlap < window or length < 1 or batch < 1:
        raise UsageError(
            f"length={length}, window={window}, overlap={overlap}, batch={batch}: give a length, window and batch of "
            "one or more, and an overlap from 0 to below the window"
        )
    window = min(window, length)
    fresh = max(window - overlap, 1)
    blocks = 1 + -(-(length - window) // fresh)
    text: Tensor | None = None
    for _ in progress(range(blocks), blocks, "blocks"):
        if text is None:
            first = sampler if prompt is None else fill(sampler, *prefix(prompt, window))
            text = first(shape=(batch, window), steps=steps, generator=generator, **cond)
            continue
        run = fill(sampler, *prefix(text[:, text.shape[1] - overlap :], window)) if overlap else sampler
        x = run(shape=(batch, window), steps=steps, generator=generator, **cond)
        text = torch.cat([text, x[:, overlap:]], 1)
    assert text is not None  # there is at least one block
    return text[:, :length]
