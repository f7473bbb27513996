"""No setting of score_sde, EDM, ermongroup and NCSNv2 files is left out or changed in silence.

See `import_settings`.
"""

import functools
import math
import tempfile
from pathlib import Path

import pytest
import torch
from helpers import peer_state
from hypothesis import strategies as st
from import_settings import Format, Setting, answer, opened, same, setting_tests
from released_helpers import BETAS as RELEASED_BETAS
from released_helpers import edm_file, refused, song_state

from unnoise.experiments.pretrained.karras import LARGEST_TRAINED, SMALLEST_TRAINED
from unnoise.experiments.pretrained.pesser import VARIANCE
from unnoise.experiments.pretrained.pickles import Record
from unnoise.experiments.pretrained.settings import Settings

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
SAID = {name: Setting(BOOLS, says=f"{name}=") for name in ("centered", "skip_rescale")}
BY_SIGMA = {"scale_by_sigma": Setting(BOOLS, says="scale_by_sigma=")}
OF_VE = {"beta_min": (0.1,), "beta_max": (20.0,), "sde": ("vp", "subvp")}
LARGE = (0.01, 50.0, 1000)
PATHS = [f"{path}_ddpmpp_continuous/x.pth" for path in ("vp/cifar10", "subvp/cifar10", "vp/celeba")]
SONG = {
    "score_sde": Format(
        song({"continuous": True, "levels": (0.01, 50.0, 100)}),
        {"sde": Setting(st.sampled_from(["vp", "subvp"])), **BETAS, **SIZE, **SAID, "fir": Setting(BOOLS, says="fir=")},
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
            "levels": Setting(st.tuples(st.just(0.01), st.just(50.0), STEPS), asks="num_scales"),
            **BETAS,
            "centered": SAID["centered"],
        },
        more={"num_scales": (41,), "scale_by_sigma": (True,)},
    ),
    "score_sde chain without levels": Format(
        song({"sde": "vp", "continuous": False, "image_size": 8, "beta_min": 0.3, "beta_max": 5.0}),
        {"num_scales": Setting(STEPS)},
    ),
    "score_sde sub-VP without levels": Format(
        song({"sde": "subvp", "image_size": 8, "beta_min": 0.3}),
        {"beta_max": BETAS["beta_max"]},
        more={"num_scales": (100,), "continuous": (False,)},
    ),
    "score_sde VE": Format(
        song({"image_size": 8}, fourier=True, enters="residual"),
        {
            "levels": Setting(st.tuples(numbers(0.01, 0.5, 100), numbers(1, 60), st.just(20)), asks="sigmas"),
            **SAID,
            **BY_SIGMA,
        },
        more=OF_VE | {"fir": (False,), "num_scales": (21,), "continuous": (False,)},
    ),
    "score_sde VE chain": Format(
        song({"sde": "ve", "image_size": 8}),
        {"levels": Setting(st.tuples(numbers(0.01, 0.5, 100), numbers(1, 60), STEPS), asks="sigmas"), **BY_SIGMA},
        more={"beta_min": (0.1,), "num_scales": (9, 41), "continuous": (True,)},
    ),
    "score_sde DDPM": Format(
        song({"sde": "subvp", "image_size": 8, "beta_min": 0.3, "beta_max": 5.0}, ddpm=True),
        {"skip_rescale": SAID["skip_rescale"]},
        more={"fir": (True, False)},
    ),
    "score_sde released": Format(
        song({"levels": LARGE}), {"path": Setting(st.sampled_from(PATHS), asks="sde")}, more={"num_scales": (999,)}
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


def its(says=None, **strategies):
    """Pickled settings."""
    return {f"its {name}": Setting(values, asks=name, says=says and f"{name}=") for name, values in strategies.items()}


RANGE = its(says="", sigma_min=numbers(0.01, 0.1, 100), sigma_max=numbers(20, 70))
RANGE = {name: Setting(setting.values, says=f"{setting.asks}=") for name, setting in RANGE.items()}
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
        | {"its epsilon_t": Setting(st.sampled_from([1e-5, 1e-4, 1e-3]), says="epsilon_t=")},
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
        {"u": Setting(st.tuples(st.integers(5, 30), st.sampled_from([0.008, 0.02])), asks="u is missing")},
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
        {"u": Setting(st.tuples(st.integers(5, 30), st.just(0.008)), asks="precond")},
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
    "EDM released": Format(edm("edm", pickled=False), {"path": Setting(st.sampled_from(NAMES), asks="precond")}),
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
IN_RANGE = {"rescaled": Setting(BOOLS, says="rescaled=")}
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
        {"its steps": Setting(N, asks="num_diffusion_timesteps")},
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
            "levels": Setting(st.tuples(numbers(0.01, 0.5, 100), numbers(1, 60), st.integers(3, 12)), asks="sigmas"),
            "rescaled": Setting(BOOLS, says="rescaled="),
            **SIZE,
        },
        more={"logit_transform": (True,), "nonlinearity": ("relu",), "num_scales": (10,)},
    )
}
FORMATS = SONG | EDM | ERMONGROUP | NCSNV2
test_dropped, test_changed, test_more = setting_tests(FORMATS)


