"""Tokenizers of others.

What they lose is counted, and no code of tokens is taken for one of text that they do not hold.
"""

import json
import math
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from unnoise.experiments.cli import main
from unnoise.shared.data import SubwordTokenizer, subwords, tokenizer_file, train_tokenizer
from unnoise.shared.errors import UsageError

TEXT = "The cat  sat, and\nThe dog sat too.\n\nNobody knows why? not 1 of them\n"
LINES = [line for line in TEXT.split("\n") if line]
KNOWN = ["the", "cat", "sat", "and", "dog", "too", "nobody", "knows", "why", "not", "of", "them"]


def words(*, unknown="[UNK]", names=(), **parts):
    """A tokenizer of whole words."""
    vocabulary = {piece: i for i, piece in enumerate([*filter(None, [unknown]), "</s>", *(names or KNOWN)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, **({"unk_token": unknown} if unknown else {})))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return SubwordTokenizer(tokenizer.to_str())


def letters(text, **options):
    """A tokenizer of single characters."""
    vocabulary = {piece: i for i, piece in enumerate(["</s>", *sorted(set(text)), *options.pop("more", ())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], **options))
    tokenizer.decoder = decoders.Fuse()
    return SubwordTokenizer(tokenizer.to_str())


def sentences(scheme):
    """A tokenizer as sentencepiece's, which writes a space as a low line and puts one before a text."""
    vocabulary = [(piece, -1.0) for piece in ["<unk>", "</s>", *sorted(set(TEXT.replace(" ", "▁")))]]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return SubwordTokenizer(tokenizer.to_str())


def of(tokenizer, path, **options):
    path.write_text(TEXT)
    return subwords(str(path), "train", 4, tokenizer, **options)


@pytest.mark.parametrize(
    "tokenizer",
    [
        train_tokenizer([TEXT], 280),
        train_tokenizer(["other words alone"], 280),
        letters(TEXT),
        letters("ab", unk_token=None, byte_fallback=True, more=[f"<0x{n:02X}>" for n in range(256)]),
        sentences("always"),
        sentences("never"),
    ],
    ids=["bytes", "bytes of another text", "letters", "byte fallback", "a space before", "none before"],
)
def test_what_gives_the_text_back_loses_nothing(tmp_path, tokenizer):
    if 'byte_fallback":true' in tokenizer.json.replace(" ", ""):
        inner = Tokenizer.from_str(tokenizer.json)
        inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        tokenizer = SubwordTokenizer(inner.to_str())
    found = of(tokenizer, tmp_path / "a.txt")
    assert (found.lost_characters, found.unknown_tokens, found.lossy) == (0, 0, "")
    assert found.characters == len(TEXT)
    assert found.bits_per_character(1.0) == pytest.approx(found.tokens / (len(TEXT) * math.log(2)))
    stream = found.windows.tokens.document(0)[:-1].tolist()
    assert tokenizer.backend.decode(stream, skip_special_tokens=False).lstrip(" ") == TEXT


def missing(again):
    return (Counter(TEXT) - Counter(again)).total()


@pytest.mark.parametrize(
    ("tokenizer", "again", "unknown"),
    [
        (words(), " ".join(w if w in KNOWN else "[UNK]" for w in TEXT.split()), 7),
        (words(names=TEXT.split()), " ".join(TEXT.split()), 0),  # white space alone is lost
        (words(names=TEXT.lower().split(), normalizer=normalizers.Lowercase()), " ".join(TEXT.lower().split()), 0),
        (letters(TEXT.replace("?", "")), TEXT.replace("?", ""), 0),  # dropped without a word
        (letters(TEXT.replace("?", ""), unk_token="</s>"), TEXT.replace("?", "</s>"), 1),
    ],
    ids=["unknown words", "white space", "upper case", "a character dropped", "a character unknown"],
)
def test_what_does_not_is_counted_and_codes_no_text(tmp_path, tokenizer, again, unknown):
    found = of(tokenizer, tmp_path / "a.txt")
    assert (found.lost_characters, found.unknown_tokens) == (missing(again), unknown)
    assert found.lost_characters > 0
    for said in (found.lossy, found.summary):
        assert f"{found.lost_characters} of {len(TEXT)} characters cannot be decoded from the tokens" in said
        assert (f"({unknown} of {found.tokens} tokens are unknown)" in said) == (unknown > 0)
    for figure in (found.bits_per_character, found.perplexity_per_word):
        with pytest.raises(UsageError, match="the tokenizer is lossy"):
            figure(1.0)


def test_what_is_lost_depends_on_the_documents(tmp_path):
    """Words with one space between lose line breaks, and nothing where lines are the documents."""
    (tmp_path / "a.txt").write_text("the cat sat\nthe dog sat too\n")
    file, paragraphs, lines = (
        subwords(str(tmp_path / "a.txt"), "train", 2, words(), documents=d) for d in ("file", "paragraphs", "lines")
    )
    assert (file.lost_characters, paragraphs.lost_characters, lines.lost_characters) == (2, 1, 0)
    assert lines.bits_per_character(math.log(2)) == pytest.approx(9 / 26)  # seven words and two ends


def test_a_word_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(
        UsageError, match="cannot encode this text .*: give it an unknown token, or take train_tokenizer"
    ) as error:
        of(words(unknown=None), tmp_path / "a.txt")
    assert "\n" not in str(error.value)


def test_settings_in_the_file_change_no_token(tmp_path):
    """Truncation, padding and pieces put around a text are for other uses: the tokens stay those of the text."""
    plain = train_tokenizer([TEXT], 280)
    other = Tokenizer.from_str(plain.json)
    other.enable_truncation(3)
    other.enable_padding(length=500)
    other.post_processor = processors.TemplateProcessing(single="</s> $A </s>", special_tokens=[("</s>", 0)])
    first, second = (of(t, tmp_path / "a.txt", documents="lines") for t in (plain, SubwordTokenizer(other.to_str())))
    assert torch.equal(first.windows[:], second.windows[:])
    assert first.tokens == second.tokens
    assert first.windows.tokens.documents == len(LINES)


def test_pieces_beyond_the_vocabulary(tmp_path):
    """Added pieces, numbers that no piece has, a mask: K is one more than the largest number, and all is kept."""
    inner = Tokenizer.from_str(letters(TEXT).json)
    inner.add_special_tokens(["[MASK]", AddedToken("<|user|>", special=True)])
    added = SubwordTokenizer(inner.to_str())
    assert added.size == letters(TEXT).size + 2
    found = of(added, tmp_path / "a.txt")
    assert (found.vocabulary, found.lost_characters) == (added.size, 0)
    text = added.encode(["<|user|>the cat"])[0]
    assert (text.lost_characters, text.tokens[0]) == (0, added.size - 1)
    holes = json.loads(letters(TEXT).json)
    holes["model"]["vocab"]["T"] = 90
    found = of(SubwordTokenizer(json.dumps(holes)), tmp_path / "a.txt")
    assert (found.vocabulary, found.lost_characters, int(found.windows[:].max())) == (91, 0, 90)


def test_the_end_of_a_document(tmp_path):
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "<stop>", *KNOWN])}, unk_token="<unk>"))
    path = tmp_path / "tokenizer.json"
    inner.save(str(path))
    with pytest.raises(
        UsageError, match=r"no token '</s>' to end a document: add one to its file .*\(\['</s>'\]\).*_file\(.*end=\)"
    ) as error:
        tokenizer_file(path)
    assert tokenizer_file(path, end="<stop>").encode(["the"])[0].tokens.tolist() == [2, 1]
    (remedy,) = re.findall(r"file \((t = .*)\), or", str(error.value))
    subprocess.run([sys.executable, "-c", f"import tokenizers; {remedy.replace('PATH', repr(str(path)))}"], check=True)
    assert tokenizer_file(path).encode(["the"])[0].tokens.tolist() == [2, len(KNOWN) + 2]


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff\xfe\x00", b"", b'{"a": "b"}'])
def test_what_is_no_tokenizer_is_one_line(tmp_path, data):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(UsageError, match="is not a tokenizer|cannot be read") as error:
        tokenizer_file(tmp_path / "tokenizer.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lossy", [True, False])
