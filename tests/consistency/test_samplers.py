"""Samplers and wrappers of the categorical consistency matrix, against enumeration."""

import itertools

import pytest
import torch
from cells import (
    BOUNDS,
    CORRECTORS,
    PROCESSES,
    REVERSES,
    SAMPLERS,
    build,
    corrector,
    own_grid,
    some_of,
)
from enumerated import (
    DEPENDENT,
    INDEPENDENT,
    ONE,
    D,
    Fixed,
    K,
    exact,
    exact_output,
    generator_of,
    joint,
    noised,
    pairs,
    seen,
    start_of,
    walk,
    wrong,
)
from test_consistency import IN_TIME, MODELS, RATIOS, close, grids

from unnoise.discrete import Ancestral, ClassifierGuided, Euler, RateCorrector, Remasking, TauLeaping, reverse_rates
from unnoise.discrete.tau_leaping import single_jump_distribution
from unnoise.shared.errors import UsageError
from unnoise.shared.random import categorical

MASKED = [(p, r) for p, r in MODELS if p.startswith("Absorbing, ") and r != "Product(eps)"]
EXACT = [(p, r) for p, r in MODELS if r != "Product(eps)"]


def rates_end(transition):
    """Where a grid along rates starts: just below 1 where they are infinite there."""
    return 1.0 if bool(torch.isfinite(transition.inflow(transition.stationary().argmax()[None], ONE)).all()) else 0.9


def leap(denoiser):
    """The distribution of a leap of single jumps."""
    return lambda x, t, s: single_jump_distribution(x, (t - s) * torch.nan_to_num(reverse_rates(denoiser, x, t)))


def ordinal_leap(denoiser, most=6):
    """The distribution of a leap whose jumps are summed, by the numbers of jumps of each kind."""
    size = denoiser.corruption.states

    def distribution(x, t, s):
        means = (t - s) * reverse_rates(denoiser, x, t)
        poisson = (
            torch.distributions.Poisson(means.clamp(min=1e-300))
            .log_prob(torch.arange(most, dtype=D).view(-1, 1, 1, 1))
            .exp()
        )
        out = torch.zeros_like(means)
        for counts in itertools.product(range(most), repeat=size):
            chance = torch.stack([poisson[n, ..., y] for y, n in enumerate(counts)]).prod(0)
            at = (x + sum(n * (y - x) for y, n in enumerate(counts))).clamp(0, size - 1)
            out.scatter_add_(-1, at[..., None], chance[..., None])
        return out

    return distribution


def corrected(denoiser, distribution):
    """A step by `distribution` and the corrector's leap at the level that it ends on, as one matrix."""
    rule, x = corrector(denoiser), pairs(denoiser.corruption.states)

    def step(start, t, s):
        start = start @ joint(torch.nan_to_num(distribution(x, t, s)))
        return start @ joint(single_jump_distribution(x, rule.size * (t - s) * torch.nan_to_num(rule.rates(x, s))))

    return step


def before(denoiser, distribution):
    """The corrector's leap first."""
    rule, x = corrector(denoiser), pairs(denoiser.corruption.states)

    def step(start, t, s):
        start = start @ joint(single_jump_distribution(x, rule.size * (t - s) * torch.nan_to_num(rule.rates(x, t))))
        return start @ joint(torch.nan_to_num(distribution(x, t, s)))

    return step


def stepped(distribution):
    return lambda denoiser: (
        lambda start, t, s: (
            start @ joint(torch.nan_to_num(distribution(denoiser)(pairs(denoiser.corruption.states), t, s)))
        )
    )


def along(step, start, grid):
    for t, s in itertools.pairwise(grid):
        start = step(start, t, s)
    return start


STEPS = {
    "Ancestral": stepped(lambda denoiser: denoiser.step_distribution),
    "Euler": stepped(lambda denoiser: Euler(denoiser).distribution),
    "TauLeaping(single)": stepped(leap),
    "TauLeaping(ordinal)": stepped(ordinal_leap),
    "Remasking": stepped(lambda denoiser: Remasking(denoiser, cap=0.3).distribution),
    "PredictorCorrector(Ancestral)": lambda denoiser: corrected(denoiser, denoiser.step_distribution),
    "PredictorCorrector(TauLeaping)": lambda denoiser: corrected(denoiser, leap(denoiser)),
    "CorrectorPredictor(Ancestral)": lambda denoiser: before(denoiser, denoiser.step_distribution),
    "CorrectorPredictor(TauLeaping)": lambda denoiser: before(denoiser, leap(denoiser)),
}


