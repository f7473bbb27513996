"""The only broadcasting helpers, and float64 tables that live wherever their caller does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .errors import UsageError

SLACK = 1e-6  # of times, which sums and quotients round


def like(v: Tensor, x: Tensor) -> Tensor:
    """Right-pads `v`, shape `(...)`, with ones so that it broadcasts against `x`, shape `(..., more)`; scalars stay
    scalars.

    The result has the dtype of `x` where `x` is floating point: float64 coefficients take the caller's dtype at the
    door.
    """
    if x.is_floating_point() and v.is_floating_point():
        v = v.to(x.dtype)
    return v.reshape(v.shape + (1,) * (x.ndim - v.ndim)) if v.ndim else v


def per_example(x: Tensor, reduce: Callable[..., Tensor] = torch.sum) -> Tensor:
    """Reduces everything but the first axis: `(B, ...)` to `(B,)`."""
    return reduce(x.reshape(len(x), -1), dim=1)


def exact(t: Tensor | float) -> Tensor:
    """`t` in float64; a number as a scalar tensor."""
    return t.double() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)


def moment(t: Tensor | float, rows: int | None = None) -> Tensor:
    """A time as it is, a number as a float64 scalar; refused outside of [0, 1] where that is seen without waiting for
    an accelerator.

    With `rows` it is also refused unless there is one for all, or one for each of so many.

    Raises:
        UsageError: with what to do.
    """
    if not isinstance(t, Tensor):
        try:
            t = torch.as_tensor(t, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(f"t={t!r}: give a time from 0 to 1, a number or a tensor") from None
    if t.ndim > 1 or (t.ndim and rows is not None and len(t) not in (1, rows)):
        raise UsageError(
            f"times of shape {tuple(t.shape)}{f' for {rows} examples' if rows else ''}: give one, or one for each, (B,)"
        )
    if t.device.type == "cpu" and t.numel() and not torch.compiler.is_compiling():
        low, high = (v.item() for v in torch.aminmax(t.detach())) if t.ndim else (t.detach().item(),) * 2
        if not -SLACK <= low <= high <= 1 + SLACK:
            raise UsageError(
                f"t={high if high > 1 else low:g}: times run from 0, clean, to 1; step n of a table of T steps is t = n / T"
            )
    return t


def refuse_array(x: Tensor, what: str) -> Tensor:
    """x, refused unless it is a tensor.

    Raises:
        UsageError: with what to do.
    """
    if not isinstance(x, Tensor):
        raise UsageError(f"{what} is a {type(x).__name__}: give a tensor, such as torch.as_tensor({what})")
    return x


def refuse_unreal(x: Tensor, what: str) -> Tensor:
    """Returns x, refused unless it is a tensor of real numbers; levels of quantized data are integers.

    Raises:
        UsageError: with what to do.
    """
    if not refuse_array(x, what).is_floating_point():
        raise UsageError(
            f"{what} is {x.dtype}, and real numbers are read: of levels k of quantized data give scale.continuous(k), or "
            "scale.dequantised(k) for densities"
        )
    return x


def is_integer(x: Tensor) -> bool:
    """Whether the tensor holds integers of any width; booleans are none."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or float64 where it is that already: the precision of losses under autocast."""
    return x if x.dtype == torch.float64 else x.float()


def full_precision(x: Tensor) -> torch.autocast:
    """A context without autocast on the device of `x`.

    Laws and losses of a process, beside a network that may run in half precision.
    """
    return torch.autocast(x.device.type, enabled=False)


def refuse_unless(condition: Tensor, message: str, *, wait: bool = False) -> None:
    """Raises `UsageError(message)` unless all of `condition` holds.

    On CUDA the check does not wait for the device, and ends the process's use of it: right for a training step, where
    `wait` is not. Where the caller waits anyway, as at the end of sampling, ask for `wait`.
    """
    if condition.device.type == "cuda" and not wait:
        torch._assert_async(condition.all(), message)
    elif not bool(condition.all()):
        raise UsageError(message)


def finest(x: Tensor) -> Tensor:
    """`x` in float64, or in float32 on a device that has no float64."""
    return x.float() if x.device.type == "mps" else x.double()


class Table:
    """A constant, float64 where it is real, that is looked up on its caller's device.

    One copy is kept for each device.
    """

    def __init__(self, values: Tensor) -> None:
        with torch.inference_mode(False):  # tables outlive the mode that they were made in
            values = values.detach().cpu()
            values = values.clone() if values.is_inference() else values
            self.values = values.double() if values.is_floating_point() else values
        self._copies: dict[torch.device, Tensor] = {self.values.device: self.values}

    def on(self, device: torch.device) -> Tensor:
        """The table on `device`."""
        if device not in self._copies:
            with torch.inference_mode(False):
                self._copies[device] = self.values.to(device)
        return self._copies[device]

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.on(index.device)[index]

    def __len__(self) -> int:
        return len(self.values)
