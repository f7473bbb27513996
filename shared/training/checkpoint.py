"""Checkpoints that describe themselves: `tensors.safetensors` for the weights, `checkpoint.json` for what they are."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UsageError, shown
from ..objective import Objective
from ..quantization import Quantization
from ..serialization import current, deserialize, serialize
from .folder import said

FORMAT = 1
GROUPS = ("objective", "average", "optimizer")
COMPILED = "_orig_mod."
"""What `torch.compile` puts into the names of a module's weights."""


class Checkpoint(NamedTuple):
    """What `load` returns: the objective with raw and with averaged weights, and what was saved beside them."""

    objective: Objective
    average: Objective
    experiment: Any
    quantization: Quantization | None
    shape: tuple[int, ...] | None
    step: int
    description: dict[str, Any]
    tensors: dict[str, Tensor]


def save(
    folder: Path,
    *,
    objective: Objective,
    average: Objective,
    optimizer: torch.optim.Optimizer | None,
    step: int,
    config: Any,
    experiment: Any = None,
    batches: Any = None,
    keep: int = 2,
) -> Path:
    """Writes `folder/checkpoints/STEP` in one rename, so an interrupted save leaves the ones before it as they were.

    What was not trained here has no `optimizer` and no `config`, None; a run that goes on from it starts with a fresh
    one.

    Raises:
        UsageError: for what a checkpoint cannot describe or hold.
        OSError: where it cannot be written.
    """
    description = description_of(
        objective, optimizer=optimizer, step=step, config=config, experiment=experiment, batches=batches
    )
    tensors = {f"objective.{k}": v for k, v in weights(objective).items()} | {
        f"average.{k}": v for k, v in weights(average).items()
    }
    names = {p: name for name, p in parameters(objective).items()}
    for parameter, slots in ({} if optimizer is None else optimizer.state).items():
        tensors |= {f"optimizer.{names[parameter]}.{slot}": value for slot, value in slots.items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    digests = {group: digest(part) for group in GROUPS if (part := grouped(tensors, group))}
    description["digest"] = {"description": digest_of_text(description)} | digests
    home = folder / "checkpoints"
    temporary, final = home / f".{step:08d}.part", home / f"{step:08d}"
    for left in home.glob(".*.part"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "tensors.safetensors")
        (temporary / "checkpoint.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)  # makes room
        raise error if isinstance(error, OSError) else OSError(said(error)) from error
    for old in numbered(home)[:-keep]:
        shutil.rmtree(old)
    return final


def description_of(
    objective: Objective,
    *,
    optimizer: torch.optim.Optimizer | None,
    step: int,
    config: Any,
    experiment: Any,
    batches: Any,
) -> dict[str, Any]:
    """What `checkpoint.json` says, as it will be read; without the digests.

    Raises:
        UsageError: for what it cannot hold.
    """
    trained = set() if optimizer is None else {p for group in optimizer.param_groups for p in group["params"]}
    description = {
        "format": FORMAT,
        "step": step,
        "objective": serialize(objective),
        "config": serialize(config),
        "experiment": serialize(experiment),
        "quantization": serialize(getattr(batches, "quantization", None)),
        "shape": serialize(getattr(batches, "shape", None)),
        "batches": batches.state_dict() if hasattr(batches, "state_dict") else None,
        "frozen": None
        if optimizer is None
        else [name for name, p in parameters(objective).items() if p not in trained],
        "weights": {"objective.*": "raw", "average.*": "averaged, the ones to sample from"},
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in ("unnoise", "torch")},
    }
    try:
        return json.loads(json.dumps(description))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the batches' state_dict is not JSON ({said(error)}): give numbers, texts, lists and dicts"
        ) from error


def plain(name: str) -> str:
    """A weight's name without the marks of `torch.compile`: runs of compiled networks and of others are the same."""
    return name.replace(COMPILED, "")


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by their names, each once."""
    return {plain(name): p for name, p in module.named_parameters()}


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict by their names.

    Raises:
        UsageError: for what a file of tensors cannot hold.
    """
    found = {plain(name): value for name, value in module.state_dict().items()}
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            what = "no tensor" if not isinstance(value, Tensor) else "no plain tensor"
            raise UsageError(
                f"a checkpoint cannot hold {name}, a {type(value).__name__}: it is {what}; keep it out of the state dict"
            )
    return found


