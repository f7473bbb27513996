"""The released text models: MDLM (Sahoo et al. 2024) and SEDD (Lou et al. 2024), as our own denoisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...discrete import (
    Absorbing,
    Categorical,
    CategoricalDenoiser,
    Geometric,
    LogLinear,
    ScoreEntropyDenoiser,
    Transition,
    Uniform,
    carried,
    scaled_by_noise,
    unscaled,
)
from ...shared.describe import described
from ...shared.errors import UsageError
from ...shared.networks import DiT
from ...shared.scale import Scale
from .weights import Names, fill, listed, renamed

D = TypeVar("D", bound=CategoricalDenoiser)

PREFIX = "backbone."
ROTARY = "rotary_emb.inv_freq"
BASE = 10_000.0
HEAD = 64
LENGTH = 1024
GPT2 = 50_257
LANDMARKS = ("vocab_embed.embedding", "sigma_map.mlp.0.weight", "output_layer.linear.weight")


@described
def total_noise(transition: Transition, t: Tensor) -> Tensor:
    """`total(t)`, the events that a symbol has met: sigma, the label of Lou et al.'s (2024) and Sahoo et al.'s (2024) networks."""
    return transition.noise.total(t)


def looks_like_mdlm(state: Any) -> bool:
    """Whether a file as read holds the text transformer under `backbone.`, as MDLM's do, and the SEDD models trained beside it."""
    return all(PREFIX + name in _tensors(state) for name in LANDMARKS)


def looks_like_sedd(state: Any) -> bool:
    """Whether a file as read holds the text transformer without a prefix, as SEDD's do."""
    return all(name in _tensors(state) for name in LANDMARKS)


def mdlm(
    state: Mapping[str, Any],
    source: str,
    *,
    config: Mapping[str, Any] | None = None,
    time_conditioning: bool | None = None,
    length: int | None = None,
) -> Categorical:
    """A released MDLM: absorption under the log-linear schedule with SUBS (Sahoo et al. 2024, section 3.2.3).

    The last token of the vocabulary is the mask. Where the file keeps averaged weights too, they are the ones that are taken.

    Args:
        state: the tensors by name, or a training checkpoint with `state_dict` and, where it has one, `ema`.
        source: the file, for errors.
        config: the model's `config.json`, where there is one.
        time_conditioning: whether the network is told sigma; as the configuration says, and False without it: no tensor tells.
        length: of the sequences that it was trained on; as the configuration says, and 1024 without it: no tensor tells.

    Raises:
        UsageError: for a file that does not hold such a network, or not the one of the configuration.
    """
    said = _Said(config)
    timed = said("time_conditioning", default=False) if time_conditioning is None else time_conditioning
    network = _network(state, source, said, bool(timed), length)
    transition = Absorbing(network.vocabulary - 1, LogLinear())
    denoiser = Categorical(network, transition, label=total_noise, head=carried)
    return _known(denoiser, transition, network)


def sedd(
    state: Mapping[str, Any],
    source: str,
    *,
    config: Mapping[str, Any] | None = None,
    uniform: bool | None = None,
    length: int | None = None,
) -> ScoreEntropyDenoiser:
    """A released SEDD: ratios under absorption with the log-linear schedule, or under uniform resampling with the geometric one.

    A mask is the last token of the vocabulary. Ratios are scaled by the noise under absorption, unless the configuration says otherwise.

    Args:
        state: the tensors by name, or a training checkpoint with `state_dict` or `model` and, where it has one, `ema`, whose averaged
            weights are the ones that are taken.
        source: the file, for errors.
        config: the model's `config.json`, where there is one: its graph, noise and sizes.
        uniform: whether symbols are resampled and not masked; as the configuration says; without it True for GPT-2's 50257 tokens alone,
            to which a mask would have added one, and False for any other vocabulary.
        length: of the sequences that it was trained on; as the configuration says, and 1024 without it: no tensor tells.

    Raises:
        UsageError: for a file that does not hold such a network, or not the one of the configuration.
    """
    said = _Said(config)
    network = _network(state, source, said, True, length)
    uniform = _is_uniform(network.vocabulary, source, said) if uniform is None else uniform
    noise = said.within("noise")
    kind = noise.get("type", "geometric" if uniform else "loglinear")
    if kind not in ("geometric", "loglinear"):
        raise UsageError(f"{source}: the configuration has noise of type {kind!r}, and SEDD's are loglinear and geometric")
    low, high = (float(noise.get(name, default)) for name, default in (("sigma_min", 1e-4), ("sigma_max", 20.0)))
    schedule = LogLinear() if kind == "loglinear" else Geometric(low, high)
    transition = Uniform(network.vocabulary, schedule) if uniform else Absorbing(network.vocabulary - 1, schedule)
    offset = scaled_by_noise if said("scale_by_sigma", default=not uniform) else unscaled
    return _known(ScoreEntropyDenoiser(network, transition, total_noise, offset), transition, network)


class _Said:
    """What a configuration says, at its top or under `model`; nothing where there is none."""

    def __init__(self, config: Mapping[str, Any] | None) -> None:
        self.config = config or {}

    def within(self, part: str) -> Mapping[str, Any]:
        found = self.config.get(part)
        return found if isinstance(found, Mapping) else {}

    def __call__(self, *names: str, default: Any = None) -> Any:
        found = (place[name] for name in names for place in (self.within("model"), self.config) if place.get(name) is not None)
        return next(found, default)


