"""Orders of examples in which each class appears equally often."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError
from ..random import derived_seed


def balanced_order(label: Tensor, seed: int, epoch: int) -> Tensor:
    """Returns the examples of an epoch in which each class appears equally often, a function of (seed, epoch).

    For C classes an epoch consists of N // C groups of one example of each class, in random order. The examples of a
    class appear in turn: each of them once, in a random order, before any of them appears again, also across epochs.

    Args:
        label: class labels, int64 `(N,)`; classes without an example are left out.
        seed: the seed of the order.
        epoch: the number of the epoch, from 0.

    Returns:
        Numbers of examples, int64 `(N // C * C,)`.

    Raises:
        UsageError: for no labels.
    """
    if label.ndim != 1 or not len(label):
        raise UsageError(f"labels of shape {tuple(label.shape)} cannot be balanced: give one for each example")
    members = [(label == c).nonzero()[:, 0] for c in label.unique()]
    groups, columns = len(label) // len(members), []
    for c, own in enumerate(members):
        first, last = epoch * groups // len(own), (epoch * groups + groups - 1) // len(own)
        rounds = [
            own[torch.randperm(len(own), generator=generator_of(seed, f"order of class {c}", number))]
            for number in range(first, last + 1)
        ]
        start = epoch * groups - first * len(own)
        columns.append(torch.cat(rounds)[start : start + groups])
    ranks = torch.rand(groups, len(members), generator=generator_of(seed, "order of classes", epoch)).argsort(1)
    return torch.stack(columns, 1).gather(1, ranks).flatten()


def generator_of(seed: int, purpose: str, number: int) -> torch.Generator:
    """Returns the generator of a purpose and a number, with the seed derived from them."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, number))
