"""Text in files: encodings, line ends, what a document is, and where a text may be cut."""

from __future__ import annotations

import codecs
import contextlib
import glob
import io
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ..errors import UsageError
from .sources import Absent, load, meant
from .tables import broken_line, no_column, no_text
from .tokenizers import first_line

if TYPE_CHECKING:
    from datasets import Dataset

Documents = Literal["file", "paragraphs", "lines"]
Place = tuple[int, int]
READERS = {".txt": "text", ".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz")
MARKS = {  # longer ones first: UTF-16's is the beginning of UTF-32's
    b"\xff\xfe\x00\x00": "utf-32-le",
    b"\x00\x00\xfe\xff": "utf-32-be",
    b"\xef\xbb\xbf": "utf-8",
    b"\xff\xfe": "utf-16-le",
    b"\xfe\xff": "utf-16-be",
}
BLOCK, PART, SHORT = (
    1 << 20,
    1 << 18,
    64,
)  # bytes read at a time; characters of a part; within which white space is looked for
READING = 1  # of the rows made of text files; a new number makes them anew
SLICE = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


class Rows(NamedTuple):
    """Rows of text, from one place in them to another.

    Attributes:
        data: the rows; where they have a column `follow`, it is the character after each one in its document, "" at the
            end.
        column: where the text is.
        start, stop: row and character in it; None for all rows.
        documents: what a row is; None where rows are documents of their own.
    """

    data: Dataset
    column: str
    start: Place | None = None
    stop: Place | None = None
    documents: Documents | None = None

    def select(self) -> Dataset:
        """The rows that are touched."""
        if self.start is None:
            return self.data
        first, (last, tail) = self.start[0], self.stop
        return self.data.select(range(first, last + (tail > 0)))

    def texts(self, batch: dict[str, list[Any]], indices: list[int]) -> Iterator[tuple[str | None, str]]:
        """What of the rows of a batch, by their numbers among those selected, belongs to the part, and what follows
        there.
        """
        follows = batch.get("follow") or [""] * len(indices)
        (first, head), (last, tail) = self.start or (0, 0), self.stop or (len(self.data), 0)
        for index, whole, after in zip(indices, batch[self.column], follows, strict=True):
            row = index + first
            ends = row == last or (row + 1 == last and not tail)  # the part, and so its last document
            text = whole[: tail if row == last else None] if whole else whole
            yield text[head:] if text and row == first else text, "" if ends else after

    def batches(self, size: int) -> Iterator[Iterator[tuple[str | None, str]]]:
        """The same, batch by batch."""
        data = self.select()
        for begin in range(0, len(data), size):
            batch = data[begin : begin + size]
            yield self.texts(batch, list(range(begin, begin + len(batch[self.column]))))


def decoded(path: Path) -> Iterator[str]:
    r"""A text file in blocks: UTF-8, or UTF-16 or UTF-32 where a byte order mark says so; the mark is dropped, `\r\n`
    and `\r` become `\n`.

    Raises:
        UsageError: with the first byte that cannot be decoded.
    """
    with path.open("rb") as file:
        beginning = file.read(4)
        mark = next((m for m in MARKS if beginning.startswith(m)), b"")
        name, position = MARKS.get(mark, "utf-8"), len(mark)
        file.seek(position)
        decoder, last = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(name)(), translate=True), False
        while not last:
            block = file.read(BLOCK)
            last = not block
            try:
                text = decoder.decode(block, final=last)
            except UnicodeDecodeError as error:
                if not mark and b"\0" in error.object:
                    raise UsageError(_holds_zeros(path)) from error
                place = position + len(block) - len(error.object) + error.start
                raise UsageError(_undecoded(path, name, place, error.object[error.start], mark)) from error
            position += len(block)
            if "\0" in text:
                raise UsageError(_holds_zeros(path))
            if text:
                yield text


