"""The published weights of FID's Inception v3: found on this machine, or downloaded once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import torch

from ..data.cache import cache_folder
from ..errors import UsageError, shown
from ..progress import Progress, silent

ADDRESSES = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
)
"""Where the file is published, under two names, of 95 MB."""
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PIECE = 1 << 20
"""The number of bytes that are read at a time."""


def inception_weights(progress: Progress = silent) -> Path:
    """Returns the file of the published weights, with the right SHA-256, and downloads it where it is not there.

    It is looked for in the folder `metrics` of UNNOISE_CACHE or ~/.cache/unnoise, and among the checkpoints of
    `torch.hub`, where pytorch-fid and torch-fidelity keep it.

    Raises:
        UsageError: where it cannot be downloaded, or has another content; the message says where to put it.
    """
    folder = weights_folder()
    places = (folder, Path(torch.hub.get_dir()) / "checkpoints")
    for path in (place / address.rpartition("/")[2] for place in places for address in ADDRESSES):
        if path.is_file():
            if (found := sha256_of(path)) != SHA256:
                raise UsageError(
                    f"{path} has the SHA-256 {found[:8]}..., and the weights of FID's Inception v3 have "
                    f"{SHA256[:8]}...: delete it, and it is downloaded again"
                )
            return path
    return _downloaded(folder, progress)


def weights_folder() -> Path:
    """Returns the folder that the weights are downloaded to: that of torch.hub where UNNOISE_CACHE is `none`."""
    images = cache_folder()
    return Path(torch.hub.get_dir()) / "checkpoints" if images is None else images.parent / "metrics"


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            content.update(piece)
    return content.hexdigest()


def _downloaded(folder: Path, progress: Progress) -> Path:
    """Downloads the file from the first address that gives it; it appears in the folder when it is whole."""
    reasons = []
    for address in ADDRESSES:
        path = folder / address.rpartition("/")[2]
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with urlopen(address, timeout=30) as answer, part.open("wb") as file:
                total = int(answer.headers.get("Content-Length") or 0) // PIECE or None
                for piece in progress(_pieces(answer), total, "downloading FID's Inception v3 (MB)"):
                    file.write(piece)
            if (found := sha256_of(part)) == SHA256:
                os.replace(part, path)
                return path
            reasons.append(f"a file with the SHA-256 {found[:8]}...")
        except (OSError, HTTPException) as error:  # URLError is an OSError
            reasons.append(shown(getattr(error, "reason", None) or error))
        finally:
            part.unlink(missing_ok=True)
    raise UsageError(
        f"the weights of FID's Inception v3 cannot be downloaded ({'; '.join(dict.fromkeys(reasons))}): download "
        f"{' or '.join(ADDRESSES)} elsewhere and put the file into {folder} under its name, or measure with "
        "--features judge, which needs no download"
    )


def _pieces(answer) -> Iterator[bytes]:
    while piece := answer.read(PIECE):
        yield piece
