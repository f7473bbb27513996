"""Loads weights under other names into this package's networks, and refuses weights that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...shared.errors import UsageError

SHOWN, PAIRS = 10, 3
"""The most names, and the most pairs of shapes, that an error lists."""
LONGEST = 200
"""The most characters of one name that an error shows."""
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (*HALVES, torch.float32, torch.float64)
FEW = 8
"""A tensor of this many different numbers may have values that half precision represents exactly by chance."""


@dataclass(frozen=True)
class Converted:
    """A tensor of a network that is computed from one or more tensors of a file.

    Attributes:
        names: their names in the file, in the order of the arguments of `convert`.
        convert: tensors of the file to the network's tensor.
    """

    names: tuple[str, ...]
    convert: Callable[..., Tensor]


Names = dict[str, str | Converted]
"""For each tensor of this package's network, its name in the file, or how it is computed."""


def renamed(ours: str, theirs: str, parts: Mapping[str, str], *, of: Iterable[str] = ("weight", "bias")) -> Names:
    """Returns `{ours.part.weight: theirs.other.weight, ...}` for each `part: other` and each tensor in `of`.

    An empty name stands for the module itself.
    """
    names: Names = {}
    for part, other in parts.items():
        here, there = (".".join(p for p in pair if p) for pair in ((ours, part), (theirs, other)))
        names |= {f"{here}.{tensor}": f"{there}.{tensor}" for tensor in of}
    return names


def tensor(state: Mapping[str, Any], name: str, ndim: int, source: str) -> Tensor:
    """Returns a tensor that the network's sizes are read from, before `fill` checks all tensors.

    Args:
        state: the file's tensors by name.
        name: the tensor's name.
        ndim: its number of dimensions.
        source: the file, for errors.

    Raises:
        UsageError: where it is missing, is not a tensor, has another number of dimensions, or is empty.
    """
    value = state.get(name)
    if isinstance(value, Tensor) and value.ndim == ndim and value.numel():
        return value
    problem = "is missing" if value is None else f"is {kind(value)}"
    raise UsageError(
        f"{source}: {name} {problem}, but the network's sizes are read from it as a tensor of {ndim} dimensions: "
        "give the complete file"
    )


def falling(sigmas: Tensor, source: str) -> Tensor:
    """Returns a file's noise levels, which start with the largest, in double precision.

    Raises:
        UsageError: for fewer than two, and where they do not decrease, are not positive, are not finite, or were
            rounded to half precision.
    """
    refuse_rounded({"sigmas": sigmas}, source)
    levels = sigmas.double() if sigmas.dtype in DTYPES else sigmas.new_zeros(0)
    if len(levels) < 2 or not (levels[0] < torch.inf and levels[-1] > 0 and (levels.diff() < 0).all()):
        raise UsageError(
            f"{source}: sigmas, the noise levels, must decrease to a smallest one above 0, but begin with "
            f"{sigmas[:3].tolist()}: give the complete file"
        )
    return levels


def fill(
    network: nn.Module, names: Names, state: Mapping[str, Any], source: str, *, ignored: Iterable[str] = ()
) -> None:
    """Loads a file's tensors into a network, each of them exactly once.

    Args:
        network: the network; each of its parameters and persistent buffers is in `names`.
        names: for each tensor of the network, its name in the file.
        state: the file's tensors by name.
        source: the file, for errors.
        ignored: names in the file whose values the network does not need, such as constant filters.

    Raises:
        UsageError: for tensors that are missing in the file or unexpected in it (lists ten at most, with the count),
            entries that are not floating-point tensors (half, bfloat16, single or double), wrong shapes (lists three
            at most, with the count), constants that were rounded to half precision, and numbers that are not finite.
    """
    own, constants = network.state_dict(), {name for name, _ in network.named_buffers()}
    sources = {k: v if isinstance(v, Converted) else Converted((v,), lambda x: x) for k, v in names.items()}
    needed = {name for made in sources.values() for name in made.names}
    refuse_difference(needed - state.keys(), state.keys() - needed - set(ignored), source)
    refuse_difference(
        own.keys() - sources.keys(), sources.keys() - own.keys(), f"{source} (in the network's own names)"
    )
    if other := [f"{n} is {kind(state[n])}" for n in sorted(needed) if getattr(state[n], "dtype", None) not in DTYPES]:
        raise UsageError(
            f"{source}: {len(other)} entries are not floating-point tensors: {listed(other)}; "
            "quantized and integer weights are not supported: give the original file"
        )
    filled: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name, made in sources.items():
        theirs, expected = [state[n] for n in made.names], own[name].shape
        value = attempted(made, theirs)
        if value is None or value.shape != expected:
            given = " and ".join(f"{n} is {tuple(v.shape)}" for n, v in zip(made.names, theirs, strict=True))
            wrong.append(f"{given}, expected {tuple(expected)} for {name}")
        else:
            filled[name] = value
    if wrong:
        raise UsageError(f"{source}: {len(wrong)} tensors have the wrong shape: {listed(wrong, PAIRS)}")
    if broken := [n for n in sorted(needed) if not state[n].isfinite().all()]:
        raise UsageError(
            f"{source}: {len(broken)} tensors contain NaN or infinite numbers: {listed(broken)}; "
            "download the file again, or use an earlier checkpoint of its training"
        )
    refuse_rounded({n: state[n] for name, made in sources.items() if name in constants for n in made.names}, source)
    with torch.no_grad():
        network.load_state_dict({k: v.to(own[k].dtype) for k, v in filled.items()})