def _holds_zeros(path: Path) -> str:
    remedy = "if it is UTF-16 without a byte order mark, save it as UTF-8, such as with `iconv -f utf-16le -t utf-8`"
    return f"{path} cannot be read as text: it holds characters 0; {remedy}"


def _undecoded(path: Path, name: str, place: int, byte: int, mark: bytes) -> str:
    remedy = "mend the file" if mark else "save it as UTF-8, such as with `iconv -f latin1 -t utf-8`"
    by = ", as its byte order mark says it is" if mark else ""
    return f"{path} cannot be read as text: byte 0x{byte:02x} at {place} is not {name.upper()}{by}: {remedy}"


def parts(blocks: Iterable[str], size: int = PART) -> Iterator[tuple[str, str]]:
    """A document in parts of about `size` characters, small enough to tokenize, with the character that follows each,
    "" at last.

    Parts end before white space where there is some, as pieces of most tokenizers do: their tokens are then those of
    the whole.
    """
    held, start, kept = "", 0, None
    for block in blocks:
        held, start = held[start:] + block, 0
        while len(held) - start > size:
            stop = max(held.rfind(white, start + 1, start + size + 1) for white in " \n\t")
            while stop > start and held[stop - 1].isspace():
                stop -= 1
            stop = stop if stop > start else start + size
            if kept is not None:
                yield kept, held[start]
            kept, start = held[start:stop], stop
    rest = held[start:]
    if kept is not None and rest.isspace():  # a part of its own would look like an empty document
        kept, rest = kept + rest, ""
    if kept is not None:
        yield kept, rest[:1]
    if rest:
        yield rest, ""


def lines(blocks: Iterable[str]) -> Iterator[str]:
    r"""The lines of blocks of text, each with its `\n`."""
    held: list[str] = []
    for block in blocks:
        *whole, rest = block.split("\n")
        for line in whole:
            yield "".join([*held, line, "\n"])
            held = []
        held.append(rest)
    if last := "".join(held):
        yield last


def _rows_of_text(path: str, stamp: tuple[int, int], documents: Documents, version: int) -> Iterator[dict[str, str]]:
    """Rows of a text file; size and time of change are there for the cache, which goes by the arguments."""
    blocks = decoded(Path(path))
    if documents == "file":
        found = parts(blocks)
    elif documents == "lines":
        found = (part for line in lines(blocks) for part in (list(parts([line.rstrip("\n")])) or [("", "")]))
    else:
        paragraphs = (
            list(group) for blank, group in groupby(lines(blocks), key=lambda line: not line.strip()) if not blank
        )
        found = (part for group in paragraphs for part in parts([*group[:-1], group[-1].rstrip("\n")]))
    for text, follow in found:
        yield {"text": text, "follow": follow}


def rows_of(
    name: str, split: str, column: str, documents: Documents | None = None, default: Documents | None = None
) -> Rows:
    """The rows of a set, with their text; see `pieces`. `default` is what the documents of a text file are where
    nothing is said.

    Raises:
        UsageError: where there is no such set, split or column, or what is there is no text.
    """
    found = file_of(name, split)
    if found is None:
        _refuse_documents(documents, name)
        data, span = load(name, split), (None, None)
    else:
        path, span = found
        if path.stat().st_size == 0:
            raise UsageError(f"{path} is empty: give a file with text")
        if path.suffix.lower() == ".txt":
            documents = documents or default or ("file" if _relative(span) else "lines")
            data = _text(path, documents, span)
        else:
            _refuse_documents(documents, str(path))
            data = _table(path, split, column)
    if column not in data.column_names:
        raise UsageError(no_column(data, column, name if found is None else str(found[0])))
    if getattr(data.features[column], "dtype", "") not in ("string", "large_string"):
        raise UsageError(no_text(data, column, name if found is None else str(found[0])))
    return Rows(data, column, *_places(data, column, span, name, split), documents)


def _refuse_documents(documents: Documents | None, name: str) -> None:
    if documents is not None:
        raise UsageError(f"documents={documents} is for a .txt file: each row of {name} is a document, leave it out")


