"""A run that goes on.

The same model and data, each parameter with its own optimizer state, and a word on whatever has changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import UsageError, shown
from ..objective import Objective
from ..serialization import deserialize, serialize
from .checkpoint import difference, grouped, named, parameters, weights
from .config import PACE, Training

COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
"""What a compiled network was called by earlier versions."""
REMEDY = "give the run's, or train into another folder (--out, folder=)"


def refuse_other_model(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], objective: Objective
) -> list[str]:
    """Refuses an objective that is not the checkpoint's, and returns what is to be said of it.

    A network that is not of this package is known by its class alone, which may have moved: another one is said, not
    refused.

    Raises:
        UsageError: with the difference.
    """
    stored, given, told = description["objective"], serialize(objective), []
    if json.dumps(stored, sort_keys=True) != json.dumps(given, sort_keys=True):
        networks = (getattr(module, "network", None) for module in objective.modules())
        network = next((n for n in networks if isinstance(n, nn.Module)), None)
        # Described anew, so that an argument which has come with a default since is no difference.
        if lines := difference(unnamed(serialize(deserialize(stored, network))), unnamed(given)):
            raise UsageError(f"the run in {folder} has other settings: {several(lines)}: {REMEDY}")
        pairs = sorted(set(of_other_class(stored, given)))
        told = [f"the network is of another class: {there} there, {here} here" for there, here in pairs]
    saved = grouped(tensors, "objective")
    for name, value in weights(objective).items():
        if name in saved and saved[name].shape == value.shape and saved[name].dtype != value.dtype:
            raise UsageError(
                f"the run in {folder} has {name} in {saved[name].dtype}, and it is {value.dtype} here: give the run's precision"
            )
    return told


def of_other_class(stored: Any, given: Any) -> list[tuple[str, str]]:
    """The class there and the class here of each network that was not of this package, where they differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        if "external" in stored:
            there, here = stored["external"], named(given)
            return [] if there in (here, COMPILED) else [(there, here)]
        return [pair for k in stored.keys() & given.keys() for pair in of_other_class(stored[k], given[k])]
    if isinstance(stored, list) and isinstance(given, list):
        return [pair for parts in zip(stored, given, strict=False) for pair in of_other_class(*parts)]
    return []


def unnamed(description: Any) -> Any:
    """A description without these classes."""
    if isinstance(description, dict):
        return {k: "a network of your own" if k == "external" else unnamed(v) for k, v in description.items()}
    return [unnamed(part) for part in description] if isinstance(description, list) else description


def several(lines: Sequence[str]) -> str:
    """The first few of the differences."""
    return f"{'; '.join(lines[:4])}{'; ...' * (len(lines) > 4)}"


def place_data(folder: Path, description: Mapping[str, Any], batches: Any) -> list[str]:
    """Brings the batches to the checkpoint's position, and returns what is to be said of it.

    Raises:
        UsageError: for other data.
    """
    for name in ("quantization", "shape"):
        stored, given = description[name], json.loads(json.dumps(serialize(getattr(batches, name, None))))
        if stored is not None and given is not None and (lines := difference(stored, given, name)):
            raise UsageError(f"the data differ from those of the run in {folder}: {several(lines)}: {REMEDY}")
    if description["batches"] is None:
        other = description["config"] is not None and hasattr(batches, "load_state_dict")
        return ["the batches start from their beginning, for those of the run had no state_dict"] if other else []
    if not hasattr(batches, "load_state_dict"):
        return ["the batches start from their beginning, for they have no load_state_dict"]
    state, told = with_alphabet(description)
    try:
        batches.load_state_dict(state)
    except (LookupError, TypeError, AttributeError) as error:
        kind = type(batches).__name__
        raise UsageError(
            f"{kind} cannot go on from {shown(description['batches'])} of the run in {folder}: {REMEDY}"
        ) from error
    return told


