"""Arrays in files, of which rows are read without loading the whole: .npy, .safetensors, .npz, .arrow and .parquet.

Nothing in a file is run: arrays of Python objects, which NumPy would unpickle, are refused.
"""

from __future__ import annotations

import json
import math
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError

ENDINGS = (".npy", ".npz", ".safetensors", ".arrow", ".parquet")
"""The endings of files with arrays."""
NAMES, LABELS = ("x", "arr_0"), ("label", "arr_1")
"""Names under which files contain the examples and their class labels; `arr_0` and `arr_1` are those of `unnoise`."""
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""The types of safetensors files that are read."""

RowIndex = Tensor | slice


class FileRows(ABC):
    """An array `(N, ...)` in a file; `array[rows]` reads some rows, a tensor of indices or a slice.

    Attributes:
        path: the file.
        shape: shape of the array.
        dtype: type of its numbers.
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: RowIndex) -> Tensor:
        index = rows if isinstance(rows, Tensor) else torch.arange(len(self))[rows]
        return self.read(torch.arange(len(self))[index].tolist())

    @abstractmethod
    def read(self, rows: list[int]) -> Tensor:
        """Returns the rows of the given numbers."""


@dataclass(frozen=True)
class FlatRows(FileRows):
    """An array whose numbers lie in a file one after the other, as in .npy and .safetensors files.

    The rows are read, not mapped, so that no limit of the address space matters, and the file is opened anew each time,
    so that worker processes can read too.

    Attributes:
        offset: the place of the first number in the file, in bytes.
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    def read(self, rows: list[int]) -> Tensor:
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        buffer = bytearray(len(rows) * size)
        view, n = memoryview(buffer), 0
        with open(self.path, "rb", buffering=0) as file:
            while n < len(rows):
                count = 1  # neighbors in the file are read at once
                while n + count < len(rows) and rows[n + count] == rows[n] + count:
                    count += 1
                file.seek(self.offset + rows[n] * size)
                filled, wanted = n * size, (n + count) * size
                while filled < wanted:
                    got = file.readinto(view[filled:wanted])
                    if not got:
                        raise UsageError(f"{self.path} ends before row {rows[n]}: it was cut off since it was opened")
                    filled += got
                n += count
        if not buffer:
            return torch.zeros((len(rows), *self.shape[1:]), dtype=self.dtype)
        return torch.frombuffer(buffer, dtype=self.dtype).reshape(len(rows), *self.shape[1:])


class ColumnRows(FileRows):
    """A column of lists of equal shape in an Arrow file, which is mapped into memory, or in a Parquet file.

    A Parquet file, which is compressed, is read as a whole.

    Args:
        path: the file.
        column: the name of the column.

    Raises:
        UsageError: for rows of different shapes or missing values.
    """

    def __init__(self, path: str, column: str) -> None:
        self.path, self.column = path, column
        self._open()

    def _open(self) -> None:
        self.parts: list[np.ndarray] = []
        shape: tuple[int, ...] | None = None
        for chunk in table_of(self.path).column(self.column).chunks:
            values, count = chunk, len(chunk)
            if not count:
                continue
            first: Any = chunk[0].as_py()
            sizes = np.shape(first)
            while hasattr(values.type, "value_type") or hasattr(values.type, "storage_type"):
                values = values.storage if hasattr(values.type, "storage_type") else values.flatten()
            if values.null_count or len(values) != count * math.prod(sizes) or shape not in (None, sizes):
                raise UsageError(
                    f"the rows of the column {self.column} in {self.path} have different shapes or missing values: "
                    "write examples of one shape"
                )
            shape = sizes
            self.parts.append(values.to_numpy(zero_copy_only=not self.path.endswith(".parquet")).reshape(count, *sizes))
        if shape is None:
            raise UsageError(f"the column {self.column} in {self.path} has no rows")
        self.first = np.cumsum([0, *map(len, self.parts)])
        self.shape = (int(self.first[-1]), *shape)
        self.dtype = torch.from_numpy(np.empty(0, self.parts[0].dtype)).dtype

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "column": self.column}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.column = state["path"], state["column"]
        self._open()

    def read(self, rows: list[int]) -> Tensor:
        out = np.empty((len(rows), *self.shape[1:]), self.parts[0].dtype)
        for n, row in enumerate(rows):
            part = int(np.searchsorted(self.first, row, side="right")) - 1
            out[n] = self.parts[part][row - int(self.first[part])]
        return torch.from_numpy(out)


@dataclass(frozen=True)
class SelectedRows:
    """Some rows of an array, such as those of a split, read when they are needed.

    Attributes:
        of: the array.
        rows: the numbers of the rows, int64 `(N,)`.
    """

    of: FileRows | Tensor
    rows: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the selection, `(N, ...)`."""
        return (len(self.rows), *self.of.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return self.of.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: RowIndex) -> Tensor:
        return self.of[self.rows[rows]]


Array = Tensor | FileRows | SelectedRows


