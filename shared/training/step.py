"""One training step: the loss of a batch, in as many parts as memory needs, and the step of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from ..distributed import add_over_processes, gather_rows, own_rows, share, world_size
from ..errors import Notice, UsageError
from ..networks.dropout import dropouts, give_rows
from ..objective import Loss, Objective
from ..random import Streams, derived_seed
from .config import Training
from .optim import clip_gradients, learning_rate
from .parallel import own
from .precision import precision_of


class TrainingStep:
    """Computes loss and gradient of a batch, and moves the weights.

    Times, noise and dropout of an example are functions of (seed, step, row of the global batch), so that they are the
    same on any number of processes and in micro-batches of any size.

    Args:
        objective: the loss, its weights on their devices.
        optimizer: the optimizer of its parameters.
        config: settings of the trainer.
        device: the device of this process.

    Attributes:
        micro_batch: number of examples that are passed through the network at a time; None for all.
        scaler: the scale of the loss, which is 1 except for float16.
        reason: a line on the choice of the precision where it was automatic, or an empty text.
    """

    def __init__(
        self, objective: Objective[Any], optimizer: torch.optim.Optimizer, config: Training, device: torch.device
    ) -> None:
        self.objective, self.called, self.optimizer = objective, objective, optimizer
        self.config, self.device, self.parallel = config, device, config.parallel
        self.precision, self.reason = precision_of(config.precision, device)
        if self.precision.scaled and self.parallel.sharded:
            raise UsageError("precision=float16 with parallel=Sharded(): give bfloat16, whose loss needs no scale")
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision.scaled)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.micro_batch, self.layers = config.micro_batch, dropouts(objective)

    def prepare(self, batch: Mapping[str, Tensor], size: int) -> None:
        """Connects the processes, and where it is open finds the micro-batch that fits into the memory of a GPU.

        Divided weights are not tried: a pass that ends in the middle leaves some gathered, and other processes waiting.

        Args:
            batch: the rows of this process of the first batch.
            size: number of examples in the global batch.
        """

        def unused() -> bool:
            self.backward(self.objective, {k: v[:1] for k, v in batch.items()}, 0, range(1), size)
            left_out = torch.tensor(float(any(p.grad is None for p in self.parameters)))
            self.optimizer.zero_grad(set_to_none=True)
            return float(add_over_processes(left_out)) > 0  # the same on all processes, which connect in one way

        self.called = self.parallel.connected(self.objective, unused)
        if self.config.compile:
            self.place(batch, size)
            self.called.compile()
        if self.micro_batch is None and self.device.type != "cpu" and not self.parallel.sharded:
            self.micro_batch = self.largest_that_fits(batch, size)

    @torch.no_grad()
    def place(self, batch: Mapping[str, Tensor], size: int) -> None:
        """Runs the loss of one example, so that dropout knows the shapes that it is for before it is compiled.

        Within the compiler its tables would divide the graph at each layer.
        """
        if self.layers:
            index = torch.zeros(1, dtype=torch.int64, device=self.device)
            give_rows(self.layers, Streams(0, index, size))
            with self.precision.cast(self.device):
                self.objective(**{k: v[:1] for k, v in batch.items()}, generator=Streams(0, index, size))
            give_rows(self.layers, None)

    def largest_that_fits(self, batch: Mapping[str, Tensor], size: int) -> int:
        """Returns the largest of B, B / 2, B / 4, ... examples whose loss and gradient fit into memory with the rest.

        Memory that the optimizer will need is set aside during the trial.

        Raises:
            UsageError: where a single example does not fit.
        """
        count = len(batch["x0"])
        trial = count
        while True:
            later = [torch.empty_like(own(p)) for p in (*self.parameters, *self.parameters) if not self.optimizer.state]
            try:
                with self.parallel.apart(self.called):
                    part = {k: v[:trial] for k, v in batch.items()}
                    self.backward(self.called, part, 0, own_rows(size)[:trial], size)
                fits = torch.ones((), device=self.device)
            except torch.OutOfMemoryError:
                fits = torch.zeros((), device=self.device)
            self.optimizer.zero_grad(set_to_none=True)
            del later
            empty_cache(self.device)
            if float(add_over_processes(fits)) == world_size():
                break
            if trial == 1:
                raise UsageError(
                    "one example does not fit into the memory of the device: give recompute=True, parallel=Sharded() "
                    "on several devices, or a smaller network"
                )
            trial = -(-trial // 2)
        if trial < count:
            passes = -(-count // trial)
            warn(
                Notice(
                    f"micro-batches of {trial} examples, because {count} do not fit into memory: {passes} passes a step"
                ),
                stacklevel=4,
            )
        return trial

    def loss(self, batch: Mapping[str, Tensor], step: int, size: int) -> Loss:
        """Computes the gradient of the mean loss of the global batch, and returns the loss of the rows of this process.

        Args:
            batch: the rows of this process, on its device.
            step: the step, from 0.
            size: number of examples in the global batch.

        Raises:
            UsageError: where the examples of one pass do not fit into memory.
        """
        rows, losses = own_rows(size), []
        pieces = -(-len(rows) // (self.micro_batch or len(rows)))
        for n in range(pieces):
            part = share(len(rows), n, pieces)
            apart = self.parallel.apart(self.called) if n < pieces - 1 else nullcontext()
            with apart:
                examples = {k: v[part.start : part.stop] for k, v in batch.items()}
                try:
                    losses.append(self.backward(self.called, examples, step, rows[part.start : part.stop], size))
                except torch.OutOfMemoryError as error:
                    many, fewer = f"{len(part)} examples do", f"micro_batch={len(part) // 2}"
                    if len(part) == 1:
                        many, fewer = "one example does", "recompute=True, or a smaller network"
                    raise UsageError(f"{many} not fit into the memory of the device: give {fewer}") from error
        joined = losses[0] if pieces == 1 else together(losses)
        self.observe(joined, size)
        return joined

    def backward(self, called: Any, batch: Mapping[str, Tensor], step: int, rows: range, size: int) -> Loss:
        """Adds the share of some rows of the global batch to the gradient, and returns their loss, without a graph."""
        seed, first = self.config.seed, f" from row {rows.start}" * bool(rows.start)
        index = torch.arange(rows.start, rows.stop)  # on the CPU, where the times are drawn: none waits for the device
        on_device = index.to(self.device, non_blocking=True)
        give_rows(self.layers, Streams(derived_seed(seed, "dropout", step), on_device, size))
        torch.manual_seed(derived_seed(seed, f"dropout{first}", step))  # for networks with random numbers of their own
        with self.precision.cast(self.device):
            loss = called(**batch, generator=Streams(derived_seed(seed, "noise", step), index, size))
        self.scaler.scale(loss.total.sum() * (world_size() / size)).backward()
        give_rows(self.layers, None)
        return Loss(loss.total.detach(), {k: v.detach() for k, v in loss.parts.items()}, loss.t)

    def observe(self, loss: Loss, size: int) -> None:
        """Gives the loss of the whole batch to objectives that adapt to it."""
        if type(self.objective).observe is Objective.observe:
            return
        parts = {k: gather_rows(v, size) for k, v in loss.parts.items()}
        self.objective.observe(Loss(gather_rows(loss.total, size), parts, gather_rows(loss.t, size)))

    def update(self, step: int) -> Tensor:
        """Takes the step of the optimizer, and returns the norm of the gradient before it was clipped."""
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.parameters, self.config.clip, zero=not self.precision.scaled)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def together(losses: list[Loss]) -> Loss:
    """Returns the losses of parts of a batch as one."""
    return Loss(
        torch.cat([loss.total for loss in losses]),
        {name: torch.cat([loss.parts[name] for loss in losses]) for name in losses[0].parts},
        torch.cat([loss.t for loss in losses]),
    )


def empty_cache(device: torch.device) -> None:
    """Returns memory that torch keeps for later to a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
