"""Loss weights, all of one form: what multiplies the squared error of x_0, as a function of `(alpha_t, sigma_t)`.

Papers state a weight for the error of what their network predicts; the errors of x_0, noise and velocity differ by factors of
SNR, `E_noise = SNR E_x0`, `E_velocity = (SNR + 1) E_x0`, so one weight here stands for three there. `shared.objective.snr` is Ho et
al.'s simple loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..shared.describe import described
from ..shared.objective import snr
from ..shared.prediction import Prediction


@described
def truncated_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """`max(SNR, 1)` (Salimans & Ho 2022, section 4)."""
    return snr(alpha, sigma).clamp(min=1.0)


@described
@dataclass(frozen=True)
class MinSNR:
    """`min(SNR, gamma)` (Hang et al. 2023, section 3.4).

    For the noise that is `min(gamma / SNR, 1)`, for the velocity `min(SNR, gamma) / (SNR + 1)`.

    Attributes:
        gamma: 5 in the paper.
    """

    gamma: float = 5.0

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The weight of the error of x_0."""
        return snr(alpha, sigma).clamp(max=self.gamma)


@described
@dataclass(frozen=True)
class PlainError:
    """`1 / c_out^2`: the plain squared error of what the network puts out, whatever it predicts.

    With `noise` that is `snr`, with `clean` 1, with `velocity` SNR + 1, and with `PosteriorMean` the plain error of mu (Ho et al. 2020,
    table 2).

    Attributes:
        predicts: what the network predicts.
    """

    predicts: Prediction

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The weight of the error of x_0."""
        return 1 / self.predicts(alpha, sigma)[1] ** 2
