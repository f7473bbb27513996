"""Outputs at earlier steps of a multistep sampler: the polynomial through them, as weights of the outputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

History: TypeAlias = list[tuple[float, Tensor]]
"""Outputs of the denoiser at earlier steps of a run, newest first, each with its lambda (for `LMS` its sigma~)."""
MOST_AMPLIFIED = 15.0
"""How many times the errors of earlier outputs may be amplified before fewer of them are used."""
SHORT = 1.0
"""Below this, `moments` are a series: the recurrence would cancel."""


def push(history: History, node: float, output: Tensor, count: int) -> None:
    """Puts an output at `node` (lambda or sigma~) first, keeps the newest `count`; skips the infinite node of SNR 0."""
    if math.isfinite(node):
        history.insert(0, (node, output))
        del history[count:]


def nodes_of(history: History) -> tuple[float, ...]:
    """Returns the nodes of the outputs, newest first."""
    return tuple(node for node, _ in history)


def divided_differences(nodes: Sequence[float]) -> tuple[list[float], list[float] | None]:
    """Returns the first and the second divided difference at the newest of two or three outputs, as their weights.

    With two outputs the second is None.
    """
    a, b, *older = nodes
    slope = [1 / (a - b), -1 / (a - b)]
    if not older:
        return slope, None
    c = older[0]
    return [*slope, 0.0], [v / (a - c) for v in (slope[0], slope[1] - 1 / (b - c), 1 / (b - c))]


def stable_weights(nodes: tuple[float, ...], a: float, b: float) -> tuple[float, ...]:
    """Returns `lagrange_weights` from as many of the newest outputs as do not amplify their errors too much on [a, b].

    The weights of the integral sum to `1 - e^(a - b)`, and errors are amplified by the sum of their absolute values
    over that: 3.7 times for three even steps, 41 times where a grid of 10 even steps of a table jumps to its first row.
    """
    for count in range(len(nodes), 1, -1):
        weights = lagrange_weights(nodes[:count], a, b)
        if sum(map(abs, weights)) <= MOST_AMPLIFIED * sum(weights):
            return weights
    return (-math.expm1(a - b),)


@functools.lru_cache(4096)  # a second run on a grid has the same nodes
def lagrange_weights(nodes: tuple[float, ...], a: float, b: float, decay: float = 1.0) -> tuple[float, ...]:
    """Returns `int_a^b e^(decay (u - b)) l_j(u) du` for the Lagrange polynomials l_j of the nodes.

    The integral of e^(decay (u - b)) p(u), p the polynomial through outputs at the nodes, is the sum of the outputs
    with these weights. l_j is expanded in powers of `v = (u - a) / (b - a)`, whose integrals are `moments`.
    """
    width = b - a
    places, masses = [(u - a) / width for u in nodes], moments(decay * width, len(nodes))
    weights = []
    for j, own in enumerate(places):
        powers = [1.0]  # coefficients of the product of (v - k) / (own - k), lowest power first
        for i, k in enumerate(places):
            if i != j:
                shifted = [0.0, *powers]
                powers = [(low - k * high) / (own - k) for low, high in zip(shifted, [*powers, 0.0], strict=True)]
        weights.append(width * sum(c * m for c, m in zip(powers, masses, strict=True)))
    return tuple(weights)


def moments(decay: float, count: int) -> list[float]:
    """Returns `int_0^1 e^(-decay (1 - v)) v^k dv` for k = 0..count-1.

    For a long decay by the recurrence `m_k = (1 - k m_(k-1)) / decay`, else by the series
    `sum_n (-decay)^n k! / (k + n + 1)!`.
    """
    if abs(decay) < SHORT:
        series = []
        for k in range(count):
            term = total = 1 / (k + 1)
            n = k + 1
            while abs(term) > 1e-17:
                n += 1
                term *= -decay / n
                total += term
            series.append(total)
        return series
    found = [-math.expm1(-decay) / decay]
    for k in range(1, count):
        found.append((1 - k * found[-1]) / decay)
    return found


def phi2(decay: float) -> float:
    """Returns `1 - (1 - e^-decay) / decay`, the integral of `decay u e^(-decay (1 - u))` over [0, 1]."""
    return 1 + math.expm1(-decay) / decay
