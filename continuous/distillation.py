"""Progressive distillation: a student that takes two of its teacher's steps in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.loss import refuse_untrained_output
from ..shared.gaussian.prediction import noise
from ..shared.gaussian.weights import Weight, truncated_snr
from ..shared.objective import Loss, Objective, TimeSampling, independent, times_of_rows, uniform_parts
from ..shared.random import Source
from ..shared.serialization import serializable
from ..shared.tensors import at_least_float32, exact, like, per_example, refuse_array, times_at
from .samplers import DDIM


@serializable("continuous.Distillation", formerly="unnoise.continuous.distillation.Distillation")
class Distillation(Objective[GaussianDenoiser]):
    r"""Trains a student to take two DDIM steps of its teacher in one (Salimans & Ho 2022, algorithm 2).

    The teacher steps t -> t - 1/2N -> t - 1/N, t = n / N with n random in 1..N. The target is the x_0 that takes x_t to
    the teacher's x_s, s = t - 1/N, in one DDIM step:
    `(x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t)`. The loss is `weight` times its squared
    error, mean over dimensions; the part `mse` is logged without the weight. The student starts as a copy of the
    teacher, and is sampled by `DDIM(student)(steps=N)`.

    Args:
        denoiser: the student, on a schedule whose grid of N steps is N/N, .., 1/N, 0, such as `Cosine`.
        teacher: the denoiser to learn from, wrapped in `Clipped` as published. It is not trained: its gradients are
            turned off, and it is put into evaluation mode.
        steps: N, the number of the student's steps.
        weight: weight of the squared error of x_0, `(schedule, t) -> weight`.
        times: how the times of a batch are drawn, as u in [0, 1); n is `floor(N u) + 1`.

    Raises:
        UsageError: for fewer than one step, a schedule whose grid is not n / N, a teacher with another log-SNR at these
            times, a student that predicts noise, and a network whose variance output would stay untrained.
    """

    draws_times = True

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        teacher: GaussianDenoiser,
        steps: int,
        weight: Weight = truncated_snr,
        times: TimeSampling = independent,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise UsageError(f"steps={steps}: a student needs at least one step")
        refuse_untrained_output(denoiser)
        grid = denoiser.corruption.grid(2 * steps)
        if not torch.allclose(grid, torch.linspace(1, 0, 2 * steps + 1, dtype=torch.float64)):
            raise UsageError(
                "a student is trained at the times n / N, and this schedule's grid has others: take Cosine"
            )
        if not torch.allclose(teacher.corruption.log_snr(grid[:-1]), denoiser.corruption.log_snr(grid[:-1])):
            raise UsageError("teacher and student have different schedules: put one on the other's with on(schedule)")
        if getattr(denoiser, "predicts", None) is noise:
            raise UsageError(
                "noise prediction cannot be distilled, it does not determine x_0 at zero SNR: predict velocity or clean"
            )
        self.denoiser, self.teacher = denoiser, teacher.requires_grad_(False)
        self.steps, self.weight, self.times = steps, weight, times

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        u = times_of_rows(self.times, len(refuse_array(x0, "x0")), generator)
        n = torch.floor(u * self.steps).clamp(max=self.steps - 1) + 1
        return uniform_parts(self.at(x0, times_at(n / self.steps, x0), generator=generator, **cond), self.times, u)

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        schedule, t = self.denoiser.corruption, exact(t)
        x_t = schedule.corrupt(x0, t, generator=generator)
        error = at_least_float32(self.denoiser(x_t, t, **cond) - self.target(x_t, t, **cond))
        loss = self.weight(schedule, t).to(error) * per_example(error**2, torch.mean)
        return Loss(loss, {"mse": per_example(error.detach() ** 2, torch.mean)}, t)

    @torch.no_grad()
    def target(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns the x_0 with which one DDIM step from x_t ends where two of the teacher's steps end.

        For x_t `(B, ...)` and t = n / N, a scalar or `(B,)`; of the shape of x_t, without gradient.
        """
        self.teacher.eval()
        middle, s = (t - 0.5 / self.steps), (t - 1 / self.steps).clamp(min=0.0)
        s = torch.where(s < 1e-9, 0.0, s)
        step = DDIM(self.teacher).step
        x_s = step(step(x_t, t, middle, **cond), middle, s, **cond)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.denoiser.corruption(t), self.denoiser.corruption(s)
        ratio = sigma_s / sigma_t
        return (x_s - like(ratio, x_t) * x_t) / like(alpha_s - ratio * alpha_t, x_t)
