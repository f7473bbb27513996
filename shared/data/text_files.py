"""Text in files: encodings, line ends, and which part of a file is a document."""

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

from ..errors import UsageError
from .column_errors import broken_line, column_without_text, missing_column
from .held_out import held_out_rows
from .sources import Absent, load, suggestion
from .table_files import rows_of_files, shards_of
from .text_slices import Place, Span, in_percent, places
from .tokenizers import first_line

if TYPE_CHECKING:
    from datasets import Dataset

Documents = Literal["file", "paragraphs", "lines"]
READERS = {".txt": "text", ".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
COMPRESSED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz")
BYTE_ORDER_MARKS = {  # longer ones first: UTF-16's is the beginning of UTF-32's
    b"\xff\xfe\x00\x00": "utf-32-le",
    b"\x00\x00\xfe\xff": "utf-32-be",
    b"\xef\xbb\xbf": "utf-8",
    b"\xff\xfe": "utf-16-le",
    b"\xfe\xff": "utf-16-be",
}
BLOCK = 1 << 20  # bytes read at a time
PART = 1 << 18  # characters of a part of a document, about
READING = 1  # version of the rows that are made of text files; a new number makes them anew
SLICE = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


class Rows(NamedTuple):
    """Rows of text from one place to another.

    Attributes:
        data: the rows; their column `follow`, if any, holds the character after each row in its document, "" at the
            document's end (a long document takes several rows).
        column: name of the column that holds the text.
        start: row and character of the beginning; None for all rows.
        stop: row and character of the end; None for all rows.
        documents: which part of a file is a document; None where each row is one.
    """

    data: Dataset
    column: str
    start: Place | None = None
    stop: Place | None = None
    documents: Documents | None = None

    def select(self) -> Dataset:
        """Returns the rows that lie between the two places, wholly or in part."""
        if self.start is None or self.stop is None:
            return self.data
        first, (last, tail) = self.start[0], self.stop
        return self.data.select(range(first, last + (tail > 0)))

    def texts(self, batch: dict[str, list[Any]], indices: list[int]) -> Iterator[tuple[str | None, str]]:
        """Yields the text of each row of a batch between the two places, and the character that follows it.

        Args:
            batch: columns of some of the selected rows.
            indices: their numbers among the selected rows.
        """
        follows = batch.get("follow") or [""] * len(indices)
        (first, head), (last, tail) = self.start or (0, 0), self.stop or (len(self.data), 0)
        for index, whole, after in zip(indices, batch[self.column], follows, strict=True):
            row = index + first
            ends = row == last or (row + 1 == last and not tail)  # the slice, and so its last document
            text = whole[: tail if row == last else None] if whole else whole
            yield text[head:] if text and row == first else text, "" if ends else after

    def batches(self, size: int) -> Iterator[Iterator[tuple[str | None, str]]]:
        """Yields, for `size` of the selected rows at a time, what `texts` yields for them."""
        data = self.select()
        for begin in range(0, len(data), size):
            batch = data[begin : begin + size]
            yield self.texts(batch, list(range(begin, begin + len(batch[self.column]))))


def decoded(path: Path) -> Iterator[str]:
    r"""Yields a text file in blocks, decoded as UTF-8, or as UTF-16 or UTF-32 by its byte order mark.

    The mark is dropped; `\r\n` and `\r` become `\n`.

    Raises:
        UsageError: for a byte that cannot be decoded, with its place.
    """
    with path.open("rb") as file:
        mark, name = byte_order_mark(file.read(4))
        position = len(mark)
        file.seek(position)
        decoder, last = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(name)(), translate=True), False
        while not last:
            block = file.read(BLOCK)
            last = not block
            try:
                text = decoder.decode(block, final=last)
            except UnicodeDecodeError as error:
                if not mark and b"\0" in error.object:
                    raise UsageError(_null_characters(path)) from error
                place = position + len(block) - len(error.object) + error.start
                raise UsageError(_undecodable(path, name, place, error.object[error.start], mark)) from error
            position += len(block)
            if "\0" in text:
                raise UsageError(_null_characters(path))
            if text:
                yield text


