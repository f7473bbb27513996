"""Checkpoints: `tensors.safetensors` holds the weights, `checkpoint.json` all that is needed to rebuild the model."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from warnings import warn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import Notice, UsageError, shown
from ..objective import Objective
from ..quantization import Quantization
from ..serialization import current, deserialize
from .digests import digest, digest_of_text, groups_in, tensors_in
from .folder import reason
from .named import parameters, uncompiled
from .parallel import laid_like
from .parts import PARTS, read_parts
from .posthoc import Wanted, choose

FORMAT = 1


class Checkpoint(NamedTuple):
    """What `load` returns: the objective with raw and with averaged weights, and what was saved with them.

    Attributes:
        objective: the objective with raw weights.
        average: the objective with averaged weights, the ones to sample from.
        experiment: the recipe of the run, or None.
        quantization: quantization of the data, or None.
        shape: shape of one example, or None if it is unknown.
        step: number of training steps.
        description: the content of `checkpoint.json`, under today's names.
        tensors: the content of `tensors.safetensors`.
    """

    objective: Objective[Any]
    average: Objective[Any]
    experiment: Any
    quantization: Quantization | None
    shape: tuple[int, ...] | None
    step: int
    description: dict[str, Any]
    tensors: dict[str, Tensor]

    def __repr__(self) -> str:
        """Returns one line: the step, the loss, the denoiser on its process, and the shape of the data."""
        denoiser = self.average.denoiser
        on = f"{type(denoiser).__name__} on {denoiser.corruption}"
        return f"Checkpoint(step={self.step}, {type(self.objective).__name__} of {on}, shape={self.shape})"


def load(
    path: Path | str,
    *,
    network: nn.Module | None = None,
    device: torch.device | str = "cpu",
    checkpoint: int | str | None = None,
    average: Wanted = None,
) -> Checkpoint:
    """Loads a checkpoint, without further settings: `load("runs/demo/ddpm").average.denoiser`.

    Where the newest checkpoint of a run is damaged, the newest intact one is taken, and a `Notice` says so.

    Args:
        path: a run's folder, of which the newest checkpoint is taken, or a checkpoint's own folder.
        network: the network, where its class is not part of this package; copies of it receive the saved weights.
        device: device of the weights.
        checkpoint: which of the run's checkpoints: its step, or `best`, that of the lowest held-out loss; None for the
            newest.
        average: the weights of the checkpoint's `average`: `raw`, one of the averages of the run such as
            `Decay(0.999)`, or a power function of any width such as `PowerFunction(0.08)`, which is reconstructed from
            those of the run; None for the first average. `description["weights"]` names it.

    Raises:
        UsageError: where there is no checkpoint, it is damaged, its weights do not match its description (with the
            difference), or the run does not have the average (with those that it has).
    """
    return first_intact(Path(path), lambda folder: load_folder(folder, network, device, average), checkpoint)[1]


def load_folder(
    folder: Path,
    network: nn.Module | Callable[[Mapping[str, Any]], nn.Module | None] | None,
    device: torch.device | str,
    wanted: Wanted = None,
) -> Checkpoint:
    """Loads the checkpoint in its own folder, as `load`; `network` can be a function of the description."""
    description, tensors = read(folder)
    if network is not None and not isinstance(network, nn.Module):
        network = network(description)
    try:
        objective, average = (deserialize(description["objective"], copy.deepcopy(network)) for _ in range(2))
        experiment, quantization, shape = (
            deserialize(description["experiment"]),
            deserialize(description["quantization"]),
            description["shape"],
        )
        shape = None if shape is None else tuple(shape)
        chosen = choose(wanted, description, tensors, folder, parameters(average).keys())
    except UNREADABLE as error:
        if isinstance(error, UsageError) or "digest" in description:  # the file is intact: the fault is elsewhere
            raise
        raise Damaged(folder, reason(error)) from error
    for name, module in (("objective", objective), (chosen.group, average)):
        load_weights(module, tensors_in(tensors, name), folder)
    for name, parameter in parameters(average).items():
        parameter.data.copy_(chosen.parameters.get(name, parameter.data))
    if wanted is not None:
        description["weights"] |= {"average.*": chosen.text}
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


class Damaged(UsageError):
    """Raised for a checkpoint whose files are not those that were written.

    Attributes:
        folder: the folder of the checkpoint.
        found: what is damaged and why, without the remedy.
    """

    def __init__(self, folder: Path, cause: str) -> None:
        others = [p for p in list_checkpoints(folder.parent) if p != folder and (p / "checkpoint.json").is_file()]
        self.folder, self.found = folder, f"the checkpoint {folder} is damaged ({cause})"
        super().__init__(f"{self.found}: {f'take {others[-1]}' if others else 'train again'}")


Read = TypeVar("Read")


def used_instead(damaged: Sequence[Damaged], folder: Path) -> None:
    """Issues a `Notice` that a checkpoint is used in place of newer ones, which are damaged."""
    warn(Notice(f"{'; '.join(e.found for e in damaged)}: {folder.name} is used instead"), stacklevel=2)


def silently(damaged: Sequence[Damaged], folder: Path) -> None:
    """Says nothing: for a caller that reads the checkpoint again."""


def first_intact(
    path: Path,
    reader: Callable[[Path], Read],
    which: int | str | None = None,
    say: Callable[[Sequence[Damaged], Path], None] = used_instead,
) -> tuple[Path, Read]:
    """Reads the newest checkpoint of a run that is intact, and returns its folder and what was read.

    A checkpoint that is asked for by its own folder or by `which` is read without recourse to others.

    Args:
        path: a run's folder, or a checkpoint's own folder.
        reader: reads the checkpoint in its own folder, such as `read`.
        which: the step of a checkpoint, or `best`; None for the newest.
        say: is called with the errors of damaged checkpoints, if any, and the folder of the one that is used.

    Raises:
        UsageError: where there is no checkpoint, or none that is intact.
    """
    if which is not None or is_checkpoint(path):
        folder = chosen(path, which)
        return folder, reader(folder)
    damaged: list[Damaged] = []
    for folder in reversed(list_checkpoints(path / "checkpoints")):
        try:
            found = reader(folder)
        except Damaged as error:
            if not folder.exists():  # a run in progress has deleted it, and has newer ones
                return first_intact(path, reader, say=say)
            damaged.append(error)
            continue
        if damaged:
            say(damaged, folder)
        return folder, found
    if damaged:
        more = f", and so {'are' if len(damaged) > 2 else 'is'} {', '.join(e.folder.name for e in damaged[1:])}"
        raise UsageError(f"{damaged[0].found}{more * (len(damaged) > 1)}: train again") from damaged[0]
    return newest(path), reader(newest(path))  # raises, where there is no checkpoint


def chosen(path: Path, which: int | str | None = None) -> Path:
    """Returns the folder of a checkpoint: `path` itself, or one of the run at `path`.

    Args:
        path: a run's folder, or a checkpoint's own folder.
        which: the step of a checkpoint, or `best`, that of the lowest held-out loss; None for the newest.

    Raises:
        UsageError: where the run does not have it.
    """
    if which is None:
        return newest(path)
    home = newest(path).parent
    steps = ", ".join(str(int(p.name)) for p in list_checkpoints(home))
    if which == "best":
        if (found := best(home)) is None:
            raise UsageError(
                f"checkpoint=best: the checkpoints in {home} have no held-out loss; give one of their steps ({steps})"
            )
        return found
    if (found := next((p for p in list_checkpoints(home) if str(int(p.name)) == str(which)), None)) is None:
        raise UsageError(f"checkpoint={shown(which)}: {home} has those of the steps {steps}; give one of them, or best")
    return found


def best(home: Path) -> Path | None:
    """Returns the checkpoint below `home` with the lowest held-out loss, the newest of equal ones; None without any."""
    losses: dict[Path, float] = {}
    for folder in list_checkpoints(home):
        with suppress(OSError, ValueError, RecursionError, TypeError, AttributeError, KeyError):
            losses[folder] = float(json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))[HELD_OUT])
    finite = [folder for folder, loss in losses.items() if math.isfinite(loss)]
    return min(reversed(finite), key=losses.__getitem__, default=None)


HELD_OUT = "held_out_loss"
"""The entry of a description with the loss of held-out examples at that step."""


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
"""Errors that reading a damaged file can raise."""


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads the description and the tensors in a checkpoint's own folder, and checks them against their digests.

    Raises:
        UsageError: where it is damaged, or of another format.
    """
    try:
        description = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        if (found := description["format"]) != FORMAT:
            raise UsageError(f"the checkpoint {folder} has format {found}, this version reads format {FORMAT}")
        digests = description.get("digest", {})  # checkpoints of earlier versions have none
        changed = "description" in digests and digests["description"] != digest_of_text(description)
        if type(description["step"]) is not int or not isinstance(description["objective"], dict):
            raise TypeError("checkpoint.json has no step or no objective")
        if "files" in digests:
            tensors = read_parts(folder / PARTS, digests["files"])
        else:
            tensors = {uncompiled(name): v for name, v in load_file(folder / "tensors.safetensors").items()}
        broken = [
            group
            for group in groups_in(tensors)
            if group in digests and (part := tensors_in(tensors, group)) and digests[group] != digest(part)
        ]
    except UsageError:
        raise
    except UNREADABLE as error:
        raise Damaged(folder, reason(error)) from error
    if broken:
        raise Damaged(folder, f"the tensors {broken[0]}.* differ from those that were written")
    if changed:
        raise Damaged(
            folder,
            'checkpoint.json differs from what was written; if you changed it yourself, remove its entry "digest"',
        )
    return in_current_names(description, tensors)


