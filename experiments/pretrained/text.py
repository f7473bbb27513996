"""Imports text models: MDLM (Sahoo et al. 2024) and SEDD (Lou et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ...discrete import (
    Absorbing,
    Categorical,
    ScoreEntropyDenoiser,
    Uniform,
    carried,
    scaled_by_noise,
    unscaled,
)
from ...discrete.transition.interpolating import Interpolating
from ...shared.corruption import Corruption
from ...shared.errors import UsageError
from ...shared.networks import DiT
from ...shared.quantization import Quantization
from ...shared.serialization import serializable
from .settings import Settings, attach
from .text_config import (
    GPT2,
    MDLM,
    SEDD,
    TextConfig,
    last_token_is_mask,
    notes_of,
    published_settings,
    refuse_sizes,
    schedule,
    settings_from,
)
from .weights import Names, averaged, fill, listed, renamed, stripped, tensor

PREFIX = "backbone."
ROTARY = "rotary_emb.inv_freq"
BASE = 10_000.0
HEAD = 64
LANDMARKS = ("vocab_embed.embedding", "sigma_map.mlp.0.weight", "output_layer.linear.weight")


@serializable("experiments.total_noise", formerly="unnoise.experiments.released.text.total_noise")
def total_noise(corruption: Corruption, t: Tensor) -> Tensor:
    """Returns `total(t)`, the expected number of events for a token until t.

    This is sigma, the time input of Lou et al.'s (2024) and Sahoo et al.'s (2024) networks.
    """
    return cast("Interpolating", corruption).noise.total(t)


def looks_like_mdlm(state: Any) -> bool:
    """Returns whether a file contains the text transformer under `backbone.` and was not trained as a SEDD."""
    return _has(state, PREFIX) and TextConfig(None, state).kind() not in SEDD


def looks_like_sedd(state: Any) -> bool:
    """Returns whether a file contains the text transformer without a prefix, as SEDD's do, or was trained as a SEDD."""
    return _has(state, "") or (_has(state, PREFIX) and TextConfig(None, state).kind() in SEDD)


def _has(state: Any, prefix: str) -> bool:
    tensors = _tensors(state)
    return all(prefix + name in tensors for name in LANDMARKS)


def mdlm(
    state: Mapping[str, Any],
    source: str,
    *,
    config: Mapping[str, Any] | None = None,
    parameterization: str | None = None,
    time_conditioning: bool | None = None,
    noise: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    length: int | None = None,
    n_heads: int | None = None,
) -> Categorical | ScoreEntropyDenoiser:
    """Returns an MDLM, absorption with SUBS (Sahoo et al. 2024, section 3.2.3); `.assumed` lists assumptions.

    The last token of the vocabulary is the mask. Averaged weights are used where the file has them. A SEDD that was
    trained with MDLM's code has the same tensors: where the configuration, the hyper-parameters in a training
    checkpoint, or `parameterization` is SEDD's, the result is that of `sedd`.

    Each setting is that of the configuration or of the hyper-parameters, or, for the size of a published checkpoint,
    that of its training.

    Args:
        state: the tensors by name, or a training checkpoint with `state_dict` and possibly `ema`.
        source: the file, for errors.
        config: the model's `config.json`, where there is one.
        parameterization: "subs" or "sedd".
        time_conditioning: whether the network is fed sigma.
        noise: "loglinear" or "geometric".
        sigma_min, sigma_max: ends of a geometric noise.
        length: sequence length of training, in tokens.
        n_heads: attention heads, where the file does not contain the rotary frequencies, which determine them.

    Raises:
        UsageError: for a file that does not contain such a network, or not that of the configuration, for one that was
            trained in another way, such as D3PM, and for settings that are missing or that the file contradicts.
    """
    if parameterization not in (None, "subs", "sedd"):
        raise UsageError(
            f"parameterization={parameterization!r} is not supported; subs and sedd are: parameterization='subs'"
        )
    text_config = TextConfig(config, state, source)
    if text_config.kind() not in SEDD:
        text_config.refuse_other(MDLM, "an MDLM", source)
    given = {"parameterization": parameterization, "time_conditioning": time_conditioning, "noise": noise}
    given |= {"sigma_min": sigma_min, "sigma_max": sigma_max, "length": length, "n_heads": n_heads}
    return _denoiser(state, source, text_config, given)


