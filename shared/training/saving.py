"""Writing of checkpoints: by one process, or by each of several that hold a part of the weights."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..distributed import barrier, is_main, launcher
from ..errors import UsageError
from ..objective import Objective
from ..serialization import serialize
from .checkpoint import FORMAT, HELD_OUT, best, list_checkpoints, read
from .digests import digest_of_log, digest_of_text, digests, groups
from .folder import flush, reason, write_text
from .named import parameters, weights
from .parallel import is_divided
from .parts import PARTS, write_parts

DRAWS = 2
"""How training draws random numbers: 1 from one generator for a batch, 2 for each example by its row in the batch."""


def save(
    folder: Path,
    *,
    objective: Objective,
    average: Objective,
    step: int,
    experiment: Any = None,
    batches: Any = None,
) -> Path:
    """Writes weights that were not trained here as a checkpoint, from which a run can start.

    Returns its folder, whose name is the step in eight digits. For the arguments see `description_of`.

    Raises:
        UsageError: for parts that cannot be saved in a checkpoint.
        OSError: where it cannot be written.
    """
    description = description_of(objective, step=step, experiment=experiment, batches=batches)
    return write(folder, description, state_of(objective, [average], None))


def state_of(
    objective: nn.Module, averages: Sequence[nn.Module], optimizer: torch.optim.Optimizer | None
) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint by name: raw and averaged weights, and the optimizer's state by parameter."""
    tensors = {f"objective.{k}": v for k, v in weights(objective).items()}
    for group, average in zip(groups(len(averages)), averages, strict=True):
        tensors |= {f"{group}.{k}": v for k, v in weights(average).items()}
    names: dict[Tensor, str] = {p: name for name, p in parameters(objective).items()}
    for parameter, slots in ({} if optimizer is None else optimizer.state).items():
        tensors |= {f"optimizer.{names[parameter]}.{slot}": value for slot, value in slots.items()}
    return tensors


def write(
    folder: Path, description: dict[str, Any], tensors: Mapping[str, Tensor], *, keep: int = 2, every: int = 0
) -> Path:
    """Writes `folder/checkpoints/STEP` in one rename, so that an interrupted save leaves earlier checkpoints intact.

    Tensors that are divided among processes are written by each of them to its own files in the folder `parts`, and
    every process must call this; otherwise the main process alone.

    Args:
        folder: the run's folder.
        description: from `description_of`.
        tensors: from `state_of`.
        keep: number of newest checkpoints to keep; older ones are deleted, except the best by held-out loss.
        every: checkpoints of steps that this number divides are kept too; 0 for none.

    Returns:
        The checkpoint's own folder.

    Raises:
        OSError: where it cannot be written.
    """
    home, step = folder / "checkpoints", description["step"]
    temporary, final = home / f".{step:08d}.part", home / f"{step:08d}"
    divided = any(map(is_divided, tensors.values()))
    try:
        if is_main():
            for left in home.glob(".*.part"):  # by a killed process
                shutil.rmtree(left, ignore_errors=True)
            temporary.mkdir(parents=True)
        description["metrics"] = digest_of_log(folder / "metrics.jsonl")
        if divided:
            barrier()
            description |= write_parts(temporary / PARTS, tensors)
            if is_main():
                description["digest"]["description"] = digest_of_text(description)
        else:
            tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
            description["digest"] = digests(description, tensors)
            save_file(tensors, temporary / "tensors.safetensors")
        if is_main():
            (temporary / "checkpoint.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
            for path in (*temporary.rglob("*"), temporary, *folder.glob("metrics.jsonl")):
                flush(path)
            if final.exists():
                remove(final)
            os.replace(temporary, final)
            flush(home)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)  # frees disk space
        raise error if isinstance(error, OSError) else OSError(reason(error)) from error
    if divided:
        barrier()
    if is_main():
        kept = {best(home), *list_checkpoints(home)[-keep:]}
        for old in list_checkpoints(home):
            if old not in kept and (not every or int(old.name) % every):
                remove(old)
    return final


