"""Weights that bear other names: which of ours each is, and the refusal of what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...shared.errors import UsageError

SHOWN, PAIRS = 10, 3
"""How many names, and how many pairs of shapes, an error lists at most."""
LONGEST = 200
"""How many characters an error shows of one of them."""
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (*HALVES, torch.float32, torch.float64)
FEW = 8
"""Different numbers that may all happen to be halves."""


@dataclass(frozen=True)
class Made:
    """A tensor of ours made from those of a file.

    Attributes:
        names: theirs, in the order of the arguments.
        make: theirs to ours.
    """

    names: tuple[str, ...]
    make: Callable[..., Tensor]


Names = dict[str, str | Made]
"""Ours to theirs."""


def renamed(ours: str, theirs: str, parts: Mapping[str, str], *, of: Iterable[str] = ("weight", "bias")) -> Names:
    """`{ours.part.weight: theirs.other.weight, ...}` for each `part: other` and each of the tensors in `of`.

    "" is the module itself.
    """
    found: Names = {}
    for part, other in parts.items():
        here, there = (".".join(p for p in pair if p) for pair in ((ours, part), (theirs, other)))
        found |= {f"{here}.{tensor}": f"{there}.{tensor}" for tensor in of}
    return found


def tensor(state: Mapping[str, Any], name: str, ndim: int, source: str) -> Tensor:
    """A tensor that sizes are read from, before `fill` checks all of them.

    Args:
        state: the file's tensors by name.
        name: of the one.
        ndim: its number of dimensions.
        source: the file, for errors.

    Raises:
        UsageError: where it is missing, is no tensor, has another number of dimensions, or is empty.
    """
    value = state.get(name)
    if isinstance(value, Tensor) and value.ndim == ndim and value.numel():
        return value
    found = "is missing" if value is None else f"is {kind(value)}"
    raise UsageError(
        f"{source}: {name} {found}, and sizes are read from it as a tensor of {ndim} dimensions: give a whole file"
    )


def falling(sigmas: Tensor, source: str) -> Tensor:
    """Noise levels of a file, which start with the largest, in double precision.

    Raises:
        UsageError: for fewer than two, or where they do not fall, are not positive, not finite, or rounded to halves.
    """
    refuse_rounded({"sigmas": sigmas}, source)
    levels = sigmas.double() if sigmas.dtype in DTYPES else sigmas.new_zeros(0)
    if len(levels) < 2 or not (levels[0] < torch.inf and levels[-1] > 0 and (levels.diff() < 0).all()):
        raise UsageError(
            f"{source}: sigmas, the noise levels from the largest to the smallest, do not fall to one above 0: they are "
            f"{sigmas[:3].tolist()} and so on: give a whole file"
        )
    return levels


def fill(
    network: nn.Module, names: Names, state: Mapping[str, Any], source: str, *, ignored: Iterable[str] = ()
) -> None:
    """Loads a file's tensors into a network, each of them exactly once.

    Args:
        network: whose every parameter and persistent buffer is named.
        names: ours to theirs.
        state: theirs.
        source: the file, for errors.
        ignored: names of theirs that say nothing that the network does not know, such as constant filters.

    Raises:
        UsageError: for tensors that are missing in the file, or are in it without a place (ten at most, with the
            count), for what is no tensor of floating-point numbers (half, bfloat16, single or double), for shapes that
            do not fit, with both (three at most, with the count), for constants that were rounded to halves, and for
            numbers that are not finite.
    """
    own, constants = network.state_dict(), {name for name, _ in network.named_buffers()}
    sources = {k: v if isinstance(v, Made) else Made((v,), lambda x: x) for k, v in names.items()}
    wanted = {name for made in sources.values() for name in made.names}
    refuse_difference(wanted - state.keys(), state.keys() - wanted - set(ignored), source)
    refuse_difference(
        own.keys() - sources.keys(), sources.keys() - own.keys(), f"{source} (in the network's own names)"
    )
    if other := [f"{n} is {kind(state[n])}" for n in sorted(wanted) if getattr(state[n], "dtype", None) not in DTYPES]:
        raise UsageError(
            f"{source}: {len(other)} entries are no tensors of floating-point numbers: {listed(other)}; quantised and integer weights are "
            "not read: give the file as it was released"
        )
    filled, wrong = {}, []
    for name, made in sources.items():
        theirs, expected = [state[n] for n in made.names], own[name].shape
        filled[name] = attempted(made, theirs)
        if filled[name] is None or filled[name].shape != expected:
            given = " and ".join(f"{n} is {tuple(v.shape)}" for n, v in zip(made.names, theirs, strict=True))
            wrong.append(f"{given}, and {tuple(expected)} was expected for {name}")
    if wrong:
        raise UsageError(f"{source}: the shapes of {len(wrong)} tensors do not fit: {listed(wrong, PAIRS)}")
    if broken := [n for n in sorted(wanted) if not state[n].isfinite().all()]:
        raise UsageError(
            f"{source}: {len(broken)} tensors hold NaN or infinite numbers, from which nothing can be computed: {listed(broken)}; download "
            "the file again, or take an earlier checkpoint of its training"
        )
    refuse_rounded({n: state[n] for name, made in sources.items() if name in constants for n in made.names}, source)
    with torch.no_grad():
        network.load_state_dict({k: v.to(own[k].dtype) for k, v in filled.items()})


def refuse_rounded(constants: Mapping[str, Tensor], source: str) -> None:
    """Raises `UsageError` for constants in half precision, or that once were.

    Weights bear it, frequencies and noise levels do not.
    """
    if found := [name for name, value in constants.items() if rounded(value)]:
        raise UsageError(
            f"{source}: {listed(found)} are constants of the network in half precision, whose rounding changes all that it computes: "
            "give the file as it was released, or leave its buffers in single precision and round the weights alone"
        )


def rounded(value: Tensor) -> bool:
    """Whether all numbers are halves."""
    if value.dtype in HALVES:
        return True
    if value.dtype not in DTYPES or len(value.unique()) <= FEW or torch.equal(value, value.round()):
        return False
    return any(torch.equal(value, value.to(half).to(value.dtype)) for half in HALVES)


def attempted(made: Made, theirs: list[Tensor]) -> Tensor | None:
    """Ours, or None where it cannot be made of theirs, as their shapes are others."""
    try:
        return made.make(*theirs)
    except (RuntimeError, ValueError, IndexError):
        return None


def kind(value: Any) -> str:
    """What a value is, in a few words, and not the value itself: a file may hold one that is very long."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"


