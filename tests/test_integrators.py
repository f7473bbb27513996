"""Integrators: order conditions, convergence at their order, tolerances, and clear errors."""

import functools
import itertools
import math

import pytest
import torch

from unnoise import sde
from unnoise.sde.integrators import Adaptive, FixedSteps, SciPy, TorchDiffEq
from unnoise.shared.errors import UsageError

FIXED = ("euler", "midpoint_rule", "heun2", "heun3", "rk4")
THEIRS = {name: name.removesuffix("_rule") for name in FIXED}  # names of torchdiffeq
PAIRS = ("dormand_prince", "bogacki_shampine")
TABLEAUS = {name: getattr(sde, name) for name in (*FIXED, *PAIRS)}


# ---- order conditions


@functools.cache
def trees(size):
    """Returns the rooted trees with that many vertices, each the sorted tuple of the subtrees at its root."""

    def forests(total):
        if total == 0:
            yield ()
        for first in range(1, total + 1):
            for tree, rest in itertools.product(trees(first), forests(total - first)):
                yield tuple(sorted((tree, *rest)))

    return sorted(set(forests(size - 1)))


def size(tree):
    return 1 + sum(map(size, tree))


def gamma(tree):
    return size(tree) * math.prod(map(gamma, tree))


def residuals(method, weights, order):
    """Returns `|sum_i b_i Phi_i(tree) - 1 / gamma(tree)|` of all trees with that many vertices (Butcher 1964)."""
    a = torch.zeros(len(method.nodes), len(method.nodes), dtype=torch.float64)
    for i, row in enumerate(method.rows):
        a[i, : len(row)] = torch.tensor(row, dtype=torch.float64)

    def phi(tree):
        return math.prod((a @ phi(t) for t in tree), start=torch.ones(len(a), dtype=torch.float64))

    return [
        abs(float(torch.tensor(weights, dtype=torch.float64) @ phi(tree)) - 1 / gamma(tree)) for tree in trees(order)
    ]


def weights_of(method):
    return (*method.rows[-1], 0) if method.weights is None else method.weights


def test_the_number_of_trees_is_known():
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_conditions(name):
    method = TABLEAUS[name]
    assert [len(row) for row in method.rows] == list(range(len(method.nodes)))
    for node, row in zip(method.nodes, method.rows, strict=True):
        assert node == pytest.approx(sum(row), abs=1e-15)
    for order in range(1, method.order + 1):
        assert max(residuals(method, weights_of(method), order)) < 1e-15 * 10
    assert max(residuals(method, weights_of(method), method.order + 1)) > 1e-5


@pytest.mark.parametrize("name", PAIRS)
def test_the_embedded_method_is_one_order_lower(name):
    """Weights less error weights are the embedded method, and the last stage is the first of the next step."""
    method = TABLEAUS[name]
    assert method.nodes[-1] == 1
    assert method.weights is None
    assert abs(sum(method.error)) < 1e-15
    embedded = [b - e for b, e in zip(weights_of(method), method.error, strict=True)]
    for order in range(1, method.order):
        assert max(residuals(method, embedded, order)) < 1e-14
    assert max(residuals(method, embedded, method.order)) > 1e-4


# ---- an equation with a known solution: y' = -2 t y^2, y = 1 / (c + t^2), with the integrals of y and of t y

C = torch.tensor([0.7, 1.0, 1.9], dtype=torch.float64)


def known(t):
    root = C.sqrt()
    return 1 / (C + t**2), torch.stack([torch.atan(t / root) / root, torch.log(C + t**2) / 2])


def field(times):
    return [lambda state, t=t: (-2 * t * state[0] ** 2, torch.stack([state[0], t * state[0]])) for t in times]


def start_of(t):
    y, integrals = known(t)
    return y, torch.zeros_like(integrals)


def errors(state, start, end):
    y, integrals = known(end)
    return [float((a - b).abs().max()) for a, b in zip(state, (y, integrals - known(start)[1]), strict=True)]


class Spied:
    """A field that counts its evaluations."""

    def __init__(self, rates=field):
        self.rates, self.calls = rates, 0

    def __call__(self, times):
        self.calls += len(times)
        return self.rates(times)


