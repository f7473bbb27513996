"""The tensors of a module by name, as they stand in checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UsageError

COMPILED = "_orig_mod."
"""The part that `torch.compile` adds to the names of a module's weights."""


def uncompiled(name: str) -> str:
    """Returns a weight's name without the part that `torch.compile` adds, so that compiled networks have the same."""
    return name.replace(COMPILED, "")


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters by name, without the part that `torch.compile` adds; a shared one once."""
    return {uncompiled(name): p for name, p in module.named_parameters()}


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a module's state dict (parameters and buffers) by name.

    Raises:
        UsageError: for entries that a file of tensors cannot store.
    """
    found = {uncompiled(name): value for name, value in module.state_dict().items()}
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            what = "not a tensor" if not isinstance(value, Tensor) else "not a dense tensor without quantization"
            raise UsageError(
                f"a checkpoint cannot contain {name}, a {type(value).__name__}: it is {what}; keep it out of the state "
                "dict"
            )
    return found
