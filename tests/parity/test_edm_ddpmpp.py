"""DDPM++ of Karras et al. (2022), as their own network and as Song et al.'s (2021) VP baseline.

Read by our importer.
"""

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import at_sigmas, edm_file, refused

from unnoise.experiments.pretrained.files import Record
from unnoise.experiments.pretrained.karras import denoiser, looks_like
from unnoise.sde import EDM, VP
from unnoise.shared.networks.progressive import InputSkip, OutputSkip
from unnoise.shared.networks.resampling import MEAN
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize

FIXTURE = Fixture("edm_ddpmpp")
READS = (
    "x|sigma|class_labels|augment_labels",
    "F_edm|D_edm|D_edm_augmented|D_edm_no_label|D_vp",
    "state:.+",
)
STATE = peer_state("edm_ddpmpp")
EDM_FLAGS = {"precond": "edm", "sigma_data": 0.5}
X, SIGMA, LABEL, AUGMENT = FIXTURE["x"], FIXTURE["sigma"], FIXTURE["class_labels"].argmax(1), FIXTURE["augment_labels"]


@pytest.mark.parametrize("pickled", [False, True], ids=["state dict", "pickle"])
def test_denoiser(pickled, tmp_path):
    contents = (
        edm_file(tmp_path / "edm.pkl", STATE, "EDMPrecond", sigma_data=0.5, sigma_min=0, sigma_max=float("inf"))
        if pickled
        else STATE
    )
    assert looks_like(contents)
    model = denoiser(contents, "edm.pkl", **({} if pickled else EDM_FLAGS)).eval()
    assert isinstance(model.schedule, EDM)
    assert (model.quantization, model.shape, model.conditions) == (Quantization(), (3, 32, 32), ("label", "augment"))
    t = model.schedule.time(-2 * SIGMA.double().log())
    null = torch.full_like(LABEL, 10)
    with torch.no_grad():
        assert_samples_close(model.network(X, SIGMA.log() / 4, label=LABEL), FIXTURE["F_edm"])
        assert_samples_close(model(X, t, label=LABEL), FIXTURE["D_edm"])
        assert_samples_close(model(X, t, label=LABEL, augment=AUGMENT), FIXTURE["D_edm_augmented"])
        assert_samples_close(model(X, t), FIXTURE["D_edm_no_label"])
        assert_samples_close(model(X, t, label=null, augment=torch.zeros(3, 9)), FIXTURE["D_edm_no_label"])


@pytest.mark.parametrize("pickled", [False, True], ids=["state dict", "pickle"])
def test_vp_baseline(pickled, tmp_path):
    if pickled:
        model = denoiser(edm_file(tmp_path / "vp.pkl", STATE, "VPPrecond", beta_d=19.9, beta_min=0.1, M=1000), "vp.pkl")
    else:
        model = denoiser(STATE, "vp.pkl", precond="vp", beta_d=19.9, beta_min=0.1, M=1000)
    assert isinstance(model.schedule, VP)
    assert (model.schedule.beta_min, model.schedule.beta_max) == (0.1, 20.0)
    on_edm, t = at_sigmas(model, SIGMA)
    with torch.no_grad():
        assert_samples_close(on_edm(X, t, label=LABEL), FIXTURE["D_vp"])


def test_settings_of_a_pickled_preconditioner(tmp_path):
    vp = edm_file(tmp_path / "vp.pkl", STATE, "VPPrecond", beta_d=9.0, beta_min=0.5, M=1000, epsilon_t=1e-4)
    schedule = denoiser(vp, "vp.pkl").schedule
    assert (schedule.beta_min, schedule.beta_max, schedule.t_min) == (0.5, 9.5, 1e-4)
    refused(lambda: denoiser(vp, "vp.pkl", precond="edm"), "precond='edm', but the file specifies 'vp'")
    refused(lambda: denoiser(vp, "vp.pkl", beta_d=9.5), "beta_d=9.5, but the file specifies 9.0")
    refused(
        lambda: denoiser(edm_file(tmp_path / "vp.pkl", STATE, "VPPrecond", beta_d=9.0, beta_min=0.5), "vp.pkl"),
        "M=1000",
    )
    narrow = edm_file(tmp_path / "edm.pkl", STATE, "EDMPrecond", sigma_data=0.25, sigma_min=0.01, sigma_max=50)
    assert (denoiser(narrow, "edm.pkl").schedule.sigma_min, denoiser(narrow, "edm.pkl").schedule.sigma_max) == (
        0.01,
        50.0,
    )
    edm = edm_file(tmp_path / "edm.pkl", STATE, "EDMPrecond", sigma_data=0.25)
    assert denoiser(edm, "edm.pkl").sigma_data == denoiser(edm["ema"], "edm.pkl").sigma_data == 0.25
    for value in (0.0, "0.5", True, float("nan")):
        wrong = edm_file(tmp_path / "edm.pkl", STATE, "EDMPrecond", sigma_data=value)
        refused(lambda w=wrong: denoiser(w, "edm.pkl"), f"sigma_data={value!r}")
    refused(
        lambda: denoiser(edm_file(tmp_path / "edm.pkl", STATE, "EDMPrecond", sigma_data=None), "edm.pkl"),
        "such as sigma_data=0.5",
    )


