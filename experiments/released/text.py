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
from .pickles import Record
from .weights import Names, averaged, fill, listed, quoted, renamed, stripped, tensor

D = TypeVar("D", bound=CategoricalDenoiser)

PREFIX = "backbone."
ROTARY = "rotary_emb.inv_freq"
BASE = 10_000.0
HEAD = 64
LENGTH = 1024
GPT2, BERT = 50_257, 30_522
MDLM, SEDD = ("subs", "mdlm"), ("sedd",)
"""What configurations call the two, under `parameterization` or `model_type`."""
LANDMARKS = ("vocab_embed.embedding", "sigma_map.mlp.0.weight", "output_layer.linear.weight")


@described
def total_noise(transition: Transition, t: Tensor) -> Tensor:
    """`total(t)`, the events that a symbol has met: sigma, the label of Lou et al.'s (2024) and Sahoo et al.'s (2024) networks."""
    return transition.noise.total(t)


def looks_like_mdlm(state: Any) -> bool:
    """Whether a file as read holds the text transformer under `backbone.`, and does not say that it is a SEDD, trained beside MDLM."""
    return _has(state, PREFIX) and _Said(None, state).kind() not in SEDD


def looks_like_sedd(state: Any) -> bool:
    """Whether a file as read holds the text transformer without a prefix, as SEDD's do, or says that it is one."""
    return _has(state, "") or (_has(state, PREFIX) and _Said(None, state).kind() in SEDD)


def _has(state: Any, prefix: str) -> bool:
    tensors = _tensors(state)
    return all(prefix + name in tensors for name in LANDMARKS)


def mdlm(
    state: Mapping[str, Any],
    source: str,
    *,
    config: Mapping[str, Any] | None = None,
    time_conditioning: bool | None = None,
    length: int | None = None,
) -> Categorical | ScoreEntropyDenoiser:
    """A released MDLM: absorption under the log-linear schedule with SUBS (Sahoo et al. 2024, section 3.2.3).

    The last token of the vocabulary is the mask. Where the file keeps averaged weights too, they are the ones that are taken. A SEDD that
    was trained beside MDLM has the same tensors: where the configuration, or the hyper-parameters in a training checkpoint, say so under
    `parameterization` or `model_type`, it is returned as `sedd` gives it. The tensors alone do not tell.

    Args:
        state: the tensors by name, or a training checkpoint with `state_dict` and, where it has one, `ema`.
        source: the file, for errors.
        config: the model's `config.json`, where there is one.
        time_conditioning: whether the network is told sigma; as the configuration or the hyper-parameters say, and False without them: no
            tensor tells.
        length: of the sequences that it was trained on; as the configuration or the hyper-parameters say, and 1024 for the released sizes.

    Raises:
        UsageError: for a file that does not hold such a network, or not the one of the configuration, for one that is trained in another
            way, such as D3PM's, and for a length that is neither told nor given.
    """
    said = _Said(config, state)
    timed = said.flag("time_conditioning", default=None) if time_conditioning is None else time_conditioning
    if said.kind() in SEDD:
        _refuse_untimed(timed, source)
        return sedd(state, source, config=config, length=length)
    said.refuse_other(MDLM, "an MDLM", source)
    network = _network(state, source, said, bool(timed), length)
    if network.vocabulary == BERT:
        raise UsageError(f"{source}: in BERT's vocabulary of {BERT} the mask is no last token, as it is in all that is read here")
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
        length: of the sequences that it was trained on; as the configuration or the hyper-parameters say, and 1024 for the released sizes.

    Raises:
        UsageError: for a file that does not hold such a network, or not the one of the configuration, for one that says that it is no
            SEDD, and for a length that is neither told nor given.
    """
    said = _Said(config, state)
    said.refuse_other(SEDD, "a SEDD", source)
    _refuse_untimed(said.flag("time_conditioning", default=None), source)
    network = _network(state, source, said, True, length)
    uniform = _is_uniform(network.vocabulary, source, said) if uniform is None else uniform
    kind = said("type", within="noise", default="geometric" if uniform else "loglinear")
    if kind not in ("geometric", "loglinear"):
        raise UsageError(f"{source}: the configuration has noise of type {quoted(kind)}, and SEDD's are loglinear and geometric")
    low, high = (said.number(name, within="noise", default=default) for name, default in (("sigma_min", 1e-4), ("sigma_max", 20.0)))
    schedule = LogLinear() if kind == "loglinear" else Geometric(low, high)
    transition = Uniform(network.vocabulary, schedule) if uniform else Absorbing(network.vocabulary - 1, schedule)
    offset = scaled_by_noise if said.flag("scale_by_sigma", default=not uniform) else unscaled
    return _known(ScoreEntropyDenoiser(network, transition, total_noise, offset), transition, network)


def _refuse_untimed(timed: bool | None, source: str) -> None:
    if timed is False:
        raise UsageError(
            f"{source}: a SEDD is told its noise, by which its ratios are scaled: time_conditioning=False does not fit, leave it out"
        )


class _Said:
    """What is said of a model: by a configuration, and behind it by the hyper-parameters in a training checkpoint of Lightning's.

    Both have their entries at the top or under `model`. Those of a checkpoint are omegaconf's objects.
    """

    def __init__(self, config: Mapping[str, Any] | None, state: Any) -> None:
        kept = _opened(state.get("hyper_parameters")) if isinstance(state, Mapping) else None
        inner = _opened(kept.get("config")) if isinstance(kept, Mapping) else None
        self.places = [place for place in (config, inner, kept) if isinstance(place, Mapping)]

    def __call__(self, *names: str, within: str = "", default: Any = None) -> Any:
        """The first entry of one of these names: of the part `within`, or under `model` or at the top."""
        for place in self.places:
            inner = [_opened(place.get(within or "model")), *(() if within else (place,))]
            for part in inner:
                found = [_opened(part.get(name)) for name in names] if isinstance(part, Mapping) else []
                for value in found:
                    if value is not None and not str(value if isinstance(value, str) else "").startswith("${"):  # which refers to another
                        return value
        return default

    def kind(self) -> Any:
        """How the model was trained; None where nothing is said."""
        found = self("parameterization") or self("model_type")
        return found.lower() if isinstance(found, str) else found

    def refuse_other(self, known: tuple[str, ...], name: str, source: str) -> None:
        """Raises `UsageError` where another way of training is said than those."""
        if (kind := self.kind()) is not None and kind not in known:
            raise UsageError(
                f"{source} says parameterization (or model_type) {quoted(kind)}, and {name} is {' or '.join(known)}: others are not read"
            )

    def flag(self, name: str, *, default: bool | None) -> bool | None:
        """An entry that is true or false."""
        value = self(name, default=default)
        if not isinstance(value, bool | None):
            raise UsageError(f"the configuration has {name} {quoted(value)}: it is true or false")
        return value

    def number(self, name: str, *, within: str = "", default: float) -> float:
        """An entry that is a number from zero on."""
        value = self(name, within=within, default=default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise UsageError(f"the configuration has {name} {quoted(value)}: it is a number from 0 on")
        return float(value)

    def whole(self, *names: str) -> int | None:
        """An entry that counts something; None where nothing is said."""
        value = self(*names)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31):
            raise UsageError(f"the configuration has {names[0]} {quoted(value)}: it is a whole number above 0")
        return value


def _opened(value: Any) -> Any:
    """What one of omegaconf's objects holds; another value as it is."""
    return value.state.get("_content", value.state.get("_val", value.state)) if isinstance(value, Record) else value


