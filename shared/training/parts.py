"""Checkpoints whose tensors are divided among processes: files of each process, in the format of safetensors.

They are written and read by torch.distributed.checkpoint, whose own format contains pickles, with its storage for
safetensors, which contains none.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed import barrier, is_main
from ..errors import UsageError
from .folder import reason

PARTS = "parts"
"""The folder in a checkpoint's folder that has the files of the processes."""


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Writes the part of each process, and returns the digests of the files for the checkpoint's description.

    Every process calls this.

    Raises:
        OSError: on every process, where one of them cannot write.
    """
    dcp, writer, _ = storage()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.save(dict(tensors), storage_writer=writer(str(folder), save_distributed=True))
        except dcp.CheckpointException as error:  # not an Exception
            cause: Any = next(iter(error.failures.values()))[0]
            raise cause if isinstance(cause, OSError) else OSError(reason(cause)) from error
    barrier()
    return {"digest": {"files": file_digests(folder)}} if is_main() else {}


def read_parts(folder: Path, digests: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns the undivided tensors from the files of all processes, after a check of the files' digests.

    Raises:
        ValueError: for a file that is missing or differs from what was written.
    """
    found = file_digests(folder)
    if broken := [name for name in {*digests, *found} if digests.get(name) != found.get(name)]:
        raise ValueError(f"{PARTS}/{broken[0]} differs from what was written")
    dcp, _, reader = storage()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage_reader = reader(str(folder))
        entries = storage_reader.read_metadata().state_dict_metadata
        tensors = {name: torch.empty(e.size, dtype=e.properties.dtype) for name, e in entries.items()}
        dcp.load(tensors, storage_reader=storage_reader, no_dist=True)
    return tensors


def file_digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file in a folder, by its name."""
    digests = {}
    for path in sorted(folder.iterdir()):
        found = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(1 << 22):
                found.update(part)
        digests[path.name] = found.hexdigest()
    return digests


def storage() -> tuple[Any, Any, Any]:
    """Returns torch.distributed.checkpoint, and its writer and reader of safetensors.

    Raises:
        UsageError: where this version of torch does not have them.
    """
    import torch.distributed.checkpoint as dcp

    try:
        return dcp, *(getattr(dcp, f"HuggingFaceStorage{kind}") for kind in ("Writer", "Reader"))
    except AttributeError:
        raise UsageError(
            f"checkpoints of divided weights need torch 2.9 or newer, and this is {torch.__version__}: train with "
            "parallel=Replicated()"
        ) from None
