"""Text from any source, tokenized once into a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UsageError
from ..serialization import serialize
from .batches import Batches
from .detokenizers import VERSION as RULES
from .detokenizers import detokenizer as rules_of
from .sources import load
from .text_dataset import TextDataset
from .text_files import Documents, parts, quiet, rows_of
from .tokenizers import CharacterTokenizer, SubwordTokenizer, Tokenizer, character_ids, first_line
from .windows import Layout, Packed, StreamWindows, Tokens

FORMAT = 3  # version of the tokenized files; a new number makes them anew
AT_ONCE = 1 << 23  # bytes of text that are tokenized together, about
UNITS = {None: "document", "file": "document", "paragraphs": "paragraph", "lines": "line"}


def characters(
    name: str,
    split: str = "train",
    length: int = 256,
    *,
    column: str = "text",
    crop: bool = False,
    held_out: float | None = None,
    detokenizer: str = "none",
) -> TextDataset:
    r"""Loads any text as 27 characters: a to z are 0 to 25, everything else becomes one space, 26 (text8's rule).

    Documents run together.

    Args:
        name: a bundled data set (`shakespeare`); a text, Parquet, JSON or CSV file; a folder of files whose names have
            the splits (`train.txt`, `train-00000-of-00002.parquet`); or a data set on the Hub. Text is UTF-8, or the
            encoding of its byte order mark; all ends of lines become `\n`.
        split: `train`, `test`, ...; a single file has `train` alone, or a slice of it: `train[:90%]` is that share of
            its characters up to the end of a document, a line or a word, `train[:1000]` its first 1000 rows, which in a
            text file are its lines.
        length: L, number of characters in an example; windows do not overlap.
        column: name of the column that holds the text; in a text file it is `text`.
        crop: whether to train as D3PM: windows are blocks of 2 `length` characters, and a batch takes a random crop of
            each.
        held_out: share or number of the rows of the split train that are held out as the split test, by the rules of
            `held_out_rows`; None for the set's own split test.
        detokenizer: name of the rules that each row goes through first, such as `ptb`; see `DETOKENIZERS`.

    Raises:
        UsageError: where there is no such data set, split, column or detokenizer, or less text than one window.
    """
    found = _tokenized(name, split, column, CharacterTokenizer(), held_out=held_out, detokenizer=detokenizer)
    return _character_windows(found, length, crop)


def shakespeare(split: str = "train", length: int = 256, *, crop: bool = False) -> TextDataset:
    """Loads the bundled works of Shakespeare as 27 characters.

    The splits are `train` (38 works), `validation` and `test` (Hamlet, the Sonnets).
    """
    return characters("shakespeare", split, length, crop=crop)


def text8(split: str = "train", length: int = 256, *, path: str | Path = "text8") -> TextDataset:
    """Loads text8, 10^8 characters of Wikipedia: 90 % for training, 5 % for validation and 5 % for testing.

    Training takes a random window of each block of 2 `length` characters, an epoch being all blocks (Austin et al.
    2021, appendix B.2.1); windows of validation and test do not overlap.

    Args:
        split: `train`, `validation` or `test`.
        length: number of characters in an example.
        path: the file `text8`; where it does not exist, the data set is loaded from the Hub.

    Raises:
        UsageError: where there is no such split, neither a file nor the Hub has the data, or they hold bytes other than
            the 27 characters.
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
            raise UsageError(f"there is no file {path}, and the Hub cannot be reached: {remedy}") from error
    ids = character_ids(text)
    words = int(((ids[1:] == 26) & (ids[:-1] != 26)).sum() + (ids[-1:] != 26).sum())
    tokens = Tokens([(ids, np.array([0, len(ids)]))])
    return _character_windows(Tokenized(tokens, len(ids), len(ids), words), length, split == "train")


def character_batches(
    name: str = "shakespeare", *, length: int, batch: int, split: str = "train", seed: int = 0
) -> Batches:
    """Returns endless batches `{"x0": (batch, length)}` of 27 characters.

    Tokens are int64 in 0..26. See `characters` and `TextDataset.batches` for the arguments.
    """
    return characters(name, split, length).batches(batch, seed=seed)


def subwords(
    name: str,
    split: str,
    length: int,
    tokenizer: SubwordTokenizer,
    layout: Layout = Packed(),  # noqa: B008
    *,
    column: str = "text",
    documents: Documents | None = None,
    held_out: float | None = None,
    detokenizer: str = "none",
) -> TextDataset:
    r"""Loads any text through a subword tokenizer; each document ends in the end token, and blank ones are left out.

    Args:
        name, split, column, held_out, detokenizer: as for `characters`; each row is a document.
        length: L, number of tokens in an example.
        tokenizer: from `train_tokenizer` or `tokenizer_file`.
        layout: how documents become windows: run together, `Packed()` (D3PM's LM1B), the same with an end token at both
            ends of a window, `Packed(ends=True)` (MDLM's OpenWebText), or one a window, `Padded()` (MDLM's LM1B).
        documents: what a document of a `.txt` file is: the whole `file` with its line breaks, its `paragraphs` between
            blank lines, or its `lines` without their breaks. None for the file, and for lines where the layout takes
            one document a window.

    Raises:
        UsageError: where there is no such data set, split or column, or less text than one window.
    """
    if not isinstance(tokenizer, SubwordTokenizer):
        raise UsageError(f"tokenizer={tokenizer!r}: give train_tokenizer(...) or tokenizer_file(...)")
    default: Documents | None = "lines" if layout.pads else None
    found = _tokenized(name, split, column, tokenizer, documents, default, held_out, detokenizer)
    end, padding = tokenizer.backend.token_to_id(tokenizer.end), tokenizer.size
    assert end is not None, "a SubwordTokenizer has its end token"
    windows = layout(found.tokens, length, end=end, padding=padding)
    made = TextDataset(
        windows,
        tokenizer,
        found.tokens.count,
        found.characters,
        found.words,
        padding if layout.pads else None,
        framing=length / max(1, length - layout.extra),
        lost_characters=found.lost_characters,
        unknown_tokens=found.unknown_tokens,
    )
    return replace(made, summary=found.summary(windows.kept, made))


def documents(
    name: str, split: str = "train", *, column: str = "text", documents: Documents | None = None
) -> Iterator[str]:
    """Yields the documents of a data set one by one, large ones in parts, such as for `train_tokenizer`.

    Arguments and errors are those of `subwords`.
    """
    for rows in rows_of(name, split, column, documents).batches(1000):
        yield from (part for text, _ in rows if text for part, _ in parts([text]))


class Tokenized(NamedTuple):
    """A split as tokens, with counts of what it holds.

    Attributes:
        tokens: the tokens of all its documents.
        read: number of characters that were read.
        characters: number of characters that the tokens stand for.
        words: number of words that the tokens stand for.
        lost_characters, unknown_tokens: see `TextDataset`.
        rows: number of documents.
        kept: number of documents of which something was encoded.
        unit: what a document is called, such as `line`.
    """

    tokens: Tokens
    read: int
    characters: int
    words: int
    lost_characters: int = 0
    unknown_tokens: int = 0
    rows: int = 1
    kept: int = 1
    unit: str = "document"

    def summary(self, used: int, text: TextDataset) -> str:
        """Returns one line on what was loaded and what was left out; `used` is the number of tokens in the windows."""
        windows = f"{_counted(len(text.windows), 'window')} of {text.length}"
        source = f"{_counted(self.read, 'character')} in {_counted(self.kept, self.unit)}"
        lines = [f"{windows} from {_counted(self.tokens.count, 'token')} of {source}"]
        if isinstance(text.tokenizer, CharacterTokenizer) and self.read != self.characters:
            lines.append("a to z are kept, and each run of anything else is one space")
        if self.rows > self.kept:
            lines.append(
                f"left out: {self.rows - self.kept:,} of {_counted(self.rows, self.unit)}, with nothing to encode"
            )
        if used < self.tokens.count:
            where = (
                "the ends of documents longer than a window"
                if text.padding is not None
                else "less than a window at the end"
            )
            lines.append(f"left out: {_counted(self.tokens.count - used, 'token')}, {where}")
        return "; ".join([*lines, text.lossy] if text.lost_characters else lines)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _character_windows(found: Tokenized, length: int, crop: bool) -> TextDataset:
    tokens = found.tokens
    if not 1 <= length * (1 + crop) <= tokens.count:
        need = ", and random crops are taken from blocks of twice the length" if crop else ""
        most = tokens.count // (1 + crop)
        remedy = f"give a length of 1 to {most}, or more text" if most else "give more text"
        raise UsageError(f"length={length}: the text has {_counted(tokens.count, 'token')}{need}: {remedy}")
    windows = StreamWindows(tokens, length * (1 + crop))
    made = TextDataset(
        windows, CharacterTokenizer(), tokens.count, found.characters, found.words, crop=length if crop else None
    )
    return replace(made, summary=found.summary(windows.kept, made))


def _tokenized(
    name: str,
    split: str,
    column: str,
    tokenizer: Tokenizer,
    documents: Documents | None = None,
    default: Documents | None = None,
    held_out: float | None = None,
    detokenizer: str = "none",
) -> Tokenized:
    """Tokenizes a split; a second call with the same text and tokenizer finds the file of the first."""
    import datasets

    change = rules_of(detokenizer)
    rows = rows_of(name, split, column, documents, default, held_out)
    data = rows.select()
    rules = [] if detokenizer == "none" else [detokenizer, RULES]
    key = json.dumps([FORMAT, rows.data._fingerprint, column, rows.start, rows.stop, serialize(tokenizer), *rules])
    kind = "uint8" if tokenizer.size <= 1 << 8 else "uint16" if tokenizer.size <= 1 << 16 else "int32"
    counts = ("read", "characters", "words", "lost_characters", "unknown_tokens", "rows")
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value(kind)), "last": datasets.Value("bool")}
        | dict.fromkeys(counts, datasets.Value("int64"))
    )

    def encode(batch: dict[str, Any], indices: list[int]) -> dict[str, Any]:
        texts, follows, ends, read = [], [], 0, 0
        for raw, follow in rows.texts(batch, indices):
            text = change(raw) if raw else raw
            ends, read = ends + (not follow), read + len(text or "")
            if text and (text.strip() or follow):
                held = list(parts([text]))
                texts += [part for part, _ in held]
                follows += [after or follow for _, after in held]
        found = tokenizer.encode(texts, follows) if texts else []
        made, some = [], False
        for after, e in zip(follows, found, strict=True):
            some |= len(e.tokens) > 0
            if some:
                own = (e.characters, e.words, e.lost_characters, e.unknown_tokens)
                made.append((e.tokens.astype(kind, copy=False), not after, 0, *own, 0))
            some &= bool(after)
        made.append((np.array([], kind), False, read, 0, 0, 0, 0, ends))  # counts of all rows, encoded or not
        return dict(zip(features, map(list, zip(*made, strict=True)), strict=True))

    with quiet():
        try:
            made = data.map(
                encode,
                with_indices=True,
                batched=True,
                batch_size=max(1, min(1000, AT_ONCE * len(data) // max(1, data.data.nbytes))),
                features=features,
                remove_columns=data.column_names,
                new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
            )
        except OSError as error:
            raise UsageError(
                f"the tokens of {name} cannot be written ({first_line(error)}): set HF_HOME to a folder on a disk with "
                "free space"
            ) from error
    total = {count: _total(made, count) for count in counts}
    tokens = Tokens.of_arrow(made, "tokens", "last")
    if not tokens.count:
        if (
            total["read"]
            and isinstance(tokenizer, CharacterTokenizer)
            and any(t and t.strip() for part in rows.batches(1000) for t, _ in part)
        ):
            held = f"{name} has {_counted(total['read'], 'character')} in the split {split}, and none of a to z"
            remedy = "give a tokenizer (--data.tokenizer tokenizer.json; subwords(...) with train_tokenizer)"
            raise UsageError(f"{held}, the only ones that are kept without a tokenizer: {remedy}")
        where = f"the split {split}" if rows.documents else f"the column {column} of the split {split}"
        raise UsageError(f"{name} has no text in {where}: give a file with some")
    return Tokenized(
        tokens, **total, kept=1 if rows.documents == "file" else tokens.documents, unit=UNITS[rows.documents]
    )


def _total(rows: Any, column: str) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(rows.data.column(column)).as_py() or 0)  # pyright: ignore[reportAttributeAccessIssue]
