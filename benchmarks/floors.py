"""The bare arithmetic of sampling steps: the sums that a method needs, with numbers that are known before the run.

The numbers come from the formulas of the papers, in NumPy and float64, not from this package. A sampler cannot be
faster than this on the same operations, and it must return the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]
ROWS = 1000
BETAS = np.linspace(1e-4, 0.02, ROWS)


@dataclass(frozen=True)
class Point:
    """A time of a schedule: alpha and sigma, and `lambda = log(alpha / sigma)`."""

    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """Half of the log-SNR."""
        return math.log(self.alpha / self.sigma) if self.sigma else math.inf


def table_points(grid: Tensor) -> list[Point]:
    """Returns alpha and sigma at the times of a grid, on DDPM's table of betas; t = 0 is clean."""
    bar = np.concatenate([[1.0], np.cumprod(1 - BETAS)])
    kept = [bar[round(float(t) * ROWS)] for t in grid]
    return [Point(math.sqrt(a), math.sqrt(1 - a)) for a in kept]


def clean_of(p: Point) -> tuple[float, float]:
    """Returns the factors of x and epsilon in `x_0 = (x - sigma epsilon) / alpha`."""
    return 1 / p.alpha, -p.sigma / p.alpha


Sums = list[tuple[float, float, float]]
"""For each step the factors of x, of the network's output and of fresh noise."""


def ancestral(points: Sequence[Point]) -> Sums:
    """Returns DDPM's steps with the large variance (Ho et al. 2020, eq. 7, algorithm 2)."""
    found = []
    for t, s in pairwise(points):
        a, b = clean_of(t)
        if s.sigma == 0:
            found.append((a, b, 0.0))
            continue
        ratio = t.alpha / s.alpha
        beta = t.sigma**2 - ratio**2 * s.sigma**2
        of_x, of_clean = ratio * s.sigma**2 / t.sigma**2, s.alpha * beta / t.sigma**2
        found.append((of_x + of_clean * a, of_clean * b, math.sqrt(beta)))
    return found


def ddim(points: Sequence[Point]) -> Sums:
    """Returns DDIM's steps (Song et al. 2020, eq. 12, eta = 0)."""
    found = []
    for t, s in pairwise(points):
        a, b = clean_of(t)
        found.append((s.alpha * a, s.alpha * b + s.sigma, 0.0))
    return found


