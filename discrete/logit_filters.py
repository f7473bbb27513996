"""Denoisers with changed logits: temperature, and top-p (nucleus) filtering."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.serialization import serializable
from ..shared.tensors import at_least_float32, exact
from .denoiser import CleanDenoiser, CleanDenoiserWrapper


@serializable("discrete.Temperature", formerly="unnoise.discrete.truncation.Tempered")
class Temperature(CleanDenoiserWrapper):
    r"""`p prop. to p0^(1 / temperature)` at each position: sharper below 1, the argmax as it goes to 0, flatter above.

    p0 is the output of the denoiser before the reverse model reads it (with `Product` the leave-one-out posterior); the
    result is a denoiser with the same reverse model.

    Args:
        denoiser: a denoiser that predicts p0.
        temperature: above 0.

    Raises:
        UsageError: for other temperatures and denoisers.
    """

    def __init__(self, denoiser: CleanDenoiser, temperature: float) -> None:
        super().__init__(denoiser)
        if not temperature > 0:
            raise UsageError(f"temperature={temperature}: give a number above 0, where 1 changes nothing")
        self.temperature = temperature

    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return at_least_float32(self.denoiser.logits(x_t, t, **cond)) / self.temperature


@serializable("discrete.TopP", formerly="unnoise.discrete.truncation.Nucleus")
class TopP(CleanDenoiserWrapper):
    """Restricts p0 to the smallest set of tokens whose total probability reaches p (Holtzman et al. 2020, eq. 2 and 3).

    p0 is the output of the denoiser before the reverse model reads it (with `Product` the leave-one-out posterior); the
    result is a denoiser with the same reverse model. At each position tokens are kept in falling order of probability
    while those before hold less than p: at least one is kept, and of equally probable ones the lower index comes first.
    The bound is infinite for data that are excluded.

    Args:
        denoiser: a denoiser that predicts p0.
        p: the probability to keep, in (0, 1]; 1 keeps all.

    Raises:
        UsageError: for other p and denoisers.
    """

    def __init__(self, denoiser: CleanDenoiser, p: float) -> None:
        super().__init__(denoiser)
        if not 0 < p <= 1:
            raise UsageError(f"p={p}: give the probability to keep, above 0 and up to 1, such as 0.9")
        self.p = p

    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        logits = self.denoiser.logits(x_t, t, **cond)
        if self.p == 1:
            return logits
        chance, order = exact(logits).softmax(-1).sort(dim=-1, descending=True, stable=True)
        beyond = chance.cumsum(-1) - chance >= self.p
        beyond[..., 0] = False
        return logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
