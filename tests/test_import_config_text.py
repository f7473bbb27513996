"""Configurations of MDLM and SEDD: entries that contradict each other or the file are refused, others are read."""

import json

import pytest
import torch
from import_text import GEOMETRIC, MDLM, SEDD, state_of
from pretrained_helpers import meta, refused

from unnoise.discrete import Absorbing, GeometricNoise, LogLinearNoise, unscaled
from unnoise.experiments import pretrained
from unnoise.experiments.pretrained import text
from unnoise.experiments.pretrained.text import mdlm, sedd
from unnoise.shared.networks import DiT


def test_a_folder_with_a_configuration_needs_no_flags(tmp_path):
    """As SEDD's are on the Hub: every setting is in the configuration."""
    torch.save(state_of("sedd_absorb"), tmp_path / "pytorch_model.bin")
    sizes = {
        "hidden_size": 64,
        "cond_dim": 32,
        "n_blocks": 2,
        "n_heads": 4,
        "length": 24,
        "scale_by_sigma": False,
        "dropout": 0.1,
    }
    noise, graph = (
        {"type": "geometric", "sigma_min": 0.01, "sigma_max": 5},
        {"type": "absorb", "file": "data", "report_all": False},
    )
    config = {
        "tokens": 17,
        "ngpus": 8,
        "model": sizes | {"name": "small", "type": "ddit"},
        "noise": noise,
        "graph": graph,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = pretrained.load(tmp_path)
    assert (model.transition.noise, model.offset, model.assumed) == (GeometricNoise(0.01, 5.0), unscaled, ())


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"hidden_size": 32}, "hidden_size 32, but the weights 64"),
        ({"hidden_dim": 32}, "32, but the weights 64"),
        ({"n_blocks": 3}, "n_blocks 3, but the weights 2"),
        ({"cond_dim": 8}, "cond_dim 8, but the weights 32"),
        ({"vocab_size": 17}, "vocab_size 17, but the weights 18"),
        ({"backbone": "dimamba"}, "backbone 'dimamba'"),
        ({"diffusion": "uniform"}, "diffusion 'uniform'"),
        ({"graph": {"type": "uniform"}}, "uniform=True, but the file specifies False"),
        ({"length": 12}, "length=24, but the file specifies 12"),
        ({"parameterization": "sedd"}, "parameterization='subs', but the file specifies 'sedd'"),
        ({"noise": {"type": "geometric"}}, "noise='loglinear', but the file specifies 'geometric'"),
    ],
)
def test_a_configuration_of_another_network_is_refused(entry, words):
    refused(lambda: mdlm(state_of("mdlm_dit"), "file", config=entry, **MDLM), words)


def test_entries_of_a_configuration_that_are_not_read_are_reported():
    config = {
        "model": {"dropout": 0.1, "new": 1},
        "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
        "T": 1000,
    }
    more = {
        "sampling": {"predictor": "ddpm_cache"},
        "training": {"ema": 0.999, "sampling_eps": 0.01},
        "block_size": 4,
        "_note": 1,
    }
    model = mdlm(state_of("mdlm_dit"), "file", config=config | more, **MDLM)
    assert model.transition.noise == LogLinearNoise(1e-3, t_min=0.01)
    assert model.assumed == (
        "the mask is the last token",
        "entries of the configuration are not read: block_size, model.new",
        "samples are drawn in ancestral steps; the configuration's sampling is not read",
        "bounds are those of continuous time, although training used T=1000 steps",
    )
    shorter = mdlm(state_of("mdlm_dit"), "file", config={"noise": {"type": "loglinear", "eps": 0.05}}, **MDLM)
    assert shorter.transition.noise == LogLinearNoise(0.05)


CONFIG = {
    "parameterization": "subs",
    "time_conditioning": False,
    "noise": {"type": "loglinear"},
    "model": {"length": 24},
}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"mask_index": 4},
            "the configuration has mask_index 4, but only networks whose mask is the last of their 18 tokens (17) are",
        ),
        ({"model": {"length": 24, "mask_token_id": 0}}, "mask_token_id 0, but only networks"),
        ({"mask_index": True}, "mask_index True, but only networks"),
        (
            {"data": {"tokenizer_name_or_path": "text8"}},
            "in the tokenizer 'text8''s vocabulary of 18 tokens the mask is not the last token",
        ),
        ({"data": {"tokenizer_name_or_path": "bert-base-uncased"}}, "the mask is not the last token"),
    ],
)
def test_a_mask_that_is_not_the_last_token_is_refused(more, words):
    """MDLM's own text8 has it at 4 of 35."""
    refused(
        lambda: mdlm(state_of("mdlm_dit"), "file", config=CONFIG | more),
        f"file: {words}" if "the c" in words else words,
    )


@pytest.mark.parametrize("vocabulary", [35, 30_522])
def test_vocabularies_with_the_mask_inside(vocabulary, monkeypatch):
    monkeypatch.setattr(text, "_network", lambda *_: DiT(3, 24, 8, 1, 2))
    state = {f"backbone.{name}": meta(vocabulary, 64) for name in text.LANDMARKS}
    for kind in ("subs", "sedd"):
        config = {**CONFIG, "parameterization": kind, "time_conditioning": None, "model": {"length": 24, "n_heads": 4}}
        flags = {} if kind == "sedd" else {"time_conditioning": False}
        words = f"write mask_index={vocabulary - 1} into its config.json"
        refused(lambda c=config, f=flags: mdlm(state, "file", config=c, **f), "the mask is not the last token", words)
        assert (
            mdlm(state, "file", config=config | {"mask_index": vocabulary - 1}, **flags).transition.categories
            == vocabulary - 1
        )


