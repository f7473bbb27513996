"""Guidance of categorical denoisers: a guided denoiser is a denoiser, so every sampler takes it.

As in `shared.gaussian.guidance`, the strength of classifier-free guidance is w, which is 0 without guidance.
`ConditionDropout` of that module wraps any objective to train for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..shared.calling import precision, refuse_non_tensor, to_dtype
from ..shared.denoiser import accepted_conditions
from ..shared.errors import UsageError
from ..shared.gradients import gradients
from ..shared.null_conditions import refuse_missing_condition, refuse_networks_without_null
from ..shared.random import Source, categorical
from ..shared.serialization import serializable
from ..shared.tensors import at_least_float32
from .denoiser import CategoricalDenoiser, CleanDenoiser, CleanDenoiserWrapper, divergence_from
from .transition.base import CLEAN, Terms, normalized
from .transition.generic import score_entropy

FLOOR = math.log(1e-30)  # of the log-probability that is subtracted: 0 under both halves stays 0
LogProb: TypeAlias = Callable[..., Tensor]
Change: TypeAlias = Callable[[LogProb, Tensor, Tensor, int, dict[str, Any]], Tensor]


@serializable("discrete.ClassifierFree", formerly="unnoise.discrete.guidance.ClassifierFree")
class ClassifierFree(CleanDenoiserWrapper):
    r"""`log p = (1 + w) log p0(x_0 | x_t, c) - w log p0(x_0 | x_t)`, normalized, at each position.

    A denoiser, read by the reverse model of the given one; calls and samplers take the condition c by name. It is the
    guidance of Ho & Salimans (2022, eq. 6) for tokens; under absorption it is Schiff et al.'s (2025) and Nisonoff et
    al.'s (2024) guidance without a classifier. A token of probability 0 under the condition keeps probability 0. Two
    network evaluations, one for w = 0.

    Args:
        denoiser: a conditional denoiser, trained with `ConditionDropout`.
        w: the strength, above -1; the "guidance scale" of other code is 1 + w.
        condition: the name of the condition to strengthen; all others go to both halves.
        null: the value that means "no condition" for one example, as in training; None leaves the condition out, and
            networks of this package then use their own null.

    Raises:
        UsageError: for other strengths, where the denoiser's network does not take the condition, and where it does not
            define a null.
    """

    def __init__(
        self, denoiser: CleanDenoiser, w: float, condition: str = "label", null: Tensor | int | None = None
    ) -> None:
        super().__init__(denoiser)
        refuse_missing_condition(denoiser, condition)
        if not w > -1:
            raise UsageError(
                f"w={w}: give a strength above -1, where 0 is the conditional model; to sample without the condition, "
                "leave it out"
            )
        if null is None:
            refuse_networks_without_null(denoiser, condition)
        elif not isinstance(null, int | Tensor):
            raise UsageError(
                f"null={null!r}: give the value that means no {condition} for one example, a number or a tensor, as in "
                "training"
            )
        self.w, self.condition, self.null = w, condition, null

    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if self.condition not in cond:
            raise UsageError(
                f"guidance needs the condition: give {self.condition}=..., or sample the denoiser without guidance"
            )
        logits = self.denoiser.logits(x_t, t, **cond)
        if self.w == 0:
            return logits
        others = {name: value for name, value in cond.items() if name != self.condition}
        if self.null is not None:
            value, null = cond[self.condition], self.null
            others[self.condition] = (
                torch.full_like(value, null) if isinstance(null, int) else null.to(value).expand_as(value)
            )
        conditional, free = (
            at_least_float32(out).log_softmax(-1) for out in (logits, self.denoiser.logits(x_t, t, **others))
        )
        return (1 + self.w) * conditional - self.w * free.clamp(min=FLOOR)


def log_probs(classifier: LogProb, hot: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
    """Returns the classifier's `log p(c | x_t)`, `(B,)`, float32 or better, for one-hot tokens in its own precision.

    Args:
        classifier: as for `ClassifierGuided`.
        hot: one-hot tokens, `(B, ..., K)`, floating-point.
        t: a scalar or `(B,)`.
        cond: conditions by name, the class c among them.

    Raises:
        UsageError: for an output of another shape.
    """
    dtype = precision(classifier) if isinstance(classifier, nn.Module) else None
    out = refuse_non_tensor(classifier(hot if dtype is None else to_dtype(hot, dtype), t, **cond), hot)
    if out.shape != (len(hot),):
        raise UsageError(
            f"the classifier returned {tuple(out.shape)} for {len(hot)} examples: return log p of the given class, "
            f"({len(hot)},), such as logits.log_softmax(-1).gather(1, label[:, None])[:, 0]"
        )
    return at_least_float32(out)


@serializable("discrete.first_order", formerly="unnoise.discrete.guidance.first_order")
def first_order(classifier: LogProb, x_t: Tensor, t: Tensor, states: int, cond: dict[str, Any]) -> Tensor:
    r"""Approximates `log p(c | x_t with k at i) - log p(c | x_t)` to first order, `g_ik - g_i(x_t)`, `(..., K)`.

    g_ik is the derivative of the log-probability of c by the one-hot x_t at position i and category k, which takes one
    evaluation with a backward pass: Nisonoff et al. (2024), who call it Taylor-approximated guidance (TAG); Vignac et
    al. (2023, section 5).

    Args:
        classifier: as for `ClassifierGuided`.
        x_t: `(B, ...)`, int64.
        t: a scalar or `(B,)`.
        states: K.
        cond: conditions by name, the class c among them.
    """
    with gradients(x_t, t, cond) as (x, t, cond):
        hot = nn.functional.one_hot(x, states).float().requires_grad_()
        gradient = torch.autograd.grad(log_probs(classifier, hot, t, cond).sum(), hot)[0]
    return gradient - gradient.gather(-1, x_t[..., None])


@serializable("discrete.every_neighbor", formerly="unnoise.discrete.guidance.every_neighbour")
def every_neighbor(classifier: LogProb, x_t: Tensor, t: Tensor, states: int, cond: dict[str, Any]) -> Tensor:
    """Computes `log p(c | x_t with k at i) - log p(c | x_t)` exactly, `(..., K)`, by an evaluation for each k and i.

    For each category k at each position i, `K n + 1` evaluations of the classifier for n positions (Nisonoff et al.
    2024). Arguments as for `first_order`.
    """
    flat = x_t.flatten(1)

    def log_prob(x: Tensor) -> Tensor:
        return log_probs(classifier, nn.functional.one_hot(x.view(x_t.shape), states).float(), t, cond)

    here, out = log_prob(flat), []
    for i in range(flat.shape[1]):
        for k in range(states):
            moved = flat.clone()
            moved[:, i] = k
            out.append(log_prob(moved) - here)
    return torch.stack(out, 1).view(*x_t.shape, states)


@serializable("discrete.ClassifierGuided", formerly="unnoise.discrete.guidance.ClassifierGuided")
class ClassifierGuided(CategoricalDenoiser):
    r"""`p(x_s = k | x_t, c) prop. to p(x_s = k | x_t) exp(scale (log p(c | x_t with k) - log p(c | x_t)))`.

    This holds at each position; "x_t with k" has the category k there and is x_t elsewhere. Called with x_t, t and
    conditions, it returns the log of the guided `p(x_0 | x_t, c)`, `(..., K)`. The ratios `q_t(y) / q_t(x_t)`, and so
    the rates of `Euler` and `TauLeaping`, are multiplied by the same factor, which for scale 1 and a perfect classifier
    is Bayes' rule (Nisonoff et al. 2024); the distribution of a step converges to it as steps become small (Vignac et
    al. 2023, section 5).

    Args:
        denoiser: unconditional or conditional.
        classifier: `log_prob(one_hot (B, ..., K), t, **cond) -> (B,)`, the log-probability of the class given noisy
            tokens, float32 in; t is in [0, 1], and `cond` contains the class.
        scale: 1 for Bayes' rule, 0 for no guidance.
        change: how the difference is computed: `first_order`, or `every_neighbor`.
    """

    def __init__(
        self, denoiser: CategoricalDenoiser, classifier: LogProb, scale: float = 1.0, change: Change = first_order
    ) -> None:
        super().__init__()
        self.denoiser, self.classifier, self.scale, self.change = denoiser, classifier, scale, change
        self.corruption, self.conditions = denoiser.corruption, None

    @property
    def has_integral(self) -> bool:
        pi, end = self.corruption.stationary(), torch.ones((), dtype=torch.float64)
        if self.corruption.steps is not None or bool((pi == 1).any()) or not self.scale:
            return True
        return bool(torch.isfinite(self.corruption.inflow(pi.argmax(-1)[None], end)).all())

    def tilt(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns `scale (log p(c | x_t with k) - log p(c | x_t))`, 0 at x_t itself, `(..., K)`."""
        return self.scale * self.change(self.classifier, x_t.long(), t, self.corruption.states, cond)

    def step_distribution(self, x_t: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        distribution = self.denoiser.step_distribution(x_t, t, s, **accepted_conditions(self.denoiser, cond))
        tilt = torch.where(distribution > 0, self.tilt(x_t, t, **cond).to(distribution), -torch.inf)
        return normalized(distribution * torch.exp(tilt - tilt.amax(-1, keepdim=True)))

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.step_distribution(x_t, t, CLEAN, **cond).log()

    def draw(self, x_t: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return categorical(self.step_distribution(x_t, t, s, **cond), generator)

    def ratio(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        ratio = self.denoiser.ratio(x_t, t, **accepted_conditions(self.denoiser, cond))
        return ratio.double() * self.tilt(x_t, t, **cond).double().exp()  # may be beyond float32's range

    def divergence(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any
    ) -> Terms:
        distribution = self.step_distribution(x_t, t, s, **cond)
        return Terms(
            divergence_from(self.corruption, distribution.to(dtype or distribution.dtype), x0, x_t, t, s), None
        )

    def path_rate(self, x0: Tensor, x_t: Tensor, t: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        ratio = self.ratio(x_t, t, **cond)
        rate = score_entropy(self.corruption, ratio.to(dtype or ratio.dtype).log(), x0.long(), x_t.long(), t)
        return Terms(rate, None)
