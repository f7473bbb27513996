"""MDLM's network and its three output rules (kuleshov-group/mdlm), through the importer."""

import io

import foreign
import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import refused

from unnoise.discrete import Ancestral, Categorical, LogLinearNoise, ScoreEntropyDenoiser, carried, direct
from unnoise.experiments.pretrained import files
from unnoise.experiments.pretrained.pickles import Record
from unnoise.experiments.pretrained.text import looks_like_mdlm, looks_like_sedd, mdlm, sedd, total_noise
from unnoise.experiments.pretrained.text_config import published_settings
from unnoise.shared.errors import UsageError
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize

NAME = "mdlm_dit"
TRAINED = {"parameterization": "subs", "time_conditioning": False, "noise": "loglinear"}
"""What its configuration leaves out."""
TEXT = TRAINED | {"length": 24}
READS = (
    "tokens|sigma",
    "y|y_timed|log_p_subs|log_p_d3pm|log_score_sedd",
    "state:.+",
)


@pytest.fixture(scope="module")
def peer():
    return Fixture(NAME)


@pytest.fixture(scope="module")
def state():
    return peer_state(NAME)


def config(peer):
    return peer.about["config"]["model"]


def time_of(sigma):
    """The time whose total noise is sigma."""
    return LogLinearNoise().time(sigma)


def test_logits(peer, state):
    """All 18 logits, the mask's among them."""
    tokens, sigma = peer["tokens"], peer["sigma"]
    with torch.no_grad():
        untimed = mdlm(state, NAME, config=config(peer), **TRAINED).network
        timed = mdlm(state, NAME, config=config(peer), **TRAINED | {"time_conditioning": True}).network
        assert_samples_close(untimed(tokens, sigma), peer["y"])
        assert_samples_close(timed(tokens, torch.zeros_like(sigma)), peer["y"])
        assert_samples_close(timed(tokens, sigma), peer["y_timed"])
        assert_samples_close(timed(tokens, sigma).log_softmax(-1), peer["log_p_d3pm"])


def test_subs(peer, state):
    """Entries near -1e6 in the reference are exactly -inf here; at given tokens all but the token's own are.

    The others agree.
    """
    tokens, expected = peer["tokens"], peer["log_p_subs"]
    denoiser = mdlm(state, NAME, config=config(peer), **TRAINED)
    with torch.no_grad():
        log_p = denoiser(tokens, time_of(peer["sigma"]))
    impossible = expected < -9e5
    assert torch.equal(log_p == -torch.inf, impossible)
    assert impossible[..., -1].all()
    given = tokens < 17
    assert given.any()
    assert not given.all()
    assert torch.equal(log_p[given].exp(), torch.nn.functional.one_hot(tokens[given], 18).float())
    assert_samples_close(log_p.masked_fill(impossible, 0.0), expected.masked_fill(impossible, 0.0))


def test_the_plain_rule_is_that_of_the_reference_without_the_mask(peer, state):
    """The reference's log-softmax gives the mask a chance; ours is the same distribution, given that x_0 is no mask.

    The label is sigma.
    """
    made = mdlm(state, NAME, config=config(peer), **TRAINED | {"time_conditioning": True})
    denoiser = Categorical(made.network, made.transition, time_input=made.time_input, head=direct)
    with torch.no_grad():
        log_p = denoiser(peer["tokens"], time_of(peer["sigma"]))
    assert (log_p[..., 17] == -torch.inf).all()
    assert_samples_close(log_p[..., :17], peer["log_p_d3pm"][..., :17].log_softmax(-1))


def test_ratios(peer, state):
    """The SEDD models that were trained beside MDLM have its names, too."""
    with torch.no_grad():
        log_ratio = sedd(state, NAME, config=config(peer), noise="loglinear").log_ratio(
            peer["tokens"], time_of(peer["sigma"])
        )
    assert_samples_close(log_ratio, peer["log_score_sedd"])


def test_what_it_says_of_itself(peer, state):
    denoiser = mdlm(state, NAME, **TEXT)
    network, transition = denoiser.network, denoiser.transition
    assert denoiser.quantization == Quantization(17)
    assert denoiser.shape == (24,)
    assert (transition.categories, transition.states, transition.mask_token) == (17, 18, 17)
    assert (network.heads, network.depth, network.width, network.embedding) == (4, 2, 64, 32)
    assert not network.timed
    assert not network.training
    assert mdlm(state, NAME, config=config(peer), **TRAINED).shape == (24,)
    assert (denoiser.time_input, denoiser.head) == (total_noise, carried)
    again = deserialize(serialize(denoiser))
    again.load_state_dict(denoiser.state_dict())
    t = torch.tensor(0.7)
    assert torch.equal(again.eval()(peer["tokens"], t), denoiser(peer["tokens"], t))


