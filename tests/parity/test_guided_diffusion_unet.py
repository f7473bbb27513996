"""The network of openai/guided-diffusion, through the importer."""

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import refused

from unnoise.experiments.pretrained import openai, openai_flags
from unnoise.shared.errors import UsageError

FIXTURE = Fixture("guided_diffusion_unet")
READS = (
    "x|t|label",
    "y|y_new_attention_order",
)
FLAGS = {
    "image_size": 16,
    "num_head_channels": 16,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
    "rescale_timesteps": False,
    "predict_xstart": False,
}


@pytest.mark.parametrize(("new", "key"), [(False, "y"), (True, "y_new_attention_order")])
def test_noise_and_variance(new, key):
    model = openai.denoiser(
        peer_state("guided_diffusion_unet"), "model.pt", **FLAGS, use_new_attention_order=new
    ).eval()
    out = model.network(FIXTURE["x"], FIXTURE["t"], label=FIXTURE["label"])
    assert_samples_close(out, FIXTURE[key])
    t = (FIXTURE["t"].double() + 1) / 1000
    assert_samples_close(model.estimate(FIXTURE["x"], t, label=FIXTURE["label"]).variance_output, FIXTURE[key][:, 3:])


def test_a_model_of_classes_needs_one():
    model = openai.denoiser(peer_state("guided_diffusion_unet"), "model.pt", **FLAGS, use_new_attention_order=False)
    with pytest.raises(UsageError, match="no label was given: this network needs a class from 0 to 9"):
        model(FIXTURE["x"], FIXTURE["t"].double() / 1000)
    with pytest.raises(UsageError, match="no value for an absent label"):
        model.network.null("label")


def test_heads_that_no_network_has_are_refused():
    state = peer_state("guided_diffusion_unet")
    given = FLAGS | {"use_new_attention_order": False}

    def load(**changes):
        return lambda: openai.denoiser(state, "model.pt", **given | changes)

    refused(load(num_heads=4), "num_heads=4 and num_head_channels=16: give the one")
    refused(load(num_head_channels=24), "model.pt: num_head_channels=24 does not divide the ", " channels of a layer")
    refused(load(num_head_channels=1000), "num_head_channels=1000 does not divide")
    refused(load(num_head_channels=None, num_heads=3), "num_heads=3 does not divide")


@pytest.mark.parametrize(
    ("flag", "value", "remedy"),
    [
        ("image_size", 0, "a whole number of at least 1, such as 64"),
        ("image_size", -16, "a whole number of at least 1"),
        ("image_size", 16.0, "a whole number"),
        ("diffusion_steps", "1000", "a whole number"),
        ("diffusion_steps", 0, "a whole number"),
        ("num_head_channels", True, "a whole number"),
        ("use_new_attention_order", "False", "True or False"),
        ("rescale_timesteps", 0, "True or False"),
        ("predict_xstart", "x", "True or False"),
        ("learn_sigma", 1, "True or False"),
        ("noise_schedule", 1, "one of linear, cosine"),
        ("noise_schedule", ["linear"], "one of linear, cosine"),
    ],
)
def test_values_of_another_type_are_refused(flag, value, remedy):
    given = FLAGS | {"use_new_attention_order": False, flag: value}
    refused(
        lambda: openai.denoiser(peer_state("guided_diffusion_unet"), "model.pt", **given),
        f"{flag}={value!r}: give {remedy}",
    )


@pytest.mark.parametrize(
    "name",
    [
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.1.0.out_layers.3.bias",
        "input_blocks.1.0.emb_layers.1.bias",
        "label_emb.weight",
        "out.2.bias",
    ],
)
def test_sizes_are_read_from_tensors_alone(name):
    state = peer_state("guided_diffusion_unet")
    for value in ("text", torch.zeros(()), torch.zeros(0), torch.zeros(1, 2, 3, 4, 5)):
        damaged = state | {name: value}
        refused(lambda s=damaged: openai.denoiser(s, "model.pt", **FLAGS, use_new_attention_order=False), "model.pt")
    if name != "label_emb.weight":  # without which it is a network without classes
        state.pop(name)
        refused(lambda: openai.denoiser(state, "model.pt", **FLAGS, use_new_attention_order=False), "model.pt")


COMMAND_LINES = {
    # image_size, num_heads, num_head_channels, use_new_attention_order, noise_schedule, diffusion_steps,
    # rescale_timesteps; predict_xstart is False in all, and learn_sigma True but for classifiers
    "cifar10_uncond_50M_500K": (32, 4, None, False, "cosine", 4000, True),
    "cifar10_uncond_vlb_50M_500K": (32, 4, None, False, "cosine", 4000, True),
    "imagenet64_uncond_100M_1500K": (64, 4, None, False, "cosine", 4000, True),
    "imagenet64_uncond_vlb_100M_1500K": (64, 4, None, False, "cosine", 4000, True),
    "imagenet64_cond_270M_250K": (64, 4, None, False, "cosine", 4000, False),
    "lsun_uncond_100M_1200K_bs128": (256, 1, None, False, "linear", 1000, False),
    "lsun_uncond_100M_2400K_bs64": (256, 1, None, False, "linear", 1000, False),
    "64x64_diffusion": (64, None, 64, True, "cosine", 1000, False),
    "128x128_diffusion": (128, 4, None, False, "linear", 1000, False),
    "256x256_diffusion": (256, None, 64, False, "linear", 1000, False),
    "256x256_diffusion_uncond": (256, None, 64, False, "linear", 1000, False),
    "512x512_diffusion": (512, None, 64, False, "linear", 1000, False),
    "lsun_bedroom": (256, None, 64, False, "linear", 1000, False),
    "lsun_cat": (256, None, 64, False, "linear", 1000, False),
    "lsun_horse": (256, None, 64, False, "linear", 1000, False),
    "lsun_horse_nodropout": (256, None, 64, False, "linear", 1000, False),
    "64_256_upsampler": (256, 4, None, False, "linear", 1000, False),
    "128_512_upsampler": (512, None, 64, False, "linear", 1000, False),
    "64x64_classifier": (64, None, 64, False, "cosine", 1000, False),
    "128x128_classifier": (128, None, 64, False, "linear", 1000, False),
    "256x256_classifier": (256, None, 64, False, "linear", 1000, False),
    "512x512_classifier": (512, None, 64, False, "linear", 1000, False),
}
"""From the command lines in the two projects' own instructions."""


def test_flags_of_the_published_files():
    assert openai_flags.PUBLISHED.keys() == COMMAND_LINES.keys()
    for name, flags in COMMAND_LINES.items():
        judges = "classifier" in name
        for path in (f"models/{name}.pt", f"ema_0.9999_{name}.pt"):
            assert openai.complete(openai.Flags(), path, judges) == openai.Flags(*flags, False, not judges), name
