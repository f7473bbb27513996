"""Settings of the trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

import torch

from ..distributed import world_size
from ..errors import UsageError, shown
from ..serialization import earlier, serializable, serialize
from ..values import notation
from .averages import Average, Decay, PowerFunction
from .numbers import real, whole
from .parallel import Parallel, Replicated
from .precision import PrecisionName
from .trackers import TrackerName, named_trackers


@serializable("training.Training")
@dataclass(frozen=True)
class Training:
    """Settings of the trainer, the same for every family."""

    steps: int = 100_000
    """Number of optimizer steps in all."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW (with weight decay 0 this is Adam)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    epsilon: float = 1e-8
    """AdamW's epsilon.

    Losses far below 1, such as one step's divergence of a table of 1000 steps, train faster with 1e-12.
    """
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup: int | None = None
    """Number of steps over which the learning rate rises linearly from 0.

    None for 5000, or a tenth of the steps if that is less.
    """
    cooldown: int = 0
    """Number of last steps over which the learning rate falls linearly to 0."""
    clip: float = 1.0
    """Largest norm of the whole gradient; a larger gradient is scaled down to it."""
    ema: Average | float = 0.9999
    """The averaged weights, which samples are drawn from: decay(0.999), "half-life(images=500_000)", "power(0.1)".
    A number stands for decay(NUMBER).
    """
    averages: tuple[Average, ...] = ()
    """Further averages of the weights, such as "power(0.05), power(0.1)"; unnoise sample --average chooses one."""
    precision: PrecisionName = "float32"
    """Arithmetic of the network; weights and losses stay float32. auto is bfloat16 where the device has it natively."""
    micro_batch: int | None = None
    """Number of examples that a device passes through the network at a time; the gradient is that of the whole batch.

    None for as many as fit into the memory of a GPU, which is tried before the first step; on a CPU, and with
    Sharded(), all.
    """
    recompute: bool = False
    """Whether blocks of the network recompute their activations in the backward pass: less memory, a third slower."""
    parallel: Parallel = Replicated()  # noqa: RUF009
    """How several processes hold the weights: Replicated() whole on each, Sharded() divided among them."""
    compile: bool = False
    """Whether the loss is compiled by torch.compile: minutes at the start, then faster steps."""
    channels_last: bool = False
    """Whether images lie in memory with their channels last, which convolutions on GPUs prefer."""
    workers: int = 0
    """Number of processes that read and augment data ahead; 0 reads between the steps."""
    seed: int = 0
    """Seed of the noise and of the training times; the data have a seed of their own."""
    device: str = "auto"
    """A torch device such as cuda:0, or auto for the GPU where there is one."""
    log_every: int = 50
    """Number of steps between lines of metrics.jsonl."""
    watch_every: int = 0
    """Number of steps between pictures of samples; 0 for no pictures."""
    held_out_every: int = 1000
    """Number of steps between values of the loss on held-out examples, at fixed noise; 0 for none."""
    held_out_count: int = 256
    """Number of held-out examples for that loss, rounded up to whole batches."""
    trackers: tuple[TrackerName, ...] = ()
    """Trackers that receive the log beside metrics.jsonl: tensorboard, wandb, trackio, mlflow.
    Each needs its extra, as in pip install 'unnoise[tensorboard]'; all write into the folder of the run.
    """
    save_every: int = 1000
    """Number of steps between checkpoints; one is also written at the end and on Ctrl-C."""
    snapshot_every: int = 0
    """Number of steps between files of the power-function averages, from which those of other widths are reconstructed.
    They are written to the folder averages of the run and kept; 0 for none.
    """
    keep: int = 2
    """Number of newest checkpoints that are kept; older ones are deleted, except the best by held-out loss."""
    keep_every: int = 0
    """Checkpoints of steps that this number divides are kept too, such as 100000; 0 for none."""
    deadline: float | None = None
    """Seconds from SIGTERM or SIGUSR1, by which a cluster announces the end, until it ends the process, such as 30.

    Training then saves and stops, or stops without saving where there is no time; None always saves.
    """
    __repr__ = notation

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) is not None or name not in ("warmup", "micro_batch"):
                object.__setattr__(self, name, whole(name, getattr(self, name), least))
        if not isinstance(self.ema, Average):
            decay = real("ema", self.ema)
            if not 0 <= decay < 1:
                raise UsageError(f"ema={self.ema}: give a decay in [0, 1), or an average such as HalfLife(500_000)")
            object.__setattr__(self, "ema", Decay(decay))
        if not isinstance(self.averages, tuple | list) or not all(isinstance(a, Average) for a in self.averages):
            raise UsageError(f"averages={shown(self.averages)}: give averages, such as (PowerFunction(0.1),)")
        object.__setattr__(self, "averages", tuple(self.averages))
        if self.snapshot_every and not any(isinstance(a, PowerFunction) for a in (self.ema, *self.averages)):
            raise UsageError(
                f"snapshot_every={self.snapshot_every}: give power functions to snapshot, such as "
                "averages=(PowerFunction(0.05), PowerFunction(0.1))"
            )
        for name in ("learning_rate", "epsilon", "weight_decay", "clip"):
            object.__setattr__(self, name, real(name, getattr(self, name)))
        for name in ("learning_rate", "epsilon", "clip"):
            if not getattr(self, name) > 0 or (name != "clip" and math.isinf(getattr(self, name))):
                raise UsageError(f"{name}={getattr(self, name)}: give a positive number")
        if self.deadline is not None:
            object.__setattr__(self, "deadline", real("deadline", self.deadline))
            if not self.deadline > 0:
                raise UsageError(f"deadline={self.deadline}: give a positive number of seconds")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"weight_decay={self.weight_decay}: give 0 or a positive number")
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise UsageError(f"betas={shown(self.betas)}: give two decay rates in [0, 1), such as (0.9, 0.999)")
        object.__setattr__(self, "betas", tuple(real("betas", decay) for decay in self.betas))
        if not all(0 <= decay < 1 for decay in self.betas):
            raise UsageError(f"betas={self.betas}: give decay rates in [0, 1)")
        object.__setattr__(self, "device", str(self.device) if isinstance(self.device, torch.device) else self.device)
        if not isinstance(self.device, str) or self.device.startswith("meta"):
            raise UsageError(
                f"device={shown(self.device)}: give the name of a torch device, such as cpu or cuda:0, or auto"
            )
        if self.precision not in get_args(PrecisionName):
            raise UsageError(f"precision={shown(self.precision)}: give one of {', '.join(get_args(PrecisionName))}")
        object.__setattr__(self, "trackers", named_trackers(self.trackers))
        if not isinstance(self.parallel, Parallel):
            raise UsageError(f"parallel={shown(self.parallel)}: give Replicated() or Sharded()")
        if self.seed >= 2**31:
            raise UsageError(f"seed={shown(self.seed)}: give a whole number from 0 to 2147483647")

    def chosen_device(self) -> torch.device:
        """Returns the torch device that `device` names.

        Raises:
            UsageError: where this machine or this build of torch does not have it, and for one GPU of several
                processes.
        """
        if world_size() > 1 and self.device.startswith("cuda:"):
            raise UsageError(
                f"device={self.device}: {world_size()} processes would share one GPU: give auto, which takes the GPU "
                "of the local rank"
            )
        if self.device == "auto" or (self.device == "cuda" and world_size() > 1):  # the GPU of the local rank
            return (
                torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
            )
        try:
            return torch.empty(0, device=self.device).device
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"device={self.device} is not available here ({str(error).splitlines()[0]}): try auto or cpu"
            ) from error


