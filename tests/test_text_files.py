"""Text in files of every encoding and form: the right tokens, counts of what is left out, or one line."""

import itertools
import json
import random
import re

import pytest
import torch
from datasets import Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from text_files import TEXT, TOKENIZER, WORDS, refused, text_of

from unnoise.experiments.text_data import Text
from unnoise.shared.data import CharacterTokenizer, Padded, characters, documents, subwords
from unnoise.shared.data.text_files import lines, parts
from unnoise.shared.data.text_slices import cut, row_ends
from unnoise.shared.data.tokenizers import cleaned

FORMS = {
    "lines": TEXT,
    "no last break": TEXT.rstrip("\n"),
    "one line": TEXT.replace("\n", " "),
    "CRLF": TEXT.replace("\n", "\r\n"),
    "CR": TEXT.replace("\n", "\r"),
    "empty": "",
    "blank": " \n\n \t\n",
}
ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "utf-16-le with a mark": lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
    "utf-16-be with a mark": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "utf-32-le with a mark": lambda text: b"\xff\xfe\x00\x00" + text.encode("utf-32-le"),
    "utf-32-be with a mark": lambda text: b"\x00\x00\xfe\xff" + text.encode("utf-32-be"),
    "latin-1": lambda text: text.encode("latin-1"),
    "cp1252": lambda text: text.replace("5", "€5").encode("cp1252"),
    "utf-16-le": lambda text: text.encode("utf-16-le"),
    "cut within a character": lambda text: text.encode() + "é".encode()[:1],
    "utf-16 cut within a character": lambda text: b"\xff\xfe" + text.encode("utf-16-le") + b"a",
}
READ = [name for name in ENCODINGS if name == "utf-8" or "mark" in name]
_FEATURES = Features({"text": Value("string"), "follow": Value("string")})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_and_form(tmp_path, encoding, form):
    path, text = tmp_path / ("a [1].TXT" if form == "CR" else "a.txt"), FORMS[form]
    path.write_bytes(ENCODINGS[encoding](text))
    ends = text.replace("\r\n", "\n").replace("\r", "\n")
    both = (lambda: characters(str(path), length=1), lambda: subwords(str(path), "train", 1, TOKENIZER))
    if encoding in READ and text.strip():
        letters, tokens = (make() for make in both)
        assert text_of(letters).strip() == cleaned(ends).strip()
        assert text_of(tokens) == ends  # with its breaks, without a mark
        assert (tokens.characters, tokens.words, tokens.lost_characters) == (len(ends), len(ends.split()) + 1, 0)
        return
    size = path.stat().st_size
    for make in both:
        if encoding in READ:
            refused(make, "is empty" if not size else "has no text")
        elif encoding == "utf-16-le":
            refused(make, "contains null characters.*utf-16le" if size else "is empty")
        elif "cut" in encoding:
            refused(make, "byte 0x.. at .* is not UTF-")
        elif text.strip():
            place = next(i for i, byte in enumerate(path.read_bytes()) if byte > 127)
            refused(
                make,
                f"byte 0x{path.read_bytes()[place]:02x} at {place} is not UTF-8: save it as UTF-8, such as with `iconv",
            )


def test_the_place_of_a_bad_byte_far_into_a_file(tmp_path):
    path = tmp_path / "long.txt"
    path.write_bytes(b"words " * 400_000 + b"caf\xe9 " + b"words " * 10)
    refused(lambda: characters(str(path)), "byte 0xe9 at 2400003 is not UTF-8")
    path.write_bytes(b"a" + "é".encode() * 600_000 + b"\xe9 ")  # a block of the reader ends within a character
    refused(lambda: characters(str(path)), "byte 0xe9 at 1200001 is not UTF-8")


def test_what_a_document_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    whole, by_paragraph, by_line = (
        subwords(str(path), "train", 1, TOKENIZER, documents=d) for d in ("file", "paragraphs", "lines")
    )
    cut = ["The café cost 5.\nNaïve  words,", "Then\ta second paragraph\n  of two lines."]
    split = [line for line in TEXT.split("\n") if line]
    for found, texts in ((whole, [TEXT]), (by_paragraph, cut), (by_line, split)):
        assert text_of(found) == "\n".join(texts)
        assert found.windows.tokens.documents == len(texts)
        assert found.characters == sum(map(len, texts))
        assert found.words == sum(len(t.split()) + 1 for t in texts)
    assert subwords(str(path), "train", 1, TOKENIZER).windows.tokens.documents == 1
    padded = subwords(str(path), "train", 60, TOKENIZER, Padded())
    assert padded.decode(padded.windows[:]) == [line + "\n" for line in split]
    assert list(documents(str(path))) == [TEXT]
    assert list(documents(str(path), documents="lines")) == split
    assert "left out: 1 of 5 lines, with nothing to encode" in by_line.summary
    assert f"from {whole.tokens} tokens of {len(TEXT)} characters in 1 document" in whole.summary


