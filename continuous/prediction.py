"""The prediction that needs a chain: its posterior mean."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.schedule import Schedule
from ..shared.serialization import serializable
from .posterior import posterior_coefficients
from .tabulated import Tabulated


@serializable("continuous.PosteriorMean", formerly="unnoise.continuous.prediction.PosteriorMean")
class PosteriorMean:
    r"""F = mu-tilde, the mean of `q(x_(n-1) | x_n, x_0)` (Ho et al. 2020, table 2), as a prediction:
    `x_0 = (F - b x_n) / a`.

    a and b are the posterior's coefficients of the row whose log-SNR is nearest: the prediction is defined on the rows
    of its table.

    Args:
        schedule: the table that the network is trained on.

    Raises:
        UsageError: for a schedule that is not a table of betas.
    """

    def __init__(self, schedule: Tabulated) -> None:
        if not isinstance(schedule, Tabulated):
            raise UsageError(
                f"the posterior mean is of a step of a table, and {type(schedule).__name__} is none: give a Tabulated schedule, or "
                "predict noise, velocity or clean"
            )
        self.schedule = schedule

    def __call__(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """`c_skip, c_out` at `(alpha_t, sigma_t)`."""
        chain: Schedule = self.schedule
        n = torch.round(chain.time(2 * torch.log(alpha.double() / sigma.double())) * self.schedule.steps).clamp(min=1)
        of_x0, of_x_t = posterior_coefficients(chain, n / self.schedule.steps, (n - 1) / self.schedule.steps)
        scale = (alpha.double() ** 2 + sigma.double() ** 2).rsqrt()  # the coefficients are of the unit-variance chain
        return (-of_x_t / of_x0 * scale).to(alpha), (1 / of_x0).to(alpha)
