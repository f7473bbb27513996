"""Resuming a run: the same model and data, each parameter with its own optimizer state, and notes on what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..distributed import is_main, launcher, of_main, restarted
from ..errors import UsageError, shown
from ..objective import Objective
from ..serialization import deserialize, serialize
from .averages import Average
from .checkpoint import first_intact, load_weights, read
from .config import WITHOUT_EFFECT, Training
from .differences import class_name, difference
from .digests import digest_of_log, groups, tensors_in
from .folder import parse_lines
from .named import parameters, weights

COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
"""The class of a compiled network in checkpoints of earlier versions."""
OTHER_FOLDER = "or train into another folder (--out, folder=)"


def newest_of_run(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor], list[str]]:
    """Reads the newest intact checkpoint of a run, the same on every process.

    Returns its own folder, its description and tensors, and what is damaged of newer ones.

    Raises:
        UsageError: on every process, where none is intact.
    """
    found, error, damage = None, None, list[str]()
    if is_main():
        try:
            found = first_intact(folder, read, say=lambda errors, used: damage.extend(e.found for e in errors))
        except UsageError as caught:
            error = caught
    chosen, line = of_main((found and found[0].name, error and str(error)))
    if chosen is None:
        raise error or UsageError(line)
    checkpoint = folder / "checkpoints" / chosen
    description, tensors = read(checkpoint) if found is None else found[1]
    return checkpoint, description, tensors, damage


def log_notes(folder: Path, description: Mapping[str, Any]) -> list[str]:
    """Returns a note where a line of the log of a run is not what was written, though it can be read.

    On lines that cannot be read there is a note where the log is opened.
    """
    path, stored = folder / "metrics.jsonl", description.get("metrics")
    if stored is None or not path.is_file() or digest_of_log(path, stored["bytes"]) == stored or parse_lines(path)[1]:
        return []
    return [f"{path} differs from what was written, by damage or by an editor"]


def refuse_other_launch(folder: Path, description: Mapping[str, Any]) -> None:
    """Refuses a run that is not to be resumed, except after a restart by the launcher that has started it.

    Every process calls this together; the launcher is that of the main process, which wrote the description.

    Raises:
        UsageError: with the remedy.
    """
    if not restarted() or description.get("launch") != of_main(launcher()):
        raise UsageError(f"{folder} already has a run: continue it (--resume, resume=True), or choose another folder")


def refuse_other_model(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], objective: Objective
) -> list[str]:
    """Refuses an objective that is not the checkpoint's, and returns notes on what changed.

    The description and the tensors are those of the checkpoint, from `checkpoint.read`.

    Of a network that is not part of this package only the class is known, and its module may have moved: another class
    is a note, not an error.

    Raises:
        UsageError: with the difference.
    """
    stored, given, notes = description["objective"], serialize(objective), []
    if json.dumps(stored, sort_keys=True) != json.dumps(given, sort_keys=True):
        networks = (getattr(module, "network", None) for module in objective.modules())
        network = next((n for n in networks if isinstance(n, nn.Module)), None)
        # Serialized anew, so that an argument which was added since, with a default, is no difference.
        lines = difference(without_classes(serialize(deserialize(stored, network))), without_classes(given))
        if lines:
            raise UsageError(
                f"the run in {folder} has other settings: {first_few(lines)}: give the run's own, {OTHER_FOLDER}"
            )
        pairs = sorted(set(other_classes(stored, given)))
        notes = [f"the class of the network: was {before}, now {now}" for before, now in pairs]
    saved = tensors_in(tensors, "objective")
    for name, value in weights(objective).items():
        if name in saved and saved[name].shape == value.shape and saved[name].dtype != value.dtype:
            raise UsageError(
                f"the run in {folder} has {name} in {saved[name].dtype}, and the given model has it in {value.dtype}: "
                "give the run's precision"
            )
    return notes


def other_classes(stored: Any, given: Any) -> list[tuple[str, str]]:
    """Returns the old and the new class of each network that is not part of this package, where they differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        if "external" in stored:
            before, now = stored["external"], class_name(given)
            return [] if before in (now, COMPILED) else [(before, now)]
        return [pair for k in stored.keys() & given.keys() for pair in other_classes(stored[k], given[k])]
    if isinstance(stored, list) and isinstance(given, list):
        return [pair for parts in zip(stored, given, strict=False) for pair in other_classes(*parts)]
    return []


