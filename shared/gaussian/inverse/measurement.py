"""A measurement of signals that are to be sampled, checked once."""

from __future__ import annotations

from torch import Tensor

from ...denoiser import Denoiser
from ...errors import UsageError
from ...tensors import Table, refuse_array
from .operators import Operator


class Measurement:
    """`y = A x_0 + noise`, where `x_0` is of the denoiser's law.

    Args:
        operator: A.
        y: `(B, ...)`, or one row for all samples.
        denoiser: of the signals.

    Raises:
        UsageError: for a y that A does not give, or that is of other signals than the denoiser's network says that it
            takes.
    """

    def __init__(self, operator: Operator, y: Tensor, denoiser: Denoiser) -> None:
        if not refuse_array(y, "y").is_floating_point() or y.ndim < 2:
            raise UsageError(
                f"y of type {y.dtype} and shape {tuple(y.shape)}: give real numbers, in the first axis one row for each signal"
            )
        self.operator, self._y, self._pulled = operator, Table(y), Table(operator.pseudo_inverse(y.detach()))
        self.rows, self.shape = len(y), tuple(self._pulled.values.shape[1:])
        for network in (m.network for m in denoiser.modules() if hasattr(m, "network")):
            takes = getattr(network, "shape", self.shape)
            if len(takes) != len(self.shape) or takes[0] != self.shape[0]:
                raise UsageError(
                    f"y of shape {tuple(y.shape)} measures signals of shape {self.shape}, and the network is one of {tuple(takes)}: "
                    "give a measurement of what the network models"
                )

    def residual(self, x: Tensor) -> Tensor:
        """`y - A x`, in the dtype of `x` `(B, ...)`.

        Raises:
            UsageError: where the signals are of another shape or number than y is of.
        """
        self._check(x)
        return self.operator.residual(self._y.on(x.device).to(x.dtype), x)

    def pulled_back(self, x: Tensor) -> Tensor:
        """`A^+ y`, of the shape and dtype of `x`."""
        self._check(x)
        return self._pulled.on(x.device).to(x.dtype).expand_as(x)

    def part(self, x: Tensor) -> Tensor:
        """`A^+ A x`: the part of `x` that is measured."""
        return self.operator.pseudo_inverse(self.operator(x))

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape or self.rows not in (1, len(x)):
            raise UsageError(
                f"samples of shape {tuple(x.shape)} do not fit {self.rows} measurements of signals of shape {self.shape}: "
                f"sample with shape={(self.rows if self.rows > 1 else len(x), *self.shape)}"
            )
