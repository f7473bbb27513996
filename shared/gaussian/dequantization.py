"""Dequantization: quantization levels as real numbers, so that a density has a code length of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..calling import call_network, refuse_signature
from ..code_length import total_nats
from ..errors import UsageError
from ..objective import D, Loss, Objective, ObjectiveWrapper
from ..quantization import Quantization
from ..random import Source, uniform
from ..serialization import serializable
from ..tensors import finest, is_integer, refuse_unless


class Dequantizer(nn.Module, ABC):
    r"""A distribution `q(u | k)` of the position u in [0, 1] within the cells of levels k, `x = low + (k + u) cell`.

    low is the lower end of the range of the real numbers and cell the width of a cell, from `quantization`; dims is the
    number of dimensions of an example. Called with levels k; returns x and `log q(u | k) - dims log(cell)`. For any
    such distribution, `-log P(k) <= E_q[-log p(x) + log q(u | k)] - dims log(cell)`, where `P(k)` is the integral of
    the density p over the cell (Theis et al. 2016, section 3.1, for the uniform distribution; Ho et al. 2019, Flow++,
    section 3.1, for learned ones). The right side is the code length of levels under a density. The sides are equal if
    `q(u | k)` is proportional to p within the cell.

    Attributes:
        quantization: the levels, and the range that their cells tile.
    """

    quantization: Quantization

    @abstractmethod
    def forward(self, k: Tensor, generator: Source = None) -> tuple[Tensor, Tensor]:
        """Samples real numbers x in the cells of levels, and returns them with the difference of the code lengths.

        Args:
            k: quantization levels 0..K-1, int `(B, ...)`.
            generator: the source of noise.

        Returns:
            x, float32 `(B, ...)`, with `quantization.cell_of(x) == k`; and `log q(u | k) - dims log(cell)`, in nats,
            `(B,)`, which is added to `-log p(x)`.
        """


@serializable(
    "gaussian.UniformDequantization",
    formerly="unnoise.shared.dequantisation.Uniform",
    renamed={"scale": "quantization"},
)
class UniformDequantization(Dequantizer):
    """Uniform dequantization, `q(u | k) = 1`: `-dims log(cell)` is added (Theis et al. 2016, section 3.1).

    Args:
        quantization: the quantization levels of the data, and the range that their cells tile.
    """

    def __init__(self, quantization: Quantization) -> None:
        super().__init__()
        self.quantization = quantization

    def forward(self, k: Tensor, generator: Source = None) -> tuple[Tensor, Tensor]:
        refuse_non_levels(k, self.quantization)
        u = uniform(k.shape, generator, device=k.device)
        nats = k[0].numel() * self.quantization.offset_nats
        return within_cell(self.quantization, k, u), torch.full_like(finest(u.flatten(1)[:, 0]), nats)


@serializable(
    "gaussian.VariationalDequantization",
    formerly="unnoise.shared.dequantisation.Variational",
    renamed={"scale": "quantization"},
)
class VariationalDequantization(Dequantizer):
    r"""Variational dequantization: `u = sigmoid(z)`, with z from a flow of affine couplings given the levels k.

    Ho et al. 2019. The flow starts from logistic noise. Coupling i transforms the dimensions whose indices sum to i
    modulo 2, a checkerboard, by `z <- shift + exp(scale) z`, and keeps the others. shift and scale are functions of k
    and of the dimensions that are kept (Dinh et al. 2017, section 3.4). Then
    `log q(u | k) = log l(z_start) - sum scale - log l(z_end)`, where `l(z) = sigmoid(z) sigmoid(-z)` is both the
    density of the noise and the derivative of the sigmoid. If the network returns 0, u is uniform. A `UNet` starts like
    that, since its last layer is initialized to zero; for other networks set the last layer to zero
    (`shared.networks.blocks.zeroed(mlp.leave)`).

    Args:
        quantization: the quantization levels of the data, and the range that their cells tile.
        network: `(h, i (B,)) -> (shift, scale)`, with twice the channels of the data in and out. h contains the kept
            dimensions as `2 u - 1`, then `quantization.continuous(k)`; i is the number of the coupling, in place of a
            time input. For images `UNet((2 * C, H, W))`, for vectors `MLP(2 * d)`.
        couplings: the number of couplings; 2 transform every dimension once.
        limit: the bound of the scale, `|scale| < limit`, by a tanh.

    Raises:
        UsageError: for less than one coupling, and for a limit that is not positive. When called, for network outputs
            of another shape.
    """

    def __init__(self, quantization: Quantization, network: nn.Module, couplings: int = 2, limit: float = 3.0) -> None:
        super().__init__()
        if couplings < 1 or not limit > 0:
            raise UsageError(
                f"couplings={couplings}, limit={limit}: give at least one coupling and a positive limit, such as 2 and "
                "3.0"
            )
        refuse_signature(network)
        self.quantization, self.network, self.couplings, self.limit = quantization, network, couplings, limit

    def forward(self, k: Tensor, generator: Source = None) -> tuple[Tensor, Tensor]:
        refuse_non_levels(k, self.quantization)
        # The logit of 0 is infinite: 0 is replaced by half of the smallest other value of a float32 draw.
        start = torch.logit(uniform(k.shape, generator, device=k.device).clamp(min=2.0**-25))
        end, log_det = self.move(k, start)
        log_q = total_nats(log_slope(start) - log_slope(end)) - log_det
        nats = log_q + k[0].numel() * self.quantization.offset_nats
        return within_cell(self.quantization, k, torch.sigmoid(end)), nats

    def time_input_range(self) -> Tensor:
        """Returns the network's second input for the first and the last coupling, 0 and `couplings - 1`, `(2,)`."""
        return torch.tensor([0.0, self.couplings - 1.0])

    def move(self, k: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns z `(B, ...)` after all couplings, and the log-determinant of the Jacobian, `(B,)`.

        Args:
            k: the quantization levels, int `(B, ...)`, on which the couplings depend.
            z: the start, logits of positions, `(B, ...)`.
        """
        log_det = total_nats(torch.zeros_like(z))
        for i in range(self.couplings):
            shift, scale = self._coupling(k, z, i)
            z, log_det = shift + scale.exp() * z, log_det + total_nats(scale)
        return z, log_det

    def log_density(self, k: Tensor, u: Tensor) -> Tensor:
        """Returns `log q(u | k)` at any u in (0, 1), `(B, ...)`, in nats, `(B,)`, by the inverses of the couplings."""
        end = z = torch.logit(u)
        log_det = total_nats(torch.zeros_like(z))
        for i in reversed(range(self.couplings)):
            shift, scale = self._coupling(k, z, i)
            z, log_det = (z - shift) * (-scale).exp(), log_det + total_nats(scale)
        return total_nats(log_slope(z) - log_slope(end)) - log_det

    def _coupling(self, k: Tensor, z: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Returns shift and scale of each dimension, 0 for those that coupling i keeps."""
        moved = (index_sum(z) + i) % 2 == 0
        kept = torch.where(moved, 0.0, torch.tanh(z / 2))
        h = torch.cat([kept, self.quantization.continuous(k).to(z)], dim=1)
        out = call_network(self, h, torch.full((len(z),), float(i), device=z.device), {}).to(z.dtype)
        if out.shape != h.shape:
            raise UsageError(
                f"the dequantizer's network returned shape {tuple(out.shape)} for {tuple(h.shape)}: build it for twice "
                "the channels of the data"
            )
        shift, scale = out.chunk(2, dim=1)
        return torch.where(moved, shift, 0.0), torch.where(moved, self.limit * torch.tanh(scale / self.limit), 0.0)


@serializable(
    "gaussian.DequantizedLoss",
    formerly=("unnoise.shared.dequantisation.Dequantised", "gaussian.Dequantized"),
    renamed={"dequantiser": "dequantizer"},
)
class DequantizedLoss(ObjectiveWrapper[D]):
    r"""A bound on the code length of quantized data, in bits/dim, which trains a denoiser and a dequantizer together.

    It is `(inner(x) + log q(u | k) - dims log(cell)) / (dims log 2)`, with inner(x) the loss of the inner objective at
    data x from the dequantizer, and cell the width of a quantization level's cell. Called with levels k, int64
    `(B, ...)`; returns a `Loss`, with one draw of u and of the time for each example. The gradient reaches the
    dequantizer through x (Ho et al. 2019, section 3.1; for scores Song et al. 2021b, ScoreFlow).

    Args:
        objective: an upper bound on `-log p(x)`, in nats summed over dimensions, such as `sde.MaximumLikelihood`.
        dequantizer: samples x given the levels, and is trained with the denoiser.
    """

    def __init__(self, objective: Objective[D], dequantizer: Dequantizer) -> None:
        super().__init__(objective)
        self.dequantizer = dequantizer

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        """Returns the loss, in bits/dim, at given times `(B,)`; `x0`: quantization levels, int64 `(B, ...)`."""
        return self._bound(lambda x: self.objective.at(x, t, generator=generator, **cond), x0, generator)

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        # The inner objective samples the times, since it may do so in a way of its own.
        return self._bound(lambda x: self.objective(x, generator=generator, **cond), x0, generator)

    def _bound(self, inner: Callable[[Tensor], Loss], k: Tensor, generator: Source) -> Loss:
        x, gain = self.dequantizer(k, generator)
        loss, unit = inner(x), k[0].numel() * math.log(2)
        total = (loss.total + gain.to(loss.total)) / unit
        parts = {"bits_per_dim": total.detach(), "dequantization": (gain / unit).detach()}
        return Loss(total, loss.parts | parts, loss.t)


def within_cell(quantization: Quantization, k: Tensor, u: Tensor) -> Tensor:
    """Returns `low + (k + u) cell` for u in [0, 1], as `Quantization.dequantized`, but in cell k despite rounding.

    `quantization.cell_of` of the result is k. u and the result have the shape of k.
    """
    x = quantization.low + quantization.cell * (k + u)
    cells = quantization.levels + max(abs(quantization.low), abs(quantization.high)) / quantization.cell
    margin = min(4 * torch.finfo(x.dtype).eps * cells, 0.5)
    inner = quantization.low + quantization.cell * (k + u.clamp(margin, 1 - margin))
    return torch.where(quantization.cell_of(x) == k, x, inner)


def log_slope(z: Tensor) -> Tensor:
    """Returns `log(sigmoid(z) sigmoid(-z))`, elementwise: the log-density of logistic noise."""
    return F.logsigmoid(z) + F.logsigmoid(-z)


def index_sum(x: Tensor) -> Tensor:
    """Returns the sum of the indices of each position in an example of x `(B, ...)`, int64, of one example's shape."""
    shape = x.shape[1:]
    axes = [
        torch.arange(n, device=x.device).reshape([-1 if a == b else 1 for b in range(len(shape))])
        for a, n in enumerate(shape)
    ]
    return sum(axes, torch.zeros(shape, dtype=torch.int64, device=x.device))


def refuse_non_levels(k: Tensor, quantization: Quantization) -> None:
    """Raises unless k contains levels of a quantization.

    Raises:
        UsageError: for other types, fractions, and numbers outside of 0 to K - 1.
    """
    if not isinstance(k, Tensor) or not (is_integer(k) or k.is_floating_point()):
        raise UsageError(
            f"x0 is {k.dtype if isinstance(k, Tensor) else type(k).__name__}: "
            "give a tensor of quantization levels, whole numbers 0, 1, .."
        )
    if k.is_floating_point():
        refuse_unless(k == k.round(), "x0 has fractions: give quantization levels, whole numbers 0, 1, ..")
    last = quantization.levels - 1
    refuse_unless(
        (k >= 0) & (k <= last),
        f"x0 has levels outside of 0..{last}: give the dequantizer the quantization of the data; it has {quantization}",
    )