def byte_order_mark(beginning: bytes) -> tuple[bytes, str]:
    """Returns the byte order mark at the beginning of a file, and its encoding; `b""` and `utf-8` without a mark."""
    mark = next((m for m in BYTE_ORDER_MARKS if beginning.startswith(m)), b"")
    return mark, BYTE_ORDER_MARKS.get(mark, "utf-8")


def _null_characters(path: Path) -> str:
    remedy = "if it is UTF-16 without a byte order mark, save it as UTF-8, such as with `iconv -f utf-16le -t utf-8`"
    return f"{path} cannot be read as text: it contains null characters; {remedy}"


def _undecodable(path: Path, name: str, place: int, byte: int, mark: bytes) -> str:
    remedy = "correct the file" if mark else "save it as UTF-8, such as with `iconv -f latin1 -t utf-8`"
    by = ", its encoding by its byte order mark" if mark else ""
    return f"{path} cannot be read as text: byte 0x{byte:02x} at {place} is not {name.upper()}{by}: {remedy}"


def parts(blocks: Iterable[str], size: int = PART) -> Iterator[tuple[str, str]]:
    """Yields a document in parts of about `size` characters, each with the character after it, "" for the last.

    Parts are small enough to tokenize. They end before white space where there is some, as the tokens of most
    tokenizers do: their tokens are then those of the whole document.
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
    r"""Yields the lines of blocks of text, each with its `\n`."""
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
    """Yields the rows of a text file; `stamp`, its time of change and size, is part of the key of the cache."""
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
    name: str,
    split: str,
    column: str,
    documents: Documents | None = None,
    default: Documents | None = None,
    held_out: float | None = None,
) -> Rows:
    """Returns the rows of a data set with their text; see `subwords`.

    Args:
        name: the data set or file.
        split: the split, or a slice of it.
        column: the column that holds the text.
        documents: which part of a text file is a document.
        default: which part is a document where `documents` is None.
        held_out: share or number of the rows of the split train that are the split test, by `held_out_rows`; None for
            the set's own.

    Raises:
        UsageError: where there is no such data set, split or column, or it does not hold text; and for `held_out` of a
            text file, whose rows are not documents.
    """
    part = split if held_out is not None and split in ("train", "test") else None
    split = "train" if part else split
    matched = SLICE.fullmatch(split)
    files = None if matched is None else shards_of(name, matched[1])
    found = file_of(name, split) if files is None else None
    if files is not None and matched is not None:
        _refuse_documents(documents, name)
        data, span = rows_of_files(files, name, matched[1]), (matched[2], matched[3])
    elif found is None:
        _refuse_documents(documents, name)
        data, span = load(name, split), (None, None)
    else:
        path, span = found
        if path.stat().st_size == 0:
            raise UsageError(f"{path} is empty: give a file with text")
        if path.suffix.lower() == ".txt":
            if part is not None:
                raise UsageError(
                    f"held_out={held_out:g} is for sets whose rows are documents, and the last tenth of {path} is held "
                    "out already: leave out --data.held-out"
                )
            documents = documents or default or ("file" if in_percent(span) else "lines")
            data = _text(path, documents, span)
        else:
            _refuse_documents(documents, str(path))
            data = _table(path, split, column)
    if column not in data.column_names:
        raise UsageError(missing_column(data, column, name if found is None else str(found[0])))
    if getattr(data.features[column], "dtype", "") not in ("string", "large_string"):
        raise UsageError(column_without_text(data, column, name if found is None else str(found[0])))
    if part is not None and held_out is not None:
        data = data.select(held_out_rows(len(data), held_out, part).numpy())
    return Rows(data, column, *places(data, column, span, name, split), documents)


def _refuse_documents(documents: Documents | None, name: str) -> None:
    if documents is not None:
        raise UsageError(
            f"documents={documents} is for .txt files, and each row of {name} is a document: leave documents out"
        )


def _text(path: Path, documents: Documents, span: Span) -> Dataset:
    """Returns a text file as rows in the cache of the `datasets` library."""
    import datasets

    if documents not in ("file", "paragraphs", "lines"):
        raise UsageError(f"documents={documents}: choose from file, paragraphs, lines")
    if documents == "file" and not in_percent(span):
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
            if (cause := _usage_error(error)) is not None:
                raise cause from None
            if "no data" in str(error):  # the library's message for a file without rows
                raise UsageError(f"{path} has no text: give a file with some") from error
            raise UsageError(
                f"{path} cannot be read ({first_line(error)}): correct the file, or set HF_HOME to a folder on a disk "
                "with free space"
            ) from error


def _table(path: Path, split: str, column: str) -> Dataset:
    """Returns the rows of a Parquet, JSON or CSV file."""
    import datasets

    kind = READERS[path.suffix.lower()]
    options: dict[str, Any] = {"keep_default_na": False} if kind == "csv" else {}  # keep the words NA, None and null
    with quiet():
        try:
            data = datasets.load_dataset(kind, data_files=glob.escape(str(path.resolve())), split="train", **options)
            for chunk in data.data.column(column).chunks if column in data.column_names else ():
                chunk.validate(full=True)  # that it is UTF-8, which not every reader checks
            return data
        except Exception as error:
            if kind != "parquet":
                with path.open("rb") as file:
                    _, encoding = byte_order_mark(file.read(4))
                if encoding != "utf-8":
                    command = f"`iconv -f {encoding[:6]} -t utf-8`"
                    raise UsageError(
                        f"{path} is {encoding[:6].upper()}, by its byte order mark: save it as UTF-8, such as with "
                        f"{command}"
                    ) from error
                for _ in decoded(path):  # raises an error that names the byte, where that is the cause
                    pass
                if kind == "json" and (where := broken_line(lines(decoded(path)))):
                    raise UsageError(f"{path} cannot be read as text: {where}; correct or remove that line") from error
            reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
            raise UsageError(
                f"{path} cannot be read as text for the split {split} ({reason}): correct the file or its name"
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it the `datasets` library shows no progress bars and logs no errors before ours are raised."""
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


