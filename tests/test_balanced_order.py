"""Orders in which each class appears equally often."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unnoise.shared.data import Batches
from unnoise.shared.data.balance import balanced_order
from unnoise.shared.errors import UsageError
from unnoise.shared.quantization import Quantization

LABEL = torch.tensor([0] * 5 + [1] * 20 + [3] * 2 + [4])


def test_each_class_appears_once_in_every_group() -> None:
    order = balanced_order(LABEL, 3, 0)
    assert len(order) == 28 // 4 * 4
    groups = LABEL[order].reshape(-1, 4)
    assert torch.equal(groups.sort(1).values, torch.tensor([0, 1, 3, 4]).expand(7, 4))
    assert len({tuple(group) for group in groups.tolist()}) > 1  # in random order


def test_every_example_of_a_class_appears_before_one_appears_again_across_epochs() -> None:
    epochs = torch.cat([balanced_order(LABEL, 3, epoch) for epoch in range(20)])
    for value in (0, 1, 3):
        own, count = epochs[LABEL[epochs].eq(value)], int(LABEL.eq(value).sum())
        rounds = own[: len(own) // count * count].reshape(-1, count)
        assert torch.equal(rounds.sort(1).values, LABEL.eq(value).nonzero()[:, 0].expand(len(rounds), -1))
        assert len({tuple(r) for r in rounds.tolist()}) > 1


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert torch.equal(balanced_order(LABEL, 3, 4), balanced_order(LABEL, 3, 4))
    assert not torch.equal(balanced_order(LABEL, 3, 4), balanced_order(LABEL, 4, 4))
    assert not torch.equal(balanced_order(LABEL, 3, 4), balanced_order(LABEL, 3, 5))


def test_batches_are_balanced_and_continue_from_their_position() -> None:
    k = torch.arange(28)[:, None]
    made: dict[str, Any] = {"conditions": {"label": LABEL}, "seed": 5, "balanced": LABEL}
    batches = Batches(k, 8, Quantization(28), Quantization.quantized, **made)
    assert batches.per_epoch == 3
    stream = iter(batches)
    first = [next(stream) for _ in range(7)]
    for batch in first:
        assert torch.equal(batch["label"], LABEL[batch["x0"][:, 0]])
        assert torch.equal(batch["label"].sort().values, torch.tensor([0, 0, 1, 1, 3, 3, 4, 4]))
    again = Batches(k, 8, Quantization(28), Quantization.quantized, **made)
    again.load_state_dict({**again.state_dict(), "position": 5})
    assert torch.equal(next(iter(again))["x0"], first[5]["x0"])


def test_what_cannot_be_balanced_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be balanced"):
        balanced_order(torch.zeros(0), 0, 0)
    label = torch.tensor([0, 1, 2, 2, 2])
    with pytest.raises(UsageError, match="batch=4: an epoch in which each class appears equally often has 3 examples"):
        Batches(torch.zeros(5, 1), 4, Quantization(2), balanced=label)
