"""NCSN++ of Song et al. (2021) under VE, by our importer: the file itself tells the process."""

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import assert_reads_as, meta, refused, shapes, song_file, song_state

from unnoise.experiments.pretrained.song import denoiser, looks_like
from unnoise.sde import VE
from unnoise.shared.networks.presets import ncsnpp_cifar10
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.tensors import like

FIXTURE = Fixture("score_sde_ncsnpp_ve")
READS = (
    "x|t|sigma|score_ve",
    "state:.+",
)
STATE = peer_state("score_sde_ncsnpp_ve")


@pytest.mark.parametrize("contents", [STATE, song_file(STATE)], ids=["state dict", "averages"])
def test_score(contents):
    assert looks_like(contents)
    model = denoiser(contents, "weights.pth", image_size=32).eval()
    assert isinstance(model.schedule, VE)
    assert (model.schedule.sigma_min, model.schedule.sigma_max) == (0.01, 50.0)
    assert (model.quantization, model.shape) == (Quantization(256, 0.0, 1.0), (3, 32, 32))
    x, t, sigma = FIXTURE["x"], FIXTURE["t"].double(), FIXTURE["sigma"]
    torch.testing.assert_close(model.schedule(t)[1], sigma.double(), rtol=1e-6, atol=0)
    with torch.no_grad():
        assert_samples_close(model.score(x, t), FIXTURE["score_ve"])
        assert_samples_close(model(x, t), x + like(sigma**2, x) * FIXTURE["score_ve"])  # Tweedie's formula
        assert_samples_close(model.network(x, sigma.log()) / like(sigma, x), FIXTURE["score_ve"])


def test_flags_that_contradict_the_network_are_refused():
    for flags in ({"sde": "vp"}, {"sde": "subvp"}, {"continuous": False}, {"sde": "ve", "continuous": False}):
        refused(
            lambda f=flags: denoiser(STATE, "weights.pth", **f),
            "weights.pth",
            "Fourier features",
            *map(repr, flags.values()),
        )
    assert isinstance(denoiser(STATE, "vp/cifar10_ncsnpp/x.pth", sde="ve", continuous=True, image_size=32).schedule, VE)


def test_structure():
    assert shapes(song_state(16, (1, 2, 2, 2), 1, (1,), fourier=True, enters="residual"))[2:] == shapes(STATE)[2:]
    for deep in (False, True):
        state = song_state(128, (1, 2, 2, 2), 8 if deep else 4, (1,), fourier=True, enters="residual", make=meta)
        assert_reads_as(lambda d=deep: ncsnpp_cifar10(d), state)


def test_the_importer_is_described():
    model = denoiser(STATE, "x", image_size=32)
    again = deserialize(serialize(model))
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        x, t = FIXTURE["x"], torch.tensor(0.5)
        assert torch.equal(again.score(x, t), model.score(x, t))
