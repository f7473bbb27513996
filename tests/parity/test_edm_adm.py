"""ADM of Karras et al. (2022), as their own network and as the baseline of Nichol & Dhariwal's (2021) chain.

Read by our importer.
"""

import math
from dataclasses import replace

import pytest
import torch
from helpers import Fixture, assert_samples_close, mean_and_variance, peer_state
from pretrained_helpers import at_sigmas, edm_file, refused

from unnoise.experiments.pretrained.karras import built, denoiser
from unnoise.experiments.pretrained.settings import Settings
from unnoise.experiments.pretrained.weights import stripped
from unnoise.shared.networks.unet_variants import EDM_ADM
from unnoise.shared.tensors import like

FIXTURE = Fixture("edm_adm")
READS = (
    "x|sigma|class_labels",
    "F_edm|D_edm|D_edm_no_label",
    "state:.+",
)
STATE = peer_state("edm_adm")
X, SIGMA, LABEL = FIXTURE["x"], FIXTURE["sigma"], FIXTURE["class_labels"].argmax(1)


@pytest.mark.parametrize("pickled", [False, True], ids=["state dict", "pickle"])
def test_denoiser(pickled, tmp_path):
    if pickled:
        model = denoiser(edm_file(tmp_path / "edm.pkl", STATE, "EDMPrecond", head_width=8, sigma_data=0.5), "edm.pkl")
    else:
        model = denoiser(STATE, "edm.pkl", precond="edm", sigma_data=0.5, num_head_channels=8)
    assert model.eval().shape == (3, 16, 16)
    assert model.network.variant.head_width == 8
    t = model.schedule.time(-2 * SIGMA.double().log())
    with torch.no_grad():
        assert_samples_close(model.network(X, SIGMA.log() / 4, label=LABEL), FIXTURE["F_edm"])
        assert_samples_close(model(X, t, label=LABEL), FIXTURE["D_edm"])
        assert_samples_close(model(X, t), FIXTURE["D_edm_no_label"])
        assert_samples_close(model(X, t, label=torch.full_like(LABEL, 10)), FIXTURE["D_edm_no_label"])


def test_heads_are_known_for_the_released_width_and_asked_for_elsewhere():
    refused(
        lambda: denoiser(STATE, "x", precond="edm"),
        "x: the weights do not determine the attention heads",
        "num_head_channels=64",
    )
    published = stripped(STATE, "model.") | {
        "map_layer0.weight": torch.zeros(64, 192)
    }  # whose columns are the network's width
    for given, expected in ((None, EDM_ADM), (32, replace(EDM_ADM, head_width=32))):
        network, _ = built(published, "x", Settings("x", {"num_head_channels": given}), None)
        assert (network.width, network.variant) == (192, expected)
    assert EDM_ADM.head_width == 64
    refused(lambda: denoiser(STATE, "x", precond="edm", num_head_channels=0), "num_head_channels=0")


def iddpm_levels():
    """u_0 > .. > u_1000 = 0 by the recursion of Karras et al.

    (2022), table 1, with C_1 = 0.001, C_2 = 0.008 and M = 1000.
    """
    u = [0.0]
    bar = [math.sin(math.pi / 2 * j / 1000 / 1.008) ** 2 for j in range(1001)]
    for j in range(1000, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(bar[j - 1] / bar[j], 0.001) - 1))
    return torch.tensor(u[::-1], dtype=torch.float64)


@pytest.mark.parametrize("pickled", [False, True], ids=["state dict", "pickle"])
def test_baseline_of_the_chain(pickled, tmp_path):
    """`D = x - u_j F(x / sqrt(1 + u_j^2), 999 - j)`, and further channels for the variance."""
    u, out, width = iddpm_levels(), "model.out_conv", 16
    torch.manual_seed(0)
    state = STATE | {f"{out}.weight": torch.randn(6, width, 3, 3), f"{out}.bias": torch.randn(6), "u": u.float()}
    if pickled:
        model = denoiser(
            edm_file(tmp_path / "a.pkl", state, "iDDPMPrecond", head_width=8, C_1=0.001, C_2=0.008, M=1000), "a.pkl"
        ).eval()
    else:
        model = denoiser(state, "a.pkl", precond="iddpm", num_head_channels=8).eval()
    index = torch.arange(1000, dtype=torch.float64)
    t = (1000 - index).double() / 1000
    alpha, sigma = model.schedule(t)
    torch.testing.assert_close(sigma / alpha, u[:-1].float().double(), rtol=1e-9, atol=0)  # the file's own
    torch.testing.assert_close(model.time_input(model.schedule, t), 999.0 - index, rtol=0, atol=1e-9)
    chosen = torch.tensor([20, 500, 999])
    on_edm, t = at_sigmas(model, u[chosen])
    torch.testing.assert_close(
        model.time_input(model.schedule, model.schedule.time(-2 * u[chosen].log())), 999.0 - index[chosen]
    )
    with torch.no_grad():
        both = model.network(X * like((1 + u[chosen] ** 2).rsqrt(), X), 999.0 - chosen, label=LABEL)
        clean, spread = mean_and_variance(on_edm, X, t, label=LABEL)
    assert_samples_close(clean, X - like(u[chosen], X) * both[:, :3])
    assert_samples_close(spread, both[:, 3:])


def test_another_table_is_refused():
    for u in (
        iddpm_levels()[:-1],
        iddpm_levels().flip(0),
        iddpm_levels()[-1:],
        iddpm_levels().clamp(max=5),
        iddpm_levels() * torch.inf,
    ):
        refused(
            lambda u=u: denoiser(STATE | {"u": u}, "file.pkl", num_head_channels=8),
            "file.pkl",
            "noise levels u must decrease",
        )
    contradicted = {"precond": "edm", "num_head_channels": 8}
    refused(
        lambda: denoiser(STATE | {"u": iddpm_levels()}, "file.pkl", **contradicted),
        "precond='edm', but the file specifies 'iddpm'",
    )
    refused(lambda: denoiser(STATE, "file.pkl", precond="iddpm", num_head_channels=8), "u is missing, the noise levels")


def test_what_does_not_fit_is_refused():
    for name in [n for n in STATE if not n.endswith("resample_filter")][::11]:
        refused(
            lambda n=name: denoiser(
                {k: v for k, v in STATE.items() if k != n},
                "file.pkl",
                precond="edm",
                sigma_data=0.5,
                num_head_channels=8,
            ),
            "file.pkl",
        )
    wrong = STATE | {"model.out_conv.weight": torch.zeros(6)}
    refused(
        lambda: denoiser(wrong, "file.pkl", precond="edm", num_head_channels=8),
        "out_conv.weight is a tensor (6,) of float32, but the network's sizes are read from it",
    )
