"""Marginals, drifts, discretizations and steps of yang-song/score_sde_pytorch."""

import pytest
import torch
from helpers import Fixture, Formula, FromScore, Recorded, assert_close

from unnoise.continuous import Ancestral, Tabulated, large, small
from unnoise.sde import (
    SDE,
    VE,
    VP,
    AnnealedLangevin,
    EulerMaruyama,
    Langevin,
    Learned,
    NoiseLevels,
    ReverseDiffusion,
    SubVP,
    batch_norms,
    geometric_sigmas,
)
from unnoise.shared.tensors import like
from unnoise.shared.time_inputs import noise_level, reversed_index, song_vp, step_index

FIXTURE = Fixture("score_sde_functions")
READS = (
    "x|score|z|t",
    r"(vp|subvp|ve)\.(marginal_prob\.(mean|std)|sde\.(drift|diffusion)|prior_logp)",
    r"(vp|subvp|ve)\.(reverse\.(drift|diffusion)|probability_flow\.drift)",
    r"(vp|subvp|ve)\.((reverse|probability_flow)\.)?discretize\.(f|G)",
    r"(vp|subvp|ve)\.(euler_maruyama|reverse_diffusion)\.(x|x_mean)",
    r"(vp|ve)\.(ancestral_sampling|langevin|ald)\.(x|x_mean)",
    r"(vp|subvp|ve)\.score_fn\.(continuous|discrete)\.(score|labels)",
    r"(vp|ve)\.pc_index",
    r"vp\.(discrete_betas|alphas|alphas_cumprod|sqrt_1m_alphas_cumprod)",
    r"ve\.discrete_sigmas",
)
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
    # below 1/N the reference's step would end at t <= 0, where this package denoises
    rows = [i for i in range(len(T)) if T[i] > 1 / N]

    def run(z):
        def one(i):
            sampler = EulerMaruyama(FromScore(SCORE[i : i + 1], SCHEDULES[name]))
            return sampler.step(X[i : i + 1], T[i], T[i] - 1 / N, generator=Recorded(z[i : i + 1]))

        return torch.cat([one(i) for i in rows])

    assert len(rows) == 4
    assert_close(run(torch.zeros_like(Z)), FIXTURE[f"{name}.euler_maruyama.x_mean"][rows], 1e-10)
    assert_close(run(Z), FIXTURE[f"{name}.euler_maruyama.x"][rows], 1e-10)


def chain(name):
    """Returns the reference's chain, its rows at the fixture's times, and the times t, s of the same steps here.

    Its step from the first row adds noise to the clean signal; here it denoises, so only the rows above are compared.
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


def table(name):
    """Returns the chains as tables, and the times t, s of all of the reference's steps, the last one included."""
    row = (T * (N - 1)).long()
    schedule = Tabulated(FIXTURE["vp.discrete_betas"]) if name == "vp" else NoiseLevels(geometric_sigmas(0.01, 50.0, N))
    return schedule, (row + 1).double() / N, row.double() / N


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_discretizations_of_chains(name):
    """The forward step `x + f + G z` is that of the schedule, the reverse step `x - f + G z` of `ReverseDiffusion`."""
    schedule, t, s = table(name)
    forward = torch.cat(
        [schedule.diffuse(X[i : i + 1], s[i], t[i], generator=Recorded(Z[i : i + 1])) for i in range(len(T))]
    )
    noise = like(FIXTURE[f"{name}.discretize.G"], X) * Z
    assert_close(forward, X + FIXTURE[f"{name}.discretize.f"] + noise, 1e-10)
    used = torch.nonzero(s > 0).flatten()
    assert len(used) == 4
    for key, eta in (("reverse", 1.0), ("probability_flow", 0.0)):
        back = []
        for i in used.tolist():
            sampler = ReverseDiffusion(FromScore(SCORE[i : i + 1], schedule), eta)
            back.append(sampler.step(X[i : i + 1], t[i], s[i], generator=Recorded(Z[i : i + 1])))
        noise = like(FIXTURE[f"{name}.{key}.discretize.G"].expand(len(T)), X) * Z
        assert_close(torch.cat(back), (X - FIXTURE[f"{name}.{key}.discretize.f"] + noise)[used], 1e-10)


