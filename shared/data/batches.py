"""Endless batches in an order that depends on a seed alone, so that a checkpoint can continue it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from warnings import warn

import torch
from torch import Tensor

from ..errors import Notice, UsageError, shown
from ..quantization import Quantization
from ..random import Source, Streams, derived_seed, whole_seed
from ..standardization import Standardization
from .balance import balanced_order
from .tokenizers import current_fingerprint


class Examples(Protocol):
    """Examples of which rows are read when they are needed: a tensor, or an array in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all examples, `(N, ...)`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Tensor: ...


class Batches:
    """Iterates over a data set without end; each epoch is a new permutation, a function of (seed, epoch).

    Yields dicts `{"x0": (batch, ...)}`, with the conditions by name. The last examples of an epoch that do not fill a
    batch are left out.

    Args:
        k: the examples as quantization levels or token ids, `(N, ...)`, any integer type, or real-valued: a tensor, or
            an array in a file such as `Windows`, of which the rows of a batch are read when needed.
        batch: number of examples in a batch.
        quantization: the real numbers that the quantization levels stand for, or mean and standard deviation of
            real-valued data.
        form: how quantization levels become `x0`, `(quantization, k, generator) -> x0`: `Quantization.quantized`
            (int64), `Quantization.continuous` or `Quantization.dequantized` (float32, with uniform noise).
        conditions: further tensors by name, each `(N, ...)`, such as class labels.
        seed: seed of the order and of the dequantization noise.
        shape: shape of one example, where `form` changes it.
        names: names of the classes; a checkpoint keeps them.
        tokenizer: for token ids, the `fingerprint` of their tokenizer; a checkpoint keeps it.
        augment: transforms `x0`, such as `Augmentation`, `(x0, generator) -> (x0, labels)`; the labels are the
            condition `augment`. Its random numbers belong to the row, as those of `form`.
        balanced: class labels by which examples are drawn so that each class appears equally often, int64 `(N,)`;
            see `balanced_order`. None for each example once in an epoch.

    Attributes:
        shape: shape of one example.
        position: number of batches yielded so far.
        per_epoch: number of batches in an epoch.

    Raises:
        UsageError: for a batch that is larger than the data set or an epoch, or conditions of another number of
            examples.
    """

    def __init__(
        self,
        k: Examples,
        batch: int,
        quantization: Quantization | Standardization,
        form: Callable[[Any, Tensor, Source], Tensor] = Quantization.continuous,
        conditions: dict[str, Any] | None = None,
        seed: int = 0,
        shape: tuple[int, ...] | None = None,
        names: tuple[str, ...] | None = None,
        tokenizer: str | None = None,
        augment: Callable[[Tensor, Source], tuple[Tensor, Tensor]] | None = None,
        balanced: Tensor | None = None,
    ) -> None:
        if not 1 <= batch <= len(k):
            raise UsageError(f"batch={batch}: the data set has {len(k)} examples; give a number from 1 to {len(k)}")
        if wrong := [f"{name} has {len(v)}" for name, v in (conditions or {}).items() if len(v) != len(k)]:
            raise UsageError(
                f"the data set has {len(k)} examples, and {', '.join(wrong)} rows: give one row for each example"
            )
        self.k, self.batch, self.quantization, self.form = k, batch, quantization, form
        self.conditions, self.seed = conditions or {}, whole_seed(seed)
        self.shape, self.names, self.tokenizer, self.position = shape or tuple(k.shape[1:]), names, tokenizer, 0
        self.augment, self.balanced = augment, balanced
        self.ordered: tuple[int, Tensor] = (-1, torch.empty(0))
        self.per_epoch = len(self.order(0)) // batch
        if not self.per_epoch:
            raise UsageError(
                f"batch={batch}: an epoch in which each class appears equally often has {len(self.order(0))} examples: "
                "give a smaller batch"
            )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            self.position += 1
            yield self.at(self.position - 1, range(self.batch))

    def at(self, position: int, rows: range) -> dict[str, Tensor]:
        """Returns rows of the batch number `position`, counted from 0: all of them, or those of one process.

        Noise of the form belongs to the row: it depends on (seed, position, row) alone.
        """
        chosen = self.order(position // self.per_epoch)[position % self.per_epoch * self.batch :][
            rows.start : rows.stop
        ]
        source = Streams(derived_seed(self.seed, "dequantization", position), rows, self.batch)
        x0, more = self.form(self.quantization, self.k[chosen], source), {}
        if self.augment is not None:
            x0, more["augment"] = self.augment(x0, source)
        return {"x0": x0} | {name: v[chosen] for name, v in self.conditions.items()} | more

    def order(self, epoch: int) -> Tensor:
        """Returns the order of the examples in an epoch, which is kept until the next epoch."""
        if self.ordered[0] != epoch and self.balanced is not None:
            self.ordered = epoch, balanced_order(self.balanced, self.seed, epoch)
        elif self.ordered[0] != epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
            self.ordered = epoch, torch.randperm(len(self.k), generator=generator)
        return self.ordered[1]

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps: the position, and facts that identify the data."""
        state = {
            "position": self.position,
            "batch": self.batch,
            "seed": self.seed,
            "examples": len(self.k),
            "content": self.content(),
        }
        optional = {"names": None if self.names is None else list(self.names), "tokenizer": self.tokenizer}
        return state | {key: value for key, value in optional.items() if value is not None}

    def content(self) -> str:
        """Returns a fingerprint of 16 of the examples and their conditions, 16 hexadecimal digits.

        It does not depend on the stored dtype.
        """
        last, found = len(self.k) - 1, hashlib.sha256()
        rows = torch.linspace(0, last, 16).long().clamp(max=last)  # float32 rounds a last row above 2^24 up
        for name, v in [("", self.k), *sorted(self.conditions.items())]:
            part = torch.as_tensor(v[rows])
            found.update(f"{name} {tuple(part.shape)}\n".encode() + part.detach().cpu().double().numpy().tobytes())
        return found.hexdigest()[:16]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint's position.

        Data of the same size whose values differ, such as images of another decoder, raise a `Notice` alone.

        Raises:
            UsageError: where batch size, seed, number of examples, class names or tokenizer differ from the
                checkpoint's.
        """
        state, own = current_state(state), self.state_dict()
        compared = [key for key in ("batch", "seed", "examples", "names", "tokenizer") if key in state and key in own]
        if wrong := [
            f"{key}: was {shown(state[key])}, now {shown(own[key])}" for key in compared if state[key] != own[key]
        ]:
            remedy = "give the run's own data, or train into another folder (--out, folder=)"
            raise UsageError(f"the data differ from the checkpoint's: {'; '.join(wrong)}: {remedy}")
        if state.get("content", own["content"]) != own["content"]:
            warn(
                Notice("the data have other values than the checkpoint's, and training continues on the new ones"),
                stacklevel=2,
            )
        self.position = state["position"]


def current_state(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the state of batches in today's words; earlier versions wrote the tokenizer as `alphabet`."""
    if not isinstance(state.get("alphabet"), str):
        return state
    rest = {key: value for key, value in state.items() if key != "alphabet"}
    return rest | {"tokenizer": current_fingerprint(state["alphabet"])}
