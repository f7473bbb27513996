"""Gradients with respect to a state, wherever the caller stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError


@contextmanager
def gradients(*values: Any) -> Iterator[tuple[Any, ...]]:
    """Within the block gradients are taken, also where the caller is in `torch.no_grad()` or `torch.inference_mode()`.

    Tensors that were made in inference mode cannot be differentiated through: those among the values come back as
    copies that can, and the others as they are.

    Args:
        values: tensors, and dictionaries of them such as conditions; other values pass as they are.

    Raises:
        UsageError: where a network was built in inference mode.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield tuple(map(ordinary, values))
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise UsageError(
            "a gradient is needed here, and the network (or another part) was built inside torch.inference_mode(): build or load it "
            "outside, and call it inside"
        ) from error


def ordinary(value: Any) -> Any:
    """A tensor, or a dictionary of them, as copies outside of inference mode where they were made in it."""
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.clone() if value.is_inference() else value
    return {name: ordinary(held) for name, held in value.items()} if isinstance(value, dict) else value