def test_training_and_evaluation_say_what_they_read(tmp_path, monkeypatch, capsys, lossy):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("\n".join([*LINES, "", "the cat sat"] * 60))
    (words() if lossy else train_tokenizer([TEXT], 270)).save("tokenizer.json")
    flags = [
        "--data.name",
        "a.txt",
        "--data.tokenizer",
        "tokenizer.json",
        "--data.documents",
        "lines",
        "--training.steps",
        "2",
    ]
    assert main(["train", "mdlm-smoke", *flags, "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert " lines, with nothing to encode; " in said
    assert "the last tenth of the file is held out" in said
    assert ("the tokenizer is lossy" in said) == lossy
    assert main(["evaluate", "run", "--count", "3"]) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert ("bits_per_character" in found, "perplexity_per_word" in found, "lossy" in found) == (
        not lossy,
        not lossy,
        lossy,
    )
    assert "windows of 16 from" in found["held_out"]


def test_figures_of_characters_take_no_tokenizer(tmp_path, monkeypatch, capsys):
    """Bits per token of n-grams are not bits per character."""
    monkeypatch.chdir(tmp_path)
    train_tokenizer([TEXT], 270).save("tokenizer.json")
    assert main(["reproduce", "d3pm-text-smoke", "--data.tokenizer", "tokenizer.json", "--out", "run"]) == 2
    assert "leave out --data.tokenizer" in capsys.readouterr().err
