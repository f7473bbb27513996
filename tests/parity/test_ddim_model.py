"""The network of ermongroup/ddim and pesser/pytorch_diffusion, through the importer."""

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state

from unnoise.experiments.released import pesser

FIXTURE = Fixture("ddim_model")
X, T, Y = (FIXTURE[k] for k in "xty")


@pytest.mark.parametrize("form", ["plain", "list"])
def test_noise(form):
    state = peer_state("ddim_model")
    if form == "list":  # as training writes it: the last entry holds the averages
        raw = {f"module.{k}": torch.zeros_like(v) for k, v in state.items()}
        state = [raw, {}, 0, 0, state]
    assert pesser.looks_like(state)
    model = pesser.denoiser(state, "model.ckpt", image_size=16).eval()
    assert_samples_close(model.network(X, T), Y)


def test_time_is_the_step():
    model = pesser.denoiser(peer_state("ddim_model"), "model.ckpt", image_size=16).eval()
    t = (T.double() + 1) / 1000
    alpha, sigma = (c.view(-1, 1, 1, 1).float() for c in model.corruption(t))
    assert_samples_close((X - alpha * model(X, t)) / sigma, Y)