def with_alphabet(description: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """What a checkpoint keeps of its batches, and what is to be said of it.

    Those of earlier versions do not say what their numbers stand for, and their recipe does.
    """
    state = description["batches"]
    if (
        not isinstance(state, dict)
        or "alphabet" in state
        or "text" not in (description["experiment"] or {}).get("arguments", {})
    ):
        return state, []
    try:
        return state | {"alphabet": deserialize(description["experiment"]).text.alphabet().named}, []
    except (UsageError, AttributeError) as error:
        return state, [f"what its numbers stand for is not known ({shown(error)}), and not compared"]


def optimizer_slots(
    folder: Path,
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    objective: nn.Module,
    trained: Sequence[nn.Parameter],
) -> tuple[dict[int, dict[str, Tensor]], list[str]]:
    """The optimizer's state by each parameter's place among the trained ones, and what is to be said of it.

    State belongs to a parameter's name. Checkpoints of earlier versions have it by place alone; it is taken where as
    many parameters of the same shapes are trained.

    Raises:
        UsageError: for state of another shape than its parameter's.
    """
    names = {p: name for name, p in parameters(objective).items()}
    here = [names[p] for p in trained]
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in grouped(tensors, "optimizer").items():
        name, _, slot = key.rpartition(".")
        slots.setdefault(name, {})[slot] = value
    if not slots:
        return {}, ["its checkpoint holds no optimizer state, which starts afresh"] if description[
            "config"
        ] is not None else []
    if all(name.isdecimal() for name in slots):
        placed = {int(name): found for name, found in slots.items()}
        if max(placed) + 1 != len(here) or not all(fits(found, trained[i]) for i, found in placed.items()):
            return {}, ["its optimizer state belongs to other parameters than are trained here, and starts afresh"]
        return placed, []
    known, said = [name for name in here if name in slots], []
    if wrong := [name for name in known if not fits(slots[name], trained[here.index(name)])]:
        raise UsageError(f"the optimizer state in {folder} does not fit: {wrong[0]} has other shapes: {REMEDY}")
    if fresh := [name for name in here if name in (description.get("frozen") or ())]:
        said.append(f"{listed(fresh)} frozen there and trained here: {its(fresh)} optimizer state starts afresh")
    if dropped := [name for name in slots if name not in here]:
        said.append(f"{listed(dropped)} trained there and frozen here: {its(dropped)} optimizer state is dropped")
    return {here.index(name): slots[name] for name in known}, said


def fits(slots: Mapping[str, Tensor], parameter: nn.Parameter) -> bool:
    """Whether the moments have the parameter's shape."""
    return all(value.shape == parameter.shape for slot, value in slots.items() if slot != "step")


def listed(names: Sequence[str]) -> str:
    """A few of the names, with their number."""
    return (
        f"{names[0]} was"
        if len(names) == 1
        else f"{len(names)} parameters ({', '.join(names[:2])}{', ...' * (len(names) > 2)}) were"
    )


def its(names: Sequence[str]) -> str:
    """Whose, after `listed`."""
    return "its" if len(names) == 1 else "their"


def other_settings(description: Mapping[str, Any], config: Training, experiment: Any) -> list[str]:
    """Settings of training and of the recipe that change the run's course, and are others in the checkpoint."""
    lines: list[str] = []
    if description["config"] is not None:
        stored = {f.name: f.default for f in fields(Training)} | description["config"]["arguments"]
        given = serialize(config)["arguments"]
        stored, given = (
            {k: serialize(v) for k, v in values.items() if k in given and k not in PACE} for values in (stored, given)
        )
        lines += difference(stored, given)
    recipes = [json.loads(json.dumps(d)) for d in (description["experiment"], serialize(experiment)) if d is not None]
    if len(recipes) == 2:
        for recipe in recipes:
            recipe.get("arguments", {}).pop("training", None)
        lines += difference(common(*recipes), common(*recipes[::-1]))
    return lines


def common(given: Any, other: Any) -> Any:
    """A description without arguments that the other does not know: those that have come, or gone, with a version."""
    if isinstance(given, dict) and isinstance(other, dict):
        return {k: common(v, other[k]) for k, v in given.items() if k in other}
    return given
