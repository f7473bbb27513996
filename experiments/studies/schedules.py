"""A picture of all noise schedules."""

from __future__ import annotations

from pathlib import Path

import torch

from ...continuous import (
    ConstantBetas,
    Cosine,
    CosineBetas,
    LinearBetas,
    QuadraticBetas,
    ReciprocalBetas,
    Shifted,
    SigmoidBetas,
    WarmupBetas,
    ZeroTerminal,
    resolution_shift,
)
from ...sde import VP
from ...shared.gaussian.schedule import Schedule


def schedules(steps: int) -> dict[str, Schedule]:
    """Returns all variance-preserving schedules by name; those that are tables have `steps` steps."""
    return {
        "linear": LinearBetas(steps),
        "quadratic": QuadraticBetas(steps),
        "cosine": CosineBetas(steps),
        "sigmoid": SigmoidBetas(steps),
        "constant": ConstantBetas(steps),
        "1/T (jsd)": ReciprocalBetas(steps),
        "warm-up 10 %": WarmupBetas(steps, 0.1),
        "warm-up 50 %": WarmupBetas(steps, 0.5),
        "linear, zero-terminal": ZeroTerminal(LinearBetas(steps)),
        "continuous cosine": Cosine(),
        "continuous cosine, 64 to 256 px": Shifted(Cosine(), resolution_shift(64, 256)),
        "VP": VP(),
    }


def plot(path: Path, steps: int = 1000) -> Path:
    """Draws alpha-bar, log-SNR and beta of every schedule over time into a picture."""
    from ...shared.figures import Lines, save_lines

    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    power, log_snr, betas = {}, {}, {}
    for name, schedule in schedules(steps).items():
        alpha2 = schedule(t)[0] ** 2
        kept = alpha2 / torch.cat([torch.ones(1, dtype=torch.float64), alpha2[:-1]])
        power[name], betas[name] = (t.tolist(), alpha2.tolist()), (t.tolist(), (1 - kept).tolist())
        finite = schedule.log_snr(t).clamp(min=-25)
        log_snr[name] = (t.tolist(), finite.tolist())
    return save_lines(
        path,
        {
            "signal": Lines("t", "alpha-bar = alpha_t²", power),
            "log-SNR": Lines("t", "log(alpha_t² / sigma_t²), at least -25", log_snr),
            f"beta of {steps} steps": Lines("t", "1 - alpha-bar_n / alpha-bar_(n-1)", betas, logy=True),
        },
    )
