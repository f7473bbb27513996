"""MDLM and SEDD: what tensors, configurations, released sizes and flags settle, and the numbers that follow."""

import json
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from hypothesis import strategies as st
from import_settings import Format, Setting, setting_tests
from released_helpers import meta, refused
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from unnoise.discrete import (
    Absorbing,
    Categorical,
    GeometricNoise,
    LogLinearNoise,
    ScoreEntropyDenoiser,
    Uniform,
    scaled_by_noise,
    unscaled,
)
from unnoise.experiments import pretrained
from unnoise.experiments.import_export import Flags, bring
from unnoise.experiments.pretrained import text
from unnoise.experiments.pretrained.text import mdlm, sedd
from unnoise.shared.networks import DiT
from unnoise.shared.serialization import serialize

MDLM = {"parameterization": "subs", "time_conditioning": False, "noise": "loglinear", "length": 24, "n_heads": 4}
SEDD = {"uniform": False, "noise": "loglinear", "scale_by_sigma": True, "length": 24, "n_heads": 4}
GEOMETRIC = {"noise": "geometric", "sigma_min": 1e-3, "sigma_max": 8.0}
ROTARY = "rotary_emb.inv_freq"
PEER = Fixture("sedd_absorb")


@cache
def state_of(name, rotary=True):
    return {k: v for k, v in peer_state(name).items() if rotary or not k.endswith(ROTARY)}


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("told", ["flags", "configuration"])
def test_a_geometric_noise_of_other_ends(uniform, told):
    """The reference's ratios at the times of its noise, under `low^(1 - t) high^t`."""
    flags = {"uniform": uniform, "length": 24} | GEOMETRIC | ({} if uniform else {"scale_by_sigma": True})
    if told == "configuration":
        noise = {"type": "geometric"} | {k: GEOMETRIC[k] for k in ("sigma_min", "sigma_max")}
        graph = {"type": "uniform" if uniform else "absorb"}
        config = {
            "noise": noise,
            "graph": graph,
            "model": {"length": 24, "scale_by_sigma": not uniform, "dropout": 0.1},
        }
        model = sedd(state_of("sedd_absorb"), "file.pth", config=config)
    else:
        model = sedd(state_of("sedd_absorb"), "file.pth", **flags)
    assert model.assumed == ()
    assert type(model.transition) is (Uniform if uniform else Absorbing)
    assert model.transition.noise == GeometricNoise(1e-3, 8.0)
    assert model.offset is (unscaled if uniform else scaled_by_noise)
    sigma = torch.tensor([0.01, 0.5, 3.0], dtype=torch.float64)
    t = (sigma / 1e-3).log() / math.log(8.0 / 1e-3)
    torch.testing.assert_close(model.time_input(model.transition, t), sigma)
    with torch.no_grad():
        found = model.log_ratio(PEER["tokens"], t)
        raw = model.network(PEER["tokens"], sigma.float())
    expected = raw if uniform else raw - torch.expm1(sigma.float()).log()[:, None, None] - math.log(17)
    expected = expected.scatter(-1, PEER["tokens"][..., None], 0.0)
    assert_samples_close(found, expected)
    known = model.transition.noise.time(PEER["sigma"])
    with torch.no_grad():
        key = "log_score_without_scale_by_sigma" if uniform else "log_score"
        assert_samples_close(model.log_ratio(PEER["tokens"], known), PEER[key])