def arrays_in(path: str, name: str | None = None) -> tuple[FileRows | Tensor, Tensor | None]:
    """Returns the examples in a file, and their class labels or None.

    Args:
        path: a file with one of `ENDINGS`.
        name: the name of the examples in it; None for `x` or `arr_0`, or the only array of real numbers. Labels are
            `label` or `arr_1`.

    Raises:
        UsageError: for a file that cannot be read, of another ending, without such an array, or with arrays that are
            not real numbers.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise UsageError(f"{path}: arrays are read from files that end in {', '.join(ENDINGS)}")
    try:
        if ending == ".npy":
            found: dict[str, Any] = {"x": of_npy(path)}
        elif ending == ".npz":
            found = of_npz(path)
        elif ending == ".safetensors":
            found = of_safetensors(path)
        else:
            found = dict.fromkeys(schema_of(path).names)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UsageError(f"{path} cannot be read ({first_line(error)}): write the file again") from error
    table = ending in (".arrow", ".parquet")
    real = [n for n, v in found.items() if (is_real_column(path, n) if table else v.dtype.is_floating_point)]
    chosen = name or next((n for n in NAMES if n in found), real[0] if len(real) == 1 else None)
    if chosen is None or chosen not in found:
        raise UsageError(
            f"{path} has {', '.join(found) or 'no arrays'}, and not {name or 'x'}: name the examples with --data.array"
        )
    array = ColumnRows(path, chosen) if table else found[chosen]
    if not array.dtype.is_floating_point or len(array.shape) < 2 or 0 in array.shape:
        raise UsageError(
            f"{chosen} in {path} is {str(array.dtype).removeprefix('torch.')} of shape {tuple(array.shape)}: give real "
            "numbers (float16, float32, float64) of shape (N, ...), with an example in each row"
        )
    label = next((n for n in LABELS if n in found and n != chosen), None)
    return array, None if label is None else labels_of(path, label, found[label], table, len(array))


def labels_of(path: str, name: str, value: Any, table: bool, count: int) -> Tensor:
    """Returns class labels, int64 `(N,)`.

    Raises:
        UsageError: for labels that are not one whole number for each example.
    """
    label = torch.from_numpy(np.array(table_of(path).column(name).to_numpy())) if table else value[:]
    if label.ndim != 1 or len(label) != count or label.dtype.is_floating_point or label.dtype == torch.bool:
        raise UsageError(
            f"{name} in {path} is {str(label.dtype).removeprefix('torch.')} of shape {tuple(label.shape)}: give one "
            f"whole number for each of the {count:,} examples"
        )
    return label.long()


def of_npy(path: str) -> FlatRows:
    """Returns the array of a .npy file.

    Raises:
        ValueError: for a file that is not one, cut off, or of Python objects, and for an order of bytes or of axes
            that rows cannot be read from.
    """
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError("it contains Python objects, which are not read")
    if (fortran and len(shape) > 1) or dtype.byteorder == ">":
        raise ValueError("its numbers are not in C order: save np.ascontiguousarray(x, '<f4')")
    return flat(path, tuple(map(int, shape)), torch.from_numpy(np.empty(0, dtype)).dtype, offset)


def of_npz(path: str) -> dict[str, Tensor]:
    """Returns the arrays of numbers in a .npz file by name, in memory.

    Raises:
        ValueError: for a file that is not one, cut off, or with Python objects.
    """
    found: dict[str, Tensor] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    values = np.lib.format.read_array(file, allow_pickle=False)
                if values.dtype.kind in "fiu":
                    found[name.removesuffix(".npy")] = torch.from_numpy(values)
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    return found


def of_safetensors(path: str) -> dict[str, FlatRows]:
    """Returns the arrays of a safetensors file by name.

    Raises:
        ValueError: for a file that is not one, or cut off.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(10**8, Path(path).stat().st_size):
            raise ValueError("it has no header of a safetensors file")
        header = json.loads(file.read(size))
    return {
        name: flat(path, tuple(entry["shape"]), TYPES[entry["dtype"]], 8 + size + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] in TYPES
    }


def flat(path: str, shape: tuple[int, ...], dtype: torch.dtype, offset: int) -> FlatRows:
    """Returns an array in a file.

    Raises:
        ValueError: for a file that is too short for it.
    """
    if Path(path).stat().st_size < offset + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"it is cut off: it is too short for an array of shape {shape}")
    return FlatRows(path, shape, dtype, offset)


def table_of(path: str) -> Any:
    """Returns the table of an Arrow file, mapped into memory, or of a Parquet file.

    Raises:
        UsageError: for a file that is not one.
    """
    import pyarrow as pa
    import pyarrow.parquet

    try:
        if path.endswith(".parquet"):
            return pyarrow.parquet.read_table(path)
        source = pa.memory_map(path)
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} cannot be read ({first_line(error)}): write the file again") from error


def schema_of(path: str) -> Any:
    """Returns the names and types of the columns of an Arrow or Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(path) if path.endswith(".parquet") else table_of(path).schema
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} cannot be read ({first_line(error)}): write the file again") from error


def is_real_column(path: str, column: str) -> bool:
    """Returns whether a column has lists of real numbers."""
    import pyarrow as pa

    kind = schema_of(path).field(column).type
    nested = False
    while hasattr(kind, "value_type") or hasattr(kind, "storage_type"):
        kind, nested = getattr(kind, "storage_type", None) or kind.value_type, True
    return nested and pa.types.is_floating(kind)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0]
