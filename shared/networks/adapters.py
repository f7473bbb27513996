"""Networks whose input or output is another one than a denoiser expects.

Of signals in [-1, 1] for data in [0, 1], and scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..serialization import serializable
from ..tensors import like


class NetworkAdapter(nn.Module, ABC):
    """A network around another one, of which it says what that says of itself: `conditions`, `outputs`, `null`,
    `shape`, and no more.

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

    @abstractmethod
    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        """F."""


@serializable("networks.CenteredInput", formerly="unnoise.shared.networks.recentred.Recentred")
class CenteredInput(NetworkAdapter):
    """The network at `2 x - 1`: what Song & Ermon's (2020) and Song et al.'s (2021) VE networks compute first, on data
    in [0, 1].

    The noise is doubled with the data, and the output is as the network gives it.

    Args:
        inner: `(x, time label (B,), **cond) -> F`.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)

    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        return self.inner(2 * x - 1, time, **cond)


@serializable("networks.TimesSigma", formerly="unnoise.shared.networks.recentred.TimesSigma")
class TimesSigma(NetworkAdapter):
    """The network's output times sigma: for VE networks that give the score itself, where `scaled_score` expects sigma
    times it.

    Args:
        inner: `(x, time label (B,), **cond) -> score`.
        sigmas: `(N,)`, sigma of each label 0..N-1; None where the label is `ln sigma`.
    """

    def __init__(self, inner: nn.Module, sigmas: Tensor | None = None) -> None:
        super().__init__(inner)
        self.register_buffer("sigmas", None if sigmas is None else torch.as_tensor(sigmas), persistent=False)

    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        sigma = time.exp() if self.sigmas is None else self.sigmas[time.long().clamp(0, len(self.sigmas) - 1)]
        return like(sigma, x) * self.inner(x, time, **cond)