def test_the_hub_configuration_is_read(peer, state):
    config = {
        "hidden_dim": 64,
        "model_length": 24,
        "n_heads": 4,
        "time_conditioning": True,
        "dropout": 0.25,
        "vocab_size": 18,
    }
    flags = {"parameterization": "subs", "noise": "loglinear"}
    denoiser = mdlm(state, NAME, config=config, **flags)
    assert denoiser.shape == (24,)
    assert denoiser.network.timed
    assert denoiser.network.dropout == 0.25
    refused(
        lambda: mdlm(state, NAME, config=config, **flags, time_conditioning=False),
        "time_conditioning=False, but the file specifies True",
    )


def hyper_parameters(**config):
    """As Lightning keeps them: omegaconf's objects, each read as a record."""

    def node(value):
        if isinstance(value, dict):
            return Record(
                "DictConfig",
                "omegaconf.dictconfig",
                {"_content": {k: node(v) for k, v in value.items()}, "_parent": None},
            )
        return Record("AnyNode", "omegaconf.nodes", {"_val": value, "_parent": None})

    return {"config": node(config), "tokenizer": Record("GPT2TokenizerFast", "transformers", {})}


def test_hyper_parameters_of_a_training_checkpoint_are_read(peer, state):
    kept = hyper_parameters(
        parameterization="subs",
        time_conditioning=True,
        noise={"type": "loglinear"},
        model={"length": 24, "n_heads": 4, "hidden_size": 64},
    )
    checkpoint = {"state_dict": state, "hyper_parameters": kept}
    assert (looks_like_mdlm(checkpoint), looks_like_sedd(checkpoint)) == (True, False)
    denoiser = mdlm(checkpoint, NAME)
    assert (denoiser.shape, denoiser.network.timed, denoiser.network.heads) == ((24,), True, 4)
    refused(
        lambda: mdlm(checkpoint, NAME, config={"time_conditioning": False}),
        NAME,
        'config.json has "time_conditioning": False, but the',
    )
    other = {"state_dict": state, "hyper_parameters": kept | {"tokenizer": Record("Text8Tokenizer", "dataloader", {})}}
    refused(
        lambda: mdlm(other, NAME),
        NAME,
        "in the tokenizer 'Text8Tokenizer''s vocabulary of 18 tokens the mask is not the last token",
    )
    refers = hyper_parameters(**TRAINED | {"noise": {"type": "loglinear"}}, model={"length": "${length}"}, length=24)
    assert mdlm({"state_dict": state, "hyper_parameters": refers}, NAME).shape == (24,)
    weights = {k: v for k, v in state.items() if not k.endswith("inv_freq")}
    read = files.of_zip(io.BytesIO(foreign.omegaconf_checkpoint(weights)), files.VALUES)
    assert mdlm(read, NAME, config={"n_heads": 4}, **TRAINED).shape == (1024,)  # which it has in its own objects


def test_a_sedd_trained_beside_mdlm_is_none(peer, state):
    kept = hyper_parameters(
        parameterization="sedd", time_conditioning=True, noise={"type": "loglinear"}, model={"length": 24}
    )
    checkpoint = {"state_dict": state, "hyper_parameters": kept}
    assert (looks_like_mdlm(checkpoint), looks_like_sedd(checkpoint)) == (False, True)
    time = time_of(peer["sigma"])
    configs = ({"parameterization": "sedd"}, {"model_type": "SEDD"})
    for made in (
        mdlm(checkpoint, NAME),
        sedd(checkpoint, NAME),
        *(mdlm(state, NAME, config=config, noise="loglinear", length=24) for config in configs),
        mdlm(state, NAME, parameterization="sedd", noise="loglinear", length=24),
    ):
        assert isinstance(made, ScoreEntropyDenoiser)
        assert made.shape == (24,)
        with torch.no_grad():
            assert_samples_close(made.log_ratio(peer["tokens"], time), peer["log_score_sedd"])
    refused(lambda: mdlm(checkpoint, NAME, time_conditioning=False), NAME, "time_conditioning=False")
    untimed = {
        "state_dict": state,
        "hyper_parameters": hyper_parameters(parameterization="sedd", time_conditioning=False),
    }
    for load in (mdlm, sedd):
        refused(lambda load=load: load(untimed, NAME, length=24), NAME, "time_conditioning=False")


def test_a_mask_that_is_not_the_last_token_is_refused(state):
    """That of BERT's vocabulary is number 103."""
    wide = state | {
        f"backbone.{name}": torch.zeros(30_522, 64) for name in ("vocab_embed.embedding", "output_layer.linear.weight")
    }
    wide["backbone.output_layer.linear.bias"] = torch.zeros(30_522)
    refused(lambda: mdlm(wide, NAME, **TEXT), NAME, "30522", "mask")


@pytest.mark.parametrize("kind", ["d3pm", "ar", "bd3lm", 3])
def test_other_ways_of_training_are_refused(state, kind):
    for name in ("parameterization", "model_type"):
        refused(lambda n=name: mdlm(state, NAME, config={n: kind}, length=24), NAME, repr(kind), "subs or mdlm")
        checkpoint = {"state_dict": state, "hyper_parameters": hyper_parameters(**{name: kind})}
        refused(lambda c=checkpoint: mdlm(c, NAME, length=24), NAME, repr(kind), "subs or mdlm")
        refused(lambda n=name: sedd(state, NAME, config={n: kind}, length=24), NAME, repr(kind), "a SEDD is sedd")
    refused(lambda: sedd(state, NAME, config={"parameterization": "subs"}, length=24), "'subs'")
    assert isinstance(
        mdlm(state, NAME, config={"model_type": "other"} | TRAINED | {"noise": None}, noise="loglinear", length=24),
        Categorical,
    )