def grouped(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    """The tensors `group.NAME`, by NAME."""
    return {k.removeprefix(f"{group}."): v for k, v in tensors.items() if k.startswith(f"{group}.")}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and contents of tensors on the CPU."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        content = tensors[name].contiguous().reshape(-1)
        found.update(f"{name} {content.dtype} {tuple(tensors[name].shape)}\n".encode())
        if len(content):
            found.update(content.view(torch.uint8).numpy())
    return found.hexdigest()


def digest_of_text(description: Mapping[str, Any]) -> str:
    """SHA-256 of a description without its digests."""
    return hashlib.sha256(
        json.dumps({k: v for k, v in description.items() if k != "digest"}, sort_keys=True).encode()
    ).hexdigest()


def load(path: Path | str, *, network: nn.Module | None = None, device: torch.device | str = "cpu") -> Checkpoint:
    """Reads a checkpoint, with no flags: `load("runs/demo/ddpm").average.denoiser`.

    Args:
        path: a run's folder (its newest checkpoint is taken) or a checkpoint's own folder.
        network: stands in for a network that is not of this package.
        device: where the weights go.

    Raises:
        UsageError: where there is no checkpoint, it is damaged, or its weights do not fit its description (with the
            difference).
    """
    folder = newest(Path(path))
    description, tensors = read(folder)
    try:
        objective, average = (deserialize(description["objective"], copy.deepcopy(network)) for _ in range(2))
        experiment, quantization, shape = (
            deserialize(description["experiment"]),
            deserialize(description["quantization"]),
            description["shape"],
        )
        shape = None if shape is None else tuple(shape)
    except UNREADABLE as error:
        if (
            isinstance(error, UsageError) or "digest" in description
        ):  # it is as it was written, and so the fault is elsewhere
            raise
        raise damaged(folder, said(error)) from error
    for name, module in (("objective", objective), ("average", average)):
        fill(module, grouped(tensors, name), folder)
    return Checkpoint(
        objective=objective.to(device),
        average=average.to(device).eval().requires_grad_(False),
        experiment=experiment,
        quantization=quantization,
        shape=shape,
        step=description["step"],
        description=description,
        tensors=tensors,
    )


UNREADABLE = (
    OSError,
    SafetensorError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)
"""What reading a damaged file can raise."""


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of a checkpoint's own folder, checked against their digests; checkpoints before
    these have none.

    Raises:
        UsageError: where it is damaged, or of another format.
    """
    try:
        description = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        if (found := description["format"]) != FORMAT:
            raise UsageError(f"the checkpoint {folder} has format {found}, this version reads format {FORMAT}")
        told = description.get("digest", {})
        wrong = "description" in told and told["description"] != digest_of_text(description)
        if type(description["step"]) is not int or not isinstance(description["objective"], dict):
            raise TypeError("checkpoint.json holds no step or no objective")
        tensors = {plain(name): v for name, v in load_file(folder / "tensors.safetensors").items()}
        broken = [
            group
            for group in GROUPS
            if group in told and (part := grouped(tensors, group)) and told[group] != digest(part)
        ]
    except UsageError:
        raise
    except UNREADABLE as error:
        raise damaged(folder, said(error)) from error
    if broken:
        raise damaged(folder, f"the tensors {broken[0]}.* are not those that were written")
    if wrong:
        raise damaged(
            folder, 'checkpoint.json is not as it was written; where you changed it yourself, take "digest" out of it'
        )
    return of_today(description, tensors)


def of_today(description: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns a checkpoint's description and tensors under today's names of classes, arguments and weights."""
    description = {EARLIER.get(k, k): v if k == "batches" else current(v) for k, v in description.items()}
    if description.get("frozen"):
        description["frozen"] = [name.replace(*EARLIER_WEIGHTS) for name in description["frozen"]]
    return description, {name.replace(*EARLIER_WEIGHTS): value for name, value in tensors.items()}


EARLIER = {"scale": "quantization"}
"""Entries of a description that had another name."""
EARLIER_WEIGHTS = (".dequantiser.", ".dequantizer.")
"""A part of the names of weights, and what it is today."""


def damaged(folder: Path, reason: str) -> UsageError:
    """The error for a damaged checkpoint, with what to do."""
    others = [p for p in numbered(folder.parent) if p != folder and (p / "checkpoint.json").is_file()]
    remedy = f"delete it to go on from {others[-1].name}" if others else "train again"
    return UsageError(f"the checkpoint {folder} is damaged ({reason}): {remedy}")


def newest(path: Path) -> Path:
    """The checkpoint's folder at `path`, or the newest one of the run at `path`.

    Raises:
        UsageError: where there is none.
    """
    if (path / "checkpoint.json").is_file() or (path / "tensors.safetensors").is_file():
        return path
    if found := numbered(path / "checkpoints"):
        return found[-1]
    near = sorted({str(p.parent.parent) for p in path.parent.glob("*/checkpoints/*") if not p.name.startswith(".")})
    hint = f"; there are some in {', '.join(near[:4])}" if near else ""
    raise UsageError(
        f"there is no checkpoint in {path}{hint}: train one with `unnoise train`, or bring one in with `unnoise import`"
    )


def numbered(home: Path) -> list[Path]:
    """The checkpoints below `home`, oldest first; damaged ones too, so that none is passed over in silence."""
    return sorted((p for p in home.glob("[0-9]*") if p.name.isdecimal() and p.is_dir()), key=lambda p: int(p.name))


def fill(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Loads a state dict, in its own precision.

    Raises:
        UsageError: with the difference, where names or shapes do not match.
    """
    own = {plain(name): v for name, v in module.state_dict(keep_vars=True).items()}
    lines = [f"missing {k}" for k in own.keys() - state.keys()] + [f"unknown {k}" for k in state.keys() - own.keys()]
    for k in own.keys() & state.keys():
        if own[k].shape != state[k].shape:
            lines.append(f"{k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}")
        elif own[k].is_floating_point() != state[k].is_floating_point():
            lines.append(f"{k} is {state[k].dtype}, not {own[k].dtype}")
    if lines:
        more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise UsageError(
            f"the weights in {source} do not fit: {'; '.join(sorted(lines)[:4])}{more}; give the network that was saved"
        )
    for k, v in own.items():
        if v.is_floating_point() and v.dtype != state[k].dtype:
            v.data = v.data.to(state[k].dtype)
    module.load_state_dict({name: state[plain(name)] for name in module.state_dict()})


def difference(stored: Any, given: Any, at: str = "") -> list[str]:
    """Where two descriptions differ, one short line each: `network.width: 32 there, 64 here`."""
    if isinstance(stored, dict) and isinstance(given, dict) and named(stored) == named(given):
        if {*stored, *given} == {"tensor", "dtype"} and stored.keys() == given.keys():
            return difference_of_tensors(stored, given, at.strip("."))
        pairs = {k: (stored.get(k, ABSENT), given.get(k, ABSENT)) for k in stored | given}
        return [d for k, (a, b) in pairs.items() for d in difference(a, b, f"{at}.{k}" if k != "arguments" else at)]
    if isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        return [d for i, (a, b) in enumerate(zip(stored, given, strict=True)) for d in difference(a, b, f"{at}[{i}]")]
    if isinstance(stored, str) and isinstance(given, str) and stored != given and stored[:1] == given[:1] == "{":
        try:  # such as a tokenizer's file, however it is written
            return difference(json.loads(stored), json.loads(given), at)
        except ValueError:
            pass
    same = stored == given or (stored != stored and given != given)  # NaN
    return [] if same else [f"{at.strip('.')}: {brief(stored)} there, {brief(given)} here"]


ABSENT = "nothing"
"""How `difference` calls what one of the two lacks."""


def named(description: Mapping[str, Any]) -> Any:
    """The class of a description, if it is of one."""
    return next((description[k] for k in ("class", "external") if isinstance(description.get(k), str)), None)


def difference_of_tensors(stored: Mapping[str, Any], given: Mapping[str, Any], at: str) -> list[str]:
    """Where two descriptions of tensors differ: in the shape, or the first value that does."""
    a, b = (torch.tensor(d["tensor"], dtype=torch.float64) for d in (stored, given))
    if a.shape != b.shape:
        there, here = (" x ".join(map(str, v.shape)) or "1" for v in (a, b))
        return [f"{at}: {there} values there, {here} here"]
    if len(places := torch.nonzero((a != b) & ~(a.isnan() & b.isnan()))):
        first = tuple(places[0].tolist())
        values = f"{float(a[first])} there, {float(b[first])} here"
        return [f"{at}{list(first) or ''}: {values}{f', the first of {len(places)} that differ' * (len(places) > 1)}"]
    return [] if stored["dtype"] == given["dtype"] else [f"{at}: {stored['dtype']} there, {given['dtype']} here"]


def brief(value: Any, most: int = 60) -> str:
    """A part of a description in a few words."""
    if isinstance(value, dict) and (name := named(value)) is not None:
        return str(name)
    text = str(value)
    if len(text) <= most:
        return text
    if isinstance(value, str):
        return f"{len(text):,} characters (SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:8]}...)"
    return f"{len(value)} values" if isinstance(value, list) else shown(text, most)