def sedd(
    state: Mapping[str, Any],
    source: str,
    *,
    config: Mapping[str, Any] | None = None,
    uniform: bool | None = None,
    noise: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    scale_by_sigma: bool | None = None,
    length: int | None = None,
    n_heads: int | None = None,
) -> ScoreEntropyDenoiser:
    """Returns a SEDD, ratios under absorption or uniform resampling (Lou et al. 2024); `.assumed` lists assumptions.

    A mask is the last token of the vocabulary. Each setting is that of the configuration, or, for the sizes of a
    published checkpoint, that of its training.

    Args:
        state: the tensors by name, or a training checkpoint with `state_dict` or `model` and possibly `ema`, whose
            averaged weights are then used.
        source: the file, for errors.
        config: the model's `config.json`, where there is one: its graph, noise and sizes.
        uniform: whether tokens are resampled instead of masked; None for True with GPT-2's 50257 tokens, and for False
            with one more.
        noise: "loglinear" or "geometric".
        sigma_min, sigma_max: ends of a geometric noise.
        scale_by_sigma: whether ratios are scaled by the noise; under uniform resampling they are not.
        length: sequence length of training, in tokens.
        n_heads: attention heads, where the file does not contain the rotary frequencies, which determine them.

    Raises:
        UsageError: for a file that does not contain such a network, or not that of the configuration, for one whose
            configuration is not a SEDD's, and for settings that are missing or that the file contradicts.
    """
    text_config = TextConfig(config, state, source)
    text_config.refuse_other(SEDD, "a SEDD", source)
    given = {"parameterization": "sedd", "uniform": uniform, "noise": noise, "scale_by_sigma": scale_by_sigma}
    given |= {"sigma_min": sigma_min, "sigma_max": sigma_max, "length": length, "n_heads": n_heads}
    denoiser = _denoiser(state, source, text_config, given)
    assert isinstance(denoiser, ScoreEntropyDenoiser)
    return denoiser


def _denoiser(
    state: Mapping[str, Any], source: str, text_config: TextConfig, given: Mapping[str, Any]
) -> Categorical | ScoreEntropyDenoiser:
    if not (_has(state, PREFIX) or _has(state, "")):
        raise UsageError(
            f"{source} does not contain the text transformer of MDLM or SEDD, which has {listed(list(LANDMARKS))}"
        )
    tensors = averaged(_tensors(state), state.get("ema"), lambda name: name.endswith(ROTARY), source)
    prefix = PREFIX if _has(tensors, PREFIX) else ""
    vocabulary, width = tensor(tensors, f"{prefix}vocab_embed.embedding", 2, source).shape
    from_file = settings_from(text_config, source, prefixed=bool(prefix), vocabulary=vocabulary)
    published = published_settings(from_file, vocabulary, width, depth_of(tensors, prefix), prefixed=bool(prefix))
    settings = Settings(source, given, from_file, published)
    _complete(settings, text_config, tensors, prefix)
    uniform = settings.get("uniform")
    if not uniform and not last_token_is_mask(text_config, source, vocabulary) and prefix and not settings.is_published:
        settings.note("the mask is the last token")
    network, noise = _network(tensors, prefix, source, settings, text_config), schedule(settings, text_config, source)
    if settings.get("time_conditioning") and text_config("change_of_variables", within="training"):
        raise UsageError(
            f"{source}: the configuration has training.change_of_variables, which is not supported, because the "
            "network is fed t instead of sigma"
        )
    for sentence in notes_of(text_config):
        settings.note(sentence)
    transition = Uniform(vocabulary, noise) if uniform else Absorbing(vocabulary - 1, noise)
    denoiser: Categorical | ScoreEntropyDenoiser
    if settings.get("parameterization") == "sedd":
        offset = scaled_by_noise if settings.get("scale_by_sigma") else unscaled
        denoiser = ScoreEntropyDenoiser(network, transition, total_noise, offset)
    else:
        denoiser = Categorical(network, transition, time_input=total_noise, head=carried)
    quantization = Quantization(transition.categories)
    attach(denoiser, quantization=quantization, shape=(network.length,), assumed=settings.assumed)
    return denoiser.eval()


