"""Names, flags and constants of score_sde, EDM, ermongroup and NCSNv2 files: contradicted, rounded or unused."""

import math

import pytest
import torch
from helpers import peer_state
from import_formats import LARGE, TRAINED, edm, edm_weights, ermongroup, song, song_weights, table
from import_settings import opened
from pretrained_helpers import BETAS, refused

from unnoise.experiments.pretrained.imported import imported
from unnoise.experiments.pretrained.pesser import settings_of

VE = {"fourier": True, "enters": "residual"}
AT = {
    name: f"{name}/x.pth"
    for name in ("vp/cifar10_ddpmpp_continuous", "subvp/cifar10_ncsnpp_continuous", "ve/cifar10_ncsnpp_continuous")
}
VP, SUBVP, OF_VE = AT.values()


def gray(**kind):
    """A network of one channel under a published path."""
    state = song_weights(**kind)
    return {name: value[:, :1] if name == "module.all_modules.2.weight" else value for name, value in state.items()}


def edm_of(path, **changed):
    """The 32 x 32 DDPM++ of ten classes under a published name, with tensors removed (None) or added."""
    state = {name: value for name, value in (edm_weights("edm_ddpmpp", False) | changed).items() if value is not None}
    return opened("EDM", state, path, {})


CONTRADICTED = {
    "channels": (lambda: opened("score_sde", gray(), VP, {}), "its images have 1 channels, not 3"),
    "strides": (lambda: song(path=SUBVP, ddpm=True)({}), "its layers are those of ddpm"),
    "no image on the way down": (lambda: song(path=SUBVP)({}), "its layers are those of ddpmpp"),
    "image on the way down": (lambda: song(path=VP, enters="residual")({}), "its layers are those of ncsnpp"),
    "VE: largest level": (
        lambda: song(path=OF_VE, **VE)({"levels": (0.01, 10.0, 1000)}),
        "its noise levels range from 10 to 0.01",
    ),
    "VE: smallest level": (
        lambda: song(path=OF_VE, **VE)({"levels": (0.02, 50.0, 1000)}),
        "its noise levels range from 50 to 0.02",
    ),
    "VE: steps": (
        lambda: song(path=OF_VE, **VE)({"levels": (0.01, 50.0, 999)}),
        "num_scales is 999, but 1000 in the published checkpoint",
    ),
    "VE: Fourier features": (
        lambda: song(path=OF_VE, enters="residual")({"levels": LARGE}),
        "it has no Fourier features",
    ),
    "EDM: pixels": (lambda: edm_of("edm-ffhq-64x64-uncond-ve.pt"), "its images are not 64 x 64"),
    "EDM: baseline's pixels": (lambda: edm_of("baseline-ffhq-64x64-uncond-ve.pt"), "its images are not 64 x 64"),
    "EDM: ADM's pixels": (lambda: edm_of("edm-imagenet-64x64-cond-adm.pt"), "its images are not 64 x 64"),
    "EDM: labels": (lambda: edm_of("edm-cifar10-32x32-uncond-vp.pt"), "it has 10 classes"),
    "EDM: no labels": (
        lambda: edm_of("edm-cifar10-32x32-cond-vp.pt", **{"model.map_label.weight": None}),
        "it has no classes",
    ),
    "EDM: kind": (
        lambda: edm_of("baseline-cifar10-32x32-cond-ve.pt"),
        "its layers are those of DDPM++, not NCSN++",
    ),
    "EDM: channels": (
        lambda: edm_of("edm-cifar10-32x32-cond-vp.pt", **{"model.enc.32x32_conv.weight": torch.zeros(16, 4, 3, 3)}),
        "its images have 4 channels, not 3",
    ),
    "ermongroup: widths": (
        lambda: ermongroup(path="bedroom.ckpt")({}),
        "multipliers are 3, 32, 1, 2, 2, but",
    ),
    "ermongroup: widths of CelebA": (
        lambda: ermongroup(path="exp/logs/celeba/ckpt.pth")({}),
        "not the published celeba/ckpt.pth",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTED)
def test_names_are_ignored_for_other_contents(case):
    load, words = CONTRADICTED[case]
    refused(load, words, "as this is not the published", "as in its training")


@pytest.mark.parametrize(
    ("path", "kind", "flags"),
    [
        (VP, {}, {"centered": False}),
        (VP, {}, {"skip_rescale": False}),
        (VP, {}, {"fir": True}),
        (VP, {}, {"beta_max": 10.0}),
        (VP, {}, {"num_scales": 10}),
        (OF_VE, VE, {"centered": True}),
        (OF_VE, VE, {"scale_by_sigma": False}),
    ],
)
def test_flags_that_contradict_a_name_set_it_aside(path, kind, flags):
    levels = {"levels": LARGE} if kind else {}
    assert song(levels, path, **kind)({}).shape == (3, 32, 32)
    ((name, value),) = flags.items()
    refused(
        lambda: song(levels, path, **kind)(flags),
        f"{name} is {value!r}, but ",
        "image_size=32",
        "" if kind else "beta_min=0.1",
    )


SIZES = {
    "ema_diffusion_cifar10_model/model-790000.ckpt": (1, 2, 2, 2),
    "cache/diffusion_lsun_cat_model/mine.ckpt": (1, 1, 2, 2, 4, 4),
    "model-790000.ckpt": (1, 2, 2, 2),
    "model-4432000.ckpt": (1, 1, 2, 2, 4, 4),
    "exp/logs/celeba/ckpt.pth": (1, 2, 2, 2, 4),
    "celeba_hq.ckpt": (1, 1, 2, 2, 4, 4),
}


@pytest.mark.parametrize("path", SIZES)
def test_paths_of_published_ddpms_determine_their_schedule(path):
    def known(path, given, sizes):
        settings = settings_of(given, {}, path, sizes)
        return {name: settings.get(name) for name in TRAINED}, settings.assumed

    own = (3, 128, 2, *SIZES[path])
    values, (note,) = known(path, {}, own)
    assert values == TRAINED
    assert note.startswith(
        "beta_schedule='linear', beta_start=0.0001, beta_end=0.02, num_diffusion_timesteps=1000: as in the publi"
    )
    for given in ({"num_diffusion_timesteps": 500}, {"rescaled": False}):
        assert known(path, given, own) == (
            dict.fromkeys(TRAINED) | {k: v for k, v in given.items() if k in TRAINED},
            (),
        )
    for sizes in ((1, *own[1:]), (3, 64, *own[2:]), (3, 128, 1, *own[3:]), (*own, 4)):
        assert known(path, {}, sizes) == (dict.fromkeys(TRAINED), ())
    for other in (f"my_{path.rpartition('/')[2]}", "logs/celeba/ckpt_5.pth", "diffusion_mine_model/model.ckpt"):
        assert known(other, {}, own) == (dict.fromkeys(TRAINED), ())


@pytest.mark.parametrize("end", ["", ".pkl", ".pkl.pt", ".ema.safetensors"])
def test_edm_names_end_in_anything(end):
    assert edm_of(f"edm-cifar10-32x32-cond-vp{end}").sigma_data == 0.5


SONG_VE, EDM_VE, NCSN = peer_state("score_sde_ncsnpp_ve"), peer_state("edm_ncsnpp"), peer_state("ncsnv2")
U = {"u": table(20, 0.008)}
CONSTANTS = {
    "score_sde frequencies": ("score_sde", SONG_VE, "module.all_modules.0.W", {"image_size": 32}),
    "score_sde levels": ("score_sde", SONG_VE, "module.sigmas", {"image_size": 32}),
    "EDM frequencies": ("EDM", EDM_VE, "model.map_noise.freqs", {"precond": "edm", "sigma_data": 0.5}),
    "EDM levels": ("EDM", edm_weights("edm_adm", True) | U, "u", {"num_head_channels": 8}),
    "NCSNv2 levels": ("NCSNv2", NCSN, "module.sigmas", {"image_size": 16}),
}


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CONSTANTS)
def test_constants_of_half_precision_are_refused(case, half):
    """Weights may be rounded, and frequencies and noise levels not, nor may they have been before."""
    form, state, name, flags = CONSTANTS[case]
    short = name.removeprefix("module.").removeprefix("model.")
    rounded = {n: v.to(half) if "weight" in n and v.ndim > 1 else v for n, v in state.items()}
    opened(form, rounded, "x.pth", flags)
    for value in (state[name].to(half), state[name].to(half).float()):
        refused(
            lambda v=value: opened(form, rounded | {name: v}, "x.pth", flags),
            f"x.pth: {short} are constants",
            "half precision",
        )


