"""Power-function averages of any width, reconstructed after training (Karras et al. 2024, section 3.2, appendix C).

While a run trains, snapshots of its power-function averages are written to `RUN/averages/STEP.safetensors`. A power
function of another width, at any step, is approximated by the linear combination of these that is nearest to it in the
least squares of the profiles: the weights that an average gives to the steps of training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple
from warnings import warn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..distributed import is_main
from ..errors import Notice, UsageError, shown
from ..serialization import deserialize, serialize
from .averages import Average, PowerFunction, exponent_of
from .digests import groups
from .folder import reason
from .named import parameters
from .parallel import whole

Wanted = Average | Literal["raw"] | None
"""Which weights are loaded: those of an average, the raw ones, or for None those of the first average of the run."""
TOLERATED = 0.1
"""Relative error of a reconstructed profile above which a `Notice` is given."""
YOUNG = 1e-3
"""Largest weight of the steps before an average was begun with which it counts as a power function."""


class Profile(NamedTuple):
    """The weights that a power function gives to the steps of training: `(g + 1) tau^g / step^(g + 1)` to time tau.

    Attributes:
        step: number of steps that were done; later times have weight 0.
        std: relative standard deviation, from which the exponent g follows.
    """

    step: float
    std: float


class Snapshot(NamedTuple):
    """A power-function average that a run has.

    Attributes:
        profile: its step and width.
        source: the file with its tensors, or the tensors, by the names `GROUP.NAME`.
        group: the group of its tensors there.
    """

    profile: Profile
    source: Path | Mapping[str, Tensor]
    group: str


def inner_products(a: Sequence[Profile], b: Sequence[Profile]) -> np.ndarray:
    """Returns the inner products of two lists of profiles, `(len(a), len(b))` (equation 151).

    For exponents g, h and steps s, t: `(g + 1)(h + 1) (s / t)^e / ((g + h + 1) max(s, t))`, with `e = h` for `s < t`
    and `e = -g` otherwise.
    """
    s, g = (column[:, None] for column in columns(a))
    t, h = columns(b)
    ratio = np.minimum(s, t) / np.maximum(s, t)
    power = ratio ** np.where(s < t, h, g)
    return (g + 1) * (h + 1) * power / ((g + h + 1) * np.maximum(s, t))


def columns(profiles: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and the exponents of profiles."""
    return np.array([float(p.step) for p in profiles]), np.array([exponent_of(p.std) for p in profiles])


def solve(inputs: Sequence[Profile], outputs: Sequence[Profile]) -> np.ndarray:
    """Returns the coefficients of inputs for each output, `(len(inputs), len(outputs))`; each column sums to 1.

    They minimize the squared difference of the profiles (algorithm 3).

    Raises:
        UsageError: for an input that occurs twice.
    """
    try:
        coefficients = np.linalg.solve(inner_products(inputs, inputs), inner_products(inputs, outputs))
    except np.linalg.LinAlgError as error:
        raise UsageError(
            f"the profiles {', '.join(f'(step {p.step:g}, std {p.std:g})' for p in inputs)} do not differ: give "
            "each once"
        ) from error
    return coefficients / coefficients.sum(0)


def profile_error(inputs: Sequence[Profile], output: Profile, coefficients: np.ndarray) -> float:
    """Returns the distance of a combination of profiles from the wanted one, relative to the norm of that."""
    norm = inner_products([output], [output])[0, 0]
    mixed = coefficients @ inner_products(inputs, [output])[:, 0]
    square = norm - 2 * mixed + coefficients @ inner_products(inputs, inputs) @ coefficients
    return float(np.sqrt(max(square, 0.0) / norm))


def write_snapshot(
    folder: Path, step: int, averages: Sequence[Average], begun: Sequence[int], modules: Sequence[nn.Module]
) -> None:
    """Writes the power functions of a run to `folder/averages/STEP.safetensors`, in float32 and in one rename.

    Where weights are divided among processes, every process calls this.

    Args:
        folder: the run's folder.
        step: number of training steps.
        averages: the averages of the run.
        begun: the step at which each was begun.
        modules: the averaged weights of each.

    Raises:
        OSError: where it cannot be written.
    """
    about, tensors = {}, {}
    for group, average, since, module in zip(groups(len(averages)), averages, begun, modules, strict=True):
        if not isinstance(average, PowerFunction):
            continue
        about[group] = {"average": serialize(average), "begun": since}
        for name, value in parameters(module).items():
            value = whole(value.detach())  # by all processes together
            if is_main():
                tensors[f"{group}.{name}"] = value.to("cpu", torch.float32).contiguous()
    if not is_main():
        return
    home = folder / "averages"
    home.mkdir(parents=True, exist_ok=True)
    part = home / f".{step:08d}.part"
    try:
        save_file(tensors, part, {"about": json.dumps({"step": step, "averages": about})})
        os.replace(part, home / f"{step:08d}.safetensors")
    except SafetensorError as error:
        raise OSError(reason(error)) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def drop_later(folder: Path, step: int) -> None:
    """Removes the snapshots after a step, from which a run continues and writes them anew."""
    for path in (folder / "averages").glob("[0-9]*.safetensors"):
        if is_main() and path.stem.isdecimal() and int(path.stem) > step:
            path.unlink()


