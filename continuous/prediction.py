"""The posterior mean as the prediction of a network, which only a chain of steps has."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.serialization import serializable
from .posterior import posterior_coefficients
from .schedules import BetaTable


@serializable("continuous.PosteriorMean", formerly="unnoise.continuous.prediction.PosteriorMean")
class PosteriorMean:
    r"""F = mu-tilde, the mean of `q(x_(n-1) | x_n, x_0)` (Ho et al. 2020, table 2): `x_0 = (F - b x_n) / a`.

    F is the network's output; a and b are the coefficients of x_0 and x_n in mu-tilde, at the row of the table with the
    log-SNR nearest to that of x_t: the prediction is defined on the rows of its table. Called with alpha_t and sigma_t;
    returns `c_skip` and `c_out` of `x_0 = c_skip x_t + c_out F`.

    Args:
        schedule: the table that the network is trained on.

    Raises:
        UsageError: for a schedule that is not a table of betas.
    """

    def __init__(self, schedule: BetaTable) -> None:
        if not isinstance(schedule, BetaTable):
            raise UsageError(
                f"schedule={type(schedule).__name__}: the posterior mean is that of a step of a table; "
                "give a Tabulated schedule, or predict noise, velocity or clean"
            )
        self.schedule = schedule

    def __call__(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `c_skip, c_out` at `(alpha_t, sigma_t)`, of the shape of alpha."""
        chain = self.schedule
        n = torch.round(chain.time(2 * torch.log(alpha.double() / sigma.double())) * chain.steps).clamp(min=1)
        of_x0, of_x_t = posterior_coefficients(chain, n / chain.steps, (n - 1) / chain.steps)
        scale = (alpha.double() ** 2 + sigma.double() ** 2).rsqrt()  # both coefficients are variance preserving
        return (-of_x_t / of_x0 * scale).to(alpha), (1 / of_x0).to(alpha)
