"""Whether a device has native bfloat16 arithmetic, which is faster than float32, or only emulates it."""

from __future__ import annotations

from pathlib import Path

import torch

CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
CPUINFO = Path("/proc/cpuinfo")


def native_bfloat16(device: torch.device) -> bool:
    """Returns whether bfloat16 is faster than float32 on a device.

    It is on CUDA from compute capability 8.0 on, and on x86 processors with AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not CPUINFO.is_file():
        return False
    flags = next((line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")), "")
    return bool(CPU_FLAGS & {*flags.split()})


def uses_bfloat16(chosen: bool | None, device: torch.device) -> bool:
    """Returns the chosen setting, or for None whether the device has native bfloat16 arithmetic."""
    return native_bfloat16(device) if chosen is None else chosen