def refuse_rounded(constants: Mapping[str, Tensor], source: str) -> None:
    """Raises `UsageError` for constants in half precision, or that were rounded to it before.

    Rounded weights are accepted: unlike rounded frequencies and noise levels, they change outputs only slightly.
    """
    if names := [name for name, value in constants.items() if rounded(value)]:
        raise UsageError(
            f"{source}: {listed(names)} are constants (frequencies, noise levels) in half precision, whose rounding "
            "changes every output: give the original file, or convert only the weights to half precision"
        )


def rounded(value: Tensor) -> bool:
    """Returns whether all numbers are representable in half precision or bfloat16."""
    if value.dtype in HALVES:
        return True
    if value.dtype not in DTYPES or len(value.unique()) <= FEW or torch.equal(value, value.round()):
        return False
    return any(torch.equal(value, value.to(half).to(value.dtype)) for half in HALVES)


def attempted(made: Converted, theirs: list[Tensor]) -> Tensor | None:
    """Returns the converted tensor, or None where the shapes of the file's tensors do not allow it."""
    try:
        return made.convert(*theirs)
    except (RuntimeError, ValueError, IndexError):
        return None


def kind(value: Any) -> str:
    """Describes a value by type and shape; the value itself may be very long."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"


def quoted(value: Any) -> str:
    """Returns the `repr` of a plain value, and `kind` of any other: a nested value's `repr` may have no end."""
    plain = value is None or isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < 2**64)
    return brief(repr(value)) if plain else kind(value)


def refuse_difference(missing: set[str], surplus: set[str], source: str) -> None:
    """Raises `UsageError` for names that are missing or unexpected."""
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing: {listed(sorted(map(str, missing)))}")
    if surplus:
        problems.append(f"{len(surplus)} tensors are unexpected: {listed(sorted(map(str, surplus)))}")
    if problems:
        raise UsageError(f"{source} does not contain the network that its names suggest; {'; '.join(problems)}")


def listed(items: list[str], shown: int = SHOWN) -> str:
    """Joins the items, `shown` at most, with the number of further ones; long items are shortened by `brief`."""
    more = f", and {len(items) - shown} more" if len(items) > shown else ""
    return f"{', '.join(map(brief, items[:shown]))}{more}"


def brief(item: str) -> str:
    """Returns text from a file on one line: control characters escaped, and shortened in the middle where too long."""
    item = item if len(item) <= LONGEST else f"{item[: LONGEST // 2]}...{item[-LONGEST // 2 :]}"
    return item if item.isprintable() else repr(item)


def stripped(state: Any, prefix: str) -> dict[str, Any]:
    """Returns a state dict with a prefix removed from the names that have it; empty for anything but a mapping.

    Where two names would become the same, the longer one is kept, so that `fill` reports it as unexpected.
    """
    if not isinstance(state, Mapping):
        return {}
    names = {k: k.removeprefix(prefix) for k in state if isinstance(k, str)}
    return {k if short != k and short in state else short: state[k] for k, short in names.items()}


def averaged(model: Mapping[str, Any], ema: Any, buffers: Callable[[str], bool], source: str) -> dict[str, Any]:
    """Returns a state dict with averaged parameters, from averages as `torch_ema` saves them.

    These have no names and are in the order of the parameters.

    Args:
        model: all tensors by name, in the order of the network.
        ema: `{"shadow_params": [...], ...}`, or None for a file without averages.
        buffers: whether a name is that of a buffer, which has no average.
        source: the file, for errors.

    Raises:
        UsageError: where the averages are not a list of tensors, one for each parameter and of its shape.
    """
    if ema is None:
        return dict(model)
    remedy = "give the raw weights alone, as a state dict, to import without averages"
    values = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(values, list | tuple) or not all(isinstance(v, Tensor) for v in values):
        raise UsageError(f"{source}: `ema` must contain `shadow_params`, a list of tensors; {remedy}")
    own = [name for name in model if not buffers(name)]
    if len(values) != len(own):
        raise UsageError(f"{source}: {len(values)} averages for {len(own)} parameters; {remedy}")
    pairs = dict(zip(own, values, strict=True))
    if wrong := [
        f"{n} is {kind(model[n])}, its average {kind(v)}"
        for n, v in pairs.items()
        if getattr(model[n], "shape", None) != v.shape
    ]:
        raise UsageError(
            f"{source}: {len(wrong)} averages have another shape than their parameters: "
            f"{listed(wrong, PAIRS)}; {remedy}"
        )
    return {**model, **pairs}


def count(state: Mapping[str, Any], name: str) -> int:
    """Returns how many of `name.format(0)`, `name.format(1)`, ... exist without a gap."""
    n = 0
    while name.format(n) in state:
        n += 1
    return n
