"""The network of openai/guided-diffusion, through the importer."""

import pytest
from helpers import Fixture, assert_samples_close, peer_state

from unnoise.experiments.released import openai
from unnoise.shared.errors import UsageError

FIXTURE = Fixture("guided_diffusion_unet")
FLAGS = {"image_size": 16, "num_head_channels": 16, "noise_schedule": "linear", "diffusion_steps": 1000, "rescale_timesteps": False}


@pytest.mark.parametrize(("new", "key"), [(False, "y"), (True, "y_new_attention_order")])
def test_noise_and_variance(new, key):
    model = openai.denoiser(peer_state("guided_diffusion_unet"), "model.pt", **FLAGS, use_new_attention_order=new).eval()
    out = model.network(FIXTURE["x"], FIXTURE["t"], label=FIXTURE["label"])
    assert_samples_close(out, FIXTURE[key])
    t = (FIXTURE["t"].double() + 1) / 1000
    assert_samples_close(model.raw(FIXTURE["x"], t, label=FIXTURE["label"])[1], FIXTURE[key][:, 3:])


def test_a_model_of_classes_needs_one():
    model = openai.denoiser(peer_state("guided_diffusion_unet"), "model.pt", **FLAGS, use_new_attention_order=False)
    with pytest.raises(UsageError, match="no label was given: this network has classes 0 to 9"):
        model(FIXTURE["x"], FIXTURE["t"].double() / 1000)
    with pytest.raises(UsageError, match="nothing stands for no label"):
        model.network.null("label")
