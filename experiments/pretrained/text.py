"""The released text models: MDLM (Sahoo et al. 2024) and SEDD (Lou et al. 2024), as our own denoisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...discrete import (
    Absorbing,
    Categorical,
    ScoreEntropyDenoiser,
    Transition,
    Uniform,
    carried,
    scaled_by_noise,
    unscaled,
)
from ...shared.errors import UsageError
from ...shared.networks import DiT
from ...shared.quantization import Quantization
from ...shared.serialization import serializable
from .settings import Settings
from .text_config import GPT2, MDLM, SEDD, Said, refuse_other_mask, refuse_sizes, released, schedule, sentences, told_by
from .weights import Names, averaged, fill, listed, renamed, stripped, tensor

PREFIX = "backbone."
ROTARY = "rotary_emb.inv_freq"
BASE = 10_000.0
HEAD = 64
LANDMARKS = ("vocab_embed.embedding", "sigma_map.mlp.0.weight", "output_layer.linear.weight")


@serializable("experiments.total_noise", formerly="unnoise.experiments.released.text.total_noise")
def total_noise(transition: Transition, t: Tensor) -> Tensor:
    """`total(t)`, the events that a symbol has met.

    Sigma, the label of Lou et al.'s (2024) and Sahoo et al.'s (2024) networks.
    """
    return transition.noise.total(t)


def looks_like_mdlm(state: Any) -> bool:
    """Whether a file as read holds the text transformer under `backbone.`, and does not say that it is a SEDD, trained
    beside MDLM.
    """
    return _has(state, PREFIX) and Said(None, state).kind() not in SEDD


def looks_like_sedd(state: Any) -> bool:
    """Whether a file as read holds the text transformer without a prefix, as SEDD's do, or says that it is one."""
    return _has(state, "") or (_has(state, PREFIX) and Said(None, state).kind() in SEDD)


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
    """An MDLM: absorption with SUBS (Sahoo et al. 2024, section 3.2.3); `.assumed` is what nothing told, a sentence
    each.

    The last token of the vocabulary is the mask. Where the file keeps averaged weights too, they are the ones that are
    taken. A SEDD that was trained beside MDLM has the same tensors: where the configuration, the hyper-parameters in a
    training checkpoint, or `parameterization` say so, it is returned as `sedd` gives it. The tensors alone do not tell.

    Each setting is what the configuration or the hyper-parameters say, or for the released size what its training was.

    Args:
        state: the tensors by name, or a training checkpoint with `state_dict` and, where it has one, `ema`.
        source: the file, for errors.
        config: the model's `config.json`, where there is one.
        parameterization: "subs" or "sedd".
        time_conditioning: whether the network is told sigma.
        noise: "loglinear" or "geometric".
        sigma_min, sigma_max: ends of a geometric noise.
        length: of the sequences that it was trained on.
        n_heads: attention heads, where the file does not hold the rotary rates, which tell them.

    Raises:
        UsageError: for a file that does not hold such a network, or not the one of the configuration, for one that is
            trained in another way, such as D3PM's, for a setting that nothing tells, and for one that the file
            contradicts.
    """
    if parameterization not in (None, "subs", "sedd"):
        raise UsageError(
            f"parameterization={parameterization!r} is not read; subs and sedd are: parameterization='subs'"
        )
    said = Said(config, state, source)
    if said.kind() not in SEDD:
        said.refuse_other(MDLM, "an MDLM", source)
    given = {"parameterization": parameterization, "time_conditioning": time_conditioning, "noise": noise}
    given |= {"sigma_min": sigma_min, "sigma_max": sigma_max, "length": length, "n_heads": n_heads}
    return _denoiser(state, source, said, given)


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
    """A SEDD: ratios under absorption or uniform resampling (Lou et al. 2024); `.assumed` is what nothing told.

    A mask is the last token of the vocabulary. Each setting is what the configuration says, or for the released sizes
    what their training was.

    Args:
        state: the tensors by name, or a training checkpoint with `state_dict` or `model` and, where it has one, `ema`,
            whose averaged weights are the ones that are taken.
        source: the file, for errors.
        config: the model's `config.json`, where there is one: its graph, noise and sizes.
        uniform: whether tokens are resampled and not masked; GPT-2's 50257 tokens tell, and one more.
        noise: "loglinear" or "geometric".
        sigma_min, sigma_max: ends of a geometric noise.
        scale_by_sigma: whether ratios are scaled by the noise; under uniform resampling they are not.
        length: of the sequences that it was trained on.
        n_heads: attention heads, where the file does not hold the rotary rates, which tell them.

    Raises:
        UsageError: for a file that does not hold such a network, or not the one of the configuration, for one that says
            that it is no SEDD, for a setting that nothing tells, and for one that the file contradicts.
    """
    said = Said(config, state, source)
    said.refuse_other(SEDD, "a SEDD", source)
    given = {"parameterization": "sedd", "uniform": uniform, "noise": noise, "scale_by_sigma": scale_by_sigma}
    given |= {"sigma_min": sigma_min, "sigma_max": sigma_max, "length": length, "n_heads": n_heads}
    return _denoiser(state, source, said, given)


