"""What text models say of themselves.

A `config.json`, or the hyper-parameters in a training checkpoint of Lightning's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...discrete import GeometricNoise, LogLinearNoise, NoiseSchedule
from ...shared.errors import UsageError
from .files import naming
from .pickles import Record
from .settings import Settings, same
from .weights import listed, quoted

MDLM, SEDD = ("subs", "mdlm"), ("sedd",)
"""What configurations call the two, under `parameterization` or `model_type`."""
GPT2 = 50_257
INSIDE = {30_522: "BERT's", 35: "text8's, as MDLM's project has it,"}
"""Sizes of known vocabularies in which the mask is not the last token."""
TOKENIZERS = ("bert", "text8")
"""How their names begin, under `data.tokenizer_name_or_path` and as classes."""
FILE, KEPT = "config.json", "the checkpoint's hyper-parameters"
RELEASED, BLOCKS = {768: 12, 1024: 16}, {768: 12, 1024: 24}
"""Heads and blocks of the released networks by their width; all have GPT-2's tokens and a mask."""
PARTS = {
    "model": ("name", "type", "tie_word_embeddings"),
    "graph": ("type", "file", "report_all"),
    "noise": ("type", "sigma_min", "sigma_max", "eps"),
}
"""Entries of parts, beside those of `HERE`, that are read or are names alone."""
HERE = (
    *(
        "parameterization",
        "model_type",
        "time_conditioning",
        "length",
        "model_length",
        "n_heads",
        "dropout",
        "scale_by_sigma",
    ),
    *("hidden_size", "hidden_dim", "n_blocks", "cond_dim", "vocab_size", "tokens", "backbone", "diffusion", "T"),
    *("mask_index", "mask_token_id"),
)
"""Entries at the top or under `model` that are read."""
ELSEWHERE = (
    *("training", "sampling", "ngpus", "data", "eval", "optim", "hydra", "loader", "trainer", "wandb", "checkpointing"),
    *("strategy", "callbacks", "lr_scheduler", "mode", "seed", "subs_masking", "defaults", "work_dir", "wandb_name"),
    *("config", "tokenizer", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version"),
    "return_dict",
)
"""Entries of training, of its machine and of the library that wrote them."""


class Said:
    """What is said of a model: by a configuration, and by the hyper-parameters in a training checkpoint of Lightning's.

    Both have their entries at the top or under `model`; `noise` and `graph` are a type's name or a part with one.
    Entries of a checkpoint are omegaconf's objects. What is said twice must be the same.
    """

    def __init__(self, config: Mapping[str, Any] | None, state: Any, source: str = "the file") -> None:
        kept = opened(state.get("hyper_parameters")) if isinstance(state, Mapping) else None
        inner = opened(kept.get("config")) if isinstance(kept, Mapping) else None
        self.whose, self.source = (FILE, KEPT, KEPT), source
        held = kept.get("tokenizer") if isinstance(kept, Mapping) else None
        self.kept = held.name if isinstance(held, Record) else None
        self.places = {
            n: self.parted(place, source) for n, place in enumerate((config, inner, kept)) if isinstance(place, Mapping)
        }

    @staticmethod
    def parted(place: Mapping[str, Any], source: str) -> dict[str, Any]:
        """A configuration whose parts are mappings."""
        found = {name: opened(value) for name, value in place.items()}
        for name in PARTS:
            part = found.get(name)
            if isinstance(part, str) and part.startswith("${"):  # which refers to another
                found[name] = None
            elif isinstance(part, str) and name != "model":
                found[name] = {"type": part}
            elif not isinstance(part, Mapping | None):
                raise UsageError(
                    f"{source}: the configuration has {name} {quoted(part)}, where its entries are expected: correct it"
                )
        return found

    def __call__(self, *names: str, within: str = "", default: Any = None) -> Any:
        """What entries of these names say: of the part `within`, or under `model` and at the top.

        Raises:
            UsageError: where two of them differ.
        """
        found: list[tuple[str, str, Any]] = []
        for n, place in self.places.items():
            for part in (place.get(within or "model"), *(() if within else (place,))):
                entries = [(name, opened(part.get(name))) for name in names] if isinstance(part, Mapping) else []
                found += [
                    (self.whose[n], k, v)
                    for k, v in entries
                    if v is not None and not str(v if isinstance(v, str) else "").startswith("${")
                ]
        self.refuse_two(found)
        return found[0][2] if found else default

    def refuse_two(self, found: list[tuple[str, str, Any]]) -> None:
        """Raises `UsageError` for two values of one setting, each with its place and its name."""
        for whose, name, value in found[1:]:
            if not same(value, found[0][2]):
                first = f'{found[0][0]} has "{found[0][1]}": {quoted(found[0][2])}'
                remedy = (
                    "correct config.json, or take it away"
                    if found[0][0] == FILE
                    else "give its state_dict alone, and flags"
                )
                raise UsageError(f'{self.source}: {first}, and {whose} "{name}": {quoted(value)}; {remedy}')

    def part(self, name: str) -> Mapping[str, Any]:
        """All entries of a part."""
        found = [place.get(name) for place in reversed(self.places.values())]
        return {k: v for inner in found if isinstance(inner, Mapping) for k, v in inner.items()}

    def unknown(self) -> list[str]:
        """Entries that are neither read nor known to change no network."""
        top = {
            name
            for place in self.places.values()
            for name in place
            if name not in (*HERE, *ELSEWHERE, *PARTS) and str(name)[:1] != "_"
        }
        inner = {f"{part}.{n}" for part, known in PARTS.items() for n in self.part(part) if n not in (*known, *HERE)}
        return sorted(map(str, top | inner))

    def tokenizers(self) -> Iterable[str]:
        """What is named as the tokenizer, and the class of one that is kept."""
        found = (
            self("tokenizer_name_or_path", within="data"),
            self.kept,
            *(place.get("tokenizer") for place in self.places.values()),
        )
        return (name for name in found if isinstance(name, str))

    def kind(self) -> Any:
        """How the model was trained; None where nothing is said."""
        said = [(name, self(name)) for name in ("parameterization", "model_type")]
        found = [(name, kind.lower() if isinstance(kind, str) else kind) for name, kind in said if kind is not None]
        if {kind in SEDD for _, kind in found if kind in (*MDLM, *SEDD)} == {False, True}:
            both = " and ".join(f"{name} {quoted(kind)}" for name, kind in found)
            raise UsageError(f"{self.source}: the configuration has {both}, which are two ways of training: correct it")
        return found[0][1] if found else None

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
            raise UsageError(f"{self.source}: the configuration has {name} {quoted(value)}: it is true or false")
        return value

    def number(self, name: str, *, within: str = "", default: float | None) -> Any:
        """An entry that is a number from zero on."""
        value = self(name, within=within, default=default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise UsageError(f"{self.source}: the configuration has {name} {quoted(value)}: it is a number from 0 on")
        return float(value)

    def whole(self, *names: str) -> int | None:
        """An entry that counts something; None where nothing is said."""
        value = self(*names)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31):
            raise UsageError(
                f"{self.source}: the configuration has {names[0]} {quoted(value)}: it is a whole number above 0"
            )
        return value


def opened(value: Any) -> Any:
    """What one of omegaconf's objects holds; another value as it is."""
    return value.state.get("_content", value.state.get("_val", value.state)) if isinstance(value, Record) else value


def told_by(said: Said, source: str, *, prefixed: bool, vocabulary: int) -> dict[str, Any]:
    """What the configuration and the vocabulary settle, by the names of the flags."""
    kind, noise = said.kind(), said("type", within="noise")
    told = {
        "parameterization": "sedd" if kind in SEDD else "subs" if kind in MDLM else None,
        "time_conditioning": said.flag("time_conditioning", default=None),
        "length": said.whole("length", "model_length"),
        "n_heads": said.whole("n_heads"),
        "noise": noise,
        "uniform": is_uniform(vocabulary, source, said),
        "scale_by_sigma": True if prefixed else said.flag("scale_by_sigma", default=None),
    }
    if noise == "geometric":  # which is alone in having them, though configurations of others hold them too
        told |= {name: said.number(name, within="noise", default=None) for name in ("sigma_min", "sigma_max")}
    return {name: value for name, value in told.items() if value is not None}


def released(told: Mapping[str, Any], vocabulary: int, width: int, depth: int, *, prefixed: bool) -> dict[str, Any]:
    """The settings of the released network of this size, where nothing told is another; else none."""
    if vocabulary != GPT2 + 1 or BLOCKS.get(width) != depth or (prefixed and width != 768):
        return {}
    found = {"noise": "loglinear", "length": 1024, "n_heads": RELEASED[width], "uniform": False, "scale_by_sigma": True}
    if prefixed:
        found |= {"parameterization": "subs", "time_conditioning": False}
    if prefixed and told.get("parameterization") == "sedd":
        found = {k: v for k, v in found.items() if k != "time_conditioning"} | {"parameterization": "sedd"}
    return found if all(told.get(name, value) == value for name, value in found.items()) else {}


def is_uniform(vocabulary: int, source: str, said: Said) -> bool | None:
    """Returns whether the graph is uniform, with no mask token, from its name or the number of tokens.

    None where neither is given.
    """
    kind, tokens = said("type", within="graph"), said.whole("tokens")
    if kind not in (None, "absorb", "uniform"):
        raise UsageError(
            f"{source}: the configuration has a graph of type {quoted(kind)}, and SEDD's are absorb and uniform"
        )
    if tokens is None:
        return None if kind is None else kind == "uniform"
    uniform = vocabulary == tokens if kind is None else kind == "uniform"
    if vocabulary != tokens + (not uniform):
        raise UsageError(
            f"{source}: the configuration has {tokens} tokens and the graph {kind}, and the weights have {vocabulary}, which is neither "
            "as many nor, for absorb, one more: give the configuration that belongs to them"
        )
    return uniform


def schedule(settings: Settings, said: Said, source: str) -> NoiseSchedule:
    """The noise, by the name that configurations give it.

    Raises:
        UsageError: for another noise, for numbers that are asked for, and for those that the noise has no use for.
    """
    kind = settings.get("noise")
    start = said.number("sampling_eps", within="training", default=1e-3)
    if kind == "geometric":
        low, high = settings.numbers("a geometric noise has two ends", sigma_min=1e-4, sigma_max=20.0)
        if low >= high:
            raise UsageError(
                f"{source}: sigma_min={low:g}, sigma_max={high:g}: noise grows from the one to the other, give sigma_max above"
            )
        with naming(source):
            return GeometricNoise(low, high, start)
    if kind != "loglinear":
        raise UsageError(
            f"{source}: noise of type {quoted(kind)} is not read; loglinear and geometric are: noise='loglinear'"
        )
    settings.refuse_unused("the noise is loglinear", "sigma_min", "sigma_max")
    with naming(source):
        return LogLinearNoise(said.number("eps", within="noise", default=1e-3), start)


def refuse_other_mask(said: Said, source: str, vocabulary: int) -> bool:
    """Whether the mask is said to be the last token, as it is in all that is read here.

    Of any other `UsageError` is raised.
    """
    told = {name: said(name) for name in ("mask_index", "mask_token_id")}
    for name, value in told.items():
        if value is not None and not same(value, vocabulary - 1):
            raise UsageError(
                f"{source}: the configuration has {name} {quoted(value)}, and networks whose mask is the last of their {vocabulary} tokens "
                f"are read, which {vocabulary - 1} is: this one cannot be taken"
            )
    if any(value is not None for value in told.values()):
        return True
    tokenizer = next((name for name in said.tokenizers() if name.lower().startswith(TOKENIZERS)), None)
    if vocabulary in INSIDE or tokenizer is not None:
        whose = INSIDE.get(vocabulary, f"the tokenizer {quoted(tokenizer)}'s")
        raise UsageError(
            f"{source}: in {whose} vocabulary of {vocabulary} the mask is not the last token, which is not supported: "
            f"for a network with another vocabulary write mask_index={vocabulary - 1} into its config.json"
        )
    return False


def refuse_sizes(said: Said, source: str, **sizes: int) -> None:
    """Raises `UsageError` for a configuration of a network of other sizes than the weights'."""
    names = {
        "width": ("hidden_size", "hidden_dim"),
        "depth": ("n_blocks",),
        "embedding": ("cond_dim",),
        "vocabulary": ("vocab_size",),
    }
    for name, value in sizes.items():
        if (other := said.whole(*names[name])) not in (None, value):
            raise UsageError(
                f"{source}: the configuration has {names[name][0]} {other}, and the weights {value}: give the one that belongs to them"
            )
    for name, known in (("backbone", ("dit", "hf_dit")), ("diffusion", ("absorbing_state",))):
        if (kind := said(name)) not in (None, *known):
            raise UsageError(
                f"{source}: the configuration has {name} {quoted(kind)}, and {' and '.join(known)} are read"
            )


def sentences(said: Said) -> Iterable[str]:
    """What of a configuration is not read, or read otherwise than there."""
    if unknown := said.unknown():
        yield f"the configuration's {listed(unknown)} are not read"
    if said.part("sampling"):
        yield "samples are drawn in ancestral steps; the configuration's sampling is not read"
    if (steps := said("T")) not in (None, 0):
        yield f"bounds are those of continuous time, though training counted T={quoted(steps)} steps"
