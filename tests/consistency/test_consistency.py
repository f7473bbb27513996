"""One denoiser is one model: every combination that the categorical family lets a user build, against enumeration.

The table of combinations is `cells.py`, the oracle `enumerated.py`; docs/consistency.md is generated from the same
table.
"""

import itertools

import pytest
import torch
from cells import (
    BOUNDS,
    HEADS,
    OBJECTIVES,
    PAGE,
    PROCESSES,
    REVERSES,
    Conditional,
    build,
    cells,
    own_grid,
    page,
    some_of,
)
from enumerated import (
    DEPENDENT,
    INDEPENDENT,
    ONE,
    ZERO,
    D,
    Free,
    K,
    assert_bounds,
    chain_bound,
    corrupted_to,
    divergence,
    exact,
    exact_output,
    joint,
    kernel,
    legendre,
    noised,
    pairs,
    q,
    ratio_kernel,
    ratios,
    seen,
    start_of,
    wrong,
)

from unnoise.discrete import Categorical, ContinuousBound, ScoreEntropyDenoiser, VariationalBound, unscaled
from unnoise.shared.errors import UsageError

MODELS = [(p, r) for p in PROCESSES for r in REVERSES if not (r == "Product(eps)" and "time" in p)]
IN_TIME = [(p, r) for p, r in MODELS if "time" in p]
RATIOS = [p for p in PROCESSES if "time" in p and p.startswith(("Uniform", "Absorbing")) and p != "Absorbing, time"]


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=D), torch.as_tensor(expected, dtype=D), rtol=tolerance, atol=tolerance
    )


def times_of(transition):
    if transition.steps:
        return [torch.tensor(n / transition.steps, dtype=D) for n in range(1, transition.steps + 1)]
    return [torch.tensor(t, dtype=D) for t in (0.05, 0.4, 0.8, 1.0)]


def grids(transition):
    """The whole table or a few steps in time, shorter grids, and some of one's own: one that starts below 1, and on a
    table one that meets rows twice and ends on its way in row 0."""
    own = [own_grid(transition), torch.tensor([0.75, 0.5, 0.0], dtype=D)]
    if transition.steps:
        own.append(torch.tensor([1.0, 0.9, 0.7, 0.55, 0.45, 0.25, 0.1, 0.05, 0.0], dtype=D))
    return [transition.grid(transition.steps or 4), transition.grid(3), transition.grid(1), *own]


def path_integral(denoiser, x0, count=48):
    """The integral of the path's rate over [t_min, 1], in expectation."""
    total, transition = 0.0, denoiser.corruption
    for t, w in zip(*legendre(transition.t_min, 1.0, count), strict=True):
        x_t, weight = seen(transition, t, x0)
        rate = denoiser.path_rate(x0.expand(len(x_t), 2), x_t, t, dtype=D).divergence.sum(1)
        total = total + w * (weight * rate).sum()
    return total


def whole_integral(denoiser, x0):
    bound, transition = VariationalBound(denoiser), denoiser.corruption
    x_t, weight = seen(transition, torch.tensor(transition.t_min, dtype=D), x0)
    with corrupted_to(transition, x_t):
        data = (weight * bound.data(x0.expand(len(x_t), 2))).sum()
    return bound.prior(x0[None])[0] + path_integral(denoiser, x0) + data


def oracle_kernel(denoiser, t, s):
    """`p(x_s | x_t)` by sums from the outputs of a `Fixed`."""
    return kernel(denoiser.corruption, denoiser.reverse, denoiser.output(t).softmax(-1), t, s)


# ---- one model: kernels, divergences, rates and starts against sums over all states


@pytest.mark.parametrize(("process", "reverse"), MODELS)
def test_kernels_and_divergences_are_sums(process, reverse):
    transition = PROCESSES[process]()
    denoiser = wrong(transition, REVERSES[reverse]())
    x = pairs(transition.states)
    for grid in grids(transition):
        for t, s in itertools.pairwise(grid):
            distribution = oracle_kernel(denoiser, t, s)
            possible = noised(transition, DEPENDENT, t).flatten() > 1e-12
            close(denoiser.step_distribution(x, t, s)[possible], distribution[possible])
            for x0 in pairs(K)[[0, 5, 7]]:
                x_t, weight = seen(transition, t, x0)
                ours = denoiser.exact_divergence(x0.expand(len(x_t), 2), x_t, t, s, dtype=D).divergence.sum(1)
                close((weight * ours).sum(), divergence(transition, distribution, x0, t, s))


