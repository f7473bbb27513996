"""Data sets that are shipped with the package or lie on the Hub, through `datasets.load_dataset`."""

from __future__ import annotations

import contextlib
import difflib
import glob
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .table_files import KINDS, rows_of_files, table_files

if TYPE_CHECKING:
    from datasets import Dataset

BUNDLED = Path(__file__).parent / "bundled"
HUB_TIMEOUT = 10  # seconds


class Absent(UsageError):
    """The error for a name under which there is no file, folder or data set."""


def bundled() -> list[str]:
    """Returns the names of the data sets that come with the package and need no network."""
    return sorted(p.name for p in BUNDLED.iterdir() if p.is_dir())


def absolute(name: str, sets: Collection[str]) -> str:
    """Returns the absolute path of an existing file, folder or glob; other names, and those in `sets`, are kept.

    A run keeps this path, so that its data are found from any folder, and nothing else is found that lies at the same
    relative path there.
    """
    path = os.path.expanduser(name)
    exists = os.path.exists(path) or (glob.has_magic(path) and glob.glob(path, recursive=True))
    return os.path.abspath(path) if name and name not in sets and exists else name


def load(name: str, split: str) -> Dataset:
    """Loads the rows of a data set, as a `datasets.Dataset`.

    Args:
        name: `digits`, `mnist5k`, `openmoji32` or `shakespeare`; a Parquet, Arrow, CSV or JSON file, a folder of them,
            or a glob; or the name of a data set on the Hub.
        split: `train`, `test`, ...

    Raises:
        Absent: where there is no such data set.
        UsageError: where there is no such split, it cannot be read, or the name is that of a file.
    """
    import datasets

    try:
        if name in bundled():
            files = {p.stem: glob.escape(str(p)) for p in (BUNDLED / name).glob("*.parquet")}
            if split not in files:
                raise UsageError(f"the data set {name} has no split {split}: choose from {', '.join(sorted(files))}")
            datasets.disable_progress_bars()
            try:
                return datasets.load_dataset("parquet", data_files={split: files[split]}, split=split)
            finally:
                datasets.enable_progress_bars()
        if (files := table_files(name)) is not None:
            return rows_of_files(files, name, split)
        if Path(name).is_file():
            raise UsageError(
                f"{name} is a file: give the folder that it lies in, a table ({', '.join(KINDS)}), or the name of a "
                "data set"
            )
        if _is_path(name):
            raise Absent(
                f"there is no {file_or_folder(name)} {name}: {suggestion(name, 'give the path of one that exists')}"
            )
        return of_hub(name, split)
    except UsageError:
        raise
    except PermissionError as error:
        raise UsageError(
            f"the cache of data sets cannot be written ({error}): set HF_HOME to a folder that can be written"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"cannot load the data set {name} ({reason}): {suggestion(name)}") from error


def _is_path(name: str) -> bool:
    """Whether a name can be a path and not the name of a data set on the Hub."""
    begins = os.path.isabs(name) or name.startswith((".", "~"))
    return begins or name.endswith("/") or name.count("/") > 1 or "\\" in name


def of_hub(name: str, split: str) -> Dataset:
    """Loads the rows of a split of a data set on the Hub, or from the local cache where the Hub cannot be reached.

    The Hub is first asked once whether it has the data set, because `datasets` alone repeats the question for half a
    minute.

    Raises:
        Absent: where neither the Hub nor the cache has it.
    """
    from datasets import config, load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi(endpoint=config.HF_ENDPOINT).dataset_info(name, timeout=HUB_TIMEOUT)
        missing = ""
    except (RepositoryNotFoundError, HFValidationError):
        missing = "the Hub has no data set of that name"
    except HfHubHTTPError:  # `datasets` raises a longer message on it
        missing = ""
    except Exception as error:
        offline = isinstance(error, OfflineModeIsEnabled)
        reason = (
            "HF_HUB_OFFLINE is set" if offline else str(error).splitlines()[0] if str(error) else type(error).__name__
        )
        missing = f"the Hub, which may have a data set of that name, cannot be reached ({reason})"
    if not missing:
        return load_dataset(name, split=split)
    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        return load_dataset(name, split=split)
    except (ConnectionError, HFValidationError) as error:
        raise Absent(f"there is no {file_or_folder(name)} {name}, and {missing}: {suggestion(name)}") from error
    finally:
        config.HF_HUB_OFFLINE = before


def file_or_folder(name: str) -> str:
    """Returns `file` for a path with an ending, else `folder`."""
    return "file" if Path(name).suffix else "folder"


def suggestion(name: str, otherwise: str = "") -> str:
    """Returns a remedy for a name that does not exist: the closest existing name, else `otherwise`."""
    path = Path(os.path.expanduser(name))
    with contextlib.suppress(OSError):
        if near := difflib.get_close_matches(path.name, sorted(os.listdir(path.parent)), n=1, cutoff=0.75):
            return f"did you mean {path.parent / near[0]}?"
    if near := difflib.get_close_matches(name, bundled(), n=1):
        return f"did you mean {near[0]}?"
    return (
        otherwise
        or f"give the path of an existing one, or a bundled data set ({', '.join(bundled())}); others need the network"
    )