def test_what_is_released_is_known_and_asked_for_elsewhere(state):
    asks = "give parameterization, time_conditioning, noise, length as in its training"
    refused(lambda: mdlm(state, NAME), NAME, asks, "length=1024")
    refused(lambda: mdlm(state, NAME, **TRAINED), NAME, "give length as in its training, such as length=1024")
    refused(lambda: mdlm(state, NAME, **TEXT | {"length": 0}), "length=0")
    refused(lambda: mdlm(state, NAME, config={"length": "long"}), "length 'long'")
    for vocabulary, width, depth, heads in (
        (50258, 768, 12, 12),
        (50258, 1024, 24, 16),
        (50258, 512, 12, None),
        (50256, 768, 12, None),
        (50257, 768, 12, None),
        (50258, 768, 24, None),
    ):
        known = published_settings({}, vocabulary, width, depth, prefixed=False)
        assert known.get("n_heads") == heads
        assert known == ({} if heads is None else SMALL | {"n_heads": heads})
    assert published_settings({}, 50258, 768, 12, prefixed=True) == SMALL | {
        "parameterization": "subs",
        "time_conditioning": False,
    }
    assert published_settings({"noise": "geometric"}, 50258, 768, 12, prefixed=True) == {}


SMALL = {"noise": "loglinear", "length": 1024, "n_heads": 12, "uniform": False, "scale_by_sigma": True}


def test_bad_entries_of_a_configuration_are_named(state):
    for config in (
        {"time_conditioning": "yes"},
        {"n_heads": 4.5},
        {"dropout": "much"},
        {"n_heads": {}},
        {"length": -1},
    ):
        refused(
            lambda s=config: mdlm(
                state, NAME, config={"length": 24} | s, **{k: v for k, v in TRAINED.items() if k not in s}
            ),
            f"{next(iter(config))} ",
        )


def test_samples_hold_no_mask(state):
    denoiser = mdlm(state, NAME, **TEXT)
    x = Ancestral(denoiser)(shape=(2, *denoiser.shape), steps=3, generator=torch.Generator().manual_seed(0))
    assert (x < 17).all()


def test_averages_are_taken_in_the_order_of_the_parameters(peer, state):
    """A list without names: buffers are not among it."""
    raw = {k: v if k.endswith("inv_freq") else torch.zeros_like(v) for k, v in state.items()}
    averages = [v for k, v in state.items() if not k.endswith("inv_freq")]
    checkpoint = {"state_dict": raw, "ema": {"decay": 0.9999, "shadow_params": averages}, "epoch": 3}
    assert looks_like_mdlm(checkpoint)
    with torch.no_grad():
        assert_samples_close(mdlm(checkpoint, NAME, **TEXT).network(peer["tokens"], peer["sigma"]), peer["y"])
        without = mdlm({"state_dict": state}, NAME, **TEXT)
        assert_samples_close(without.network(peer["tokens"], peer["sigma"]), peer["y"])
    with pytest.raises(UsageError, match="29 averages for 30 parameters"):
        mdlm(checkpoint | {"ema": {"shadow_params": averages[:-1]}}, NAME, **TEXT)
    with pytest.raises(
        UsageError, match=r"2 averages have another shape than their parameters: backbone.output_layer.adaLN"
    ):
        mdlm(checkpoint | {"ema": {"shadow_params": [*averages[:-2], *averages[:-3:-1]]}}, NAME, **TEXT)


def test_what_does_not_fit_is_refused(state):
    assert looks_like_mdlm(state)
    assert not looks_like_sedd(state)
    assert not any(
        looks(other)
        for looks in (looks_like_mdlm, looks_like_sedd)
        for other in ({"a": 1, "state_dict": 3}, [state], None)
    )
    with pytest.raises(UsageError, match=r"some.bin does not contain the text transformer"):
        mdlm({"weight": torch.zeros(1)}, "some.bin")
    with pytest.raises(UsageError, match=r"1 tensors are unexpected: backbone.extra"):
        mdlm(state | {"backbone.extra": torch.zeros(1)}, NAME, **TEXT)
    with pytest.raises(UsageError, match=r"1 tensors are missing: backbone.blocks.1.attn_out.weight"):
        mdlm({k: v for k, v in state.items() if k != "backbone.blocks.1.attn_out.weight"}, NAME, **TEXT)
    with pytest.raises(UsageError, match="does not have base 10000"):
        mdlm(state | {"backbone.rotary_emb.inv_freq": 500_000.0 ** (-torch.arange(8) / 8)}, NAME, **TEXT)
    with pytest.raises(UsageError, match="has 8 heads, but rotary_emb.inv_freq belongs to 4"):
        mdlm(state, NAME, config={"n_heads": 8}, **TEXT)
