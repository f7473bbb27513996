"""Denoisers that say less than they know: tempered, and cut to the likeliest symbols."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.serialization import serializable
from ..shared.tensors import at_least_float32, exact
from .denoiser import CleanDenoiser, refuse_without_p0


@serializable("discrete.Temperature", formerly="unnoise.discrete.truncation.Tempered")
class Temperature(CleanDenoiser):
    r"""`p prop. to p0^(1 / temperature)` at each position: sharper below 1, the argmax as it goes to 0, flatter above
    1.

    Args:
        denoiser: one that says p0.
        temperature: above 0.

    Raises:
        UsageError: for other temperatures and denoisers.
    """

    def __init__(self, denoiser: CleanDenoiser, temperature: float) -> None:
        super().__init__()
        refuse_without_p0(denoiser, "Tempered")
        if not temperature > 0:
            raise UsageError(f"temperature={temperature}: give a number above 0, 1 for the denoiser as it is")
        self.denoiser, self.temperature = denoiser, temperature
        self.corruption, self.reverse, self.conditions = denoiser.corruption, denoiser.reverse, denoiser.conditions

    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return at_least_float32(self.denoiser.logits(x_t, t, **cond)) / self.temperature


@serializable("discrete.TopP", formerly="unnoise.discrete.truncation.Nucleus")
class TopP(CleanDenoiser):
    """p0 on the smallest set of symbols whose mass reaches p, at each position (Holtzman et al. 2020, eq. 2 and 3).

    A symbol is kept while those before it, in falling order of chance, hold less than p: at least one is, and of equal
    ones that of the lower index comes first. A bound of
    what it samples is infinite for data that it cuts away.

    Args:
        denoiser: one that says p0.
        p: the mass, in (0, 1]; 1 keeps all.

    Raises:
        UsageError: for other masses and denoisers.
    """

    def __init__(self, denoiser: CleanDenoiser, p: float) -> None:
        super().__init__()
        refuse_without_p0(denoiser, "Nucleus")
        if not 0 < p <= 1:
            raise UsageError(f"p={p}: give the mass to keep, above 0 and up to 1, such as 0.9")
        self.denoiser, self.p = denoiser, p
        self.corruption, self.reverse, self.conditions = denoiser.corruption, denoiser.reverse, denoiser.conditions

    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        logits = self.denoiser.logits(x_t, t, **cond)
        if self.p == 1:
            return logits
        chance, order = exact(logits).softmax(-1).sort(dim=-1, descending=True, stable=True)
        beyond = chance.cumsum(-1) - chance >= self.p
        beyond[..., 0] = False
        return logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
