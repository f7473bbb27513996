"""What tokens stand for: the 27 symbols of text8, or the pieces of a tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from ..errors import UsageError
from ..serialization import serializable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SYMBOLS = "abcdefghijklmnopqrstuvwxyz "
UNKNOWN = "_"  # how an id that is no token is written: a mask
ENDS = ("</s>", "<|endoftext|>", "<eos>", "[SEP]", "<|end_of_text|>", "[EOS]", "<EOS>")


class Encoded(NamedTuple):
    """One document, or a part of one, as tokens, and what it counts for in figures per character and per word.

    Attributes:
        tokens: none where there is nothing to code.
        characters, words: that they stand for.
        lost: characters that the tokens do not give back, at least.
        unknown: tokens that stand for anything the tokenizer does not know.
    """

    tokens: np.ndarray
    characters: int
    words: int
    lost: int = 0
    unknown: int = 0


class Tokenizer(ABC):
    """Tokens and what they stand for.

    Attributes:
        size: number of tokens, ids 0 to size - 1.
    """

    size: int

    @property
    @abstractmethod
    def named(self) -> str:
        """What the numbers stand for, in short: the same for alphabets whose tokens are the same."""

    @abstractmethod
    def encode(self, documents: Sequence[str], follows: Sequence[str] | None = None) -> list[Encoded]:
        """Documents as tokens, one by one.

        Args:
            documents: or parts of them.
            follows: the character after each part in its document, "" where the document ends there; None for whole
                documents.
        """

    @abstractmethod
    def spell(self, ids: list[int]) -> str:
        """Tokens as text; ids that are no token, such as masks, are written `_`."""

    def decode(self, ids: Tensor, padding: int | None = None) -> list[str]:
        """Rows of ids `(B, L)` as texts; `padding` is left out."""
        return [self.spell([i for i in row if i != padding]) for row in ids.tolist()]


def cleaned(text: str) -> str:
    """text8's rule: lower case, and whatever is not a to z becomes a single space."""
    return re.sub("[^a-z]+", " ", text.lower())


@serializable("data.CharacterTokenizer", formerly="unnoise.shared.data.alphabets.Letters")
@dataclass(frozen=True)
class CharacterTokenizer(Tokenizer):
    """27 symbols: a to z are 0 to 25 and one space for everything else is 26 (Austin et al. 2021, appendix B.2.1).

    Documents are cleaned by text8's rule and each ends in a space, so that their concatenation is clean too. Words are
    runs of letters.
    """

    size = len(SYMBOLS)
    named = "27 symbols"

    def encode(self, documents: Sequence[str], follows: Sequence[str] | None = None) -> list[Encoded]:
        """Documents as symbols, uint8."""
        found = []
        for document, follow in zip(documents, follows or [""] * len(documents), strict=True):
            text = cleaned(document).strip()
            within = bool(follow) and re.fullmatch("[a-z]{2}", (document[-1:] + follow).lower()) is not None  # a word
            text += " " if text and not within else ""
            found.append(Encoded(symbols_of(text.encode()), len(text), text.count(" ")))
        return found

    def spell(self, ids: list[int]) -> str:
        """Symbols as text."""
        return "".join(SYMBOLS[i] if 0 <= i < self.size else UNKNOWN for i in ids)


def lost(text: str, again: str) -> int:
    """Characters of a text that its tokens do not decode to, whatever their order, or else those that are too many; 0
    for the same text.

    Spaces at the beginning, which many tokenizers add or drop, count for nothing.
    """
    if text == again or text.lstrip(" ") == again.lstrip(" "):
        return 0
    there, back = Counter(text), Counter(again)
    return (there - back).total() or (back - there).total() or 1


def symbols_of(text: bytes) -> np.ndarray:
    """Clean text as symbols, uint8.

    Raises:
        UsageError: for bytes other than a to z and the space.
    """
    table = np.full(256, 255, np.uint8)
    table[list(SYMBOLS.encode())] = np.arange(len(SYMBOLS))
    symbols = table[np.frombuffer(text, np.uint8)]
    if symbols.size and symbols.max() == 255:
        place = int(symbols.argmax())
        raise UsageError(
            f"byte {text[place : place + 1]!r} at {place} is not a to z or space: use characters(...), which cleans any text"
        )
    return symbols