def _denoiser(
    state: Mapping[str, Any], source: str, said: Said, given: Mapping[str, Any]
) -> Categorical | ScoreEntropyDenoiser:
    """The network of these settings in its denoiser."""
    if not (_has(state, PREFIX) or _has(state, "")):
        raise UsageError(
            f"{source} does not hold the text transformer of MDLM or SEDD, which has {listed(list(LANDMARKS))}"
        )
    tensors = averaged(_tensors(state), state.get("ema"), lambda name: name.endswith(ROTARY), source)
    prefix = PREFIX if _has(tensors, PREFIX) else ""
    vocabulary, width = tensor(tensors, f"{prefix}vocab_embed.embedding", 2, source).shape
    told = told_by(said, source, prefixed=bool(prefix), vocabulary=vocabulary)
    settings = Settings(
        source, given, told, released(told, vocabulary, width, depth_of(tensors, prefix), prefixed=bool(prefix))
    )
    _settle(settings, said, tensors, prefix)
    uniform = settings.get("uniform")
    if not uniform and not refuse_other_mask(said, source, vocabulary) and prefix and not settings.known:
        settings.say("the mask is the last token")
    network, noise = _network(tensors, prefix, source, settings, said), schedule(settings, said, source)
    if settings.get("time_conditioning") and said("change_of_variables", within="training"):
        raise UsageError(
            f"{source}: the configuration has training.change_of_variables, with which a network is told t and not sigma"
        )
    for sentence in sentences(said):
        settings.say(sentence)
    transition = Uniform(vocabulary, noise) if uniform else Absorbing(vocabulary - 1, noise)
    made: Categorical | ScoreEntropyDenoiser
    if settings.get("parameterization") == "sedd":
        offset = scaled_by_noise if settings.get("scale_by_sigma") else unscaled
        made = ScoreEntropyDenoiser(network, transition, total_noise, offset)
    else:
        made = Categorical(network, transition, time_input=total_noise, head=carried)
    made.quantization, made.shape, made.assumed = Quantization(transition.levels), (network.length,), settings.assumed
    return made.eval()


