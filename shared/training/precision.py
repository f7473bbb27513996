"""Whether a device multiplies bfloat16 numbers itself, and is not merely able to."""

from __future__ import annotations

from pathlib import Path

import torch

CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
CPUINFO = Path("/proc/cpuinfo")


def native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on a device.

    CUDA from compute capability 8.0 on, x86 processors with AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not CPUINFO.is_file():
        return False
    flags = next((line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")), "")
    return bool(CPU_FLAGS & {*flags.split()})


def uses_bfloat16(chosen: bool | None, device: torch.device) -> bool:
    """The precision that was chosen, or that of the device for None."""
    return native_bfloat16(device) if chosen is None else chosen