class Timeless(Fixed):
    """An output that does not depend on the time, whatever times a batch asks for."""

    def logits(self, x_t, t, **cond):
        return super().logits(x_t, ONE)


def built(name, denoiser):
    """The sampler, or None where it is refused."""
    try:
        return (SAMPLERS | CORRECTORS)[name](denoiser)
    except UsageError:
        return None


# ---- the exact denoiser


@pytest.mark.parametrize(("process", "reverse"), MODELS)
def test_ancestral_steps_return_independent_tokens(process, reverse):
    """Over the whole grid, a shorter one and one that ends above the first row; with an eps up to it."""
    transition, model = PROCESSES[process](), REVERSES[reverse]()
    denoiser = exact(transition, model, INDEPENDENT)
    for grid in grids(transition):
        start = noised(transition, INDEPENDENT, grid[0]).flatten()
        end = walk(start, denoiser, grid).view(transition.states, -1)[:K, :K]
        close(end, INDEPENDENT, 1e-8 if not model.eps else 30 * model.eps)
        own = start_of(denoiser, grid[0])  # from there the error is at most the start's
        end = walk(own, denoiser, grid).view(transition.states, -1)[:K, :K]
        assert (end - INDEPENDENT).abs().sum() <= (own - start).abs().sum() + (
            1e-8 if not model.eps else 60 * model.eps
        )


@pytest.mark.parametrize(("process", "reverse"), some_of(IN_TIME))
@pytest.mark.parametrize("name", [name for name in STEPS if name != "Remasking"])
def test_every_step_is_of_order_one(process, reverse, name):
    """Of dependent tokens: the error of the distribution at a late time halves as steps double."""
    transition = PROCESSES[process]()
    denoiser = exact(transition, REVERSES[reverse]())
    if built(name, denoiser) is None:
        pytest.skip("refused when built")
    counts = (10, 20) if "ordinal" in name else (48, 96)
    errors = []
    for steps in counts:
        grid = torch.linspace(rates_end(transition), 0.25, steps + 1, dtype=D)
        start = noised(transition, DEPENDENT, grid[0]).flatten()
        end = along(STEPS[name](denoiser), start, grid)
        errors.append(float((end - noised(transition, DEPENDENT, grid[-1]).flatten()).abs().sum()))
    assert errors[1] < 0.15, errors
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.5), errors


@pytest.mark.parametrize(("process", "reverse"), [(p, r) for p, r in MASKED if "time" in p])
def test_remasking_is_of_order_one_in_its_cap(process, reverse):
    """Two tokens that fall back together are drawn at once: a cap that stays leaves an error of its order, one that
    falls as the step one that vanishes at order one."""
    denoiser = exact(PROCESSES[process](), REVERSES[reverse]())
    transition = denoiser.corruption

    def error(steps, cap):
        grid = torch.linspace(rates_end(transition), 0.25, steps + 1, dtype=D)
        start = noised(transition, DEPENDENT, grid[0]).flatten()
        end = walk(start, denoiser, grid, lambda x, t, s: Remasking(denoiser, cap=cap(t - s)).distribution(x, t, s))
        return float((end - noised(transition, DEPENDENT, grid[-1]).flatten()).abs().sum())

    falling = [error(steps, lambda h: float(2 * h)) for steps in (128, 256)]
    assert falling[0] / falling[1] == pytest.approx(2, abs=0.3), falling
    staying = [error(800, lambda h, cap=cap: cap) for cap in (0.08, 0.04)]
    assert staying[0] / staying[1] == pytest.approx(2, abs=0.4), staying
    assert error(400, lambda h: 0.08) == pytest.approx(staying[0], rel=0.2)


