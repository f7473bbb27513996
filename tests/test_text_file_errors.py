"""Files that cannot be read as text: each is refused in one line that names the fault and the remedy."""

import gzip
import json
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset
from text_files import TOKENIZER, WORDS, refused, text_of

from unnoise.experiments.text_data import Text
from unnoise.shared.data import characters, subwords, train_tokenizer
from unnoise.shared.errors import UsageError


def test_files_that_are_no_text_are_one_line(tmp_path):
    def path(name, data):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(tmp_path / name)

    cells = "text\ncafé\n"
    for name, words in (
        (path("a.txt.gz", gzip.compress(b"words")), "is compressed: unpack it"),
        (path("b.jsonl", ""), "b.jsonl is empty"),
        (path("c.csv", cells.encode("latin-1")), "byte 0xe9 at 8 is not UTF-8"),
        (
            path("d.csv", b"\xff\xfe" + cells.encode("utf-16-le")),
            "d.csv is UTF-16, by its byte order mark: .*`iconv -f utf-16 -t utf-8`",
        ),
        (
            path("p.jsonl", b"\xff\xfe\x00\x00" + cells.encode("utf-32-le")),
            "is UTF-32, by its .*`iconv -f utf-32 -t utf-8`",
        ),
        (path("e.jsonl", '{"text": "café"}\n'.encode("latin-1")), "byte 0xe9 at 13 is not UTF-8"),
        (
            path("f.jsonl", '{"text": 1}\n{"text": 2}\n'),
            "the column text of .* has the type int64, not text.*--data.column",
        ),
        (
            path("g.jsonl", '{"text": "a"\n'),
            "cannot be read as text: line 1 is not JSON: expecting ',' delimiter, in .*; correct or remove that line",
        ),
        (path("h.parquet", "words"), "cannot be read as text"),
        (path("i.jsonl", '{"body": "a"}\n'), "has no column text: its columns are body; give one of them"),
        (
            path("q.csv", "id;text\n1;words\n"),
            "its only column is 'id;text'; separate columns by commas instead of ';'",
        ),
        (path("j.txt", "words"), "has no column body: the only column of a text file is text"),
        (
            path("both/train.txt", "words") and path("both/train.csv", cells) and str(tmp_path / "both"),
            "train.csv and train.txt for the",
        ),
    ):
        refused(partial(characters, name, column="body" if name.endswith("j.txt") else "text"), words)
    good = path("k.txt", "some words\n")
    refused(lambda: characters(good, "train[:half]"), r"split=train\[:half\]: give the name of a split")
    refused(lambda: characters(good, "train[99%:5%]"), "has no text: take a larger part")
    refused(lambda: subwords(good, "train", 2, TOKENIZER, documents="words"), "documents=words: choose from file")
    refused(lambda: subwords(good, "train[:1]", 2, TOKENIZER, documents="file"), "one document of .*in percent")
    refused(
        lambda: subwords(path("l.csv", cells), "train", 2, TOKENIZER, documents="lines"), "each row of .* is a document"
    )
    refused(lambda: Text(good, documents="lines"), "documents=lines needs a tokenizer")
    refused(lambda: Text(good, tokenizer="t.json", crop=True), "crop=True is for text of 27 characters")
    assert text_of(characters(path("m.csv", b"\xef\xbb\xbf" + cells.encode()), length=1)) == "caf "
    assert text_of(characters(path("n.jsonl", b"\xef\xbb\xbf" + b'{"text": "words"}\n'), length=1)) == "words "
    assert Path(good).read_text() == "some words\n"


