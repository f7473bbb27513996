"""Text from anywhere, tokenised once into a memory-mapped file."""

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
from .sources import load
from .text_dataset import TextDataset
from .textfiles import Documents, parts, quiet, rows_of
from .tokenizers import CharacterTokenizer, SubwordTokenizer, Tokenizer, first_line, symbols_of
from .windows import Layout, Packed, StreamWindows, Tokens

FORMAT = 2  # of the tokenised files; a new number makes them anew
AT_ONCE = 1 << 23  # bytes of text that are tokenised together, about
UNITS = {None: "document", "file": "document", "paragraphs": "paragraph", "lines": "line"}


def characters(
    name: str, split: str = "train", length: int = 256, *, column: str = "text", crop: bool = False
) -> TextDataset:
    r"""The 27 symbols of any text: a to z are 0 to 25, everything else is one space, 26 (text8's rule). Documents run
    together.

    Args:
        name: a bundled set (`shakespeare`), a text, Parquet, JSON or CSV file, a folder of files named after the
            splits, or a set on the hub. Text is UTF-8, or what its byte order mark says; all ends of lines become `\n`.
        split: `train`, `test`, ...; a single file has `train` alone, or a slice of it: `train[:90%]` is the share of
            its characters up to the end of a document, a line or a word, `train[:1000]` its first rows, which of a text
            file are its lines.
        length: symbols in an example; windows do not overlap.
        column: where the text is; in a text file it is `text`.
        crop: training in the way of D3PM: windows are blocks of 2 length, and a batch takes a random piece of each.

    Raises:
        UsageError: where there is no such set, split or column, or less text than one window.
    """
    return _letters(_tokenised(name, split, column, CharacterTokenizer()), length, crop)


def shakespeare(split: str = "train", length: int = 256, *, crop: bool = False) -> TextDataset:
    """The bundled works of Shakespeare as 27 symbols.

    `train` (38 works), `validation` and `test` (Hamlet, the Sonnets).
    """
    return characters("shakespeare", split, length, crop=crop)