@pytest.mark.parametrize("process", RATIOS)
@pytest.mark.parametrize("name", [name for name in STEPS if name != "Remasking"])
def test_samplers_of_ratios_and_of_p0_have_one_limit(process, name):
    """A denoiser of ratios and one of p0 that say the same: their steps differ by an error of order one."""
    transition = PROCESSES[process]()
    oracle = exact(transition, REVERSES["Marginal"]())
    denoiser = build(process, "ratios")
    denoiser.log_ratio = lambda x, t, dtype=None: oracle.ratio(x, t).log()
    if built(name, denoiser) is None:
        pytest.skip("refused when built")
    errors = []
    for steps in (10, 20) if "ordinal" in name else (48, 96):
        grid = torch.linspace(1.0, 0.25, steps + 1, dtype=D)
        end = along(STEPS[name](denoiser), noised(transition, DEPENDENT, grid[0]).flatten(), grid)
        errors.append(float((end - noised(transition, DEPENDENT, grid[-1]).flatten()).abs().sum()))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.5), errors


@pytest.mark.parametrize(("process", "reverse"), [(p, r) for p, r in IN_TIME if r != "Product(eps)"])
def test_the_corrector_keeps_the_distribution_of_its_level(process, reverse):
    transition = PROCESSES[process]()
    denoiser, s = exact(transition, REVERSES[reverse]()), 0.4 * ONE
    rates = torch.nan_to_num(corrector(denoiser).rates(pairs(transition.states), s))
    distribution = noised(transition, DEPENDENT, s).flatten()
    assert float((distribution @ generator_of(rates, transition.states)).abs().max()) < 1e-10 * float(rates.max())


@pytest.mark.parametrize(("process", "reverse"), MASKED)
@pytest.mark.parametrize("name", ["FirstHitting", "Infilling(FirstHitting)", "Infilling(Ancestral)"])
def test_tokens_that_depend_on_each_other_are_exact(process, reverse, name):
    """First hitting draws one at a time; with one token known the other is drawn alone."""
    transition, count = PROCESSES[process](), 40_000
    half = 0.5 * ONE
    known = exact_output(transition, REVERSES[reverse](), DEPENDENT, half)  # under absorption the same at all times
    sampler = SAMPLERS[name](Timeless(transition, REVERSES[reverse](), lambda t: known))
    x = sampler(shape=(count, 2), steps=2, generator=torch.Generator().manual_seed(0))
    distribution = DEPENDENT.flatten()
    if name.startswith("Infilling"):
        distribution = (
            torch.zeros(K, K, dtype=D).index_copy(0, torch.tensor([2]), DEPENDENT[2:] / DEPENDENT[2].sum()).flatten()
        )
    found = torch.bincount(x[:, 0] * K + x[:, 1], minlength=K * K) / count
    # Where both tokens survive to t = 1 the start draws them at once: a probability of at most 4e-4 in time and 3e-2 on
    # the table.
    both = float(transition.survival(ONE)) ** 2
    assert ((found - distribution).abs() <= 5 * (distribution / count).sqrt() + both).all()


@pytest.mark.parametrize(("process", "reverse"), EXACT)
def test_a_greedy_end_is_off_by_what_is_noise(process, reverse):
    transition = PROCESSES[process]()
    denoiser, t = exact(transition, REVERSES[reverse]()), transition.grid(3)[-2]
    x = pairs(transition.states)
    start = noised(transition, DEPENDENT, t).flatten()
    greedy = SAMPLERS["Ancestral(most_likely)"](denoiser).step(x, t, 0 * t)
    end = torch.zeros(K * K, dtype=D).index_add(0, (greedy * torch.tensor([K, 1])).sum(1).clamp(max=K * K - 1), start)
    noise = 0.0
    for x0 in pairs(K):
        x_t, weight = seen(transition, t, x0)
        noise += float(DEPENDENT[x0[0], x0[1]] * weight[(x_t != x0).any(1)].sum())
    drawn = (
        (start @ joint(torch.nan_to_num(denoiser.step_distribution(x, t, 0 * t))))
        .view(transition.states, -1)[:K, :K]
        .flatten()
    )
    assert float((end - drawn).abs().sum()) / 2 <= noise + 1e-9


