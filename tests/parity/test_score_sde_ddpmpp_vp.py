"""DDPM++ of Song et al. (2021), whose file tells the weights and not the process: read by our importer."""

import copy

import pytest
import torch
from helpers import Fixture, peer_state
from pretrained_helpers import BETAS, assert_reads_as, assert_scores, meta, refused, shapes, song_file, song_state

from unnoise.continuous import Tabulated
from unnoise.experiments.pretrained.song import denoiser, looks_like
from unnoise.sde import VP, SubVP, vp_betas
from unnoise.shared.networks.presets import ddpmpp_cifar10
from unnoise.shared.networks.unet_variants import DDPMPP
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize

FIXTURE = Fixture("score_sde_ddpmpp_vp")
READS = (
    "x|t|y",
    "score_(vp|subvp)",
    "state:.+",
)
STATE = peer_state("score_sde_ddpmpp_vp")
PATH = "{}/cifar10_ddpmpp_continuous/checkpoint_8.pth"
FILE = song_file(STATE)


@pytest.mark.parametrize("contents", [STATE, FILE], ids=["state dict", "averages"])
def test_vp_and_sub_vp(contents):
    assert looks_like(contents)
    for sde, schedule in (("vp", VP()), ("subvp", SubVP())):
        model = denoiser(contents, PATH.format(sde)).eval()
        assert isinstance(model.schedule, type(schedule))
        assert (model.quantization, model.shape) == (Quantization(), (3, 32, 32))
        with torch.no_grad():
            assert_scores(model, FIXTURE["x"], FIXTURE["t"], FIXTURE["y"], FIXTURE[f"score_{sde}"], schedule)


def test_flags_say_what_a_path_does_not():
    subvp = denoiser(STATE, "weights.pth", sde="subvp", image_size=32, **BETAS)
    assert isinstance(subvp.schedule, SubVP)
    refused(
        lambda: denoiser(STATE, PATH.format("vp"), sde="subvp", image_size=32),
        "sde='subvp'",
        "beta_min=0.1, beta_max=20.0",
    )  # another file
    assert isinstance(denoiser(STATE, "weights.pth", sde="vp", continuous=True, image_size=32, **BETAS).schedule, VP)
    by_flags = denoiser(STATE, "weights.pth", sde="vp", continuous=False, image_size=32, **BETAS)
    for chain in (by_flags, denoiser(STATE, "vp/cifar10_ddpmpp/checkpoint_1.pth")):
        assert isinstance(chain.schedule, Tabulated)
        torch.testing.assert_close(chain.schedule.betas, vp_betas(), rtol=1e-12, atol=0)
        assert float(chain.time_input(chain.schedule, torch.tensor(0.25))) == 249
    assert denoiser(STATE, "vp/celeba_ddpmpp_continuous/checkpoint_256.pth").shape == (3, 64, 64)
    assert denoiser(STATE, PATH.format("vp"), image_size=48).shape == (3, 48, 48)


def test_paths_that_only_resemble_the_released_ones_tell_nothing():
    for path in (
        "vp/mine_ddpmpp_continuous/x.pth",
        "vp/cifar10_ddpmpp_continuous_2/x.pth",
        "cifar10_ddpmpp_continuous/x.pth",
        "32/x.pth",
    ):
        refused(
            lambda p=path: denoiser(STATE, p, sde="subvp", **BETAS), path, "the size of the images", "image_size=32"
        )
        refused(lambda p=path: denoiser(STATE, p, image_size=32), path, 'sde="vp", "subvp" or "ve"')
        refused(lambda p=path: denoiser(STATE, p, sde="vp", image_size=32), path, "continuous=True or False")


def test_an_unknown_process_is_refused():
    choices = ('sde="vp", "subvp" or "ve"', "continuous=True or False")
    refused(lambda: denoiser(STATE, "weights.pth"), "weights.pth", *choices)
    refused(lambda: denoiser(STATE, "weights.pth", sde="vp"), "continuous", *choices)
    refused(lambda: denoiser(STATE, "weights.pth", sde="cld"), "'cld'", *choices)
    refused(
        lambda: denoiser(STATE, "weights.pth", sde="ve", continuous=True),
        "sde='ve' and continuous=True",
        "step indices as time inputs",
    )


