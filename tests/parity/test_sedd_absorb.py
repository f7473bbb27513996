"""SEDD's network and its log ratios (louaaron/Score-Entropy-Discrete-Diffusion), through the importer."""

import math

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state

from unnoise.discrete import Absorbing, GeometricNoise, LogLinearNoise, Uniform, scaled_by_noise, unscaled
from unnoise.experiments.pretrained.text import looks_like_mdlm, looks_like_sedd, sedd, total_noise
from unnoise.shared.errors import UsageError
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize

NAME = "sedd_absorb"
TEXT = {"uniform": False, "noise": "loglinear", "scale_by_sigma": True, "length": 24}
UNIFORM = {"uniform": True, "noise": "geometric", "sigma_min": 1e-4, "sigma_max": 20.0, "length": 24}
READS = (
    "tokens|sigma",
    "log_score|log_score_without_scale_by_sigma",
    "state:.+",
)


@pytest.fixture(scope="module")
def peer():
    return Fixture(NAME)


@pytest.fixture(scope="module")
def state():
    return peer_state(NAME)


def log_ratio(denoiser, peer):
    """At the times whose total noise is the fixture's."""
    with torch.no_grad():
        return denoiser.log_ratio(peer["tokens"], denoiser.corruption.noise.time(peer["sigma"]))


def test_log_ratios(peer, state):
    found = log_ratio(sedd(state, NAME, config=peer.about["config"], noise="loglinear"), peer)
    assert_samples_close(found, peer["log_score"])
    assert (found.gather(-1, peer["tokens"][..., None]) == 0).all()
    assert_samples_close(
        log_ratio(sedd(state, NAME, **TEXT), peer), peer["log_score"]
    )  # the configuration tells nothing new


def test_log_ratios_without_the_scale(peer, state):
    config = peer.about["config"]
    config = config | {"model": config["model"] | {"scale_by_sigma": False}}
    found = log_ratio(sedd(state, NAME, config=config, noise="loglinear"), peer)
    assert_samples_close(found, peer["log_score_without_scale_by_sigma"])


def test_a_uniform_graph_reads_the_same_network_without_a_scale_on_its_own_schedule(peer, state):
    config = peer.about["config"] | {
        "graph": {"type": "uniform"},
        "tokens": 18,
        "noise": {"type": "geometric", "sigma_min": 1e-4, "sigma_max": 20},
    }
    config["model"] = {k: v for k, v in config["model"].items() if k != "scale_by_sigma"}
    for denoiser in (sedd(state, NAME, config=config), sedd(state, NAME, **UNIFORM)):
        assert isinstance(denoiser.transition, Uniform)
        assert denoiser.transition.noise == GeometricNoise(1e-4, 20.0)
        assert denoiser.quantization == Quantization(18)
        assert_samples_close(log_ratio(denoiser, peer), peer["log_score_without_scale_by_sigma"])


def test_what_it_says_of_itself(peer, state):
    denoiser = sedd(state, NAME, **TEXT)
    assert isinstance(denoiser.transition, Absorbing)
    assert denoiser.transition.noise == LogLinearNoise(1e-3)
    assert (denoiser.quantization, denoiser.shape) == (Quantization(17), (24,))
    assert (denoiser.time_input, denoiser.offset) == (total_noise, scaled_by_noise)
    assert denoiser.network.timed
    again = deserialize(serialize(denoiser))
    again.load_state_dict(denoiser.state_dict())
    assert torch.equal(log_ratio(again.eval(), peer), log_ratio(denoiser, peer))


def test_the_label_is_the_total_noise():
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.0, -math.log(1 - 0.999 / 2), math.log(1000)], dtype=torch.float64)
    torch.testing.assert_close(total_noise(Absorbing(5, LogLinearNoise()), t), expected)