def test_a_sedd_checkpoint_says_nothing_of_itself():
    """As training writes it: what it is is asked for in one question."""
    checkpoint = {"optimizer": {}, "model": state_of("sedd_absorb"), "ema": None, "step": 3}
    refused(
        lambda: sedd(checkpoint, "c.pth"),
        "c.pth: ",
        "give uniform, noise, scale_by_sigma, length as in its training, such as uniform=",
    )
    refused(
        lambda: sedd(checkpoint, "c.pth", uniform=True, length=24),
        "give noise as in its training, such as noise='loglinear'",
    )
    refused(
        lambda: sedd(checkpoint, "c.pth", uniform=True, length=24, noise="geometric"),
        "give sigma_min, sigma_max as in its training, such as sigma_min=0.0001, sigma_max=20.0",
    )
    refused(
        lambda: sedd(checkpoint, "c.pth", **SEDD, sigma_max=3.0), "sigma_max=3.0 without use, as the noise is loglinear"
    )
    refused(
        lambda: sedd(checkpoint, "c.pth", uniform=True, noise="loglinear", length=24, scale_by_sigma=True),
        "scale_by_sigma=True does",
    )


@pytest.mark.parametrize("kind", ["cosine", "cosinesqr", "linear", "polynomial", 3])
def test_other_noises_are_refused_by_name(kind):
    for name, load, flags in (("mdlm_dit", mdlm, MDLM), ("sedd_absorb", sedd, SEDD)):
        flags = {k: v for k, v in flags.items() if k != "noise"}
        for told in ({"noise": kind}, {"config": {"noise": {"type": kind}}}):
            refused(
                lambda n=name, f=load, t=told, g=flags: f(state_of(n), "file", **g, **t),
                f"noise of type {kind!r} is not read",
            )


def test_a_released_size_is_known_and_said(monkeypatch):
    """GPT-2's tokens and a mask in 768 or 1024 channels; the networks themselves are stand-ins here."""
    stand_in = lambda tensors, prefix, source, told, said: DiT(
        3, told.get("length"), 2 * told.get("n_heads"), 1, told.get("n_heads")
    )
    monkeypatch.setattr(text, "_network", stand_in)
    blocks = lambda n: {f"blocks.{i}.norm1.weight": meta(1) for i in range(n)}  # noqa: E731
    for width, heads, depth in ((768, 12, 12), (1024, 16, 24)):
        shallow = dict.fromkeys(text.LANDMARKS, meta(50_258, width)) | blocks(depth - 1)
        refused(
            lambda s=shallow: sedd(s, "file"),
            "are of no released size",
            "give noise, scale_by_sigma, length, n_heads as",
        )
        state = shallow | blocks(depth)
        made = sedd(state, "file")
        assert (type(made.transition), made.transition.noise, made.offset) == (
            Absorbing,
            LogLinearNoise(),
            scaled_by_noise,
        )
        assert (made.shape, made.network.heads) == ((1024,), heads)
        assert made.assumed[0].startswith(
            "the sizes are those of a released network, and so is what nothing else tells: noise='loglin"
        )
    refused(
        lambda: sedd(state, "file", noise="geometric"), "give scale_by_sigma, length, n_heads, sigma_min, sigma_max as"
    )
    prefixed = {f"backbone.{name}": meta(50_258, 768) for name in text.LANDMARKS} | {
        f"backbone.{k}": v for k, v in blocks(12).items()
    }
    made = mdlm(
        prefixed, "file", config={"model_type": "mdlm", "time_conditioning": False, "model_length": 1024, "n_heads": 12}
    )
    assert (type(made), made.shape) == (Categorical, (1024,))
    assert made.assumed[0].endswith("tells: noise='loglinear'")
    assert type(mdlm(prefixed, "file", config={"parameterization": "sedd"})) is ScoreEntropyDenoiser


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"hidden_size": 32}, "hidden_size 32, and the weights 64"),
        ({"hidden_dim": 32}, "32, and the weights 64"),
        ({"n_blocks": 3}, "n_blocks 3, and the weights 2"),
        ({"cond_dim": 8}, "cond_dim 8, and the weights 32"),
        ({"vocab_size": 17}, "vocab_size 17, and the weights 18"),
        ({"backbone": "dimamba"}, "backbone 'dimamba'"),
        ({"diffusion": "uniform"}, "diffusion 'uniform'"),
        ({"graph": {"type": "uniform"}}, "uniform=True, but the file says False"),
        ({"length": 12}, "length=24, but the file says 12"),
        ({"parameterization": "sedd"}, "parameterization='subs', but the file says 'sedd'"),
        ({"noise": {"type": "geometric"}}, "noise='loglinear', but the file says 'geometric'"),
    ],
)
def test_a_configuration_of_another_network_is_refused(entry, words):
    refused(lambda: mdlm(state_of("mdlm_dit"), "file", config=entry, **MDLM), words)