@pytest.mark.parametrize(("process", "reverse"), some_of(MODELS))
def test_slopes_of_divergences_are_those_of_the_sums(process, reverse):
    """By the network's output, along a line, of each step of a short grid; `divergence` has a backward pass of its
    own."""
    transition, model, h = PROCESSES[process](), REVERSES[reverse](), 1e-5
    for t, s in itertools.pairwise(transition.grid(3)):
        raw = wrong(transition, model).output(t)
        along = torch.cos(3 * torch.arange(raw.numel(), dtype=D)).view(raw.shape)
        network = Free(transition.states, raw)
        denoiser = Categorical(network, transition, model)
        for x0 in pairs(K)[[0, 5]]:
            x_t, weight = seen(transition, t, x0)
            with corrupted_to(transition, x_t):
                nats = denoiser.divergence(x0.expand(len(x_t), 2), x_t, t, s, dtype=D).divergence.sum(1)
            (slope,) = torch.autograd.grad((weight * nats).sum(), network.table)
            up, down = (
                divergence(transition, kernel(transition, model, (raw + v * along).softmax(-1), t, s), x0, t, s)
                for v in (h, -h)
            )
            close((slope * along).sum(), (up - down) / (2 * h), 1e-7 if not model.eps else 10 * model.eps)


@pytest.mark.parametrize(("process", "reverse"), IN_TIME)
def test_rates_are_the_limit_of_kernels(process, reverse):
    """`R_hat(x, y) = R(y, x) m_y` is what the kernel of a short step does, and the path's rate what its divergence
    does."""
    transition = PROCESSES[process]()
    denoiser, x, h = wrong(transition, REVERSES[reverse]()), pairs(transition.states), 1e-6
    for t in (torch.tensor(v, dtype=D) for v in (0.1, 0.5, 0.9)):
        distribution = oracle_kernel(denoiser, t, t - h) / h
        rates = torch.where(transition.inflow(x, t) > 0, transition.inflow(x, t) * denoiser.ratio(x, t), 0.0)
        own = torch.nn.functional.one_hot(x, transition.states) == 1
        close(rates.masked_fill(own, 0.0), distribution.masked_fill(own, 0.0), 1e-4)
        for x0 in pairs(K)[[0, 5, 7]]:
            x_t, weight = seen(transition, t, x0)
            rate = (weight * denoiser.path_rate(x0.expand(len(x_t), 2), x_t, t, dtype=D).divergence.sum(1)).sum()
            close(rate, divergence(transition, oracle_kernel(denoiser, t, t - h), x0, t, t - h) / h, 1e-3)


@pytest.mark.parametrize("process", RATIOS)
def test_ratios_are_undone_by_a_linear_system(process):
    transition = PROCESSES[process]()
    denoiser, x = build(process, "ratios"), pairs(transition.states)
    for grid in grids(transition):
        for t, s in itertools.pairwise(grid):
            distribution = ratio_kernel(transition, denoiser.ratio(x, t).detach(), t, s)
            close(denoiser.step_distribution(x, t, s), distribution)


@pytest.mark.parametrize(("process", "reverse"), MODELS)
def test_the_exact_start_is_what_the_process_leaves(process, reverse):
    """Where one token is the start, survivors are the denoiser's; of independent tokens the exact one's start is
    q(x_1)."""
    transition = PROCESSES[process]()
    start = start_of(exact(transition, REVERSES[reverse](), INDEPENDENT))
    if (transition.stationary() == 1).any():
        close(start, noised(transition, INDEPENDENT, ONE).flatten(), 1e-9)
    else:
        pi = transition.stationary()
        close(start, torch.outer(pi, pi).flatten())


# ---- objectives


def expected(objective, t):
    """The loss at t in expectation over the data and x_t."""
    transition = objective.denoiser.corruption
    rows = [(x0, *seen(transition, t, x0)) for x0 in pairs(K)]
    x0 = torch.cat([x.expand(len(x_t), 2) for x, x_t, _ in rows])
    weight = torch.cat([DEPENDENT[x[0], x[1]] * w for x, _, w in rows])
    with corrupted_to(transition, torch.cat([x_t for _, x_t, _ in rows])):
        return (weight * objective.at(x0, t.expand(len(x0))).total).sum()


