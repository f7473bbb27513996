"""Broadcasting and precision of tensors, checks of tensors and times, and float64 tables on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError

SLACK = 1e-6
"""Tolerance for times outside of [0, 1], which sums and quotients round."""
FEW = 64  # numbers that are compared faster in Python


def like(v: Tensor, x: Tensor) -> Tensor:
    """Appends axes of size 1 to `v`, shape `(...)`, so that it broadcasts against `x`, shape `(..., more)`.

    Scalars stay scalars. The result has the dtype of `x` if both are floating point, so float64 coefficients do not
    raise the precision of a float32 state. It is on the device of `x`, unless it is a scalar of the CPU.
    """
    if x.is_floating_point() and v.is_floating_point():
        v = v.to(x.dtype)
    if not v.ndim:
        return v
    return (v if v.device == x.device else v.to(x.device)).reshape(v.shape + (1,) * (x.ndim - v.ndim))


def factor(v: Tensor | float, x: Tensor) -> Tensor | float:
    """Returns a coefficient as a factor of x: a number as it is, a tensor as `like` returns it."""
    return like(v, x) if isinstance(v, Tensor) else v


def in_transform() -> bool:
    """Returns whether a transform of `torch.func`, such as `jvp`, is being computed."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]


def plain_number(v: Tensor | float) -> Tensor | float:
    """Returns a constant scalar on the CPU as a Python number, and others as they are."""
    if not isinstance(v, Tensor) or v.ndim or v.device.type != "cpu" or v.requires_grad:
        return v
    return v if torch.compiler.is_compiling() or in_transform() else v.item()


def weighted_sum(weights: Sequence[Tensor | float], tensors: Sequence[Tensor]) -> Tensor:
    """Returns `sum_i weights_i tensors_i`, in one operation for each tensor where the weights are numbers.

    Args:
        weights: numbers, or float64 tensors, scalar or `(B,)`, which do not raise the precision.
        tensors: `(B, ...)` each, all of one shape, dtype and device.
    """
    weights = [plain_number(w) if isinstance(w, Tensor) else w for w in weights]
    total, own = factor(weights[0], tensors[0]) * tensors[0], not in_transform()
    for weight, x in zip(weights[1:], tensors[1:], strict=True):
        if isinstance(weight, Tensor):
            total = total + like(weight, x) * x
        elif own and x.dtype == total.dtype and x.shape == total.shape:
            total.add_(x, alpha=weight)
        else:
            total = torch.add(total, x, alpha=weight)
    return total


def per_example(x: Tensor, reduce: Callable[..., Tensor] = torch.sum) -> Tensor:
    """Reduces all axes but the first: `(B, ...)` to `(B,)`.

    `reduce` is called with a tensor `(B, n)` and `dim=1`: `torch.sum`, `torch.mean`, `torch.linalg.vector_norm`, ..
    """
    return reduce(x.reshape(len(x), -1), dim=1)


def exact(t: Tensor | float) -> Tensor:
    """Returns `t` in float64, on the CPU where its device has no float64; a number becomes a scalar tensor."""
    if not isinstance(t, Tensor):
        return torch.tensor(t, dtype=torch.float64)
    return t.cpu().double() if t.device.type == "mps" else t.double()