def _text(path: Path, documents: Documents, span: tuple[str | None, str | None]) -> Dataset:
    """A text file as rows, in the cache of data sets."""
    import datasets

    if documents not in ("file", "paragraphs", "lines"):
        raise UsageError(f"documents={documents}: choose from file, paragraphs, lines")
    if documents == "file" and not _relative(span):
        raise UsageError(
            f"documents=file makes one document of {path}: give a slice of it in percent, such as train[:90%]"
        )
    stat, features = path.stat(), datasets.Features(dict.fromkeys(("text", "follow"), datasets.Value("large_string")))
    stamp = (stat.st_mtime_ns, stat.st_size)
    about = {"path": str(path.resolve()), "stamp": stamp, "documents": documents, "version": READING}
    with quiet():
        try:
            return datasets.Dataset.from_generator(_rows_of_text, features=features, gen_kwargs=about)
        except Exception as error:
            if (cause := _of_usage(error)) is not None:
                raise cause from None
            if "no data" in str(error):  # as the library says of no rows
                raise UsageError(f"{path} holds no text: give a file with some") from error
            raise UsageError(
                f"{path} cannot be read ({first_line(error)}): mend it, or set HF_HOME to a folder with space"
            ) from error


def _table(path: Path, split: str, column: str) -> Dataset:
    """The rows of a Parquet, JSON or CSV file."""
    import datasets

    kind = READERS[path.suffix.lower()]
    options = {"keep_default_na": False} if kind == "csv" else {}  # else the words NA, None and null were no text
    with quiet():
        try:
            data = datasets.load_dataset(kind, data_files=glob.escape(str(path.resolve())), split="train", **options)
            for chunk in data.data.column(column).chunks if column in data.column_names else ():
                chunk.validate(full=True)  # that it is UTF-8, which not every reader looks at
            return data
        except Exception as error:
            if kind != "parquet":
                with path.open("rb") as file:
                    beginning = file.read(4)
                if (mark := next((MARKS[m] for m in MARKS if beginning.startswith(m)), "utf-8")) != "utf-8":
                    form, command = mark[:6].upper(), f"`iconv -f {mark[:6]} -t utf-8`"
                    raise UsageError(
                        f"{path} is {form}, by its byte order mark: save it as UTF-8, such as with {command}"
                    ) from error
                for _ in decoded(path):  # names the byte, where that is the cause
                    pass
                if kind == "json" and (where := broken_line(lines(decoded(path)))):
                    raise UsageError(f"{path} cannot be read as text: {where}; mend that line, or drop it") from error
            said = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
            raise UsageError(
                f"{path} cannot be read as text for the split {split} ({said}): mend the file or the name"
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's progress bars, and without what it logs of a fault before our line does."""
    import datasets

    already, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not already:
            datasets.enable_progress_bars()


def _of_usage(error: BaseException | None) -> UsageError | None:
    """The usage error that another was raised from, if any."""
    while error is not None and not isinstance(error, UsageError):
        error = error.__cause__ or error.__context__
    return error


def file_of(name: str, split: str) -> tuple[Path, tuple[str | None, str | None]] | None:
    """The file that a name and a split stand for, and from where to where.

    None where the name is not of this machine.
    """
    path, matched = Path(name), SLICE.fullmatch(split)
    if (path.is_dir() or path.is_file()) and matched is None:
        raise UsageError(
            f"split={split}: give the name of a split, or a slice of it such as train[:90%] or train[:1000]"
        )
    known = ", ".join(READERS)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in READERS)
        found = [p for p in files if p.stem == matched[1]]
        if len(found) > 1:
            raise UsageError(
                f"the folder {name} has {' and '.join(p.name for p in found)} for the split {matched[1]}: keep one of them"
            )
        if found:
            return found[0], matched.group(2, 3)
        has = ", ".join(p.stem for p in files) or "none"
        raise UsageError(
            f"the folder {name} has no text for the split {split}: it has {has}; add {matched[1]}.txt (or {known})"
        )
    if path.is_file():
        if path.suffix.lower() in PACKED:
            raise UsageError(f"{name} is packed: unpack it first, and give the file that comes out")
        if path.suffix.lower() not in READERS:
            raise UsageError(f"{name} ends in {path.suffix or 'nothing'}: rename it to one of {known}")
        if matched[1] != "train":
            raise UsageError(
                f"a single file has the split train, not {split}: give its own file, or a slice such as train[90%:]"
            )
        return path, matched.group(2, 3)
    if path.is_absolute() or name.startswith(".") or path.suffix.lower() in READERS:
        raise Absent(f"there is no file {name}: {meant(name, 'give the path of one that is there')}")
    return None


