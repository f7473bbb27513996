"""Reads checkpoint files without running code in them: safetensors, PyTorch's two formats, and pickled networks."""

from __future__ import annotations

import contextlib
import io
import json
import math
import mmap
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ...shared.errors import UsageError
from .pickle_names import Refused
from .pickles import LARGEST, LONGEST, Pickle, Record, outside

Makers = Mapping[str, Callable[..., Any]]
READ = "supported are safetensors, files of torch.save, EDM's pickles and diffusers folders"
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
HEADER = 100_000_000
"""The longest header that safetensors allows, in bytes."""
DEEPEST = 100
"""The deepest nesting of modules in a network."""
MODULES = 100_000
"""The most modules in a network. Shared ones count each time: a few that share each other could have no end."""
STORAGES = {
    "UntypedStorage": torch.uint8,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
DTYPES = {
    f"{d}": d
    for d in (*STORAGES.values(), torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2)
}
ARRAY = re.compile(r"[<>=]?(b1|[iu][1248]|f[248]|c8|c16)")


def read(path: Path | str) -> Any:
    """Returns the contents of a file, whose format is recognized by its first bytes.

    Args:
        path: a safetensors file, a file of `torch.save` (zip files, and the format before version 1.6), or a pickle.

    Returns:
        dictionaries, lists, tuples (also for sets), numbers, strings, bytes, None, tensors on the CPU, and a `Record`
        for every object of another class.

    Raises:
        UsageError: where the file does not exist, is truncated or damaged, has another format, or refers to code. No
            code is run.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name the file in it ({READ})")
    if not path.is_file():
        raise UsageError(f"there is no file {path}: download it first, or check the name")
    try:
        return content(path)
    except Refused as error:
        raise UsageError(f"{path} {error}") from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror or error}): check its permissions and the disk"
        ) from error
    except Exception as error:  # a file may contain any bytes, so any error is possible
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise UsageError(
            f"{path} is truncated or damaged (it has {path.stat().st_size:,} bytes; {reason}): download it again"
        ) from error


def json_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        UsageError: for a file that cannot be read or does not contain an object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} does not contain a JSON object: download it again")
    return value


def state_dict(record: Record) -> dict[str, Tensor]:
    """Returns the tensors of a pickled network by name, as `torch.nn.Module.state_dict` does.

    Raises:
        UsageError: where the record is not a network.
    """
    if not isinstance(record, Record) or not isinstance(record.state.get("_modules"), dict):
        what = f"a {record.module}.{record.name}" if isinstance(record, Record) else f"a {type(record).__name__}"
        raise UsageError(f"{what} is not a network (it has no `_modules`): use the entry of the file that is")
    return dict(walked(record, "", DEEPEST, iter(range(MODULES))))


def walked(record: Record, prefix: str, depth: int, left: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    """Yields a module's parameters, its persistent buffers, and those of its modules, in this order.

    Args:
        record: the module.
        prefix: of the names.
        depth: how many levels of modules may follow.
        left: has one item for each further module that is allowed.
    """
    if next(left, None) is None:
        raise UsageError(f"the network has more than {MODULES:,} modules: get the file from its authors")
    passing = record.state.get("_non_persistent_buffers_set", ())
    parts = [record.state.get(part, {}) for part in ("_parameters", "_buffers", "_modules")]
    if not all(isinstance(p, dict) for p in parts) or not isinstance(passing, tuple) or not depth:
        raise UsageError(
            f"{prefix.removesuffix('.') or 'the network'} ({record.name}) is not a module, "
            f"or is nested more than {DEEPEST} deep: get the file from its authors"
        )
    parameters, buffers, modules = parts
    for name, held in [*parameters.items(), *((k, v) for k, v in buffers.items() if k not in passing)]:
        if isinstance(held, Tensor):
            yield f"{prefix}{name}", held
        elif held is not None:
            raise UsageError(
                f"{prefix}{name} in the network is a {type(held).__name__}, not a tensor: get the file from its authors"
            )
    for name, held in modules.items():
        if isinstance(held, Record):
            yield from walked(held, f"{prefix}{name}.", depth - 1, left)
        elif held is not None:
            raise UsageError(
                f"{prefix}{name} in the network is a {type(held).__name__}, not a module: get the file from its authors"
            )


def content(path: Path) -> Any:
    """Returns the contents of a file; errors do not name it."""
    if not path.stat().st_size:
        raise Refused("is empty: download it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        start = stream[:64]
        if start.startswith(b"version https://git-lfs"):
            raise Refused(
                "is a git-lfs pointer instead of the file: fetch it with `git lfs pull`, or download it from its page"
            )
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= HEADER:
            return load_file(path)
        if start.startswith(b"PK\x03\x04"):
            return of_zip(file, VALUES)
        if start[:1] == b"\x80" and start[1:2] <= b"\x05":
            return of_pickle(stream, VALUES)
    raise Refused(f"has an unknown format (it begins with {start[:12]!r}): {READ}")


def of_pickle(stream: mmap.mmap | io.BytesIO, makers: Makers) -> Any:
    """Returns the contents of a plain pickle, or of a PyTorch file before version 1.6, which is several pickles."""
    pickle = Pickle(stream)
    several = type(pickle.root) is int and pickle.root == MAGIC
    return of_row(stream, makers) if several else pickle.value(outside, makers)


def of_row(stream: mmap.mmap | io.BytesIO, makers: Makers) -> Any:
    """Returns the contents of a PyTorch file before version 1.6.

    It consists of version, system, objects, the keys of the storages, and the storages in that order.
    """
    version, system = Pickle(stream).root, Pickle(stream).root
    if version != PROTOCOL or not system["little_endian"]:
        raise Refused(
            "has another version than PyTorch's 1001, or was written on a big-endian machine; neither is supported: "
            "save it as safetensors"
        )
    objects = Pickle(stream)
    kinds = {plain(r.key[2]): r.key[1] for r in objects.references if r.key[0] == "storage"}
    storages: dict[Any, Tensor] = {}
    for key in map(plain, Pickle(stream).root):
        numel = int.from_bytes(stream.read(8), "little", signed=True)
        storages[key] = flat(stream.read(max(numel, 0) * kind_of(kinds[key]).itemsize), kinds[key], numel)

    def storage(key: Any) -> Any:
        if key[0] == "module":  # a class with its source code, which is not used
            return Record(key[1].name, key[1].module, {})
        _, kind, name, _, numel, view = key
        whole = storages[plain(name)]
        if kind_of(kind) != whole.dtype or numel != whole.numel():
            raise ValueError(f"two sizes of the storage {name}")
        return whole if view is None else strided(whole, view[1], (view[2],), (1,))

    return objects.value(storage, makers)


def plain(key: Any) -> Any:
    """Returns a storage's key, a string or number; looking up or writing out any other may take forever."""
    if not isinstance(key, str) and not (isinstance(key, int) and abs(key) <= LARGEST):
        raise ValueError("the key of a storage is neither a string nor a number")
    return key


def of_zip(file: IO[bytes], makers: Makers) -> Any:
    """Returns the contents of a PyTorch file since version 1.6: an uncompressed zip of a pickle and its storages."""
    with zipfile.ZipFile(file) as archive:
        if sum(part.compress_size for part in archive.infolist()) > file.seek(0, io.SEEK_END):
            raise ValueError("parts of the zip file overlap")
        names = archive.namelist()
        homes = [n.removesuffix("data.pkl") for n in names if re.fullmatch(r"[^/]+/data\.pkl", n)]
        if len(homes) != 1:
            raise Refused(f"is a zip file without PyTorch's data.pkl: unpack it, and name the file in it ({READ})")
        home = homes[0]
        if any(n == f"{home}constants.pkl" or n.startswith(f"{home}code/") for n in names):
            raise Refused(
                "is a TorchScript archive, which is a program: get the weights (a state dict) from its authors"
            )

        def record(name: str) -> bytes:
            if archive.getinfo(f"{home}{name}").compress_type != zipfile.ZIP_STORED:
                raise Refused("is a compressed zip file, which PyTorch does not write: save it as safetensors")
            return archive.read(f"{home}{name}")

        if f"{home}byteorder" in names and record("byteorder") != b"little":
            raise Refused("was written on a big-endian machine, which is not supported: save it as safetensors")
        storages: dict[tuple[str, str], Tensor] = {}

        def storage(key: Any) -> Tensor:
            typed, kind, name, _, numel = key
            if typed != "storage" or not isinstance(name, str):
                outside(key)
            if (name, kind.name) not in storages:
                storages[name, kind.name] = flat(record(f"data/{name}"), kind, numel)
            return storages[name, kind.name]

        return Pickle(io.BytesIO(record("data.pkl"))).value(storage, makers)


def of_bytes(_: Any, data: Any) -> Tensor:
    """`torch.storage._load_from_bytes`: returns the storage in a PyTorch file within a pickle, as a flat tensor."""
    storage = (of_zip if data.startswith(b"PK") else of_pickle)(io.BytesIO(data), {})  # which contains no other file
    if not isinstance(storage, Tensor) or storage.ndim != 1:
        raise ValueError("a storage is not a flat tensor")
    return storage


def kind_of(kind: Any) -> torch.dtype:
    """Returns the dtype of a class of storages."""
    if kind.name not in STORAGES:
        raise Refused(f"contains a {kind.path}, which is not supported: save it as dense tensors of numbers first")
    return STORAGES[kind.name]


def flat(data: bytes, kind: Any, numel: Any) -> Tensor:
    """Returns a storage of `numel` elements as a flat tensor that owns its memory."""
    dtype = kind_of(kind)
    if type(numel) is not int:
        raise ValueError("a storage's size is not a whole number")
    if len(data) != numel * dtype.itemsize:
        raise ValueError(f"a storage has {len(data)} bytes instead of {numel} times {dtype.itemsize}")
    return torch.frombuffer(bytearray(data), dtype=dtype) if numel else torch.empty(0, dtype=dtype)


def strided(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """Returns a view of a storage, after checking that it lies within the storage."""
    if not isinstance(storage, Tensor) or storage.stride() != (1,):
        raise ValueError("a tensor without a storage")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or not len(size) == len(stride) <= LONGEST:
        raise ValueError("a tensor without a shape")
    if any(type(n) is not int or not 0 <= n < LARGEST for n in (offset, *size, *stride)):
        raise ValueError("a tensor's shape does not consist of whole numbers")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage.numel():
        raise ValueError("a tensor reaches beyond its storage")
    return storage.as_strided(size, stride, storage.storage_offset() + (offset if math.prod(size) else 0))


def tensor(_: Any, storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor | None:
    """`torch._utils._rebuild_tensor_v2`; returns None for lazily conjugated and negated tensors."""
    return None if any(rest[2:]) else strided(storage, offset, size, stride)


def untyped(
    _: Any, storage: Tensor, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Record, *rest: Any
) -> Tensor | None:
    """`torch._utils._rebuild_tensor_v3`, which has a dtype."""
    known = DTYPES.get(f"{dtype.module}.{dtype.name}")
    return None if known is None or any(rest) else strided(storage.view(known), offset, size, stride)


def encoded(_: Any, text: str, codec: str) -> bytes:
    """Returns bytes, which pickles of protocol 2 write as text."""
    if codec not in ("latin1", "latin-1"):
        raise ValueError("bytes of another encoding")
    return text.encode("latin-1")


def byte_string(_: Any, data: Any = b"", codec: str = "") -> bytes:
    """`bytes` and `bytearray`."""
    if not isinstance(data, str | bytes | list | tuple):
        raise ValueError("bytes of something else")
    return encoded(_, data, codec) if isinstance(data, str) else bytes(data)


def device(_: Any, kind: Any, index: Any = None) -> str:
    """Returns a `torch.device` as its name."""
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise ValueError("a device has no name")
    return kind if index is None else f"{kind}:{index}"


def array_type(state: Any, code: str, *_: Any) -> str | None:
    """Returns the name of an array's dtype; None for dtypes that are not numbers."""
    order = state[1] if state else ""
    if not isinstance(order, str) or not isinstance(code, str):
        raise ValueError("a dtype is not a string")
    name = f"{order}{code}".replace("|", "")
    return name if ARRAY.fullmatch(name) else None


def array(data: Any, dtype: Any, shape: Any, order: str) -> Tensor | None:
    """Returns an array of numbers as a tensor; None for an array of anything else."""
    if not isinstance(dtype, str) or not isinstance(data, bytes) or not ARRAY.fullmatch(dtype):
        return None
    if not isinstance(shape, tuple):
        raise ValueError("an array without a shape")
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))


def number(_: Any, dtype: Any, data: Any) -> Any:
    """Returns a numpy scalar as a Python number; None for anything else."""
    value = array(data, dtype, (), "C")
    return None if value is None else value.item()


VALUES: Makers = {
    "builtins.complex": lambda _, real, imaginary: complex(real, imaginary),
    "builtins.bytes": byte_string,
    "builtins.bytearray": byte_string,
    "_codecs.encode": encoded,
    "torch.device": device,
    "torch.storage._load_from_bytes": of_bytes,
    "torch._utils._rebuild_tensor": tensor,
    "torch._utils._rebuild_tensor_v2": tensor,
    "torch._utils._rebuild_tensor_v3": untyped,
    "torch._utils._rebuild_parameter": lambda _, data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda _, data, *rest: data,
    "numpy.dtype": array_type,
    "numpy.core.multiarray.scalar": number,
    "numpy.core.multiarray._reconstruct": lambda state, *_: array(state[4], state[2], state[1], "CF"[state[3]]),
    "numpy.core.numeric._frombuffer": lambda _, data, dtype, shape, order: array(data, dtype, shape, order),
}


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Puts the file's name in front of errors that are raised within it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
