"""Samplers of absorption in a mask of its own.

Symbols are revealed at times that can be drawn ahead, and may fall back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.random import Source, categorical, quantile, uniform
from ..shared.sampler import Sampler, Step, checked
from ..shared.tensors import exact, like
from .denoiser import CategoricalDenoiser, CleanDenoiser
from .samplers import Last, most_likely
from .transition import Transition
from .transition.base import CLEAN, as_tokens

TINY = 1e-30


class Plan(NamedTuple):
    """When each position is revealed, and what of its law: `(B, ...)` each, float64, on the signal's device.

    `events`: the schedule's `total` at that time, 0 where nothing is masked. `u`: the quantile of the symbol, in (0,
    1].
    """

    events: Tensor
    u: Tensor


def planned(transition: Transition, x: Tensor, t: Tensor, generator: Source = None) -> Plan:
    r"""The reverse of absorption from x_t, as far as it does not depend on the network.

    A position that is masked at t was masked at a time r with `P(r <= s) = (1 - alpha_s) / (1 - alpha_t)`, whatever its
    symbol and all others are, and is revealed at r; so `1 - alpha_r = u (1 - alpha_t)` with u uniform (Zheng et al.
    2024, section 4).
    """
    when, what = (1 - uniform(x.shape, generator, dtype=torch.float64, device=x.device) for _ in range(2))
    lost = like(transition.kept(CLEAN, exact(t))[1].to(x.device), x)
    return Plan(torch.where(x == transition.mask_token, -torch.log1p(-when * lost), 0.0), what)


class Unmasking(Sampler[CategoricalDenoiser, Transition]):
    r"""`Ancestral` on absorption, whose network runs only in steps in which a symbol is revealed: the same law, fewer
    evaluations.

    A masked position is revealed between t and s with the chance `(alpha_s - alpha_t) / (1 - alpha_t)`, which no
    network says (Sahoo et al. 2024, eq. 7): all times are drawn in the first step and looked at once on the host. One
    row takes at most as many evaluations as it has masks. Its distribution is that of `Ancestral`, step by step.

    Args:
        denoiser: on `Absorbing(categories, schedule)`, a table or in continuous time.
        last: what to make of `p(x_0 | x_t)` in the last step, as of `Ancestral`; before it symbols are drawn.

    Raises:
        UsageError: for another process, and denoisers that change the chance to be revealed: guidance by a
            classifier, ratios, an eps.
    """

    looks_back = plans = True

    def __init__(self, denoiser: CleanDenoiser, last: Last = most_likely) -> None:
        super().__init__(denoiser)
        refuse_others(denoiser, "Unmasking")
        refuse_changed_chances(denoiser, "Unmasking")
        self.last = last

    def begin(self) -> Step:
        plan, order, left = None, None, 0

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            nonlocal plan, order, left
            if plan is None:
                plan = planned(self.corruption, x, t, generator)
                order = plan.events.flatten().cpu().sort().values
                left = len(order)
            reached = self.corruption.noise.total(s)
            before, left = left, int(torch.searchsorted(order, reached, right=True))
            if before == left:
                if self.corruption.is_clean(s):  # what `last` would draw is drawn, or streams would depend on the batch
                    self.last(torch.ones(1, device=x.device).expand(*x.shape, 1), generator)
                return x
            p0 = self.denoiser(x, t, **cond).exp()
            drawn = self.last(p0, generator) if self.corruption.is_clean(s) else quantile(p0, plan.u)
            return torch.where((x == self.corruption.mask_token) & (plan.events > float(reached)), drawn, x)

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)


class FirstHitting(Sampler[CategoricalDenoiser, Transition]):
    r"""Infinitely many steps at the cost of one evaluation for each symbol (Zheng et al. 2024, section 4, the
    first-hitting sampler).

    Each row walks from one reveal to the next, at times `1 - alpha = u^(1/n) (1 - alpha')` with n masks left, the order
    statistics of `planned`, and asks the network for one symbol at the time at which it falls. With L steps for L
    positions the joint distribution is exactly that of the process in continuous time, from a start of masks (survivors
    of a schedule that leaves tokens over are drawn independently of each other); with fewer, `L / steps` symbols are
    drawn at once, at the time of their first. Times below t_min are read as t_min, and on a table as rows. Here a time
    of the grid, over that of the first, is the share of a row's masks that are left; edit with `Infilling`, which keeps
    this grid.

    Args:
        denoiser: on `Absorbing(categories, schedule)`; it is asked at times `(B,)`.

    Raises:
        UsageError: as `Unmasking`.
    """

    looks_back = plans = True

    def __init__(self, denoiser: CleanDenoiser) -> None:
        super().__init__(denoiser)
        refuse_others(denoiser, "FirstHitting")
        refuse_changed_chances(denoiser, "FirstHitting")

    def times(self, steps: int | Tensor) -> Tensor:
        """Even shares of the masks, or the grid that was given, checked."""
        if not isinstance(steps, int):
            return super().times(steps)
        if steps < 1:
            raise UsageError(f"steps={steps}: a sampler needs at least one step")
        return checked(torch.linspace(1, 0, steps + 1, dtype=torch.float64))

    def begin(self) -> Step:
        transition, noise = self.corruption, self.corruption.noise
        soonest = transition.t_min if transition.steps is None else 1 / transition.steps
        plan, start = None, 1.0
        falling, rank, masks, counts = None, None, None, []

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            nonlocal plan, start, falling, rank, masks, counts
            if plan is None:
                plan, start = planned(transition, x, t, generator), float(t)
                falling, order = plan.events.flatten(1).sort(dim=1, descending=True, stable=True)
                rank = order.argsort(1)
                masks = (plan.events > 0).flatten(1).sum(1).double()
                counts = masks.unique().tolist()
            share, rest = float(t) / start, float(s) / start
            if all(int(n * share + 1e-9) == int(n * rest + 1e-9) for n in counts):
                return x
            first, stop = ((masks - torch.floor(masks * part + 1e-9)).long() for part in (share, rest))
            events = falling.gather(1, first.clamp(max=falling.shape[1] - 1)[:, None]).squeeze(1)
            drawn = quantile(self.denoiser(x, noise.time(events).clamp(min=soonest), **cond).exp(), plan.u)
            return torch.where((x == transition.mask_token) & (rank < stop[:, None]).view(x.shape), drawn, x)

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)


class Remasking(Sampler[CategoricalDenoiser, Transition]):
    r"""Symbols that were revealed fall back into the mask and are drawn anew (ReMDM, Wang et al. 2025, section 3).

    With `sigma = min(cap, share min(1, (1 - alpha_s) / alpha_t))` a symbol is masked again with the chance sigma, and a
    mask is revealed with `(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)`: the distribution of each position's x_s
    stays what it is, so any network of absorption will do, and more steps mend more errors. With cap 0 it is
    `Ancestral`. Their joint distribution does not: positions that fall back together are drawn at once, so at the end
    it is off by an error of the order of the cap, however many steps are taken, and with a cap in proportion to the
    step by one of order one in the step. With a wrong network it draws another distribution than `Ancestral`, which
    `VariationalBound` does not bound.

    Args:
        denoiser: on `Absorbing(categories, schedule)`.
        cap: the most that falls back in a step, the paper's capped strategy; 1 for none.
        share: of the largest sigma that keeps the law, the paper's rescaled strategy.
        last: what to make of `p(x_0 | x_t)` at the masks of the last step, in which nothing falls back.

    Raises:
        UsageError: as `Unmasking`, and for a cap or share outside [0, 1].
    """

    def __init__(
        self, denoiser: CleanDenoiser, cap: float = 0.02, share: float = 1.0, last: Last = most_likely
    ) -> None:
        super().__init__(denoiser)
        refuse_others(denoiser, "Remasking")
        refuse_changed_chances(denoiser, "Remasking")
        if not (0 <= cap <= 1 and 0 <= share <= 1):
            raise UsageError(f"cap={cap}, share={share}: both are chances, from 0 to 1")
        self.cap, self.share, self.last = cap, share, last

    def distribution(self, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """`p(x_s | x_t)`, `(..., K)`."""
        x = as_tokens(x, self.corruption.states, "x_t")
        p0 = self.denoiser(x, t, **cond).exp()
        (_, lost_s), (alpha_t, lost_t) = (self.corruption.kept(CLEAN, exact(time)) for time in (s, t))
        sigma = (self.share * (lost_s / alpha_t.clamp(min=TINY)).clamp(max=1)).clamp(max=self.cap)
        # The chance that a mask stays, 1 - alpha_s - sigma alpha_t over 1 - alpha_t, and is not negative but for
        # rounding.
        stays = ((lost_s - sigma * alpha_t) / lost_t).clamp(min=0)
        mask = self.corruption.one_hot(torch.full_like(x, self.corruption.mask_token), p0.dtype)
        hidden = (x == self.corruption.mask_token)[..., None]
        own = self.corruption.one_hot(x, p0.dtype)
        return torch.where(
            hidden,
            like(1 - stays, p0) * p0 + like(stays, p0) * mask,
            like(1 - sigma, p0) * own + like(sigma, p0) * mask,
        )

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        draw = self.last if self.corruption.is_clean(s) else categorical
        return draw(self.distribution(x, t, s, **cond), generator)


def refuse_changed_chances(denoiser: CategoricalDenoiser, name: str) -> None:
    """Refuses a denoiser under which a mask is not revealed with the schedule's own chance, by the name of the
    sampler.

    Raises:
        UsageError: with what to do.
    """
    if not isinstance(denoiser, CleanDenoiser):
        raise UsageError(
            f"{name} reveals masks with the chances of the schedule, and {type(denoiser).__name__} changes them: sample it with Ancestral"
        )
    if denoiser.reverse.eps:
        raise UsageError(
            f"{name} needs exact chances, and the reverse model has eps={denoiser.reverse.eps}: take Product(), or sample with Ancestral"
        )


def refuse_others(denoiser: CategoricalDenoiser, name: str) -> None:
    """Refuses all but absorption in a mask that is no token of the data, by the name of the sampler.

    Raises:
        UsageError: with what to do.
    """
    transition = denoiser.corruption
    if getattr(transition, "mask_token", None) != transition.categories:
        raise UsageError(
            f"{name} is for absorption in a mask of its own, Absorbing(levels, schedule), and this is {type(transition).__name__} "
            f"over {transition.states} symbols: sample it with Ancestral"
        )