def snapshots(folder: Path, step: int | None = None) -> list[Snapshot]:
    """Returns the snapshots of a run, oldest first; those up to a step where one is given.

    Files that cannot be read are left out, with a `Notice`.
    """
    found: list[Snapshot] = []
    for path in sorted((folder / "averages").glob("[0-9]*.safetensors")):
        if step is not None and path.stem.isdecimal() and int(path.stem) > step:
            continue
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["about"])
            found += powers(about["averages"], about["step"], path)
        except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
            warn(Notice(f"{path} cannot be read ({reason(error)}) and is left out"), stacklevel=2)
    return found


def powers(about: Mapping[str, Mapping[str, Any]], step: int, source: Path | Mapping[str, Tensor]) -> list[Snapshot]:
    """Returns the power functions among averages.

    An average that was begun after the start of training, by a resumed run, is one when the steps before have little
    weight in it.

    Args:
        about: by the name of its group each `average`, serialized, and the step at which it was `begun`.
        step: number of training steps.
        source: the file, or the tensors by name.
    """
    found: list[Snapshot] = []
    for group, entry in about.items():
        average = deserialize(entry["average"])
        if not isinstance(average, PowerFunction) or step == 0:
            continue
        if (entry["begun"] / step) ** (average.exponent + 1) <= YOUNG:
            found.append(Snapshot(Profile(step, average.std), source, group))
    return found


class Chosen(NamedTuple):
    """Weights of a checkpoint that were asked for.

    Attributes:
        group: the group of the checkpoint's tensors to load.
        parameters: weights that then replace those of parameters, by name.
        text: what they are, in words.
    """

    group: str
    parameters: dict[str, Tensor]
    text: str


def choose(
    wanted: Wanted, description: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path, names: Collection[str]
) -> Chosen:
    """Returns the raw weights, an average that a run has, or a power function that is reconstructed.

    Args:
        wanted: the weights; None for the first average of the run.
        description, tensors: the checkpoint.
        folder: its own folder; snapshots are those of its run, up to its step.
        names: the names of the parameters.

    Raises:
        UsageError: for an average that the run does not have, with those that it has.
    """
    averages, step = [deserialize(a) for a in description.get("averages") or []], description["step"]
    if wanted is None:
        return Chosen("average", {}, repr(averages[0]) if averages else "averaged")
    if wanted == "raw":
        return Chosen("objective", {}, "raw")
    if not isinstance(wanted, Average):
        raise UsageError(f"average={shown(wanted)}: give raw, or an average such as PowerFunction(0.08)")
    every = groups(len(averages))
    if wanted in averages:
        return Chosen(every[averages.index(wanted)], {}, repr(wanted))
    if not isinstance(wanted, PowerFunction):
        has = ", ".join(map(repr, averages)) or "one of unknown settings"
        raise UsageError(f"the run has no average {wanted}: give one that it has ({has}), raw, or a power function")
    begun = description.get("begun") or [0] * len(averages)
    about = {
        group: {"average": average, "begun": since}
        for group, average, since in zip(every, description.get("averages") or [], begun, strict=True)
    }
    run = folder.absolute().parent.parent if folder.absolute().parent.name == "checkpoints" else folder
    inputs = [*snapshots(run, step), *powers(about, step, tensors)]
    found, error = reconstruct(inputs, Profile(step, wanted.std), names)
    count = len({snapshot.profile for snapshot in inputs})
    text = f"{wanted}, reconstructed from {count} averages: its profile differs by {error:.1%}"
    if error > TOLERATED:
        warn(Notice(f"{text}; more snapshots, or a std nearer to those of the run, give less"), stacklevel=2)
    return Chosen("average", found, text)


def reconstruct(inputs: Iterable[Snapshot], wanted: Profile, names: Collection[str]) -> tuple[dict[str, Tensor], float]:
    """Returns the weights with these names, in float64, and the relative error of their profile (`profile_error`).

    Raises:
        UsageError: with what exists, where there are fewer than two inputs; and for a file that cannot be read, or does
            not have the weights.
    """
    inputs = list({snapshot.profile: snapshot for snapshot in inputs}.values())
    if len(inputs) < 2:
        raise UsageError(
            f"power(std={wanted.std:g}) cannot be reconstructed: {known(inputs)}; train with "
            '--training.averages "power(std=0.05), power(std=0.1)" and --training.snapshot-every, or give --average '
            "of those that the run has"
        )
    profiles = [snapshot.profile for snapshot in inputs]
    coefficients = solve(profiles, [wanted])[:, 0]
    total: dict[str, Tensor] = {}
    for snapshot, coefficient in zip(inputs, coefficients, strict=True):
        for name, value in tensors_of(snapshot, names):
            total[name] = total.get(name, 0.0) + float(coefficient) * value.double()
    return total, profile_error(profiles, wanted, coefficients)


def tensors_of(snapshot: Snapshot, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yields names and weights of a snapshot.

    Raises:
        UsageError: for a file that is damaged, or does not have them.
    """
    if not isinstance(snapshot.source, Path):
        yield from ((name, snapshot.source[f"{snapshot.group}.{name}"]) for name in names)
        return
    try:
        with safe_open(snapshot.source, "pt") as file:
            yield from ((name, file.get_tensor(f"{snapshot.group}.{name}")) for name in names)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{snapshot.source} cannot be read ({reason(error)}): delete it to leave it out") from error


def known(inputs: Sequence[Snapshot]) -> str:
    """Returns the power functions that a run has, in words."""
    if not inputs:
        return "the run has no power-function average"
    stds = ", ".join(f"{std:g}" for std in sorted({snapshot.profile.std for snapshot in inputs}))
    steps = ", ".join(f"{step:g}" for step in sorted({snapshot.profile.step for snapshot in inputs}))
    return f"the run has only the power function of std {stds} at step {steps}"
