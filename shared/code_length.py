"""Code lengths in nats and bits, and the two formulas that Gaussian bounds are made of."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import torch
from torch import Tensor

from .quantization import Quantization
from .random import Source, uniform
from .tensors import finest, per_example, refuse_unless


class CodeLength(NamedTuple):
    """A code length of each example, in nats, `(B,)` each; bounds and exact lengths have the same three parts.

    Attributes:
        prior: coding x_1 (for a bound, `KL(q(x_1 | x_0) || p(x_1))`; for a flow, `-log p(x_1)`).
        path: the levels between (for a flow, minus the log-volume that it gains).
        data: from the last level to the quantised data.
        error: standard error of the length where it was estimated more than once for each example, `(B,)`, or None.
    """

    prior: Tensor
    path: Tensor
    data: Tensor
    error: Tensor | None = None

    @property
    def nats(self) -> Tensor:
        """The whole length, `(B,)`."""
        return self.prior + self.path + self.data

    def bits_per_dim(self, dims: int) -> Tensor:
        """`nats / (dims log 2)`, `(B,)`."""
        return self.nats / (dims * math.log(2))


def refuse_nan(code: CodeLength) -> CodeLength:
    """The code length, refused where it is NaN; waits for an accelerator, once. Infinite it may be, for data that a
    model rules out.

    Raises:
        UsageError: with what to do.
    """
    known = ~torch.isnan(code.nats)
    refuse_unless(
        known, "the code length is NaN: look for NaN in the weights of the network, or in the conditions", wait=True
    )
    return code


def gaussian_kl(mean_q: Tensor, var_q: Tensor, mean_p: Tensor, var_p: Tensor) -> Tensor:
    """`KL(N(mean_q, var_q) || N(mean_p, var_p))`, elementwise, in nats."""
    excess = (var_q - var_p) / var_p  # log1p keeps what is left when the variances nearly agree
    return 0.5 * ((mean_q - mean_p) ** 2 / var_p + excess - torch.log1p(excess))


def discretized_gaussian(
    k: Tensor, mean: Tensor, std: Tensor, quantization: Quantization, *, tanh: bool = False
) -> Tensor:
    r"""`log P(level k)` for a Gaussian integrated over the level's bin, elementwise, in nats (Ho et al. 2020, eq. 13).

    Bins reach half a spacing to each side; the first and last are open, so the probabilities of all levels sum to one.

    Args:
        k: levels, int.
        mean, std: of the Gaussian, in the real form of `quantization`, broadcast against k.
        quantization: where the levels lie.
        tanh: the published approximation `Phi(z) = (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2` with its floor of
            1e-12 in place of the exact distribution function: for comparison with published figures only.
    """
    centered = quantization.low + quantization.spacing * k.to(mean.dtype) - mean
    upper, lower = (centered + quantization.spacing / 2) / std, (centered - quantization.spacing / 2) / std
    first, last = k == 0, k == quantization.levels - 1
    if tanh:
        cdf_upper, cdf_lower = approximate_cdf(upper), approximate_cdf(lower)
        inside = torch.where(first, cdf_upper, torch.where(last, 1 - cdf_lower, cdf_upper - cdf_lower))
        return inside.clamp(min=1e-12).log()
    # Reflecting the right half to the left keeps the difference of the two tails exact: Phi(b) - Phi(a) = Phi(-a) -
    # Phi(-b).
    flip = centered > 0
    high, low = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    open_left, open_right = torch.where(flip, last, first), torch.where(flip, first, last)
    log_high = torch.where(open_right, 0.0, torch.special.log_ndtr(high))
    log_low = torch.special.log_ndtr(low)
    gap = torch.where(open_left, -torch.inf, log_low - log_high).clamp(max=-1e-30)
    return log_high + torch.log(-torch.expm1(gap).clamp(max=-torch.finfo(gap.dtype).tiny))


def approximate_cdf(z: Tensor) -> Tensor:
    """The tanh approximation of the normal distribution function that the published DDPM code uses."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def sampled_steps(first: int, last: int, terms: int, batch: int, generator: Source = None) -> tuple[Tensor, float]:
    """Levels at which to estimate a sum over n = first..last, and the weight of each.

    The range is cut into `terms` equal strata and each example takes one level from each, so the estimate is unbiased,
    and with `terms = last - first + 1` every level is taken exactly once.

    Returns:
        levels `(terms, batch)`, int64, and the weight `(last - first + 1) / terms`.
    """
    count = last - first + 1
    terms = min(terms, count)
    u = uniform((batch, terms), generator, dtype=torch.float64).T
    position = (torch.arange(terms, dtype=torch.float64, device=u.device)[:, None] + u) * (count / terms)
    return first + position.long().clamp(max=count - 1), count / terms


def total_nats(values: Tensor) -> Tensor:
    """Sum over everything but the batch, in float64 where the device has it, so that a thousand small terms add up."""
    return per_example(finest(values))


def perplexity(nats: float) -> float:
    """`exp(nats)`, infinite where no float64 holds it, as of a word that an untrained model codes."""
    return math.exp(nats) if nats < math.log(sys.float_info.max) else math.inf