def without_classes(description: Any) -> Any:
    """Returns a description without the classes of networks that are not part of this package."""
    if isinstance(description, dict):
        return {k: "a network of your own" if k == "external" else without_classes(v) for k, v in description.items()}
    return [without_classes(part) for part in description] if isinstance(description, list) else description


def first_few(lines: Sequence[str]) -> str:
    """Returns up to four of the lines in one text, separated by semicolons."""
    return f"{'; '.join(lines[:4])}{'; ...' * (len(lines) > 4)}"


def restore_data(folder: Path, description: Mapping[str, Any], batches: Any) -> list[str]:
    """Moves the batches to the checkpoint's position, and returns notes on what changed.

    Batches without `load_state_dict`, or without a saved state, start from their beginning, which is a note.

    Raises:
        UsageError: for other data.
    """
    remedy = f"give the run's own data, {OTHER_FOLDER}"
    for name in ("quantization", "shape"):
        stored, given = description[name], json.loads(json.dumps(serialize(getattr(batches, name, None))))
        if stored is not None and given is not None and (lines := difference(stored, given, name)):
            raise UsageError(f"the data differ from those of the run in {folder}: {first_few(lines)}: {remedy}")
    if description["batches"] is None:
        other = description["config"] is not None and hasattr(batches, "load_state_dict")
        return ["the batches start from their beginning, because those of the run had no state_dict"] if other else []
    if not hasattr(batches, "load_state_dict"):
        return ["the batches start from their beginning, because they have no load_state_dict"]
    state, notes = with_tokenizer(description)
    try:
        batches.load_state_dict(state)
    except (LookupError, TypeError, AttributeError) as error:
        kind = type(batches).__name__
        raise UsageError(
            f"{kind} cannot continue from {shown(description['batches'])} of the run in {folder}: {remedy}"
        ) from error
    return notes


