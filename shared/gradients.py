"""Gradients with respect to a state, also where the caller has switched gradients off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError


@contextmanager
def gradients(*values: Any) -> Iterator[tuple[Any, ...]]:
    """Enables gradients within the block, also inside `torch.no_grad()` or `torch.inference_mode()`.

    `with gradients(x, cond) as (x, cond)`: the block gets a tuple of the values. Tensors that were created in inference
    mode cannot be differentiated. Those among the values are replaced by ordinary copies, all other values are passed
    on as they are; `requires_grad` is not set.

    Args:
        values: tensors, and dictionaries of tensors such as conditions; other values are passed on as they are.

    Raises:
        UsageError: if the network was built in inference mode.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield tuple(map(ordinary, values))
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise UsageError(
            "a gradient is needed here, but the network (or another part) was built inside torch.inference_mode(): "
            "build or load it outside, then call it inside"
        ) from error


def ordinary(value: Any) -> Any:
    """Returns a tensor, or a dictionary of tensors, with ordinary copies of those created in inference mode.

    Any other value is returned as it is.
    """
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.clone() if value.is_inference() else value
    return {name: ordinary(held) for name, held in value.items()} if isinstance(value, dict) else value