@pytest.mark.parametrize(("process", "reverse"), some_of(MODELS))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_exact_denoiser_is_a_stationary_point(process, reverse, objective):
    """Gradients by free logits at every state and both heads that leave them free; a wrong denoiser has one."""
    transition, model = PROCESSES[process](), REVERSES[reverse]()
    for head in ("direct", "residual"):
        sizes = []
        for t in times_of(transition):
            out = exact_output(transition, model, DEPENDENT, t)
            if head == "residual":
                out = out - torch.nn.functional.one_hot(pairs(transition.states), transition.states)[..., :K]
            for raw in (out, wrong(transition, model).output(t)):
                network = Free(transition.states, raw)
                try:
                    loss = OBJECTIVES[objective](Categorical(network, transition, model, head=HEADS[head]))
                except UsageError:
                    assert ("Continuous" in objective) == bool(transition.steps) or transition.steps is None
                    return
                sizes.append(float(torch.autograd.grad(expected(loss, t), network.table)[0].abs().max()))
        assert max(sizes[::2]) < (1e-8 if not model.eps else 5 * model.eps), sizes
        assert max(sizes[1::2]) > 1e-2, sizes


@pytest.mark.parametrize(("process", "reverse"), [(p, r) for p, r in MODELS if r != "Product(eps)"])
def test_objectives_are_the_terms_that_they_say(process, reverse):
    """Of a wrong denoiser, mean over both positions: a step's divergence, the rate times the length of time, the
    posterior's nats."""
    transition, model, h = PROCESSES[process](), REVERSES[reverse](), 1e-6
    for t in times_of(transition)[:-1]:
        raw = wrong(transition, model).output(t)
        denoiser = Categorical(Free(transition.states, raw), transition, model)

        def term(s, raw=raw, t=t):
            distribution = kernel(transition, model, raw.softmax(-1), t, s)
            return sum(DEPENDENT[x0[0], x0[1]] * divergence(transition, distribution, x0, t, s) / 2 for x0 in pairs(K))

        s = transition.before(t) if transition.steps else t - h
        nats, step = term(ZERO), term(s)
        main, name = (step, "D3PMLoss") if transition.steps else ((1 - transition.t_min) * step / h, "ContinuousBound")
        tolerance = 1e-9 if transition.steps else 1e-3
        close(expected(OBJECTIVES["CrossEntropy"](denoiser), t), nats)
        close(expected(OBJECTIVES[f"{name}(ce=0)"](denoiser), t), main, tolerance)
        close(expected(OBJECTIVES[f"{name}(ce)"](denoiser), t), main + 0.3 * nats, tolerance)


@pytest.mark.parametrize("process", RATIOS)
def test_exact_ratios_are_a_stationary_point(process):
    transition, sizes = PROCESSES[process](), []
    for t in times_of(transition):
        truth = ratios(transition, DEPENDENT, t).clamp(min=1e-300).log()
        for raw in (truth, truth + torch.sin(torch.arange(truth.numel(), dtype=D)).view(truth.shape)):
            network = Free(transition.states, raw)
            loss = expected(ContinuousBound(ScoreEntropyDenoiser(network, transition, offset=unscaled)), t)
            sizes.append(float(torch.autograd.grad(loss, network.table)[0].abs().max()))
    assert max(sizes[::2]) < 1e-8, sizes
    assert max(sizes[1::2]) > 1e-2, sizes


# ---- bounds


@pytest.mark.parametrize(("process", "reverse"), some_of(MODELS))
def test_a_chain_bounds_what_its_sampler_draws(process, reverse):
    """Prior, path and data of a wrong denoiser are `E_q log q / p` of the oracle's kernels, and bound the samples'
    code length."""
    transition = PROCESSES[process]()
    denoiser = wrong(transition, REVERSES[reverse]())
    for grid in grids(transition):
        bounds = assert_bounds(denoiser, grid)
        start = start_of(denoiser, grid[0])
        for x0, bound in zip(pairs(K)[[0, 5]], bounds[[0, 5]], strict=True):
            last = joint(q(transition, ZERO, grid[0])[x0])
            total = (torch.xlogy(last, last) - torch.xlogy(last, start)).sum()
            for t, s in itertools.pairwise(grid):
                total = total + divergence(transition, oracle_kernel(denoiser, t, s), x0, t, s)
            close(bound, total)


@pytest.mark.parametrize(("process", "reverse"), MODELS)
def test_a_bound_takes_each_step_of_its_grid_once(process, reverse):
    """All steps, or in the mean a few of them: the path is every step but the last, and the last is the data."""
    denoiser = wrong(PROCESSES[process](), REVERSES[reverse]())
    for grid in grids(denoiser.corruption):
        for terms in (None, 2):
            bound, taken = VariationalBound(denoiser, steps=grid, terms=terms), []

            def divergence(x0, t, s, *, generator=None, taken=taken):
                taken.extend(zip(t.expand(len(x0)).tolist(), s.expand(len(x0)).tolist(), strict=True))
                return torch.ones(len(x0), dtype=D)

            bound.divergence = divergence
            code = bound(torch.zeros(1, 2).long(), generator=torch.Generator().manual_seed(0))
            assert float(code.path) == pytest.approx(len(grid) - 2)
            assert float(code.data) == 1.0
            steps = list(itertools.pairwise(grid.tolist()))
            assert set(taken) <= set(steps)
            assert taken[-1] == steps[-1]
            assert terms or taken == steps


