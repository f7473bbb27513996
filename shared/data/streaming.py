"""Batches of a stream, for data that fit neither memory nor a disk: shuffled in blocks, and continued exactly."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UsageError, shown
from ..quantization import Quantization
from ..random import Source, Streams, derived_seed, whole_seed
from .feeding import feed

if TYPE_CHECKING:
    from datasets import IterableDataset

T = TypeVar("T")
Row = dict[str, Any]
"""An example as the stream has it, such as an encoded image with its label."""


class Decoder(Protocol):
    """Decodes examples of a stream; it is pickled for worker processes."""

    def __call__(self, rows: Sequence[Row]) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns quantization levels or real values `(B, ...)`, and the conditions by name, each `(B, ...)`."""
        ...


class Place(NamedTuple):
    """The place in a stream where a block begins.

    Attributes:
        position: number of the first batch of the block.
        epoch: number of the epoch.
        block: number of the block in the epoch.
        shard: how many shards of the epoch were read before.
        stream: the `state_dict` of the `IterableDataset` of the shard; None at its beginning.
    """

    position: int = 0
    epoch: int = 0
    block: int = 0
    shard: int = 0
    stream: dict[str, Any] | None = None


class Task(NamedTuple):
    """What is decoded to one process's rows of a batch.

    Attributes:
        position: number of the batch.
        rows: numbers of the rows in the global batch.
        examples: their examples.
    """

    position: int
    rows: range
    examples: list[Row]


@dataclass(frozen=True)
class Decoded(Dataset[dict[str, Tensor]]):
    """Turns tasks into batches; it is all that worker processes need.

    Attributes:
        decode: decodes examples.
        quantization, form, augment: as those of `Batches`.
        seed: seed of the noise of form and augmentation.
        batch: number of examples in a global batch.
    """

    decode: Decoder
    quantization: Quantization
    form: Callable[[Any, Tensor, Source], Tensor]
    augment: Callable[[Tensor, Source], tuple[Tensor, Tensor]] | None
    seed: int
    batch: int

    def __getitem__(self, task: Task) -> dict[str, Tensor]:
        k, conditions = self.decode(task.examples)
        source = Streams(derived_seed(self.seed, "dequantization", task.position), task.rows, self.batch)
        x0 = self.form(self.quantization, k, source)
        if self.augment is not None:
            x0, conditions["augment"] = self.augment(x0, source)
        return {"x0": x0} | conditions


