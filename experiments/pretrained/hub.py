"""Checkpoints on the Hub, through huggingface_hub, which is installed with datasets."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from ...shared.errors import UsageError
from ...shared.training.checkpoint import newest

PATTERNS = ["*.json", "*.safetensors", "*.bin"]
NAME = re.compile(r"[\w.-]+/[\w.-]+")


def local(path: Path | str) -> Path:
    """A path as it is where something is there; else the downloaded file or folder of that name on the Hub.

    With a file comes the `config.json` of its folder, where there is one: text models say in it what they are.

    Raises:
        UsageError: where nothing is there and the Hub has no such name, or cannot be reached.
    """
    if Path(path).exists():
        return Path(path)
    owner, name, *rest = [*str(path).split("/"), ""]
    rest = [part for part in rest if part]
    if str(path).startswith((".", "/", "~")) or not NAME.fullmatch(f"{owner}/{name}"):
        raise UsageError(
            f"there is no file {path}: give a file, a folder, or a name on the Hub such as google/ddpm-cifar10-32"
        )
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        if rest:
            file = Path(hf_hub_download(f"{owner}/{name}", "/".join(rest)))
            with contextlib.suppress(EntryNotFoundError):
                hf_hub_download(f"{owner}/{name}", "/".join([*rest[:-1], "config.json"]))
            return file
        return Path(snapshot_download(f"{owner}/{name}", allow_patterns=PATTERNS))
    except Exception as error:  # the client has its own errors, and lets its transport's through
        raise UsageError(
            f"there is no file {path}, and the Hub gives none of that name ({reason(error)}): look at the spelling, and at the network"
        ) from error


def push(path: Path | str, name: str, *, private: bool = False, token: str | None = None) -> str:
    """Uploads a checkpoint of this package, so that `load("owner/name")` gives its denoiser anywhere.

    Args:
        path: a run's folder (its newest checkpoint is taken) or a checkpoint's own.
        name: "owner/name" on the Hub; it is created where it does not exist.
        private: whether others may not see it, where it is created.
        token: of the Hub; None for the one that `hf auth login` has stored.

    Returns:
        the address.

    Raises:
        UsageError: where there is no checkpoint, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    folder, api = newest(Path(path)), HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message=f"unnoise checkpoint {folder.name}")
    except Exception as error:
        raise UsageError(
            f"the Hub did not take {name} ({reason(error)}): log in with `hf auth login`, and look at the network"
        ) from error
    return f"{api.endpoint}/{name}"


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