def _usage_error(error: BaseException | None) -> UsageError | None:
    """Returns the usage error that another was raised from, if any."""
    while error is not None and not isinstance(error, UsageError):
        error = error.__cause__ or error.__context__
    return error


def file_of(name: str, split: str) -> tuple[Path, Span] | None:
    """Returns the file of a split and the ends of the slice; None for a name that is not a file or folder here.

    Raises:
        Absent: for a path at which there is no file.
        UsageError: for a file that is not a text file, or a split that the file or folder does not have.
    """
    path, matched = Path(name), SLICE.fullmatch(split)
    known = ", ".join(READERS)
    if path.is_dir() or path.is_file():
        if matched is None:
            raise UsageError(
                f"split={split}: give the name of a split, or a slice of it such as train[:90%] or train[:1000]"
            )
        chosen, span = matched[1], (matched[2], matched[3])
        if path.is_dir():
            return _file_in_folder(path, name, split, chosen), span
        if path.suffix.lower() in COMPRESSED:
            raise UsageError(f"{name} is compressed: unpack it, and give the file that comes out")
        if path.suffix.lower() not in READERS:
            raise UsageError(f"{name} ends in {path.suffix or 'nothing'}: rename it to one of {known}")
        if chosen != "train":
            raise UsageError(
                f"a single file has the split train, not {split}: give the file of that split, or a slice such as "
                "train[90%:]"
            )
        return path, span
    if path.is_absolute() or name.startswith(".") or path.suffix.lower() in READERS:
        raise Absent(f"there is no file {name}: {suggestion(name, 'give the path of an existing file')}")
    return None


def _file_in_folder(path: Path, name: str, split: str, chosen: str) -> Path:
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in READERS)
    found = [p for p in files if p.stem == chosen]
    if len(found) > 1:
        raise UsageError(
            f"the folder {name} has {' and '.join(p.name for p in found)} for the split {chosen}: keep one of them"
        )
    if found:
        return found[0]
    has = ", ".join(p.stem for p in files) or "none"
    raise UsageError(
        f"the folder {name} has no text for the split {split}: its splits are {has}; add {chosen}.txt (or "
        f"{', '.join(READERS)})"
    )
