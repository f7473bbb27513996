"""Text from anywhere, tokenised once into a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..describe import describe
from ..errors import UsageError
from .alphabets import Alphabet, Letters, Pieces, first_line, symbols_of
from .batches import Batches
from .sources import load
from .textsets import TextSet
from .windows import Layout, Packed, StreamWindows, Tokens

if TYPE_CHECKING:
    from datasets import Dataset

READERS = {".txt": "text", ".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
FORMAT = 1  # of the tokenised files; a new number makes them anew


def characters(name: str, split: str = "train", length: int = 256, *, column: str = "text", crop: bool = False) -> TextSet:
    """The 27 symbols of any text: a to z are 0 to 25, everything else is one space, 26 (text8's rule). Documents run together.

    Args:
        name: a bundled set (`shakespeare`), a text, Parquet, JSON or CSV file, a folder of files named after the
            splits, or a set on the hub.
        split: `train`, `test`, ...; a single file has `train` alone, or a slice of it such as `train[:90%]`.
        length: symbols in an example; windows do not overlap.
        column: where the text is; a text file has one row for each line, in `text`.
        crop: training in the way of D3PM: windows are blocks of 2 length, and a batch takes a random piece of each.

    Raises:
        UsageError: where there is no such set, split or column, or less text than one window.
    """
    return _letters(_tokenised(name, split, column, Letters()), length, crop)


def shakespeare(split: str = "train", length: int = 256, *, crop: bool = False) -> TextSet:
    """The bundled works of Shakespeare as 27 symbols; `train` (38 works), `validation` and `test` (Hamlet, the Sonnets)."""
    return characters("shakespeare", split, length, crop=crop)


def text8(split: str = "train", length: int = 256, *, path: str | Path = "text8") -> TextSet:
    """text8: 10^8 symbols of Wikipedia; 90 % are for training and 5 % each for validation and test.

    Training takes a random window of each block of 2 length symbols, an epoch being all blocks (Austin et al. 2021, appendix B.2.1);
    windows of validation and test do not overlap.

    Args:
        split: `train`, `validation` or `test`.
        length: symbols in an example.
        path: the file `text8`; where there is none, the set is looked for on the hub.

    Raises:
        UsageError: where there is no such split, the file is found neither here nor there, or it holds other symbols.
    """
    cuts = {"train": (0, 18), "validation": (18, 19), "test": (19, 20)}
    if split not in cuts:
        raise UsageError(f"text8 has no split {split}: choose from {', '.join(cuts)}")
    if Path(path).is_file():
        total, (start, stop) = Path(path).stat().st_size, cuts[split]
        with Path(path).open("rb") as file:
            file.seek(total * start // 20)
            text = file.read(total * stop // 20 - total * start // 20)
    else:
        try:
            text = load("afmck/text8", split)["text"][0].encode()
        except UsageError as error:
            remedy = "download mattmahoney.net/dc/text8.zip, unpack it and give the file as path="
            raise UsageError(f"there is no file {path}, and the hub does not answer: {remedy}") from error
    symbols = symbols_of(text)
    words = int(((symbols[1:] == 26) & (symbols[:-1] != 26)).sum() + (symbols[-1:] != 26).sum())
    tokens = Tokens([(symbols, np.array([0, len(symbols)]))])
    return _letters((tokens, len(symbols), words), length, split == "train")


def letters(name: str = "shakespeare", *, length: int, batch: int, split: str = "train", seed: int = 0) -> Batches:
    """Endless batches `{"x0": (batch, length)}` of 27 symbols; see `characters` and `TextSet.batches`."""
    return characters(name, split, length).batches(batch, seed=seed)


def pieces(name: str, split: str, length: int, tokenizer: Pieces, layout: Layout = Packed(), *, column: str = "text") -> TextSet:  # noqa: B008
    """Any text through a tokenizer; blank documents are left out, the others end in the tokenizer's end.

    Args:
        name, split, column: as of `characters`; each row is a document.
        length: tokens in an example.
        tokenizer: from `train_tokenizer` or `tokenizer_file`.
        layout: `Packed()` (D3PM's LM1B), `Packed(ends=True)` (MDLM's OpenWebText) or `Padded()` (MDLM's LM1B).

    Raises:
        UsageError: where there is no such set, split or column, or less text than one window.
    """
    if not isinstance(tokenizer, Pieces):
        raise UsageError(f"tokenizer={tokenizer!r}: give train_tokenizer(...) or tokenizer_file(...)")
    tokens, letters, words = _tokenised(name, split, column, tokenizer)
    end, padding = tokenizer.tokenizer.token_to_id(tokenizer.end), tokenizer.size
    windows = layout(tokens, length, end=end, padding=padding)
    framing = length / max(1, length - layout.extra)
    return TextSet(windows, tokenizer, tokens.count, letters, words, padding if layout.pads else None, framing=framing)


def documents(name: str, split: str = "train", *, column: str = "text") -> Iterator[str]:
    """The texts of a set one by one, for `train_tokenizer`; arguments and errors as of `characters`."""
    for rows in _rows(name, split, column).iter(1000):
        yield from (text for text in rows[column] if text)


def _letters(found: tuple[Tokens, int, int], length: int, crop: bool) -> TextSet:
    tokens, letters, words = found
    if not 1 <= length * (1 + crop) <= tokens.count:
        need = "twice the length" if crop else "the length"
        raise UsageError(f"length={length}: the text has {tokens.count} symbols, and a window needs {need}, 1 or more")
    windows = StreamWindows(tokens, length * (1 + crop))
    return TextSet(windows, Letters(), tokens.count, letters, words, crop=length if crop else None)


def _rows(name: str, split: str, column: str) -> Dataset:
    """The rows of a set, with their text."""
    path = _file(name, split)
    if path is None:
        rows = load(name, split)
    else:
        import datasets

        file, part = path
        quiet = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            rows = datasets.load_dataset(READERS[file.suffix], data_files=str(file), split=part)
        except Exception as error:
            raise UsageError(
                f"{file} cannot be read as text for the split {split} ({first_line(error)}): mend the file or the name"
            ) from error
        finally:
            if not quiet:
                datasets.enable_progress_bars()
    if column not in rows.column_names:
        raise UsageError(f"{name} has no column {column}: its columns are {', '.join(rows.column_names)}")
    if getattr(rows.features[column], "dtype", "") not in ("string", "large_string"):
        raise UsageError(f"the column {column} of {name} holds no text: its columns are {', '.join(rows.column_names)}")
    return rows


def _file(name: str, split: str) -> tuple[Path, str] | None:
    """The file that a name and a split stand for, and what to take of it; None where the name is not of this machine."""
    path = Path(name)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in READERS)
        if found := [p for p in files if p.stem == split.split("[")[0]]:
            return found[0], "train" + split[len(found[0].stem) :]
        known = ", ".join(p.stem for p in files) or "none"
        raise UsageError(f"the folder {name} has no text for the split {split}: it has {known}; add {split}.txt (or {', '.join(READERS)})")
    if path.is_file():
        if path.suffix not in READERS:
            raise UsageError(f"{name} ends in {path.suffix or 'nothing'}: rename it to one of {', '.join(READERS)}")
        if split.split("[")[0] != "train":
            raise UsageError(f"a single file has the split train, not {split}: give its own file, or a slice such as train[90%:]")
        return path, split
    if path.is_absolute() or name.startswith(".") or path.suffix in READERS:
        raise UsageError(f"there is no file {name}")
    return None


def _tokenised(name: str, split: str, column: str, alphabet: Alphabet) -> tuple[Tokens, int, int]:
    """Tokens, characters and words of a split; a second call with the same text and alphabet finds the file of the first."""
    import datasets
    import pyarrow.compute as pc

    rows = _rows(name, split, column)
    key = json.dumps([FORMAT, rows._fingerprint, column, describe(alphabet)])
    kind = "uint8" if alphabet.size <= 1 << 8 else "uint16" if alphabet.size <= 1 << 16 else "int32"
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value(kind)), "characters": datasets.Value("int64"), "words": datasets.Value("int64")}
    )

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        found = alphabet.encode([text or "" for text in batch[column]])
        return {field: [getattr(document, field) for document in found] for field in features}

    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        made = rows.map(
            encode,
            batched=True,
            features=features,
            remove_columns=rows.column_names,
            new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
        )
    except OSError as error:
        raise UsageError(f"the tokens of {name} cannot be written ({first_line(error)}): set HF_HOME to a folder with space") from error
    finally:
        if not quiet:
            datasets.enable_progress_bars()
    if len(made) == 0:
        raise UsageError(f"{name} holds no text in the column {column} of the split {split}: give a file with some")
    letters, words = (int(pc.sum(made.data.column(field)).as_py()) for field in ("characters", "words"))
    return Tokens.of_arrow(made, "tokens"), letters, words
