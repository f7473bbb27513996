"""Code lengths in nats and bits, and the KL divergence and likelihood that Gaussian bounds consist of."""

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
    """The code length of each example in nats: three terms `(B,)`, for bounds and for exact likelihoods.

    A code length is a negative log-likelihood, or an upper bound on it. The terms are sums over dimensions.

    Attributes:
        prior: the term of x_1: for a bound `KL(q(x_1 | x_0) || p(x_1))`, for a flow `-log p(x_1)`.
        path: the terms of the steps between; for a flow minus the log-determinant of the map from x_0 to x_1.
        data: the term of the last step, to the quantized data; for a flow the term of the dequantizer,
            `log q(u | k) - dims log(cell)`, or 0 without one.
        error: the standard error of the code length, `(B,)`; None unless it was estimated more than once an example.
    """

    prior: Tensor
    path: Tensor
    data: Tensor
    error: Tensor | None = None

    @property
    def nats(self) -> Tensor:
        """The total code length in nats, `prior + path + data`, `(B,)`."""
        return self.prior + self.path + self.data

    def bits_per_dim(self, dims: int) -> Tensor:
        """Returns `nats / (dims log 2)`, `(B,)`, with `dims` the number of dimensions of one example."""
        return self.nats / (dims * math.log(2))


def refuse_nan(code: CodeLength) -> CodeLength:
    """Returns the code length, and raises if it is NaN for any example.

    It may be infinite, for data of probability zero. An accelerator is waited for, once.

    Raises:
        UsageError: for NaN.
    """
    known = ~torch.isnan(code.nats)
    refuse_unless(known, "the code length is NaN: check the network's weights and the conditions for NaN", wait=True)
    return code


def gaussian_kl(mean_q: Tensor, var_q: Tensor, mean_p: Tensor, var_p: Tensor) -> Tensor:
    """Returns `KL(N(mean_q, var_q) || N(mean_p, var_p))`, elementwise, in nats.

    `var_q` and `var_p` are variances, above 0. The arguments are broadcast against each other.
    """
    excess = (var_q - var_p) / var_p  # with log1p, accurate for variances that are nearly equal
    return 0.5 * ((mean_q - mean_p) ** 2 / var_p + excess - torch.log1p(excess))


def discretized_gaussian(
    k: Tensor, mean: Tensor, std: Tensor, quantization: Quantization, *, tanh: bool = False
) -> Tensor:
    r"""Returns `log P(k)`, of the shape of k, in nats: the log of a Gaussian integrated over the bin of level k.

    Ho et al. 2020, eq. 13. Bins extend half a spacing to each side; the first and last bin are unbounded, so the
    probabilities of all levels sum to one.

    Args:
        k: quantization levels 0..K-1, int.
        mean, std: mean and standard deviation of the Gaussian, in the units of `quantization.continuous(k)`, broadcast
            against k.
        quantization: the map from levels to real numbers.
        tanh: True for the published approximation `Phi(z) = (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2`, with its
            smallest probability of 1e-12, in place of the exact distribution function. It serves to reproduce published
            figures only.
    """
    k = k.to(mean.device)
    centered = quantization.low + quantization.spacing * k.to(mean.dtype) - mean
    upper, lower = (centered + quantization.spacing / 2) / std, (centered - quantization.spacing / 2) / std
    first, last = k == 0, k == quantization.levels - 1
    if tanh:
        cdf_upper, cdf_lower = approximate_cdf(upper), approximate_cdf(lower)
        inside = torch.where(first, cdf_upper, torch.where(last, 1 - cdf_lower, cdf_upper - cdf_lower))
        return inside.clamp(min=1e-12).log()
    # Phi(b) - Phi(a) = Phi(-a) - Phi(-b): right of the mean the second form is used, whose terms are small there.
    flip = centered > 0
    high, low = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    open_left, open_right = torch.where(flip, last, first), torch.where(flip, first, last)
    log_high = torch.where(open_right, 0.0, torch.special.log_ndtr(high))
    log_low = torch.special.log_ndtr(low)
    gap = torch.where(open_left, -torch.inf, log_low - log_high).clamp(max=-1e-30)
    return log_high + torch.log(-torch.expm1(gap).clamp(max=-torch.finfo(gap.dtype).tiny))


def approximate_cdf(z: Tensor) -> Tensor:
    """Returns `(1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2`, elementwise.

    It is the approximation of the standard normal distribution function in the published DDPM code.
    """
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def sampled_steps(first: int, last: int, terms: int, batch: int, generator: Source = None) -> tuple[Tensor, float]:
    """Samples steps n at which to estimate a sum over n = first..last, and returns them with their weight.

    The range is divided into `terms` equal strata, and each example gets one step from each stratum. The estimate is
    unbiased, and exact with `terms = last - first + 1`, which contains every step once.

    Args:
        first, last: the range of the sum, both included.
        terms: the number of steps for each example; above `last - first + 1` it is reduced to that.
        batch: B, the number of examples.
        generator: the source of random numbers.

    Returns:
        The steps, int64 `(terms, B)`, and the weight of each term, `(last - first + 1) / terms`: the estimate is the
        weight times the sum of the terms.
    """
    count = last - first + 1
    terms = min(terms, count)
    u = uniform((batch, terms), generator, dtype=torch.float64).T
    position = (torch.arange(terms, dtype=torch.float64, device=u.device)[:, None] + u) * (count / terms)
    return first + position.long().clamp(max=count - 1), count / terms


def total_nats(values: Tensor) -> Tensor:
    """Returns the sum over all axes but the first, in float64 if the device has it: `(B, ...)` to `(B,)`."""
    return per_example(finest(values))


def perplexity(nats: float) -> float:
    """Returns `exp(nats)`, or infinity where that exceeds the range of float64.

    `nats` is the mean code length of a token, or of a word for a perplexity per word.
    """
    return math.exp(nats) if nats < math.log(sys.float_info.max) else math.inf
