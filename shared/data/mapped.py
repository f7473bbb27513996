"""Decoded images in an Arrow file, of which rows are read when they are needed."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from ..errors import UsageError
from .array_files import FileRows

VERSION = 1
"""Version of the files; those of another version are written again."""
BLOCK = 2**20
"""Bytes of the images of a record batch, about."""
MAGIC = b"ARROW1"


@dataclass(frozen=True)
class MappedRows(FileRows):
    """Images, uint8 `(N, C, H, W)`, in an Arrow file of `ImageWriter`; `images[rows]` reads some.

    The rows are read, not mapped, so that no limit of the address space matters, and the file is opened anew each time,
    so that worker processes can read too.

    Attributes:
        path: the file.
        shape: shape of all images.
        starts: the place in the file of each record batch's first image, in bytes.
        block: the number of images in each record batch but the last.
        notes: how the images were converted.
    """

    path: str
    shape: tuple[int, ...]
    starts: tuple[int, ...]
    block: int
    notes: tuple[str, ...] = ()
    dtype: torch.dtype = torch.uint8

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        if isinstance(rows, slice):
            return self.read(list(range(*rows.indices(len(self)))))
        return self.read([row + len(self) * (row < 0) for row in rows.tolist()])

    def read(self, rows: list[int]) -> Tensor:
        """Returns the images of the given numbers.

        Raises:
            UsageError: for a file that was removed or cut off since it was opened.
        """
        size = int(np.prod(self.shape[1:]))
        buffer = bytearray(len(rows) * size)
        view, places = memoryview(buffer), [self.place(row, size) for row in rows]
        try:
            with open(self.path, "rb", buffering=0) as file:
                n = 0
                while n < len(rows):
                    count = 1  # neighbors in the file are read at once
                    while n + count < len(rows) and places[n + count] == places[n] + count * size:
                        count += 1
                    file.seek(places[n])
                    filled, wanted = n * size, (n + count) * size
                    while filled < wanted:
                        got = file.readinto(view[filled:wanted])
                        if not got:
                            raise UsageError(f"{self.path} was cut off since it was opened: start again")
                        filled += got
                    n += count
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read ({error.strerror}): start again") from error
        if not buffer:
            return torch.zeros((len(rows), *self.shape[1:]), dtype=torch.uint8)
        return torch.frombuffer(buffer, dtype=torch.uint8).reshape(len(rows), *self.shape[1:])

    def place(self, row: int, size: int) -> int:
        """Returns the place of an image of `size` bytes in the file."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.starts[row // self.block] + row % self.block * size


class ImageWriter:
    """Writes images into an Arrow file, an IPC file of the columns `pixels` and `notes`.

    Args:
        path: the file.
        shape: shape of an image, `(C, H, W)`.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        import pyarrow as pa

        self.path, self.shape, self.size = path, shape, int(np.prod(shape))
        about = json.dumps({"version": VERSION, "shape": shape})
        self.schema = pa.schema(
            [pa.field("pixels", pa.binary(self.size), nullable=False), ("notes", pa.string())],
            metadata={"unnoise": about},
        )
        self.waiting: list[np.ndarray] = []
        self.sink = pa.OSFile(str(path), "wb")
        self.file = pa.ipc.new_file(self.sink, self.schema)

    def add(self, image: np.ndarray) -> None:
        """Writes an image, uint8 `(C, H, W)`."""
        if (len(self.waiting) + 1) * self.size > BLOCK and self.waiting:
            self.flush()
        self.waiting.append(image)

    def flush(self, notes: str | None = None) -> None:
        """Writes the images that were added as a record batch, with `notes` beside the last of them."""
        import pyarrow as pa

        count = len(self.waiting)
        buffer = pa.py_buffer(np.ascontiguousarray(np.stack(self.waiting)))
        pixels = pa.Array.from_buffers(pa.binary(self.size), count, [None, buffer])
        texts = pa.array([*[None] * (count - 1), notes], pa.string())
        self.file.write_batch(pa.record_batch([pixels, texts], schema=self.schema))
        self.waiting = []

    def finish(self, notes: list[str]) -> None:
        """Writes the last images, the notes on how all were converted, and the footer."""
        self.flush(json.dumps(notes))
        self.file.close()
        self.sink.close()

    def close(self) -> None:
        """Closes the file, finished or not."""
        self.sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def mapped_rows(path: Path) -> MappedRows:
    """Opens a file of `ImageWriter`.

    Raises:
        ValueError: for a file that is not a whole one, with the reason.
    """
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
            about = json.loads((file.schema.metadata or {}).get(b"unnoise", b"{}"))
            if about.get("version") != VERSION:
                raise ValueError("it is of another version")
            shape = tuple(int(n) for n in about["shape"])
            if file.schema.field("pixels").type != pa.binary(int(np.prod(shape))):
                raise ValueError("its column of pixels has another type")
            first, last = file.get_batch(0), file.get_batch(file.num_record_batches - 1)
            notes = json.loads(last.column("notes")[len(last) - 1].as_py())
            starts, count = record_batches(path), len(first) * (file.num_record_batches - 1) + len(last)
    except (pa.ArrowException, OSError, KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error
    found = MappedRows(str(path), (count, *shape), starts, len(first), tuple(notes))
    ends = [part.column("pixels")[row].as_py() for part, row in ((first, 0), (last, len(last) - 1))]
    if [row.numpy().tobytes() for row in found.read([0, count - 1])] != ends:
        raise ValueError("its images do not lie where its footer says")
    return found


def record_batches(path: Path) -> tuple[int, ...]:
    """Returns the place of the first column's values of each record batch in an Arrow file, in bytes.

    The footer of the format, a flatbuffer, lists the place of each record batch and the length of its metadata, which
    the values of the columns follow. The first column has no missing values, and so no other buffer lies before it.
    """
    with path.open("rb") as file:
        end = file.seek(0, 2) - len(MAGIC) - 4
        file.seek(end)
        (length,) = struct.unpack("<i", file.read(4))
        file.seek(end - length)
        footer = file.read(length)
    (root,) = struct.unpack_from("<I", footer)
    fields = root - struct.unpack_from("<i", footer, root)[0]
    vector = root + struct.unpack_from("<H", footer, fields + 4 + 2 * 3)[0]  # the fourth field, recordBatches
    vector += struct.unpack_from("<I", footer, vector)[0]
    (count,) = struct.unpack_from("<I", footer, vector)
    blocks = [struct.unpack_from("<qi4xq", footer, vector + 4 + 24 * n) for n in range(count)]
    return tuple(place + metadata for place, metadata, _ in blocks)