@pytest.mark.parametrize(("process", "reverse"), some_of([(p, r) for p, r in MODELS if r != "Product(eps)"]))
def test_the_exact_denoisers_bound_is_the_entropy(process, reverse):
    """Of independent tokens, over any grid and as an integral: H(x_0) and what the start is off q(x_1)."""
    transition = PROCESSES[process]()
    denoiser = exact(transition, REVERSES[reverse](), INDEPENDENT)
    entropy = -(INDEPENDENT * INDEPENDENT.log()).sum()

    def gap(t):
        last, start = noised(transition, INDEPENDENT, t).flatten(), start_of(denoiser, t)
        return (torch.xlogy(last, last) - torch.xlogy(last, start)).sum()

    for grid in grids(transition):
        total = sum(INDEPENDENT[x0[0], x0[1]] * chain_bound(denoiser, grid, x0) for x0 in pairs(K))
        close(total, entropy + gap(grid[0]), 1e-8)
    if transition.steps is None:
        total = sum(INDEPENDENT[x0[0], x0[1]] * whole_integral(denoiser, x0) for x0 in pairs(K))
        close(total, entropy + gap(ONE), 1e-6)


@pytest.mark.parametrize(("process", "reverse"), some_of([*IN_TIME, *((p, "ratios") for p in RATIOS)]))
def test_chains_tend_to_the_integral(process, reverse):
    """The bound less the integral falls by 4 as steps grow by 4: at first order, for a wrong denoiser."""
    x0 = torch.tensor([0, 2])
    denoiser = (
        build(process, "ratios") if reverse == "ratios" else wrong(PROCESSES[process](), REVERSES[reverse](), seed=3)
    )
    transition = denoiser.corruption
    if reverse == "ratios":  # off the truth by so little that long steps can be undone
        oracle, off = (
            exact(transition, REVERSES["Marginal"](), INDEPENDENT),
            0.2 * torch.sin(torch.arange(2.0 * transition.states, dtype=D)),
        )
        off = off.view(2, -1)
        denoiser.log_ratio = lambda x, t, dtype=None: (oracle.ratio(x, t).log() + off).scatter(-1, x[..., None], 0.0)
    whole = float(whole_integral(denoiser, x0))
    gaps = []
    for steps in (100, 400, 1600) if reverse == "ratios" else (50, 200, 800):
        grid = transition.grid(steps)
        bound, total = VariationalBound(denoiser, steps=grid), 0.0
        seen_at = [seen(transition, t, x0) for t in grid[:-1]]
        x_t, weight = (torch.cat(parts) for parts in zip(*seen_at, strict=True))
        n = torch.cat([torch.full((len(w),), steps - i) for i, (_, w) in enumerate(seen_at)])
        with corrupted_to(transition, x_t):
            total = float((weight * bound.term(x0.expand(len(x_t), 2), n)).sum())
        gaps.append(total + float(bound.prior(x0[None])) - whole)
    assert abs(gaps[-1]) < 0.02 * abs(whole), (whole, gaps)
    for coarse, fine in itertools.pairwise(gaps):
        assert coarse / fine == pytest.approx(4, abs=0.8), (whole, gaps)


# ---- the table and its page


def test_every_cell_is_built_or_refused_in_one_line_and_the_page_is_current():
    found = cells()
    assert len({cell[:4] for cell in found}) == len(found)
    for cell in found:
        assert "\n" not in cell.refused
    built = {cell[1:4] for cell in found if not cell.refused}
    for process, reverse in MODELS:
        objective = (
            ("ContinuousBound(ce=0)", "ContinuousBound(ce)")
            if "time" in process
            else ("D3PMLoss(ce=0)", "D3PMLoss(ce)", "ImportanceSampling(D3PMLoss)")
        )
        for part in (*objective, "CrossEntropy", *BOUNDS, "Ancestral"):
            assert (process, reverse, part) in built
    assert PAGE.read_text().startswith(page(found)), "docs/consistency.md is not current: run make consistency"


def test_networks_of_the_table_are_conditional():
    """`Conditional` is a network of this table alone: three classes that differ."""
    network = Conditional(3, 3)
    x, t = pairs(3), ONE.expand(9)
    assert not torch.equal(network(x, t, torch.zeros(9).long()), network(x, t))