def in_current_names(
    description: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns a checkpoint's description and tensors under today's names of classes, arguments and weights."""
    old = OLD_DEQUANTIZED in json.dumps(description["objective"])
    description = {EARLIER.get(k, k): v if k == "batches" else current(v) for k, v in description.items()}
    if not old:
        return description, tensors
    if description.get("frozen"):
        description["frozen"] = [DEQUANTIZER.sub(r"\1dequantizer.", name) for name in description["frozen"]]
    return description, {DEQUANTIZER.sub(r"\1dequantizer.", name): value for name, value in tensors.items()}


EARLIER = {"scale": "quantization"}
"""New names of entries of a description by those in checkpoints of earlier versions."""
OLD_DEQUANTIZED = "unnoise.shared.dequantisation.Dequantised"
"""The class whose attribute `dequantizer`, a part of the names of its weights, was spelled otherwise."""
DEQUANTIZER = re.compile(r"^((?:objective\.|average\.|optimizer\.)*)dequantiser\.")


def newest(path: Path) -> Path:
    """Returns `path` where it is a checkpoint's own folder, or the newest checkpoint of the run at `path`.

    Raises:
        UsageError: if the run has no checkpoint.
    """
    if is_checkpoint(path):
        return path
    if found := list_checkpoints(path / "checkpoints"):
        return found[-1]
    near = sorted({str(p.parent.parent) for p in path.parent.glob("*/checkpoints/*") if not p.name.startswith(".")})
    hint = f"; there are some in {', '.join(near[:4])}" if near else ""
    raise UsageError(
        f"there is no checkpoint in {path}{hint}: train one with `unnoise train`, or import one with `unnoise import`"
    )


def is_checkpoint(path: Path) -> bool:
    """Returns whether a folder is that of a checkpoint, also of a half-copied one."""
    return any((path / name).exists() for name in ("checkpoint.json", "tensors.safetensors"))


def list_checkpoints(home: Path) -> list[Path]:
    """Returns the checkpoints below `home`, oldest first, including damaged ones, so that none is skipped silently."""
    return sorted((p for p in home.glob("[0-9]*") if p.name.isdecimal() and p.is_dir()), key=lambda p: int(p.name))


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Loads a state dict into a module; the module takes the precision of the state dict.

    `source` is the folder of the checkpoint, for the message.

    Raises:
        UsageError: with the difference, where names, shapes or kinds of numbers do not match.
    """
    own = {uncompiled(name): v for name, v in module.state_dict(keep_vars=True).items()}
    lines = [f"missing {k}" for k in own.keys() - state.keys()] + [f"unknown {k}" for k in state.keys() - own.keys()]
    for k in own.keys() & state.keys():
        if own[k].shape != state[k].shape:
            lines.append(f"{k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}")
        elif own[k].is_floating_point() != state[k].is_floating_point():
            lines.append(f"{k} is {state[k].dtype}, not {own[k].dtype}")
    if lines:
        more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise UsageError(
            f"the weights in {source} do not match: {'; '.join(sorted(lines)[:4])}{more}; give the network that was "
            "saved"
        )
    for k, v in own.items():
        if v.is_floating_point() and v.dtype != state[k].dtype:
            v.data = v.data.to(state[k].dtype)
    module.load_state_dict({n: laid_like(state[uncompiled(n)], v) for n, v in module.state_dict().items()})