def with_tokenizer(description: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Returns the state of the batches in a checkpoint, completed with the tokenizer, and notes.

    Earlier versions saved the tokenizer of texts in the recipe alone; captions of images they did not have.
    """
    state, arguments = description["batches"], (description["experiment"] or {}).get("arguments", {})
    data = arguments.get("data") or arguments.get("text") or {}
    if not isinstance(state, dict) or {"tokenizer", "alphabet"} & state.keys():
        return state, []
    if (
        not isinstance(data, dict)
        or "tokenizer" not in (given := data.get("arguments", {}))
        or "caption_length" in given
    ):
        return state, []
    try:
        return state | {"tokenizer": deserialize(data).read_tokenizer().fingerprint}, []
    except (UsageError, AttributeError) as error:
        return state, [f"the tokenizer of the run is not known ({shown(error)}), and not compared"]


def optimizer_slots(
    folder: Path,
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    objective: nn.Module,
    trained: Sequence[nn.Parameter],
) -> tuple[dict[int, dict[str, Tensor]], list[str]]:
    """Returns the optimizer's state by each parameter's index among the trained ones, and notes on what changed.

    In checkpoints, state belongs to the name of a parameter. Those of earlier versions have indices instead of names;
    their state is taken where as many parameters of the same shapes are trained.

    Args:
        folder: the folder of the checkpoint, for the message.
        description, tensors: the checkpoint, from `checkpoint.read`.
        objective: the objective that is trained further.
        trained: its parameters that are trained, in the order of the optimizer.

    Raises:
        UsageError: for state of another shape than its parameter's.
    """
    names = {p: name for name, p in parameters(objective).items()}
    here = [names[p] for p in trained]
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors_in(tensors, "optimizer").items():
        name, _, slot = key.rpartition(".")
        slots.setdefault(name, {})[slot] = value
    if not slots:
        if description["config"] is None:
            return {}, []
        return {}, ["its checkpoint has no optimizer state, and a new one starts"]
    if all(name.isdecimal() for name in slots):
        placed = {int(name): found for name, found in slots.items()}
        if max(placed) + 1 != len(here) or not all(fits(found, trained[i]) for i, found in placed.items()):
            return {}, ["its optimizer state belongs to other parameters than are trained now, and a new one starts"]
        return placed, []
    known, notes = [name for name in here if name in slots], []
    if wrong := [name for name in known if not fits(slots[name], trained[here.index(name)])]:
        raise UsageError(
            f"the optimizer state in {folder} does not match: {wrong[0]} has other shapes: give the run's own model, "
            f"{OTHER_FOLDER}"
        )
    if fresh := [name for name in here if name in (description.get("frozen") or ())]:
        are, their = ("is", "its") if len(fresh) == 1 else ("are", "their")
        notes.append(f"{listed(fresh)} frozen and {are} trained now: {their} optimizer state is new")
    if dropped := [name for name in slots if name not in here]:
        are, their = ("is", "its") if len(dropped) == 1 else ("are", "their")
        notes.append(f"{listed(dropped)} trained and {are} frozen now: {their} optimizer state is dropped")
    return {here.index(name): slots[name] for name in known}, notes


def restore_averages(
    folder: Path,
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    averages: Sequence[nn.Module],
    laws: Sequence[Average],
) -> tuple[list[str], list[int]]:
    """Loads averaged weights from a checkpoint.

    Averages are found by their settings. The first one otherwise continues the first of the run, and a new one starts
    from it.

    Returns:
        Notes on averages that are new or dropped, and the step at which each average was begun.

    Raises:
        UsageError: where weights do not match.
    """
    stored = [deserialize(a) for a in description.get("averages", [])] or [None]
    since, step = description.get("begun") or [0] * len(stored), description["step"]
    notes, begun = [], []
    for n, (average, law) in enumerate(zip(averages, laws, strict=True)):
        place = stored.index(law) if law in stored else None
        begun.append(step if place is None else since[place])
        if place is None and n:
            notes.append(f"the average {law} is new, and starts from the averaged weights of the run")
        load_weights(average, tensors_in(tensors, groups(len(stored))[place or 0]), folder)
    replaced = laws[0] in stored  # the first one is continued otherwise
    notes += [f"the average {law} is dropped" for law in stored[0 if replaced else 1 :] if law not in laws]
    return notes, begun


def fits(slots: Mapping[str, Tensor], parameter: nn.Parameter) -> bool:
    """Returns whether AdamW's moments, all of `slots` but `step`, have the parameter's shape."""
    return all(value.shape == parameter.shape for slot, value in slots.items() if slot != "step")


def listed(names: Sequence[str]) -> str:
    """Returns up to two of the names as the subject of a sentence: `a was`, `3 parameters (a, b, ...) were`."""
    if len(names) == 1:
        return f"{names[0]} was"
    return f"{len(names)} parameters ({', '.join(names[:2])}{', ...' * (len(names) > 2)}) were"


def other_settings(description: Mapping[str, Any], config: Training, experiment: Any) -> list[str]:
    """Returns the settings of training and of the recipe that change what steps compute, and differ from the run's."""
    lines: list[str] = []
    if description["config"] is not None:
        stored = {f.name: serialize(getattr(Training(), f.name)) for f in fields(Training)}
        stored |= description["config"]["arguments"]
        given = serialize(config)["arguments"]
        stored, given = (
            {k: v for k, v in values.items() if k in given and k not in WITHOUT_EFFECT} for values in (stored, given)
        )
        lines += difference(stored, given)
    recipes = [json.loads(json.dumps(d)) for d in (description["experiment"], serialize(experiment)) if d is not None]
    if len(recipes) == 2:
        for recipe in recipes:
            recipe.get("arguments", {}).pop("training", None)
        lines += difference(common(*recipes), common(*recipes[::-1]))
    return lines


def common(given: Any, other: Any) -> Any:
    """Returns `given` without the entries that `other` lacks, which another version of the package added or removed."""
    if isinstance(given, dict) and isinstance(other, dict):
        return {k: common(v, other[k]) for k, v in given.items() if k in other}
    return given