@pytest.mark.parametrize(("start", "end"), [(-0.3, 1.2), (1.2, -0.3)])
@pytest.mark.parametrize("name", TABLEAUS)
def test_fixed_steps_converge_at_their_order(name, start, end):
    method = FixedSteps(TABLEAUS[name])
    found = []
    for count in (32, 64):
        state, step = start_of(start), (end - start) / count
        for i in range(count):
            state = method(field, state, start + i * step, start + (i + 1) * step)
        found.append(errors(state, start, end))
    for coarse, fine in zip(*found, strict=True):
        assert math.log2(coarse / fine) > method.order - (0.25 if method.order < 5 else 0.6)
        assert fine < {1: 0.03, 2: 1e-3, 3: 1e-5, 4: 1e-7, 5: 1e-9}[method.order]


@pytest.mark.parametrize("end", [0.6, -0.6])
def test_one_step_evaluates_each_stage_once(end):
    for method in TABLEAUS.values():
        spied = Spied()
        FixedSteps(method)(spied, start_of(0.0), 0.0, end)
        assert spied.calls == len(method.nodes)


@pytest.mark.parametrize("name", FIXED)
def test_one_step_of_torchdiffeq(name):
    """Its methods are the same, except for rk4, which has other weights of the same order."""
    (theirs, ours), spied = (
        (method(field, start_of(0.2), 0.2, 0.3) for method in (TorchDiffEq(THEIRS[name]), FixedSteps(TABLEAUS[name]))),
        Spied(),
    )
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 if name == "rk4" else 1e-12)
    TorchDiffEq(THEIRS[name])(spied, start_of(0.2), 0.2, 0.3)
    assert spied.calls == len(TABLEAUS[name].nodes)
    assert TorchDiffEq(THEIRS[name]).order == TABLEAUS[name].order


@pytest.mark.parametrize(("start", "end"), [(-1.0, 1.5), (1.5, -1.0)])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_adaptive_steps_meet_their_tolerance(tolerance, start, end):
    for make in (Adaptive, TorchDiffEq, SciPy):
        spied = Spied()
        state = make(rtol=tolerance, atol=tolerance)(spied, start_of(start), start, end)
        assert max(errors(state, start, end)) < 20 * tolerance
        if make is Adaptive:
            spent = spied.calls
        # the same pair and step size control, except for the first step and the norm
        assert 0.75 * spent - 7 < spied.calls < 1.3 * spent + 7
    if tolerance > 1e-9:
        third = Adaptive(tolerance, tolerance, 100_000, sde.bogacki_shampine)(field, start_of(start), start, end)
        assert max(errors(third, start, end)) < 200 * tolerance


def test_tolerances_are_relative_and_absolute():
    """rtol bounds the relative error of `y' = y`, atol the absolute error of `y' = -y`.

    With atol alone a small state costs few evaluations; with rtol alone the cost does not depend on the unit.
    """

    def growing(times):
        return [lambda state: (state[0],) for _ in times]

    y = torch.ones(1, dtype=torch.float64)
    (grown,) = Adaptive(1e-6, 1e-300)(growing, (y,), 0.0, 20.0)
    assert 1e-9 < abs(float(grown) / math.exp(20) - 1) < 1e-4
    (shrunk,) = Adaptive(1e-300, 1e-6)(growing, (y,), 0.0, -20.0)
    assert abs(float(shrunk) - math.exp(-20)) < 1e-5
    costs = {}
    for tolerances in ((1e-300, 1e-6), (1e-6, 1e-300)):
        for scale in (1e-6, 1.0, 1e3):
            spied = Spied(growing)
            Adaptive(*tolerances)(spied, (scale * y,), 0.0, 5.0)
            costs[tolerances[0], scale] = spied.calls
    assert costs[1e-300, 1e-6] < 0.4 * costs[1e-300, 1.0] < 0.16 * costs[1e-300, 1e3]
    assert costs[1e-6, 1e-6] == costs[1e-6, 1.0] == costs[1e-6, 1e3]


