"""NCSN++ of Song et al. (2021) under VP and sub-VP, and as a network of discrete VE, by our importer."""

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import BETAS, assert_reads_as, assert_scores, meta, refused, shapes, song_file, song_state

from unnoise.experiments.pretrained.song import denoiser
from unnoise.sde import VP, SubVP
from unnoise.shared.networks.presets import ncsnpp_cifar10
from unnoise.shared.quantization import Quantization
from unnoise.shared.tensors import like

FIXTURE = Fixture("score_sde_ncsnpp_vp")
READS = (
    "x|t|y",
    "score_(vp|subvp)",
    "state:.+",
)
STATE = peer_state("score_sde_ncsnpp_vp")


@pytest.mark.parametrize("contents", [STATE, song_file(STATE)], ids=["state dict", "averages"])
def test_vp_and_sub_vp(contents):
    for sde, schedule in (("vp", VP()), ("subvp", SubVP())):
        model = denoiser(contents, f"{sde}/cifar10_ncsnpp_continuous/checkpoint_1.pth").eval()
        with torch.no_grad():
            assert_scores(model, FIXTURE["x"], FIXTURE["t"], FIXTURE["y"], FIXTURE[f"score_{sde}"], schedule)


def test_discrete_ve():
    """`score = F(2 x - 1, i) / sigmas[i]`, i = 0 the largest sigma.

    Song et al.'s (2021) networks of discrete VE have steps for times.
    """
    model = denoiser(STATE, "ve/cifar10_ncsnpp/checkpoint_1.pth").eval()
    assert (model.quantization, model.shape, model.schedule.steps) == (Quantization(256, 0.0, 1.0), (3, 32, 32), 1000)
    index, x, network = (
        torch.tensor([0, 400, 999]),
        FIXTURE["x"],
        denoiser(STATE, "x", sde="subvp", image_size=32, **BETAS).network,
    )
    sigma = STATE["module.sigmas"][index]
    assert sigma[0] == STATE["module.sigmas"].max()
    with torch.no_grad():
        expected = network(2 * x - 1, index.float()) / like(sigma, x)
        assert_samples_close(model.score(x, (1000 - index).double() / 1000), expected.float())
    refused(
        lambda: denoiser({k: v for k, v in STATE.items() if k != "module.sigmas"}, "a.pth", sde="ve", image_size=32),
        "a.pth",
        "sigmas is missing",
    )
    refused(
        lambda: denoiser(STATE | {"module.sigmas": STATE["module.sigmas"].flip(0)}, "a.pth", sde="ve", image_size=32),
        "must decrease",
    )


def test_structure():
    arguments = (128, (1, 2, 2, 2), 4, (1,))
    assert shapes(song_state(16, (1, 2, 2, 2), 1, (1,), enters="residual")) == shapes(STATE)
    assert_reads_as(lambda: ncsnpp_cifar10(fourier=False), song_state(*arguments, enters="residual", make=meta))
    refused(
        lambda: denoiser(STATE, "x", sde="subvp", fir=False, image_size=32, **BETAS),
        "fir=False, but the file specifies True",
    )