def text8(split: str = "train", length: int = 256, *, path: str | Path = "text8") -> TextDataset:
    """text8: 10^8 symbols of Wikipedia; 90 % are for training and 5 % each for validation and test.

    Training takes a random window of each block of 2 length symbols, an epoch being all blocks (Austin et al. 2021,
    appendix B.2.1); windows of validation and test do not overlap.

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
    return _letters(Tokenised(tokens, len(symbols), len(symbols), words), length, split == "train")


def letters(name: str = "shakespeare", *, length: int, batch: int, split: str = "train", seed: int = 0) -> Batches:
    """Endless batches `{"x0": (batch, length)}` of 27 symbols; see `characters` and `TextDataset.batches`."""
    return characters(name, split, length).batches(batch, seed=seed)


def pieces(
    name: str,
    split: str,
    length: int,
    tokenizer: SubwordTokenizer,
    layout: Layout = Packed(),  # noqa: B008
    *,
    column: str = "text",
    documents: Documents | None = None,
) -> TextDataset:
    r"""Any text through a tokenizer; blank documents are left out, the others end in the tokenizer's end.

    Args:
        name, split, column: as of `characters`; each row is a document.
        length: tokens in an example.
        tokenizer: from `train_tokenizer` or `tokenizer_file`.
        layout: `Packed()` (D3PM's LM1B), `Packed(ends=True)` (MDLM's OpenWebText) or `Padded()` (MDLM's LM1B).
        documents: what a document of a `.txt` file is: the whole `file` with its line breaks, its `paragraphs` between
            blank lines, or its `lines` without their breaks. None for the file, and for lines where the layout takes
            one document a window.

    Raises:
        UsageError: where there is no such set, split or column, or less text than one window.
    """
    if not isinstance(tokenizer, SubwordTokenizer):
        raise UsageError(f"tokenizer={tokenizer!r}: give train_tokenizer(...) or tokenizer_file(...)")
    found = _tokenised(name, split, column, tokenizer, documents, "lines" if layout.pads else None)
    end, padding = tokenizer.tokenizer.token_to_id(tokenizer.end), tokenizer.size
    windows = layout(found.tokens, length, end=end, padding=padding)
    framing = length / max(1, length - layout.extra)
    totals = (found.tokens.count, found.characters, found.words, padding if layout.pads else None)
    made = TextDataset(windows, tokenizer, *totals, framing=framing, lost=found.lost, unknown=found.unknown)
    return replace(made, summary=found.summary(windows.kept, made))


def documents(
    name: str, split: str = "train", *, column: str = "text", documents: Documents | None = None
) -> Iterator[str]:
    """The texts of a set one by one, for `train_tokenizer`, large ones in parts.

    Arguments and errors as of `pieces`.
    """
    for rows in rows_of(name, split, column, documents).batches(1000):
        yield from (part for text, _ in rows if text for part, _ in parts([text]))


class Tokenised(NamedTuple):
    """A split as tokens, and what it holds.

    Attributes:
        tokens: of all its documents.
        read: characters that were read.
        characters, words: that the tokens stand for.
        lost, unknown: see `TextDataset`.
        rows, kept: documents there, and documents with something to code.
        unit: what a document is, in words.
    """

    tokens: Tokens
    read: int
    characters: int
    words: int
    lost: int = 0
    unknown: int = 0
    rows: int = 1
    kept: int = 1
    unit: str = "document"

    def summary(self, used: int, text: TextDataset) -> str:
        """What was loaded and what was left out, in one line; `used` tokens are in the windows."""
        of = f"{_several(self.read, 'character')} in {_several(self.kept, self.unit)}"
        said = [
            f"{_several(len(text.windows), 'window')} of {text.length} from {_several(self.tokens.count, 'token')} of {of}"
        ]
        if isinstance(text.alphabet, CharacterTokenizer) and self.read != self.characters:
            said.append("a to z are kept, and each run of anything else is one space")
        if self.rows > self.kept:
            said.append(
                f"left out: {self.rows - self.kept:,} of {_several(self.rows, self.unit)}, with nothing to code"
            )
        if used < self.tokens.count:
            where = (
                "the ends of documents longer than a window"
                if text.padding is not None
                else "less than a window at the end"
            )
            said.append(f"left out: {_several(self.tokens.count - used, 'token')}, {where}")
        return "; ".join([*said, text.lossy] if text.lost else said)


def _several(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _letters(found: Tokenised, length: int, crop: bool) -> TextDataset:
    tokens = found.tokens
    if not 1 <= length * (1 + crop) <= tokens.count:
        need = ", and a random piece is taken of twice the length" if crop else ""
        most = tokens.count // (1 + crop)
        remedy = f"give a length of 1 to {most}, or more text" if most else "give more text"
        raise UsageError(f"length={length}: the text has {_several(tokens.count, 'symbol')}{need}: {remedy}")
    windows = StreamWindows(tokens, length * (1 + crop))
    made = TextDataset(
        windows, CharacterTokenizer(), tokens.count, found.characters, found.words, crop=length if crop else None
    )
    return replace(made, summary=found.summary(windows.kept, made))


def _tokenised(
    name: str,
    split: str,
    column: str,
    alphabet: Tokenizer,
    documents: Documents | None = None,
    default: Documents | None = None,
) -> Tokenised:
    """Tokens, characters and words of a split.

    A second call with the same text and alphabet finds the file of the first.
    """
    import datasets
    import pyarrow.compute as pc

    rows = rows_of(name, split, column, documents, default)
    data = rows.select()
    key = json.dumps([FORMAT, rows.data._fingerprint, column, rows.start, rows.stop, serialize(alphabet)])
    kind = "uint8" if alphabet.size <= 1 << 8 else "uint16" if alphabet.size <= 1 << 16 else "int32"
    counts = ("read", "characters", "words", "lost", "unknown", "rows")
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value(kind)), "last": datasets.Value("bool")}
        | dict.fromkeys(counts, datasets.Value("int64"))
    )

    def encode(batch: dict[str, Any], indices: list[int]) -> dict[str, Any]:
        texts, follows, ends, read = [], [], 0, 0
        for text, follow in rows.texts(batch, indices):
            ends, read = ends + (not follow), read + len(text or "")
            if text and (text.strip() or follow):
                held = list(parts([text]))
                texts += [part for part, _ in held]
                follows += [after or follow for _, after in held]
        found = alphabet.encode(texts, follows) if texts else []
        made, some = [], False
        for after, e in zip(follows, found, strict=True):
            some |= len(e.tokens) > 0
            if some:
                made.append(
                    (e.tokens.astype(kind, copy=False), not after, 0, e.characters, e.words, e.lost, e.unknown, 0)
                )
            some &= bool(after)
        made.append((np.array([], kind), False, read, 0, 0, 0, 0, ends))  # what was there, with and without a token
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
                f"the tokens of {name} cannot be written ({first_line(error)}): set HF_HOME to a folder with space"
            ) from error
    total = {count: int(pc.sum(made.data.column(count)).as_py() or 0) for count in counts}
    tokens = Tokens.of_arrow(made, "tokens", "last")
    if not tokens.count:
        if (
            total["read"]
            and isinstance(alphabet, CharacterTokenizer)
            and any(t and t.strip() for part in rows.batches(1000) for t, _ in part)
        ):
            of = f"{name} has {_several(total['read'], 'character')} in the split {split}, and none of a to z"
            remedy = "give one (--text.tokenizer tokenizer.json; pieces(...) with train_tokenizer)"
            raise UsageError(f"{of}, which alone are kept without a tokenizer: {remedy}")
        where = f"the split {split}" if rows.documents else f"the column {column} of the split {split}"
        raise UsageError(f"{name} holds no text in {where}: give a file with some")
    return Tokenised(
        tokens, **total, kept=1 if rows.documents == "file" else tokens.documents, unit=UNITS[rows.documents]
    )
