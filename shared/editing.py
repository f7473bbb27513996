"""Editing with a sampler as it is: hooks around its steps, for every family."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError
from .progress import Progress, silent
from .random import Source
from .sampler import Sampler, Step, device_of, single_step, unplanned


class Inpainting(Sampler):
    """Where the mask is 1, each state is replaced by the known signal, corrupted to its level (Song et al. 2021,
    appendix I.2).

    At the end the known part is the known signal itself. Works for continuous and categorical signals.

    Args:
        sampler: fills in the rest.
        known: `(B, ...)`, the signal, one row for each sample or one row for all of them; what lies outside the mask is
            not looked at.
        mask: broadcast against `known`, 1 or True where the signal is known.
    """

    def __init__(self, sampler: Sampler, known: Tensor, mask: Tensor) -> None:
        super().__init__(unplanned(sampler).denoiser)
        known = torch.as_tensor(known)
        self.sampler, self.known, self.mask, self.looks_back = (
            sampler,
            known,
            checked_mask(mask, known),
            sampler.looks_back,
        )

    def begin(self) -> Step:
        inner, device = self.sampler.begin(), device_of(self.denoiser)
        clean, mask = self.known.to(device), self.mask.to(device)

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            x = inner(x, t, s, generator=generator, **cond)
            known = for_every_row(clean, x, "known")  # each row with noise of its own
            known = known if s == 0 else self.corruption.corrupt(known, s, generator=generator)
            return torch.where(mask, known.to(x), x)

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)


class RePaint(Sampler):
    """Inpainting that goes back up: every `jump` steps down are repeated `repeats` times (Lugmayr et al. 2022,
    algorithm 1).

    Replacement alone lets the known part pull only on what comes after it; going up by fresh noise and down again
    harmonises the two.

    Args:
        sampler: one that does not look back.
        known, mask: as `Inpainting`.
        jump: steps down before each way back up; 10 in the paper.
        repeats: how often each stretch is walked; 10 in the paper, 1 for `Inpainting`.
    """

    def __init__(self, sampler: Sampler, known: Tensor, mask: Tensor, *, jump: int = 10, repeats: int = 10) -> None:
        super().__init__(sampler.denoiser)
        if jump < 1 or repeats < 1:
            raise UsageError(f"jump={jump}, repeats={repeats}: give whole numbers of at least 1")
        self.inpainting, self.jump, self.repeats = Inpainting(single_step(sampler), known, mask), jump, repeats

    def path(self, grid: Tensor) -> list[tuple[Tensor, Tensor]]:
        pairs, walk = list(pairwise(grid)), []
        for start in range(0, len(pairs), self.jump):
            down = pairs[start : start + self.jump]
            # The step to t = 0 is taken once: it ends at the denoiser's mean, which is not a draw to go up from.
            noisy = [pair for pair in down if pair[1] > 0]
            back = [(noisy[-1][1], noisy[0][0])] if noisy else []
            walk += (noisy + back) * (self.repeats - 1) + down
        return walk

    def begin(self) -> Step:
        down = self.inpainting.begin()

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            return (
                self.corruption.diffuse(x, t, s, generator=generator)
                if s > t
                else down(x, t, s, generator=generator, **cond)
            )

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)


def sdedit(
    sampler: Sampler,
    guide: Tensor,
    strength: float,
    *,
    steps: int | Tensor,
    generator: Source = None,
    progress: Progress = silent,
    **cond: Any,
) -> Tensor:
    """The guide is corrupted to `t = strength` and sampled from there (Meng et al. 2022, algorithm 1).

    Args:
        sampler: any.
        guide: `(B, ...)`, strokes or an image.
        strength: in (0, 1]: how much is free to change; the grid's first time not above it is taken.
        steps: of the whole grid, of which the part below `strength` is walked.
        generator: the source of noise.
        progress: how to report progress.
        cond: conditions by name.
    """
    grid = sampler.times(steps)
    rest = grid[grid <= strength * (1 + 1e-9)]
    if not 0 < strength <= 1 or len(rest) < 2:
        raise UsageError(
            f"strength={strength}: give a number above the grid's last noisy time, {float(grid[-2]):.4g}, and up to 1"
        )
    x = sampler.corruption.corrupt(guide, rest[0], generator=generator)
    return sampler(x, steps=rest, generator=generator, progress=progress, **cond)


def for_every_row(v: Tensor, x: Tensor, name: str) -> Tensor:
    """What belongs to signals `(B, ...)`, one row for each, or one for all with or without the first axis, as
    `(B, ...)`.

    Raises:
        UsageError: for another number of rows, or rows of another shape.
    """
    rows = v if v.ndim == x.ndim else v[None]
    if rows.shape[1:] != x.shape[1:] or len(rows) not in (1, len(x)):
        raise UsageError(
            f"{name} of shape {tuple(v.shape)} does not fit samples of shape {tuple(x.shape)}: give one row for each sample, or "
            "one row for all"
        )
    return rows.expand(x.shape)


def checked_mask(mask: Tensor, known: Tensor) -> Tensor:
    """A mask as booleans of the shape of the signal."""
    mask = torch.as_tensor(mask)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise UsageError(
            "a mask is 1 or True where the signal is known and 0 elsewhere; for other numbers decide first, such as mask > 0.5"
        )
    try:
        return mask.bool().to(known.device).expand_as(known)
    except RuntimeError:
        raise UsageError(
            f"a mask of shape {tuple(mask.shape)} does not fit a signal of shape {tuple(known.shape)}: give one that broadcasts"
        ) from None
