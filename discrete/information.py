"""The mutual information schedule, which erases information about x_0 evenly."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..shared.errors import UsageError
from .schedules import ConstantNoise, NoiseSchedule, TabulatedNoise, check_steps
from .transition import Transition

LONGEST = 1e5  # events after which no information is left, as in D3PM's published code
BISECTIONS = 80  # halvings of log-time
AT_ONCE = 2**22  # numbers in memory at a time
FEW = 256  # categories up to which H(x_n | x_0) is averaged over all of them
EVEN = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
"""Quantiles of the frequencies at which 32 of more categories are taken."""


def mutual_information(
    build: Callable[[NoiseSchedule], Transition], frequencies: Tensor, steps: int, among: Tensor | None = None
) -> NoiseSchedule:
    r"""Returns the noise schedule of T steps with `I(x_n; x_0) / H(x_0) = 1 - n / T`: each erases an equal share.

    Austin et al. 2021, appendix A. I is the mutual information of a token and its noisy state after n of T steps, and H
    the entropy. Returned is a `TabulatedNoise`, a table of the noise events of each step, made for this process and
    these frequencies. "Events" is the expected number of noise events of a token by time t, the integrated noise
    (SEDD's sigma-bar). Information falls with it, so rows 1 to T - 1 are found by bisection on its logarithm; for more
    than 256 categories the information is computed at numbers of events a factor of `sqrt(2)` apart and interpolated.
    Row T has 1e5 events in all, after which no information is left. For `Absorbing` the betas are
    `reciprocal(steps)`, `beta_n = 1 / (T - n + 1)`, whatever the frequencies.

    Args:
        build: makes a transition from a schedule, such as `lambda schedule: Uniform(27, schedule)`; called once, with a
            schedule in continuous time.
        frequencies: the distribution of a token of the data, `(categories,)`, of sum 1.
        steps: T.
        among: indices of the tokens x_0 over which `H(x_n | x_0)` is averaged, int64, weighted by their frequencies.
            None: all categories; with more than 256 categories, 32 of them, at even quantiles of the frequencies and
            with equal weights.

    Raises:
        UsageError: for frequencies that are not a distribution, and for a process that keeps information forever.
    """
    check_steps(steps)
    transition, p = build(ConstantNoise(LONGEST)), frequencies.detach().double()
    if p.shape != (transition.categories,) or bool((p < 0).any()) or abs(float(p.sum()) - 1) > 1e-6:
        raise UsageError(
            f"frequencies must be {transition.categories} numbers of sum 1, not {tuple(p.shape)} of sum "
            f"{float(p.sum()):.6g}"
        )
    if float(p.max()) == 1:
        raise UsageError(
            "the frequencies are 1 for one token, so the data have no information to erase: count tokens of other data"
        )
    if among is None and len(p) > FEW:
        tokens, counts = torch.searchsorted(p.cumsum(0), EVEN).clamp(max=len(p) - 1).unique(return_counts=True)
    else:
        tokens = torch.arange(len(p)) if among is None else among
        counts = p[tokens]
    clean, share = transition.one_hot(tokens, torch.float64), counts / counts.sum()
    data = torch.nn.functional.pad(p, (0, transition.states - transition.categories))

    def left(distribution: Tensor, marginal: Tensor) -> Tensor:
        """Returns the share of the information left for distributions of x_t, `(B, n, K)` given x_0 and `(B, 1, K)`."""
        information = (share[:, None] * torch.xlogy(distribution, distribution)).sum((1, 2)) - torch.xlogy(
            marginal, marginal
        ).sum((1, 2))
        return information / -torch.xlogy(p, p).sum()

    def at(t: Tensor) -> Tensor:
        zero = torch.zeros_like(t)
        return left(*(transition.pushforward(x.expand(len(t), -1, -1), zero, t) for x in (clean, data[None])))

    target = 1 - torch.arange(1, steps, dtype=torch.float64) / steps
    never = (
        f"after {LONGEST:g} events more than 1/{steps} of the information is left: this process does not mix; mix it "
        "with Uniform, or for NearestNeighbor raise k"
    )
    if len(p) > FEW:
        grid = 2 ** torch.arange(math.log2(1e-3 / steps / LONGEST), 0.5, 0.5, dtype=torch.float64).clamp(max=0)
        found, before, now = [], torch.zeros((), dtype=torch.float64), torch.cat([clean, data[None]])
        for t in grid:
            now, before = transition.pushforward(now, before, t), t  # from each time to the next
            found.append(float(left(now[None, :-1], now[None, -1:])))
            if found[-1] < 0.25 / steps:
                break
        if found[-1] > 1 / steps:
            raise UsageError(never)
        events = _inverse(grid[: len(found)].log2().numpy(), np.minimum.accumulate(found), target.numpy()).exp2()
    else:
        if steps > 1 and float(at(torch.ones(1, dtype=torch.float64))) > float(target[-1]):
            raise UsageError(never)
        low, high = torch.full_like(target, math.log(1e-12 / LONGEST)), torch.zeros_like(target)
        rows = max(1, AT_ONCE // clean.numel())
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            above = torch.cat([middle.new_zeros(0), *(at(part.exp()) for part in middle.split(rows))]) > target
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        events = ((low + high) / 2).exp()
    return TabulatedNoise(torch.cat([p.new_zeros(1), LONGEST * events, p.new_full((1,), LONGEST)]).diff())


def _inverse(x: np.ndarray, y: np.ndarray, target: np.ndarray) -> Tensor:
    """Returns where a falling function has the values `target`, from its values y at x.

    By monotone cubic interpolation; before the first x the function is 1.
    """
    falling = np.concatenate([[True], np.diff(y) < 0])
    fine = np.linspace(x[0], x[falling][-1], 64 * len(x))
    from scipy.interpolate import PchipInterpolator  # here, so that importing the package is fast

    curve = PchipInterpolator(x[falling], y[falling])(fine)
    return torch.from_numpy(np.interp(-target, -curve, fine))
