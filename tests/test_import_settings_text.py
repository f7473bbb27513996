"""MDLM and SEDD: settings from tensors, configurations, published sizes and flags, and the numbers that follow."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from hypothesis import strategies as st
from import_settings import Format, Setting, setting_tests
from import_text import GEOMETRIC, MDLM, SEDD, state_of
from pretrained_helpers import meta, refused
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
from unnoise.experiments.pretrained import text
from unnoise.experiments.pretrained.exporting import Flags, bring
from unnoise.experiments.pretrained.text import mdlm, sedd
from unnoise.shared.networks import DiT
from unnoise.shared.serialization import serialize

PEER = Fixture("sedd_absorb")


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("origin", ["flags", "configuration"])
def test_a_geometric_noise_of_other_ends(uniform, origin):
    """The reference's ratios at the times of its noise, under `low^(1 - t) high^t`."""
    flags = {"uniform": uniform, "length": 24} | GEOMETRIC | ({} if uniform else {"scale_by_sigma": True})
    if origin == "configuration":
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


def test_a_sedd_checkpoint_contains_no_settings():
    """As training writes it: one error names all settings that are required."""
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
        lambda: sedd(checkpoint, "c.pth", **SEDD, sigma_max=3.0),
        "sigma_max=3.0 has no effect, because the noise is loglinear",
    )
    refused(
        lambda: sedd(checkpoint, "c.pth", uniform=True, noise="loglinear", length=24, scale_by_sigma=True),
        "scale_by_sigma=True does",
    )


@pytest.mark.parametrize("kind", ["cosine", "cosinesqr", "linear", "polynomial", 3])
def test_other_noises_are_refused_by_name(kind):
    for name, load, flags in (("mdlm_dit", mdlm, MDLM), ("sedd_absorb", sedd, SEDD)):
        flags = {k: v for k, v in flags.items() if k != "noise"}
        for given in ({"noise": kind}, {"config": {"noise": {"type": kind}}}):
            refused(
                lambda n=name, f=load, t=given, g=flags: f(state_of(n), "file", **g, **t),
                f"noise of type {kind!r} is not supported",
            )


def test_a_published_size_is_known_and_reported(monkeypatch):
    """GPT-2's tokens and a mask in 768 or 1024 channels; the networks themselves are stand-ins here."""

    def stand_in(tensors, prefix, source, settings, text_config):
        return DiT(3, settings.get("length"), 2 * settings.get("n_heads"), 1, settings.get("n_heads"))

    def blocks(n):
        return {f"blocks.{i}.norm1.weight": meta(1) for i in range(n)}

    monkeypatch.setattr(text, "_network", stand_in)
    for width, heads, depth in ((768, 12, 12), (1024, 16, 24)):
        shallow = dict.fromkeys(text.LANDMARKS, meta(50_258, width)) | blocks(depth - 1)
        refused(
            lambda s=shallow: sedd(s, "file"),
            "have no published size",
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
            "the sizes are those of a published checkpoint, whose other settings are used: noise='loglin"
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
    assert made.assumed[0].endswith("used: noise='loglinear'")
    assert type(mdlm(prefixed, "file", config={"parameterization": "sedd"})) is ScoreEntropyDenoiser


def test_a_tokenizer_of_another_size_is_refused_on_import(tmp_path):
    """Before anything is written."""
    torch.save({"state_dict": peer_state("mdlm_dit")}, tmp_path / "mdlm.ckpt")
    flags = Flags(**{k: v for k, v in MDLM.items() if k != "n_heads"})
    for size in (17, 18):
        tokenizer = Tokenizer(WordLevel({"</s>": 0} | {f"w{n}": n for n in range(1, size)}, unk_token="w1"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.save(str(tmp_path / f"{size}.json"))
    words = "the tokenizer has 18 tokens, and the model 17: give the tokenizer of its training, without a mask token"
    refused(lambda: bring(str(tmp_path / "mdlm.ckpt"), tmp_path / "run", flags, tokenizer=tmp_path / "18.json"), words)
    assert not (tmp_path / "run").exists()
    bring(str(tmp_path / "mdlm.ckpt"), tmp_path / "run", flags, tokenizer=tmp_path / "17.json")


def answer(denoiser):
    """The input and output of the network, at masks too, and the denoiser's numbers."""
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
    """An MDLM, or a SEDD of its project, which is always fed the noise."""
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
        {"graph": Setting(st.sampled_from(["absorb", "uniform"]), error="uniform")},
    ),
}
FORMATS = {name: replace(form, answer=answer, examples=2) for name, form in FORMATS.items()}
test_dropped, test_changed, test_more = setting_tests(FORMATS)
