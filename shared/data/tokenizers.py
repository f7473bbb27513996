"""Tokenizers: 27 characters (a to z and space), or the subwords of the `tokenizers` library."""

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
    import tokenizers

CHARACTERS = "abcdefghijklmnopqrstuvwxyz "
UNDECODABLE = "_"  # written for an id outside of the vocabulary, such as a mask
ENDS = ("</s>", "<|endoftext|>", "<eos>", "[SEP]", "<|end_of_text|>", "[EOS]", "<EOS>")


class Encoded(NamedTuple):
    """One document, or a part of one, as token ids, with the counts behind figures per character and per word.

    Attributes:
        tokens: token ids; empty if nothing of the text can be encoded.
        characters: number of characters that the tokens stand for.
        words: number of words that the tokens stand for.
        lost_characters: number of characters that decoding the tokens does not return, at least.
        unknown_tokens: number of tokens that stand for text which the tokenizer does not know.
    """

    tokens: np.ndarray
    characters: int
    words: int
    lost_characters: int = 0
    unknown_tokens: int = 0


class Tokenizer(ABC):
    """Turns text into token ids, 0 to size - 1, and back."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of tokens in the vocabulary."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A short text that is equal for two tokenizers exactly if their token ids mean the same."""

    @abstractmethod
    def encode(self, documents: Sequence[str], follows: Sequence[str] | None = None) -> list[Encoded]:
        """Encodes documents one by one.

        Args:
            documents: documents, or parts of documents.
            follows: for each part the character after it in its document, "" where the document ends there; None for
                whole documents.

        Returns:
            One `Encoded` for each.
        """

    @abstractmethod
    def detokenize(self, ids: list[int]) -> str:
        """Returns the text of one sequence of ids; an id outside of the vocabulary, such as a mask, becomes `_`."""

    def decode(self, ids: Tensor, padding: int | None = None) -> list[str]:
        """Returns the text of each row of ids, integers `(B, L)`, without the token whose id is `padding`."""
        return [self.detokenize([i for i in row if i != padding]) for row in ids.tolist()]


def cleaned(text: str) -> str:
    """Returns a text by text8's rule: lower case, and each run of anything but a to z becomes one space."""
    return re.sub("[^a-z]+", " ", text.lower())


@serializable("data.CharacterTokenizer", formerly="unnoise.shared.data.alphabets.Letters")
@dataclass(frozen=True)
class CharacterTokenizer(Tokenizer):
    """27 characters: a to z are 0 to 25, and one space for all else is 26 (Austin et al. 2021, appendix B.2.1).

    Documents are cleaned by text8's rule and each ends in a space, so that one after the other they are clean too.
    Words are runs of letters.
    """

    @property
    def size(self) -> int:
        """Number of tokens in the vocabulary, 27."""
        return len(CHARACTERS)

    @property
    def fingerprint(self) -> str:
        """`27 characters`."""
        return "27 characters"

    def encode(self, documents: Sequence[str], follows: Sequence[str] | None = None) -> list[Encoded]:
        """Returns each document, or part of one, as ids of characters, uint8, in 0..26."""
        found = []
        for document, follow in zip(documents, follows or [""] * len(documents), strict=True):
            text = cleaned(document).strip()
            within_word = bool(follow) and re.fullmatch("[a-z]{2}", (document[-1:] + follow).lower()) is not None
            text += " " if text and not within_word else ""
            found.append(Encoded(character_ids(text.encode()), len(text), text.count(" ")))
        return found

    def detokenize(self, ids: list[int]) -> str:
        """Returns ids of characters as text; other ids, such as a mask, as `_`."""
        return "".join(CHARACTERS[i] if 0 <= i < self.size else UNDECODABLE for i in ids)


def count_lost_characters(text: str, decoded: str) -> int:
    """Counts the characters of a text that are missing from its decoded tokens, whatever their order.

    Where none is missing, it counts the characters that were added; equal texts give 0. Spaces at the beginning, which
    many tokenizers add or drop, are ignored.
    """
    if text == decoded or text.lstrip(" ") == decoded.lstrip(" "):
        return 0
    before, after = Counter(text), Counter(decoded)
    return (before - after).total() or (after - before).total() or 1


