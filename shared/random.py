"""Random numbers from an explicit source: a `torch.Generator`, or `Streams`.

`Streams` is a counter-based source: the noise of row i depends only on (seed, indices[i], number of the call), so
sample i of a run is the same for every batch size, world size and rank.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from .blocks import row_by_row
from .errors import UsageError, shown
from .serialization import serializable
from .tensors import exact

# Odd constants of SplitMix64 (Steele, Lea, Flood 2014) as signed 64-bit integers.
_GOLDEN, _MIX1, _MIX2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # int64 shifts repeat the sign bit: mask it


def _scrambled(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _MIX1
    x = (x ^ _shifted(x, 27)) * _MIX2
    return x ^ _shifted(x, 31)


Function = TypeVar("Function", bound=Callable[..., Any])


def outside_graphs(function: Function) -> Function:
    """Marks a function that `torch.compile` leaves to Python: in a graph, each seed would be compiled anew.

    The compiler, which takes as long to import as torch, is imported only where something is compiled.
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def outside(*arguments: Any, **options: Any) -> Any:
        if not torch.compiler.is_compiling():
            return function(*arguments, **options)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*arguments, **options)

    return cast(Function, outside)


def whole_seed(seed: Any) -> int:
    """Returns a seed as an int, also from a NumPy integer or an integer tensor of one element.

    Raises:
        UsageError: for anything but a whole number from -2^63 to 2^64 - 1, the range of `torch.Generator.manual_seed`;
            as there, a negative seed n means n + 2^64.
    """
    try:
        number = None if isinstance(seed, bool) else operator.index(seed)
    except (TypeError, ValueError):
        number = None
    if number is None or not -(1 << 63) <= number < 1 << 64:
        raise UsageError(f"seed={shown(seed)}: give a whole number of at most 64 bits, from 0 to 2**63 - 1")
    return number


