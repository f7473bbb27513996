"""Heads and wrappers of the categorical consistency matrix: whatever is put around a network leaves one model."""

import itertools

import pytest
import torch
from cells import HEADS, PROCESSES, WRAPPERS, build, own_grid, some_of
from enumerated import DEPENDENT, ONE, D, K, assert_bounds, label_of, noised, pairs, seen, true_kernel
from test_consistency import MODELS, RATIOS, close
from test_samplers import rates_end

from unnoise.shared.errors import UsageError


def assert_one_model(denoiser, label=None):
    """Draws, divergences, rates and the path's rate are those of the kernel, and the bound is of what the chain
    draws."""
    transition, h = denoiser.corruption, 1e-6
    x = pairs(transition.states)
    cond = label_of(label, len(x))
    for t, s in itertools.pairwise(own_grid(transition)):
        possible = noised(transition, DEPENDENT, t).flatten() > 1e-12
        distribution = denoiser.step_distribution(x, t, s, **cond)[possible]
        close(distribution.sum(-1), torch.ones_like(distribution[..., 0]))
        count = 4000
        many = x[possible].repeat_interleave(count, 0)
        drawn = denoiser.draw(many, t, s, generator=torch.Generator().manual_seed(0), **label_of(label, len(many)))
        found = (
            torch.nn.functional.one_hot(drawn, transition.states).double().view(-1, count, 2, transition.states).mean(1)
        )
        assert ((found - distribution).abs() < 5.5 * (distribution / count).sqrt() + 4 / count).all()
        for x0 in pairs(K)[[0, 5]]:
            x_t, _ = seen(transition, t, x0)
            rows, some = x0.expand(len(x_t), 2), label_of(label, len(x_t))
            truth = true_kernel(transition, x0, t, s)[x_t[:, 0] * transition.states + x_t[:, 1]]
            model = denoiser.step_distribution(x_t, t, s, **some)
            kl = (torch.xlogy(truth, truth) - torch.xlogy(truth, model)).sum(-1)
            close(denoiser.exact_divergence(rows, x_t, t, s, dtype=D, **some).divergence, kl, 1e-8)
            if transition.steps is None and t <= rates_end(transition):
                rate = denoiser.path_rate(rows, x_t, t, dtype=D, **some).divergence
                short = denoiser.exact_divergence(rows, x_t, t, t - h, dtype=D, **some).divergence / h
                close(rate, short, 2e-3)
        if transition.steps is None and t < 1:
            rates = transition.inflow(x, t) * torch.nan_to_num(denoiser.ratio(x, t, **cond))
            own = torch.nn.functional.one_hot(x, transition.states) == 1
            short = denoiser.step_distribution(x, t, t - h, **cond) / h
            close(rates.masked_fill(own, 0.0)[possible], short.masked_fill(own, 0.0)[possible], 1e-3)
    assert_bounds(denoiser, own_grid(transition), label)


@pytest.mark.parametrize(("process", "reverse"), some_of([(p, r) for p in PROCESSES for r in ("Product", "Marginal")]))
@pytest.mark.parametrize("head", HEADS)
def test_heads_leave_one_model(process, head, reverse):
    try:
        denoiser = build(process, reverse, head)
    except UsageError:
        assert head == "carried"
        return
    assert_one_model(denoiser)


@pytest.mark.parametrize(("process", "reading"), some_of([*MODELS, *((p, "ratios") for p in RATIOS)]))
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_leave_one_model(process, reading, wrapper):
    """What is wrapped changes kernel, rates and bound alike; a token that is ruled out costs infinitely many nats."""
    denoiser = build(process, reading)
    if reading == "ratios":
        denoiser.network.table.mul_(0.3)
        denoiser.network.wave.mul_(0.3)
    try:
        wrapped = WRAPPERS[wrapper](denoiser)
    except UsageError:
        assert reading == "ratios"
        assert wrapper != "ClassifierGuided"
        return
    assert_one_model(wrapped, torch.tensor(1) if wrapper in ("ClassifierFree", "ClassifierGuided") else None)


def test_a_token_that_is_ruled_out_costs_infinitely_many_nats():
    for process, reverse in MODELS:
        if reverse == "Product(eps)":
            continue
        wrapped = WRAPPERS["TopP"](build(process, reverse))
        costs = assert_bounds(wrapped, own_grid(wrapped.corruption))
        assert not costs.isnan().any()
        assert costs.isinf().any(), process


def test_guidance_without_a_classifier_is_the_same_under_both_readings():
    """`(1 + w) log p - w log q` of posteriors and of leave-one-out posteriors differ by x_t's evidence alone."""
    process = "Uniform, time"
    by_posterior, left_out = (
        WRAPPERS["ClassifierFree"](build(process, reverse)) for reverse in ("Marginal", "Product")
    )
    transition, t, x = by_posterior.corruption, 0.4 * ONE, pairs(K)
    evidence, plain = transition.log_evidence(x, t), by_posterior.denoiser.logits
    by_posterior.denoiser.logits = lambda x, t, **cond: plain(x, t, **cond) + evidence
    label = {"label": torch.ones(9, dtype=torch.int64)}
    close(
        by_posterior.step_distribution(x, t, 0.2 * ONE, **label), left_out.step_distribution(x, t, 0.2 * ONE, **label)
    )