def test_noise_and_graph_come_from_the_configuration(state):
    noise = {"type": "geometric", "sigma_min": 1e-3, "sigma_max": 10}
    denoiser = sedd(state, NAME, config={"noise": noise, "graph": {"type": "absorb"}}, scale_by_sigma=True, length=24)
    assert denoiser.transition.noise == GeometricNoise(1e-3, 10.0)
    assert isinstance(denoiser.transition, Absorbing)
    assert isinstance(sedd(state, NAME, config={"tokens": 18}, **UNIFORM).transition, Uniform)
    assert isinstance(sedd(state, NAME, config={"tokens": 17}, **TEXT).transition, Absorbing)
    uniform = sedd(state, NAME, config={"tokens": 18, "noise": {"type": "loglinear"}}, length=24)
    assert (uniform.transition.noise, uniform.offset) == (LogLinearNoise(), unscaled)


@pytest.mark.parametrize(("vocabulary", "kind"), [(50257, Uniform), (50258, Absorbing)])
def test_gpt2_vocabularies_tell_the_graph(vocabulary, kind):
    """On sizes as small as they get, but for the vocabulary."""
    network = {
        "vocab_embed.embedding": (vocabulary, 2),
        "sigma_map.mlp.0.weight": (1, 256),
        "sigma_map.mlp.0.bias": (1,),
        "sigma_map.mlp.2.weight": (1, 1),
        "sigma_map.mlp.2.bias": (1,),
        "rotary_emb.inv_freq": (1,),
        "blocks.0.norm1.weight": (2,),
        "blocks.0.attn_qkv.weight": (6, 2),
        "blocks.0.attn_out.weight": (2, 2),
        "blocks.0.norm2.weight": (2,),
        "blocks.0.mlp.0.weight": (8, 2),
        "blocks.0.mlp.0.bias": (8,),
        "blocks.0.mlp.2.weight": (2, 8),
        "blocks.0.mlp.2.bias": (2,),
        "blocks.0.adaLN_modulation.weight": (12, 1),
        "blocks.0.adaLN_modulation.bias": (12,),
        "output_layer.norm_final.weight": (2,),
        "output_layer.linear.weight": (vocabulary, 2),
        "output_layer.linear.bias": (vocabulary,),
        "output_layer.adaLN_modulation.weight": (4, 1),
        "output_layer.adaLN_modulation.bias": (4,),
    }
    flags = {k: v for k, v in (UNIFORM if kind is Uniform else TEXT).items() if k != "uniform"}
    denoiser = sedd({name: torch.ones(shape) for name, shape in network.items()}, NAME, **flags)
    assert isinstance(denoiser.transition, kind)
    assert denoiser.quantization == Quantization(50257)
    assert denoiser.assumed[0] == f"uniform={kind is Uniform}: GPT-2 has 50257 tokens, and a mask is one more"


def test_a_training_checkpoint_gives_its_averages(peer, state):
    raw = {k: v if k.endswith("inv_freq") else torch.zeros_like(v) for k, v in state.items()}
    averages = [v for k, v in state.items() if not k.endswith("inv_freq")]
    checkpoint = {"model": raw, "ema": {"shadow_params": averages}, "step": 3}
    assert looks_like_sedd(checkpoint)
    assert_samples_close(log_ratio(sedd(checkpoint, NAME, **TEXT), peer), peer["log_score"])


def test_what_does_not_fit_is_refused(state):
    assert looks_like_sedd(state)
    assert not looks_like_mdlm(state)
    with pytest.raises(UsageError, match="has 12 tokens and the graph absorb, but the weights have 18"):
        sedd(state, NAME, config={"tokens": 12, "graph": {"type": "absorb"}}, length=24)
    with pytest.raises(UsageError, match="graph of type 'loop'"):
        sedd(state, NAME, config={"graph": {"type": "loop"}}, length=24)
    with pytest.raises(UsageError, match="noise of type 'cosine'"):
        sedd(state, NAME, config={"noise": {"type": "cosine"}}, uniform=False, scale_by_sigma=True, length=24)
    with pytest.raises(UsageError, match="does not have base 10000"):
        sedd(state | {"rotary_emb.inv_freq": 10_000.0 ** (-torch.arange(8) / 7)}, NAME, **TEXT)