def test_files_under_a_released_path_that_are_others_are_asked_about():
    """A path says what a file was trained with only where nothing in the file speaks against it."""
    at = PATHS[0]
    for levels in (None, LARGE):
        (said,) = song({"levels": levels}, at)({}).assumed
        assert said.startswith("sde='vp', continuous=True, image_size=32, ")
        assert said.endswith(
            ", beta_min=0.1, beta_max=20.0, fir=False: as of the released vp/cifar10_ddpmpp_continuous, by the file's name"
        )
    refused(lambda: song({"levels": (0.01, 50.0, 999)}, at)({}), 'sde="vp", "subvp" or "ve"')
    given = {"sde": "subvp", "image_size": 8}
    refused(lambda: song({"levels": LARGE}, at)(given), "the betas of sde='subvp'", "beta_min=0.1, beta_max=20.0")
    assert song({"levels": LARGE}, at)(given | RELEASED_BETAS).assumed != ()
    refused(lambda: song(path=at, fourier=True, enters="residual")({}), "image_size=32")
    for path in ("my-edm-cifar10-32x32-cond-vp.pt", "edm-cifar10-32x32-cond-vp-tuned.pt", "baseline.pt"):
        refused(lambda p=path: edm("edm", pickled=False, path=p)({}), "how the network is preconditioned")
    refused(lambda: edm("edm", pickled=False, path=NAMES[0])({"precond": "vp"}), "give beta_d, beta_min, M as")
    refused(lambda: edm("VPPrecond", path=NAMES[0])({"its beta_d": 9.0}), "give beta_min, M as")
    (said,) = edm("edm", pickled=False, path=NAMES[0])({}).assumed
    assert said.startswith(
        "precond='edm', sigma_data=0.5, sigma_min=0.0, sigma_max=inf: as of the released edm-cifar10-32x32-cond-vp"
    )


def test_assumptions_are_said_and_flags_silence_them():
    plain = song({"sde": "vp", "continuous": True, "image_size": 8, "levels": LARGE, **RELEASED_BETAS})
    names = ["nonlinearity", "skip_rescale", "fir", "centered", "scale_by_sigma"]
    assert [sentence.partition("=")[0] for sentence in plain({}).assumed] == names
    told = {"skip_rescale": True, "fir": False, "centered": True, "scale_by_sigma": False}
    assert [sentence.partition("=")[0] for sentence in plain(told).assumed] == names[:1]
    assert same(answer(plain(told)), answer(plain({})))
    assert [s.partition("=")[0] for s in ermongroup(TRAINED)({}).assumed] == ["rescaled", VARIANCE]
    levels = {"levels": (0.01, 50.0, 232)}
    assert [s.partition("=")[0] for s in ncsnv2(levels).assumed] == [
        "image_size",
        "logit_transform",
        "rescaled",
        "nonlinearity",
    ]
    assert ncsnv2(levels).shape == (3, 32, 32)