LEAST = {
    "steps": 1,
    "log_every": 1,
    "save_every": 1,
    "watch_every": 0,
    "held_out_every": 0,
    "held_out_count": 1,
    "warmup": 0,
    "cooldown": 0,
    "seed": 0,
    "micro_batch": 1,
    "workers": 0,
    "snapshot_every": 0,
    "keep": 1,
    "keep_every": 0,
}
"""Settings that are whole numbers, and the least value of each."""
WITHOUT_EFFECT = (
    *("steps", "log_every", "watch_every", "save_every", "device", "keep", "keep_every", "snapshot_every"),
    *("micro_batch", "recompute", "parallel", "compile", "channels_last", "workers", "averages"),
    *("deadline", "held_out_every", "held_out_count", "trackers"),
)
"""Settings that do not change what one step computes, so that a resumed run may change them."""


def in_todays_settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the description of settings of earlier versions.

    They had `bfloat16` in place of `precision`, and the decay of the average as a number.
    """
    arguments = dict(arguments)
    if isinstance(arguments.get("ema"), int | float):
        arguments["ema"] = serialize(Decay(arguments["ema"]))
    if "bfloat16" in arguments:
        arguments["precision"] = {True: "bfloat16", False: "float32", None: "auto"}[arguments.pop("bfloat16")]
    return {"class": "training.Training", "arguments": arguments}


for name in ("training.Training", "unnoise.shared.training.config.Training"):
    earlier(name, in_todays_settings)
