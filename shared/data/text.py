"""Text as symbols."""

from __future__ import annotations

import re

import torch

from ..scale import Scale
from .batches import Batches
from .sources import load

ALPHABET = "abcdefghijklmnopqrstuvwxyz "


def letters(name: str = "shakespeare", *, length: int, batch: int, split: str = "train", seed: int = 0) -> Batches:
    """Endless batches `{"x0": (batch, length)}` of 27 symbols: a to z are 0 to 25, everything else is one space, 26 (as in text8).

    Args:
        name: a set with a column `text`; the bundled one is `shakespeare`.
        length: symbols in a window; windows do not overlap.
        batch: windows in a batch.
        split: `train`, `validation` or `test`.
        seed: of the order.
    """
    text = re.sub("[^a-z]+", " ", " ".join(load(name, split)["text"]).lower())
    symbols = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    symbols = torch.where(symbols == ord(" "), 26, symbols - ord("a")).to(torch.uint8)
    windows = symbols[: len(symbols) // length * length].view(-1, length)
    return Batches(windows, batch, Scale(len(ALPHABET)), Scale.quantised, seed=seed)