def test_a_given_mask_is_not_assumed():
    assert mdlm(state_of("mdlm_dit"), "file", config=CONFIG).assumed == ("the mask is the last token",)
    assert mdlm(state_of("mdlm_dit"), "file", config=CONFIG | {"mask_index": 17}).assumed == ()
    given = {"data": {"tokenizer_name_or_path": "gpt2"}}
    assert mdlm(state_of("mdlm_dit"), "file", config=CONFIG | given).assumed == ("the mask is the last token",)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (
            {"model": {"length": 48}},
            'file: config.json has "length": 24, but the checkpoint\'s hyper-parameters "length": 48',
        ),
        (
            {"model": {"model_length": 48}},
            'config.json has "length": 24, but the checkpoint\'s hyper-parameters "model_length": 48',
        ),
        ({"length": 48}, 'config.json has "length": 24, but the checkpoint'),
        (
            {"time_conditioning": True},
            'config.json has "time_conditioning": False, but the checkpoint\'s hyper-parameters '
            '"time_conditioning": True',
        ),
        (
            {"noise": {"type": "geometric"}},
            "config.json has \"type\": 'loglinear', but the checkpoint's hyper-parameters \"type\": 'geometric'",
        ),
        (
            {"noise": "geometric"},
            "config.json has \"type\": 'loglinear', but the checkpoint's hyper-parameters \"type\": 'geometric'",
        ),
        ({"noise": {"eps": 0.01}}, 'config.json has "eps": 0.05, but the checkpoint\'s hyper-parameters "eps": 0.01'),
        (
            {"parameterization": "d3pm"},
            "config.json has \"parameterization\": 'subs', but the checkpoint's hyper-parameters "
            "\"parameterization\": 'd3pm'",
        ),
        (
            {"model_type": "sedd"},
            "the configuration has parameterization 'subs' and model_type 'sedd', which contradict each other",
        ),
        ({"mask_index": 4}, 'config.json has "mask_index": 17, but the checkpoint\'s hyper-parameters "mask_index": 4'),
        (
            {"training": {"sampling_eps": 0.01}},
            'config.json has "sampling_eps": 0.002, but the checkpoint\'s hyper-parameters "sampling_eps": 0.01',
        ),
    ],
)
def test_two_sources_that_differ_are_refused(kept, words):
    """With both values; neither has the last word."""
    more = {"noise": {"type": "loglinear", "eps": 0.05}, "mask_index": 17, "training": {"sampling_eps": 0.002}}
    for state in ({"hyper_parameters": {"config": kept}}, {"hyper_parameters": kept}):
        state |= {"state_dict": state_of("mdlm_dit")}
        refused(lambda s=state: mdlm(s, "file", config=CONFIG | more), words)
    state["hyper_parameters"] = {"config": CONFIG, "length": 24}
    assert mdlm(state, "file", config=CONFIG | more).transition.noise == LogLinearNoise(0.05, t_min=0.002)
    refused(
        lambda: mdlm(state | {"hyper_parameters": {"config": CONFIG, "length": 9}}, "file"), "give its state_dict alone"
    )


@pytest.mark.parametrize(
    ("config", "flags", "words"),
    [
        ({"noise": "geometric"}, {}, "noise='loglinear', but the file specifies 'geometric'"),
        ({"graph": "uniform"}, {}, "uniform=False, but the file specifies True"),
        ({"noise": 3}, {}, "file: the configuration has noise 3 instead of a mapping of entries"),
        ({"graph": ["absorb"]}, {}, "the configuration has graph a list instead"),
        ({"model": "small"}, {}, "the configuration has model 'small' instead"),
        ({"length": -1}, {}, "file: the configuration has length -1: it must be a whole number above 0"),
        ({}, GEOMETRIC | {"sigma_min": 9.0}, "file: sigma_min=9, sigma_max=8: give a sigma_max above sigma_min"),
        ({"noise": {"type": "loglinear", "eps": 2}}, {}, "file: "),
    ],
)
def test_parts_that_are_names_alone_and_ends_that_are_none(config, flags, words):
    refused(lambda: sedd(state_of("sedd_absorb"), "file", config=config, **SEDD | flags), words)


def test_a_noise_and_a_graph_by_name():
    config = {"noise": "loglinear", "graph": "absorb", "model": {"length": 24, "scale_by_sigma": True}}
    model = sedd(state_of("sedd_absorb"), "file", config=config)
    assert (type(model.transition), model.transition.noise, model.assumed) == (Absorbing, LogLinearNoise(), ())


def test_a_network_that_is_fed_the_time_instead_of_the_noise():
    config = {**CONFIG, "training": {"change_of_variables": True}}
    mdlm(state_of("mdlm_dit"), "file", config=config)
    refused(
        lambda: mdlm(state_of("mdlm_dit"), "file", config=config | {"time_conditioning": True}),
        "file: ",
        "change_of_variables",
    )