def test_errors_of_settings():
    refused(
        lambda: Settings("a.pth", {}).ask("why", x=3, y="z"),
        "a.pth: why: give x, y as in its training, such as x=3, y='z'",
    )
    for value in (0, -1.0, True, "3", math.inf, math.nan, [1]):
        refused(
            lambda v=value: Settings("a.pth", {"x": v}).numbers("", x=3.0),
            "a.pth: x=",
            "is not a positive number: give one such as 3.0",
        )
        refused(
            lambda v=value: Settings("a.pth", {"x": v}).counts("", x=3),
            "a.pth: x=",
            "is not a number of steps: give one such as 3",
        )
    refused(
        lambda: Settings("a.pth", {"x": 1}, {"x": True}), "x=1, but the file says True: leave it out, or correct it"
    )
    assert Settings("a.pth", {"x": 2}, {}, {"x": 1, "y": 3}).get("y") is None
    assert Settings("a.pth", {"image_size": 2}, {}, {"image_size": 1, "y": 3}).get("y") == 3


def test_the_range_of_an_edm_pickle_narrows_the_papers():
    for low, high, expected in (
        (0, math.inf, (SMALLEST_TRAINED, LARGEST_TRAINED)),
        (0.001, 100.0, (0.002, 80.0)),
        (0.5, 9, (0.5, 9.0)),
    ):
        schedule = edm("EDMPrecond")({"its sigma_data": 0.5, "its sigma_min": low, "its sigma_max": high}).schedule
        assert (schedule.sigma_min, schedule.sigma_max) == expected


def renumbered(state, change):
    """A list of layers in which `change(number, rest of the name, tensor)` gives the new names and tensors, or drops
    some.
    """
    found = {}
    for name, value in state.items():
        number, _, rest = name.removeprefix("module.all_modules.").partition(".")
        found |= {f"module.all_modules.{n}.{r}": v for n, r, v in change(int(number), rest, value)}
    return found


def unconditional(number, rest, value):
    """`conditional=False` of NCSN++: no layers for the time."""
    return [(number - 2, rest, value)] if number > 1 else []


def pooled(number, rest, value):
    """`resamp_with_conv=False` of DDPM: what resizes is still in the list, but has no tensors."""
    strided = {int(n.split(".")[2]) for n in song_weights(ddpm=True) if n.endswith("Conv_0.bias")} - {
        int(n.split(".")[2]) for n in song_weights(ddpm=True) if n.endswith("Dense_0.bias")
    }
    return [] if number in strided else [(number, rest, value)]


def filtered(number, rest, value):
    """`resblock_type="ddpm"` of NCSN++ with `fir=True`: what resizes has another name."""
    return [(number, rest if pooled(number, rest, value) else rest.replace("Conv_0", "Conv2d_0"), value)]


def unfiltered(number, rest, value):
    """`progressive_input="residual"` with `fir=False`."""
    return [(number, rest.replace("Conv2d_0", "Conv_0"), value)]


def joined(number, rest, value):
    """`progressive_combine="cat"`: the block behind takes twice the channels."""
    wide = rest in ("GroupNorm_0.weight", "GroupNorm_0.bias") and number == 10
    return [(number, rest, torch.cat([value, value]) if wide else value)]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (unconditional, {}),
        (unconditional, {"enters": "residual"}),
        (pooled, {"ddpm": True}),
        (filtered, {"ddpm": True}),
        (unfiltered, {"enters": "residual"}),
        (joined, {"enters": "skip"}),
    ],
)
def test_options_of_score_sde_that_leave_a_trace_are_refused(change, kind):
    flags = {"sde": "subvp", "image_size": 8, **RELEASED_BETAS}
    state = renumbered(song_weights(**kind), change)
    assert state.keys() != song_weights(**kind).keys() or any(
        v.shape != song_weights(**kind)[k].shape for k, v in state.items()
    )
    refused(lambda: opened("score_sde", state, "x.pth", flags), "x.pth")


@pytest.mark.parametrize("option", ["resamp_with_conv", "conv_shortcut", "out_ch"])
def test_options_of_ermongroup_that_leave_a_trace_are_refused(option):
    state = dict(weights("ddim_model"))
    if option == "resamp_with_conv":
        state = {k: v for k, v in state.items() if "sample.conv" not in k}
    elif option == "conv_shortcut":
        state = {k.replace("nin_shortcut", "conv_shortcut"): v for k, v in state.items()}
    else:
        state |= {name: torch.cat([state[name]] * 2) for name in ("conv_out.weight", "conv_out.bias")}
    refused(lambda: opened("pesser / ermongroup DDPM", state, "x.ckpt", TRAINED | {"image_size": 16}), "x.ckpt")