def character_ids(text: bytes) -> np.ndarray:
    """Returns clean text as ids of characters, uint8.

    Raises:
        UsageError: for bytes other than a to z and the space.
    """
    table = np.full(256, 255, np.uint8)
    table[list(CHARACTERS.encode())] = np.arange(len(CHARACTERS))
    ids = table[np.frombuffer(text, np.uint8)]
    if ids.size and ids.max() == 255:
        place = int(ids.argmax())
        raise UsageError(
            f"byte {text[place : place + 1]!r} at {place} is not one of a to z or space: use characters(...), which "
            "cleans any text"
        )
    return ids


@serializable("data.SubwordTokenizer", formerly="unnoise.shared.data.alphabets.Pieces")
@dataclass(frozen=True)
class SubwordTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library; each document becomes its token ids, followed by one end token.

    No other special tokens are added, and the file's own truncation and padding are switched off. For perplexities per
    word, words are split at white space, and each end token counts as one word. `tokenizer_file` and `train_tokenizer`
    make one.

    Args:
        json: the text of a tokenizer.json, in which the `tokenizers` library stores a tokenizer.
        end: text of the token that ends a document, such as "</s>"; `decode` writes it as a line break.

    Raises:
        UsageError: where the library cannot read the tokenizer, or its vocabulary does not contain `end`.
    """

    json: str = field(repr=False)
    end: str = ENDS[0]

    def __post_init__(self) -> None:
        if self.backend.token_to_id(self.end) is None:
            add = f"t = tokenizers.Tokenizer.from_file(PATH); t.add_special_tokens([{self.end!r}]); t.save(PATH)"
            raise UsageError(
                f"the tokenizer has no token {self.end!r} to end a document: add one to its file ({add}), or in Python "
                "name one of its own tokens as tokenizer_file(..., end=)"
            )

    @classmethod
    def of_json(cls, json: str, end: str | None = None, path: str = "this") -> SubwordTokenizer:
        """Returns the tokenizer in the text of a tokenizer.json; see `tokenizer_file`.

        Args:
            json: the content of a tokenizer.json.
            end: the token that ends a document; None for the first of `ENDS` that the vocabulary contains.
            path: name of the text in error messages.
        """
        if end is None:
            from tokenizers import Tokenizer

            try:
                vocabulary = Tokenizer.from_str(json).get_vocab(with_added_tokens=True)
            except Exception as error:
                raise UsageError(
                    f"{path} is not a tokenizer of the `tokenizers` library ({first_line(error)}): give its "
                    "tokenizer.json"
                ) from error
            end = next((e for e in ENDS if e in vocabulary), ENDS[0])
        return cls(json, end)

    @cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer of the `tokenizers` library, without its truncation and padding."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(self.json)
        except Exception as error:  # the library raises bare exceptions
            raise UsageError(
                f"not a tokenizer of the `tokenizers` library ({first_line(error)}): give its tokenizer.json"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def size(self) -> int:
        """Number of tokens in the vocabulary, special tokens included."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """The vocabulary's size, and a digest of each token with its id and of the end token."""
        pairs = sorted(self.backend.get_vocab(with_added_tokens=True).items(), key=lambda pair: pair[1])
        return f"{self.size} tokens (SHA-256 {hashlib.sha256(json.dumps([pairs, self.end]).encode()).hexdigest()[:8]})"

    @cached_property
    def unknown(self) -> int | None:
        """Id of the token for text that the tokenizer does not know; None for a tokenizer without such a token."""
        model = json.loads(self.json)["model"]
        if model.get("unk_id") is not None:
            return model["unk_id"]
        return self.backend.token_to_id(model.get("unk_token") or "")

    @property
    def _end_id(self) -> int:
        found = self.backend.token_to_id(self.end)
        assert found is not None, "checked when it was built"
        return found

    def encode(self, documents: Sequence[str], follows: Sequence[str] | None = None) -> list[Encoded]:
        """Returns documents as token ids, uint16 where that suffices, else int32; decodes them to count what is lost.

        Raises:
            UsageError: for text that the tokenizer cannot encode and has no unknown token for.
        """
        follows = follows or [""] * len(documents)
        kind, end = np.uint16 if self.size <= 1 << 16 else np.int32, self._end_id
        try:
            found = [e.ids for e in self.backend.encode_batch(list(documents), add_special_tokens=False)]
            decoded = self.backend.decode_batch(found, skip_special_tokens=False)
        except Exception as error:  # the library raises bare exceptions
            remedy = "give it an unknown token, or take train_tokenizer, which encodes every text"
            raise UsageError(f"the tokenizer cannot encode this text ({first_line(error)}): {remedy}") from error
        return [
            Encoded(
                np.array([*ids, end] if not follow else ids, kind),
                len(document),
                len(document.split())
                + (1 if not follow else -1 if not (document[-1].isspace() or follow.isspace()) else 0),
                count_lost_characters(document, text),
                0 if self.unknown is None else ids.count(self.unknown),
            )
            for document, follow, ids, text in zip(documents, follows, found, decoded, strict=True)
        ]

    def detokenize(self, ids: list[int]) -> str:
        """Returns token ids as text: the end token as a line break, ids outside of the vocabulary as `_`."""
        end, parts = self._end_id, []
        for mark, run in groupby(ids, key=lambda i: "\n" if i == end else "" if 0 <= i < self.size else UNDECODABLE):
            run = list(run)
            parts.append(mark * len(run) or self.backend.decode(run, skip_special_tokens=False))
        return "".join(parts)

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer to a file that `tokenizer_file` reads."""
        Path(path).write_text(self.json, encoding="utf-8")


def current_fingerprint(fingerprint: str) -> str:
    """Returns a fingerprint in today's words; earlier versions wrote `27 symbols` and `270 pieces (...)`."""
    found = re.fullmatch(r"(\d+) (symbols|pieces)( \(SHA-256 \w+\))?", fingerprint)
    return fingerprint if found is None else f"{found[1]} {'tokens' if found[3] else 'characters'}{found[3] or ''}"


