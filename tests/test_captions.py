"""Captions: their tokens, and the picture that has them."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from unnoise.shared.data import SubwordTokenizer, caption_tokens, train_tokenizer
from unnoise.shared.data.captions import requested_tokens
from unnoise.shared.errors import UsageError
from unnoise.shared.figures import save_captioned
from unnoise.shared.figures.captions import wrapped

WORDS = {"</s>": 0, "[UNK]": 1, "red": 2, "heart": 3, "cat": 4}


@pytest.fixture(scope="module")
def words():
    """A tokenizer of whole words."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return SubwordTokenizer(tokenizer.to_str())


def test_captions_are_rows_of_tokens_with_an_end_and_padding(words):
    found = caption_tokens(["red heart", "cat", "", "  "], words, 4)
    assert found.tokens.tolist() == [[2, 3, 0, -1], [4, 0, -1, -1], [-1] * 4, [-1] * 4]
    assert found.tokens.dtype == torch.int64
    assert found.notes == ()


def test_what_is_cut_or_unknown_is_counted(words):
    found = caption_tokens(["red red heart", "a cat", "cat"], words, 3)
    assert found.tokens.tolist() == [[2, 2, 0], [1, 4, 0], [4, 0, -1]]
    assert found.notes == (
        "1 caption has more than 3 tokens, of which the first 2 are read",
        "1 caption has text that the tokenizer does not know",
    )
    assert caption_tokens(["a"] * 2, words, 3).notes == ("2 captions have text that the tokenizer does not know",)


def test_many_captions_are_encoded_in_parts(words, monkeypatch):
    captions = ["red", "heart", "cat", "red heart", ""]
    whole = caption_tokens(captions, words, 3).tokens
    monkeypatch.setattr("unnoise.shared.data.captions.CHUNK", 2)
    assert caption_tokens(captions, words, 3).tokens.equal(whole)


def test_requested_captions_are_neither_cut_nor_partly_read(words):
    assert requested_tokens(["red cat", ""], words, 4).tolist() == [[2, 4, 0, -1], [-1] * 4]
    with pytest.raises(UsageError, match="'red red heart' has 4 tokens with its end token, and the model takes 3"):
        requested_tokens(["red red heart"], words, 3)
    with pytest.raises(UsageError, match="does not know 'blue', 'dog' in the caption 'blue dog': use other words"):
        requested_tokens(["cat", "blue dog"], words, 3)
    with pytest.raises(UsageError, match="a caption of 1 tokens has no room"):
        caption_tokens(["cat"], words, 1)


def test_a_tokenizer_of_captions_reads_a_word_alike_everywhere():
    texts = ["red heart", "Heart", "broken heart", "Red circle"] * 5
    tokenizer = train_tokenizer(texts, 300, uniform_words=True)
    heart, red = (caption_tokens([text], tokenizer, 9).tokens for text in ("Heart", "red HEART"))
    assert [row for row in red[0].tolist() if row in heart[0].tolist()][:2] == heart[0, :2].tolist()
    assert tokenizer.decode(red, padding=-1) == [" red heart\n"]
    other = train_tokenizer(texts, 300)
    assert len(set(other.encode(["heart"])[0].tokens) & set(other.encode(["red heart"])[0].tokens)) == 1  # its end


def test_a_picture_has_each_caption_below_its_image(tmp_path):
    images = torch.zeros(5, 3, 15, 15)
    images[3, 0] = 1
    plain = np.array(Image.open(save_captioned(tmp_path / "a.png", images, [""] * 5, columns=3)).convert("RGB"))
    some = np.array(Image.open(save_captioned(tmp_path / "b.png", images, ["", "a cat", *[""] * 3], 3)).convert("RGB"))
    height, width = plain.shape[0] // 2, plain.shape[1] // 3
    rows, columns = np.nonzero((plain != some).any(-1))
    assert len(rows) > 20
    assert rows.min() > 150  # below the image, which is 150 pixels high
    assert rows.max() < height
    assert columns.min() > width
    assert columns.max() < 2 * width
    rows, columns = np.nonzero((plain == [255, 0, 0]).all(-1))
    assert len(rows) == 150 * 150
    assert rows.min() > height
    assert columns.max() < width
    assert (plain[height:, -width:] == 255).all()  # no sixth image
    with pytest.raises(UsageError, match="5 images and 1 captions"):
        save_captioned(tmp_path / "c.png", images, ["a"])


def test_long_captions_are_cut_in_pictures():
    assert wrapped("a red heart") == "a red heart"
    assert wrapped("word " * 40).endswith("...")
    assert wrapped("word " * 40).count("\n") == 2
