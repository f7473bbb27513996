"""Objectives of the score SDEs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..shared.denoiser import GaussianDenoiser
from ..shared.describe import described
from ..shared.objective import Draw, Loss, Objective, independent, matching, snr
from ..shared.random import Source


@described
class ScoreMatching(Objective):
    r"""`E sigma_t^2 ||score_theta(x_t, t) - grad log q(x_t | x_0)||^2`, mean over dimensions, t uniform on [t_min, 1].

    Song et al. (2021), eq. 7 with lambda(t) = sigma_t^2. In terms of the clean signal
    the score's error is `alpha_t / sigma_t^2` times that of x_0.

    Args:
        denoiser: on the schedule to train with.
        times: how the times of a batch are drawn.
    """

    def __init__(self, denoiser: GaussianDenoiser, times: Draw = independent) -> None:
        super().__init__()
        self.denoiser, self.times = denoiser, times

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        return matching(self.denoiser, x0, t, snr, generator=generator, **cond)