@serializable("data.SubwordTokenizer", formerly="unnoise.shared.data.alphabets.Pieces")
@dataclass(frozen=True)
class SubwordTokenizer(Tokenizer):
    """The pieces of a tokenizer. A document is its pieces and one end; words are split at white space, and the end
    counts as one.

    Args:
        json: the tokenizer, as the `tokenizers` library writes it.
        end: the piece that ends a document; `decode` writes it as a new line.

    Raises:
        UsageError: where the tokenizer cannot be read or has no such piece.
    """

    json: str = field(repr=False)
    end: str = ENDS[0]

    def __post_init__(self) -> None:
        if self.tokenizer.token_to_id(self.end) is None:
            add = f"t = tokenizers.Tokenizer.from_file(PATH); t.add_special_tokens([{self.end!r}]); t.save(PATH)"
            raise UsageError(
                f"the tokenizer has no piece {self.end!r} to end a document: add one to its file ({add}), or in Python name one of "
                "its own as tokenizer_file(..., end=)"
            )

    @classmethod
    def of_json(cls, json: str, end: str | None = None, path: str = "this") -> SubwordTokenizer:
        """The pieces of a tokenizer's own text; `path` is how errors call it. See `tokenizer_file`."""
        if end is None:
            from tokenizers import Tokenizer

            try:
                pieces = Tokenizer.from_str(json).get_vocab(with_added_tokens=True)
            except Exception as error:
                raise UsageError(
                    f"{path} is not a tokenizer of the `tokenizers` library ({first_line(error)}): give its tokenizer.json"
                ) from error
            end = next((e for e in ENDS if e in pieces), ENDS[0])
        return cls(json, end)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself, which neither cuts nor pads."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(self.json)
        except Exception as error:  # the library raises nothing more special
            raise UsageError(
                f"not a tokenizer of the `tokenizers` library ({first_line(error)}): give its tokenizer.json"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def size(self) -> int:
        """Number of pieces, the special ones too."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def named(self) -> str:
        """The number of pieces, and a digest of each with its number and of the end."""
        pieces = sorted(self.tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda piece: piece[1])
        return f"{self.size} pieces (SHA-256 {hashlib.sha256(json.dumps([pieces, self.end]).encode()).hexdigest()[:8]})"

    @cached_property
    def unknown(self) -> int | None:
        """The piece that stands for what the tokenizer does not know, if it has one."""
        model = json.loads(self.json)["model"]
        return (
            model["unk_id"]
            if model.get("unk_id") is not None
            else self.tokenizer.token_to_id(model.get("unk_token") or "")
        )

    def encode(self, documents: Sequence[str], follows: Sequence[str] | None = None) -> list[Encoded]:
        """Documents as pieces, uint16 where that is enough and int32 otherwise, decoded again to see what is lost.

        Raises:
            UsageError: for text that the tokenizer cannot write and has no unknown piece for.
        """
        follows, kind, end = (
            follows or [""] * len(documents),
            np.uint16 if self.size <= 1 << 16 else np.int32,
            self.tokenizer.token_to_id(self.end),
        )
        try:
            found = [e.ids for e in self.tokenizer.encode_batch(list(documents), add_special_tokens=False)]
            again = self.tokenizer.decode_batch(found, skip_special_tokens=False)
        except Exception as error:  # the library raises nothing more special
            remedy = "give it an unknown piece, or take train_tokenizer, which writes every text"
            raise UsageError(f"the tokenizer cannot write this text ({first_line(error)}): {remedy}") from error
        return [
            Encoded(
                np.array([*ids, end] if not follow else ids, kind),
                len(document),
                len(document.split())
                + (1 if not follow else -1 if not (document[-1].isspace() or follow.isspace()) else 0),
                lost(document, text),
                0 if self.unknown is None else ids.count(self.unknown),
            )
            for document, follow, ids, text in zip(documents, follows, found, again, strict=True)
        ]

    def spell(self, ids: list[int]) -> str:
        """Pieces as text."""
        end, parts = self.tokenizer.token_to_id(self.end), []
        for mark, run in groupby(ids, key=lambda i: "\n" if i == end else "" if 0 <= i < self.size else UNKNOWN):
            run = list(run)
            parts.append(mark * len(run) or self.tokenizer.decode(run, skip_special_tokens=False))
        return "".join(parts)

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer; `tokenizer_file` reads it."""
        Path(path).write_text(self.json, encoding="utf-8")


def train_tokenizer(texts: Iterable[str], vocabulary: int = 8192) -> SubwordTokenizer:
    """Byte-pair encoding learned from texts (Sennrich et al. 2016, on bytes as in GPT-2).

    Every text has an encoding that decodes to itself, so bits per character and perplexity per word are those of the
    text. D3PM uses sentencepiece's unigram model with 8192 pieces on LM1B: the vocabulary is as large, the pieces
    differ.

    Args:
        texts: see `documents`.
        vocabulary: pieces, with 256 bytes and the end among them; a small text yields fewer.

    Raises:
        UsageError: where the bytes and the end alone are more.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if isinstance(texts, str):
        raise UsageError(
            f"texts={texts[:40]!r}: give an iterable of texts, such as documents({texts[:40]!r}) for the file of that name"
        )
    if vocabulary < 257:
        raise UsageError(f"vocabulary={vocabulary}: give 257 or more, for 256 bytes and the end of a document")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[ENDS[0]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return SubwordTokenizer(tokenizer.to_str())


def tokenizer_file(path: str | Path, end: str | None = None) -> SubwordTokenizer:
    """The tokenizer of a `tokenizer.json`, such as GPT-2's for OpenWebText.

    Args:
        path: the file.
        end: the piece that ends a document; by default the first of `</s>`, `<|endoftext|>`, `<eos>`, `[SEP]` that it
            has.

    Raises:
        UsageError: where there is no such file or piece, or the file holds no tokenizer.
    """
    try:
        json = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "give a tokenizer.json (GPT-2's is in huggingface.co/openai-community/gpt2), or use train_tokenizer"
        raise UsageError(f"the tokenizer {path} cannot be read ({first_line(error)}): {remedy}") from error
    return SubwordTokenizer.of_json(json, end, str(path))


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