def test_averages_are_those_of_the_model():
    with torch.no_grad():
        raw = denoiser(FILE | {"ema": None}, "x", sde="subvp", image_size=32, **BETAS).network(
            FIXTURE["x"][:1], torch.zeros(1)
        )
        assert (
            raw - denoiser(STATE, "x", sde="subvp", image_size=32, **BETAS).network(FIXTURE["x"][:1], torch.zeros(1))
        ).abs().max() > 0.1
    shadow = FILE["ema"]["shadow_params"]
    for change, words in (
        (shadow[:-1], ("269 averages for 270 parameters",)),
        ([*shadow, shadow[0]], ("271 averages for 270 parameters",)),
        (
            [shadow[0].T, *shadow[1:]],
            (
                "1 averages",
                "all_modules.0.weight is a tensor (64, 16) of float32, its average a tensor (16, 64)",
            ),
        ),
        (None, ("shadow_params", "a list of tensors")),
        ("weights", ("shadow_params", "a list of tensors")),
    ):
        refused(
            lambda c=change: denoiser(FILE | {"ema": {"shadow_params": c}}, PATH.format("vp")),
            PATH.format("vp"),
            *words,
        )


def test_what_does_not_fit_is_refused():
    def attempt(change, *words):
        state = copy.copy(STATE)
        for name, value in change.items():
            state.pop(name, None) if value is None else state.update({name: value})
        refused(lambda: denoiser(state, "file.pth", sde="subvp", image_size=32, **BETAS), "file.pth", *words)

    for name in [n for n in STATE if n != "module.sigmas"][2::7]:
        attempt({name: None})
    attempt({"module.all_modules.8.Conv_0.bias": None}, "1 tensors are missing: all_modules.8.Conv_0.bias")
    attempt({"module.all_modules.8.extra": torch.zeros(2)}, "1 tensors are unexpected: all_modules.8.extra")
    attempt(
        {"module.all_modules.8.Conv_1.weight": torch.zeros(2, 2)},
        "all_modules.8.Conv_1.weight is (2, 2), expected (32, 32, 3, 3)",
    )
    attempt(
        {"module.all_modules.2.weight": torch.zeros(2, 2)},
        "time embedding and a convolution, not with linear, linear, linear",
    )
    attempt(
        {"module.all_modules.8.Conv_0.bias": "text"},
        "1 entries are not floating-point tensors: all_modules.8.Conv_0.bias is a str",
    )
    attempt(
        {"module.all_modules.99.other": torch.zeros(2)},
        "1 layers are unknown or incomplete (all_modules.99 with other)",
    )
    refused(lambda: denoiser(STATE, "file.pth", sde="vp", image_size=0), "image_size=0")
    refused(
        lambda: denoiser({"a": torch.zeros(1)}, "file.pth"), "file.pth does not contain a network of Song et al.", "a"
    )
    assert not any(
        looks_like(c) for c in (None, [], {}, {"model": 3}, [STATE], {1: 2}, {"model": {"conv_in.weight": 1}})
    )


def test_the_importer_is_described():
    model = denoiser(STATE, PATH.format("subvp"))
    again = deserialize(serialize(model))
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        x, t = FIXTURE["x"], torch.tensor(0.5)
        assert torch.equal(again.score(x, t), model.score(x, t))


@pytest.mark.parametrize("multipliers", [(1,), (2, 1), (1, 1, 3)])
@pytest.mark.parametrize("attention", [(), (0,)])
def test_every_depth_is_read_from_the_list(multipliers, attention):
    for blocks in (1, 2, 3):
        network = denoiser(
            song_state(8, multipliers, blocks, attention), "x", sde="subvp", image_size=32, **BETAS
        ).network
        assert (network.width, network.multipliers, network.blocks, network.variant) == (8, multipliers, blocks, DDPMPP)
        assert network.attention == tuple(2**level for level in attention)


def test_released_sizes():
    assert shapes(song_state(16, (1, 2, 2, 2), 1, (1,))) == shapes(STATE)
    for deep in (False, True):
        assert_reads_as(
            lambda d=deep: ddpmpp_cifar10(d), song_state(128, (1, 2, 2, 2), 8 if deep else 4, (1,), make=meta)
        )
