"""The options `--average` and `--checkpoint` of `unnoise sample` and `unnoise evaluate`: with which weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...shared.errors import UsageError
from ...shared.training.posthoc import Wanted
from ..notation import average_named
from .arguments import values_of


@dataclass(frozen=True)
class Weighted:
    """With which weights of a run the network is evaluated."""

    average: str | None = None
    """Weights: raw, an average of the run such as "decay(0.999)", or "power(std=0.08)" of any std from 0.01 to 0.28.
    None takes those of --training.ema. A power function that the run does not have is reconstructed from those that it
    has, best with --training.averages "power(0.05), power(0.1)" and --training.snapshot-every."""
    checkpoint: str | None = None
    """Checkpoint of the run: its step, such as 10000, or best, that of the lowest held-out loss.
    None takes the newest."""


def checkpoint_in(arguments: Sequence[str]) -> str | None:
    """Returns the value of `--checkpoint` in the arguments of a command: a step or `best`; None for the newest."""
    given = values_of("--checkpoint", arguments)
    return None if not given or given[-1].lower() == "none" else given[-1]


def average_in(arguments: Sequence[str]) -> Wanted:
    """Returns the weights that `--average` names in the arguments of a command.

    Raises:
        UsageError: for anything else.
    """
    if not (texts := values_of("--average", arguments)) or texts[-1].lower() == "none":
        return None
    try:
        return average_named(texts[-1])
    except UsageError as error:
        raise UsageError(f"--average: {error}") from error