def _relative(span: tuple[str | None, str | None]) -> bool:
    return all(end is None or end.endswith("%") for end in span)


def _places(
    data: Dataset, column: str, span: tuple[str | None, str | None], name: str, split: str
) -> tuple[Place, Place] | tuple[None, None]:
    """Where a slice begins and ends: numbers are rows, percentages shares of the characters."""
    if span == (None, None):
        return None, None
    percent = any(end is not None and end.endswith("%") for end in span)
    ends = _ends(data, column) if percent else None
    places = []
    for end, default in zip(span, ((0, 0), (len(data), 0)), strict=True):
        if end is None:
            places.append(default)
        elif end.endswith("%"):
            share = int(end[:-1]) + 100 * end.startswith("-")
            places.append(cut(data, column, ends, min(max(share, 0), 100)))
        else:
            places.append((min(max(int(end) + len(data) * end.startswith("-"), 0), len(data)), 0))
    start, stop = places
    if start >= stop:
        raise UsageError(f"the split {split} of {name} holds no text: take a larger part of it, or give more text")
    return start, stop


def _ends(data: Dataset, column: str) -> np.ndarray:
    """How many characters there are up to the end of each row, `(rows,)`."""
    import pyarrow.compute as pc

    lengths = [
        pc.fill_null(pc.utf8_length(chunk), 0).to_numpy(zero_copy_only=False)
        for chunk in data.data.column(column).chunks
    ]
    return np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]).astype(np.int64))


def cut(data: Dataset, column: str, ends: np.ndarray, share: int) -> Place:
    """The place up to which there is a share, in percent, of the characters; `ends` says how many there are up to each
    row's end.

    It is the last end of a document, a paragraph or a line in the half percent before, in this order, else the last
    white space there (or in the last 64 characters), else within a word. Larger shares never end before smaller ones.
    """
    total = int(ends[-1]) if len(ends) else 0
    target, near = total * share // 100, max(total // 200, 1)
    if share in (0, 100) or not total:
        return (len(data), 0) if share == 100 else (0, 0)
    row = int(np.searchsorted(ends, target, side="right"))  # the one that the target is in
    first = int(np.searchsorted(ends, max(target - max(near, SHORT), 0), side="right"))
    follows = data[first:row]["follow"] if "follow" in data.column_names else [""] * (row - first)
    whole = [end + 1 for end in range(first, row) if not follows[end - first]]  # rows after the end of a document
    if whole and ends[whole[-1] - 1] > target - near:
        return whole[-1], 0
    begin = int(ends[first - 1]) if first else 0
    text = "".join(t or "" for t in data[first : row + 1][column])
    stop = target - begin
    for pattern, within in ((r"\n\s*\n(?=\S)", near), (r"\n(?=\S)", near), (r"\s(?=\S)", max(near, SHORT))):
        found = [m.end() for m in re.compile(pattern).finditer(text, max(stop - within, 0), stop + 1)]
        if within > near and whole:
            found = sorted([*found, int(ends[whole[-1] - 1]) - begin])
        if found:
            stop = found[-1]
            break
    place = begin + stop
    row = int(np.searchsorted(ends, place, side="right"))
    return row, place - (int(ends[row - 1]) if row else 0)