class StreamedBatches:
    """Iterates over a stream without end: blocks of examples in the order of the stream, each block in random order.

    In every epoch the shards of the stream are in another order; a block of examples is read, and permuted by (seed,
    epoch, block). The last examples of an epoch that do not fill a batch are left out. Every process reads the encoded
    stream and decodes its own rows alone. Noise of the form belongs to the row, as in `Batches`.

    A checkpoint keeps the `state_dict` of the `IterableDataset` at the beginning of the block and the position, so that
    a resumed run reads the block again and continues bit for bit.

    Args:
        stream: a `datasets.IterableDataset` of encoded examples, such as images that are not decoded.
        decode: decodes examples.
        batch: number of examples in a batch.
        quantization: the real numbers that the quantization levels stand for.
        shape: shape of one example.
        form, seed, names, augment: as those of `Batches`.
        block: number of encoded examples that are shuffled at a time, rounded down to whole batches; two blocks are
            held in memory.

    Attributes:
        position: number of batches yielded so far.

    Raises:
        UsageError: for a batch below 1, and a block smaller than a batch.
    """

    def __init__(
        self,
        stream: IterableDataset,
        decode: Decoder,
        batch: int,
        quantization: Quantization,
        shape: tuple[int, ...],
        form: Callable[[Any, Tensor, Source], Tensor] = Quantization.continuous,
        block: int = 4096,
        seed: int = 0,
        names: tuple[str, ...] | None = None,
        augment: Callable[[Tensor, Source], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        if batch < 1 or block < batch:
            raise UsageError(f"batch={batch}, shuffle_block={block}: give a batch of 1 or more, and a larger block")
        self.stream, self.batch, self.quantization, self.shape = stream, batch, quantization, shape
        self.block, self.seed, self.names, self.position = block // batch * batch, whole_seed(seed), names, 0
        self.decoded = Decoded(decode, quantization, form, augment, self.seed, batch)
        self.places: deque[Place] = deque([Place()])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return feed(self, range(self.batch))

    def reader(self) -> Decoded:
        """Returns what turns tasks into batches."""
        return self.decoded

    def tasks(self, rows: range) -> Iterator[Task]:
        """Yields the rows of one process of each batch, encoded, from the present position on."""
        place = self.place()
        skipped = self.position - place.position
        self.places = deque([place])
        for here, examples in one_ahead(self.blocks(place)):
            if here != place:
                self.places.append(here)
            order = permutation(len(examples), self.seed, f"order of block {here.block}", here.epoch)
            for n in range(skipped, len(examples) // self.batch):
                chosen = order[n * self.batch :][rows.start : rows.stop]
                yield Task(here.position + n, rows, [examples[row] for row in chosen])
            skipped = 0

    def blocks(self, place: Place) -> Iterator[tuple[Place, list[Row]]]:
        """Yields blocks of examples from a place on, with the places where they begin.

        Raises:
            UsageError: for a stream with fewer examples than a batch.
        """
        shards = self.stream.num_shards
        while True:
            order = permutation(shards, self.seed, "order of shards", place.epoch)
            examples: list[Row] = []
            shard, state = place.shard, place.stream
            while shard < shards:
                part = self.stream.shard(shards, order[shard])
                if state is not None:
                    part.load_state_dict(state)
                read = iter(part)
                while (example := next(read, None)) is not None:
                    examples.append(example)
                    if len(examples) == self.block:
                        yield place, examples
                        examples, count = [], place.position + self.block // self.batch
                        place = Place(count, place.epoch, place.block + 1, shard, part.state_dict())
                shard, state = shard + 1, None
            if len(examples) >= self.batch:
                yield place, examples
            elif place.block == 0:
                raise UsageError(
                    f"batch={self.batch}: the stream has {len(examples)} examples; give a number from 1 to "
                    f"{max(len(examples), 1)}"
                )
            place = Place(place.position + len(examples) // self.batch, place.epoch + 1)

    def place(self) -> Place:
        """Returns the place of the block that the next batch belongs to."""
        while len(self.places) > 1 and self.places[1].position <= self.position:
            self.places.popleft()
        return self.places[0]

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps: position, the place of the block, and facts that identify the data."""
        names = {} if self.names is None else {"names": list(self.names)}
        return {"position": self.position, "place": self.place()._asdict()} | self.identity() | names

    def identity(self) -> dict[str, Any]:
        """Returns what must not change when a run continues."""
        return {"batch": self.batch, "seed": self.seed, "shuffle_block": self.block, "shards": self.stream.num_shards}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint's position.

        Raises:
            UsageError: where the batch size, the seed, the block, the number of shards or the class names differ from
                the checkpoint's, or the checkpoint is not that of a stream.
        """
        own = self.state_dict()
        if "place" not in state:
            raise UsageError("the checkpoint's data were not streamed: leave out --data.streaming")
        if wrong := [
            f"{key}: was {shown(state.get(key))}, now {shown(own.get(key))}"
            for key in (*self.identity(), "names")
            if state.get(key) != own.get(key)
        ]:
            remedy = "give the run's own data, or train into another folder (--out, folder=)"
            raise UsageError(f"the data differ from the checkpoint's: {'; '.join(wrong)}: {remedy}")
        self.position, self.places = state["position"], deque([Place(**state["place"])])


def permutation(count: int, seed: int, purpose: str, number: int) -> list[int]:
    """Returns the numbers 0 to count - 1 in an order that depends on a seed, a purpose and a number."""
    generator = torch.Generator().manual_seed(derived_seed(seed, purpose, number))
    return torch.randperm(count, generator=generator).tolist()


def one_ahead(values: Iterator[T]) -> Iterator[T]:
    """Yields values of an endless iterator, of which a thread computes the next one meanwhile."""
    pool = ThreadPoolExecutor(1)
    try:
        waiting = pool.submit(next, values)
        while True:
            value = waiting.result()
            waiting = pool.submit(next, values)
            yield value
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