@settings(deadline=None, max_examples=60)
@given(st.text("ab \n.é", max_size=60), st.integers(1, 9), st.integers(1, 20))
def test_parts_are_the_text(text, size, block):
    """Whatever the size: no character is lost, and tokens are those of the whole text."""
    blocks = [text[i : i + block] for i in range(0, len(text), block)]
    found = list(parts(blocks, size))
    assert "".join(part for part, _ in found) == text
    assert [follow for _, follow in found] == [*(part[0] for part, _ in found[1:]), ""][: len(found)]
    assert "".join(lines(blocks)) == text
    assert list(lines(blocks)) == text.splitlines(keepends=True)
    if found:
        texts, follows = map(list, zip(*found, strict=True))
        assert (
            "".join(
                CharacterTokenizer().detokenize(e.tokens.tolist()) for e in CharacterTokenizer().encode(texts, follows)
            ).strip()
            == cleaned(text).strip()
        )
        (whole,), cut = CharacterTokenizer().encode([text]), CharacterTokenizer().encode(texts, follows)
        assert (whole.characters, whole.words) == (sum(e.characters for e in cut), sum(e.words for e in cut))
        (whole,), cut = TOKENIZER.encode([text]), TOKENIZER.encode(texts, follows)
        assert (whole.characters, whole.words) == (sum(e.characters for e in cut), sum(e.words for e in cut))
        assert TOKENIZER.detokenize([i for e in cut for i in e.tokens.tolist()]) == text + "\n"


def test_a_file_in_many_parts_is_one_document(tmp_path, monkeypatch):
    chance = random.Random(0)
    text = "".join(chance.choice(["words ", "more\n", "\n\n", "x. ", "  "]) for _ in range(3000))
    path = tmp_path / "a.txt"
    path.write_text(text)
    whole = subwords(str(path), "train", 1, TOKENIZER)
    letters = characters(str(path), length=1)
    monkeypatch.setattr("unnoise.shared.data.text_files.parts.__defaults__", (100,))
    monkeypatch.setattr("unnoise.shared.data.text_files.READING", -1)
    monkeypatch.setattr("unnoise.shared.data.text.FORMAT", -1)
    monkeypatch.setattr("unnoise.shared.data.text.AT_ONCE", 1000)
    cut = subwords(str(path), "train", 1, TOKENIZER)
    assert torch.equal(cut.windows[:], whole.windows[:])
    assert (cut.characters, cut.words, cut.windows.tokens.documents) == (whole.characters, whole.words, 1)
    assert torch.equal(characters(str(path), length=1).windows[:], letters.windows[:])
    first, rest = (subwords(str(path), f"train[{part}]", 1, TOKENIZER) for part in (":30%", "30%:"))
    assert text_of(first) + text_of(rest) == text
    end = TOKENIZER.backend.token_to_id("</s>")
    assert int(first.windows[-1]) == int(rest.windows[-1]) == end  # what is cut off ends as a document
    assert first.windows.tokens.documents == rest.windows.tokens.documents == 1


