"""NCSN++ of Karras et al. (2022), as their own network and as Song et al.'s (2021) VE baseline.

Read by our importer.
"""

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import at_sigmas, edm_file, refused

from unnoise.experiments.pretrained.karras import denoiser
from unnoise.sde import VE
from unnoise.shared.networks.unet_variants import NCSNPP
from unnoise.shared.quantization import Quantization
from unnoise.shared.tensors import like

FIXTURE = Fixture("edm_ncsnpp")
READS = (
    "x|sigma|augment_labels",
    "F_edm|D_edm|D_edm_augmented|D_ve",
    "state:.+",
)
STATE = peer_state("edm_ncsnpp")
X, SIGMA, AUGMENT = FIXTURE["x"], FIXTURE["sigma"], FIXTURE["augment_labels"]


@pytest.mark.parametrize("pickled", [False, True], ids=["state dict", "pickle"])
def test_denoiser(pickled, tmp_path):
    contents = edm_file(tmp_path / "edm.pkl", STATE, "EDMPrecond", sigma_data=0.5) if pickled else STATE
    model = denoiser(contents, "edm.pkl", **({} if pickled else {"precond": "edm", "sigma_data": 0.5})).eval()
    variant = model.network.variant
    assert (variant.time, variant.progressive_input, variant.resize) == (
        NCSNPP.time,
        NCSNPP.progressive_input,
        NCSNPP.resize,
    )
    assert (model.quantization, model.shape, model.conditions) == (Quantization(), (3, 32, 32), ("augment",))
    t = model.schedule.time(-2 * SIGMA.double().log())
    with torch.no_grad():
        assert_samples_close(model.network(X, SIGMA.log() / 4), FIXTURE["F_edm"])
        assert_samples_close(model(X, t), FIXTURE["D_edm"])
        assert_samples_close(model(X, t, augment=AUGMENT), FIXTURE["D_edm_augmented"])


@pytest.mark.parametrize("pickled", [False, True], ids=["state dict", "pickle"])
def test_ve_baseline(pickled, tmp_path):
    if pickled:
        model = denoiser(edm_file(tmp_path / "ve.pkl", STATE, "VEPrecond", sigma_min=0.02, sigma_max=100), "ve.pkl")
    else:
        model = denoiser(STATE, "ve.pkl", precond="ve", sigma_min=0.02, sigma_max=100.0)
    assert isinstance(model.schedule, VE)
    assert (model.schedule.sigma_min, model.schedule.sigma_max) == (0.02, 100.0)
    on_edm, t = at_sigmas(model, SIGMA)
    home = model.schedule.time(-2 * SIGMA.double().log())
    with torch.no_grad():
        assert_samples_close(on_edm(X, t), FIXTURE["D_ve"])
        assert_samples_close(model(X, home), FIXTURE["D_ve"])
        assert_samples_close(model.score(X, home) * like(SIGMA**2, X) + X, FIXTURE["D_ve"])


def test_what_does_not_fit_is_refused():
    freqs = "model.map_noise.freqs"
    refused(
        lambda: denoiser(STATE | {freqs: torch.zeros(3)}, "file.pkl", precond="edm"),
        "file.pkl",
        "map_noise.freqs is (3,), expected (16,)",
    )
    residual = "model.enc.8x8_aux_residual.bias"
    refused(
        lambda: denoiser({k: v for k, v in STATE.items() if k != residual}, "file.pkl", precond="edm"),
        "1 tensors are missing",
        residual[6:],
    )
