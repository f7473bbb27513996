"""Tables of the settings of score_sde, EDM, ermongroup and NCSNv2 files, for `test_import_settings` and others."""

import functools
import math
import tempfile
from pathlib import Path

import torch
from helpers import peer_state
from hypothesis import strategies as st
from import_settings import Format, Setting, opened
from pretrained_helpers import edm_file, song_state

from unnoise.experiments.pretrained.pickles import Record

weights = functools.cache(peer_state)


def numbers(low, high, of=10):
    """Numbers from `low` to `high`, in steps of `1 / of`."""
    return st.integers(round(low * of), round(high * of)).map(lambda n: n / of)


def random(size, generator=torch.Generator().manual_seed(0)):  # noqa: B008
    return torch.randn(size, generator=generator) * 0.3 + (0.8 if len(size) == 1 else 0)


def sigmas(low, high, steps):
    return torch.exp(torch.linspace(math.log(high), math.log(low), steps, dtype=torch.float64))


@functools.cache
def song_weights(**kind):
    state = song_state(32 if kind.get("ddpm") else 8, (1, 2), 1, (1,), make=random, **kind)
    return {k: v for k, v in state.items() if k != "module.sigmas"}


def song(fixed=(), path="weights.pth", **kind):
    """Loads a network of Song et al. (2021): its noise levels are the settings `levels`, (lowest, highest, N).

    All others are flags.
    """

    def load(values):
        flags = dict(fixed) | values
        levels, source = flags.pop("levels", None), flags.pop("path", path)
        state = song_weights(**kind) | ({} if levels is None else {"module.sigmas": sigmas(*levels)})
        return opened("score_sde", state, source, flags)

    return load


BOOLS, STEPS = st.booleans(), st.integers(10, 40)
BETAS = {"beta_min": Setting(numbers(0.1, 2)), "beta_max": Setting(numbers(3, 6))}
SIZE = {"image_size": Setting(st.sampled_from([8, 12, 16]))}
REQUIRED = {name: Setting(BOOLS, note=f"{name}=") for name in ("centered", "skip_rescale")}
BY_SIGMA = {"scale_by_sigma": Setting(BOOLS, note="scale_by_sigma=")}
OF_VE = {"beta_min": (0.1,), "beta_max": (20.0,), "sde": ("vp", "subvp")}
LARGE = (0.01, 50.0, 1000)
PATHS = [f"{path}_ddpmpp_continuous/x.pth" for path in ("vp/cifar10", "subvp/cifar10", "vp/celeba")]
SONG = {
    "score_sde": Format(
        song({"continuous": True, "levels": (0.01, 50.0, 100)}),
        {
            "sde": Setting(st.sampled_from(["vp", "subvp"])),
            **BETAS,
            **SIZE,
            **REQUIRED,
            "fir": Setting(BOOLS, note="fir="),
        },
        more={
            "num_scales": (99,),
            "scale_by_sigma": (True,),
            "nonlinearity": ("elu",),
            "sde": ("ve", "cld"),
            "beta_d": (19.9,),
        },
    ),
    "score_sde time": Format(
        song({"sde": "vp", "image_size": 8, "beta_min": 0.1, "beta_max": 5, "levels": LARGE}),
        {"continuous": Setting(BOOLS)},
    ),
    "score_sde chain": Format(
        song({"sde": "vp", "continuous": False, "image_size": 8}),
        {
            "levels": Setting(st.tuples(st.just(0.01), st.just(50.0), STEPS), error="num_scales"),
            **BETAS,
            "centered": REQUIRED["centered"],
        },
        more={"num_scales": (41,), "scale_by_sigma": (True,)},
    ),
    "score_sde chain without noise levels": Format(
        song({"sde": "vp", "continuous": False, "image_size": 8, "beta_min": 0.3, "beta_max": 5.0}),
        {"num_scales": Setting(STEPS)},
    ),
    "score_sde sub-VP without noise levels": Format(
        song({"sde": "subvp", "image_size": 8, "beta_min": 0.3}),
        {"beta_max": BETAS["beta_max"]},
        more={"num_scales": (100,), "continuous": (False,)},
    ),
    "score_sde VE": Format(
        song({"image_size": 8}, fourier=True, enters="residual"),
        {
            "levels": Setting(st.tuples(numbers(0.01, 0.5, 100), numbers(1, 60), st.just(20)), error="sigmas"),
            **REQUIRED,
            **BY_SIGMA,
        },
        more=OF_VE | {"fir": (False,), "num_scales": (21,), "continuous": (False,)},
    ),
    "score_sde VE chain": Format(
        song({"sde": "ve", "image_size": 8}),
        {"levels": Setting(st.tuples(numbers(0.01, 0.5, 100), numbers(1, 60), STEPS), error="sigmas"), **BY_SIGMA},
        more={"beta_min": (0.1,), "num_scales": (9, 41), "continuous": (True,)},
    ),
    "score_sde DDPM": Format(
        song({"sde": "subvp", "image_size": 8, "beta_min": 0.3, "beta_max": 5.0}, ddpm=True),
        {"skip_rescale": REQUIRED["skip_rescale"]},
        more={"fir": (True, False)},
    ),
    "score_sde published": Format(
        song({"levels": LARGE}), {"path": Setting(st.sampled_from(PATHS), error="sde")}, more={"num_scales": (999,)}
    ),
}


