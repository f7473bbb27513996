"""Weights that bear other names: which of ours each is, and the refusal of what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...shared.errors import UsageError

SHOWN = 10


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
    """`{ours.part.weight: theirs.other.weight, ...}` for each `part: other` and each of the tensors in `of`; "" is the module itself."""
    found: Names = {}
    for part, other in parts.items():
        here, there = (".".join(p for p in pair if p) for pair in ((ours, part), (theirs, other)))
        found |= {f"{here}.{tensor}": f"{there}.{tensor}" for tensor in of}
    return found


def unbiased(names: Names, state: Mapping[str, Any]) -> Names:
    """The names without biases that the file does not have, for layers built without."""
    return {k: v for k, v in names.items() if not (k.endswith(".bias") and isinstance(v, str) and v not in state)}


def fill(network: nn.Module, names: Names, state: Mapping[str, Tensor], source: str, *, ignored: Iterable[str] = ()) -> None:
    """Loads a file's tensors into a network, each of them exactly once.

    Args:
        network: whose every parameter and persistent buffer is named.
        names: ours to theirs.
        state: theirs.
        source: the file, for errors.
        ignored: names of theirs that say nothing that the network does not know, such as constant filters.

    Raises:
        UsageError: for tensors that are missing in the file, or are in it without a place (ten at most, with the count), and for shapes
            that do not fit, with both.
    """
    own = network.state_dict()
    sources = {k: v if isinstance(v, Made) else Made((v,), lambda x: x) for k, v in names.items()}
    wanted = {name for made in sources.values() for name in made.names}
    refuse_difference(wanted - state.keys(), state.keys() - wanted - set(ignored), source)
    refuse_difference(own.keys() - sources.keys(), sources.keys() - own.keys(), f"{source} (in the network's own names)")
    filled, wrong = {}, []
    for name, made in sources.items():
        theirs = [state[n] for n in made.names]
        try:
            filled[name] = made.make(*theirs)
        except (RuntimeError, ValueError, IndexError):
            filled[name] = theirs[0]
        if filled[name].shape != own[name].shape:
            given = " and ".join(f"{n} is {tuple(v.shape)}" for n, v in zip(made.names, theirs, strict=True))
            wrong.append(f"{given}, and {tuple(own[name].shape)} was expected for {name}")
    if wrong:
        raise UsageError(f"{source}: the shapes of {len(wrong)} tensors do not fit: {listed(wrong)}")
    with torch.no_grad():
        network.load_state_dict({k: v.to(own[k].dtype) for k, v in filled.items()})


def refuse_difference(missing: set[str], surplus: set[str], source: str) -> None:
    """Raises `UsageError` for names that are missing, or that have no place."""
    said = []
    if missing:
        said.append(f"{len(missing)} tensors are missing: {listed(sorted(missing))}")
    if surplus:
        said.append(f"{len(surplus)} tensors have no place: {listed(sorted(surplus))}")
    if said:
        raise UsageError(f"{source} does not hold the network that it looks like; {'; '.join(said)}")


def listed(items: list[str]) -> str:
    """The items, ten at most, and how many more there are."""
    more = f", and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{', '.join(items[:SHOWN])}{more}"


def stripped(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The state with a prefix taken off the names that have it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if isinstance(k, str)}


def count(state: Mapping[str, Any], name: str) -> int:
    """How many of `name.format(0)`, `name.format(1)`, ... are there in a row."""
    n = 0
    while name.format(n) in state:
        n += 1
    return n
