"""Examples that are held out of a data set without a split for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError
from ..random import Streams, derived_seed


def held_out_rows(count: int, held_out: float, split: str, seed: int = 0) -> Tensor:
    """Returns the numbers of the examples of a split, int64 and increasing: those held out for `test`, else the others.

    Example i draws a uniform number that depends on (seed, i) alone. Held out are those below a share, so that examples
    which are added later leave the others where they are; or those of the smallest numbers.

    Args:
        count: number of examples in all.
        held_out: a share, between 0 and 1; or a whole number of examples, 2 or more.
        split: `test` or `train`.
        seed: the seed.

    Raises:
        UsageError: for another share or number, and where fewer than two examples are held out or none is left.
    """
    whole = held_out >= 2 and float(held_out).is_integer()
    if not (0 < held_out < 1 or whole):
        raise UsageError(
            f"held_out={held_out:g}: give a share between 0 and 1, such as 0.1, or a number of examples of 2 or more"
        )
    source = Streams(derived_seed(seed, "held out"), torch.arange(count))
    draws = source.uniform((count, 1), torch.float64, torch.device("cpu"))[:, 0]
    if whole:
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[draws.argsort()[: int(held_out)]] = True
    else:
        chosen = draws < held_out
    out = int(chosen.sum())
    if out < 2 or out == count:
        raise UsageError(
            f"held_out={held_out:g} holds out {out} of {count:,} examples: hold out 2 or more, and leave some to train "
            "on"
        )
    return (chosen if split == "test" else ~chosen).nonzero()[:, 0]


def held_out_note(count: int, held_out: float, rows: Tensor, split: str) -> str:
    """Returns one line on the examples that are held out: `150 of 1,500 examples are held out (held_out=0.1)`."""
    out = len(rows) if split == "test" else count - len(rows)
    return f"{out:,} of {count:,} examples are held out (held_out={held_out:g})"
