"""Imported files with other settings than the published ones compute the reference formulas, which are repeated here.

The networks themselves are compared with the references' numbers in `tests/parity`.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import assert_samples_close, mean_and_variance, peer_state
from pretrained_helpers import at_sigmas, edm_file, song_state

from unnoise.continuous import DDIM
from unnoise.experiments import pretrained
from unnoise.experiments.cli import main
from unnoise.experiments.pretrained import karras, ncsnv2, pesser, song
from unnoise.experiments.pretrained.exporting import Flags, bring
from unnoise.shared.networks.adapters import TimesSigma
from unnoise.shared.quantization import Quantization
from unnoise.shared.time_inputs import LastIndex

DDPMPP, VE, EDM, ADM = (
    peer_state(name) for name in ("score_sde_ddpmpp_vp", "score_sde_ncsnpp_ve", "edm_ddpmpp", "edm_adm")
)
CLASSES = 10
T = torch.tensor([0.001, 0.3, 1.0], dtype=torch.float64)
X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def rows(v):
    return torch.as_tensor(v).float().view(-1, 1, 1, 1)


def levels(low, high, steps):
    """score_sde's `get_sigmas`."""
    return torch.from_numpy(np.exp(np.linspace(np.log(high), np.log(low), steps)))


@pytest.mark.parametrize(("beta_min", "beta_max", "steps"), [(0.1, 20.0, 1000), (0.5, 9.0, 250), (1.0, 40.0, 4000)])
@torch.no_grad()
def test_continuous_vp_and_sub_vp(beta_min, beta_max, steps):
    """`score = -F(x, 999 t) / std` whatever N is; std of VP is `sqrt(1 - exp(2 log m))`, that of sub-VP its square."""
    state = DDPMPP | {"module.sigmas": levels(0.01, 50, steps)}
    log_mean = -(T**2) * (beta_max - beta_min) / 4 - T * beta_min / 2
    for sde, std in (("vp", (-torch.expm1(2 * log_mean)).sqrt()), ("subvp", -torch.expm1(2 * log_mean))):
        model = song.denoiser(
            state, "x.pth", sde=sde, continuous=True, beta_min=beta_min, beta_max=beta_max, image_size=32
        ).eval()
        expected = -model.network(X, (999 * T).float()) / rows(std)
        assert_samples_close(model.score(X, T), expected)
        alpha, _ = model.schedule(T)
        torch.testing.assert_close(alpha, log_mean.exp())
        assert model.quantization == Quantization()