def _settle(settings: Settings, said: Said, tensors: Mapping[str, Any], prefix: str) -> None:
    """Adds what the weights tell, and asks for all that is open."""
    vocabulary, width = tensors[f"{prefix}vocab_embed.embedding"].shape
    sedd = settings.get("parameterization") == "sedd"
    if prefix or not sedd:  # MDLM's project has masks alone, and scales whatever its configuration says
        settings.tell("uniform", False)
        settings.told["scale_by_sigma"] = True
    elif settings.get("uniform") is None and vocabulary in (GPT2, GPT2 + 1):
        settings.told["uniform"] = settings.assume(
            "uniform", vocabulary == GPT2, f"GPT-2 has {GPT2} tokens, and a mask is one more"
        )
    if prefix + ROTARY in tensors:
        settings.tell("n_heads", _heads(width, tensors, prefix + ROTARY, settings.source, said))
    for holds, name, value, why in (
        (settings.get("uniform"), "scale_by_sigma", False, "under uniform resampling ratios are not scaled"),
        (sedd, "time_conditioning", True, "a SEDD is told its noise, by which its ratios are scaled"),
    ):
        if holds and settings.get(name) is (not value):
            raise UsageError(f"{settings.source}: {why}: {name}={not value} does not fit, leave it out")
        settings.told |= {name: value} if holds else {}
    examples = {"parameterization": "subs", "time_conditioning": False, "uniform": False, "noise": "loglinear"}
    examples |= {"scale_by_sigma": True, "length": 1024, "n_heads": max(width // HEAD, 1)}
    examples |= {"sigma_min": 1e-4, "sigma_max": 20.0} if settings.get("noise") == "geometric" else {}
    more = " (noise='geometric' needs sigma_min and sigma_max too)" if settings.get("noise") is None else ""
    settings.ask(f"the weights do not tell all, and are of no released size{more}", **examples)
    if used := {k: v for k, v in settings.named.items() if k not in settings.told and k not in settings.given}:
        same = ", ".join(f"{name}={value!r}" for name, value in used.items())
        settings.say(f"the sizes are those of a released network, and so is what nothing else tells: {same}")


def _network(tensors: Mapping[str, Any], prefix: str, source: str, settings: Settings, said: Said) -> DiT:
    """The transformer, with the sizes of its tensors."""
    vocabulary, width = tensors[f"{prefix}vocab_embed.embedding"].shape
    length, heads = settings.counts("the weights do not tell", length=1024, n_heads=12)
    if width % (2 * heads):
        raise UsageError(f"{source}: n_heads={heads}: {width} channels are not that many heads of an even width")
    depth = depth_of(tensors, prefix)
    embedding = len(tensor(tensors, f"{prefix}sigma_map.mlp.0.weight", 2, source))
    refuse_sizes(said, source, width=width, depth=depth, embedding=embedding, vocabulary=vocabulary)
    network = DiT(
        vocabulary,
        length,
        width,
        depth,
        heads,
        len(tensor(tensors, f"{prefix}blocks.0.mlp.0.weight", 2, source)),
        len(tensor(tensors, f"{prefix}output_layer.linear.weight", 2, source)),
        said.number("dropout", default=0.0),
        embedding=embedding,
        timed=settings.get("time_conditioning"),
    )
    fill(network, _names(prefix, depth), tensors, source, ignored=(prefix + ROTARY,))
    return network


def depth_of(tensors: Mapping[str, Any], prefix: str) -> int:
    """Blocks of the transformer."""
    return len({name.split(".")[1] for name in stripped(tensors, prefix) if name.startswith("blocks.")})


def _heads(width: int, tensors: Mapping[str, Any], rotary: str, source: str, said: Said) -> int:
    """Heads by the rotary rates, of which there is one for each pair of a head's channels, and whose base must be ours."""
    stated = said.whole("n_heads")
    rates = tensor(tensors, rotary, 1, source)
    expected = BASE ** (-torch.arange(len(rates)).double() / len(rates))
    if not torch.allclose(rates.double(), expected, rtol=1e-2):  # half precision passes, another base does not
        raise UsageError(
            f"{source}: {ROTARY} is not that of base {BASE:g}, the only one that these networks were released with"
        )
    heads = max(width // (2 * len(rates)), 1)
    if stated not in (None, heads):
        raise UsageError(
            f"{source}: the configuration has {stated} heads, and {ROTARY} is that of {heads}: give the one that belongs to it"
        )
    if width != 2 * len(rates) * heads:
        raise UsageError(
            f"{source}: {ROTARY} has {len(rates)} rates, half of a head's channels, which {width} channels do not hold evenly"
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
    """The tensors by name: those of a training checkpoint, or the file itself; none of what has no names."""
    if not isinstance(state, Mapping):
        return {}
    found = (state[name] for name in ("state_dict", "model") if isinstance(state.get(name), Mapping))
    return next(found, state)
