"""Dequantisation: how levels become real numbers, so that a density can code them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..calling import ask, refuse_signature
from ..code_length import total_nats
from ..denoiser import Denoiser
from ..errors import UsageError
from ..objective import Loss, Objective
from ..quantization import Quantization
from ..random import Source, uniform
from ..serialization import serializable
from ..tensors import finest, is_integer, refuse_unless


class Dequantizer(nn.Module, ABC):
    r"""A law `q(u | k)` of where in the cells of its levels k an example lies, `x = low + (k + u) cell` with u in [0,
    1].

    With any such law `-log P(k) <= E_q[-log p(x) + log q(u | k)] - dims log(cell)` for `P(k)` the integral of the
    density p over the cell (Theis et al. 2016, section 3.1, of the uniform law; Ho et al. 2019, Flow++, section 3.1, of
    learned ones). The two sides agree where `q(u | k)` is p within the cell. The right one is what a density's code
    length of levels is.

    Attributes:
        quantization: the levels, and the range that their cells tile.
    """

    quantization: Quantization

    @abstractmethod
    def forward(self, k: Tensor, generator: Source = None) -> tuple[Tensor, Tensor]:
        """Levels `(B, ...)`, int, as real numbers x in their cells, float32, and what a code length `-log p(x)` gains,
        `(B,)`.

        The gain is `log q(u | k) - dims log(cell)`, in nats. `quantization.cell_of(x)` is k again.
        """


@serializable(
    "gaussian.UniformDequantization",
    formerly="unnoise.shared.dequantisation.Uniform",
    renamed={"scale": "quantization"},
)
class UniformDequantization(Dequantizer):
    """`q(u | k) = 1`: the gain is `-dims log(cell)` (Theis et al. 2016, section 3.1).

    Args:
        quantization: the levels of the data.
    """

    def __init__(self, quantization: Quantization) -> None:
        super().__init__()
        self.quantization = quantization

    def forward(self, k: Tensor, generator: Source = None) -> tuple[Tensor, Tensor]:
        refuse_others(k, self.quantization)
        u = uniform(k.shape, generator, device=k.device)
        return within_cell(self.quantization, k, u), torch.full_like(
            finest(u.flatten(1)[:, 0]), k[0].numel() * self.quantization.offset_nats
        )


@serializable(
    "gaussian.VariationalDequantization",
    formerly="unnoise.shared.dequantisation.Variational",
    renamed={"scale": "quantization"},
)
class VariationalDequantization(Dequantizer):
    r"""`u = sigmoid(z)`, z logistic noise that affine couplings have moved given k, and `log q(u | k)` in closed form
    (Ho et al. 2019).

    Coupling i moves the dimensions whose indices sum to i modulo 2, a checkerboard, and leaves the others:
    `z <- shift + exp(scale) z`, both numbers of the network at what stays and at k (Dinh et al. 2017, section 3.4). So
    each dimension is shifted and scaled given all levels, and the later ones given where the earlier lie in their
    cells: `log q(u | k) = log l(z_start) - sum scale - log l(z_end)`, with `l(z) = sigmoid(z) sigmoid(-z)` both the law
    of the noise and the slope of the sigmoid. A network that gives 0 makes u uniform: `UNet` starts there, whose last
    layer is zero; with others set the last layer to zero (`shared.networks.blocks.zeroed(mlp.leave)`).

    Args:
        quantization: the levels of the data.
        network: `(h, label (B,)) -> (shift, scale)`, with twice the channels of the data in and out: h holds what
            stays, as `2 u - 1`, and then the levels in their `continuous` form; the label is i. For images
            `UNet((2 * C, H, W))`, for vectors `MLP(2 * d)`.
        couplings: how many; 2 move every dimension once.
        limit: largest scale, approached by a tanh: `|scale| < limit`.

    Raises:
        UsageError: for no coupling, a limit that is not positive, or a network with other channels.
    """

    def __init__(self, quantization: Quantization, network: nn.Module, couplings: int = 2, limit: float = 3.0) -> None:
        super().__init__()
        if couplings < 1 or not limit > 0:
            raise UsageError(
                f"couplings={couplings}, limit={limit}: give one coupling or more, and a positive limit, such as 2 and 3.0"
            )
        refuse_signature(network)
        self.quantization, self.network, self.couplings, self.limit = quantization, network, couplings, limit

    def forward(self, k: Tensor, generator: Source = None) -> tuple[Tensor, Tensor]:
        refuse_others(k, self.quantization)
        # A draw of exactly 0 has no logit: half of the least other one stands for it.
        start = torch.logit(uniform(k.shape, generator, device=k.device).clamp(min=2.0**-25))
        end, log_det = self.move(k, start)
        log_q = total_nats(log_slope(start) - log_slope(end)) - log_det
        return within_cell(self.quantization, k, torch.sigmoid(end)), log_q + k[
            0
        ].numel() * self.quantization.offset_nats

    def time_inputs(self) -> Tensor:
        """The network's second input at the first and at the last coupling."""
        return torch.tensor([0.0, self.couplings - 1.0])

    def move(self, k: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Logistic noise z `(B, ...)` through the couplings, and the log-determinant of the Jacobian, `(B,)`."""
        log_det = total_nats(torch.zeros_like(z))
        for i in range(self.couplings):
            shift, scale = self._coupling(k, z, i)
            z, log_det = shift + scale.exp() * z, log_det + total_nats(scale)
        return z, log_det

    def log_density(self, k: Tensor, u: Tensor) -> Tensor:
        """`log q(u | k)` at any u in (0, 1), `(B,)`, by the couplings' inverses."""
        end = z = torch.logit(u)
        log_det = total_nats(torch.zeros_like(z))
        for i in reversed(range(self.couplings)):
            shift, scale = self._coupling(k, z, i)
            z, log_det = (z - shift) * (-scale).exp(), log_det + total_nats(scale)
        return total_nats(log_slope(z) - log_slope(end)) - log_det

    def _coupling(self, k: Tensor, z: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Shift and scale of each dimension, zeros where coupling i leaves it."""
        moved = (index_sum(z) + i) % 2 == 0
        stays = torch.where(moved, 0.0, torch.tanh(z / 2))
        h = torch.cat([stays, self.quantization.continuous(k).to(z)], dim=1)
        out = ask(self, h, torch.full((len(z),), float(i), device=z.device), {}).to(z.dtype)
        if out.shape != h.shape:
            raise UsageError(
                f"the dequantiser's network gave {tuple(out.shape)} for {tuple(h.shape)}: build it for twice the channels of the data"
            )
        shift, scale = out.chunk(2, dim=1)
        return torch.where(moved, shift, 0.0), torch.where(moved, self.limit * torch.tanh(scale / self.limit), 0.0)


@serializable(
    "gaussian.Dequantized", formerly="unnoise.shared.dequantisation.Dequantised", renamed={"dequantiser": "dequantizer"}
)
class Dequantized(Objective):
    r"""Levels in a density's bound: `(inner(x) + log q(u | k) - dims log(cell)) / (dims log 2)`, in bits/dim; both are
    trained.

    The gradient reaches the dequantiser through x (Ho et al. 2019, section 3.1; with scores Song et al. 2021b,
    ScoreFlow).

    Args:
        objective: an upper bound on `-log p(x)`, in nats summed over dimensions, such as `sde.MaximumLikelihood`.
        dequantiser: makes x of the levels.
    """

    def __init__(self, objective: Objective, dequantizer: Dequantizer) -> None:
        super().__init__()
        self.objective, self.dequantizer, self.times = objective, dequantizer, objective.times

    @property
    def denoiser(self) -> Denoiser:
        """That of the objective."""
        return self.objective.denoiser

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        """`x0`: levels, int64 `(B, ...)`."""
        return self._bound(lambda x: self.objective.at(x, t, generator=generator, **cond), x0, generator)

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        # The objective draws its own times: it may weigh them, too.
        return self._bound(lambda x: self.objective(x, generator=generator, **cond), x0, generator)

    def _bound(self, inner: Callable[[Tensor], Loss], k: Tensor, generator: Source) -> Loss:
        x, gain = self.dequantizer(k, generator)
        loss, unit = inner(x), k[0].numel() * math.log(2)
        total = (loss.total + gain.to(loss.total)) / unit
        parts = {"bits_per_dim": total.detach(), "dequantisation": (gain / unit).detach()}
        return Loss(total, loss.parts | parts, loss.t)


def within_cell(quantization: Quantization, k: Tensor, u: Tensor) -> Tensor:
    """`low + (k + u) cell` for u in [0, 1], as `Quantization.dequantised`, and never in another cell for a rounding.

    `quantization.cell_of` gives k.
    """
    x = quantization.low + quantization.cell * (k + u)
    margin = (
        4
        * torch.finfo(x.dtype).eps
        * (quantization.levels + max(abs(quantization.low), abs(quantization.high)) / quantization.cell)
    )
    margin = min(margin, 0.5)
    inner = quantization.low + quantization.cell * (k + u.clamp(margin, 1 - margin))
    return torch.where(quantization.cell_of(x) == k, x, inner)


def log_slope(z: Tensor) -> Tensor:
    """`log(sigmoid(z) sigmoid(-z))`, elementwise: the log-density of logistic noise."""
    return F.logsigmoid(z) + F.logsigmoid(-z)


def index_sum(x: Tensor) -> Tensor:
    """The sum of the indices at each position of an example of x `(B, ...)`, int64, of one example's shape."""
    shape = x.shape[1:]
    axes = [
        torch.arange(n, device=x.device).reshape([-1 if a == b else 1 for b in range(len(shape))])
        for a, n in enumerate(shape)
    ]
    return sum(axes, torch.zeros(shape, dtype=torch.int64, device=x.device))


def refuse_others(k: Tensor, quantization: Quantization) -> None:
    """Refuses what is no level of a quantization."""
    if not isinstance(k, Tensor) or not (is_integer(k) or k.is_floating_point()):
        raise UsageError(
            f"x0 is {k.dtype if isinstance(k, Tensor) else type(k).__name__}: give a tensor of levels, whole numbers 0, 1, .."
        )
    if k.is_floating_point():
        refuse_unless(k == k.round(), "x0 has fractions: levels are dequantised, whole numbers 0, 1, ..")
    last = quantization.levels - 1
    refuse_unless(
        (k >= 0) & (k <= last),
        f"x0 has levels outside of 0..{last}: give levels of {quantization}, or its own scale to the dequantiser",
    )