def one_step(sums: Sums, network: Network, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Runs a method whose steps are sums of x, the network's output and noise."""
    for of_x, of_out, of_noise in sums:
        out = network(x)
        x = torch.add(x * of_x, out, alpha=of_out)
        if of_noise:
            x = torch.add(x, torch.randn(x.shape, generator=generator, device=x.device), alpha=of_noise)
    return x


@dataclass(frozen=True)
class Multistep:
    """A step of a multistep method: the factors in x_0, and those of x and of the estimates of x_0, newest first."""

    clean: tuple[float, float]
    of_x: float
    of_clean: tuple[float, ...]


def multistep(steps: Sequence[Multistep], network: Network, x: Tensor) -> Tensor:
    """Runs a multistep method; the last step returns the estimate of x_0."""
    history: list[Tensor] = []
    for step in steps:
        history.insert(0, torch.add(x * step.clean[0], network(x), alpha=step.clean[1]))
        del history[4:]
        x = x * step.of_x
        for factor, clean in zip(step.of_clean, history, strict=False):
            x = torch.add(x, clean, alpha=factor)
    return x


def dpm_solver_pp(points: Sequence[Point]) -> list[Multistep]:
    """Returns the steps of DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2)."""
    found = []
    for n, (t, s) in enumerate(pairwise(points)):
        if s.sigma == 0:
            found.append(Multistep(clean_of(t), 0.0, (1.0,)))
            continue
        h, base = s.lam - t.lam, -s.alpha * math.expm1(t.lam - s.lam)
        extrapolated = h / (2 * (t.lam - points[n - 1].lam)) if n else 0.0
        found.append(
            Multistep(clean_of(t), s.sigma / t.sigma, (base * (1 + extrapolated), *([-base * extrapolated] * (n > 0))))
        )
    return found


def integrals(nodes: Sequence[float], a: float, b: float) -> list[float]:
    """Returns `int_a^b e^(u - b) l_j(u) du` of the Lagrange polynomials of the nodes, by Gauss-Legendre quadrature."""
    at, weights = np.polynomial.legendre.leggauss(40)
    u = a + (b - a) * (at + 1) / 2
    density = np.exp(u - b) * weights * (b - a) / 2
    values = [
        np.prod([(u - k) / (own - k) for i, k in enumerate(nodes) if i != j], axis=0) * density
        for j, own in enumerate(nodes)
    ]
    return [float(np.sum(v)) for v in values]


def stable(nodes: Sequence[float], a: float, b: float) -> list[float]:
    """Returns the integrals from as many nodes as amplify errors at most 15 times."""
    for count in range(len(nodes), 1, -1):
        found = integrals(nodes[:count], a, b)
        if sum(map(abs, found)) <= 15 * sum(found):
            return found
    return [-math.expm1(a - b)]


def unipc(points: Sequence[Point], order: int = 3) -> list[Multistep]:
    """Returns the steps of UniPC with data prediction (Zhao et al. 2023, algorithms 5 to 8), p = `order`.

    The corrector's change of the last step is added at the start of the next one, as in `continuous.UniPC`.
    """
    found, nodes = list[Multistep](), list[float]()
    for t, s in pairwise(points):
        if s.sigma == 0:
            found.append(Multistep(clean_of(t), 0.0, (1.0,)))
            continue
        of_x, weights = s.sigma / t.sigma, [0.0] * (1 + len(nodes))
        if nodes:
            predicted = stable(nodes, nodes[0], t.lam)
            for i, w in enumerate(integrals((t.lam, *nodes[: len(predicted)]), nodes[0], t.lam)):
                weights[i] += of_x * t.alpha * w
            for i, w in enumerate(predicted, 1):
                weights[i] -= of_x * t.alpha * w
        nodes = [t.lam, *nodes][:order]
        for i, w in enumerate(stable(nodes, t.lam, s.lam)):
            weights[i] += s.alpha * w
        found.append(Multistep(clean_of(t), of_x, tuple(weights)))
    return found


def predictor_corrector(
    sigmas: Sequence[float], network: Network, x: Tensor, generator: torch.Generator | None, snr: float = 0.16
) -> Tensor:
    """Runs reverse diffusion with a Langevin step after each on VE (Song et al. 2021, algorithm 4), norms by example.

    The network returns epsilon, so the score is `-epsilon / sigma`.
    """
    root, axes = math.sqrt(x[0].numel()), tuple(range(1, x.ndim))
    for t, s in pairwise(sigmas):
        if s == 0:
            return torch.add(x, network(x), alpha=-t)
        g2 = t**2 - s**2
        x = torch.add(x, network(x), alpha=-g2 / t)
        x = torch.add(x, torch.randn(x.shape, generator=generator, device=x.device), alpha=math.sqrt(g2))
        out, z = network(x), torch.randn(x.shape, generator=generator, device=x.device)
        norm = torch.linalg.vector_norm(out, dim=axes, keepdim=True) / s
        step = 2 * (snr * (root / norm).clamp(max=2 * math.sqrt(1 + s**2))) ** 2
        x = x + (step / -s) * out + (2 * step).sqrt() * z
    return x


NODES = (0.0, 0.2, 0.3, 0.8, 8 / 9, 1.0)
STAGES = (
    (),
    (0.2,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""The method of Dormand & Prince (1980), and its error estimate."""


@dataclass(frozen=True)
class VPFlow:
    """The flow of VP in t, `dx / dt = -beta(t) / 2 (x - epsilon / sigma_t)`, from t = 1 to `last`, then denoised.

    Args:
        last: the last noisy time.
        steps: steps of the method of Dormand and Prince, shorter near t = 0.
    """

    last: float = 1e-3
    steps: int = 20
    least: float = 0.1
    most: float = 20.0

    def point(self, t: float) -> Point:
        """Returns alpha and sigma (Song et al. 2021, eq. 33)."""
        log_alpha2 = -0.5 * t**2 * (self.most - self.least) - t * self.least
        return Point(math.exp(log_alpha2 / 2), math.sqrt(-math.expm1(log_alpha2)))

    def slope(self, t: float) -> tuple[float, float]:
        """Returns the factors of x and epsilon in dx / dt."""
        half = (self.least + t * (self.most - self.least)) / 2
        return -half, half / self.point(t).sigma

    def growth(self, share: float, count: int = 4000) -> float:
        """Returns the factor by which x grows from t = 1 to 0 where epsilon is `share` of x, by quadrature."""
        at, weights = np.polynomial.legendre.leggauss(count)
        first, final = math.sqrt(self.last), 1.0
        u = first + (final - first) * (at + 1) / 2  # t = u^2, so that 1 / sigma is smooth
        slopes = [sum(a * b for a, b in zip(self.slope(v**2), (1, share), strict=True)) * 2 * v for v in u]
        integral = float(np.sum(weights * slopes)) * (final - first) / 2
        end = self.point(self.last)
        return math.exp(-integral) * (1 - share * end.sigma) / end.alpha

    def plan(self) -> list[tuple[float, list[tuple[float, float]]]]:
        """Returns the width of each step and the factors of its evaluations; the first of a step is kept."""
        edges = np.linspace(1.0, math.sqrt(self.last), self.steps + 1) ** 2
        return [
            (float(s - t), [self.slope(float(t + node * (s - t))) for node in (*NODES[1:], 1.0)])
            for t, s in pairwise(edges)
        ]

    def __call__(self, plan: list[tuple[float, list[tuple[float, float]]]], network: Network, x: Tensor) -> Tensor:
        """Runs the method with error estimates, as an adaptive one computes them."""

        def slope(x: Tensor, of_x: float, of_out: float) -> Tensor:
            return torch.add(x * of_x, network(x), alpha=of_out)

        first = slope(x, *self.slope(1.0))
        for width, factors in plan:
            slopes = [first]
            for row, here in zip(STAGES[1:], factors, strict=True):
                at = x
                for a, k in zip(row, slopes, strict=True):
                    if a:
                        at = torch.add(at, k, alpha=width * a)
                slopes.append(slope(at, *here))
            error = width * ERROR[0] * slopes[0]
            for e, k in zip(ERROR[1:], slopes[1:], strict=True):
                if e:
                    error = torch.add(error, k, alpha=width * e)
            error.square().mean()
            x, first = at, slopes[-1]
        end = self.point(self.last)
        return torch.add(x / end.alpha, network(x), alpha=-end.sigma / end.alpha)

    @property
    def evaluations(self) -> int:
        """Network evaluations of a run."""
        return 2 + 6 * self.steps
