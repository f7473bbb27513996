"""Tar files in the layout of WebDataset: members of one name and several endings are one example."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UsageError, shown
from .pixels import endings
from .stacking import stamp

PICKLES = (".pkl", ".pickle", ".pyd", ".pt", ".pth", ".joblib", ".dill")
TEXTS = (".txt", ".cls", ".cls2", ".caption")


class Member(NamedTuple):
    """The place of a member in its tar file: its name, and where its bytes are."""

    file: Path
    name: str
    offset: int
    size: int


class Members:
    """Encoded images in tar files, read from their places there."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[tuple[str, Path | bytes]]:
        file, at = None, None
        try:
            for member in self.members:
                if file is None or at != member.file:
                    if file is not None:
                        file.close()
                    file, at = member.file.open("rb"), member.file
                file.seek(member.offset)
                yield f"{member.name} in {member.file.name}", file.read(member.size)
        finally:
            if file is not None:
                file.close()

    def identity(self) -> Any:
        """Returns the path, size and time of change of each file, and the places of the images."""
        files = {path: stamp(path) for path in {str(member.file.resolve()) for member in self.members}}
        return [sorted(files.items()), [(member.name, member.offset) for member in self.members]]


class Examples(NamedTuple):
    """The examples of tar files.

    Attributes:
        images: the image of each example.
        columns: the further columns by name: text members by their endings, and the keys of JSON members.
        notes: what was left out.
    """

    images: Members
    columns: dict[str, list[Any]]
    notes: tuple[str, ...]


def examples_of(files: Sequence[Path], image: str | None = None) -> Examples:
    """Reads the places of the images of tar files, and the texts beside them; pixels are not read.

    `a/0.jpg`, `a/0.cls`, `a/0.txt` and `a/0.json` are the example `a/0`, with the columns `cls`, `txt` and the keys of
    the JSON object. Nothing is unpacked, and no member is run: a file with pickles in it is refused.

    Args:
        files: the tar files.
        image: ending of the images, such as `jpg`, for examples of several images; None for the only one.

    Raises:
        UsageError: for a file that cannot be read, is compressed, or has pickles; an example without an image, or with
            several.
    """
    pictures, images, rows, unread = endings(), [], [], set()
    for path in files:
        held: dict[str, dict[str, Any]] = {}
        for member, text in _members(path, pictures):
            folder, _, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            example = held.setdefault(f"{folder}/{stem}", {})
            suffix = Path(base).suffix.lower()
            if suffix in pictures:
                example.setdefault("", {})[ending.lower()] = member
            elif text is None:
                unread.add(suffix or base)
            elif suffix == ".json":
                example |= _json(path, member.name, text)
            else:
                example[ending.lower()] = text.strip()
        for key, example in held.items():
            found = example.pop("", {})
            if image is not None and image.lower() in found:
                found = {image: found[image.lower()]}
            if len(found) != 1:
                several = f"the images {', '.join(sorted(found))}" if found else "no image"
                remedy = f"give one of them (--data.image-column {min(found)})" if found else "remove it"
                raise UsageError(f"the example {key.lstrip('/')} of {path} has {several}: {remedy}")
            images.append(next(iter(found.values())))
            rows.append(example)
    names = list(dict.fromkeys(name for row in rows for name in row))
    notes = [f"members that are not read: {', '.join(sorted(unread))}"] if unread else []
    return Examples(Members(images), {name: [row.get(name) for row in rows] for name in names}, tuple(notes))


def _members(path: Path, pictures: frozenset[str]) -> Iterator[tuple[Member, str | None]]:
    """Yields the files in a tar file, with the text of those that are text."""
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                base = info.name.rpartition("/")[2]
                suffix = Path(base).suffix.lower()
                if not info.isfile() or base.startswith("."):
                    continue
                if suffix in PICKLES:
                    raise UsageError(
                        f"{path} contains the pickle {shown(info.name, 60)}, which can run code when it is read: pack "
                        "the images again without pickles"
                    )
                text = None
                if suffix in TEXTS or suffix == ".json":
                    file = tar.extractfile(info)
                    assert file is not None, "a regular file can be read"
                    text = file.read().decode("utf-8")
                yield Member(path, info.name, info.offset_data, info.size), text
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        remedy = "give an uncompressed tar file that is complete, with texts in UTF-8"
        raise UsageError(f"{path} cannot be read ({shown(error, 120)}): {remedy}") from error


def _json(path: Path, name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{name} in {path} is not JSON ({shown(error, 120)}): correct it") from error
    if not isinstance(found, dict):
        raise UsageError(f'{name} in {path} is not a JSON object: give one, such as {{"label": 3}}')
    return {str(key): value for key, value in found.items() if key}
