"""Networks around another network, whose input or output is not the one that a denoiser expects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..calling import refuse_signature
from ..serialization import serializable
from ..tensors import like


class NetworkAdapter(nn.Module, ABC):
    """A network around another one, with the `conditions`, `outputs`, `null` and `shape` of the inner one.

    Called as the inner network is.

    Args:
        inner: the network, `(x, time input (B,), **cond) -> F`, with F its raw output.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that the network takes."""
        return cast("tuple[str, ...]", self.inner.conditions)

    @property
    def outputs(self) -> int:
        """Number of output channels for each input channel."""
        return cast("int", self.inner.outputs)

    @property
    def null(self) -> Callable[[str], Tensor]:
        """Function from a condition's name to the value, for one example, that stands for its absence."""
        return cast("Callable[[str], Tensor]", self.inner.null)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return cast("tuple[int, ...]", self.inner.shape)

    @abstractmethod
    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        """Returns the output F at `x` `(B, ...)` and the time inputs `(B,)`; cond are the conditions by name."""


@serializable("networks.CenteredInput", formerly="unnoise.shared.networks.recentred.Recentred")
class CenteredInput(NetworkAdapter):
    """Feeds the network `2 x - 1` in place of x, for networks of signals in [-1, 1] on data in [0, 1].

    The VE networks of Song & Ermon (2020) and Song et al. (2021) compute this first. The noise is doubled with the
    data; the output F is returned unchanged.

    Args:
        inner: the network, `(x, time input (B,), **cond) -> F`.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)

    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        return self.inner(2 * x - 1, time, **cond)


@serializable("networks.TimesSigma", formerly="unnoise.shared.networks.recentred.TimesSigma")
class TimesSigma(NetworkAdapter):
    """Multiplies the network's output by sigma, for VE networks that return the score.

    The parametrization `scaled_score` expects sigma times the score, which this network returns, of the shape of x.

    Args:
        inner: the network, `(x, time input (B,), **cond) -> score`.
        sigmas: `(N,)`, the sigma of each time input 0..N-1 (others are truncated to whole numbers and clamped to that
            range); None where the time input is `ln sigma`.
    """

    sigmas: Tensor | None

    def __init__(self, inner: nn.Module, sigmas: Tensor | None = None) -> None:
        super().__init__(inner)
        self.register_buffer("sigmas", None if sigmas is None else torch.as_tensor(sigmas), persistent=False)

    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        sigma = time.exp() if self.sigmas is None else self.sigmas[time.long().clamp(0, len(self.sigmas) - 1)]
        return like(sigma, x) * self.inner(x, time, **cond)


@serializable("networks.IntegerTime")
class IntegerTime(NetworkAdapter):
    """Feeds the network the time input as int64, for networks that are called as `(x, t)` with integers t in 0..T-1.

    This is the convention of most DDPM code. Together with `step_index` the network is fed n - 1 at step n = 1..T of a
    table, whose time is n / T: `Learned(IntegerTime(network), schedule, time_input=step_index)`. A time between two
    steps, as on a respaced table or another schedule, is rounded to the nearest step. The network may be any
    `nn.Module`: it needs none of the attributes that networks of this package have.

    Args:
        inner: the network, `(x, t (B,), **cond) -> F`, with t the rounded time input.

    Raises:
        UsageError: for other than an `nn.Module` that takes x and a time.
    """

    def __init__(self, inner: nn.Module) -> None:
        refuse_signature(inner)
        super().__init__(inner)

    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        return self.inner(x, time.round().long(), **cond)


@serializable("networks.TensorOutput")
class TensorOutput(NetworkAdapter):
    """Returns the tensor in the network's output: its attribute `sample`, or the first item of a tuple or list.

    Networks of diffusers return an object with `sample`, others a tuple whose first item is the output F. A tensor is
    returned as it is.

    Args:
        inner: the network, `(x, time input (B,), **cond) -> output`.
        outputs: number of output channels for each input channel, 2 for a network with a variance output; None for
            the attribute of that name of the inner network, or 1 if it has none.

    Raises:
        UsageError: for other than an `nn.Module` that takes x and a time.
    """

    def __init__(self, inner: nn.Module, outputs: int | None = None) -> None:
        refuse_signature(inner)
        super().__init__(inner)
        self._outputs = int(getattr(inner, "outputs", 1)) if outputs is None else outputs

    @property
    def outputs(self) -> int:
        return self._outputs

    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        out: Any = self.inner(x, time, **cond)
        if isinstance(out, Tensor):
            return out
        tensor = out[0] if isinstance(out, tuple | list) and out else getattr(out, "sample", None)
        # The denoiser refuses other outputs in one line.
        return tensor if isinstance(tensor, Tensor) else cast("Tensor", out)