def checked_time(t: Tensor | float, rows: int | None = None) -> Tensor:
    """Returns a time as a tensor, checked to be a scalar or `(B,)` and, on a CPU, to lie in [0, 1].

    A number becomes a float64 scalar. Values on an accelerator are not checked, since that would wait for it.

    Args:
        t: the time.
        rows: B, the number of examples that the times are for; None for any.

    Raises:
        UsageError: for another shape, and for values outside of [0, 1].
    """
    if not isinstance(t, Tensor):
        try:
            t = torch.as_tensor(t, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(f"t={t!r} is not a time: give a number or a tensor from 0 to 1") from None
    if t.ndim > 1 or (t.ndim and rows is not None and len(t) not in (1, rows)):
        raise UsageError(
            f"times of shape {tuple(t.shape)}{f' for {rows} examples' if rows else ''}: "
            "give one time, or one for each example, (B,)"
        )
    if t.device.type == "cpu" and t.numel() and not torch.compiler.is_compiling():
        extremes = t.reshape(-1) if t.numel() <= FEW else torch.stack(torch.aminmax(t.detach()))
        outside = [v for v in extremes.tolist() if not -SLACK <= v <= 1 + SLACK]
        if outside:
            raise UsageError(
                f"t={outside[-1]:g} is not from 0 (clean) to 1 (noise): "
                "step n of a table of T steps is the time t = n / T"
            )
    return t


def refuse_array(x: Tensor, what: str) -> Tensor:
    """Returns x, and raises unless it is a tensor; `what` is its name in the message.

    Raises:
        UsageError: for an array or a list.
    """
    if not isinstance(x, Tensor):
        raise UsageError(f"{what} is a {type(x).__name__}: give a tensor, such as torch.as_tensor({what})")
    return x


def refuse_non_float(x: Tensor, what: str) -> Tensor:
    """Returns x, and raises unless it is a floating-point tensor; `what` is its name in the message.

    Raises:
        UsageError: for other tensors, such as the integers of quantized data, and for arrays and lists.
    """
    if not refuse_array(x, what).is_floating_point():
        raise UsageError(
            f"{what} is {x.dtype}, but must be floating point: for quantized data k, give quantization.continuous(k), "
            "or quantization.dequantized(k) where a density is computed"
        )
    return x


def as_real(x: Tensor, what: str) -> Tensor:
    """Returns x in float32, or float64 if it is that already, and raises unless it is a floating-point tensor.

    Raises:
        UsageError: as `refuse_non_float` does.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        refuse_non_float(x, what)
    return x if x.dtype == torch.float64 else x.float()


def as_numbers(values: Any, what: str) -> Tensor:
    """Returns numbers as a tensor on the CPU, float64.

    Raises:
        UsageError: for what does not hold numbers.
    """
    try:
        return torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"{what}={values!r}: give numbers, as a tensor or a list") from None


def is_integer(x: Tensor) -> bool:
    """Returns whether the tensor holds integers, of any width; booleans do not count as integers."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def at_least_float32(x: Tensor) -> Tensor:
    """Returns `x` in float32, or in float64 if it is that already: the precision of losses under autocast."""
    return x if x.dtype == torch.float64 else x.float()


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Returns a context without autocast on the device of `x`.

    It is for the distributions and losses of a process, whose network may run in half precision.
    """
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def refuse_unless(condition: Tensor, message: str, *, wait: bool = False) -> None:
    """Raises `UsageError(message)` unless all entries of `condition`, a bool tensor, are true.

    On CUDA the check is asynchronous by default: it does not wait for the device, and a failure makes CUDA unusable for
    the rest of the process. That suits a training step. `wait=True` is for callers that wait for the device anyway, as
    at the end of sampling.
    """
    if condition.device.type == "cuda" and not wait:
        torch._assert_async(condition.all(), message)  # pyright: ignore[reportPrivateImportUsage]
    elif not bool(condition.all()):
        raise UsageError(message)


def finest(x: Tensor) -> Tensor:
    """Returns `x` in float64, or in float32 on a device without float64."""
    return x.float() if x.device.type == "mps" else x.double()


def times_at(t: Tensor, x: Tensor) -> Tensor:
    """Returns times in float64 on the device of `x`, or on the CPU where that device has no float64.

    A copy from the CPU does not wait for the device.
    """
    return t.cpu() if x.device.type == "mps" else t.to(x.device, non_blocking=t.device.type == "cpu")


class Table:
    """A constant tensor, in float64 if it is real, with a copy on each device where it has been used.

    `table[index]` returns the rows at a tensor of indices, on the device of the index.

    Args:
        values: the tensor; it is copied to the CPU without its gradient.

    Attributes:
        values: the copy on the CPU.
    """

    def __init__(self, values: Tensor) -> None:
        with torch.inference_mode(False):  # the table may be used outside of the mode in which it is created
            values = values.detach().cpu()
            values = values.clone() if values.is_inference() else values
            self.values = values.double() if values.is_floating_point() else values
        self._copies: dict[torch.device, Tensor] = {self.values.device: self.values}

    def on(self, device: torch.device) -> Tensor:
        """Returns the table on `device`."""
        if device not in self._copies:
            with torch.inference_mode(False):
                self._copies[device] = self.values.to(device)
        return self._copies[device]

    def __getitem__(self, index: Tensor) -> Tensor:
        copy = self._copies.get(index.device)
        return (self.on(index.device) if copy is None else copy)[index]

    def __len__(self) -> int:
        return len(self.values)
