"""The Gaussian posterior of a chain, for any pair of levels, and the variances that its reversal may use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from ..shared.corruption import Schedule
from ..shared.describe import described
from ..shared.tensors import exact, like

ReverseVariance: TypeAlias = Callable[[Schedule, Tensor, Tensor], Tensor]


def posterior(schedule: Schedule, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of `q(x_s | x_t, x_0)` for any s < t (Ho et al. 2020, eq. 7, for s = t - 1/T).

    With `k = SNR_t / SNR_s`: mean `alpha_s (1 - k) x_0 + sqrt(k) (sigma_s / sigma_t) x_t`, variance `sigma_s^2 (1 - k)`. At s = 0 that is
    x_0 itself with variance 0.

    Args:
        schedule: of x_t.
        x_t, x0: `(B, ...)`.
        t, s: scalars or `(B,)`.

    Returns:
        The mean, of the shape of x_t, and the variance, float64, of the shape of t.
    """
    t, s = exact(t), exact(s)
    (_, sigma_t), (alpha_s, sigma_s), k = schedule(t), schedule(s), schedule.kept(s, t)
    mean = like(alpha_s * (1 - k), x_t) * x0 + like(k.sqrt() * sigma_s / sigma_t, x_t) * x_t
    return mean, sigma_s**2 * (1 - k)


@described
def small(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """The posterior's own variance `sigma_s^2 (1 - k)`: beta-tilde, right for data at a single point (Ho et al. 2020, section 3.2)."""
    return schedule(exact(s))[1] ** 2 * (1 - schedule.kept(exact(s), exact(t)))


@described
def large(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """`sigma_t^2 (1 - k)`: beta_t for one step, right for data of unit variance (Ho et al. 2020, section 3.2)."""
    return schedule(exact(t))[1] ** 2 * (1 - schedule.kept(exact(s), exact(t)))
