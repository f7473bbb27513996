"""Sets that are shipped with the package or lie on the hub, through `datasets.load_dataset`."""

from __future__ import annotations

import difflib
import glob
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

BUNDLED = Path(__file__).parent / "bundled"


def bundled() -> list[str]:
    """Names of the sets that come with the package and need no network."""
    return sorted(p.name for p in BUNDLED.iterdir() if p.is_dir())


def load(name: str, split: str) -> Dataset:
    """The rows of a set.

    Args:
        name: `digits`, `mnist5k` or `shakespeare`, or the name of a set on the hub.
        split: `train`, `test`, ...

    Raises:
        UsageError: where there is no such set or split.
    """
    import datasets

    try:
        if name in bundled():
            files = {p.stem: glob.escape(str(p)) for p in (BUNDLED / name).glob("*.parquet")}
            if split not in files:
                raise UsageError(f"the set {name} has no split {split}: choose from {', '.join(sorted(files))}")
            datasets.disable_progress_bars()
            try:
                return datasets.load_dataset("parquet", data_files={split: files[split]}, split=split)
            finally:
                datasets.enable_progress_bars()
        if Path(name).is_file():
            raise UsageError(f"{name} is a file: give the folder that it lies in, or the name of a set")
        if Path(name).is_absolute() or name.startswith("."):
            raise UsageError(f"there is no folder {name}")
        return datasets.load_dataset(name, split=split)
    except UsageError:
        raise
    except PermissionError as error:
        raise UsageError(f"the cache of data sets cannot be written ({error}): set HF_HOME to a folder that can") from error
    except Exception as error:
        near = difflib.get_close_matches(name, bundled(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"bundled sets are {', '.join(bundled())}; others need the network"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"cannot load the data set {name} ({reason}): {hint}") from error
