"""Configurations of text models: a `config.json`, or the hyper-parameters in a training checkpoint of Lightning."""

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
"""Names of the two models in configurations, under `parameterization` or `model_type`."""
GPT2 = 50_257
"""The number of GPT-2's tokens."""
MASK_INSIDE = {30_522: "BERT's", 35: "MDLM's text8"}
"""Sizes of known vocabularies in which the mask is not the last token."""
TOKENIZERS = ("bert", "text8")
"""Prefixes of the names of their tokenizers, under `data.tokenizer_name_or_path` and as classes."""
FILE, CHECKPOINT = "config.json", "the checkpoint's hyper-parameters"
HEADS, BLOCKS = {768: 12, 1024: 16}, {768: 12, 1024: 24}
"""Heads and blocks of the published networks by their width; all have GPT-2's tokens and a mask."""
PARTS = {
    "model": ("name", "type", "tie_word_embeddings"),
    "graph": ("type", "file", "report_all"),
    "noise": ("type", "sigma_min", "sigma_max", "eps"),
}
"""Further entries of parts that are read, or that are only names."""
READ = (
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
IGNORED = (
    *("training", "sampling", "ngpus", "data", "eval", "optim", "hydra", "loader", "trainer", "wandb", "checkpointing"),
    *("strategy", "callbacks", "lr_scheduler", "mode", "seed", "subs_masking", "defaults", "work_dir", "wandb_name"),
    *("config", "tokenizer", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version"),
    "return_dict",
)
"""Entries about training, its machine, and the library that wrote them."""


class TextConfig:
    """The configuration of a model, and the hyper-parameters in a training checkpoint of Lightning.

    Both have their entries at the top or under `model`; `noise` and `graph` are the name of a type or a part that has
    one. Entries of a checkpoint are omegaconf's objects. An entry that both have must be equal.

    `text_config("length")` returns the value of an entry.
    """

    def __init__(self, config: Mapping[str, Any] | None, state: Any, source: str = "the file") -> None:
        stored = opened(state.get("hyper_parameters")) if isinstance(state, Mapping) else None
        inner = opened(stored.get("config")) if isinstance(stored, Mapping) else None
        self.origins, self.source = (FILE, CHECKPOINT, CHECKPOINT), source
        tokenizer = stored.get("tokenizer") if isinstance(stored, Mapping) else None
        self.tokenizer_class = tokenizer.name if isinstance(tokenizer, Record) else None
        self.places = {
            n: self.with_parts(place, source)
            for n, place in enumerate((config, inner, stored))
            if isinstance(place, Mapping)
        }

    @staticmethod
    def with_parts(place: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Returns a configuration whose parts are mappings."""
        entries = {name: opened(value) for name, value in place.items()}
        for name in PARTS:
            part = entries.get(name)
            if isinstance(part, str) and part.startswith("${"):  # a reference to another entry
                entries[name] = None
            elif isinstance(part, str) and name != "model":
                entries[name] = {"type": part}
            elif not isinstance(part, Mapping | None):
                raise UsageError(
                    f"{source}: the configuration has {name} {quoted(part)} instead of a mapping of entries: correct it"
                )
        return entries

    def __call__(self, *names: str, within: str = "", default: Any = None) -> Any:
        """Returns the value of an entry with any of these names, in the part `within`, or under `model` and at the top.

        Raises:
            UsageError: where two of them differ.
        """
        values: list[tuple[str, str, Any]] = []
        for n, place in self.places.items():
            for part in (place.get(within or "model"), *(() if within else (place,))):
                entries = [(name, opened(part.get(name))) for name in names] if isinstance(part, Mapping) else []
                values += [
                    (self.origins[n], k, v)
                    for k, v in entries
                    if v is not None and not str(v if isinstance(v, str) else "").startswith("${")
                ]
        self.refuse_different(values)
        return values[0][2] if values else default

    def refuse_different(self, values: list[tuple[str, str, Any]]) -> None:
        """Raises `UsageError` for different values of one setting, each `(origin, name, value)`."""
        for origin, name, value in values[1:]:
            if not same(value, values[0][2]):
                first = f'{values[0][0]} has "{values[0][1]}": {quoted(values[0][2])}'
                remedy = (
                    "correct config.json, or remove it"
                    if values[0][0] == FILE
                    else "give its state_dict alone, and flags"
                )
                raise UsageError(f'{self.source}: {first}, but {origin} "{name}": {quoted(value)}; {remedy}')

    def part(self, name: str) -> Mapping[str, Any]:
        """Returns all entries of a part."""
        parts = [place.get(name) for place in reversed(self.places.values())]
        return {k: v for part in parts if isinstance(part, Mapping) for k, v in part.items()}

    def unknown(self) -> list[str]:
        """Returns the names of entries that are not read and might change the network."""
        top = {
            name
            for place in self.places.values()
            for name in place
            if name not in (*READ, *IGNORED, *PARTS) and str(name)[:1] != "_"
        }
        inner = {f"{part}.{n}" for part, known in PARTS.items() for n in self.part(part) if n not in (*known, *READ)}
        return sorted(map(str, top | inner))

    def tokenizers(self) -> Iterable[str]:
        """Returns the names of the tokenizer, and the class of one in the checkpoint."""
        names = (
            self("tokenizer_name_or_path", within="data"),
            self.tokenizer_class,
            *(place.get("tokenizer") for place in self.places.values()),
        )
        return (name for name in names if isinstance(name, str))

    def kind(self) -> Any:
        """Returns how the model was trained, such as "subs"; None if no entry contains it."""
        entries = [(name, self(name)) for name in ("parameterization", "model_type")]
        kinds = [(name, kind.lower() if isinstance(kind, str) else kind) for name, kind in entries if kind is not None]
        if {kind in SEDD for _, kind in kinds if kind in (*MDLM, *SEDD)} == {False, True}:
            both = " and ".join(f"{name} {quoted(kind)}" for name, kind in kinds)
            raise UsageError(f"{self.source}: the configuration has {both}, which contradict each other: correct it")
        return kinds[0][1] if kinds else None

    def refuse_other(self, known: tuple[str, ...], name: str, source: str) -> None:
        """Raises `UsageError` where the model was trained in another way than the known ones."""
        if (kind := self.kind()) is not None and kind not in known:
            raise UsageError(
                f"{source} has parameterization (or model_type) {quoted(kind)}, but {name} is {' or '.join(known)}: "
                "others are not supported"
            )

    def flag(self, name: str, *, default: bool | None) -> bool | None:
        """Returns an entry that is true or false."""
        value = self(name, default=default)
        if not isinstance(value, bool | None):
            raise UsageError(f"{self.source}: the configuration has {name} {quoted(value)}: it must be true or false")
        return value

    def number(self, name: str, *, within: str = "", default: float | None) -> Any:
        """Returns an entry that is a number of at least 0."""
        value = self(name, within=within, default=default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise UsageError(
                f"{self.source}: the configuration has {name} {quoted(value)}: it must be a number of at least 0"
            )
        return float(value)

    def whole(self, *names: str) -> int | None:
        """Returns an entry that is a whole number of at least 1, or None if the configuration does not contain it."""
        value = self(*names)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31):
            raise UsageError(
                f"{self.source}: the configuration has {names[0]} {quoted(value)}: it must be a whole number above 0"
            )
        return value


def opened(value: Any) -> Any:
    """Returns the value of one of omegaconf's objects; any other value as it is."""
    return value.state.get("_content", value.state.get("_val", value.state)) if isinstance(value, Record) else value


def settings_from(text_config: TextConfig, source: str, *, prefixed: bool, vocabulary: int) -> dict[str, Any]:
    """Returns the settings that the configuration and the vocabulary determine, by the names of the flags."""
    kind, noise = text_config.kind(), text_config("type", within="noise")
    settings = {
        "parameterization": "sedd" if kind in SEDD else "subs" if kind in MDLM else None,
        "time_conditioning": text_config.flag("time_conditioning", default=None),
        "length": text_config.whole("length", "model_length"),
        "n_heads": text_config.whole("n_heads"),
        "noise": noise,
        "uniform": is_uniform(vocabulary, source, text_config),
        "scale_by_sigma": True if prefixed else text_config.flag("scale_by_sigma", default=None),
    }
    if noise == "geometric":  # configurations of other noise contain these entries too, but do not use them
        settings |= {
            name: text_config.number(name, within="noise", default=None) for name in ("sigma_min", "sigma_max")
        }
    return {name: value for name, value in settings.items() if value is not None}


def published_settings(
    from_file: Mapping[str, Any], vocabulary: int, width: int, depth: int, *, prefixed: bool
) -> dict[str, Any]:
    """Returns the settings of the published network of this size; an empty dict if the file contradicts one."""
    if vocabulary != GPT2 + 1 or BLOCKS.get(width) != depth or (prefixed and width != 768):
        return {}
    settings = {"noise": "loglinear", "length": 1024, "n_heads": HEADS[width], "uniform": False, "scale_by_sigma": True}
    if prefixed:
        settings |= {"parameterization": "subs", "time_conditioning": False}
    if prefixed and from_file.get("parameterization") == "sedd":
        settings = {k: v for k, v in settings.items() if k != "time_conditioning"} | {"parameterization": "sedd"}
    return settings if all(from_file.get(name, value) == value for name, value in settings.items()) else {}


def is_uniform(vocabulary: int, source: str, text_config: TextConfig) -> bool | None:
    """Returns whether the graph is uniform, with no mask token, from its name or the number of tokens.

    Returns None if the configuration contains neither.
    """
    kind, tokens = text_config("type", within="graph"), text_config.whole("tokens")
    if kind not in (None, "absorb", "uniform"):
        raise UsageError(
            f"{source}: the configuration has a graph of type {quoted(kind)}, but SEDD's are absorb and uniform: "
            "correct it"
        )
    if tokens is None:
        return None if kind is None else kind == "uniform"
    uniform = vocabulary == tokens if kind is None else kind == "uniform"
    if vocabulary != tokens + (not uniform):
        raise UsageError(
            f"{source}: the configuration has {tokens} tokens and the graph {kind}, but the weights have {vocabulary} "
            "tokens, which must be as many, or one more for absorb: give the configuration of this file"
        )
    return uniform


def schedule(settings: Settings, text_config: TextConfig, source: str) -> NoiseSchedule:
    """Returns the noise schedule.

    Raises:
        UsageError: for unsupported noise, and for numbers that are missing or that the noise does not depend on.
    """
    kind = settings.get("noise")
    start = text_config.number("sampling_eps", within="training", default=1e-3)
    if kind == "geometric":
        low, high = settings.numbers("a geometric noise has two ends", sigma_min=1e-4, sigma_max=20.0)
        if low >= high:
            raise UsageError(
                f"{source}: sigma_min={low:g}, sigma_max={high:g}: give a sigma_max above sigma_min, as noise increases"
            )
        with naming(source):
            return GeometricNoise(low, high, start)
    if kind != "loglinear":
        raise UsageError(
            f"{source}: noise of type {quoted(kind)} is not supported; loglinear and geometric are: noise='loglinear'"
        )
    settings.refuse_unused("the noise is loglinear", "sigma_min", "sigma_max")
    with naming(source):
        return LogLinearNoise(text_config.number("eps", within="noise", default=1e-3), start)


def last_token_is_mask(text_config: TextConfig, source: str, vocabulary: int) -> bool:
    """Returns whether the configuration gives the last token as the mask, the only supported one.

    Raises:
        UsageError: where the configuration or the tokenizer has another mask.
    """
    masks = {name: text_config(name) for name in ("mask_index", "mask_token_id")}
    for name, value in masks.items():
        if value is not None and not same(value, vocabulary - 1):
            raise UsageError(
                f"{source}: the configuration has {name} {quoted(value)}, but only networks whose mask is the last of "
                f"their {vocabulary} tokens ({vocabulary - 1}) are supported"
            )
    if any(value is not None for value in masks.values()):
        return True
    tokenizer = next((name for name in text_config.tokenizers() if name.lower().startswith(TOKENIZERS)), None)
    if vocabulary in MASK_INSIDE or tokenizer is not None:
        of = MASK_INSIDE.get(vocabulary, f"the tokenizer {quoted(tokenizer)}'s")
        raise UsageError(
            f"{source}: in {of} vocabulary of {vocabulary} tokens the mask is not the last token, which is not "
            f"supported: for a network with another vocabulary write mask_index={vocabulary - 1} into its config.json"
        )
    return False


def refuse_sizes(text_config: TextConfig, source: str, **sizes: int) -> None:
    """Raises `UsageError` for a configuration whose sizes differ from the weights'."""
    names = {
        "width": ("hidden_size", "hidden_dim"),
        "depth": ("n_blocks",),
        "embedding": ("cond_dim",),
        "vocabulary": ("vocab_size",),
    }
    for name, value in sizes.items():
        if (other := text_config.whole(*names[name])) not in (None, value):
            raise UsageError(
                f"{source}: the configuration has {names[name][0]} {other}, but the weights {value}: "
                "give the configuration of this file"
            )
    for name, known in (("backbone", ("dit", "hf_dit")), ("diffusion", ("absorbing_state",))):
        if (kind := text_config(name)) not in (None, *known):
            raise UsageError(
                f"{source}: the configuration has {name} {quoted(kind)}, which is not supported: "
                f"{' and '.join(known)} {'is' if len(known) == 1 else 'are'}"
            )


def notes_of(text_config: TextConfig) -> Iterable[str]:
    """Yields sentences about entries of a configuration that are not read, or that have another effect here."""
    if unknown := text_config.unknown():
        yield f"entries of the configuration are not read: {listed(unknown)}"
    if text_config.part("sampling"):
        yield "samples are drawn in ancestral steps; the configuration's sampling is not read"
    if (steps := text_config("T")) not in (None, 0):
        yield f"bounds are those of continuous time, although training used T={quoted(steps)} steps"