def derived_seed(seed: int, purpose: str, number: int = 0) -> int:
    """Returns the seed of one of a run's generators, a hash of the run's seed, a purpose and a number.

    Generators with the same seed draw the same numbers: without the purpose, dropout would be correlated with the
    training times. PyTorch's CPU generator uses the lower 32 bits of the result.

    Args:
        seed: the run's seed.
        purpose: what the generator is for, such as "dropout" or "noise".
        number: of the step, epoch or batch.

    Returns:
        An integer from 0 to 2^63 - 1.

    Raises:
        UsageError: for a seed that is not a whole number of at most 64 bits.
    """
    digest = hashlib.blake2b(f"{purpose}:{whole_seed(seed)}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Streams:
    """A source of random numbers with an independent stream for each row of a batch.

    Given as `generator` in place of a `torch.Generator`. The numbers of row i depend on the seed, `indices[i]` and the
    number of the call alone, which counts the draws of this object from 1.

    Args:
        seed: the run's seed.
        indices: the global indices of the samples in this batch, one for each row.
        batch: for a part of a batch that is divided, over processes or into micro-batches, the number of examples in
            the whole batch, of which the rows `indices` are these; None otherwise.

    Raises:
        UsageError: for a seed that is not a whole number of at most 64 bits, and for indices that are not a
            one-dimensional sequence of whole numbers.
    """

    def __init__(self, seed: int, indices: Sequence[int] | Tensor, batch: int | None = None) -> None:
        number = whole_seed(seed)
        self.seed = number - (1 << 64) if number >= 1 << 63 else number
        self.indices, self.batch, self.calls = checked_indices(indices), batch, 0
        self.copies = {self.indices.device: self.indices}

    def whole(self) -> Streams:
        """Returns the source of all rows of the batch that these are a part of, at the same number of the call."""
        assert self.batch is not None, "only a part of a batch has a whole"
        source = Streams(self.seed, torch.arange(self.batch, device=self.indices.device))
        source.calls = self.calls
        return source

    def on(self, device: torch.device) -> Tensor:
        """Returns the indices on a device, where they are kept; nothing waits for it if they were given on the CPU."""
        if device not in self.copies:
            self.copies[device] = self.indices.to(device, non_blocking=self.indices.device.type == "cpu")
        return self.copies[device]

    def keys(self, device: torch.device | None = None) -> Tensor:
        """Returns a hash of the seed and the index of each row, int64 `(B,)`; None for the device of the indices."""
        indices = self.indices if device is None else self.on(device)
        seed = torch.full((), self.seed, dtype=torch.int64, device=indices.device)
        return _scrambled(_scrambled(seed * _GOLDEN + 1) + indices * _GOLDEN)

    @outside_graphs
    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns uniform numbers on the open interval (0, 1), of the given shape `(len(indices), ...)`.

        Raises:
            UsageError: if the first size of the shape is not the number of indices.
        """
        if device.type == "mps":  # it has no float64 and no inverse of the normal distribution function
            return self.uniform(shape, dtype, torch.device("cpu")).to(device)
        rows, per_row = shape[0], 1
        for size in shape[1:]:
            per_row *= size
        if rows != len(self.indices):
            raise UsageError(
                f"{rows} rows of noise are needed, but Streams has indices for {len(self.indices)} samples: "
                "give one index for each row"
            )
        self.calls += 1
        call = torch.full((), self.calls, dtype=torch.int64, device=device)
        key = _scrambled(self.keys(device) + call * _GOLDEN)
        word = _scrambled(key[:, None] + (1 + torch.arange(per_row, device=device)) * _GOLDEN)
        bits = 52 if dtype == torch.float64 else 23  # (n + 1/2) / 2^bits is then exact, and neither 0 nor 1
        real = torch.float64 if dtype == torch.float64 else torch.float32
        return ((_shifted(word, 64 - bits).to(real) + 0.5) / 2**bits).to(dtype).reshape(tuple(shape))

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns standard normal numbers of the given shape, by the inverse of the distribution function.

        Raises:
            UsageError: as `uniform` does.
        """
        if device.type == "mps":
            return self.normal(shape, dtype, torch.device("cpu")).to(device)
        real = torch.float64 if dtype == torch.float64 else torch.float32
        return torch.special.ndtri(self.uniform(shape, real, device)).to(dtype)


def row_words(keys: Tensor, layers: int) -> Tensor:
    """Returns a random word of 32 bits for each of several layers and each row, int32 `(layers, B)`.

    `keys` are hashes of the rows, int64 `(B,)`, from `Streams.keys`.
    """
    layer = torch.arange(layers, device=keys.device)[:, None] * _GOLDEN
    return (_scrambled(keys + layer) >> 32).to(torch.int32)


def place_words(layer: int, count: int, device: torch.device) -> Tensor:
    """Returns a random word of 32 bits for each of `count` places in an example, int32 `(count,)`."""
    place = torch.arange(count, device=device) + (layer << 40)
    return (_scrambled(place * _GOLDEN) >> 32).to(torch.int32)


def kept(rows: Tensor, places: Tensor, p: float) -> Tensor:
    """Returns which values dropout keeps: each independently with probability 1 - p, bool, `(B, places)`.

    The word of the row and that of the place are combined by the first half of the finalizer of MurmurHash3 (Appleby
    2011): few operations for each value, in the arithmetic of 32-bit integers.

    Args:
        rows: a random word for each row, int32 `(B,)`, from `row_words`.
        places: a random word for each place in an example, int32, from `place_words`.
        p: the probability that a value is dropped, in [0, 1).
    """
    word = (rows[:, None] ^ places) * -2048144789
    word = (word ^ ((word >> 13) & 0x7FFFF)) * -1028477387
    return word >= round(p * 2**32) - 2**31


def checked_indices(indices: Sequence[int] | Tensor) -> Tensor:
    """Returns indices of samples as int64 `(B,)`.

    Raises:
        UsageError: for anything but a one-dimensional sequence of whole numbers.
    """
    try:
        found = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = torch.tensor(0.5)
    if found.ndim != 1 or (
        found.numel() and (found.dtype == torch.bool or found.is_floating_point() or found.is_complex())
    ):
        raise UsageError(f"indices={shown(indices)}: give one whole number for each sample, such as range(64)")
    return found.to(torch.int64)


Source: TypeAlias = torch.Generator | Streams | None
"""A source of random numbers; None for torch's global generator."""


def uniform(
    shape: Sequence[int],
    source: Source = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Returns uniform numbers on [0, 1) of the given shape, from torch's global generator if there is no source.

    The default device is that of a `torch.Generator`, and the CPU for `Streams` and without a source.
    """
    if isinstance(source, Streams):
        return source.uniform(shape, dtype, torch.device(device or "cpu"))
    home = source.device if isinstance(source, torch.Generator) else home_of(source, device)
    return torch.rand(tuple(shape), generator=source, dtype=dtype, device=home).to(device or home)


def normal(
    shape: Sequence[int],
    source: Source = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Returns standard normal numbers of the given shape, from torch's global generator if there is no source.

    The default device is that of a `torch.Generator`, and the CPU for `Streams` and without a source.
    """
    if isinstance(source, Streams):
        return source.normal(shape, dtype, torch.device(device or "cpu"))
    home = source.device if isinstance(source, torch.Generator) else home_of(source, device)
    return torch.randn(tuple(shape), generator=source, dtype=dtype, device=home).to(device or home)


def home_of(source: Source, device: torch.device | str | None) -> torch.device:
    """Returns the device to draw on: that of the `torch.Generator`, or without a source the given one, else the CPU.

    Raises:
        UsageError: for an object that is not a source of random numbers.
    """
    if source is not None and not isinstance(source, torch.Generator):
        raise UsageError(f"generator={source!r}: give torch.Generator().manual_seed(0), or Streams(seed, indices)")
    return torch.device(device or "cpu") if source is None else source.device


@serializable("shared.normal_like")
def normal_like(x: Tensor, source: Source = None) -> Tensor:
    """Returns standard normal numbers of the shape, dtype and device of `x`."""
    return normal(x.shape, source, dtype=x.dtype, device=x.device)


@serializable("shared.rademacher_like")
def rademacher_like(x: Tensor, source: Source = None) -> Tensor:
    """Returns signs, +1 or -1 with equal probability, of the shape, dtype and device of `x`."""
    return torch.where(uniform(x.shape, source, dtype=x.dtype, device=x.device) < 0.5, -1.0, 1.0).to(x)


@serializable("shared.categorical")
def categorical(p: Tensor, source: Source = None) -> Tensor:
    """Samples categories from `p`, shape `(..., K)`, by inverting its distribution function; p need not sum to one.

    p contains probabilities, not logits. One uniform number is drawn for each position. A category of probability zero
    is never sampled.

    Returns:
        int64, shape `(...)`.
    """
    return quantile(p, 1.0 - uniform(p.shape[:-1], source, dtype=torch.float64, device=p.device))


def quantile(p: Tensor, u: Tensor) -> Tensor:
    """Returns the category of `p` at the quantile u in (0, 1], int64 `(...)`; never one of probability zero.

    The distribution function is summed in float64: float32 would cut off the tail of a large vocabulary, and lower the
    entropy of the samples (Zheng et al. 2024, for Gumbel noise).

    Args:
        p: probabilities, `(..., K)`; they need not sum to one.
        u: `(...)`, a share of the sum of p.
    """
    return row_by_row(_quantile, p, u)


def _quantile(p: Tensor, u: Tensor) -> Tensor:
    cumulative = exact(p).cumsum(-1).contiguous()
    target = u[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target).squeeze(-1).clamp(max=p.shape[-1] - 1)


def row_quantile(cumulative: Tensor, row: Tensor, u: Tensor) -> Tensor:
    """Returns `quantile(p[row], u)`, int64 `(...)`, from `p.cumsum(-1)`, without a copy of the rows, by bisection.

    Args:
        cumulative: `(n, K)`, the sums of n distributions, float64.
        row: `(...)`, int64, which of them to draw from.
        u: `(...)`, a share of the sum of p, in (0, 1].
    """
    size, flat = cumulative.shape[1], cumulative.reshape(-1)
    start = row * size
    target, found = u * flat[start + (size - 1)], torch.zeros_like(row)
    for bit in reversed(range(size.bit_length())):
        after = found + 2**bit
        found = torch.where(flat[start + (after - 1).clamp(max=size - 1)] < target, after, found)
    return found.clamp(max=size - 1)