def test_discretizations_of_sub_vp_are_euler_maruyama():
    """Sub-VP has no chain in the reference: f and G are those of the SDE times 1 / N and its root."""
    sde = SDE(SCHEDULES["subvp"])
    f, g2 = sde.coefficients(T)
    close(like(f, X) * X / N, "subvp.discretize.f")
    for key in ("subvp.discretize.G", "subvp.reverse.discretize.G"):
        close((g2 / N).sqrt(), key)
    assert not FIXTURE["subvp.probability_flow.discretize.G"].any()
    for key, eta in (("reverse", 1.0), ("probability_flow", 0.0)):
        close(sde.reverse_drift(X, T, SCORE, eta) / N, f"subvp.{key}.discretize.f")
    rows = [i for i in range(len(T)) if T[i] > 1 / N]
    for z, key in ((torch.zeros_like(Z), "x_mean"), (Z, "x")):
        steps = []
        for i in rows:
            sampler = EulerMaruyama(FromScore(SCORE[i : i + 1], SCHEDULES["subvp"]))
            steps.append(sampler.step(X[i : i + 1], T[i], T[i] - 1 / N, generator=Recorded(z[i : i + 1])))
        assert_close(torch.cat(steps), FIXTURE[f"subvp.reverse_diffusion.{key}"][rows], 1e-10)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_langevin(name):
    schedule, used, there, below = chain(name)
    above = 2 * there - below
    ratio = batch_norms(Z, SCORE)[:1]  # the reference's norms are averaged over the whole batch

    def one(i, t, s, draw):
        score, z = SCORE[i : i + 1], draw[i : i + 1]
        corrector = Langevin(FromScore(score, schedule), snr=0.16, norms=lambda z, score: ratio)
        return corrector.step(X[i : i + 1], t, s, generator=Recorded(z))

    for draw, key in ((Z, "x"), (torch.zeros_like(Z), "x_mean")):
        steps = torch.cat([one(*row, draw) for row in zip(used.tolist(), above, there, strict=True)])
        assert_close(steps, FIXTURE[f"{name}.langevin.{key}"][used], 1e-10)


class Mixed(Tabulated):
    """A table with its own alphas and one sigma of another schedule."""

    def __init__(self, betas, sigma):
        super().__init__(betas)
        self.sigma = sigma

    def __call__(self, t):
        alpha, _ = super().__call__(t)
        return alpha, self.sigma.expand_as(alpha)


def annealed(i, draw, schedule, above, t):
    corrector = AnnealedLangevin(FromScore(SCORE[i : i + 1], schedule), snr=0.16, repeats=1)
    return corrector.step(X[i : i + 1], above, t, generator=Recorded(draw[i : i + 1]))


@pytest.mark.parametrize(("draw", "key"), [(Z, "x"), (torch.zeros_like(Z), "x_mean")], ids=["noise", "mean"])
def test_annealed_langevin(draw, key):
    """On VE the step is equal; on VP the reference combines sigma of the SDE with 1 - beta of its table's row."""
    ve, mixed, by_hand = [], [], []
    _, there, below = table("vp")
    for i, row in enumerate((T * (N - 1)).long()):
        ve.append(annealed(i, draw, VE(), 1.1 * T[i], T[i]))
        sigma = VP()(T[i])[1]
        mixed.append(annealed(i, draw, Mixed(FIXTURE["vp.discrete_betas"], sigma), 2 * there[i] - below[i], there[i]))
        size = 2 * FIXTURE["vp.alphas"][row] * (0.16 * sigma) ** 2
        by_hand.append(X[i : i + 1] + size * SCORE[i : i + 1] + (2 * size).sqrt() * draw[i : i + 1])
    close(torch.cat(ve), f"ve.ald.{key}")
    close(torch.cat(by_hand), f"vp.ald.{key}")
    close(torch.cat(mixed), f"vp.ald.{key}")


def test_annealed_langevin_on_the_table_alone():
    """Both are of the table here: the step size differs by 9 % at the reference's last time, 1e-3, by 1 % above 0.075.

    The fixture's first time is below that: there the reference's sigma is a tenth of that of its row.
    """
    schedule, there, below = table("vp")
    for draw, key in ((Z, "x"), (torch.zeros_like(Z), "x_mean")):
        ours = torch.cat([annealed(i, draw, schedule, 2 * there[i] - below[i], there[i]) for i in range(len(T))])
        theirs = FIXTURE[f"vp.ald.{key}"]
        within = T >= 1e-3
        assert_close(ours[within], theirs[within], 1e-2)
    ratio = ((ours - X) / (theirs - X)).flatten(1)  # of two steps without noise
    assert_close(ratio[T > 0.075], torch.ones_like(ratio[T > 0.075]), 1e-2)
    assert_close(ratio[within], torch.ones_like(ratio[within]), 0.1)


