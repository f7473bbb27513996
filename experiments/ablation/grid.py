"""What an ablation varies: a base, changes of its parts by name, and seeds."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ...shared.errors import UsageError
from ...shared.serialization import deserialize, serialize
from ..recipe import Recipe

AFTERWARDS = ("sampler", "spacing", "clip", "guidance", "sampling_steps", "code_length", "figure")
"""The settings of a recipe that do not change its training: runs that differ in them alone are trained once."""


@dataclass(frozen=True)
class Setup:
    """What one run of an ablation trains and measures.

    Attributes:
        recipe: the recipe.
        average: the weights that are measured, such as `raw` or `decay(0.99)`; None for those of the recipe.
        count: number of held-out examples whose code length is measured; None for all.
        samples: number of samples; None for as many as examples.
        features: the features by which samples are compared; () for those of the data.
        without: what is not measured, such as `code-length`.
    """

    recipe: Recipe
    average: str | None = None
    count: int | None = None
    samples: int | None = None
    features: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """Returns the setup as JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"recipe": serialize(self.recipe)}

    @staticmethod
    def of(description: Mapping[str, Any]) -> Setup:
        """Returns the setup that `described` returned."""
        given: dict[str, Any] = dict(description) | {"recipe": deserialize(description["recipe"])}
        given |= {name: tuple(given[name]) for name in ("features", "without")}
        return Setup(**given)

    @property
    def training_key(self) -> str:
        """A hash of what changes the training: ten hexadecimal digits."""
        description = serialize(self.recipe)
        kept = {name: value for name, value in description["arguments"].items() if name not in AFTERWARDS}
        return digest([description["class"], kept])

    @property
    def key(self) -> str:
        """A hash of the whole setup: ten hexadecimal digits."""
        return digest(self.described())

    def with_seed(self, seed: int) -> Setup:
        """Returns the setup with another seed, of weights, noise and the order of examples."""
        data = replace(self.recipe.data, seed=seed) if hasattr(self.recipe.data, "seed") else self.recipe.data
        training = replace(self.recipe.training, seed=seed)
        return replace(self, recipe=replace(self.recipe, data=data, training=training))


