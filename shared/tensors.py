"""The only broadcasting helpers, and float64 tables that live wherever their caller does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .errors import UsageError


def like(v: Tensor, x: Tensor) -> Tensor:
    """Right-pads `v`, shape `(...)`, with ones so that it broadcasts against `x`, shape `(..., more)`; scalars stay scalars.

    The result has the dtype of `x` where `x` is floating point: float64 coefficients take the caller's dtype at the door.
    """
    if x.is_floating_point() and v.is_floating_point():
        v = v.to(x.dtype)
    return v.reshape(v.shape + (1,) * (x.ndim - v.ndim)) if v.ndim else v


def per_example(x: Tensor, reduce: Callable[..., Tensor] = torch.sum) -> Tensor:
    """Reduces everything but the first axis: `(B, ...)` to `(B,)`."""
    return reduce(x.reshape(len(x), -1), dim=1)


def exact(t: Tensor) -> Tensor:
    """`t` in float64, or in float32 on devices that have no float64."""
    return t.to(torch.float32 if t.device.type == "mps" else torch.float64)


def refuse_unless(condition: Tensor, message: str) -> None:
    """Raises `UsageError(message)` unless all of `condition` holds; on an accelerator the check does not wait for the device."""
    if condition.device.type == "cpu":
        if not bool(condition.all()):
            raise UsageError(message)
    else:
        torch._assert_async(condition.all(), message)


class Table:
    """A float64 table, indexed along its first axes by integer tensors on any device (a copy is kept per device)."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.detach().to("cpu", torch.float64)
        self._copies: dict[torch.device, Tensor] = {self.values.device: self.values}

    def on(self, device: torch.device) -> Tensor:
        """The table on `device`."""
        if device not in self._copies:
            self._copies[device] = exact(self.values).to(device) if device.type != "mps" else self.values.float().to(device)
        return self._copies[device]

    def __getitem__(self, index: Tensor | tuple[Tensor, ...]) -> Tensor:
        first = index[0] if isinstance(index, tuple) else index
        return self.on(first.device)[index]

    def __len__(self) -> int:
        return len(self.values)
