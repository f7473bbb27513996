"""Digests of what a checkpoint contains, by which damage is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def tensors_in(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    """Returns the tensors whose names are `group.NAME`, by NAME."""
    return {k.removeprefix(f"{group}."): v for k, v in tensors.items() if k.startswith(f"{group}.")}


def groups(count: int) -> list[str]:
    """Returns the first parts of the names of averaged weights: `average`, `average1`, ..."""
    return ["average", *(f"average{n}" for n in range(1, count))][:count]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Computes the SHA-256 of names, dtypes, shapes and contents of tensors on the CPU, in hexadecimal digits."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        content = tensors[name].contiguous().reshape(-1)
        found.update(f"{name} {content.dtype} {tuple(tensors[name].shape)}\n".encode())
        if len(content):
            found.update(content.view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest_of_text(description: Mapping[str, Any]) -> str:
    """Computes the SHA-256 of a description without its digests."""
    return hashlib.sha256(
        json.dumps({k: v for k, v in description.items() if k != "digest"}, sort_keys=True).encode()
    ).hexdigest()


def digests(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns the digests of the description and of each group of tensors."""
    found = {group: digest(part) for group in groups_in(tensors) if (part := tensors_in(tensors, group))}
    return {"description": digest_of_text(description)} | found


def groups_in(tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the groups of tensors: `objective`, `optimizer` and those of the averages."""
    return list(dict.fromkeys(name.partition(".")[0] for name in tensors))


def digest_of_log(path: Path, size: int | None = None) -> dict[str, Any] | None:
    """Returns the size in bytes and the SHA-256 of a log, or of its first `size` bytes; None without a file."""
    if not path.is_file():
        return None
    content = path.read_bytes()[:size]
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