def _complete(settings: Settings, text_config: TextConfig, tensors: Mapping[str, Any], prefix: str) -> None:
    """Adds the settings that the weights determine, and raises `UsageError` for those that are missing."""
    vocabulary, width = tensors[f"{prefix}vocab_embed.embedding"].shape
    sedd = settings.get("parameterization") == "sedd"
    if prefix or not sedd:  # MDLM's code has only masks, and always scales, whatever its configuration contains
        settings.add_from_file("uniform", False)
        settings.from_file["scale_by_sigma"] = True
    elif settings.get("uniform") is None and vocabulary in (GPT2, GPT2 + 1):
        settings.from_file["uniform"] = settings.assume(
            "uniform", vocabulary == GPT2, f"GPT-2 has {GPT2} tokens, and a mask is one more"
        )
    if prefix + ROTARY in tensors:
        settings.add_from_file("n_heads", _heads(width, tensors, prefix + ROTARY, settings.source, text_config))
    for holds, name, value, why in (
        (settings.get("uniform"), "scale_by_sigma", False, "under uniform resampling, ratios are not scaled"),
        (sedd, "time_conditioning", True, "a SEDD is fed its noise, by which its ratios are scaled"),
    ):
        if holds and settings.get(name) is (not value):
            raise UsageError(f"{settings.source}: {why}: {name}={not value} does not fit, leave it out")
        settings.from_file |= {name: value} if holds else {}
    examples = {"parameterization": "subs", "time_conditioning": False, "uniform": False, "noise": "loglinear"}
    examples |= {"scale_by_sigma": True, "length": 1024, "n_heads": max(width // HEAD, 1)}
    examples |= {"sigma_min": 1e-4, "sigma_max": 20.0} if settings.get("noise") == "geometric" else {}
    more = " (noise='geometric' needs sigma_min and sigma_max too)" if settings.get("noise") is None else ""
    settings.require(f"the weights do not determine all settings, and have no published size{more}", **examples)
    known = settings.from_file.keys() | settings.flags.keys()
    if used := {k: v for k, v in settings.from_name.items() if k not in known}:
        values = ", ".join(f"{name}={value!r}" for name, value in used.items())
        settings.note(f"the sizes are those of a published checkpoint, whose other settings are used: {values}")


def _network(tensors: Mapping[str, Any], prefix: str, source: str, settings: Settings, text_config: TextConfig) -> DiT:
    """Builds the transformer, with the sizes of its tensors, and loads them."""
    vocabulary, width = tensors[f"{prefix}vocab_embed.embedding"].shape
    length, heads = settings.counts("the weights do not determine them", length=1024, n_heads=12)
    if width % (2 * heads):
        raise UsageError(
            f"{source}: n_heads={heads}: {width} channels cannot be split into that many heads of an even width"
        )
    depth = depth_of(tensors, prefix)
    embedding = len(tensor(tensors, f"{prefix}sigma_map.mlp.0.weight", 2, source))
    refuse_sizes(text_config, source, width=width, depth=depth, embedding=embedding, vocabulary=vocabulary)
    network = DiT(
        vocabulary,
        length,
        width,
        depth,
        heads,
        len(tensor(tensors, f"{prefix}blocks.0.mlp.0.weight", 2, source)),
        len(tensor(tensors, f"{prefix}output_layer.linear.weight", 2, source)),
        text_config.number("dropout", default=0.0),
        embedding=embedding,
        timed=settings.get("time_conditioning"),
    )
    fill(network, _names(prefix, depth), tensors, source, ignored=(prefix + ROTARY,))
    return network


def depth_of(tensors: Mapping[str, Any], prefix: str) -> int:
    """Returns the number of blocks of the transformer."""
    return len({name.split(".")[1] for name in stripped(tensors, prefix) if name.startswith("blocks.")})


def _heads(width: int, tensors: Mapping[str, Any], rotary: str, source: str, text_config: TextConfig) -> int:
    """Returns the number of heads, from the rotary frequencies: one for each pair of a head's channels."""
    configured = text_config.whole("n_heads")
    frequencies = tensor(tensors, rotary, 1, source)
    expected = BASE ** (-torch.arange(len(frequencies)).double() / len(frequencies))
    if not torch.allclose(frequencies.double(), expected, rtol=1e-2):  # half precision passes, another base does not
        raise UsageError(f"{source}: {ROTARY} does not have base {BASE:g}, the only one that is supported")
    heads = max(width // (2 * len(frequencies)), 1)
    if configured not in (None, heads):
        raise UsageError(
            f"{source}: the configuration has {configured} heads, but {ROTARY} belongs to {heads}: "
            "give the configuration of this file"
        )
    if width != 2 * len(frequencies) * heads:
        raise UsageError(
            f"{source}: {ROTARY} has {len(frequencies)} frequencies, so each head has {2 * len(frequencies)} channels, "
            f"of which {width} is not a multiple: give the complete file"
        )
    return heads


def _names(prefix: str, depth: int) -> Names:
    names: Names = {"embed.weight": f"{prefix}vocab_embed.embedding"}
    names |= renamed("time", f"{prefix}sigma_map.mlp", {"0": "0", "2": "2"})
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"{prefix}blocks.{i}"
        names |= renamed(
            ours, theirs, {"norm1": "norm1", "qkv": "attn_qkv", "out": "attn_out", "norm2": "norm2"}, of=("weight",)
        )
        names |= renamed(ours, theirs, {"mlp.0": "mlp.0", "mlp.2": "mlp.2", "modulation": "adaLN_modulation"})
    names |= renamed("norm", f"{prefix}output_layer.norm_final", {"": ""}, of=("weight",))
    return names | renamed("", f"{prefix}output_layer", {"head": "linear", "modulation": "adaLN_modulation"})


def _tensors(state: Any) -> Mapping[str, Any]:
    """Returns the tensors of a training checkpoint, or the file's contents; nothing for anything but a mapping."""
    if not isinstance(state, Mapping):
        return {}
    inner = (state[name] for name in ("state_dict", "model") if isinstance(state.get(name), Mapping))
    return next(inner, state)