@functools.cache
def edm_weights(fixture, doubled):
    state = {k: v for k, v in weights(fixture).items() if "map_augment" not in k}
    if doubled:
        state |= {"model.out_conv.weight": random((6, 16, 3, 3)), "model.out_conv.bias": random((6,))}
    return state


@functools.cache
def edm_record(fixture, doubled, head_width):
    with tempfile.TemporaryDirectory() as folder:
        return edm_file(Path(folder) / "x.pkl", edm_weights(fixture, doubled), "EDMPrecond", head_width=head_width)[
            "ema"
        ]


def table(steps, c_2):
    """Karras et al. (2022), table 1, `u` with C_1 = 0.001."""
    u = [0.0]
    bar = [math.sin(math.pi / 2 * j / steps / (1 + c_2)) ** 2 for j in range(steps + 1)]
    for j in range(steps, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(bar[j - 1] / bar[j], 0.001) - 1))
    return torch.tensor(u[::-1])


def edm(precond, fixed=(), *, fixture="edm_ddpmpp", pickled=True, path="network.pkl"):
    """Loads a network of Karras et al. (2022): settings called "its ..." are pickled with it, `u` is (M, C_2), all
    others are flags.

    A preconditioner of the flags comes with what it needs.
    """
    needs = {
        "edm": {"sigma_data": 0.6},
        "ve": {"sigma_min": 0.03, "sigma_max": 60.0},
        "vp": {"beta_d": 9.0, "beta_min": 0.2, "M": 300},
    }

    def load(values):
        flags = dict(fixed) | values
        source, u, about = flags.pop("path", path), flags.pop("u", None), {}
        for name in [name for name in flags if name.startswith("its ")]:
            about[name.removeprefix("its ")] = flags.pop(name)
        flags = (needs.get(flags.get("precond"), {}) if precond is None else {}) | flags
        buffers = {} if u is None else {"u": table(*u)}
        doubled = fixture == "edm_adm" and precond == "iddpm"
        if not pickled:
            return opened("EDM", edm_weights(fixture, doubled) | buffers, source, flags)
        held = edm_record(fixture, doubled, about.pop("heads", None))
        held = Record(precond, "training.networks", {**held.state, **about, "_buffers": buffers})
        return opened("EDM", {"ema": held}, source, flags)

    return load


def its(note=None, **strategies):
    """Pickled settings."""
    return {f"its {name}": Setting(values, error=name, note=note and f"{name}=") for name, values in strategies.items()}


