"""A text, its tokenizer, and what was read of a file."""

import random

import pytest

from unnoise.shared.data import train_tokenizer
from unnoise.shared.errors import UsageError

TEXT = "The café cost 5.\nNaïve  words,\n\nThen\ta second paragraph\n  of two lines.\n"
TOKENIZER = train_tokenizer([TEXT], 300)
CHANCE = random.Random(1)
WORDS = ["".join(CHANCE.choice("abcdefgh") for _ in range(CHANCE.randint(1, 9))) for _ in range(1500)]


def text_of(found) -> str:
    """What the windows of one token each say, without the last end."""
    return found.decode(found.windows[:].T)[0].removesuffix("\n")


def refused(make, words):
    with pytest.raises(UsageError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
