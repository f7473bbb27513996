"""The classifier of openai/guided-diffusion, through the importer."""

from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import refused

from unnoise.experiments.pretrained import openai
from unnoise.shared.gaussian.guidance import ClassifierGradient, NoisyClassifier

FIXTURE = Fixture("guided_diffusion_classifier")
READS = (
    "x|t|label",
    "y|grad_log_prob",
)
FLAGS = {"num_head_channels": 16, "noise_schedule": "linear", "diffusion_steps": 1000, "rescale_timesteps": False}


def test_logits_and_gradient():
    model = openai.denoiser(peer_state("guided_diffusion_classifier"), "model.pt", **FLAGS).eval()
    assert isinstance(model, NoisyClassifier)
    t, label = (FIXTURE["t"].double() + 1) / 1000, FIXTURE["label"]
    assert_samples_close(model.network(FIXTURE["x"], FIXTURE["t"]), FIXTURE["y"])
    assert_samples_close(model(FIXTURE["x"], t), FIXTURE["y"].log_softmax(-1))
    assert_samples_close(ClassifierGradient(model)(FIXTURE["x"], t, label=label), FIXTURE["grad_log_prob"])


def test_heads_are_split_first_in_every_classifier():
    state = peer_state("guided_diffusion_classifier")
    refused(
        lambda: openai.denoiser(state, "model.pt", **FLAGS, use_new_attention_order=True),
        "classifiers split the heads before q, k, v",
    )
    openai.denoiser(state, "model.pt", **FLAGS, use_new_attention_order=False)
    refused(
        lambda: openai.denoiser(state, "model.pt"),
        "do not determine num_heads (or num_head_channels), noise_schedule, diffusion_steps, rescale_timesteps, and",
        "such as num_heads=4, noise_schedule='cosine', diffusion_steps=4000",
    )
    assert openai.denoiser(state, "model.pt", **FLAGS, image_size=16).shape == (3, 16, 16)
    refused(
        lambda: openai.denoiser(state, "model.pt", **FLAGS, image_size=32),
        "image_size=32, but out.2.positional_embedding",
        "64 pos",
    )
    for name in ("predict_xstart", "learn_sigma"):
        refused(
            lambda n=name: openai.denoiser(state, "model.pt", **FLAGS, **{n: True}),
            "log p(label)",
            f"leave {name}=True out",
        )
    refused(
        lambda: openai.denoiser(state, "model.pt", **FLAGS | {"num_head_channels": 12}),
        "num_head_channels=12 does not divide",
    )
    state.pop("out.2.c_proj.bias")
    refused(lambda: openai.denoiser(state, "model.pt", **FLAGS), "out.2.c_proj.bias is missing")