def quoted(value: Any) -> str:
    """A plain value as it is written, and what any other is: what a file holds may take for ever to be written out."""
    plain = value is None or isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < 2**64)
    return brief(repr(value)) if plain else kind(value)


def refuse_difference(missing: set[str], surplus: set[str], source: str) -> None:
    """Raises `UsageError` for names that are missing, or that have no place."""
    said = []
    if missing:
        said.append(f"{len(missing)} tensors are missing: {listed(sorted(map(str, missing)))}")
    if surplus:
        said.append(f"{len(surplus)} tensors have no place: {listed(sorted(map(str, surplus)))}")
    if said:
        raise UsageError(f"{source} does not hold the network that it looks like; {'; '.join(said)}")


def listed(items: list[str], shown: int = SHOWN) -> str:
    """The items, ten at most, and how many more there are.

    Each on one line and without its middle where it is very long.
    """
    more = f", and {len(items) - shown} more" if len(items) > shown else ""
    return f"{', '.join(map(brief, items[:shown]))}{more}"


def brief(item: str) -> str:
    """An item of a file's on one line: without control characters, and without its middle where it is very long."""
    item = item if len(item) <= LONGEST else f"{item[: LONGEST // 2]}...{item[-LONGEST // 2 :]}"
    return item if item.isprintable() else repr(item)


def stripped(state: Any, prefix: str) -> dict[str, Any]:
    """A state by its names without a prefix, where they have it; empty for what is no mapping.

    Of two names that would become one, the longer one stays as it is, for `fill` to find no place for it.
    """
    if not isinstance(state, Mapping):
        return {}
    names = {k: k.removeprefix(prefix) for k in state if isinstance(k, str)}
    return {k if short != k and short in state else short: state[k] for k, short in names.items()}


def averaged(model: Mapping[str, Any], ema: Any, buffers: Callable[[str], bool], source: str) -> dict[str, Any]:
    """A model with its parameters averaged, where a file keeps averages as `torch_ema` does: without names, in the
    parameters' order.

    Args:
        model: all tensors by name, in the order of the network's own.
        ema: `{"shadow_params": [...], ...}`, or None for a file that keeps none.
        buffers: whether a name is that of no parameter, so that it has no average.
        source: the file, for errors.

    Raises:
        UsageError: where the averages are not a list of tensors, one for each parameter and of its shape.
    """
    if ema is None:
        return dict(model)
    remedy = "give its raw weights alone, as a state dict, to do without the averages"
    values = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(values, list | tuple) or not all(isinstance(v, Tensor) for v in values):
        raise UsageError(f"{source}: `ema` should hold `shadow_params`, a list of tensors; {remedy}")
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
            f"{source}: {len(wrong)} averages are not of their parameters' shapes: {listed(wrong, PAIRS)}; {remedy}"
        )
    return {**model, **pairs}


def count(state: Mapping[str, Any], name: str) -> int:
    """How many of `name.format(0)`, `name.format(1)`, ... are there in a row."""
    n = 0
    while name.format(n) in state:
        n += 1
    return n