def digest(description: Any) -> str:
    """Returns ten hexadecimal digits of the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:10]


Change = Callable[[Setup], Setup]
Level = Change | Recipe | Mapping[str, Any]
"""A level of a factor: a function of the setup, a recipe in place of the base, or new values of fields by name."""


@dataclass(frozen=True)
class Case:
    """One run: its levels, its seed and its setup.

    Attributes:
        levels: the name of the level of each factor.
        seed: the seed.
        setup: what is trained and measured, with the seed.
    """

    levels: Mapping[str, str]
    seed: int
    setup: Setup

    @property
    def name(self) -> str:
        """The levels and the seed in words."""
        return ", ".join([*(f"{factor}={level}" for factor, level in self.levels.items()), f"seed {self.seed}"])


@dataclass(frozen=True)
class Ablation:
    """A grid of runs: every combination of levels, with every seed.

    Attributes:
        base: the base, a recipe or a setup.
        vary: the levels of each factor by name. The first level of a factor is its baseline. A level is a function
            `Setup -> Setup`, a recipe in place of the base, or new values of the recipe's fields by name.
        seeds: the number of seeds, 0, 1, ..., or the seeds.
        measures: the names of the measurements in the report, of which the first is the main one.
        title: the title of the report.
        question: what is varied and why, a paragraph in Markdown.
        shows: what the results show and do not show, a paragraph in Markdown that is written after they were seen.
        skip: returns whether a combination of levels, by factor, is left out.
    """

    base: Recipe | Setup
    vary: Mapping[str, Mapping[str, Level]]
    seeds: int | Sequence[int] = 3
    measures: tuple[str, ...] = ("bits_per_dim", "frechet")
    title: str = "Ablation"
    question: str = ""
    shows: str = ""
    skip: Callable[[Mapping[str, str]], bool] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.vary or any(not levels for levels in self.vary.values()):
            raise UsageError("an ablation needs at least one factor with one level or more: give vary or --vary")
        if not self.all_seeds:
            raise UsageError(f"seeds={self.seeds}: give at least 1")
        if len(set(self.all_seeds)) < len(self.all_seeds):
            raise UsageError(f"seeds={self.seeds}: give each seed once")
        if not self.measures:
            raise UsageError("measures=(): name at least one measurement, such as bits_per_dim")
        for factor, levels in list(self.vary.items())[1:]:
            if whole := [name for name, level in levels.items() if isinstance(level, Recipe)]:
                raise UsageError(
                    f"{factor}={whole[0]} is a whole recipe, which replaces what the factors before it have changed: "
                    f"make {factor} the first factor"
                )
        baseline = {factor: next(iter(levels)) for factor, levels in self.vary.items()}
        if self.skip is not None and self.skip(baseline):
            raise UsageError(
                f"skip leaves out the baseline, {baseline}, which all other combinations are compared with: name "
                "another level first"
            )

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(self.seeds)

    @property
    def start(self) -> Setup:
        """The setup of the base."""
        return self.base if isinstance(self.base, Setup) else Setup(self.base)

    def cases(self) -> Iterator[Case]:
        """Yields the runs, seed by seed, so that an ablation that is stopped has whole grids."""
        combinations = [dict(zip(self.vary, names, strict=True)) for names in itertools.product(*self.vary.values())]
        chosen = [levels for levels in combinations if self.skip is None or not self.skip(levels)]
        for seed in self.all_seeds:
            for levels in chosen:
                yield Case(levels, seed, self.setup_of(levels).with_seed(seed))

    def setup_of(self, levels: Mapping[str, str]) -> Setup:
        """Returns the setup of a combination of levels, applied in the order of the factors.

        Raises:
            UsageError: for a level that does not fit; the message names it.
        """
        setup = self.start
        for factor, name in levels.items():
            try:
                setup = applied(setup, self.vary[factor][name])
            except UsageError as error:
                raise UsageError(f"{factor}={name}: {error}") from error
        return setup

    def smaller(self) -> Ablation:
        """Returns the ablation in a form of seconds, which shows that every part of it runs.

        Each factor has its first two levels, and there are two seeds of a few steps.
        """
        vary = {factor: dict(list(levels.items())[:2]) for factor, levels in self.vary.items()}
        return replace(self, vary={**vary, "scale": {"smallest": smallest}}, seeds=self.all_seeds[:2])


def smallest(setup: Setup) -> Setup:
    """Returns a setup that is trained for four steps and measured on eight examples and samples."""
    recipe = setup.recipe
    data = replace(recipe.data, batch=min(recipe.data.batch, 8))
    training = replace(recipe.training, steps=4, warmup=1, cooldown=1, log_every=2, save_every=4, watch_every=0)
    few = replace(recipe, data=data, training=training, sampling_steps=min(recipe.sampling_steps, 4))
    return replace(setup, recipe=few, count=8, samples=8)


def applied(setup: Setup, level: Level) -> Setup:
    """Returns a setup with a level applied."""
    if isinstance(level, Recipe):
        return replace(setup, recipe=level)
    if isinstance(level, Mapping):
        recipe = setup.recipe
        for path, value in level.items():
            recipe = with_value(recipe, path, value)
        return replace(setup, recipe=recipe)
    return level(setup)


def with_value(owner: Any, path: str, value: Any) -> Any:
    """Returns a dataclass with one field replaced, by its name with dots, such as `loss.weight`."""
    name, _, rest = path.partition(".")
    known = [f.name for f in fields(owner)]
    if name not in known:
        raise UsageError(f"{type(owner).__name__} has no setting {name}: it has {', '.join(known)}")
    return replace(owner, **{name: with_value(getattr(owner, name), rest, value) if rest else value})


def split_levels(text: str) -> list[str]:
    """Returns the levels of a list in the notation of parts, separated by commas outside of parentheses and quotes.

    Raises:
        UsageError: for an empty level, and for a level that is named twice.
    """
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        if sign == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    found = [part.strip() for part in parts]
    if not all(found):
        raise UsageError(f"{text!r} has an empty level: separate levels by single commas, as in linear,cosine(s=0.02)")
    if twice := [part for part in found if found.count(part) > 1]:
        raise UsageError(f"{text!r} names {twice[0]} twice: give each level once")
    return [unquoted(part) for part in found]


def unquoted(text: str) -> str:
    """Returns text without the quotes around it."""
    if text[:1] in ("'", '"') and text[-1:] == text[:1]:
        return str(ast.literal_eval(text))
    return text
