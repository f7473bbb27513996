"""No setting of score_sde, EDM, ermongroup and NCSNv2 files can be left out or changed silently (`import_settings`)."""

import math

import pytest
import torch
from import_formats import (
    EDM,
    ERMONGROUP,
    LARGE,
    NAMES,
    NCSNV2,
    PATHS,
    SONG,
    TRAINED,
    edm,
    ermongroup,
    ncsnv2,
    song,
    song_weights,
    weights,
)
from import_settings import answer, opened, same, setting_tests
from pretrained_helpers import BETAS as PUBLISHED_BETAS
from pretrained_helpers import refused

from unnoise.experiments.pretrained.karras import LARGEST_TRAINED, SMALLEST_TRAINED
from unnoise.experiments.pretrained.pesser import VARIANCE
from unnoise.experiments.pretrained.settings import Settings

FORMATS = SONG | EDM | ERMONGROUP | NCSNV2
test_dropped, test_changed, test_more = setting_tests(FORMATS)


def test_published_paths_of_other_files_are_ignored():
    """A path gives the settings of a file only where nothing in the file contradicts it."""
    at = PATHS[0]
    for levels in (None, LARGE):
        (note,) = song({"levels": levels}, at)({}).assumed
        assert note.startswith("sde='vp', continuous=True, image_size=32, ")
        assert note.endswith(
            ", beta_min=0.1, beta_max=20.0, fir=False: as in the published checkpoint vp/cifar10_ddpmpp_continuous, "
            "recognized by the file name"
        )
    refused(lambda: song({"levels": (0.01, 50.0, 999)}, at)({}), 'sde="vp", "subvp" or "ve"')
    given = {"sde": "subvp", "image_size": 8}
    refused(lambda: song({"levels": LARGE}, at)(given), "the betas of sde='subvp'", "beta_min=0.1, beta_max=20.0")
    assert song({"levels": LARGE}, at)(given | PUBLISHED_BETAS).assumed != ()
    refused(lambda: song(path=at, fourier=True, enters="residual")({}), "image_size=32")
    for path in ("my-edm-cifar10-32x32-cond-vp.pt", "edm-cifar10-32x32-cond-vp-tuned.pt", "baseline.pt"):
        refused(lambda p=path: edm("edm", pickled=False, path=p)({}), "does not determine the preconditioner")
    refused(lambda: edm("edm", pickled=False, path=NAMES[0])({"precond": "vp"}), "give beta_d, beta_min, M as")
    refused(lambda: edm("VPPrecond", path=NAMES[0])({"its beta_d": 9.0}), "give beta_min, M as")
    (note,) = edm("edm", pickled=False, path=NAMES[0])({}).assumed
    assert note.startswith(
        "precond='edm', sigma_data=0.5, sigma_min=0.0, sigma_max=inf: as in the published checkpoint "
        "edm-cifar10-32x32-cond-vp"
    )


def test_assumptions_are_reported_unless_flags_are_given():
    plain = song({"sde": "vp", "continuous": True, "image_size": 8, "levels": LARGE, **PUBLISHED_BETAS})
    names = ["nonlinearity", "skip_rescale", "fir", "centered", "scale_by_sigma"]
    assert [sentence.partition("=")[0] for sentence in plain({}).assumed] == names
    flags = {"skip_rescale": True, "fir": False, "centered": True, "scale_by_sigma": False}
    assert [sentence.partition("=")[0] for sentence in plain(flags).assumed] == names[:1]
    assert same(answer(plain(flags)), answer(plain({})))
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
        lambda: Settings("a.pth", {}).require("why", x=3, y="z"),
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
            "is not a whole number above 0: give one such as 3",
        )
    refused(
        lambda: Settings("a.pth", {"x": 1}, {"x": True}),
        "x=1, but the file specifies True: leave it out, or correct it",
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
    flags = {"sde": "subvp", "image_size": 8, **PUBLISHED_BETAS}
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
