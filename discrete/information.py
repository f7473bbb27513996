"""The schedule that erases information evenly."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..shared.errors import UsageError
from .schedules import Constant, NoiseSchedule, Steps, check_steps
from .transition import Transition

LONGEST, BISECTIONS, AT_ONCE = 1e5, 80, 2**22  # events at which all is lost, as released; halvings of log-time; numbers held at a time


def mutual_information(
    build: Callable[[NoiseSchedule], Transition], frequencies: Tensor, steps: int, among: Tensor | None = None
) -> NoiseSchedule:
    r"""The table by which `I(x_n; x_0) / H(x_0) = 1 - n / T`: each step erases an equal share (Austin et al. 2021, appendix A).

    Information falls with the number of events, so each row is found by bisection. For `Absorbing` the betas are `reciprocal(steps)`,
    whatever the frequencies.

    Args:
        build: a schedule to a transition that takes one, such as `lambda schedule: Uniform(27, schedule)`.
        frequencies: the law of a symbol of the data, `(levels,)`.
        steps: T.
        among: symbols x_0 over which `H(x_n | x_0)` is averaged, int64; None for all, which for tens of thousands takes long.

    Raises:
        UsageError: for frequencies that are no law, and for a process in which information survives.
    """
    check_steps(steps)
    transition, p = build(Constant(LONGEST)), frequencies.detach().double()
    if p.shape != (transition.levels,) or bool((p < 0).any()) or abs(float(p.sum()) - 1) > 1e-6:
        raise UsageError(f"frequencies must be {transition.levels} numbers of sum 1, not {tuple(p.shape)} of sum {float(p.sum()):.6g}")
    if float(p.max()) == 1:
        raise UsageError("frequencies of one symbol alone hold no information to erase: count those of text with two or more")
    symbols = torch.arange(transition.levels) if among is None else among
    clean, share = transition.one_hot(symbols, torch.float64), p[symbols] / p[symbols].sum()
    data = torch.nn.functional.pad(p, (0, transition.states - transition.levels))

    def left(t: Tensor) -> Tensor:
        zero = torch.zeros_like(t)
        law, marginal = (transition.pushforward(x.expand(len(t), -1, -1), zero, t) for x in (clean, data[None]))
        information = (share[:, None] * torch.xlogy(law, law)).sum((1, 2)) - torch.xlogy(marginal, marginal).sum((1, 2))
        return information / -torch.xlogy(p, p).sum()

    target = 1 - torch.arange(1, steps, dtype=torch.float64) / steps
    if steps > 1 and float(left(torch.ones(1, dtype=torch.float64))) > float(target[-1]):
        raise UsageError(
            f"after {LONGEST:g} events more than 1/{steps} of the information is left: the process does not mix, join its parts"
        )
    low, high = torch.full_like(target, math.log(1e-12 / LONGEST)), torch.zeros_like(target)
    rows = max(1, AT_ONCE // clean.numel())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = torch.cat([middle.new_zeros(0), *(left(part.exp()) for part in middle.split(rows))]) > target
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return Steps(torch.cat([p.new_zeros(1), LONGEST * ((low + high) / 2).exp(), p.new_full((1,), LONGEST)]).diff())