@pytest.mark.parametrize("from_flag", [False, True])
@pytest.mark.parametrize(("beta_min", "beta_max", "steps"), [(0.1, 20.0, 1000), (0.5, 9.0, 250), (1.0, 40.0, 2000)])
@torch.no_grad()
def test_discrete_vp(beta_min, beta_max, steps, from_flag):
    """`score = -F(x, i) / sqrt(1 - prod_(j <= i) (1 - beta_j))`, betas `linspace(beta_min / N, beta_max / N, N)`, i
    from 0.
    """
    state = {k: v for k, v in DDPMPP.items() if k != "module.sigmas"} | (
        {} if from_flag else {"module.sigmas": levels(0.01, 50, steps)}
    )
    flags = {"sde": "vp", "continuous": False, "beta_min": beta_min, "beta_max": beta_max, "image_size": 32}
    model = song.denoiser(state, "x.pth", **flags, **({"num_scales": steps} if from_flag else {})).eval()
    index = torch.tensor([0, steps // 3, steps - 1])
    bar = np.cumprod(1 - np.linspace(beta_min / steps, beta_max / steps, steps))[index.numpy()]
    expected = -model.network(X, index.float()) / rows(np.sqrt(1 - bar))
    assert_samples_close(model.score(X, (index.double() + 1) / steps), expected)


@torch.no_grad()
def test_ranges_of_images():
    """A network of images in [0, 1] is asked at `2 x - 1`, one of images in [-1, 1] at x, under any process."""
    flags = {"image_size": 32, "beta_min": 0.5, "beta_max": 9.0}
    for centered, scale, at in (
        (True, Quantization(), X),
        (False, Quantization(256, 0.0, 1.0), 2 * X - 1),
        (None, Quantization(), X),
    ):
        model = song.denoiser(DDPMPP, "x.pth", sde="subvp", centered=centered, **flags).eval()
        bare = song.denoiser(DDPMPP, "x.pth", sde="subvp", **flags).eval().network
        std = -torch.expm1(-(T**2) * 8.5 / 2 - T * 0.5)
        assert model.quantization == scale
        assert_samples_close(model.score(X, T), -bare(at, (999 * T).float()) / rows(std))
    inner = song.denoiser(VE, "x.pth", image_size=32).eval().network.inner
    sigma = 0.01 * 5000**T
    for centered, scale, at in ((True, Quantization(), X), (False, Quantization(256, 0.0, 1.0), 2 * X - 1)):
        model = song.denoiser(VE, "x.pth", image_size=32, centered=centered).eval()
        assert model.quantization == scale
        assert_samples_close(model.score(X, T), inner(at, sigma.log().float()) / rows(sigma))


@torch.no_grad()
def test_networks_that_are_not_divided_by_sigma(tmp_path):
    """With `scale_by_sigma` false the network is the score, in continuous time, on the chain, and under another
    process.
    """
    sigma = 0.01 * 5000**T
    model = song.denoiser(VE, "x.pth", image_size=32, scale_by_sigma=False).eval()
    inner = model.network.inner
    assert_samples_close(model.score(X, T), inner(X, sigma.log().float()))
    on_edm, t = at_sigmas(model, sigma[1:])
    assert_samples_close(on_edm(X[1:], t), X[1:] + rows(sigma[1:] ** 2) * inner(X[1:], sigma[1:].log().float()))

    ladder = levels(0.05, 30, 12)
    torch.save(DDPMPP | {"module.sigmas": ladder}, tmp_path / "x.pth")
    flags = {"sde": "ve", "image_size": 32, "scale_by_sigma": False}
    model, index = pretrained.load(tmp_path / "x.pth", **flags), torch.tensor([0, 5, 11])
    assert isinstance(model.network, TimesSigma)
    expected = model.network.inner(X, index.float())
    assert_samples_close(model.score(X, (12 - index).double() / 12), expected)
    bring(str(tmp_path / "x.pth"), tmp_path / "run", Flags(**flags))
    assert_samples_close(pretrained.load(tmp_path / "run").score(X, (12 - index).double() / 12), expected)


@torch.no_grad()
def test_sums_without_rescaling():
    """`skip_rescale` false: blocks of one resolution are `x + h`.

    With their last convolutions at zero every block is its shortcut.
    """
    state = {
        k: torch.zeros_like(v) if k.endswith(("Conv_1.weight", "Conv_1.bias", "NIN_3.W", "NIN_3.b")) else v
        for k, v in DDPMPP.items()
    }
    flags = {"sde": "subvp", "image_size": 32, "beta_min": 0.1, "beta_max": 20.0}
    stems = [song.denoiser(state, "x.pth", skip_rescale=rescaled, **flags).eval().network for rescaled in (False, True)]
    h, time = torch.randn(1, 16, 32, 32), torch.zeros(1, 64)
    first = [network.down[0]["stages"][0][0](h, time) for network in stems]
    assert_samples_close(first[0], h)
    assert_samples_close(first[1], h / math.sqrt(2))
    small = song_state(32, (1, 2), 1, (1,), ddpm=True, make=torch.randn)
    for rescaled, groups, gain in ((None, 32, 1.0), (False, 32, 1.0), (True, 8, math.sqrt(0.5))):
        block = song.denoiser(small, "x.pth", skip_rescale=rescaled, **flags | {"image_size": 8}).network.down[0][
            "stages"
        ][0][0]
        assert (block.norm1.num_groups, block.norm1.eps) == (
            groups,
            1e-6,
        )  # NCSN++ has groups of four channels, DDPM 32 groups
        assert block.gain == pytest.approx(gain)


def label(sigma):
    return torch.arange(len(sigma)) % CLASSES


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("sigma_data", [0.5, 0.7, 1.3])
@torch.no_grad()
def test_edm_of_other_data(sigma_data, pickled, tmp_path):
    """`D = c_skip x + c_out F(c_in x, ln(sigma) / 4)` (Karras et al. 2022, table 1)."""
    if pickled:
        model = karras.denoiser(edm_file(tmp_path / "x.pkl", EDM, "EDMPrecond", sigma_data=sigma_data), "x.pkl")
    else:
        model = karras.denoiser(EDM, "x.pkl", precond="edm", sigma_data=sigma_data)
    sigma = torch.tensor([0.01, 0.6, 40.0], dtype=torch.float64)
    total = sigma**2 + sigma_data**2
    out = model.eval().network((rows(total.rsqrt()) * X), (sigma.log() / 4).float(), label=label(sigma))
    expected = rows(sigma_data**2 / total) * X + rows(sigma * sigma_data / total.sqrt()) * out
    assert_samples_close(model(X, model.schedule.time(-2 * sigma.log()), label=label(sigma)), expected)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(("beta_d", "beta_min", "steps"), [(19.9, 0.1, 1000), (19.9, 0.1, 100), (7.0, 0.6, 4000)])
@torch.no_grad()
def test_vp_preconditioner(beta_d, beta_min, steps, pickled, tmp_path):
    """`D = x - sigma F(x / sqrt(1 + sigma^2), (M - 1) t(sigma))`, `t = (sqrt(b^2 + 2 d ln(1 + sigma^2)) - b) / d`."""
    settings = {"beta_d": beta_d, "beta_min": beta_min, "M": steps}
    if pickled:
        model = karras.denoiser(edm_file(tmp_path / "x.pkl", EDM, "VPPrecond", **settings, epsilon_t=1e-5), "x.pkl")
    else:
        model = karras.denoiser(EDM, "x.pkl", precond="vp", **settings)
    sigma = torch.tensor([0.05, 0.6, 5.0], dtype=torch.float64)
    t = ((beta_min**2 + 2 * beta_d * torch.log1p(sigma**2)).sqrt() - beta_min) / beta_d
    out = model.eval().network(rows((1 + sigma**2).rsqrt()) * X, ((steps - 1) * t).float(), label=label(sigma))
    on_edm, times = at_sigmas(model, sigma)
    assert_samples_close(on_edm(X, times, label=label(sigma)), X - rows(sigma) * out)
    assert isinstance(model.time_input, LastIndex) == (steps != 1000)


def iddpm_levels(steps, c_1, c_2):
    """u_0 > .. > u_M = 0 of Karras et al. (2022), table 1, in float32 as the original code sums it up."""
    bar = np.sin(0.5 * np.pi * np.arange(steps + 1) / steps / (c_2 + 1)) ** 2
    u = torch.zeros(steps + 1)
    for j in range(steps, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / max(bar[j - 1] / bar[j], c_1) - 1).sqrt()
    return u


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(("steps", "c_1", "c_2"), [(250, 0.001, 0.008), (1000, 0.01, 0.02), (4000, 0.001, 0.008)])
@torch.no_grad()
def test_iddpm_preconditioner(steps, c_1, c_2, pickled, tmp_path):
    """`D = x - u_j F(x / sqrt(1 + u_j^2), M - 1 - j)` at every level of the file's own table, whatever its length."""
    u, generator = iddpm_levels(steps, c_1, c_2), torch.Generator().manual_seed(1)
    out = {"weight": torch.randn(6, 16, 3, 3, generator=generator), "bias": torch.randn(6, generator=generator)}
    state = ADM | {f"model.out_conv.{k}": v for k, v in out.items()} | {"u": u}
    if pickled:
        held = edm_file(tmp_path / "x.pkl", state, "iDDPMPrecond", head_width=8, C_1=c_1, C_2=c_2, M=steps)
        model = karras.denoiser(held, "x.pkl").eval()
    else:
        model = karras.denoiser(state, "x.pkl", num_head_channels=8).eval()
    assert model.schedule.steps == steps
    j = torch.tensor([0, 1, steps // 2, steps - 1])
    sigma, x = u[j].double(), torch.randn(4, 3, 16, 16, generator=generator)
    t = (steps - j).double() / steps
    alpha, own = model.schedule(t)
    torch.testing.assert_close(own / alpha, sigma, rtol=1e-7, atol=0)
    both = model.network(rows((1 + sigma**2).rsqrt()) * x, (steps - 1 - j).float(), label=label(j))
    on_edm, times = at_sigmas(model, sigma[2:])  # below the paper's largest level
    assert_samples_close(on_edm(x[2:], times, label=label(j)[2:]), x[2:] - rows(sigma[2:]) * both[2:, :3])
    between = torch.tensor([0.03, 0.7, 9.0, 33.0], dtype=torch.float64)
    nearest = (between[:, None] - u.double()).abs().argmin(1)
    both_between = model.network(rows((1 + between**2).rsqrt()) * x, (steps - 1 - nearest).float(), label=label(j))
    on_edm, times = at_sigmas(model, between)
    assert_samples_close(on_edm(x, times, label=label(j)), x - rows(between) * both_between[:, :3])
    clean, variance = mean_and_variance(model, rows((1 + sigma**2).rsqrt()) * x, t, label=label(j))
    assert_samples_close(clean, x - rows(sigma) * both[:, :3], 1e-3 if sigma.max() > 1e3 else 1e-4)
    assert torch.equal(variance, both[:, 3:])


def beta_schedule(name, start, end, steps):
    """Those of ermongroup/ddim and pesser/pytorch_diffusion."""
    warm = {"warmup10": 0.1, "warmup50": 0.5}
    if name in warm:
        betas = end * np.ones(steps)
        rising = int(steps * warm[name])
        betas[:rising] = np.linspace(start, end, rising)
        return betas
    return {
        "linear": lambda: np.linspace(start, end, steps),
        "quad": lambda: np.linspace(start**0.5, end**0.5, steps) ** 2,
        "const": lambda: end * np.ones(steps),
        "sigmoid": lambda: 1 / (np.exp(-np.linspace(-6, 6, steps)) + 1) * (end - start) + start,
    }[name]()


@pytest.mark.parametrize("name", ["linear", "quad", "const", "sigmoid", "warmup10", "warmup50"])
@torch.no_grad()
def test_schedules_of_ermongroup(name):
    """`x_0 = (x - sqrt(1 - abar_i) F(x, i)) / sqrt(abar_i)`: betas are not scaled by the number of steps."""
    start, end, steps = 2e-4, 0.015, 500
    flags = {"beta_schedule": name, "beta_end": end, "num_diffusion_timesteps": steps} | (
        {} if name == "const" else {"beta_start": start}
    )
    model = pesser.denoiser(peer_state("ddim_model"), "model.ckpt", image_size=16, **flags).eval()
    betas = beta_schedule(name, start, end, steps)
    torch.testing.assert_close(model.schedule.betas, torch.from_numpy(betas), rtol=1e-12, atol=0)
    index, x = torch.tensor([0, 200, 499]), torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    bar = np.cumprod(1 - betas)[index.numpy()]
    expected = (x - rows(np.sqrt(1 - bar)) * model.network(x, index.float())) / rows(np.sqrt(bar))
    assert_samples_close(model(x, (index.double() + 1) / steps), expected)


@torch.no_grad()
def test_ddim_on_500_quadratic_steps():
    """Some steps of ermongroup's sampler with eta 0, from the same noise."""
    flags = {"beta_schedule": "quad", "beta_start": 1e-4, "beta_end": 0.02, "num_diffusion_timesteps": 500}
    model = pesser.denoiser(peer_state("ddim_model"), "model.ckpt", image_size=16, **flags).eval()
    bar = np.concatenate([[1.0], np.cumprod(1 - beta_schedule("quad", 1e-4, 0.02, 500))])
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    grid = torch.tensor([451, 301, 151, 1, 0], dtype=torch.float64) / 500
    expected = x.double()
    for now, before in ((451, 301), (301, 151), (151, 1), (1, 0)):
        eps = model.network(expected.float(), torch.full((2,), now - 1.0)).double()
        clean = (expected - math.sqrt(1 - bar[now]) * eps) / math.sqrt(bar[now])
        expected = math.sqrt(bar[before]) * clean + math.sqrt(1 - bar[before]) * eps
    state = x
    for now, before in itertools.pairwise(grid):
        state = DDIM(model).step(state, now, before)
    assert_samples_close(state, expected.float(), 1e-3)


@torch.no_grad()
def test_ncsnv2_of_images_in_minus_one_to_one():
    """`score = F(x) / sigma_i` without `2 x - 1` where images are rescaled."""
    state, x, index = peer_state("ncsnv2"), torch.randn(3, 3, 16, 16), torch.tensor([0, 4, 9])
    sigma, t = state["module.sigmas"][index], (10 - index).double() / 10
    inner = ncsnv2.denoiser(state, "x.pth", image_size=16).eval().network.inner
    for rescaled, scale, at in ((True, Quantization(), x), (False, Quantization(256, 0.0, 1.0), 2 * x - 1)):
        model = ncsnv2.denoiser(state, "x.pth", image_size=16, rescaled=rescaled).eval()
        assert model.quantization == scale
        assert_samples_close(model.score(x, t), inner(at, index.float()) / rows(sigma))


def test_the_command_line_names_missing_flags_and_prints_assumptions(tmp_path, capsys):
    def unnoise(*arguments):
        status = main(["import", *map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    torch.save(DDPMPP, tmp_path / "song.pth")
    torch.save(EDM, tmp_path / "edm.pt")
    begun = (tmp_path / "song.pth", tmp_path / "song", "--sde", "subvp", "--image-size", 32)
    status, output = unnoise(*begun)
    assert status != 0
    assert "give --beta-min, --beta-max as in its training, such as --beta-min 0.1, --beta-max 20.0" in output
    status, output = unnoise(*begun, "--beta-min", 0.5, "--beta-max", 9, "--fir", "True")
    assert status == 0, output
    assert "assumed      --centered True: as in all published subvp networks, for images in [-1, 1]" in output
    assert "assumed      --fir" not in output
    status, output = unnoise(tmp_path / "edm.pt", tmp_path / "edm", "--precond", "vp", "--beta-d", 9, "--beta-min", 0.2)
    assert status != 0
    assert "such as --M 1000" in output
    status, output = unnoise(
        tmp_path / "edm.pt", tmp_path / "edm", "--precond", "vp", "--beta-d", 9, "--beta-min", 0.2, "--M", 300
    )
    assert status == 0, output
    assert "time input   LastIndex(last=299.0)" in output
    assert "assumed      epsilon_t=1e-05: the smallest time of training, as published" in output
    assert pretrained.load(tmp_path / "edm").time_input == LastIndex(299.0)