def _is_uniform(vocabulary: int, source: str, said: _Said) -> bool:
    """Whether there is no mask among the tokens: by the graph's name, and by how many tokens the text has."""
    kind, tokens = said("type", within="graph"), said.whole("tokens")
    if kind not in (None, "absorb", "uniform"):
        raise UsageError(f"{source}: the configuration has a graph of type {quoted(kind)}, and SEDD's are absorb and uniform")
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
    if not (_has(state, PREFIX) or _has(state, "")):
        raise UsageError(f"{source} does not hold the text transformer of MDLM or SEDD, which has {listed(list(LANDMARKS))}")
    if length is not None and length < 1:
        raise UsageError(f"length={length}: give the tokens of the sequences that the network was trained on, such as 1024")
    tensors = averaged(_tensors(state), state.get("ema"), lambda name: name.endswith(ROTARY), source)
    prefix = PREFIX if _has(tensors, PREFIX) else ""
    vocabulary, width = tensor(tensors, f"{prefix}vocab_embed.embedding", 2, source).shape
    depth = len({name.split(".")[1] for name in stripped(tensors, prefix) if name.startswith("blocks.")})
    length = length or said.whole("length", "model_length") or released_length(vocabulary, width)
    if length is None:
        raise UsageError(f"{source}: the weights do not tell the length of the sequences: give it, such as length=1024")
    network = DiT(
        vocabulary,
        length,
        width,
        depth,
        _heads(width, tensors, prefix + ROTARY, source, said),
        len(tensor(tensors, f"{prefix}blocks.0.mlp.0.weight", 2, source)),
        len(tensor(tensors, f"{prefix}output_layer.linear.weight", 2, source)),
        said.number("dropout", default=0.0),
        embedding=len(tensor(tensors, f"{prefix}sigma_map.mlp.0.weight", 2, source)),
        timed=timed,
    )
    fill(network, _names(prefix, depth), tensors, source, ignored=(prefix + ROTARY,))
    return network


def released_length(vocabulary: int, width: int) -> int | None:
    """Tokens of the sequences that the released networks of this size were trained on; None for other networks."""
    return LENGTH if vocabulary in (GPT2, GPT2 + 1) and width in (768, 1024) else None


def _heads(width: int, tensors: Mapping[str, Any], rotary: str, source: str, said: _Said) -> int:
    """Heads by the rotary rates, of which there is one for each pair of a head's channels, and whose base must be ours."""
    stated = said.whole("n_heads")
    if rotary not in tensors:
        heads = stated or max(width // HEAD, 1)
        if width % (2 * heads):
            raise UsageError(f"{source}: {width} channels are not {heads} heads of an even width: give the configuration of this file")
        return heads
    rates = tensor(tensors, rotary, 1, source)
    expected = BASE ** (-torch.arange(len(rates)).double() / len(rates))
    if not torch.allclose(rates.double(), expected, rtol=1e-2):  # half precision passes, another base does not
        raise UsageError(f"{source}: {ROTARY} is not that of base {BASE:g}, the only one that these networks were released with")
    heads = max(width // (2 * len(rates)), 1)
    if stated not in (None, heads):
        raise UsageError(
            f"{source}: the configuration has {stated} heads, and {ROTARY} is that of {heads}: give the one that belongs to it"
        )
    if width != 2 * len(rates) * heads:
        raise UsageError(f"{source}: {ROTARY} has {len(rates)} rates, half of a head's channels, which {width} channels do not hold evenly")
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