# ---- wrong denoisers


@pytest.mark.parametrize(("process", "reverse"), some_of(IN_TIME))
@pytest.mark.parametrize("name", ["Euler", "TauLeaping(single)", "TauLeaping(ordinal)"])
def test_wrong_denoisers_draw_one_distribution_in_the_limit(process, reverse, name):
    """Steps along the rates tend to what `Ancestral` tends to, whatever the network says: so the bound is of both."""
    transition = PROCESSES[process]()
    denoiser = wrong(transition, REVERSES[reverse]())
    if built(name, denoiser) is None:
        pytest.skip("refused when built")
    errors = []
    for steps in (10, 20) if "ordinal" in name else (60, 120):
        grid = torch.linspace(rates_end(transition), 0.25, steps + 1, dtype=D)
        start = noised(transition, DEPENDENT, grid[0]).flatten()
        ours, chain = (along(STEPS[n](denoiser), start, grid) for n in (name, "Ancestral"))
        errors.append(float((ours - chain).abs().sum()))
    # Under LogLinear Euler's step of absorption is Ancestral's.
    assert errors[1] < 1e-12 or errors[0] / errors[1] == pytest.approx(2, abs=0.5), errors


@pytest.mark.parametrize(("process", "reading"), some_of([*MODELS, *((p, "ratios") for p in RATIOS)]))
def test_samplers_draw_what_their_steps_say(process, reading):
    """The distribution of whole runs, from the sampler's own start, over three steps."""
    denoiser = build(process, reading)
    transition, count = denoiser.corruption, 20_000
    if reading == "ratios":  # mild enough for long steps to be undone
        denoiser.network.table.mul_(0.3)
        denoiser.network.wave.mul_(0.3)
    grid = own_grid(transition)
    if transition.steps is None:
        grid = grid * rates_end(transition)
    start = start_of(denoiser, grid[0])
    names = {"Unmasking": "Ancestral", **{name: name for name in STEPS}}
    tried = 0
    for name, steps in names.items():
        sampler = built(name, denoiser)
        if sampler is None or "ordinal" in name:
            continue
        distribution = along(STEPS[steps](denoiser), start, grid[:-1])
        # At the end a corrector acts before the step, or not at all.
        last = (
            before(denoiser, denoiser.step_distribution)
            if name.startswith("Corrector")
            else STEPS["Ancestral"](denoiser)
        )
        distribution = last(distribution, grid[-2], grid[-1])
        x = sampler(shape=(count, 2), steps=grid, generator=torch.Generator().manual_seed(tried))
        found = torch.bincount(x[:, 0] * transition.states + x[:, 1], minlength=transition.states**2) / count
        assert ((found - distribution).abs() < 5 * (distribution.clamp(min=0) / count).sqrt() + 1e-6).all(), name
        tried += 1
    assert tried >= 1


def test_bounds_and_samplers_take_the_same_steps():
    """As many steps, or a grid, mean the same times to a bound and to a sampler."""
    for process in PROCESSES:
        denoiser = build(process, "Product")
        sampler = Ancestral(denoiser, last=categorical)
        assert torch.equal(BOUNDS["VariationalBound(steps=3)"](denoiser).grid, sampler.times(3))
        assert torch.equal(
            BOUNDS["VariationalBound(steps=grid)"](denoiser).grid, sampler.times(own_grid(denoiser.corruption))
        )
        whole = BOUNDS["VariationalBound()"](denoiser).grid
        assert whole is None if "time" in process else torch.equal(whole, sampler.times(denoiser.corruption.steps))


def test_every_part_that_can_be_built_is_tested():
    """The names of the table are those of the tests above."""
    assert set(STEPS) | {
        "Unmasking",
        "Ancestral(most_likely)",
        "FirstHitting",
        "Infilling(Ancestral)",
        "Infilling(FirstHitting)",
    } >= {
        name
        for name in (*SAMPLERS, *CORRECTORS)
        if not name.endswith(("(Unmasking)", "(FirstHitting)")) or name.startswith("Infilling")
    }
    assert {RateCorrector, TauLeaping, ClassifierGuided}  # named in the table
