"""Inpainting and SDEdit with an unconditional model: operations around the steps of any sampler, for every family."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError
from .progress import Progress, silent
from .random import Source
from .sampler import C, D, Sampler, Step, device_of, single_step, without_plan
from .serialization import serializable


@serializable("shared.Inpainting")
class Inpainting(Sampler[D, C]):
    """Inpaints: after each step, replaces the state inside the mask by the known signal corrupted to the same time.

    Song et al. 2021, appendix I.2. The known signal is corrupted anew after each step; after the step to t = 0 the
    known part is the known signal itself. It works for continuous and for categorical signals.

    Args:
        sampler: samples the entries outside of the mask; any sampler whose first step does not plan later ones.
        known: the clean signal, `(B, ...)`, one row for each sample or one row for all; outside of the mask it is not
            used.
        mask: broadcast against `known`, 1 or True where the signal is known.
    """

    def __init__(self, sampler: Sampler[D, C], known: Tensor, mask: Tensor) -> None:
        super().__init__(without_plan(sampler).denoiser)
        known = torch.as_tensor(known)
        self.sampler, self.known, self.mask = sampler, known, checked_mask(mask, known)
        self.looks_back = sampler.looks_back

    def begin(self) -> Step:
        inner, device = self.sampler.begin(), device_of(self.denoiser)
        clean, mask = self.known.to(device), self.mask.to(device)

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            x = inner(x, t, s, generator=generator, **cond)
            known = expanded_rows(clean, x, "known")  # each row gets noise of its own
            known = known if s == 0 else self.corruption.corrupt(known, s, generator=generator)
            return torch.where(mask, known.to(x), x)

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)


@serializable("shared.RePaint")
class RePaint(Sampler[D, C]):
    """Inpaints with resampling: walks each stretch of `jump` steps `repeats` times, adding the noise back in between.

    Lugmayr et al. 2022, algorithm 1. With `Inpainting` alone the known part of a state influences only later states;
    adding noise and denoising again harmonizes the two parts.

    The grid is cut into stretches of `jump` steps, from its first time on. The step to t = 0 is taken once, since its
    result, the denoiser's mean, is not a sample to add noise to.

    Args:
        sampler: a single-step sampler.
        known, mask: as in `Inpainting`.
        jump: the number of steps of a stretch, after which noise is added back; 10 in the paper.
        repeats: how often each stretch is walked; 10 in the paper, 1 is `Inpainting`. The number of network evaluations
            grows by about this factor.
    """

    def __init__(
        self, sampler: Sampler[D, C], known: Tensor, mask: Tensor, *, jump: int = 10, repeats: int = 10
    ) -> None:
        super().__init__(sampler.denoiser)
        if jump < 1 or repeats < 1:
            raise UsageError(f"jump={jump}, repeats={repeats}: give whole numbers of at least 1")
        self.inpainting, self.jump, self.repeats = Inpainting(single_step(sampler), known, mask), jump, repeats

    def path(self, grid: Tensor) -> list[tuple[Tensor, Tensor]]:
        pairs, walk = list(pairwise(grid)), []
        for start in range(0, len(pairs), self.jump):
            down = pairs[start : start + self.jump]
            # The step to t = 0 is taken once: it ends at the denoiser's mean, which is not a sample to add noise to.
            noisy = [pair for pair in down if pair[1] > 0]
            back = [(noisy[-1][1], noisy[0][0])] if noisy else []
            walk += (noisy + back) * (self.repeats - 1) + down
        return walk

    def begin(self) -> Step:
        down = self.inpainting.begin()

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            if s > t:
                return self.corruption.diffuse(x, t, s, generator=generator)
            return down(x, t, s, generator=generator, **cond)

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
    """Corrupts a guide to `t = strength` and samples from there: SDEdit (Meng et al. 2022, algorithm 1).

    Args:
        sampler: any sampler.
        guide: strokes or an image, `(B, ...)`, in the units of the data.
        strength: how much may change, in (0, 1]; sampling starts at the first time of the grid that is not above it.
        steps: the number of steps of the whole grid, or a grid; only the part up to `strength` is walked.
        generator: the source of noise.
        progress: a function that wraps the steps to report progress, such as `progress.bar`.
        cond: conditions by name.

    Returns:
        The samples at the last time of the grid, `(B, ...)`.

    Raises:
        UsageError: for a strength outside of (0, 1], or below the last noisy time of the grid.
    """
    grid = sampler.times(steps)
    rest = grid[grid <= strength * (1 + 1e-9)]
    if not 0 < strength <= 1 or len(rest) < 2:
        raise UsageError(
            f"strength={strength}: give a number from the grid's last noisy time, {float(grid[-2]):.4g}, up to 1"
        )
    x = sampler.corruption.corrupt(guide, rest[0], generator=generator)
    return sampler(x, steps=rest, generator=generator, progress=progress, **cond)


def expanded_rows(v: Tensor, x: Tensor, name: str) -> Tensor:
    """Returns `v` expanded to the shape of x, `(B, ...)`.

    Args:
        v: one row for each sample, or one row for all, with or without the first axis.
        x: the samples.
        name: of v, for the error message.

    Raises:
        UsageError: for another number of rows, or rows of another shape.
    """
    rows = v if v.ndim == x.ndim else v[None]
    if rows.shape[1:] != x.shape[1:] or len(rows) not in (1, len(x)):
        raise UsageError(
            f"{name} of shape {tuple(v.shape)} does not fit samples of shape {tuple(x.shape)}: "
            "give one row for each sample, or one row for all"
        )
    return rows.expand(x.shape)


def checked_mask(mask: Tensor, known: Tensor) -> Tensor:
    """Returns a mask as booleans of the shape, and on the device, of the signal `known`.

    `mask` is 1 or True where the signal is known, and broadcasts to it.

    Raises:
        UsageError: for entries other than 0 and 1, and for a mask that does not broadcast to the signal.
    """
    mask = torch.as_tensor(mask)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise UsageError(
            "the mask has entries other than 0 and 1: give 1 or True where the signal is known and 0 elsewhere, "
            "such as mask > 0.5"
        )
    try:
        return mask.bool().to(known.device).expand_as(known)
    except RuntimeError:
        raise UsageError(
            f"a mask of shape {tuple(mask.shape)} does not fit a signal of shape {tuple(known.shape)}: "
            "give one that broadcasts to it"
        ) from None
