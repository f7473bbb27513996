"""Throughput of training: floating-point operations of a model, peak speeds of GPUs, and the unit of examples."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

PEAKS: dict[str, dict[str, float]] = {
    r"B200": {"float32": 75, "tf32": 1125, "bfloat16": 2250, "float16": 2250},
    r"(H100|H200).*NVL": {"float32": 60, "tf32": 417.5, "bfloat16": 835, "float16": 835},
    r"H100.*PCIe": {"float32": 51, "tf32": 378, "bfloat16": 756, "float16": 756},
    r"(H100|H200|H800|GH200)": {"float32": 67, "tf32": 494.7, "bfloat16": 989.4, "float16": 989.4},
    r"(A100|A800)": {"float32": 19.5, "tf32": 156, "bfloat16": 312, "float16": 312},
    r"A40": {"float32": 37.4, "tf32": 74.8, "bfloat16": 149.7, "float16": 149.7},
    r"RTX A6000": {"float32": 38.7, "tf32": 77.4, "bfloat16": 154.8, "float16": 154.8},
    r"A10": {"float32": 31.2, "tf32": 62.5, "bfloat16": 125, "float16": 125},
    r"L40S": {"float32": 91.6, "tf32": 183, "bfloat16": 362, "float16": 362},
    r"L40": {"float32": 90.5, "tf32": 90.5, "bfloat16": 181, "float16": 181},
    r"L4": {"float32": 30.3, "tf32": 60, "bfloat16": 121, "float16": 121},
    r"RTX 4090": {"float32": 82.6, "tf32": 82.6, "bfloat16": 165.2, "float16": 165.2},
    r"RTX 3090": {"float32": 35.6, "tf32": 35.6, "bfloat16": 71, "float16": 71},
    r"V100.*PCIe": {"float32": 14, "tf32": 14, "float16": 112},
    r"V100": {"float32": 15.7, "tf32": 15.7, "float16": 125},
    r"T4": {"float32": 8.1, "tf32": 8.1, "float16": 65},
    r"MI300X": {"float32": 163.4, "tf32": 653.7, "bfloat16": 1307.4, "float16": 1307.4},
}
"""Peak speeds in TFLOP/s by a pattern of the device's name and by precision, without sparsity, from data sheets.

16-bit figures are those with float32 accumulation. The first pattern that matches whole words of the name holds.
"""


def peak_flops(device_name: str, precision: str) -> float | None:
    """Returns the peak speed of one GPU in FLOP/s, from its data sheet; None for a device that is not in the table.

    Args:
        device_name: as from `torch.cuda.get_device_name`, such as `NVIDIA H100 80GB HBM3`.
        precision: float32, tf32, bfloat16 or float16.
    """
    for pattern, speeds in PEAKS.items():
        if re.search(rf"\b{pattern}\b", device_name):
            return speeds[precision] * 1e12 if precision in speeds else None
    return None


def peak_of(device: torch.device, precision: str) -> float | None:
    """Returns the peak speed of a torch device in FLOP/s; None for devices other than GPUs of the table."""
    return peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


@torch.no_grad()
def flops_per_example(objective: nn.Module, batch: Mapping[str, Tensor]) -> float | None:
    """Returns the floating-point operations of one training step for each example: three times those of the loss.

    Those of the loss are counted once on the first example of the batch, by PyTorch's `FlopCounterMode`: matrix
    multiplications, convolutions and attention, 2 FLOPs for a multiplication with an addition. The backward pass takes
    twice as many; operations that activation checkpointing repeats are not counted, as they do no more for the model.
    The objective, its buffers and the global random numbers are left as they were. Returns None where nothing is
    counted, as for an objective that cannot compute the loss of one example.
    """
    modes = {module: module.training for module in objective.modules()}
    device = next((p.device for p in objective.parameters()), torch.device("cpu"))
    forked = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=forked), FlopCounterMode(display=False) as counter:
            torch.manual_seed(0)
            objective.eval()
            one = {name: torch.as_tensor(value)[:1].to(device) for name, value in batch.items()}
            objective(**one, generator=torch.Generator(device).manual_seed(0))
    except Exception:  # a figure that cannot be had must not end the training
        return None
    finally:
        for module, mode in modes.items():
            module.training = mode
    return 3.0 * counter.get_total_flops() or None


def unit_of(x0: Tensor) -> tuple[str, int]:
    """Returns what is counted in a batch, `images`, `tokens` or `examples`, and its number in one example.

    Args:
        x0: `(B, ...)`; images are `(B, C, H, W)`, tokens are integers `(B, L)`.
    """
    if x0.ndim == 4:
        return "images", 1
    if x0.ndim == 2 and not x0.is_floating_point():
        return "tokens", x0.shape[1]
    return "examples", 1


def wait_for(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