def test_time_inputs_and_scores():
    for name, time_input in (("vp", song_vp), ("subvp", song_vp)):
        schedule = SCHEDULES[name]
        seen = []
        network = Formula(lambda x, time, seen=seen: seen.append(time) or SCORE)
        learned = Learned(network, schedule, time_input=time_input)
        assert_close(learned.score(X, T), FIXTURE[f"{name}.score_fn.continuous.score"], 1e-10)
        assert_close(seen[0].double(), FIXTURE[f"{name}.score_fn.continuous.labels"], 1e-6)  # time inputs are float32
    assert_close(noise_level(VE(), T), FIXTURE["ve.score_fn.continuous.labels"], 1e-10)
    network = Formula(lambda x, time: -like(VE()(T)[1], X) * SCORE)  # the reference's network is the score
    assert_close(
        Learned(network, VE(), time_input=noise_level).score(X, T), FIXTURE["ve.score_fn.continuous.score"], 1e-10
    )


def test_time_inputs_and_scores_of_chains():
    """At the fixture's times, between rows, the reference feeds 999 t; on a row that is its index, as here."""
    schedule, t, _ = table("vp")
    seen = []
    network = Formula(lambda x, time: seen.append(time) or SCORE)
    close(Learned(network, schedule, time_input=step_index).score(X, t), "vp.score_fn.discrete.score")
    assert torch.equal(seen[0].long(), FIXTURE["vp.score_fn.discrete.labels"].long())
    close(song_vp(schedule, T), "vp.score_fn.discrete.labels")
    close(Learned(network, SCHEDULES["subvp"], time_input=song_vp).score(X, T), "subvp.score_fn.discrete.score")
    assert_close(seen[1].double(), FIXTURE["subvp.score_fn.discrete.labels"], 1e-6)
    # The reference's network of VE is the score itself, and is fed the number of sigmas above that of the nearest row.
    schedule, row = table("ve")[0], N - 1 - ((1 - T) * (N - 1)).round()
    close(reversed_index(schedule, (row + 1) / N), "ve.score_fn.discrete.labels")
    assert reversed_index(schedule, schedule.grid(N)[:-1]).tolist() == list(range(N))
    network = Formula(lambda x, time: seen.append(time) or -like(schedule((row + 1) / N)[1], X) * SCORE)
    close(Learned(network, schedule, time_input=reversed_index).score(X, (row + 1) / N), "ve.score_fn.discrete.score")
    assert torch.equal(seen[2].double(), FIXTURE["ve.score_fn.discrete.labels"])


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_the_loop_visits_each_row_once(name):
    grid = table(name)[0].grid(N)
    assert torch.equal((grid[:-1] * N).round().long() - 1, FIXTURE[f"{name}.pc_index"])


def test_tables():
    schedule = Tabulated(FIXTURE["vp.discrete_betas"])
    alpha = schedule(torch.arange(N + 1, dtype=torch.float64) / N)[0]
    close(alpha[1:] ** 2 / alpha[:-1] ** 2, "vp.alphas")
    close(schedule.alphas_cumprod, "vp.alphas_cumprod")
    _, sigma = schedule(torch.arange(1, N + 1, dtype=torch.float64) / N)
    close(sigma, "vp.sqrt_1m_alphas_cumprod")
    close(VE()(torch.linspace(1e-12, 1, N, dtype=torch.float64))[1], "ve.discrete_sigmas")


def test_prior(name):
    variance = SCHEDULES[name](torch.ones((), dtype=torch.float64))[1] ** 2
    if name != "ve":
        variance = torch.ones_like(variance)  # the reference's prior has variance one, here it is that of the schedule
    log_prob = torch.distributions.Normal(0, variance.sqrt()).log_prob(X).sum(dim=(1, 2, 3))
    close(log_prob, f"{name}.prior_logp")