def test_what_of_a_configuration_is_not_read_is_said():
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
        "the configuration's block_size, model.new are not read",
        "samples are drawn in ancestral steps; the configuration's sampling is not read",
        "bounds are those of continuous time, though training counted T=1000 steps",
    )
    shorter = mdlm(state_of("mdlm_dit"), "file", config={"noise": {"type": "loglinear", "eps": 0.05}}, **MDLM)
    assert shorter.transition.noise == LogLinearNoise(0.05)


def test_a_tokenizer_of_another_size_is_refused_on_import(tmp_path):
    """Before anything is written."""
    torch.save({"state_dict": peer_state("mdlm_dit")}, tmp_path / "mdlm.ckpt")
    flags = Flags(**{k: v for k, v in MDLM.items() if k != "n_heads"})
    for size in (17, 18):
        tokenizer = Tokenizer(WordLevel({"</s>": 0} | {f"w{n}": n for n in range(1, size)}, unk_token="w1"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.save(str(tmp_path / f"{size}.json"))
    words = "the tokenizer has 18 tokens, and the model 17: give the one it was trained with, without a mask: that of a model is its last token"
    refused(lambda: bring(str(tmp_path / "mdlm.ckpt"), tmp_path / "run", flags, tokenizer=tmp_path / "18.json"), words)
    assert not (tmp_path / "run").exists()
    bring(str(tmp_path / "mdlm.ckpt"), tmp_path / "run", flags, tokenizer=tmp_path / "17.json")


def test_a_folder_with_a_configuration_needs_no_flags(tmp_path):
    """As SEDD's are on the Hub: everything is told."""
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
            "the configuration has mask_index 4, and networks whose mask is the last of their 18 tokens are read, which 17 is",
        ),
        ({"model": {"length": 24, "mask_token_id": 0}}, "mask_token_id 0, and networks"),
        ({"mask_index": True}, "mask_index True, and networks"),
        (
            {"data": {"tokenizer_name_or_path": "text8"}},
            "in the tokenizer 'text8''s vocabulary of 18 the mask is not the last token",
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
        told = {**CONFIG, "parameterization": kind, "time_conditioning": None, "model": {"length": 24, "n_heads": 4}}
        flags = {} if kind == "sedd" else {"time_conditioning": False}
        words = f"write mask_index={vocabulary - 1} into its config.json"
        refused(lambda c=told, f=flags: mdlm(state, "file", config=c, **f), "the mask is not the last token", words)
        assert (
            mdlm(state, "file", config=told | {"mask_index": vocabulary - 1}, **flags).transition.categories
            == vocabulary - 1
        )


def test_a_mask_that_is_told_is_not_assumed():
    assert mdlm(state_of("mdlm_dit"), "file", config=CONFIG).assumed == ("the mask is the last token",)
    assert mdlm(state_of("mdlm_dit"), "file", config=CONFIG | {"mask_index": 17}).assumed == ()
    given = {"data": {"tokenizer_name_or_path": "gpt2"}}
    assert mdlm(state_of("mdlm_dit"), "file", config=CONFIG | given).assumed == ("the mask is the last token",)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (
            {"model": {"length": 48}},
            'file: config.json has "length": 24, and the checkpoint\'s hyper-parameters "length": 48',
        ),
        (
            {"model": {"model_length": 48}},
            'config.json has "length": 24, and the checkpoint\'s hyper-parameters "model_length": 48',
        ),
        ({"length": 48}, 'config.json has "length": 24, and the checkpoint'),
        (
            {"time_conditioning": True},
            'config.json has "time_conditioning": False, and the checkpoint\'s hyper-parameters "time_conditioning": True',
        ),
        (
            {"noise": {"type": "geometric"}},
            "config.json has \"type\": 'loglinear', and the checkpoint's hyper-parameters \"type\": 'geometric'",
        ),
        (
            {"noise": "geometric"},
            "config.json has \"type\": 'loglinear', and the checkpoint's hyper-parameters \"type\": 'geometric'",
        ),
        ({"noise": {"eps": 0.01}}, 'config.json has "eps": 0.05, and the checkpoint\'s hyper-parameters "eps": 0.01'),
        (
            {"parameterization": "d3pm"},
            "config.json has \"parameterization\": 'subs', and the checkpoint's hyper-parameters \"parameterization\": 'd3pm'",
        ),
        (
            {"model_type": "sedd"},
            "the configuration has parameterization 'subs' and model_type 'sedd', which are two ways of training",
        ),
        ({"mask_index": 4}, 'config.json has "mask_index": 17, and the checkpoint\'s hyper-parameters "mask_index": 4'),
        (
            {"training": {"sampling_eps": 0.01}},
            'config.json has "sampling_eps": 0.002, and the checkpoint\'s hyper-parameters "sampling_eps": 0.01',
        ),
    ],
)
def test_two_sources_that_differ_are_refused(kept, words):
    """With both values; neither has the last word."""
    said = {"noise": {"type": "loglinear", "eps": 0.05}, "mask_index": 17, "training": {"sampling_eps": 0.002}}
    for state in ({"hyper_parameters": {"config": kept}}, {"hyper_parameters": kept}):
        state |= {"state_dict": state_of("mdlm_dit")}
        refused(lambda s=state: mdlm(s, "file", config=CONFIG | said), words)
    state["hyper_parameters"] = {"config": CONFIG, "length": 24}
    assert mdlm(state, "file", config=CONFIG | said).transition.noise == LogLinearNoise(0.05, t_min=0.002)
    refused(
        lambda: mdlm(state | {"hyper_parameters": {"config": CONFIG, "length": 9}}, "file"), "give its state_dict alone"
    )


