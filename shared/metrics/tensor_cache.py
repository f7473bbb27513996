"""Tensors that are computed once and kept in files of the cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from warnings import warn

from torch import Tensor

from ..data.cache import cache_folder
from ..errors import Notice, shown


def cached_tensors(
    folder: str, name: str, what: str, needed: Collection[str], computed: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Returns tensors from a file of the cache, which is written where it is not there or damaged.

    One process computes them, and others wait for it. The file appears when it is whole. Nothing is kept for
    UNNOISE_CACHE=none, and where the folder cannot be written a notice says so.

    Args:
        folder: name of the folder in UNNOISE_CACHE or ~/.cache/unnoise, such as `judges`.
        name: name of the file without its ending, a hash of all that the tensors depend on.
        what: what they are, for messages, such as `the judge of digits`.
        needed: names of tensors without which a file counts as damaged.
        computed: computes the tensors.
    """
    from filelock import FileLock
    from safetensors import SafetensorError

    images = cache_folder()
    if images is None:
        return computed()
    path = images.parent / folder / f"{name}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock")).acquire()
    except OSError as error:
        _say_not_kept(what, path, error)
        return computed()
    with lock:
        tensors = _read(path, what, needed)
        if tensors is None:
            tensors = {n: value.contiguous() for n, value in computed().items()}
            try:
                _write(path, tensors)
            except (OSError, SafetensorError) as error:
                _say_not_kept(what, path, error)
    return tensors


def _say_not_kept(what: str, path: Path, error: Exception) -> None:
    reason = f"{path.parent} cannot be written ({shown(error)})"
    warn(Notice(f"{what}: computed at every start, because {reason}; set UNNOISE_CACHE"), stacklevel=4)


def _read(path: Path, what: str, needed: Collection[str]) -> dict[str, Tensor] | None:
    """Returns the tensors of a file; None where it is not there, and with a notice where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        if missing := set(needed) - tensors.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        return tensors
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError) as error:
        warn(Notice(f"{what}: {path} is damaged ({shown(error)}) and computed again"), stacklevel=4)
        return None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file(tensors, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
