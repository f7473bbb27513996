"""Text that is partly known: infilling, and text longer than the window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..shared.editing import checked_mask, for_every_row
from ..shared.errors import UsageError
from ..shared.progress import Progress, silent
from ..shared.random import Source
from ..shared.sampler import Sampler, Step, device_of
from .denoiser import CategoricalDenoiser
from .transition import Transition
from .transition.base import as_tokens
from .unmasking import refuse_others


class Infilling(Sampler[CategoricalDenoiser, Transition]):
    """Known symbols stand clean in every state, and the rest is sampled given them.

    For absorption in a mask of its own a clean symbol is part of an ordinary x_t, so nothing is lost: the rest follows
    the model's conditional law, as exactly as the sampler follows the joint one. Under other processes a network
    expects noise at every position: there take `shared.editing.Inpainting`, or `RePaint`.

    Args:
        sampler: fills in the rest.
        known: `(B, ...)` or `(...)`, the symbols, int64; what lies outside the mask is not looked at.
        mask: broadcast against `known`, True where the symbol is known.

    Raises:
        UsageError: for another process, a mask that does not fit, or known symbols outside the data's.
    """

    def __init__(self, sampler: Sampler, known: Tensor, mask: Tensor) -> None:
        super().__init__(sampler.denoiser)
        refuse_others(sampler.denoiser, "Infilling")
        known = torch.as_tensor(known)
        self.sampler, self.known, self.mask, self.looks_back = (
            sampler,
            known,
            checked_mask(mask, known),
            sampler.looks_back,
        )
        self.plans = sampler.plans
        as_tokens(torch.where(self.mask, known, 0), self.corruption.categories, "known")

    def times(self, steps: int | Tensor) -> Tensor:
        """Those of the sampler."""
        return self.sampler.times(steps)

    def path(self, grid: Tensor) -> list[tuple[Tensor, Tensor]]:
        """That of the sampler."""
        return self.sampler.path(grid)

    def start(self, shape: Sequence[int], t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        x = self.corruption.prior(shape, generator=generator, device=device_of(self.denoiser))
        return self.denoiser.start(self._held(x), t, generator=generator, **cond)

    def _held(self, x: Tensor) -> Tensor:
        """The state with what is known in its place."""
        if self.known.shape[-1] != x.shape[-1]:
            raise UsageError(
                f"{self.known.shape[-1]} known positions do not fit {x.shape[-1]} that are sampled: give both one length"
            )
        self.known, self.mask = self.known.to(x), self.mask.to(x.device)  # copied once
        return torch.where(self.mask, for_every_row(self.known, x, "known"), x)

    def begin(self) -> Step:
        inner = self.sampler.begin()

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            return self._held(inner(self._held(x), t, s, generator=generator, **cond))

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)


def prefix(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """`(known, mask)` of a signal of `length` that starts with `tokens` `(..., n)`.

    `known` is `(..., length)`, `mask` `(length,)`.
    """
    return between(tokens, tokens[..., :0], length)


def suffix(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """`(known, mask)` of a signal of `length` that ends with `tokens`, as `prefix`."""
    return between(tokens[..., :0], tokens, length)


def between(first: Tensor, last: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """`(known, mask)` of a signal of `length` that starts with `first` and ends with `last`, as `prefix`.

    Raises:
        UsageError: where nothing is left to fill in.
    """
    free = length - first.shape[-1] - last.shape[-1]
    if free < 1:
        raise UsageError(
            f"{length - free} known tokens leave nothing to fill in of length={length}: give fewer, or a larger length"
        )
    known = torch.cat([first, first.new_zeros(*first.shape[:-1], free), last], -1)
    place = torch.arange(length, device=first.device)
    return known, (place < first.shape[-1]) | (place >= length - last.shape[-1])


def sliding(
    sampler: Sampler,
    length: int,
    *,
    window: int,
    overlap: int,
    batch: int,
    steps: int | Tensor,
    generator: Source = None,
    progress: Progress = silent,
    prompt: Tensor | None = None,
    fill: Callable[[Sampler, Tensor, Tensor], Sampler] = Infilling,
    **cond: Any,
) -> Tensor:
    """Text longer than a network's window, by blocks: the last `overlap` symbols of one are the prefix of the next.

    Each block is sampled given the overlap alone (Sahoo et al. 2024, semi-autoregressive generation).

    Args:
        sampler: on absorption in a mask of its own, or another with its own `fill`.
        length: of the text.
        window: how many positions are sampled together; the network's length.
        overlap: how many of them are known from the block before, fewer than the window; 0 for independent blocks.
        batch: how many texts.
        steps: of each block, or a grid.
        generator: the source of noise.
        progress: is told of the blocks.
        prompt: `(n,)` or `(batch, n)`, n below the window: what the text begins with.
        fill: how a sampler is held to known symbols: `Infilling`, or `shared.editing.Inpainting` for other processes.
        cond: conditions by name, the same for all blocks.

    Returns:
        int64, `(batch, length)`.

    Raises:
        UsageError: for lengths that do not fit each other, and a sampler that is held to known symbols already.
    """
    if isinstance(sampler, Infilling):
        raise UsageError(
            "every block would be held to what the Infilling knows: give its sampler alone, and what the text begins with as prompt="
        )
    if not 0 <= overlap < window or length < 1 or batch < 1:
        raise UsageError(
            f"length={length}, window={window}, overlap={overlap}, batch={batch}: give one or more of each, and an overlap below the window"
        )
    window = min(window, length)
    fresh = max(window - overlap, 1)
    blocks = 1 + -(-(length - window) // fresh)
    for block in progress(range(blocks), blocks, "blocks"):
        if block == 0:
            first = sampler if prompt is None else fill(sampler, *prefix(prompt, window))
            text = first(shape=(batch, window), steps=steps, generator=generator, **cond)
            continue
        run = fill(sampler, *prefix(text[:, text.shape[1] - overlap :], window)) if overlap else sampler
        x = run(shape=(batch, window), steps=steps, generator=generator, **cond)
        text = torch.cat([text, x[:, overlap:]], 1)
    return text[:, :length]
