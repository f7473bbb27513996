"""Steps of kuleshov-group/remdm in float64.

Laws of the next tokens for masks that are revealed and tokens that fall back.
"""

import pytest
import torch
from helpers import Fixture, Formula, assert_close

from unnoise.discrete import Absorbing, Ancestral, Categorical, LogLinearNoise, Remasking, TopP, carried

FIXTURE = Fixture("remdm")
READS = (
    "t|x|x_drawn|p_x0_of_network|p_x0",
    r"mdlm\.t[0-9.]+\.(q|x_after)",
    r"remdm-(cap_0\.04|cap_0\.6|rescale_0\.1)\.t[0-9.]+\.q",
    r"nucleus\.remdm-cap\.q",
)
MASK, STEP, T, X = 7, 0.05, FIXTURE["t"], FIXTURE["x"]
HIDDEN = X == MASK


def denoiser(p0):
    return Categorical(
        Formula(lambda x, label: p0[..., :MASK].log()), Absorbing(MASK, LogLinearNoise(0.0)), head=carried
    )


DENOISER = denoiser(FIXTURE["p_x0_of_network"])


def close(actual, expected):
    assert_close(actual, expected, 1e-10)


@pytest.fixture(params=T.tolist())
def t(request):
    return torch.tensor(request.param, dtype=torch.float64)


def test_what_is_known_is_carried_over(t):
    close(DENOISER(X, t).exp(), FIXTURE["p_x0"])


def test_steps_without_remasking(t):
    """The peer's distribution of a mask sums to t, and what it draws for tokens is thrown away."""
    expected = FIXTURE[f"mdlm.t{t:g}.q"] / t
    tokens = torch.nn.functional.one_hot(X, MASK + 1).double()
    for distribution in (
        Remasking(DENOISER, cap=0.0).distribution(X, t, t - STEP),
        Ancestral(DENOISER).denoiser.step_distribution(X, t, t - STEP),
    ):
        close(distribution[HIDDEN], expected[HIDDEN])
        close(distribution[~HIDDEN], tokens[~HIDDEN])
    assert torch.equal(X.where(~HIDDEN, FIXTURE["x_drawn"]), FIXTURE[f"mdlm.t{t:g}.x_after"])


@pytest.mark.parametrize("cap", [0.04, 0.6])
def test_capped(t, cap):
    close(Remasking(DENOISER, cap).distribution(X, t, t - STEP), FIXTURE[f"remdm-cap_{cap}.t{t:g}.q"])


def test_rescaled(t):
    """`eta min(1, (1 - alpha_s) / alpha_t)` is the share eta of the bound with the cap eta."""
    close(Remasking(DENOISER, cap=0.1, share=0.1).distribution(X, t, t - STEP), FIXTURE[f"remdm-rescale_0.1.t{t:g}.q"])


def test_nucleus():
    """The peer keeps tokens while their sum, each its own included, is at most p.

    One fewer than the smallest set that reaches p.
    """
    p, t = 0.8, torch.tensor(0.55, dtype=torch.float64)
    chance, order = FIXTURE["p_x0_of_network"].sort(dim=-1, descending=True, stable=True)
    kept = chance.cumsum(-1) <= p
    kept[..., 0] = True
    cut = torch.zeros_like(chance).scatter(-1, order, chance * kept)
    close(
        Remasking(denoiser(cut / cut.sum(-1, keepdim=True)), 0.04).distribution(X, t, t - STEP),
        FIXTURE["nucleus.remdm-cap.q"],
    )
    ours = (TopP(DENOISER, p)(X, t) > -torch.inf).sum(-1)
    one_reaches = chance[..., 0] >= p
    assert torch.equal(ours[HIDDEN], (kept.sum(-1) + ~one_reaches)[HIDDEN])