def test_what_does_not_fit_is_refused(tmp_path):
    def attempt(change, *words, **flags):
        state = {k: v for k, v in (STATE | change).items() if v is not None}
        refused(lambda: denoiser(state, "file.pkl", **EDM_FLAGS | flags), "file.pkl", *words)

    for name in [n for n in STATE if not n.endswith("resample_filter")][::9]:
        attempt({name: None})
    attempt({"model.dec.8x8_in0.conv0.bias": None}, "1 tensors are missing: dec.8x8_in0.conv0.bias")
    attempt({"model.dec.8x8_in0.extra": torch.zeros(2)}, "1 tensors are unexpected: dec.8x8_in0.extra")
    attempt(
        {"model.map_label.weight": torch.zeros(16)},
        "map_label.weight is a tensor (16,) of float32, but the network's sizes are read from it",
    )
    attempt(
        {"model.map_label.bias": torch.zeros(3)},
        "map_label.weight is (16, 10) and map_label.bias is (3,), expected (11, 16)",
    )
    attempt(
        {"model.enc.16x16_down.skip.resample_filter": torch.ones(1, 1, 2, 2)},
        "filters must all be (1, 1) or all (1, 3, 3, 1)",
    )
    attempt({"model.enc.7x7_down.extra": torch.zeros(2)}, "resolutions 32, 16, 8, 7, each of which must be half")
    attempt({"model.out_conv": 3}, "1 tensors are unexpected: out_conv")
    attempt({"model.map_layer0.bias": 3}, "1 entries are not floating-point tensors: map_layer0.bias is a int")
    attempt({}, "does not determine the preconditioner", "precond='edm', 'vp', 've', 'iddpm'", precond=None)
    attempt({}, "precond='ddim'", "edm, vp, ve, iddpm", precond="ddim")
    refused(lambda: denoiser(STATE, "x", num_head_channels=0), "num_head_channels=0")
    refused(lambda: denoiser({"a": torch.zeros(1)}, "file.pkl"), "file.pkl does not contain a network of Karras et al.")
    others = [
        None,
        [],
        {},
        {"ema": 3},
        {"ema": {1: 2}},
        {"ema": Record("EDMLoss", "training.loss", {})},
        {"map_layer0.weight": 1},
    ]
    assert not any(looks_like(contents) for contents in others)


def test_decoder_and_encoder_skips_are_read():
    """No published file has them, but the reference's options do; the names are those of its code."""
    state = dict(STATE)
    for size in (16, 8):
        down = {"weight": torch.zeros(32, 3, 1, 1), "bias": torch.ones(32)}
        up = {
            "norm.weight": torch.ones(32),
            "norm.bias": torch.zeros(32),
            "conv.weight": torch.zeros(3, 32, 3, 3),
            "conv.bias": torch.ones(3),
        }
        state |= {f"model.enc.{size}x{size}_aux_skip.{k}": v for k, v in down.items()}
        state |= {f"model.enc.{size}x{size}_aux_down.resample_filter": torch.full((1, 1, 2, 2), 0.25)}
        state |= {f"model.dec.{size}x{size}_aux_{k}": v for k, v in up.items()}
        state |= {f"model.dec.{2 * size}x{2 * size}_aux_up.resample_filter": torch.full((1, 1, 2, 2), 0.25)}
    plain, model = denoiser(STATE, "x", **EDM_FLAGS), denoiser(state, "x", **EDM_FLAGS)
    assert (model.network.variant.progressive_input, model.network.variant.progressive_output) == (
        InputSkip(MEAN),
        OutputSkip(MEAN),
    )
    state |= {name: torch.zeros_like(v) for name, v in state.items() if "aux_skip" in name}
    with torch.no_grad():
        added = denoiser(state, "x", **EDM_FLAGS).network(X, SIGMA) - plain.network(
            X, SIGMA
        )  # the predictions of 8 x 8 and 16 x 16: one each
        torch.testing.assert_close(added, torch.full_like(added, 2.0))
        assert (model.network(X, SIGMA) - plain.network(X, SIGMA) - 2).abs().max() > 0.1


def test_the_importer_is_described():
    model = denoiser(STATE, "x", **EDM_FLAGS)
    again = deserialize(serialize(model))
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(X, torch.tensor(0.5)), model(X, torch.tensor(0.5)))
