"""Copies of denoisers and classifiers of noisy data on a schedule other than that of training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..time_inputs import TimeInput
from .schedule import Schedule, refuse_disorder


class TrainedOnSchedule(Protocol):
    """A denoiser or classifier of noisy data with a network.

    Attributes:
        corruption: the current schedule, which made x_t.
        schedule: the schedule of training, which determines the time inputs.
    """

    corruption: Schedule
    schedule: Schedule

    @property
    def time_input(self) -> TimeInput[Schedule]:
        """`(schedule, t) -> time input`, for times of the training schedule."""
        ...


T = TypeVar("T", bound=TrainedOnSchedule)
M = TypeVar("M", bound=nn.Module)


def with_modules_on(module: M, schedule: Schedule) -> M:
    """Returns a copy of a module with the same weights, whose child modules with a method `on` are put on `schedule`.

    The same holds for the children of an `nn.ModuleList` or `nn.ModuleDict`. Other children are shared.
    """
    other = copy.copy(module)
    other._modules = dict(module._modules)  # a copy shares this dictionary
    for name, child in module._modules.items():
        move: Callable[[Schedule], nn.Module] | None = getattr(child, "on", None)
        if move is not None:
            other._modules[name] = move(schedule)
        elif isinstance(child, nn.ModuleList | nn.ModuleDict):
            other._modules[name] = with_modules_on(child, schedule)
    return other


def equal_snr_time(denoiser: TrainedOnSchedule, t: Tensor) -> Tensor:
    """Returns the time of the training schedule with the log-SNR of time t of the current schedule, of the shape of t.

    It is clamped to [t_min, 1] of the training schedule; if the two schedules are one object, it is t.
    """
    return t if denoiser.corruption is denoiser.schedule else denoiser.schedule.time(denoiser.corruption.log_snr(t))


def range_of_time_input(denoiser: TrainedOnSchedule) -> Tensor:
    """Returns the time inputs at t_min, the smallest training time, and at t = 1 of the training schedule, `(2,)`."""
    return denoiser.time_input(denoiser.schedule, torch.tensor([denoiser.schedule.t_min, 1.0], dtype=torch.float64))


def on_schedule(denoiser: T, schedule: Schedule) -> T:
    """Returns a copy of the denoiser on another schedule, with the same weights.

    A schedule that equals the training schedule is replaced by it, so that times are not converted.

    Raises:
        UsageError: for what is not a schedule, and for one whose noise does not grow.
    """
    refuse_disorder(schedule)
    other = copy.copy(denoiser)
    other.corruption = denoiser.schedule if schedule == denoiser.schedule else schedule
    return other
