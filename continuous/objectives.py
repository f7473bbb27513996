"""Objectives of the DDPM papers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..shared.denoiser import GaussianDenoiser
from ..shared.describe import described
from ..shared.objective import Draw, Loss, Objective, independent, matching, snr
from ..shared.random import Source


@described
class Simple(Objective):
    r"""`E ||epsilon - epsilon_theta(x_t, t)||^2`, mean over dimensions, t uniform over the steps (Ho et al. 2020, eq. 14).

    Written for any prediction: the squared error of the noise is `alpha^2 / sigma^2` times that of x_0.

    Args:
        denoiser: on the schedule to train with.
        times: how the times of a batch are drawn.
    """

    def __init__(self, denoiser: GaussianDenoiser, times: Draw = independent) -> None:
        super().__init__()
        self.denoiser, self.times = denoiser, times

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        t = self.denoiser.corruption.training_time(self.times(len(x0), generator)).to(x0.device)
        return matching(self.denoiser, x0, t, snr, generator=generator, **cond)