def test_settings_that_weights_do_not_contain_are_reported():
    flags = {"sde": "vp", "continuous": False, "image_size": 8, **BETAS}
    cases = [
        (song(flags | {"num_scales": 30}), "the code length uses the variance beta_t"),
        (song({"sde": "subvp", "image_size": 8, "fir": True, **BETAS}), "the filter is (1, 3, 3, 1), the fir_kernel"),
        (
            song({"image_size": 8, "levels": LARGE}, **VE),
            "sde='ve': as in all published networks with Fourier features",
        ),
        (
            edm("iDDPMPrecond", {"its heads": 8, "u": (20, 0.008)}, fixture="edm_adm"),
            "the code length uses the variance beta_t",
        ),
        (ermongroup(TRAINED), "the code length uses the variance beta_t (var_type 'fixedlarge')"),
    ]
    for load, words in cases:
        assert any(sentence.startswith(words) for sentence in load({}).assumed), words
    assert imported(ermongroup(TRAINED)({}), "x").variance.__name__ == "large"
    assert not any(
        "fir_kernel" in sentence for sentence in song({"sde": "subvp", "image_size": 8, **BETAS})({}).assumed
    )


def test_the_fifth_entry_is_the_average_and_one_without_weights_is_reported():
    flags = TRAINED | {"image_size": 16}
    for form, state, given in (
        ("pesser / ermongroup DDPM", peer_state("ddim_model"), flags),
        ("NCSNv2", NCSN, {"image_size": 16}),
    ):
        zeros = {name: value if "sigmas" in name else torch.zeros_like(value) for name, value in state.items()}
        for further in ((), (None,), ({}, 3)):
            found = opened(form, [zeros, {}, 0, 0, state, *further], "x", given)
            assert any(p.abs().sum() > 0 for p in found.parameters())
            assert not any("raw" in sentence for sentence in found.assumed)
        for empty in (None, {}, 0):
            found = opened(form, [zeros, {}, 0, 0, empty, state], "x", given)
            assert not any(p.abs().sum() > 0 for p in found.parameters())
            assert any("the raw weights are used" in sentence for sentence in found.assumed)