RANGE = its(note="", sigma_min=numbers(0.01, 0.1, 100), sigma_max=numbers(20, 70))
RANGE = {name: Setting(setting.values, note=f"{setting.error}=") for name, setting in RANGE.items()}
DATA, RISE, LOW, M = numbers(0.1, 1, 100), numbers(5, 30), numbers(0.1, 2), st.integers(10, 1000)
NOISE = {"sigma_min": Setting(numbers(0.01, 0.1, 100)), "sigma_max": Setting(numbers(20, 120))}
NAMES = ["edm-cifar10-32x32-cond-vp.pt", "baseline-cifar10-32x32-cond-vp.ema.safetensors"]
EDM = {
    "EDM edm": Format(
        edm("EDMPrecond"),
        its(sigma_data=DATA) | RANGE,
        more={
            "precond": ("vp",),
            "sigma_data": (1.5,),
            "sigma_min": (0.2,),
            "beta_d": (1.0,),
            "M": (9,),
            "num_head_channels": (8,),
        },
    ),
    "EDM vp": Format(
        edm("VPPrecond"),
        its(beta_d=RISE, beta_min=LOW, M=M)
        | {"its epsilon_t": Setting(st.sampled_from([1e-5, 1e-4, 1e-3]), note="epsilon_t=")},
        more={
            "precond": ("edm",),
            "beta_d": (40.0,),
            "beta_min": (3.0,),
            "M": (1001,),
            "sigma_data": (0.5,),
            "sigma_min": (0.02,),
        },
    ),
    "EDM ve": Format(
        edm("VEPrecond"),
        its(sigma_min=numbers(0.01, 0.1, 100), sigma_max=numbers(20, 120)),
        more={"sigma_min": (1.0,), "M": (9,)},
    ),
    "EDM iddpm": Format(
        edm("iDDPMPrecond", {"its heads": 8}, fixture="edm_adm"),
        {"u": Setting(st.tuples(st.integers(5, 30), st.sampled_from([0.008, 0.02])), error="u is missing")},
        more={"M": (4, 31), "precond": ("edm",), "its M": (4,), "num_head_channels": (4,), "beta_min": (0.1,)},
    ),
    "EDM edm state dict": Format(
        edm("edm", {"precond": "edm"}, pickled=False),
        {"sigma_data": Setting(DATA)} | {k[4:]: v for k, v in RANGE.items()},
    ),
    "EDM vp state dict": Format(
        edm("vp", {"precond": "vp"}, pickled=False),
        {"beta_d": Setting(RISE), "beta_min": Setting(LOW), "M": Setting(M)},
        more={"sigma_max": (9,)},
    ),
    "EDM ve state dict": Format(edm("ve", {"precond": "ve"}, pickled=False), NOISE, more={"sigma_data": (0.5,)}),
    "EDM iddpm state dict": Format(
        edm("iddpm", {"num_head_channels": 8}, fixture="edm_adm", pickled=False),
        {"u": Setting(st.tuples(st.integers(5, 30), st.just(0.008)), error="precond")},
        more={"precond": ("edm", "vp"), "M": (4, 31)},
    ),
    "EDM preconditioners": Format(
        edm(None, pickled=False),
        {"precond": Setting(st.sampled_from(["edm", "vp", "ve"]))},
        more={"precond": ("iddpm", "x")},
    ),
    "EDM heads": Format(
        edm("edm", {"precond": "edm", "sigma_data": 0.5}, fixture="edm_adm", pickled=False),
        {"num_head_channels": Setting(st.sampled_from([4, 8, 16]))},
    ),
    "EDM published": Format(edm("edm", pickled=False), {"path": Setting(st.sampled_from(NAMES), error="precond")}),
}


def ermongroup(fixed=(), path="model.ckpt", bayesian=False):
    """Loads a DDPM of ermongroup/ddim.

    Its `its steps` is the length of a "bayesian" model's `logvar`, all others are flags.
    """

    def load(values):
        flags = {"image_size": 16} | dict(fixed) | values
        source, steps = flags.pop("path", path), flags.pop("its steps", None)
        flags = {name: value for name, value in flags.items() if value is not None}
        return opened(
            "pesser / ermongroup DDPM",
            weights("ddim_model") | ({"logvar": torch.zeros(steps)} if steps else {}),
            source,
            flags,
        )

    return load


START, END, N = numbers(1e-4, 1e-3, 1e4), numbers(0.01, 0.03, 1000), st.integers(20, 60)
CURVES = st.sampled_from(["linear", "quad", "sigmoid", "warmup10", "warmup50"])
TRAINED = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_diffusion_timesteps": 1000}
IN_RANGE = {"rescaled": Setting(BOOLS, note="rescaled=")}
ERMONGROUP = {
    "ermongroup": Format(
        ermongroup(),
        {
            "beta_schedule": Setting(CURVES),
            "beta_start": Setting(START),
            "beta_end": Setting(END),
            "num_diffusion_timesteps": Setting(N),
        }
        | IN_RANGE,
        more={
            "beta_schedule": ("cosine", "jsd"),
            "num_diffusion_timesteps": (0, 10.5),
            "beta_end": (-1.0,),
            "M": (1000,),
        },
    ),
    "ermongroup const": Format(
        ermongroup({"beta_schedule": "const"}),
        {"beta_end": Setting(END), "num_diffusion_timesteps": Setting(N)},
        more={"beta_start": (1e-4,)},
    ),
    "ermongroup bayesian": Format(
        ermongroup({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
        {"its steps": Setting(N, error="num_diffusion_timesteps")},
        more={"num_diffusion_timesteps": (10,)},
    ),
    "ermongroup size": Format(ermongroup(TRAINED | {"image_size": None}), SIZE),
}


def ncsnv2(values):
    levels, flags = values.get("levels"), {name: value for name, value in values.items() if name != "levels"}
    state = {name: value for name, value in weights("ncsnv2").items() if name != "module.sigmas"}
    return opened(
        "NCSNv2", state | ({} if levels is None else {"module.sigmas": sigmas(*levels)}), "checkpoint.pth", flags
    )


NCSNV2 = {
    "NCSNv2": Format(
        ncsnv2,
        {
            "levels": Setting(st.tuples(numbers(0.01, 0.5, 100), numbers(1, 60), st.integers(3, 12)), error="sigmas"),
            "rescaled": Setting(BOOLS, note="rescaled="),
            **SIZE,
        },
        more={"logit_transform": (True,), "nonlinearity": ("relu",), "num_scales": (10,)},
    )
}
