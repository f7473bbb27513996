"""Samplers of categorical diffusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..shared.random import Source
from ..shared.sampler import Sampler
from .denoiser import CategoricalDenoiser


def most_likely(p: Tensor, generator: Source = None) -> Tensor:
    """The argmax of `(..., K)`."""
    return p.argmax(-1)


class Ancestral(Sampler):
    """Draws `x_s ~ p(x_s | x_t)`, with exact posteriors over any stride.

    Args:
        denoiser: with its reverse model.
        last: what to make of `p(x_0 | x_t)` at the end: `most_likely` as in D3PM, or `categorical`, a draw, as in multinomial diffusion.
    """

    def __init__(self, denoiser: CategoricalDenoiser, last: Callable[[Tensor, Source], Tensor] = most_likely) -> None:
        super().__init__(denoiser)
        self.last = last

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if s > 0:
            return self.denoiser.draw(x, t, s, generator=generator, **cond)
        return self.last(self.denoiser.step_law(x, t, s, **cond), generator)