@pytest.mark.parametrize(
    ("config", "flags", "words"),
    [
        ({"noise": "geometric"}, {}, "noise='loglinear', but the file says 'geometric'"),
        ({"graph": "uniform"}, {}, "uniform=False, but the file says True"),
        ({"noise": 3}, {}, "file: the configuration has noise 3, where its entries are expected"),
        ({"graph": ["absorb"]}, {}, "the configuration has graph a list, where"),
        ({"model": "small"}, {}, "the configuration has model 'small', where"),
        ({"length": -1}, {}, "file: the configuration has length -1: it is a whole number above 0"),
        ({}, GEOMETRIC | {"sigma_min": 9.0}, "file: sigma_min=9, sigma_max=8: noise grows from the one to the other"),
        ({"noise": {"type": "loglinear", "eps": 2}}, {}, "file: "),
    ],
)
def test_parts_that_are_names_alone_and_ends_that_are_none(config, flags, words):
    refused(lambda: sedd(state_of("sedd_absorb"), "file", config=config, **SEDD | flags), words)


def test_a_noise_and_a_graph_by_name():
    config = {"noise": "loglinear", "graph": "absorb", "model": {"length": 24, "scale_by_sigma": True}}
    model = sedd(state_of("sedd_absorb"), "file", config=config)
    assert (type(model.transition), model.transition.noise, model.assumed) == (Absorbing, LogLinearNoise(), ())


def test_a_network_that_is_told_the_time_and_not_the_noise():
    config = {**CONFIG, "training": {"change_of_variables": True}}
    mdlm(state_of("mdlm_dit"), "file", config=config)
    refused(
        lambda: mdlm(state_of("mdlm_dit"), "file", config=config | {"time_conditioning": True}),
        "file: ",
        "change_of_variables",
    )


