"""The network of openai/improved-diffusion, through the importer."""

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import refused

from unnoise.experiments.pretrained import openai
from unnoise.shared.errors import UsageError

FIXTURE = Fixture("improved_diffusion_unet")
READS = ("x|t|y",)
FLAGS = {
    "image_size": 16,
    "num_heads": 4,
    "use_new_attention_order": False,
    "noise_schedule": "cosine",
    "diffusion_steps": 4000,
    "rescale_timesteps": True,
    "predict_xstart": False,
}


def test_noise_and_variance():
    state = peer_state("improved_diffusion_unet")
    assert openai.looks_like(state)
    model = openai.denoiser(state, "model.pt", **FLAGS).eval()
    assert_samples_close(model.network(FIXTURE["x"], FIXTURE["t"]), FIXTURE["y"])


def test_rescaled_time_of_4000_steps():
    model = openai.denoiser(peer_state("improved_diffusion_unet"), "model.pt", **FLAGS).eval()
    step = torch.tensor([0, 1, 3999])
    label = model.time_input(model.schedule, (step.double() + 1) / 4000)
    torch.testing.assert_close(label, torch.tensor([0, 0.25, 999.75], dtype=torch.float64))
    _, _, out, v = model.estimate(FIXTURE["x"], (step.double() + 1) / 4000)
    assert_samples_close(torch.cat([out, v], 1), model.network(FIXTURE["x"], label.float()), 1e-6)


def test_an_error_shows_what_is_missing_and_no_more():
    some = {k: v for k, v in FLAGS.items() if k not in ("num_heads", "diffusion_steps")}
    refused(
        lambda: openai.denoiser(peer_state("improved_diffusion_unet"), "model.pt", **some),
        "do not determine num_heads (or num_head_channels), diffusion_steps, and the file name is not a published one",
        "such as num_heads=4, diffusion_steps=4000",
    )
    with pytest.raises(UsageError) as caught:
        openai.denoiser(peer_state("improved_diffusion_unet"), "model.pt", **some)
    assert str(caught.value).endswith("such as num_heads=4, diffusion_steps=4000")
