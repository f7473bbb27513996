"""The measurement of an inverse problem, checked against operator and denoiser."""

from __future__ import annotations

from torch import Tensor

from ...calling import networks_of
from ...denoiser import Denoiser
from ...errors import UsageError
from ...tensors import Table, refuse_array
from .operators import Operator


class Measurement:
    """A measurement `y = A x_0 + noise` of signals that a denoiser models, checked when it is constructed.

    Args:
        operator: A, linear.
        y: the measurement, `(B, ...)`, or one row for all samples, floating point.
        denoiser: a denoiser of the signals; the number of axes and of channels of its network's signals, if known, is
            compared with those of `A^+ y`.

    Raises:
        UsageError: for a y of a shape that A does not return, and for signals of other channels than the denoiser's
            network takes.
    """

    def __init__(self, operator: Operator, y: Tensor, denoiser: Denoiser) -> None:
        if not refuse_array(y, "y").is_floating_point() or y.ndim < 2:
            raise UsageError(
                f"y of type {y.dtype} and shape {tuple(y.shape)}: give floating-point numbers, one row for each signal"
            )
        self.operator, self._y, self._pulled = operator, Table(y), Table(operator.pseudo_inverse(y.detach()))
        self.rows, self.shape = len(y), tuple(self._pulled.values.shape[1:])
        for network in networks_of(denoiser):
            takes = getattr(network, "shape", self.shape)
            if len(takes) != len(self.shape) or takes[0] != self.shape[0]:
                raise UsageError(
                    f"y of shape {tuple(y.shape)} measures signals of shape {self.shape}, but the network models "
                    f"signals of shape {tuple(takes)}: give a measurement of these"
                )

    def residual(self, x: Tensor) -> Tensor:
        """Returns `y - A x`, in the dtype of the signals `x`, `(B, ...)`.

        Raises:
            UsageError: for signals of another shape or number than those of y.
        """
        self._check(x)
        return self.operator.residual(self._y.on(x.device).to(x.dtype), x)

    def pseudo_inverse(self, x: Tensor) -> Tensor:
        """Returns `A^+ y`, with A^+ the pseudo-inverse of A, of the shape, dtype and device of x, `(B, ...)`."""
        self._check(x)
        return self._pulled.on(x.device).to(x.dtype).expand_as(x)

    def measured_part(self, x: Tensor) -> Tensor:
        """Returns `A^+ A x`, of the shape of x, `(B, ...)`: its projection on the complement of the null space of A."""
        return self.operator.pseudo_inverse(self.operator(x))

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape or self.rows not in (1, len(x)):
            raise UsageError(
                f"samples of shape {tuple(x.shape)} do not fit {self.rows} measurements of signals of shape "
                f"{self.shape}: sample with shape={(self.rows if self.rows > 1 else len(x), *self.shape)}"
            )