@pytest.mark.parametrize("method", [sde.dormand_prince, sde.bogacki_shampine])
def test_steps_with_too_large_an_error_are_repeated(method):
    """`y = tanh(20 (t - 1/2))` is constant at first, so steps are long where it begins to change."""

    def rates(times):
        return [
            lambda state, t=t: (torch.full((1,), 20 / math.cosh(20 * t - 10) ** 2, dtype=torch.float64),) for t in times
        ]

    for tolerance in (1e-4, 1e-5, 1e-6, 1e-7):
        (end,) = Adaptive(tolerance, tolerance, method=method)(rates, (torch.zeros(1, dtype=torch.float64),), 0.0, 1.0)
        assert abs(float(end) - 2 * math.tanh(10)) < 1.5 * tolerance


def test_each_tensor_of_the_state_meets_the_tolerance():
    """The error of one number in an integral is not averaged with that of a large constant state."""

    def rates(times):
        return [
            lambda state, t=t: (
                torch.zeros_like(state[0]),
                torch.full((1,), 60 * math.cos(60 * t), dtype=torch.float64),
            )
            for t in times
        ]

    state = torch.ones(100_000, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    end = Adaptive(1e-6, 1e-6)(rates, state, 0.0, 1.0)
    assert abs(float(end[1]) - math.sin(60)) < 1e-4


ADAPTIVE = {"adaptive": Adaptive, "bogacki-shampine": functools.partial(Adaptive, method=sde.bogacki_shampine)}
ADAPTIVE |= {"torchdiffeq": TorchDiffEq, "scipy": SciPy}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_evaluations_are_capped(name):
    with pytest.raises(
        UsageError, match=r"needs more than evaluations=40: give more, larger tolerances than rtol=1e-09 and atol=1e-08"
    ) as error:
        ADAPTIVE[name](rtol=1e-9, atol=1e-8, evaluations=40)(field, start_of(-2.0), -2.0, 3.0)
    assert "\n" not in str(error.value)
    spied = Spied()
    ADAPTIVE[name](rtol=1e-3, atol=1e-3, evaluations=400)(spied, start_of(-2.0), -2.0, 3.0)
    ADAPTIVE[name](rtol=1e-3, atol=1e-3, evaluations=spied.calls)(field, start_of(-2.0), -2.0, 3.0)
    with pytest.raises(UsageError, match="evaluations"):
        ADAPTIVE[name](rtol=1e-3, atol=1e-3, evaluations=spied.calls - 1)(field, start_of(-2.0), -2.0, 3.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("since", [0.0, 0.4], ids=["at the start", "on the way"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_slope_that_is_not_finite_is_refused(name, since, bad):
    def rates(times):
        return [lambda state, t=t: (state[0] * (bad if t >= since else 1.0),) for t in times]

    with pytest.raises(UsageError, match="look for NaN in the") as error:
        ADAPTIVE[name](rtol=1e-5, atol=1e-5)(rates, (torch.ones(2, 3),), 0.0, 1.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["adaptive", "bogacki-shampine", "torchdiffeq"])
def test_tolerances_that_float32_cannot_meet_are_refused(name):
    state = tuple(part.float() for part in start_of(-2.0))
    with pytest.raises(UsageError, match="larger"):
        ADAPTIVE[name](rtol=1e-18, atol=1e-18)(field, state, -2.0, 3.0)


@pytest.mark.parametrize("name", [*ADAPTIVE, "fixed steps"])
def test_an_interval_of_length_zero_changes_nothing(name):
    state = ADAPTIVE.get(name, FixedSteps)()(field, start_of(0.5), 0.5, 0.5)
    assert max(errors(state, 0.5, 0.5)) == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Adaptive(rtol=-1.0), "rtol=-1.0"),
        (lambda: Adaptive(0.0, 0.0), "rtol=0.0, atol=0.0"),
        (lambda: Adaptive(evaluations=0), "evaluations=0"),
        (lambda: Adaptive(method=sde.rk4), "dormand_prince"),
        (lambda: TorchDiffEq("rk45"), "method=rk45: choose from .*dopri5"),
        (lambda: TorchDiffEq(rtol=-1.0), "rtol=-1.0"),
        (lambda: SciPy(atol=math.nan), "atol=nan"),
        (lambda: SciPy("RK99"), "method=RK99: choose from"),
    ],
)
def test_what_integrators_refuse(make, words):
    with pytest.raises(UsageError, match=words):
        make()