def remove(checkpoint: Path) -> None:
    """Deletes a checkpoint after it was given another name, so that none is left of which a part is deleted.

    Raises:
        OSError: where that is not possible.
    """
    hidden = checkpoint.with_name(f".{checkpoint.name}.old.part")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(checkpoint, hidden)
    shutil.rmtree(hidden)


def set_aside(home: Path, step: int) -> list[Path]:
    """Renames the checkpoints below `home` that are newer than a step to `NAME.damaged`, and returns their new names.

    A run that continues from an earlier checkpoint than its newest would count them among those that it keeps.

    Raises:
        OSError: where that is not possible.
    """
    renamed = []
    for folder in list_checkpoints(home):
        if int(folder.name) > step:
            names = (folder.with_name(f"{folder.name}.damaged{f'-{n}' * (n > 1)}") for n in count(1))
            renamed.append(folder.rename(next(name for name in names if not name.exists())))
    return renamed


def consolidate(folder: Path) -> Path:
    """Puts the files of several processes in a checkpoint together to the one file of a run in one process.

    Does nothing where there is one file already. Every process calls this, or one of them outside of a run. A process
    that is killed here leaves the checkpoint intact: its description says which files are its own.
    """
    barrier()
    if is_main() and (folder / PARTS).is_dir():
        description, tensors = read(folder)
        description["digest"] = digests(description, tensors)
        save_file(tensors, folder / "tensors.safetensors")
        flush(folder / "tensors.safetensors")
        write_text(folder / "checkpoint.json", json.dumps(description, indent=1))
        flush(folder)
        shutil.rmtree(folder / PARTS)
    barrier()
    return folder


def description_of(
    objective: Objective,
    *,
    step: int,
    config: Any = None,
    experiment: Any = None,
    batches: Any = None,
    frozen: Sequence[str] | None = None,
    averages: Sequence[Any] = (),
    begun: Sequence[int] = (),
    scaler: Mapping[str, Any] | None = None,
    held_out: float | None = None,
    logged: Any = None,
) -> dict[str, Any]:
    """Returns the content of `checkpoint.json` without its digests, as it will be read.

    Args:
        objective: the objective.
        step: number of training steps.
        config: settings of the trainer; None for weights that were not trained here.
        experiment: the recipe of the run.
        batches: the data; their `state_dict`, if any, is saved.
        frozen: names of the parameters that are not trained; None for weights that were not trained here.
        averages: the averages of the weights; the first is the one to sample from.
        begun: the step at which each average was begun: 0, or that of a resumed run which added it.
        scaler: the state of the scale of the loss, for float16.
        held_out: the loss of held-out examples at this step, by which the best checkpoint is found.
        logged: what the log has collected since its last line.

    Raises:
        UsageError: for parts that cannot be saved in it.
    """
    description = {
        "format": FORMAT,
        "step": step,
        "objective": serialize(objective),
        "config": serialize(config),
        "experiment": serialize(experiment),
        "quantization": serialize(getattr(batches, "quantization", None)),
        "shape": serialize(getattr(batches, "shape", None)),
        "batches": batches.state_dict() if hasattr(batches, "state_dict") else None,
        "frozen": frozen,
        "weights": {"objective.*": "raw", "average.*": "averaged, the ones to sample from"}
        | {f"{group}.*": repr(average) for group, average in zip(groups(len(averages)), averages, strict=True)},
        "averages": [serialize(average) for average in averages],
        "begun": list(begun),
        "scaler": scaler,
        HELD_OUT: held_out,
        "log": logged,
        "draws": DRAWS,
        "launch": launcher(),
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in ("unnoise", "torch")},
    }
    try:
        return json.loads(json.dumps(description))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the batches' state_dict is not JSON ({reason(error)}): give numbers, texts, lists and dicts"
        ) from error
