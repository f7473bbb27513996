"""Networks as CUDA graphs: a call is recorded once for each form of its inputs, and then replayed as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

from .errors import Notice, UsageError
from .sampler import device_of

Replay = Callable[[], Tensor]
"""Computes the output again from what the static inputs hold now; the output is the same tensor every time."""


class Recorder(ABC):
    """Records the work of a function on a device, so that it can be repeated without running its Python code."""

    @abstractmethod
    def record(self, function: Callable[[], Tensor]) -> Replay:
        """Returns the replay of a function of no arguments, which reads static inputs and returns a tensor."""


class CudaRecorder(Recorder):
    """Records CUDA graphs, which share one pool of memory.

    Args:
        device: the GPU.
        warm_up: the number of calls before the recording, in which libraries choose their kernels and compilers run.
    """

    def __init__(self, device: torch.device, warm_up: int = 3) -> None:
        self.device, self.warm_up = device, warm_up
        self.pool: Any = None

    def record(self, function: Callable[[], Tensor]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(self.warm_up):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, pool=self.pool):
                out = function()
        self.pool = graph.pool()

        def replay() -> Tensor:
            with torch.cuda.device(self.device):
                graph.replay()
            return out

        return replay


class Recorded(nn.Module):
    """A network whose calls are recorded and replayed; called as the network, `(x, time, **cond) -> out`.

    For each form of the inputs (shapes, dtypes, devices, values that are not tensors, and the precision of autocast)
    there is one recording, which reads copies of the inputs. The output is a copy, since the next replay overwrites it.
    With gradients, in training mode, or with a condition that is neither a tensor nor a number or text, the network
    itself is called, and a `Notice` says so once.

    The weights are read when a recording is replayed: they may change in place, but must not be replaced.

    Args:
        network: the network.
        recorder: records its calls.

    Attributes:
        replays: the number of calls that were replays.
    """

    def __init__(self, network: nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self.inner, self.recorder, self.replays = network, recorder, 0
        self.recordings: dict[Any, tuple[list[Tensor], Replay]] = {}
        self.told = False
        self.train(network.training)

    @property
    def _orig_mod(self) -> nn.Module:
        """The network itself, under the name that `torch.compile` gives it: what is looked up in a network is there."""
        return getattr(self.inner, "_orig_mod", self.inner)

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute of the network, such as its `conditions`, that this module does not have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        """Returns the network's output."""
        arguments = {"x": x, "time": time, **cond}
        if why := self._obstacle(arguments):
            if not self.told:
                warn(Notice(f"calls of the network are not replayed as CUDA graphs, because {why}"), stacklevel=2)
            self.told = True
            return self.inner(x, time, **cond)
        tensors = {name: v for name, v in arguments.items() if isinstance(v, Tensor)}
        others = {name: v for name, v in arguments.items() if name not in tensors}
        key = form_of(tensors, others)
        if key not in self.recordings:
            self.recordings[key] = self._recording(tensors, others)
        static, replay = self.recordings[key]
        for own, given in zip(static, tensors.values(), strict=True):
            own.copy_(given)
        self.replays += 1
        out = replay()
        return out.clone() if isinstance(out, Tensor) else out

    def _obstacle(self, arguments: dict[str, Any]) -> str:
        """Returns why a call cannot be replayed, or an empty text."""
        if self.training:
            return "it is in training mode: call denoiser.eval()"
        if torch.is_grad_enabled():
            return "gradients are enabled: sample under torch.no_grad()"
        other = [n for n, v in arguments.items() if not isinstance(v, Tensor | bool | int | float | str | None)]
        return f"{other[0]} is a {type(arguments[other[0]]).__name__}: give tensors" if other else ""

    def _recording(self, tensors: dict[str, Tensor], others: dict[str, Any]) -> tuple[list[Tensor], Replay]:
        static = {name: v.clone() for name, v in tensors.items()}
        named: dict[str, Any] = {**static, **others}
        x, time = named.pop("x"), named.pop("time")
        kind = x.device.type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

        def call() -> Tensor:
            # A cast of a weight that autocast has cached would lie outside of the recording.
            with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
                return self.inner(x, time, **named)

        try:
            return list(static.values()), self.recorder.record(call)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reported = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"{type(self._orig_mod).__name__} cannot be recorded as a CUDA graph ({reported}): sample without them"
            ) from error


def form_of(tensors: dict[str, Tensor], others: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what two calls of a network must have in common to share a recording."""
    forms = tuple((name, tuple(v.shape), v.dtype, v.device) for name, v in tensors.items())
    kind = tensors["x"].device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return forms, tuple((name, type(v), v) for name, v in others.items()), cast, torch.is_inference_mode_enabled()


def with_cuda_graphs(denoiser: nn.Module, recorder: Recorder | None = None) -> list[Recorded]:
    """Replaces the networks of a denoiser by recorded ones, in place, and returns these.

    Args:
        denoiser: the denoiser, in evaluation mode.
        recorder: records the calls; None for CUDA graphs on the device of the denoiser.

    Raises:
        UsageError: without a recorder on a device that has no CUDA graphs.
    """
    if recorder is None:
        device = device_of(denoiser)
        if device.type != "cuda":
            raise UsageError(f"the denoiser is on {device}, and CUDA graphs exist on NVIDIA GPUs alone: leave them out")
        recorder = CudaRecorder(device)
    chosen, found = recorder, []

    def wrap(network: nn.Module) -> Recorded:
        found.append(Recorded(network, chosen))
        return found[-1]

    replace_networks(denoiser, wrap)
    return found


def replace_networks(module: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> list[nn.Module]:
    """Replaces the networks that a denoiser calls, its attributes `network`, by `wrap(network)`, in place.

    A network that several denoisers in it share is wrapped once. Modules inside of networks are not replaced.

    Returns:
        The wrapped networks.
    """
    wrapped: dict[nn.Module, nn.Module] = {}

    def visit(owner: nn.Module) -> None:
        for name, child in list(owner._modules.items()):
            if child is not None and name != "network":
                visit(child)
            elif child is not None and child not in wrapped.values():  # else its denoiser was met before
                wrapped[child] = wrapped.get(child) or wrap(child)
                owner.network = wrapped[child]

    visit(module)
    return list(wrapped.values())
