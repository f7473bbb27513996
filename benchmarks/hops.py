"""Counts the files and functions that one call runs through: `python -m benchmarks.hops`, with `--list` by name.

This is what a reader follows from a batch to its loss, or from noise to a sample. Each call is made twice, and the
second time every Python function of the package that is entered is counted once. Functions of torch and of the network
do not count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

import unnoise
from unnoise import continuous, discrete, sde

PACKAGE = Path(unnoise.__file__).parent


class Line(nn.Module):
    """A network of vectors."""

    conditions = ()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Returns a number for each of x."""
        return self.layer(x)


class Rows(nn.Module):
    """A network of tokens."""

    conditions = ()

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Returns logits of each token."""
        return self.table(x)


def hops(call: Callable[[], Any]) -> set[tuple[str, str]]:
    """Returns the files and functions of the package that a call enters."""
    found: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if event == "call" and PACKAGE in path.parents and not name.startswith("<"):
            found.add((str(path.relative_to(PACKAGE)), getattr(frame.f_code, "co_qualname", name)))

    call()  # what is done once, such as the trial of a network's embedding, is not counted
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def calls() -> dict[str, Callable[[], Any]]:
    """Returns what is counted, by name."""
    torch.manual_seed(0)
    ddpm = continuous.Learned(Line(), continuous.Tabulated(continuous.linear_betas(1000)))
    vp, ve = sde.Learned(Line(), sde.VP()), sde.Learned(Line(), sde.VE())
    x0, tokens = torch.randn(8, 4), torch.randint(0, 5, (8, 6))
    losses = {name: continuous.DenoisingLoss.simple(d) for name, d in (("a table", ddpm), ("VP", vp))}
    ddim, both = continuous.DDIM(ddpm), sde.PredictorCorrector(sde.ReverseDiffusion(ve), sde.AnnealedLangevin(ve))
    d3pm = discrete.Categorical(Rows(), discrete.Uniform(5, discrete.linear(100, 1e-3, 0.2)))
    bound, objective = discrete.VariationalBound(d3pm, terms=3), discrete.D3PMLoss(d3pm)
    return {
        "DDPM's loss on a table": lambda: losses["a table"](x0),
        "DDPM's loss on VP": lambda: losses["VP"](x0),
        "DDIM": lambda: ddim(shape=(8, 4), steps=5),
        "predictor and corrector": lambda: both(shape=(8, 4), steps=5),
        "D3PM's loss": lambda: objective(tokens),
        "D3PM's bound": lambda: bound(tokens),
    }


def main() -> None:
    """Prints a line for each call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--list", action="store_true", help="print the functions of each call by name")
    listed = parser.parse_args().list
    for name, call in calls().items():
        found = hops(call)
        print(f"{name}: {len({path for path, _ in found})} files, {len(found)} functions")
        for path, function in sorted(found) if listed else ():
            print(f"    {path}: {function}")


if __name__ == "__main__":
    main()
