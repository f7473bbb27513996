"""The DDPM of Song et al. (2021) on the chain of 1000 steps, by our importer."""

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import assert_reads_as, meta, shapes, song_file, song_state

from unnoise.experiments.pretrained.song import denoiser
from unnoise.sde import VP, SubVP
from unnoise.shared.networks.presets import song_ddpm_cifar10
from unnoise.shared.networks.unet_variants import SONG_DDPM

FIXTURE = Fixture("score_sde_ddpm")
READS = (
    "x|t|y|score_vp_discrete",
    "state:.+",
)
STATE = peer_state("score_sde_ddpm")


@pytest.mark.parametrize("contents", [STATE, song_file(STATE)], ids=["state dict", "averages"])
def test_score(contents):
    model = denoiser(contents, "vp/cifar10_ddpm/checkpoint_1.pth", image_size=16).eval()
    assert (model.shape, model.network.variant) == ((3, 16, 16), SONG_DDPM)
    x, index = FIXTURE["x"], (FIXTURE["t"] * 999).round()
    t = (index.double() + 1) / 1000
    with torch.no_grad():
        assert_samples_close(model.network(x, index), FIXTURE["y"])
        assert_samples_close(model.score(x, t), FIXTURE["score_vp_discrete"])


def test_continuous_forms():
    for sde, schedule in (("vp", VP), ("subvp", SubVP)):
        model = denoiser(STATE, f"{sde}/cifar10_ddpm_continuous/checkpoint_1.pth")
        assert isinstance(model.schedule, schedule)
        assert model.shape == (3, 32, 32)
        t = torch.tensor([0.25], dtype=torch.float64)
        with torch.no_grad():
            score = -model.network(FIXTURE["x"][:1], 999 * t.float()) / float(schedule()(t)[1])
            assert_samples_close(model.score(FIXTURE["x"][:1], t), score)


def test_structure():
    assert shapes(song_state(32, (2, 2), 1, (1,), ddpm=True)) == shapes(STATE)
    assert_reads_as(song_ddpm_cifar10, song_state(128, (1, 2, 2, 2), 2, (1,), ddpm=True, make=meta))
