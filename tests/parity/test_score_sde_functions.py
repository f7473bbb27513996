"""Marginals, drifts, discretisations and steps of yang-song/score_sde_pytorch."""

import pytest
import torch
from helpers import Fixture, Formula, FromScore, Recorded, assert_close

from unnoise.continuous import Ancestral, Tabulated, large, small
from unnoise.sde import SDE, VE, VP, EulerMaruyama, Langevin, Learned, ReverseDiffusion, SubVP, batch_norms
from unnoise.shared.labels import noise_level, song_vp
from unnoise.shared.tensors import like

FIXTURE = Fixture("score_sde_functions")
X, SCORE, Z, T = (FIXTURE[k] for k in ("x", "score", "z", "t"))
N = 1000
SCHEDULES = {"vp": VP(), "subvp": SubVP(), "ve": VE()}


@pytest.fixture(params=SCHEDULES)
def name(request):
    return request.param


def close(actual, key):
    assert_close(actual, FIXTURE[key], 1e-10)


def test_marginals_and_drifts(name):
    schedule = SCHEDULES[name]
    alpha, sigma = schedule(T)
    close(like(alpha, X) * X, f"{name}.marginal_prob.mean")
    close(sigma, f"{name}.marginal_prob.std")
    f, g2 = SDE(schedule).coefficients(T)
    close(like(f, X) * X, f"{name}.sde.drift")
    close(g2.sqrt(), f"{name}.sde.diffusion")
    close(SDE(schedule).reverse_drift(X, T, SCORE), f"{name}.reverse.drift")
    close(g2.sqrt(), f"{name}.reverse.diffusion")
    close(SDE(schedule).reverse_drift(X, T, SCORE, eta=0.0), f"{name}.probability_flow.drift")


def test_euler_maruyama(name):
    rows = [i for i in range(len(T)) if T[i] > 1 / N]  # below, the peer's step of 1/N would end at t <= 0, where ours denoises

    def run(z):
        def one(i):
            sampler = EulerMaruyama(FromScore(SCORE[i : i + 1], SCHEDULES[name]))
            return sampler.step(X[i : i + 1], T[i], T[i] - 1 / N, generator=Recorded(z[i : i + 1]))

        return torch.cat([one(i) for i in rows])

    assert len(rows) == 4
    assert_close(run(torch.zeros_like(Z)), FIXTURE[f"{name}.euler_maruyama.x_mean"][rows], 1e-10)
    assert_close(run(Z), FIXTURE[f"{name}.euler_maruyama.x"][rows], 1e-10)


def chain(name):
    """The peer's discrete chain, the rows that it reads at the fixture's times, and the times t, s of the same steps here.

    Its first row steps to the clean signal, with noise; ours denoises there, so the rows above are compared.
    """
    row = (T * (N - 1)).long()
    used = torch.nonzero(row > 0).flatten()
    row = row[used].double()
    assert len(used) == 4
    if name == "vp":
        return Tabulated(FIXTURE["vp.discrete_betas"]), used, (row + 1) / N, row / N
    return VE(), used, row / (N - 1), (row - 1) / (N - 1)


@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("kind", ["reverse_diffusion", "ancestral_sampling"])
def test_discrete_predictors(name, kind):
    schedule, used, t, s = chain(name)

    def run(z):
        def one(i, t, s):
            denoiser = FromScore(SCORE[i : i + 1], schedule)
            variance = large if name == "vp" else small
            sampler = ReverseDiffusion(denoiser) if kind == "reverse_diffusion" else Ancestral(denoiser, variance)
            return sampler.step(X[i : i + 1], t, s, generator=Recorded(z[i : i + 1]))

        return torch.cat([one(*row) for row in zip(used.tolist(), t, s, strict=True)])

    assert_close(run(torch.zeros_like(Z)), FIXTURE[f"{name}.{kind}.x_mean"][used], 1e-10)
    assert_close(run(Z), FIXTURE[f"{name}.{kind}.x"][used], 1e-10)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_langevin(name):
    schedule, used, level, below = chain(name)
    above = 2 * level - below
    ratio = batch_norms(Z, SCORE)[:1]  # the peer's norms are averaged over the whole batch

    def one(i, t, s):
        score, z = SCORE[i : i + 1], Z[i : i + 1]
        corrector = Langevin(FromScore(score, schedule), snr=0.16, norms=lambda z, score: ratio)
        return corrector.step(X[i : i + 1], t, s, generator=Recorded(z))

    steps = torch.cat([one(*row) for row in zip(used.tolist(), above, level, strict=True)])
    assert_close(steps, FIXTURE[f"{name}.langevin.x"][used], 1e-10)


def test_labels_and_scores():
    for name, label in (("vp", song_vp), ("subvp", song_vp)):
        schedule = SCHEDULES[name]
        seen = []
        network = Formula(lambda x, label, seen=seen: seen.append(label) or SCORE)
        learned = Learned(network, schedule, label=label)
        assert_close(learned.score(X, T), FIXTURE[f"{name}.score_fn.continuous.score"], 1e-10)
        assert_close(seen[0].double(), FIXTURE[f"{name}.score_fn.continuous.labels"], 1e-6)  # labels are float32
    assert_close(noise_level(VE(), T), FIXTURE["ve.score_fn.continuous.labels"], 1e-10)


def test_the_loop_reads_each_row_once():
    grid = Tabulated(FIXTURE["vp.discrete_betas"]).grid(N)
    assert torch.equal((grid[:-1] * N).round().long() - 1, FIXTURE["vp.pc_index"])


def test_tables():
    schedule = Tabulated(FIXTURE["vp.discrete_betas"])
    close(schedule.alphas_cumprod, "vp.alphas_cumprod")
    _, sigma = schedule(torch.arange(1, N + 1, dtype=torch.float64) / N)
    close(sigma, "vp.sqrt_1m_alphas_cumprod")
    close(VE()(torch.linspace(1e-12, 1, N, dtype=torch.float64))[1], "ve.discrete_sigmas")


def test_prior(name):
    variance = SCHEDULES[name](torch.ones((), dtype=torch.float64))[1] ** 2
    if name != "ve":
        variance = torch.ones_like(variance)  # the peer's prior has variance one, ours that of the schedule
    log_prob = torch.distributions.Normal(0, variance.sqrt()).log_prob(X).sum(dim=(1, 2, 3))
    close(log_prob, f"{name}.prior_logp")