def answer(denoiser):
    """What the network is told and gives at masks too, and what is made of it."""
    x, t = PEER["tokens"], torch.tensor([0.002, 0.4, 1.0], dtype=torch.float64)
    with torch.no_grad():
        sigma = denoiser.time_input(denoiser.corruption, t)
        found = {
            "network": denoiser.network(x, sigma.float()),
            "noise": serialize(denoiser.corruption),
            "shape": denoiser.shape,
        }
        found["made"] = denoiser.log_ratio(x, t) if isinstance(denoiser, ScoreEntropyDenoiser) else denoiser(x, t)
    return found | {"label": sigma, "t_min": denoiser.corruption.noise.t_min}


def configured(values):
    """A SEDD of a `config.json` alone."""
    config = {"noise": {"type": "geometric"}, "graph": {}, "model": {"dropout": 0.1}}
    places = {"graph": ("graph", "type"), "sigma_min": ("noise", "sigma_min"), "sigma_max": ("noise", "sigma_max")}
    for name, value in values.items():
        part, entry = places.get(name, ("model", name))
        config[part][entry] = value
    return sedd(state_of("sedd_absorb", rotary=False), "file", config=config)


def of_either(values):
    """An MDLM, or a SEDD of its project, which is told the noise in any case."""
    timed = {} if values.get("parameterization") == "sedd" else {"time_conditioning": False}
    return mdlm(state_of("mdlm_dit"), "file", length=24, noise="loglinear", **timed, **values)


def of_noise(values):
    ends = {k: GEOMETRIC[k] for k in ("sigma_min", "sigma_max")} if values.get("noise") == "geometric" else {}
    return sedd(state_of("sedd_absorb"), "file", uniform=True, length=24, **ends, **values)


def geometric(values):
    flags = values if values.get("uniform") else values | {"scale_by_sigma": True}
    return sedd(state_of("sedd_absorb"), "file", length=24, noise="geometric", **flags)


ENDS = {"sigma_min": Setting(st.sampled_from([1e-4, 1e-3])), "sigma_max": Setting(st.sampled_from([8.0, 20.0]))}
COMMON = {"length": Setting(st.sampled_from([24, 32])), "n_heads": Setting(st.sampled_from([2, 4]))}
FORMATS = {
    "MDLM": Format(
        lambda values: mdlm(
            state_of("mdlm_dit", rotary=False), "file", noise="loglinear", **{"parameterization": "subs"} | values
        ),
        COMMON | {"time_conditioning": Setting(st.booleans())},
        more={"sigma_min": (0.1,), "sigma_max": (3.0,), "parameterization": ("d3pm",)},
    ),
    "MDLM or SEDD": Format(of_either, {"parameterization": Setting(st.sampled_from(["subs", "sedd"]))}),
    "SEDD": Format(
        lambda values: sedd(state_of("sedd_absorb", rotary=False), "file", uniform=False, noise="loglinear", **values),
        COMMON | {"scale_by_sigma": Setting(st.booleans())},
        more={"sigma_min": (0.1,)},
    ),
    "SEDD, noise": Format(
        of_noise, {"noise": Setting(st.sampled_from(["loglinear", "geometric"]))}, more={"n_heads": (2, 8)}
    ),
    "SEDD, geometric": Format(geometric, ENDS | {"uniform": Setting(st.booleans())}),
    "SEDD, configured": Format(
        lambda values: configured({"graph": "absorb"} | values),
        COMMON | ENDS | {"scale_by_sigma": Setting(st.booleans())},
    ),
    "SEDD, graph": Format(
        lambda values: configured(
            {"scale_by_sigma": False, "length": 24, "n_heads": 4, "sigma_min": 1e-4, "sigma_max": 20.0} | values
        ),
        {"graph": Setting(st.sampled_from(["absorb", "uniform"]), asks="uniform")},
    ),
}
FORMATS = {name: replace(form, answer=answer, examples=2) for name, form in FORMATS.items()}
test_dropped, test_changed, test_more = setting_tests(FORMATS)