def test_a_set_elsewhere_without_a_test_part_is_said(monkeypatch):
    """As a set on the hub that has `train` alone."""

    def load(name, split):
        if split != "train":
            raise UsageError(f'cannot load the data set {name} (Unknown split "{split}")')
        return Dataset.from_dict({"text": WORDS})

    monkeypatch.setattr("unnoise.shared.data.text_files.load", load)
    monkeypatch.setattr("unnoise.shared.data.text.FORMAT", -2)
    assert (
        "`unnoise evaluate` will have no text to measure on: cannot load" in Text("some/set", length=8).load().summary
    )


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_rows_that_are_no_text_are_named(tmp_path, form):
    """A null and a row without the column are left out and counted; a number or a list is refused, with its row."""
    good = [{"text": f"some words number {i}"} for i in range(700)]

    def file(*more):
        rows, path = good[:300] + list(more) + good[300:], tmp_path / f"{len(list(tmp_path.iterdir()))}.{form}"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) if form == "jsonl" else json.dumps(rows))
        return partial(characters, str(path), length=5)

    assert "left out: 2 of 702 documents" in file({"text": None}, {"other": "x"})().summary
    refused(
        file({"text": None}, {"text": 5}, {"other": "x"}),
        r"has no text in 1 of 703 rows, namely row 302 \(5\): correct or remove",
    )
    refused(
        file({"text": ["a"]}, {"text": 2.5}),
        r'in 2 of 702 rows, first in row 301 \(\["a"\]\): correct or remove',
    )
    refused(file({"text": {"a": 1}}), r'row 301 \(\{"a": 1\}\)')


@pytest.mark.parametrize(
    ("mend", "words"),
    [(lambda t: t[:-9], "line 700 .*unterminated"), (lambda t: t.replace('33"}', "33", 1), "line 34 ")],
)
def test_a_broken_line_is_named_and_nothing_else_is_printed(tmp_path, monkeypatch, capfd, caplog, mend, words):
    """Cut off at its end, or broken in the middle; the library's own lines on it, with other places, stay away."""
    import datasets

    level = datasets.logging.get_verbosity()
    monkeypatch.setattr(datasets.logging.get_logger("datasets"), "propagate", True)
    path = tmp_path / "a.jsonl"
    path.write_text(mend("".join(json.dumps({"text": f"some words number {i}"}) + "\n" for i in range(700))))
    refused(lambda: characters(str(path), length=5), f"cannot be read as text: {words}")
    table = tmp_path / "a.csv"
    table.write_bytes("text\ncafé words\n".encode("latin-1") * 20)
    refused(lambda: characters(str(table), length=5), "byte 0xe9 at 8 is not UTF-8")
    said = capfd.readouterr()
    assert (said.out, said.err, caplog.text) == ("", "", "")
    assert datasets.logging.get_verbosity() == level


def test_text_without_the_letters_a_to_z(tmp_path):
    """It is not empty: its writing is another, and a tokenizer reads it."""
    path = tmp_path / "a.txt"
    for text in ("你好 世界\n" * 20, "1234 5678\n" * 20, "привет мир\n" * 20):
        path.write_text(text)
        count = len(text)
        refused(
            lambda: characters(str(path), length=4),
            rf"a.txt has {count} characters in the split train, and none of a to z, the only ones .*: "
            r"give a tokenizer \(--data.tokenizer",
        )
        refused(lambda: Text(str(path), length=4).load(), "none of a to z.*--data.tokenizer tokenizer.json")
        assert text_of(subwords(str(path), "train", 1, train_tokenizer([text], 300))) == text
    path.write_text(" \n\t\n" * 20)
    refused(lambda: characters(str(path), length=4), "a.txt has no text in the split train: give a file with some")


def test_a_text_shorter_than_a_window(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("ab cd")
    refused(
        lambda: characters(str(path), length=16),
        "length=16: the text has 6 tokens: give a length of 1 to 6, or more text$",
    )
    refused(lambda: characters(str(path), length=0), "length=0: the text has 6 tokens: give a length of 1 to 6")
    refused(
        lambda: characters(str(path), length=4, crop=True),
        "random crops are taken from blocks of twice the length: give a length of 1 to 3, or",
    )
    assert len(characters(str(path), length=6).windows) == len(characters(str(path), length=3, crop=True).windows) == 1
