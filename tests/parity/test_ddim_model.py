"""The network of ermongroup/ddim and pesser/pytorch_diffusion, through the importer."""

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import refused

from unnoise.experiments.pretrained import pesser
from unnoise.experiments.pretrained.pesser import TRAINED

FIXTURE = Fixture("ddim_model")
READS = ("x|t|y",)
X, T, Y = (FIXTURE[k] for k in ("x", "t", "y"))


@pytest.mark.parametrize("form", ["plain", "list"])
def test_noise(form):
    state = peer_state("ddim_model")
    if form == "list":  # as training writes it: the last entry holds the averages
        raw = {f"module.{k}": torch.zeros_like(v) for k, v in state.items()}
        state = [raw, {}, 0, 0, state]
    assert pesser.looks_like(state)
    model = pesser.denoiser(state, "model.ckpt", image_size=16, **TRAINED).eval()
    assert_samples_close(model.network(X, T), Y)


def test_only_a_fifth_entry_is_the_average():
    """A list is `[model, optimizer, epoch, step, ema]`; without averages it has four entries."""
    state, zeros = peer_state("ddim_model"), {k: torch.zeros_like(v) for k, v in peer_state("ddim_model").items()}
    for contents, averaged in (
        ([state, {}, 0, zeros], False),
        ([state, zeros], False),
        ([state, {}, 0, 0, None], False),
        ([state, {}, 0, 0, {}], False),
        ([state, {}, 0, 0, 0, zeros], False),
        ([zeros, {}, 0, 0, state], True),
    ):
        assert pesser.looks_like(contents)
        model = pesser.denoiser(contents, "model.ckpt", image_size=16, **TRAINED)
        assert torch.equal(model.network.head[2].weight, state["conv_out.weight"]), averaged
    part = {k: v for k, v in state.items() if k != "conv_in.weight"}
    refused(
        lambda: pesser.denoiser([state, {}, 0, 0, part], "model.ckpt", image_size=16, **TRAINED),
        "model.ckpt: conv_in.weight is missing",
    )
    assert not any(pesser.looks_like(c) for c in ([], [state["conv_in.weight"]], None, {}, [[], {}, 0, 0, 1]))


def test_the_size_is_asked_for():
    refused(
        lambda: pesser.denoiser(peer_state("ddim_model"), "model.ckpt"),
        "model.ckpt",
        "the size of the images",
        "image_size=32",
    )
    refused(lambda: pesser.denoiser(peer_state("ddim_model"), "model.ckpt", image_size=-1), "image_size=-1")
    refused(lambda: pesser.denoiser({"a": 1}, "model.ckpt"), "model.ckpt does not contain", "a")


def test_time_is_the_step():
    model = pesser.denoiser(peer_state("ddim_model"), "model.ckpt", image_size=16, **TRAINED).eval()
    t = (T.double() + 1) / 1000
    alpha, sigma = (c.view(-1, 1, 1, 1).float() for c in model.corruption(t))
    assert_samples_close((X - alpha * model(X, t)) / sigma, Y)
