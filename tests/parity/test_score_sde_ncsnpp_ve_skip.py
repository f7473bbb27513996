"""NCSN++ of 256 pixels and above of Song et al. (2021), by our importer.

The image joins and leaves at every resolution.
"""

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import assert_reads_as, meta, refused, shapes, song_file, song_state

from unnoise.experiments.pretrained.song import denoiser
from unnoise.shared.networks.presets import ncsnpp_ffhq1024, ncsnpp_lsun256
from unnoise.shared.networks.unet_variants import NCSNPP_SKIP
from unnoise.shared.tensors import like

FIXTURE = Fixture("score_sde_ncsnpp_ve_skip")
READS = (
    "x|t|sigma|score_ve",
    "state:.+",
)
STATE = peer_state("score_sde_ncsnpp_ve_skip")
SKIPS = {"fourier": True, "enters": "skip", "leaves": True}


@pytest.mark.parametrize("contents", [STATE, song_file(STATE)], ids=["state dict", "averages"])
def test_score(contents):
    model = denoiser(contents, "ve/church_ncsnpp_continuous/checkpoint_126.pth").eval()
    assert (model.schedule.sigma_min, model.schedule.sigma_max, model.network.inner.variant) == (
        0.01,
        380.0,
        NCSNPP_SKIP,
    )
    x, t, sigma = FIXTURE["x"], FIXTURE["t"].double(), FIXTURE["sigma"]
    with torch.no_grad():
        assert_samples_close(model.score(x, t), FIXTURE["score_ve"])
        assert_samples_close(model.network(x, sigma.log()) / like(sigma, x), FIXTURE["score_ve"])


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("ve/church_ncsnpp_continuous/checkpoint_512.pth", 256),
        ("ve/bedroom_ncsnpp_continuous/checkpoint_127.pth", 256),
        ("/data/64/ve/celebahq_256_ncsnpp_continuous/checkpoint_48.pth", 256),
        ("ve/ffhq_1024_ncsnpp_continuous/checkpoint_60.pth", 1024),
    ],
)
def test_size(path, size):
    assert denoiser(STATE, path).shape == (3, size, size)
    assert denoiser(STATE, path, image_size=16).shape == (3, 16, 16)
    refused(lambda: denoiser(STATE, path.replace("_ncsnpp", "_other")), "the size of the images")


def test_structure():
    assert shapes(song_state(16, (1, 2, 2), 1, (1,), **SKIPS))[2:] == shapes(STATE)[2:]
    assert_reads_as(ncsnpp_lsun256, song_state(128, (1, 1, 2, 2, 2, 2, 2), 2, (4,), **SKIPS, make=meta))
    assert_reads_as(ncsnpp_ffhq1024, song_state(16, (1, 2, 4, 8, 16, 32, 32, 32), 1, (6,), **SKIPS, make=meta))
