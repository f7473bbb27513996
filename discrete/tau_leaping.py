"""Tau-leaping: many jumps at once along the rates of the reverse process, and the corrector of the same rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.random import Source, categorical, uniform
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.tensors import exact, like
from .denoiser import CategoricalDenoiser
from .samplers import Last, most_likely, refuse_table, reverse_rates
from .transition import Transition

Jumps: TypeAlias = Callable[[Tensor, Tensor, Transition, Source], Tensor]
MOST = 32


def poisson_quantile(mean: Tensor, u: Tensor) -> Tensor:
    """Returns the least n with `P(N <= n) >= u` for `N ~ Poisson(mean)`, `(...)`, float64; u in (0, 1].

    Counts end at 32, which a mean of 10 exceeds with probability 1e-8: leaps with more jumps of one kind are too long
    to be accurate.
    """
    mean = exact(mean)
    p = torch.exp(-mean)
    below, count = p.clone(), torch.zeros_like(mean)
    for n in range(1, MOST + 1):
        count += u > below
        p = p * mean / n
        below += p
    return count


@serializable("discrete.ordinal")
def ordinal(x: Tensor, means: Tensor, transition: Transition, generator: Source = None) -> Tensor:
    """Samples jumps of ordered categories: `x + sum_y N_y (y - x)`, `N_y ~ Poisson(means_y)`, clamped to 0..K-1.

    Campbell et al. 2022, section 4.3.

    Args:
        x: the tokens, `(...)`, int64.
        means: the expected number of jumps to each category y, `(..., K)`, 0 at x: rates times the length of the leap.
        transition: the process, without an added mask.
        generator: the source of noise; one number for each category at each position.

    Returns:
        The new tokens, `(...)`, int64.

    Raises:
        UsageError: where a mask was added, which has no place in the order.
    """
    refuse_jumps(ordinal, transition)
    u = 1 - uniform(means.shape, generator, dtype=torch.float64, device=means.device)
    distance = torch.arange(transition.categories, device=x.device) - x[..., None]
    change = (poisson_quantile(means, u) * distance).sum(-1)
    return (x + change.long()).clamp(0, transition.categories - 1)


@serializable("discrete.single")
def single(x: Tensor, means: Tensor, transition: Transition, generator: Source = None) -> Tensor:
    """Samples jumps of categories without an order: a position that would jump more than once does not change.

    Campbell et al. 2022, section 4.3. One number is drawn for each position, from `single_jump_distribution`. Arguments
    and result as for `ordinal`; an added mask is a category like any other.
    """
    return categorical(single_jump_distribution(x, means), generator)


def single_jump_distribution(x: Tensor, means: Tensor) -> Tensor:
    r"""Returns the distribution after exactly one jump or none, `(..., K)`: two jumps or more leave x as it is.

    It is `means_y exp(-m)` for `y != x` and `1 - m exp(-m)` at x, `m = sum_y means_y`.
    """
    total = means.sum(-1, keepdim=True)
    return (means * torch.exp(-total)).scatter(-1, x[..., None], 1 - total * torch.exp(-total))


@serializable("discrete.TauLeaping")
class TauLeaping(Sampler[CategoricalDenoiser, Transition]):
    r"""Samples `N_y ~ Poisson((t - s) R_hat_t(x_t, y))` jumps to each y in (s, t], all at once.

    R_hat are the `reverse_rates`; calls and results are as for `Ancestral`. Campbell et al. 2022, eq. 7 and 8. Of order
    one in the step. The last step, to s = 0, uses the denoiser's `p(x_0 | x_t)`. On CIFAR-10 the paper takes 500 steps
    down to t = 0.01.

    Args:
        denoiser: a denoiser of a process in continuous time.
        jumps: combines several jumps: `ordinal` for ordered categories, `single` for categories without an order.
        last: chooses x_0 from `p(x_0 | x_t)` in the last step, as for `Ancestral`.

    Raises:
        UsageError: for a table, which has no rates, and jumps that do not fit the process.
    """

    def __init__(self, denoiser: CategoricalDenoiser, jumps: Jumps = ordinal, last: Last = most_likely) -> None:
        super().__init__(denoiser)
        refuse_table(denoiser.corruption, "TauLeaping")
        refuse_jumps(jumps, denoiser.corruption)
        self.jumps, self.last = jumps, last

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if s == 0:
            return self.last(self.denoiser.step_distribution(x, t, s, **cond), generator)
        rates = reverse_rates(self.denoiser, x, t, **cond)
        return self.jumps(x, like(t - s, rates) * rates, self.corruption, generator)


@serializable("discrete.RateCorrector")
class RateCorrector(Sampler[CategoricalDenoiser, Transition]):
    r"""Leaps at the time s with the rates `R_hat_s + R_s`, under which q_s is stationary.

    R_hat are the `reverse_rates` and R the rates of the process, `Transition.outflow`. Campbell et al. 2022,
    proposition 4, section 4.4. The noise of the forward process and its reversal balance each other, so errors of the
    predictor decay while the time does not change. One leap lasts `size (t - s)` and changes q_s by the order of its
    square. Combine it with a predictor as `PredictorCorrector(TauLeaping(denoiser), RateCorrector(denoiser))`.

    Args:
        denoiser: a denoiser of a process in continuous time.
        size: the length of a leap as a multiple of `t - s`, the predictor's step; 1.5 on CIFAR-10.
        repeats: the number of leaps after each step; 10 on CIFAR-10.
        below: the corrector acts after steps from t to s with t <= `below` and s > 0; 0.1 on CIFAR-10, 1 for all steps.
        jumps: combines several jumps, as for `TauLeaping`.

    Raises:
        UsageError: for a table, which has no rates, jumps that do not fit the process, and sizes that are not
            positive.
    """

    def __init__(
        self,
        denoiser: CategoricalDenoiser,
        size: float = 1.5,
        repeats: int = 10,
        below: float = 0.1,
        jumps: Jumps = ordinal,
    ) -> None:
        super().__init__(denoiser)
        refuse_table(denoiser.corruption, "RateCorrector")
        refuse_jumps(jumps, denoiser.corruption)
        if not size > 0 or repeats < 1 or not 0 < below <= 1:
            raise UsageError(
                f"size={size}, repeats={repeats}, below={below}: give a positive size, one or more repeats, and a time "
                "below=... above 0 and up to 1"
            )
        self.size, self.repeats, self.below, self.jumps = size, repeats, below, jumps

    def rates(self, x: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """Returns `R_hat_s(x, y) + R_s(x, y)`, 0 at `y = x`, `(..., K)`, per unit of time."""
        back = reverse_rates(self.denoiser, x, s, **cond)
        x = x.long()
        return back + self.corruption.outflow(x, s).to(back).scatter(-1, x[..., None], 0.0)

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if s == 0 or min(float(t), 1.0) > self.below:  # before a grid's first step t is above 1
            return x
        for _ in range(self.repeats):
            rates = self.rates(x, s, **cond)
            x = self.jumps(x, like(self.size * (t - s), rates) * rates, self.corruption, generator)
        return x


def refuse_jumps(jumps: Jumps, transition: Transition) -> None:
    """Raises an error for `ordinal` jumps where a mask token was added.

    Raises:
        UsageError: with what to do.
    """
    if jumps is ordinal and transition.states > transition.categories:
        raise UsageError(
            "jumps=ordinal sums jumps between ordered categories, and the added mask token is outside of their order: "
            "take jumps=single"
        )