def train_tokenizer(texts: Iterable[str], vocabulary: int = 8192, *, uniform_words: bool = False) -> SubwordTokenizer:
    """Learns byte-pair encoding from texts (Sennrich et al. 2016, on bytes as in GPT-2).

    Every text has an encoding that decodes to itself, so bits per character and perplexity per word are those of the
    text. D3PM uses sentencepiece's unigram model with 8192 tokens on LM1B: the vocabulary is as large, its tokens
    differ.

    Args:
        texts: texts to learn from; see `documents`.
        vocabulary: number of tokens, including 256 bytes and the end token; a small text yields fewer.
        uniform_words: whether a word has the same tokens in small and large letters, and at the beginning and inside of
            a text, as suits short captions; texts then decode in small letters, after a space.

    Raises:
        UsageError: for a vocabulary below 257, which does not hold the bytes and the end token.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if isinstance(texts, str):
        raise UsageError(
            f"texts={texts[:40]!r}: give an iterable of texts, such as documents({texts[:40]!r}) for the file of that "
            "name"
        )
    if vocabulary < 257:
        raise UsageError(f"vocabulary={vocabulary}: give 257 or more, for 256 bytes and the end token")
    tokenizer = Tokenizer(models.BPE())
    if uniform_words:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=uniform_words)
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
    """Reads the tokenizer in a `tokenizer.json`, such as GPT-2's for OpenWebText.

    Args:
        path: the file.
        end: the token that ends a document; by default the first of `</s>`, `<|endoftext|>`, `<eos>`, `[SEP]`,
            `<|end_of_text|>`, `[EOS]`, `<EOS>` that the vocabulary holds.

    Raises:
        UsageError: where there is no such file or token, or the file does not hold a tokenizer.
    """
    try:
        json = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "give a tokenizer.json (GPT-2's is in huggingface.co/openai-community/gpt2), or use train_tokenizer"
        raise UsageError(f"the tokenizer {path} cannot be read ({first_line(error)}): {remedy}") from error
    return SubwordTokenizer.of_json(json, end, str(path))


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or the name of its class if it has no message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
