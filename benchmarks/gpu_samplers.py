"""Sampling steps around a trivial network on a GPU, launched one by one and captured as one CUDA graph."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unnoise.continuous import DDIM, Learned, Tabulated, linear_betas
from unnoise.shared.cuda_graphs import CudaRecorder, with_cuda_graphs
from unnoise.shared.networks.unet_variants import DDPM
from unnoise.shared.sampler import Sampler

from . import contenders, peers
from .gpu_page import Calls, Section, Sizes, in_turns, repeated, spread, waited
from .samplers import METHODS, on_the_table
from .timing import ratios

HEAD = ["method", "ms a step", "one CUDA graph", "bare arithmetic", "diffusers", "operations a step", "bare"]
BATCH = 16


class Operations(TorchDispatchMode):
    """Counts the operations that are dispatched within a block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def last_state(sampler: Sampler, x: Tensor, steps: int) -> Callable[[], Tensor]:
    """Returns a function that runs a sampler without the check of its samples, for which the host would wait."""

    def run() -> Tensor:
        for state in sampler.trajectory(x, steps=steps):
            x0 = state
        return x0

    return run


def samplers(path: Path, sizes: Sizes) -> None:
    """Measures the steps of samplers around a trivial network, and DDIM with a U-Net beside diffusers."""
    device, steps = torch.device(sizes.device), 20 if sizes.device == "cuda" else 2
    about = (
        f"Batch {BATCH} of 3 x 32 x 32 around a network that returns half of its input, {steps} steps in a run. The "
        "bare arithmetic has the method's factors as numbers. Operations are those that torch dispatches."
    )
    section = Section(path, "Sampling steps around a trivial network", HEAD, about)
    if device.type != "cuda":
        section.note(f"the CUDA graph is replaced by another call, because this device is {device}")
    recorder = CudaRecorder(device) if device.type == "cuda" else Calls()
    x = torch.randn(BATCH, 3, 32, 32, device=device)
    for name, (kind, floor, *_) in METHODS.items():
        sampler = on_the_table(kind)
        run, method = last_state(sampler, x, steps), floor(sampler.times(steps))

        def bare(method: Callable[..., Tensor] = method) -> Tensor:
            with torch.no_grad():
                return method(x, None)

        works: dict[str, Callable[[], object]] = {"ours": run, "bare": bare}
        works |= peers.samplers(name, x, steps, only=("diffusers",))
        try:
            works["graph"] = recorder.record(run)
        except RuntimeError as error:
            section.note(f"{name} is not captured: {str(error).splitlines()[0]}")
        times = in_turns({key: repeated(work, device, sizes.steps) for key, work in works.items()}, sizes)
        ms = {key: f"{1000 * statistics.median(found) / sizes.steps / steps:.4f}" for key, found in times.items()}
        counts = []
        for work in (run, bare):
            with Operations() as operations:
                work()
            counts.append(f"{operations.count / steps:.1f}")
        section.add(name, *(ms.get(key, "") for key in ("ours", "graph", "bare", "diffusers")), *counts)
    section.note(beside_diffusers(x, steps, sizes))


def beside_diffusers(x: Tensor, steps: int, sizes: Sizes) -> str:
    """Measures DDIM with a U-Net in bfloat16, ours with CUDA graphs beside diffusers' network and scheduler."""
    device = torch.device(sizes.device)
    network = contenders.channels_last(contenders.ours("UNet, DDPM", DDPM, sizes.images).network.to(device)).eval()
    denoiser = Learned(network, Tabulated(linear_betas(1000)))
    with_cuda_graphs(denoiser, None if device.type == "cuda" else Calls())
    try:
        other = contenders.diffusers_unet(sizes.images).network.to(device).eval()
        library: Any = __import__("diffusers").DDIMScheduler(beta_schedule="linear", clip_sample=False)
    except Exception as error:  # a library that does not fit the installed torch may raise anything
        return f"diffusers is left out: {type(error).__name__}: {str(error).splitlines()[0]}"
    x = x[:, :, : sizes.images.size, : sizes.images.size]
    run = last_state(DDIM(denoiser), x, steps)

    def ours() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            run()
        waited(device)

    def theirs() -> None:
        library.set_timesteps(steps)
        state = x
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            for t in library.timesteps:
                state = library.step(other(state, t).sample, t, state).prev_sample
        waited(device)

    times = in_turns({"ours": ours, "theirs": theirs}, sizes)
    middle, between = spread(ratios(times, "theirs", "ours"))
    return (
        f"DDIM with the U-Net of {contenders.parameters(contenders.Contender('', network, network)):,} parameters, "
        f"batch {len(x)}, bfloat16, CUDA graphs: {middle} times the throughput of diffusers' network and scheduler "
        f"({between}; target 2)"
    )
