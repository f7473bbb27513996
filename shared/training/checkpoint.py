"""Checkpoints that describe themselves: `tensors.safetensors` for the weights, `checkpoint.json` for what they are."""

from __future__ import annotations

import copy
import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..describe import build, describe
from ..errors import UsageError
from ..objective import Objective
from ..scale import Scale

FORMAT = 1


class Checkpoint(NamedTuple):
    """What `load` returns: the objective with raw and with averaged weights, and what was saved beside them."""

    objective: Objective
    average: Objective
    experiment: Any
    scale: Scale | None
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

    What was not trained here has no `optimizer` and no `config`, None; a run that goes on from it starts with a fresh one.
    """
    tensors = {f"objective.{k}": v for k, v in objective.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for index, slots in ({} if optimizer is None else optimizer.state_dict()["state"]).items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
    description = {
        "format": FORMAT,
        "step": step,
        "objective": describe(objective),
        "config": describe(config),
        "experiment": describe(experiment),
        "scale": describe(getattr(batches, "scale", None)),
        "shape": describe(getattr(batches, "shape", None)),
        "batches": batches.state_dict() if hasattr(batches, "state_dict") else None,
        "weights": {"objective.*": "raw", "average.*": "averaged, the ones to sample from"},
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in ("unnoise", "torch")},
    }
    home = folder / "checkpoints"
    temporary, final = home / f".{step:08d}.part", home / f"{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary / "tensors.safetensors")
    (temporary / "checkpoint.json").write_text(json.dumps(description, indent=1))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    for old in numbered(home)[:-keep]:
        shutil.rmtree(old)
    return final


def load(path: Path | str, *, network: nn.Module | None = None, device: torch.device | str = "cpu") -> Checkpoint:
    """Reads a checkpoint, with no flags: `load("runs/demo/ddpm").average.denoiser`.

    Args:
        path: a run's folder (its newest checkpoint is taken) or a checkpoint's own folder.
        network: stands in for a network that is not of this package.
        device: where the weights go.

    Raises:
        UsageError: where there is no checkpoint, it is damaged, or its weights do not fit its description (with the difference).
    """
    folder = newest(Path(path))
    try:
        description = json.loads((folder / "checkpoint.json").read_text())
        tensors = load_file(folder / "tensors.safetensors")
        found = description["format"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        others = [p for p in numbered(folder.parent) if p != folder]
        remedy = f"delete it to go on from {others[-1].name}" if others else "train again"
        raise UsageError(f"the checkpoint {folder} is damaged ({reason}): {remedy}") from error
    if found != FORMAT:
        raise UsageError(f"the checkpoint {folder} has format {found}, this version reads format {FORMAT}")
    objective, average = (build(description["objective"], copy.deepcopy(network)) for _ in range(2))
    for name, module in (("objective", objective), ("average", average)):
        fill(module, {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}, folder)
    shape = description["shape"]
    return Checkpoint(
        objective=objective.to(device),
        average=average.to(device).eval().requires_grad_(False),
        experiment=build(description["experiment"]),
        scale=build(description["scale"]),
        shape=None if shape is None else tuple(shape),
        step=description["step"],
        description=description,
        tensors=tensors,
    )


def newest(path: Path) -> Path:
    """The checkpoint's folder at `path`, or the newest one of the run at `path`.

    Raises:
        UsageError: where there is none.
    """
    if (path / "checkpoint.json").is_file():
        return path
    if found := numbered(path / "checkpoints"):
        return found[-1]
    near = sorted({str(p.parent.parent) for p in path.parent.glob("*/checkpoints/*") if not p.name.startswith(".")})
    hint = f"; there are some in {', '.join(near[:4])}" if near else ""
    raise UsageError(f"there is no checkpoint in {path}{hint}: train one with `unnoise train`, or bring one in with `unnoise import`")


def numbered(home: Path) -> list[Path]:
    """The whole checkpoints below `home`, oldest first."""
    return sorted(p for p in home.glob("[0-9]*") if (p / "checkpoint.json").is_file())


def fill(module: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Loads a state dict.

    Raises:
        UsageError: with the difference, where names or shapes do not match.
    """
    own = module.state_dict()
    lines = [f"missing {k}" for k in own.keys() - state.keys()] + [f"unknown {k}" for k in state.keys() - own.keys()]
    lines += [
        f"{k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}" for k in own.keys() & state.keys() if own[k].shape != state[k].shape
    ]
    if lines:
        more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise UsageError(f"the weights in {source} do not fit: {'; '.join(sorted(lines)[:4])}{more}")
    module.load_state_dict(state)


def difference(stored: Any, given: Any, at: str = "") -> list[str]:
    """Where two descriptions differ, one line each: `network.width: 32 there, 64 here`."""
    if isinstance(stored, dict) and isinstance(given, dict) and stored.keys() == given.keys():
        return [d for k in stored for d in difference(stored[k], given[k], f"{at}.{k}" if k != "arguments" else at)]
    if isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        return [d for i, (a, b) in enumerate(zip(stored, given, strict=True)) for d in difference(a, b, f"{at}[{i}]")]
    return [] if stored == given else [f"{at.strip('.')}: {stored} there, {given} here"]
