"""Absorption: tokens become a mask token and stay there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.errors import UsageError
from ...shared.random import Source, uniform
from ...shared.serialization import serializable
from ...shared.tensors import Table, at_least_float32, exact, like
from ..fused import cross_entropy, weighted
from ..schedules import NoiseSchedule
from .base import ReverseModel, Terms
from .generic import generic_divergence, generic_draw, generic_path_rate, score_entropy
from .interpolating import TINY, Interpolating, Pair


@serializable(
    "discrete.Absorbing", formerly="unnoise.discrete.transition.absorbing.Absorbing", renamed={"levels": "categories"}
)
class Absorbing(Interpolating):
    r"""Absorption in a mask token m, `Q_n = (1 - beta_n) I + beta_n 1 e_m^T` (Austin et al. 2021, appendix A.2).

    A token becomes the mask at its first noise event and stays there: at t a token of the data is still itself with
    probability `alpha_t = exp(-total(t))`, the product of `1 - beta` on a table, and else is m. Sampling starts from
    masks; where `alpha_1` is above 0, that share of tokens is drawn from the denoiser (`CategoricalDenoiser.start`).

    Args:
        categories: the number of categories in the data.
        schedule: betas `(T,)`, the probabilities that step n masks a token, or a `NoiseSchedule`, whose `total(t)` is
            `-log alpha_t`; `reciprocal` masks everything by the last step.
        mask: m, one of the categories, as in the paper's image runs (`categories // 2`); None adds a mask token, of
            index `categories`, as for text.

    Attributes:
        mask_token: m, the index of the mask.
        states: K = `categories + 1` with an added mask, else `categories`.

    Raises:
        UsageError: for a mask that is not one of the categories.
    """

    def __init__(self, categories: int, schedule: Tensor | NoiseSchedule, mask: int | None = None) -> None:
        if mask is not None and not 0 <= mask < categories:
            raise UsageError(
                f"mask={mask}: give one of the categories 0..{categories - 1}, or None to add a mask token"
            )
        super().__init__(categories, categories + (mask is None), schedule)
        self.mask, self.mask_token = mask, categories if mask is None else mask
        self._stationary = Table(F.one_hot(torch.tensor(self.mask_token), self.states).double())

    def stationary(self) -> Tensor:
        return self._stationary.values

    def fresh(self, x: Tensor) -> Tensor:
        return (x == self.mask_token).double()

    def quantile(self, u: Tensor) -> Tensor:
        return torch.full(u.shape, self.mask_token, device=u.device)

    def loss_is_of_masks(self, reverse: ReverseModel) -> bool:
        return self.mask is None and not reverse.eps

    def _hit(self, x: Tensor, s: Tensor, t: Tensor, generator: Source) -> Tensor:
        kept = like(self.kept(s, t)[0].to(x.device), x)
        return x.masked_fill(
            1 - uniform(x.shape, generator, dtype=torch.float64, device=x.device) > kept, self.mask_token
        )

    def undone(self, m: Tensor, s: Tensor, t: Tensor) -> Tensor:
        kept, lost = (like(c.to(m.device), m[..., 0]) for c in self.kept(s, t))
        unmasked = (
            m.sum(-1) - m[..., self.mask_token] if self.states <= self.categories else m[..., : self.categories].sum(-1)
        )
        at = torch.tensor(self.mask_token, device=m.device).expand(*m.shape[:-1], 1)
        return m.scatter(-1, at, (kept * m[..., self.mask_token] - lost * unmasked)[..., None])

    def divergence(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Terms:
        if reverse.eps:
            return generic_divergence(self, reverse, logits, x0, x_t, t, s)
        if self.mask is None:  # both distributions reveal a masked position between t and s with the same probability
            nats = cross_entropy(logits, x0, x_t == self.mask_token)
            before, after = (self.noise.total(exact(time).to(x_t.device)) for time in (s, t))
            revealed = 1 - torch.expm1(-before) / torch.expm1(-after)
            return Terms(weighted(like(revealed, x_t), nats), nats)
        log_p_t, log_p_0 = (-cross_entropy(logits, x) for x in (torch.full_like(x_t, self.mask), x0))
        kl, nats = (
            self._at_time(self.pair(reverse, x_t, t, time), x0, x_t, log_p_t, log_p_0)
            for time in (s, torch.zeros_like(s))
        )
        output, clean = (like(v.to(x_t.device), x_t) for v in (self.takes_output(t), self.is_clean(s)))
        nats = torch.where(output, -log_p_0.to(nats), nats)
        return Terms(torch.where(clean, nats, kl), nats)

    def _at_time(self, pair: Pair, x0: Tensor, x_t: Tensor, log_p_t: Tensor, log_p_0: Tensor) -> Tensor:
        r"""Returns `KL(q(x_s | x_t, x_0) || p(x_s | x_t))`, `(...)`, where the mask is a category of the data.

        It depends on p0 at x_t and x_0 only. The factor `back` of both distributions cancels:
        `KL = log(Z_p / Z_q) + sum_k q_k (log w^q_k - log w^p_k)`.

        Args:
            pair: the constants of the two times.
            x0, x_t: tokens.
            log_p_t, log_p_0: `log p0` at x_t and x_0.
        """
        a, b, c, g, pi_t = pair
        same, p_t, p_0 = x0 == x_t, log_p_t.double().exp(), log_p_0.double().exp()
        h = g * p_t - torch.expm1(log_p_t.double())
        w_t, w_0 = c * g * p_t + (1 - c) * h * pi_t, c * p_0 + (1 - c) * h * self.fresh(x0)
        true_t, true_0 = c * same + (1 - c) * pi_t, c + (1 - c) * self.fresh(x0)
        z, true_z = b * h + a * w_t, b + a * true_t
        q_t, q_0 = (a + b) * true_t / true_z.clamp(min=TINY), b * true_0 / true_z.clamp(min=TINY)
        kl = _log_ratio(z, true_z) + _part(q_t, true_t, w_t) + torch.where(same, 0.0, _part(q_0, true_0, w_0))
        return torch.where(b > 0, kl, 0.0).to(at_least_float32(log_p_0))

    def path_rate(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Terms:
        r"""Returns `-alpha_t' / (1 - alpha_t) (-log p0(x_0))` at masks, else 0 (Sahoo et al. 2024, eq. 10).

        `alpha_t = exp(-total(t))`; for an added mask. For a mask among the categories it is the generic rate.
        """
        if self.mask is not None:
            return generic_path_rate(self, reverse, logits, x0, x_t, t)
        nats, t = cross_entropy(logits, x0, x_t == self.mask_token), exact(t).to(x_t.device)
        weight = self.noise.rate(t) / torch.expm1(self.noise.total(t))
        return Terms(weighted(like(weight, x_t), nats), nats)

    def cross_entropy(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.mask is not None:
            return super().cross_entropy(reverse, logits, x0, x_t, t)
        return cross_entropy(logits, x0, x_t == self.mask_token)

    def score_entropy(self, log_ratio: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        r"""Returns `rate (sum_y m_y - r log m_(x_0) + r (log r - 1))`, `r = alpha / (1 - alpha)`, at masks, else 0.

        Lou et al. 2024, eq. 15. `rate` is the schedule's at t, alpha is `exp(-total(t))` and m are the ratios, for an
        added mask; arguments as `Interpolating.score_entropy`.
        """
        if self.mask is not None:
            return score_entropy(self, log_ratio, x0, x_t, t)
        total = like(self.noise.total(exact(t).to(x_t.device)), x_t)
        rate, log_r = like(self.noise.rate(exact(t).to(x_t.device)), x_t), -torch.log(torch.expm1(total))
        at_x0 = log_ratio.gather(-1, x0[..., None]).squeeze(-1)
        terms = log_ratio[..., : self.categories].exp().sum(-1) + log_r.exp() * (log_r - 1 - at_x0)
        return torch.where(x_t == self.mask_token, rate * terms, 0.0).to(log_ratio)

    def draw(
        self, reverse: ReverseModel, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor, generator: Source = None
    ) -> Tensor:
        if reverse.eps:
            return generic_draw(self, reverse, logits, x_t, t, s, generator)
        return self.known_draw(reverse, logits, x_t, t, s, generator)


def _log_ratio(p: Tensor, q: Tensor) -> Tensor:
    return p.clamp(min=TINY).log() - q.clamp(min=TINY).log()


def _part(q: Tensor, true: Tensor, w: Tensor) -> Tensor:
    """Returns a token's part of the divergence, infinite where the model's probability is 0 and the true one is not."""
    return torch.where(q > 0, q * (_log_ratio(true, w) + torch.where(w > 0, 0.0, torch.inf)), 0.0)