ROWS = {
    "one line": " ".join(WORDS),
    "ten lines": "\n".join(" ".join(WORDS[i : i + 150]) for i in range(0, 1500, 150)),
    "many lines": "\n".join(" ".join(WORDS[i : i + 5]) for i in range(0, 1500, 5)),
    "no white space": "".join(WORDS),
    "one long word": "a b " + "".join(WORDS),
}


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("form", ROWS)
def test_a_tenth_is_held_out_of_every_file(tmp_path, form, kind):
    """In characters, up to the end of a line or a word where there is one; the three parts are the whole."""
    text, path = ROWS[form], tmp_path / f"a.{kind}"
    if kind == "txt":
        path.write_text(text)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in text.split("\n")))
    else:
        rows = Dataset.from_dict({"text": text.split("\n")})
        (rows.to_csv if kind == "csv" else rows.to_parquet)(path)
    source = Text(str(path), batch=4, length=1)
    found = [text_of(source.load(split)) for split in ("train", "validation", "test")]
    spaced = text.replace("\n", " ")
    assert "".join(found).replace(" ", "") == spaced.replace(" ", "")
    for part, share in zip(found, (0.9, 0.05, 0.05), strict=True):
        assert abs(len(part) / len(text) - share) < 0.012
    places = [len(found[0].replace(" ", "")), len("".join(found[:2]).replace(" ", ""))]
    if "white" not in form and "word" not in form:
        assert set(places) <= set(itertools.accumulate(map(len, WORDS)))  # not within a word
    if form == "many lines":
        assert set(places) <= set(itertools.accumulate(len(line.replace(" ", "")) for line in text.split("\n")))
    with_tokenizer = subwords(str(path), "train[95%:]", 1, TOKENIZER)
    assert text_of(with_tokenizer).split() == found[2].split()
    first = subwords(str(path), "train[:90%]", 1, TOKENIZER)
    ends = [i for i in first.windows[:].flatten().tolist() if i == TOKENIZER.backend.token_to_id("</s>")]
    assert int(first.windows[-1]) == ends[-1]  # a part of a document ends as one
    assert len(ends) == first.windows.tokens.documents
    assert first.words == len(text_of(first).split()) + len(ends)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("ab \n", max_size=150) | st.none(), min_size=1, max_size=12), st.booleans())
def test_shares_follow_one_another(rows, one):
    """Larger shares end later, none is far from what was asked for, and words are cut only where they are long."""
    follows = [(rows[i + 1] or "x")[:1] or "x" if one and i + 1 < len(rows) else "" for i in range(len(rows))]
    data = Dataset.from_dict({"text": rows, "follow": follows}, features=_FEATURES)
    ends, text = row_ends(data, "text"), "".join(row or "" for row in rows)
    before = 0
    for share in range(101):
        row, offset = cut(data, "text", ends, share)
        place, target = (int(ends[row - 1]) if row else 0) + offset, len(text) * share // 100
        assert before <= place <= target or share == 100
        assert offset < len([*rows, ""][row] or " ")
        assert target - place <= max(len(text) // 200, 64)
        own = {int(e) for e, follow in zip(ends, follows, strict=True) if not follow} | {0, len(text)}
        within = 0 < place < len(text) and place not in own and not text[place - 1].isspace()
        assert not within or not re.search(r"\s\S", text[max(target - 64, 0) : target + 1])
        before = place


def test_what_cannot_be_tested_is_not_trained(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" ".join(WORDS[:60]))
    refused(
        lambda: Text(str(path), length=32).load(),
        "held out for tests, is shorter than a window .*length=32: .*more text, or a smaller",
    )
    assert "the last tenth of the file is held out" in Text(str(path), length=8).load().summary
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.txt").write_text(" ".join(WORDS))
    said = Text(str(tmp_path / "set"), length=8).load().summary
    assert "`unnoise evaluate` will have no text to measure on: the folder" in said
    (tmp_path / "set" / "test.txt").write_text(" ".join(WORDS))
    assert "held out: " in Text(str(tmp_path / "set"), length=8).load().summary


def test_rows_without_text_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"text": "some words here"},
        {"text": None},
        {"other": 1},
        {"text": "  "},
        {"text": "123"},
        {"text": "more"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = characters(str(path), length=5)
    assert text_of(characters(str(path), length=1)) == "some words here more "
    assert "20 characters" not in found.summary
    assert "24 characters in 2 documents" in found.summary
    assert "left out: 4 of 6 documents, with nothing to encode" in found.summary
    assert "left out: 1 token, less than a window at the end" in found.summary
    padded = subwords(str(path), "train", 4, TOKENIZER, Padded())
    cut = sum(max(0, len(TOKENIZER.encode([row])[0].tokens) - 4) for row in ("some words here", "123", "more"))
    assert f"left out: {cut} tokens, the ends of documents longer than a window" in padded.summary
    table = tmp_path / "a.csv"
    table.write_text("text,n\nNA,1\nnull,2\n,3\nNone,4\n")
    assert text_of(characters(str(table), length=1)) == "na null none "  # words, not gaps
    assert "left out: 1 of 4 documents" in characters(str(table), length=1).summary
