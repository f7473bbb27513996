"""The stochastic differential equation of a schedule, and its reversals."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.gaussian.schedule import Schedule, refuse_zero_snr
from ..shared.tensors import exact, like


class SDE:
    r"""The SDE `dx = f(t) x dt + g(t) dw` whose marginals are those of a schedule.

    `f = d log alpha_t / dt` and `g^2 = -sigma_t^2 d lambda_t / dt` with the log-SNR
    `lambda_t = log(alpha_t^2 / sigma_t^2)` (Kingma et al. 2021, section 3.1); w is a Wiener process. The derivatives
    are found by forward-mode differentiation, so every schedule has its SDE.

    Args:
        schedule: the schedule with the marginals `N(alpha_t x_0, sigma_t^2 I)`.

    Raises:
        UsageError: for a schedule that ends at zero SNR, where f and g are infinite.
    """

    def __init__(self, schedule: Schedule) -> None:
        refuse_zero_snr(schedule)
        self.schedule = schedule

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `f(t)` and `g(t)^2`, float64, of the shape of t, 0 < t <= 1."""
        t = exact(t).contiguous()

        def logs(t: Tensor) -> tuple[Tensor, Tensor]:
            return self.schedule(t)[0].log(), self.schedule.log_snr(t)

        f, d_log_snr = torch.func.jvp(logs, (t,), (torch.ones_like(t),))[1]
        return f, -(self.schedule(t)[1] ** 2) * d_log_snr

    def reverse_drift(self, x: Tensor, t: Tensor, score: Tensor, eta: float = 1.0) -> Tensor:
        r"""Returns `f x - (1 + eta^2) / 2 g^2 score`, the drift of the reverse process with noise `eta g dw`.

        Of the shape of x `(B, ...)`, for t, a scalar or `(B,)`, and the score at x and t. eta = 1 is the reverse SDE
        (Song et al. 2021, eq. 6), eta = 0 the probability flow (eq. 13); the marginals do not depend on eta.
        """
        f, g2 = (like(c, x) for c in self.coefficients(t))
        return f * x - 0.5 * (1 + eta**2) * g2 * score
