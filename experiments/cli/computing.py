"""How `unnoise sample` and `unnoise evaluate` compute: device, precision, compilation, examples at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from warnings import warn

import torch

from ...shared.cuda_graphs import replace_networks, with_cuda_graphs
from ...shared.denoiser import Denoiser
from ...shared.distributed import world_size
from ...shared.errors import Notice, UsageError
from ...shared.training import Training
from ...shared.training.precision import PrecisionName, precision_of

D = TypeVar("D", bound=Denoiser)


@dataclass(frozen=True)
class Computing:
    """How a network is evaluated, which changes its numbers by rounding alone."""

    batch: int | None = None
    """Number of examples that a device holds at a time, such as 64; None for 300, and 100 to code text.
    It is halved where a GPU has too little memory."""
    device: str = "auto"
    """A torch device such as cuda:1, mps or cpu; auto for the GPU where there is one."""
    precision: PrecisionName = "float32"
    """Arithmetic of the network; auto is bfloat16 where the device has it natively."""
    compile: bool = False
    """Whether the network is compiled by torch.compile: minutes at the start, then faster calls."""
    cuda_graphs: bool = False
    """Whether calls of the network are replayed as CUDA graphs, on NVIDIA GPUs: faster for small batches."""

    @property
    def arithmetic(self) -> str:
        """The precision by its name, of `auto` the one that it stands for on the device."""
        return precision_of(self.precision, Training(device=self.device).chosen_device())[0].name


@contextmanager
def computing(options: Computing, denoiser: D) -> Iterator[D]:
    """Yields the denoiser on the chosen device; within the block it computes as chosen. It is changed in place.

    Raises:
        UsageError: for a device that is not available or cannot hold the model, and a number of examples below 1.
    """
    if options.batch is not None and options.batch < 1:
        raise UsageError(f"--batch {options.batch}: give a whole number of at least 1")
    device = Training(device=options.device).chosen_device()
    precision, chosen = precision_of(options.precision, device)
    if chosen:
        warn(Notice(chosen), stacklevel=3)
    try:
        denoiser = denoiser.to(device)
    except TypeError as error:  # float64 on a device without it
        raise UsageError(f"--device {device}: {(str(error).splitlines() or [''])[0]}: give --device cpu") from error
    if options.compile:
        replace_networks(denoiser, compiled)
    if options.cuda_graphs and device.type == "cuda":
        with_cuda_graphs(denoiser)
    elif options.cuda_graphs:
        warn(Notice(f"--cuda-graphs has no effect on {device}: CUDA graphs exist on NVIDIA GPUs alone"), stacklevel=3)
    with precision.cast(device), precision.products():
        yield denoiser


def compiled(network: torch.nn.Module) -> torch.nn.Module:
    """Returns a network as torch.compile makes it."""
    found = torch.compile(network)
    assert isinstance(found, torch.nn.Module)  # as it is for a module
    return found


def say_idle(count: int, size: int) -> None:
    """Gives a `Notice` where fewer chunks of examples are computed than there are processes."""
    chunks = -(-count // size)
    if chunks < world_size():
        warn(
            Notice(
                f"{count} examples, {size} at a time, occupy {chunks} of {world_size()} processes: give --batch "
                f"{-(-count // world_size())} to occupy all"
            ),
            stacklevel=3,
        )
