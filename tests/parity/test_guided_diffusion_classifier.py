"""The classifier of openai/guided-diffusion, through the importer."""

from helpers import Fixture, assert_samples_close, peer_state

from unnoise.experiments.released import openai
from unnoise.shared.guidance import ClassifierGradient, NoisyClassifier

FIXTURE = Fixture("guided_diffusion_classifier")
FLAGS = {"image_size": 16, "num_head_channels": 16, "use_new_attention_order": False, "noise_schedule": "linear"}


def test_logits_and_gradient():
    model = openai.denoiser(peer_state("guided_diffusion_classifier"), "model.pt", **FLAGS).eval()
    assert isinstance(model, NoisyClassifier)
    t, label = (FIXTURE["t"].double() + 1) / 1000, FIXTURE["label"]
    assert_samples_close(model.network(FIXTURE["x"], FIXTURE["t"]), FIXTURE["y"])
    assert_samples_close(model(FIXTURE["x"], t), FIXTURE["y"].log_softmax(-1))
    assert_samples_close(ClassifierGradient(model)(FIXTURE["x"], t, label=label), FIXTURE["grad_log_prob"])
