"""Text in the layouts of the Hub, in local files of the same columns and names, with random words for the documents."""

import datasets
import pytest
import torch
from text_files import TOKENIZER, WORDS

from unnoise.experiments.text_data import Text
from unnoise.shared.data import Padded, characters, documents, subwords
from unnoise.shared.data.tokenizers import cleaned
from unnoise.shared.errors import UsageError


def rows(root, **files):
    """Parquet files by their names, each of some documents."""
    root.mkdir(parents=True, exist_ok=True)
    for name, texts in files.items():
        datasets.Dataset.from_dict({"text": texts}).to_parquet(root / f"{name.replace('_', '-')}.parquet")
    return str(root)


def text(number, count=30):
    """A document of its own words."""
    return " ".join(f"{word}{'ijklmnop'[number % 8]}" for word in WORDS[number * count : (number + 1) * count])


def test_the_layout_of_text8(tmp_path):
    """One row in each split, a document of all characters."""
    parts = {f"{split}_00000_of_00001": [text(n, 100)] for n, split in enumerate(("train", "validation", "test"))}
    name = rows(tmp_path / "data", **parts)
    for split, whole in zip(("train", "validation", "test"), parts.values(), strict=True):
        found = Text(name, length=16).load(split)
        assert found.decode(found.windows[:].reshape(1, -1))[0] == f"{cleaned(whole[0])} "[: found.windows[:].numel()]


def test_the_layout_of_lm1b(tmp_path):
    """Sentences in shards, with a split for tests: `plain_text/train-00000-of-00002.parquet`."""
    shards = {f"train_0000{n}_of_00002": [text(2 * n, 6), text(2 * n + 1, 6)] for n in range(2)}
    name = rows(tmp_path / "plain_text", **shards, test_00000_of_00001=[text(7, 6)])
    assert list(documents(name)) == [t for part in shards.values() for t in part]
    found = subwords(name, "train", 128, TOKENIZER, Padded())
    assert len(found.windows) == 4
    assert subwords(str(tmp_path), "test", 16, TOKENIZER, Padded()).windows[:1].shape == (1, 16)
    assert list(documents(str(tmp_path / "plain_text" / "train-*.parquet"))) == list(documents(name))
    half = characters(name, "train[:50%]", 4)
    assert half.decode(half.windows[:].reshape(1, -1))[0][:20] == cleaned(text(0, 6))[:20]
    assert "held out: " in Text(name, length=4).load().summary


def test_the_layout_of_openwebtext(tmp_path):
    """Train alone: documents are held out by their numbers, in training and in evaluation alike."""
    name = rows(tmp_path, train_00000_of_00002=[text(n) for n in range(20)], train_00001_of_00002=[text(20)])
    without = Text(name, length=8).load()
    assert "`unnoise evaluate` will have no text to measure on: " in without.summary
    assert "add a file named test, or hold out a share (--data.held-out 0.1)" in without.summary
    with pytest.raises(UsageError, match="has no split test: its splits are train, by the names of its files"):
        Text(name, length=8).load("test")
    for tokenizer in (None, TOKENIZER.json):
        kept, out = (Text(name, length=8, tokenizer=tokenizer, held_out=4).load(split) for split in ("train", "test"))
        whole = Text(name, length=8, tokenizer=tokenizer).load()
        assert kept.tokens + out.tokens == whole.tokens
        assert "windows for tests" in kept.summary
    again = Text(name, length=8, tokenizer=TOKENIZER.json, held_out=4, seed=5).load("test")
    assert torch.equal(again.windows[:], out.windows[:])
    in_test = [n for n in range(21) if TOKENIZER.decode(out.windows[:].reshape(1, -1))[0].count(text(n)[:20])]
    in_train = [n for n in range(21) if TOKENIZER.decode(kept.windows[:].reshape(1, -1))[0].count(text(n)[:20])]
    assert len(in_test) == 4
    assert not set(in_test) & set(in_train)


def test_validation_is_measured_on_where_there_is_no_test(tmp_path):
    name = rows(tmp_path, train=[text(0)], validation=[text(1)])
    found = Text(name, length=8).load("test")
    assert found.summary.endswith("; the split validation, since no split test can be measured on")
    assert torch.equal(found.windows[:], Text(name, length=8).load("validation").windows[:])
    assert "will have no text" not in Text(name, length=8).load().summary


def test_a_share_of_a_text_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text(text(0))
    with pytest.raises(UsageError, match="held_out=0.1 is for sets whose rows are documents, and the last tenth of"):
        Text(str(tmp_path / "a.txt"), length=8, held_out=0.1).load()
    name = rows(tmp_path / "b", one=[text(n) for n in range(10)])
    kept = Text(f"{name}/one.parquet", length=8, held_out=0.3).load()
    assert "last tenth" not in kept.summary
    assert len(Text(f"{name}/one.parquet", length=8).load().windows) != len(kept.windows)