def _is_uniform(vocabulary: int, source: str, said: _Said) -> bool:
    """Whether there is no mask among the tokens: by the graph's name, and by how many tokens the text has."""
    kind, tokens = said.within("graph").get("type"), said("tokens")
    if kind not in (None, "absorb", "uniform"):
        raise UsageError(f"{source}: the configuration has a graph of type {kind!r}, and SEDD's are absorb and uniform")
    uniform = vocabulary == (GPT2 if tokens is None else tokens) if kind is None else kind == "uniform"
    if tokens is not None and vocabulary != tokens + (not uniform):
        raise UsageError(
            f"{source}: the configuration has {tokens} tokens and the graph {kind}, and the weights have {vocabulary}, which is neither "
            "as many nor, for absorb, one more: give the configuration that belongs to them"
        )
    return uniform


def _known(denoiser: D, transition: Transition, network: DiT) -> D:
    denoiser.scale, denoiser.shape = Scale(transition.levels), (network.length,)
    return denoiser.eval()


def _network(state: Mapping[str, Any], source: str, said: _Said, timed: bool, length: int | None) -> DiT:
    """The transformer, with the sizes of its tensors; what they do not tell comes from the configuration, or is as released."""
    if not (looks_like_mdlm(state) or looks_like_sedd(state)):
        raise UsageError(f"{source} does not hold the text transformer of MDLM or SEDD, which has {listed(list(LANDMARKS))}")
    tensors = _averaged(state, source)
    prefix = PREFIX if looks_like_mdlm(tensors) else ""
    vocabulary, width = tensors[f"{prefix}vocab_embed.embedding"].shape
    depth = len({name.split(".")[1] for name in (n.removeprefix(prefix) for n in tensors) if name.startswith("blocks.")})
    hidden = tensors.get(f"{prefix}blocks.0.mlp.0.weight")
    network = DiT(
        vocabulary,
        length or said("length", "model_length", default=LENGTH),
        width,
        depth,
        _heads(width, tensors.get(prefix + ROTARY), source, said),
        None if hidden is None else len(hidden),
        len(tensors[f"{prefix}output_layer.linear.weight"]),
        said("dropout", default=0.0),
        embedding=len(tensors[f"{prefix}sigma_map.mlp.0.weight"]),
        timed=timed,
    )
    fill(network, _names(prefix, depth), tensors, source, ignored=(prefix + ROTARY,))
    return network


def _heads(width: int, rates: Tensor | None, source: str, said: _Said) -> int:
    """Heads by the rotary rates, of which there is one for each pair of a head's channels, and whose base must be ours."""
    stated = said("n_heads")
    if rates is None:
        return stated or max(width // HEAD, 1)
    expected = BASE ** (-torch.arange(len(rates)).double() / len(rates))
    if not torch.allclose(rates.double(), expected, rtol=1e-2):  # half precision passes, another base does not
        raise UsageError(f"{source}: {ROTARY} is not that of base {BASE:g}, the only one that these networks were released with")
    heads = max(width // (2 * len(rates)), 1)
    if stated not in (None, heads):
        raise UsageError(
            f"{source}: the configuration has {stated} heads, and {ROTARY} is that of {heads}: give the one that belongs to it"
        )
    return heads


def _names(prefix: str, depth: int) -> Names:
    names: Names = {"embed.weight": f"{prefix}vocab_embed.embedding"}
    names |= renamed("time", f"{prefix}sigma_map.mlp", {"0": "0", "2": "2"})
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"{prefix}blocks.{i}"
        names |= renamed(ours, theirs, {"norm1": "norm1", "qkv": "attn_qkv", "out": "attn_out", "norm2": "norm2"}, of=("weight",))
        names |= renamed(ours, theirs, {"mlp.0": "mlp.0", "mlp.2": "mlp.2", "modulation": "adaLN_modulation"})
    names |= renamed("norm", f"{prefix}output_layer.norm_final", {"": ""}, of=("weight",))
    return names | renamed("", f"{prefix}output_layer", {"head": "linear", "modulation": "adaLN_modulation"})


def _tensors(state: Any) -> Mapping[str, Any]:
    """The tensors by name: those of a training checkpoint, or the file itself; none of what has no names."""
    if not isinstance(state, Mapping):
        return {}
    found = (state[name] for name in ("state_dict", "model") if isinstance(state.get(name), Mapping))
    return next(found, state)


def _averaged(state: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The tensors by name, those of parameters averaged where the file keeps averages: a list in the order of the parameters."""
    tensors, kept = dict(_tensors(state)), state.get("ema")
    if not isinstance(kept, Mapping) or "shadow_params" not in kept:
        return tensors
    averages, names = list(kept["shadow_params"]), [name for name in tensors if not name.endswith(ROTARY)]
    if len(averages) != len(names):
        raise UsageError(f"{source}: ema has {len(averages)} averages for {len(names)} parameters: leave it out to take the raw weights")
    wrong = [name for name, average in zip(names, averages, strict=True) if getattr(average, "shape", None) != tensors[name].shape]
    if wrong:
        raise UsageError(
            f"{source}: the averages in ema do not have the shapes of {len(wrong)} parameters, {listed(wrong)}: "
            "leave it out to take the raw weights"
        )
    return tensors | dict(zip(names, averages, strict=True))
