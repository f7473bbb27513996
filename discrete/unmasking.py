"""Samplers for absorption in an added mask token, whose tokens are revealed at random times and may be masked again."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.random import Source, categorical, quantile, uniform
from ..shared.sampler import Sampler, Step, checked_grid
from ..shared.serialization import serializable
from ..shared.tensors import exact, like
from .denoiser import CategoricalDenoiser, CleanDenoiser
from .samplers import Last, most_likely
from .transition import Absorbing
from .transition.base import CLEAN, as_tokens

TINY = 1e-30


class Plan(NamedTuple):
    """When each position is revealed, and at which quantile of its distribution: `(B, ...)` each, float64.

    Attributes:
        events: the schedule's `total` at the time at which the position is revealed, 0 where x_t is not a mask.
        u: the quantile of the revealed token in the network's p0, in (0, 1].
    """

    events: Tensor
    u: Tensor


def planned(transition: Absorbing, x: Tensor, t: Tensor, generator: Source = None) -> Plan:
    r"""Samples the part of the reverse of absorption from x_t that does not depend on the network.

    A position that is masked at t was masked at a time r with `P(r <= s) = (1 - alpha_s) / (1 - alpha_t)`, whatever its
    token and all others are, and is revealed at r; so `1 - alpha_r = u (1 - alpha_t)` with u uniform (Zheng et al.
    2024, section 4). `alpha_t = exp(-total(t))` is the probability that a token is not yet masked at t. x is `(B, ...)`
    and t a scalar.
    """
    when, what = (1 - uniform(x.shape, generator, dtype=torch.float64, device=x.device) for _ in range(2))
    lost = like(transition.kept(CLEAN, exact(t))[1].to(x.device), x)
    return Plan(torch.where(x == transition.mask_token, -torch.log1p(-when * lost), 0.0), what)


@serializable("discrete.Unmasking")
class Unmasking(Sampler[CategoricalDenoiser, Absorbing]):
    r"""Samples as `Ancestral` under absorption, but runs the network only in steps in which a token is revealed.

    The distribution of samples is the same as with `Ancestral`, step by step, with fewer evaluations, and it is called
    in the same way. `alpha_t = exp(-total(t))` is the probability that a token is not yet masked at t. A masked
    position is revealed between t and s with probability `(alpha_s - alpha_t) / (1 - alpha_t)`, which does not depend
    on the network (Sahoo et al. 2024, eq. 7): all times are drawn in the first step and copied to the host once. One
    row takes at most as many evaluations as it has masks.

    Args:
        denoiser: a denoiser of `Absorbing(categories, schedule)`, a table or in continuous time.
        last: chooses x_0 from `p(x_0 | x_t)` in the last step, as for `Ancestral`; in earlier steps tokens are sampled.

    Raises:
        UsageError: for another process, and for denoisers that change the probability to be revealed: guidance by a
            classifier, ratios, an eps.
    """

    denoiser: CleanDenoiser

    looks_back = plans = True

    def __init__(self, denoiser: CleanDenoiser, last: Last = most_likely) -> None:
        super().__init__(denoiser)
        refuse_others(denoiser, "Unmasking")
        refuse_changed_chances(denoiser, "Unmasking")
        self.last = last

    def begin(self) -> Step:
        plan: Plan | None = None
        order, left = torch.empty(0), 0

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            nonlocal plan, order, left
            if plan is None:
                plan = planned(self.corruption, x, t, generator)
                order = plan.events.flatten().cpu().sort().values
                left = len(order)
            reached = self.corruption.noise.total(s)
            before, left = left, int(torch.searchsorted(order, reached, right=True))
            if before == left:
                if self.corruption.is_clean(s):  # `last` draws here too, or streams would depend on the batch
                    self.last(torch.ones(1, device=x.device).expand(*x.shape, 1), generator)
                return x
            p0 = self.denoiser(x, t, **cond).exp()
            drawn = self.last(p0, generator) if self.corruption.is_clean(s) else quantile(p0, plan.u)
            return torch.where((x == self.corruption.mask_token) & (plan.events > float(reached)), drawn, x)

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)


@serializable("discrete.FirstHitting")
class FirstHitting(Sampler[CategoricalDenoiser, Absorbing]):
    r"""Samples the limit of infinitely many steps with one network evaluation for each token.

    The first-hitting sampler of Zheng et al. (2024, section 4): each row goes from one reveal to the next, at times
    `1 - alpha = u^(1/n) (1 - alpha')` with n masks left, where `alpha = exp(-total)` is at the time of the next reveal,
    alpha' at the one before and u is uniform, the order statistics of `planned`, and samples one token from the network
    at that time. With L steps for L positions the joint distribution is exactly that of the process in continuous time
    from a start of masks (data tokens that remain at t = 1 are sampled independently of each other); with fewer steps,
    `L / steps` tokens are sampled at once, at the time of the first of them. Times below t_min are rounded up to t_min,
    and on a table to rows. A time of this sampler's grid, divided by the first, is the share of a row's masks that are
    left; edit with `Infilling`, which keeps this grid.

    Args:
        denoiser: a denoiser of `Absorbing(categories, schedule)`; it is evaluated at times `(B,)`.

    Raises:
        UsageError: for another process, and for denoisers that change the probability to be revealed, as `Unmasking`.
    """

    looks_back = plans = True

    def __init__(self, denoiser: CleanDenoiser) -> None:
        super().__init__(denoiser)
        refuse_others(denoiser, "FirstHitting")
        refuse_changed_chances(denoiser, "FirstHitting")

    def times(self, steps: int | Tensor) -> Tensor:
        """Returns even shares of the masks, `(steps + 1,)` from 1 down to 0, or the given grid, checked.

        Raises:
            UsageError: for fewer steps than one, and a grid that does not decrease within [0, 1].
        """
        if not isinstance(steps, int):
            return super().times(steps)
        if steps < 1:
            raise UsageError(f"steps={steps}: a sampler needs at least one step")
        return checked_grid(torch.linspace(1, 0, steps + 1, dtype=torch.float64))

    def begin(self) -> Step:
        transition, noise = self.corruption, self.corruption.noise
        soonest = transition.t_min if transition.steps is None else 1 / transition.steps
        plan: Plan | None = None
        start, counts = 1.0, cast(list[float], [])
        falling = rank = masks = torch.empty(0)

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


@serializable("discrete.Remasking")
class Remasking(Sampler[CategoricalDenoiser, Absorbing]):
    r"""Masks some revealed tokens again in each step, so that they are sampled anew (ReMDM).

    Wang et al. 2025, section 3. `alpha_t = exp(-total(t))` is the probability that a token is not yet masked at t. With
    `sigma = min(cap, share min(1, (1 - alpha_s) / alpha_t))` a token is masked again with probability sigma, and a mask
    is revealed with `(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)`. This keeps the distribution of x_s at each
    position, so any network that was trained under absorption fits, and more steps correct more errors. With cap 0 it
    is `Ancestral`. It does not keep the joint distribution of positions: those that are masked again together are
    sampled at once, so the final error is of the order of the cap, however many steps are taken, and of order one in
    the step for a cap in proportion to the step. With an inexact network it samples another distribution than
    `Ancestral`, which `VariationalBound` does not bound.

    Args:
        denoiser: a denoiser of `Absorbing(categories, schedule)`.
        cap: the largest sigma, the paper's capped strategy; 1 for no cap.
        share: the share of the largest sigma that keeps the distribution, the paper's rescaled strategy.
        last: chooses x_0 from `p(x_0 | x_t)` at the masks of the last step, in which no token is masked again.

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
            raise UsageError(f"cap={cap}, share={share}: give two numbers from 0 to 1")
        self.cap, self.share, self.last = cap, share, last

    def distribution(self, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """Returns the probabilities of a step, `p(x_s | x_t)`, `(..., K)`, for scalar times s < t."""
        x = as_tokens(x, self.corruption.states, "x_t")
        p0 = self.denoiser(x, t, **cond).exp()
        (_, lost_s), (alpha_t, lost_t) = (self.corruption.kept(CLEAN, exact(time)) for time in (s, t))
        sigma = (self.share * (lost_s / alpha_t.clamp(min=TINY)).clamp(max=1)).clamp(max=self.cap)
        # The probability that a mask stays, (1 - alpha_s - sigma alpha_t) / (1 - alpha_t), negative only by rounding:
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
    """Raises an error for a denoiser under which masks are not revealed with the schedule's probabilities.

    Raises:
        UsageError: with the name of the sampler and what to do.
    """
    if not isinstance(denoiser, CleanDenoiser):
        raise UsageError(
            f"{name} reveals masks with the probabilities of the schedule, which {type(denoiser).__name__} changes: "
            "sample it with Ancestral"
        )
    if denoiser.reverse.eps:
        raise UsageError(
            f"{name} needs a reverse model without smoothing, and this one has eps={denoiser.reverse.eps}: take "
            "Product(), or sample with Ancestral"
        )


def refuse_others(denoiser: CategoricalDenoiser, name: str) -> None:
    """Raises an error for every process but absorption in an added mask token.

    Raises:
        UsageError: with the name of the sampler and what to do.
    """
    transition = denoiser.corruption
    if getattr(transition, "mask_token", None) != transition.categories:
        raise UsageError(
            f"{name} is for absorption in an added mask token, Absorbing(categories, schedule), and this is "
            f"{type(transition).__name__} over {transition.states} states: sample it with Ancestral"
        )
