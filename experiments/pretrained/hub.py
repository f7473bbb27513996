"""Checkpoints on the Hugging Face Hub, read and written with huggingface_hub (installed with datasets)."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from ...shared.errors import UsageError
from ...shared.training.checkpoint import first_intact, read

PATTERNS = ["*.json", "*.safetensors", "*.bin"]
NAME = re.compile(r"[\w.-]+/[\w.-]+")


def local(path: Path | str) -> Path:
    """Returns the path where it exists, else the downloaded file or folder of that name on the Hub.

    For a file, the `config.json` of its folder is downloaded too, where there is one: it describes text models.

    Raises:
        UsageError: where the path does not exist, and the Hub does not have that name or cannot be reached.
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
            f"there is no file {path}, and it was not found on the Hub ({reason(error)}): "
            "check the spelling and the network connection"
        ) from error


def push(path: Path | str, name: str, *, private: bool = False, token: str | None = None) -> str:
    """Uploads a checkpoint of this package, so that `load("owner/name")` gives its denoiser anywhere.

    Args:
        path: the folder of a run (its newest intact checkpoint is uploaded) or of a checkpoint.
        name: "owner/name" on the Hub; the repository is created where it does not exist.
        private: whether a new repository is private.
        token: access token of the Hub; None for the one that `hf auth login` stored.

    Returns:
        the address of the repository.

    Raises:
        UsageError: for a folder without a checkpoint, and if the Hub refuses the upload.
    """
    from huggingface_hub import HfApi

    folder, api = first_intact(Path(path), read)[0], HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message=f"unnoise checkpoint {folder.name}")
    except Exception as error:
        raise UsageError(
            f"the Hub refused {name} ({reason(error)}): log in with `hf auth login`, and check the network connection"
        ) from error
    return f"{api.endpoint}/{name}"


def reason(error: Exception) -> str:
    """Returns the first line of an error's message, or its type if it has no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