ADM = edm("edm", fixture="edm_adm", pickled=False)
ONE_QUESTION = [
    (song(), "give sde, continuous, image_size, beta_min, beta_max as"),
    (song({"sde": "vp"}), "give continuous, image_size, beta_min, beta_max as"),
    (song({"sde": "vp", "continuous": False}), "give image_size, beta_min, beta_max, num_scales as"),
    (song({"sde": "subvp", "beta_min": 0.2}), "give image_size, beta_max as"),
    (ADM, "give precond, num_head_channels, sigma_data as"),
    (edm("vp", {"precond": "vp"}, fixture="edm_adm", pickled=False), "give num_head_channels, beta_d, beta_min, M as"),
    (
        ermongroup({"image_size": None}),
        "give image_size, beta_schedule, beta_start, beta_end, num_diffusion_timesteps as",
    ),
    (
        ermongroup({"image_size": None, "beta_schedule": "const"}),
        "give image_size, beta_end, num_diffusion_timesteps as",
    ),
]


@pytest.mark.parametrize(("load", "words"), ONE_QUESTION)
def test_one_error_names_all_missing_settings(load, words):
    refused(lambda: load({}), words)


EDM_EDM = {"precond": "edm", "sigma_data": 0.5}
EDM_VP = {"precond": "vp", "beta_d": 9.0, "beta_min": 0.2}
STATE = {"pickled": False, "path": "x.pkl"}
CHAIN = {"beta_start": 1e-4, "beta_end": 0.02, "num_diffusion_timesteps": 50}
SENSELESS = [
    (
        edm("edm", EDM_EDM, **STATE),
        {"sigma_max": 200.0},
        "x.pkl: sigma_max=200 is outside of the sampling range 0.002 to 80",
    ),
    (edm("edm", EDM_EDM, **STATE), {"sigma_min": 1e-4}, "x.pkl: sigma_min=0.0001 is outside"),
    (
        edm("edm", EDM_EDM, **STATE),
        {"sigma_min": 100.0},
        "x.pkl: sigma_min=100 is outside of the sampling range 0.002 to 80, which it must narrow",
    ),
    (edm("EDMPrecond", path="x.pkl"), {"its sigma_data": 0.5, "its sigma_min": 100.0}, "x.pkl: sigma_min=100"),
    (edm("edm", EDM_EDM, **STATE), {"sigma_min": 50.0, "sigma_max": 40.0}, "x.pkl: sigma_min=50.0, sigma_max=40.0"),
    (
        edm("ve", {"precond": "ve"}, **STATE),
        {"sigma_min": 50.0, "sigma_max": 40.0},
        "x.pkl: sigma_min=50.0, sigma_max=40.0",
    ),
    (edm("vp", EDM_VP, **STATE), {"M": 1}, "x.pkl: M=1: the time input (M - 1) t would always be 0"),
    (edm("vp", EDM_VP, **STATE), {"M": 999.5}, "x.pkl: M=999.5 is not a whole number above 0"),
    (edm("VPPrecond", path="x.pkl"), {"its beta_d": 9.0, "its beta_min": 0.2, "its M": 1}, "x.pkl: M=1: "),
    (
        song({"sde": "vp", "continuous": True, "image_size": 8}),
        {"beta_min": 20.0, "beta_max": 0.1},
        "weights.pth: beta_min=20.0",
    ),
    (
        song({"sde": "vp", "continuous": False, "image_size": 8, "num_scales": 9}),
        {"beta_min": 20.0, "beta_max": 0.1},
        "weights.pth: steps=9",
    ),
    (song({"sde": "subvp", "image_size": 0, **BETAS}), {}, "weights.pth: image_size=0"),
    (ermongroup({"beta_schedule": "jsd", "num_diffusion_timesteps": 50}), {}, "model.ckpt: "),
    (ermongroup(CHAIN | {"beta_schedule": "linear", "beta_end": 1.5}), {}, "model.ckpt: "),
]


@pytest.mark.parametrize(("load", "flags", "words"), SENSELESS)
def test_values_without_sense_are_refused_with_the_files_name(load, flags, words):
    refused(lambda: load(flags), words)


def test_pickled_ends_beyond_the_range_of_sampling_leave_it():
    schedule = edm("EDMPrecond")({"its sigma_data": 0.5, "its sigma_min": 1e-4, "its sigma_max": 200.0}).schedule
    assert (schedule.sigma_min, schedule.sigma_max) == (0.002, 80.0)
    schedule = edm("edm", EDM_EDM, **STATE)({"sigma_min": 0, "sigma_max": math.inf}).schedule
    assert (schedule.sigma_min, schedule.sigma_max) == (0.002, 80.0)


def test_an_iddpm_network_gives_noise_and_variance():
    wide = {"model.out_conv.weight": torch.zeros(9, 16, 3, 3), "model.out_conv.bias": torch.zeros(9)}
    state = edm_weights("edm_adm", True) | U | wide
    refused(
        lambda: opened("EDM", state, "x.pkl", {"num_head_channels": 8}),
        "x.pkl: precond='iddpm', but the network has 3 output channels",
    )
