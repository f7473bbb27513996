"""Endless batches in an order that depends on a seed alone, and that a checkpoint can continue."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from ..errors import Notice, UsageError, shown
from ..quantization import Quantization
from ..random import Source, derived_seed, whole_seed
from .windows import Windows


class Batches:
    """Iterates over a data set for ever; each epoch is a new permutation, a function of (seed, epoch).

    Args:
        k: the examples as levels, `(N, ...)`, any integer type; or `Windows`, which reads them from a file by their
            rows.
        batch: examples in a batch.
        quantization: what the levels mean.
        form: how levels become `x0`: `Quantization.quantised`, `Quantization.continuous`, `Quantization.dequantised`.
        conditions: further tensors, `(N, ...)` by name.
        seed: of the order and of the dequantisation.
        shape: of one example, where the form changes it.
        names: of the classes; a checkpoint keeps them.
        alphabet: what the levels stand for, in short, where they are numbers of symbols; a checkpoint keeps it.

    Attributes:
        shape: of one example.
        position: batches given so far.
    """

    def __init__(
        self,
        k: Tensor | Windows,
        batch: int,
        quantization: Quantization,
        form: Callable[[Quantization, Tensor, Source], Tensor] = Quantization.continuous,
        conditions: dict[str, Any] | None = None,
        seed: int = 0,
        shape: tuple[int, ...] | None = None,
        names: tuple[str, ...] | None = None,
        alphabet: str | None = None,
    ) -> None:
        if not 1 <= batch <= len(k):
            raise UsageError(f"batch={batch}: give a number between 1 and the {len(k)} examples of the set")
        if wrong := [f"{name} has {len(v)}" for name, v in (conditions or {}).items() if len(v) != len(k)]:
            raise UsageError(f"the set has {len(k)} examples, and {', '.join(wrong)} rows: give one for each example")
        self.k, self.batch, self.quantization, self.form, self.conditions, self.seed = (
            k,
            batch,
            quantization,
            form,
            conditions or {},
            whole_seed(seed),
        )
        self.shape, self.names, self.alphabet, self.position = shape or tuple(k.shape[1:]), names, alphabet, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator, per_epoch, order, epoch = torch.Generator(), len(self.k) // self.batch, torch.empty(0), -1
        while True:
            if epoch != self.position // per_epoch:
                epoch = self.position // per_epoch
                order = torch.randperm(
                    len(self.k), generator=generator.manual_seed(derived_seed(self.seed, "order", epoch))
                )
            start = self.position % per_epoch * self.batch
            rows = order[start : start + self.batch]
            generator.manual_seed(derived_seed(self.seed, "dequantization", self.position))
            self.position += 1
            yield {"x0": self.form(self.quantization, self.k[rows], generator)} | {
                name: v[rows] for name, v in self.conditions.items()
            }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        state = {
            "position": self.position,
            "batch": self.batch,
            "seed": self.seed,
            "examples": len(self.k),
            "content": self.content(),
        }
        more = {"names": None if self.names is None else list(self.names), "alphabet": self.alphabet}
        return state | {key: value for key, value in more.items() if value is not None}

    def content(self) -> str:
        """A fingerprint of 16 of the examples and their conditions, whatever type they are kept in."""
        rows, found = torch.linspace(0, len(self.k) - 1, 16).long(), hashlib.sha256()
        for name, v in [("", self.k), *sorted(self.conditions.items())]:
            part = torch.as_tensor(v[rows])
            found.update(f"{name} {tuple(part.shape)}\n".encode() + part.detach().cpu().double().numpy().tobytes())
        return found.hexdigest()[:16]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint; as many examples with other values, such as of another decoder, go on with a
        `Notice`.

        Raises:
            UsageError: where batch size, seed, data, names of classes or symbols are others than the checkpoint's.
        """
        own = self.state_dict()
        compared = [key for key in ("batch", "seed", "examples", "names", "alphabet") if key in state and key in own]
        if wrong := [
            f"{key}: {shown(state[key])} there, {shown(own[key])} here" for key in compared if state[key] != own[key]
        ]:
            remedy = "give the run's, or train into another folder (--out, folder=)"
            raise UsageError(f"the data differ from the checkpoint's: {'; '.join(wrong)}: {remedy}")
        if state.get("content", own["content"]) != own["content"]:
            warn(Notice("the data have other values than the checkpoint's: they hold from here on"), stacklevel=2)
        self.position = state["position"]
