"""Networks of signals in [-1, 1], for data that are kept in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..describe import described


@described
class Recentred(nn.Module):
    """The network at `2 x - 1`: what Song & Ermon's (2020) and Song et al.'s (2021) VE networks compute first, on data in [0, 1].

    The noise is doubled with the data, and the output is as the network gives it. Whatever the network says of itself (`conditions`,
    `outputs`, `null`, `shape`) this one says too, and no more.

    Args:
        inner: `(x, time label (B,), **cond) -> F`.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that the network takes."""
        return self.inner.conditions

    @property
    def outputs(self) -> int:
        """Numbers out for each number in."""
        return self.inner.outputs

    @property
    def null(self) -> Callable[[str], Tensor]:
        """What stands for no condition, by the condition's name."""
        return self.inner.null

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.inner.shape

    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        return self.inner(2 * x - 1, time, **cond)
