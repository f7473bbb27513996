"""Grids of sampling times: the argument `steps` of a sampler is one of them, or a number for the schedule's own grid.

Every grid is float64, decreasing, and ends with 0. For tables the rows are n = 1..T at t = n / T; the index in the
papers' code is n - 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.schedule import Schedule, karras_sigmas


def strided(steps: int, rows: int) -> Tensor:
    """Returns rows 1, 1 + i, 1 + 2 i, .. with the integer stride i that gives exactly `steps` rows: OpenAI's "ddimN".

    As times n / T, noisiest first, and then 0: `(steps + 1,)`. T is `rows`, the number of rows of the table.

    Raises:
        UsageError: where no integer stride gives exactly `steps` rows.
    """
    for stride in range(1, max(rows, 2)):
        if len(range(0, rows, stride)) == steps:
            return _table(torch.arange(0, rows, stride), rows)
    possible = {len(range(0, rows, stride)) for stride in range(1, rows)}
    near = sorted(sorted(possible, key=lambda n: abs(n - steps))[:2])
    raise UsageError(
        f"steps={steps}: no integer stride visits exactly {steps} of {rows} rows; "
        f"the nearest possible numbers are {' and '.join(map(str, near))}"
    )


def sections(counts: Sequence[int], rows: int) -> Tensor:
    """Returns `counts[i]` evenly spaced rows, both ends included, of the i-th of equal sections from the clean end.

    As times n / T, noisiest first, and then 0: `(sum(counts) + 1,)`. T is `rows`, the number of rows of the table.
    Nichol & Dhariwal 2021, code; "90,60,60,20,20" for LSUN in Dhariwal & Nichol 2021.

    Raises:
        UsageError: for a count below 1 or above the number of rows in its section.
    """
    chosen, start = [], 0
    for i, count in enumerate(counts):
        size = rows // len(counts) + (i < rows % len(counts))
        if not 1 <= count <= size:
            raise UsageError(
                f"counts={','.join(map(str, counts))}: section {i + 1} has {size} rows, "
                f"ask for 1 to {size}, not {count}"
            )
        stride = torch.full((count,), (size - 1) / max(count - 1, 1), dtype=torch.float64)
        # Summed, and halves rounded to even, as in OpenAI's code.
        chosen.append(start + torch.round(stride.cumsum(0) - stride).long())
        start += size
    return _table(torch.cat(chosen), rows)


def quadratic(steps: int, rows: int) -> Tensor:
    """Returns rows `1 + floor(u^2)`, u evenly spaced from 0 to sqrt(0.8 T): DDIM's choice for CIFAR-10.

    As times n / T, noisiest first, and then 0; T is `rows`, the number of rows of the table. Song et al. 2020, appendix
    D.2. The noisiest row is about 0.8 T, and sampling starts with its sigma_t, where the published code draws N(0, I).
    Equal rows near 0 are visited once, so there may be fewer than `steps`.

    Raises:
        UsageError: unless 1 <= steps <= rows.
    """
    if not 1 <= steps <= rows:
        raise UsageError(f"steps={steps}: this table has {rows} steps, ask for 1 to {rows}")
    return _table(
        torch.floor(torch.linspace(0, (0.8 * rows) ** 0.5, steps, dtype=torch.float64) ** 2).long().unique(), rows
    )


def trailing(steps: int, rows: int) -> Tensor:
    """Returns rows `round(T - i T / S)`, i = 0..S-1, of which the noisiest is T (Lin et al. 2023, section 3.3).

    S is `steps`, and T is `rows`, the number of rows of the table. As times n / T, noisiest first, and then 0:
    `(steps + 1,)`.

    Raises:
        UsageError: unless 1 <= steps <= rows.
    """
    if not 1 <= steps <= rows:
        raise UsageError(f"steps={steps}: this table has {rows} steps, ask for 1 to {rows}")
    return _table(
        torch.round(rows - torch.arange(steps - 1, -1, -1, dtype=torch.float64) * rows / steps).long() - 1, rows
    )


def log_spaced(steps: int, schedule: Schedule, rho: float = 1.0) -> Tensor:
    """Returns times whose `log(sigma_t / alpha_t)` lies at the fraction `u^rho` of its range, u evenly spaced.

    u falls from 1 at t = 1 to 0 at t_last, the schedule's last noisy time; then comes t = 0: `(steps + 1,)`. At rho = 1
    steps are even in log-SNR (Lu et al. 2022, section 3.4).

    Raises:
        UsageError: for a schedule that ends at zero SNR.
    """
    low, high = _ends(schedule)
    ramp = torch.linspace(1, 0, steps, dtype=torch.float64) ** rho
    return _times(schedule, low.log() + ramp * (high.log() - low.log()))


def karras(steps: int, schedule: Schedule, rho: float = 7.0) -> Tensor:
    """Returns times whose `(sigma_t / alpha_t)^(1 / rho)` is evenly spaced from t = 1 to t_last, and then 0.

    t_last is the schedule's last noisy time. `(steps + 1,)`. Karras et al. 2022, eq. 5.

    Raises:
        UsageError: for a schedule that ends at zero SNR.
    """
    low, high = _ends(schedule)
    return _times(schedule, karras_sigmas(steps, float(low), float(high), rho).log())


def noise_ratio(schedule: Schedule, t: Tensor) -> Tensor:
    """Returns `sigma~_t = sigma_t / alpha_t`, float64, of the shape of t; infinite at zero SNR."""
    return torch.exp(-schedule.log_snr(t.double()) / 2)


def _ends(schedule: Schedule) -> tuple[Tensor, Tensor]:
    low, high = noise_ratio(schedule, torch.tensor([schedule.t_last, 1.0], dtype=torch.float64)).unbind()
    if not bool(torch.isfinite(high)):
        raise UsageError(
            "the schedule ends at zero SNR, where a step in log-SNR is infinite: take steps=N, or trailing(N, T)"
        )
    return low, high


def _times(schedule: Schedule, log_ratio: Tensor) -> Tensor:
    return torch.cat([schedule.time(-2 * log_ratio), torch.zeros(1, dtype=torch.float64)])


def _table(index: Tensor, rows: int) -> Tensor:
    return torch.cat([index.flip(0).double() + 1, torch.zeros(1, dtype=torch.float64)]) / rows
