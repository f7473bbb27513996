"""Sets that are shipped with the package or lie on the hub, through `datasets.load_dataset`."""

from __future__ import annotations

import contextlib
import difflib
import glob
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

BUNDLED = Path(__file__).parent / "bundled"
PATIENCE = 10  # seconds that the hub has to answer


class Absent(UsageError):
    """There is neither a file nor a folder nor a set of that name."""


def bundled() -> list[str]:
    """Names of the sets that come with the package and need no network."""
    return sorted(p.name for p in BUNDLED.iterdir() if p.is_dir())


def absolute(name: str, sets: Collection[str]) -> str:
    """The absolute path of a file or a folder that is there; any other name, and that of one of the `sets`, as it is.

    A run keeps this, so that its data are found from any folder, and nothing else is that lies at the same relative
    path there.
    """
    path = os.path.expanduser(name)
    return os.path.abspath(path) if name and name not in sets and os.path.exists(path) else name


def load(name: str, split: str) -> Dataset:
    """The rows of a set.

    Args:
        name: `digits`, `mnist5k` or `shakespeare`, or the name of a set on the hub.
        split: `train`, `test`, ...

    Raises:
        Absent: where there is no such set.
        UsageError: where there is no such split, or it cannot be read.
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
        if (
            os.path.isabs(name)
            or name.startswith((".", "~"))
            or name.endswith("/")
            or name.count("/") > 1
            or "\\" in name
        ):
            raise Absent(f"there is no {kind(name)} {name}: {meant(name, 'give the path of one that is there')}")
        return of_hub(name, split)
    except UsageError:
        raise
    except PermissionError as error:
        raise UsageError(
            f"the cache of data sets cannot be written ({error}): set HF_HOME to a folder that can"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"cannot load the data set {name} ({reason}): {meant(name)}") from error


def of_hub(name: str, split: str) -> Dataset:
    """The rows of a set on the hub. It is asked once whether it has the set, for `datasets` asks for half a minute;
    else the cache is.

    Raises:
        Absent: where neither has it.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(name, timeout=PATIENCE)
        missing = ""
    except (RepositoryNotFoundError, HFValidationError):
        missing = "no set of that name on the Hub"
    except HfHubHTTPError:  # of which `datasets` says more
        missing = ""
    except Exception as error:
        offline = isinstance(error, OfflineModeIsEnabled)
        reason = (
            "HF_HUB_OFFLINE is set" if offline else str(error).splitlines()[0] if str(error) else type(error).__name__
        )
        missing = f"the Hub, where a set may have that name, cannot be reached ({reason})"
    if not missing:
        return datasets.load_dataset(name, split=split)
    before, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        return datasets.load_dataset(name, split=split)
    except (ConnectionError, HFValidationError) as error:
        raise Absent(f"there is no {kind(name)} {name}, and {missing}: {meant(name)}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def kind(name: str) -> str:
    """What a path would be of."""
    return "file" if Path(name).suffix else "folder"


def meant(name: str, else_: str = "") -> str:
    """What to give in place of a name that nothing has."""
    path = Path(os.path.expanduser(name))
    with contextlib.suppress(OSError):
        if near := difflib.get_close_matches(path.name, sorted(os.listdir(path.parent)), n=1, cutoff=0.75):
            return f"did you mean {path.parent / near[0]}?"
    if near := difflib.get_close_matches(name, bundled(), n=1):
        return f"did you mean {near[0]}?"
    return (
        else_
        or f"give the path of one that is there, or a bundled set ({', '.join(bundled())}); others need the network"
    )
