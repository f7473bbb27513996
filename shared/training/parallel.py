"""How the weights lie on the devices of a run: whole on each (DDP), or divided among them (FSDP2)."""

from __future__ import annotations

import copy
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recomputed

from ..distributed import world_size
from ..errors import UsageError
from ..serialization import serializable
from ..values import notation

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


class Parallel(ABC):
    """A layout of the weights over the processes of a run."""

    sharded: bool
    """Whether each process holds a part of the weights only."""

    @abstractmethod
    def divide(self, module: nn.Module, device: torch.device) -> None:
        """Lays out the weights of a module on the devices, in place, before an optimizer takes them."""

    @abstractmethod
    def connected(self, module: nn.Module, unused: Callable[[], bool]) -> nn.Module:
        """Returns what is called in place of the module, so that gradients are averaged over the processes.

        `unused` returns whether the loss leaves out some parameters.
        """

    @abstractmethod
    def apart(self, module: nn.Module) -> AbstractContextManager[None]:
        """Returns a context in which backward passes add to the gradients of this process alone."""


@serializable("training.Replicated")
@dataclass(frozen=True)
class Replicated(Parallel):
    """Each device has all weights, and gradients are averaged (torch's DistributedDataParallel)."""

    sharded = False
    __repr__ = notation

    def divide(self, module: nn.Module, device: torch.device) -> None:
        """Does nothing: each device keeps all weights."""

    def connected(self, module: nn.Module, unused: Callable[[], bool]) -> nn.Module:
        if world_size() == 1:
            return module
        left_out = unused()
        with warnings.catch_warnings():  # on a newer name of broadcast_buffers, which older versions do not have
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                module, broadcast_buffers=False, find_unused_parameters=left_out, gradient_as_bucket_view=True
            )

    def apart(self, module: nn.Module) -> AbstractContextManager[None]:
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


@serializable("training.Sharded")
@dataclass(frozen=True)
class Sharded(Parallel):
    """Weights, gradients, averages and optimizer state are divided among the devices (torch's fully_shard, FSDP2).

    The blocks of the network are gathered one after the other while they compute.
    """

    sharded = True
    __repr__ = notation

    def divide(self, module: nn.Module, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if world_size() == 1:
            raise UsageError(
                "parallel=Sharded() divides weights among processes, and there is one: start several, as in "
                "torchrun --nproc-per-node 8 -m unnoise train ..., or leave it out"
            )
        mesh = init_device_mesh(device.type, (world_size(),))
        for block in blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)

    def connected(self, module: nn.Module, unused: Callable[[], bool]) -> nn.Module:
        return module

    @contextmanager
    def apart(self, module: nn.Module) -> Iterator[None]:
        module.set_requires_gradient_sync(False)  # pyright: ignore[reportCallIssue]
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)  # pyright: ignore[reportCallIssue]


def blocks(module: nn.Module) -> list[nn.Module]:
    """Returns the blocks of a network: the modules with parameters in a ModuleList that contain no further one."""
    found = [part for each in module.modules() if isinstance(each, nn.ModuleList) for part in each]
    return [
        part
        for part in dict.fromkeys(found)
        if any(True for _ in part.parameters()) and not any(isinstance(m, nn.ModuleList) for m in part.modules())
    ]


def recompute(module: nn.Module) -> list[nn.Module]:
    """Makes each block of a network keep its input only, and compute the rest anew in the backward pass.

    Returns the blocks, for `keep_activations`.

    Raises:
        UsageError: for a network without blocks.
    """
    found = blocks(module)
    if not found:
        raise UsageError(
            "recompute=True: the network has no blocks in a torch.nn.ModuleList, whose activations could be recomputed"
        )
    for block in found:
        block.forward = partial(recomputed, block.forward, use_reentrant=False)
    return found


def keep_activations(found: list[nn.Module]) -> None:
    """Undoes `recompute`."""
    for block in found:
        del block.forward


def is_divided(tensor: Tensor) -> TypeIs[DTensor]:
    """Returns whether a tensor is divided among devices. Only a program that has such tensors has imported their type.

    That import takes half as long as that of torch.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor in whole, also of one that is divided among devices: every process calls this together."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """Returns the part of a tensor that this process has; they share memory."""
    return tensor.to_local() if is_divided(tensor) else tensor


def laid_like(value: Tensor, like: Tensor) -> Tensor:
    """Returns a tensor that every process has in whole, divided among the devices as another one of its shape is."""
    if not is_divided(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def assembled(module: nn.Module, template: nn.Module) -> Any:
    """Returns a copy of `template`, an undivided module of the same kind, with the weights of a divided one."""
    copied = copy.deepcopy(template)
    copied.load_state_dict({name: whole(value) for name, value in module.state_dict().items()})
    return copied
