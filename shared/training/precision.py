"""The precision of training: which arithmetic a device has natively, and which one a setting stands for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch

CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
CPUINFO = Path("/proc/cpuinfo")
PrecisionName: TypeAlias = Literal["float32", "tf32", "bfloat16", "float16", "auto"]


@dataclass(frozen=True)
class Precision:
    """Arithmetic of the network; weights, losses and averages are float32 in all cases.

    Attributes:
        name: its name in the settings.
        autocast: the dtype of autocast, or None without autocast.
        tf32: whether matrix products and convolutions in float32 may round their factors to TF32 on GPUs.
        scaled: whether the loss is scaled so that gradients do not underflow.
    """

    name: str
    autocast: torch.dtype | None = None
    tf32: bool = False
    scaled: bool = False

    def cast(self, device: torch.device) -> torch.autocast:
        """Returns the context in which the network runs."""
        return torch.autocast(device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    @contextmanager
    def products(self) -> Iterator[None]:
        """Within the block products in float32 are exact, or rounded to TF32, as the precision says."""
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]


PRECISIONS = {
    "float32": Precision("float32"),
    "tf32": Precision("tf32", tf32=True),
    "bfloat16": Precision("bfloat16", torch.bfloat16, tf32=True),
    "float16": Precision("float16", torch.float16, tf32=True, scaled=True),
}
"""The precisions by their names in the settings."""


def precision_of(name: PrecisionName, device: torch.device) -> tuple[Precision, str]:
    """Returns the precision of a setting on a device, and for `auto` a line on what was chosen, else an empty text."""
    if name != "auto":
        return PRECISIONS[name], ""
    if native_bfloat16(device):
        return PRECISIONS["bfloat16"], f"precision bfloat16, because {device.type} has native bfloat16 arithmetic"
    return PRECISIONS["float32"], f"precision float32, because {device.type} only emulates bfloat16"


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
