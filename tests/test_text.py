"""Text: its windows, its tokenizers and its metrics."""

import itertools
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from unnoise.shared.data import (
    CharacterTokenizer,
    MarkovChain,
    Packed,
    Padded,
    SubwordTokenizer,
    TextDataset,
    characters,
    documents,
    shakespeare,
    sparse_chain,
    subwords,
    text8,
    tokenizer_file,
    train_tokenizer,
)
from unnoise.shared.data.tokenizers import cleaned
from unnoise.shared.data.windows import StreamWindows, Tokens
from unnoise.shared.errors import UsageError
from unnoise.shared.metrics import NGram, distinct, entropy, generative_perplexity
from unnoise.shared.serialization import deserialize, serialize

LINES = [
    "The café cost £5, twice!",
    "",
    "  ",
    "a",
    "Naïve — 'twas brillig, and the slithy toves 12345",
    "…",
    "Did gyre & gimble in the wabe.",
] * 5
KEPT = [line for line in LINES if line.strip()]


@pytest.fixture
def corpus(tmp_path) -> Path:
    (tmp_path / "poem.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return tmp_path / "poem.txt"


@pytest.fixture(scope="module")
def tokenizer() -> SubwordTokenizer:
    return train_tokenizer(KEPT, vocabulary=300)


def stream_of(text_set: TextDataset) -> list[int]:
    return text_set.windows[:].flatten().tolist()


def test_cleaning_is_that_of_text8(corpus):
    assert cleaned("The CAFÉ, 12 -- it's\n\tnew") == "the caf it s new"
    text = characters(str(corpus), length=7)
    wanted = cleaned(" ".join(LINES)).strip() + " "
    assert "".join(text.decode(text.windows[:])) == wanted[: len(wanted) // 7 * 7]
    assert (text.tokens, text.characters, text.words) == (len(wanted), len(wanted), len(wanted.split()))
    assert (text.vocabulary, text.quantization.levels, text.shape, text.padding) == (27, 27, (7,), None)
    assert CharacterTokenizer().decode(torch.tensor([[0, 25, 26, 27, 1]])) == ["az _b"]


def test_the_bundled_text():
    train, test = shakespeare("train", 100), shakespeare("test", 100)
    assert (train.tokens, test.tokens) == (4_289_447, 254_304)
    assert train.decode(train.windows[:1])[0].startswith("all s well that ends well by william shakespeare")


def test_frequencies_are_exact(corpus, tokenizer):
    text = characters(str(corpus), length=5)
    counts = np.bincount(stream_of(text), minlength=27)
    assert text.frequencies(rows=3).tolist() == (counts / counts.sum()).tolist()
    padded = subwords(str(corpus), "train", 40, tokenizer, Padded())
    counts = np.bincount(stream_of(padded), minlength=padded.vocabulary)
    assert counts[padded.padding] > 0
    assert padded.frequencies(rows=2).tolist() == (counts / counts.sum()).tolist()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_text8_is_split_and_cropped_as_in_d3pm(tmp_path, split):
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz    "), 4000))
    (tmp_path / "text8").write_text(text)
    first, last = {"train": (0, 3600), "validation": (3600, 3800), "test": (3800, 4000)}[split]
    part, length = text[first:last], 16
    data = text8(split, length, path=tmp_path / "text8")
    assert (data.tokens, data.characters, data.words) == (len(part), len(part), len(part.split()))
    assert data.shape == data.batches(2).shape == (length,)
    stride = 2 * length if split == "train" else length
    blocks = [part[i * stride : (i + 1) * stride] for i in range(len(part) // stride)]
    assert data.decode(data.windows[:]) == blocks
    batch, stream = 8, iter(data.batches(8, seed=1))
    epochs, offsets = [], []
    for _ in range(3):
        drawn = [data.decode(next(stream)["x0"]) for _ in range(len(blocks) // batch)]
        found = [[i for i, block in enumerate(blocks) if window in block] for window in itertools.chain(*drawn)]
        assert all(len(f) == 1 for f in found)  # within one block
        offsets += [blocks[f[0]].index(w) for f, w in zip(found, itertools.chain(*drawn), strict=True)]
        epochs.append(sorted(f[0] for f in found))
        assert len(set(epochs[-1])) == len(epochs[-1])  # each block at most once an epoch
    assert set(offsets) == (set(range(length + 1)) if split == "train" else {0})  # both ends of a block are reached


def test_crops_depend_on_seed_and_position_alone(corpus):
    data = characters(str(corpus), length=8, crop=True)
    assert data.windows.shape[1] == 16

    def drawn(seed, skip):
        batches = data.batches(3, seed=seed)
        batches.load_state_dict({**batches.state_dict(), "position": skip})
        stream = iter(batches)
        return [next(stream)["x0"].tolist() for _ in range(12 - skip)]

    whole = drawn(4, 0)
    assert drawn(4, 5) == whole[5:]  # what came before does not matter
    assert drawn(5, 0) != whole
    state = (batches := data.batches(3, seed=4)).state_dict()
    with pytest.raises(UsageError, match="seed: was 4, now 5"):
        data.batches(3, seed=5).load_state_dict(state)
    assert next(iter(batches))["x0"].dtype == torch.int64


def test_a_tokenizer_loses_nothing(tokenizer, tmp_path):
    unseen = "Ünseen ☃ text\twith  two spaces "
    for text in [*KEPT, unseen]:
        (encoded,) = tokenizer.encode([text])
        assert tokenizer.detokenize(encoded.tokens.tolist()) == text + "\n"
        assert (encoded.characters, encoded.words) == (len(text), len(text.split()) + 1)
    assert tokenizer.size <= 300
    assert train_tokenizer(KEPT, vocabulary=300) == tokenizer  # the same every time
    tokenizer.save(tmp_path / "tokenizer.json")
    assert tokenizer_file(tmp_path / "tokenizer.json") == tokenizer == deserialize(serialize(tokenizer))
    assert tokenizer.decode(torch.tensor([[tokenizer.size] * 2])) == ["__"]


def test_packing_is_the_concatenation(corpus, tokenizer):
    end = tokenizer.backend.token_to_id("</s>")
    flat = [i for line in KEPT for i in [*tokenizer.backend.encode(line).ids, end]]
    data = subwords(str(corpus), "train", 11, tokenizer, documents="lines")
    assert stream_of(data) == flat[: len(flat) // 11 * 11]
    assert (data.tokens, data.characters) == (len(flat), sum(map(len, KEPT)))
    assert data.words == sum(len(line.split()) + 1 for line in KEPT)
    assert data.vocabulary == tokenizer.size
    both = subwords(str(corpus), "train", 11, tokenizer, Packed(ends=True), documents="lines").windows[:]
    assert (both[:, 0] == end).all()
    assert (both[:, -1] == end).all()
    assert both[:, 1:-1].flatten().tolist() == flat[: len(flat) // 9 * 9]
    nats = 2.5
    assert data.bits_per_character(nats) == pytest.approx(nats * len(flat) / sum(map(len, KEPT)) / math.log(2))
    assert data.perplexity_per_word(nats) == pytest.approx(math.exp(nats * len(flat) / data.words))


def test_padding_is_a_token(corpus, tokenizer):
    end, length = tokenizer.backend.token_to_id("</s>"), 20
    data = subwords(str(corpus), "train", length, tokenizer, Padded())
    assert (data.padding, data.vocabulary) == (tokenizer.size, tokenizer.size + 1)
    for window, line in zip(data.windows[:].tolist(), KEPT, strict=True):
        ids = [*tokenizer.backend.encode(line).ids, end][:length]
        assert window == ids + [data.padding] * (length - len(ids))
    assert data.decode(data.windows[1:2]) == ["a\n"]
    assert set(next(iter(data.batches(6)))) == {"x0"}


def test_a_second_call_does_not_tokenize(corpus, tokenizer, monkeypatch):
    first = subwords(str(corpus), "train", 11, tokenizer)
    with monkeypatch.context() as patched:
        patched.setattr(SubwordTokenizer, "encode", lambda *a: pytest.fail("tokenized again"))
        again = subwords(str(corpus), "train", 7, deserialize(serialize(tokenizer)), Packed(ends=True))
    assert (again.tokens, again.words) == (first.tokens, first.words)
    values = first.windows.tokens.chunks[0][0]
    assert values.dtype == np.uint16
    assert not values.flags.owndata  # it lies where the file is mapped
    other = train_tokenizer(KEPT, vocabulary=270)
    assert subwords(str(corpus), "train", 11, other).tokens > first.tokens
    corpus.write_text("other words\n", encoding="utf-8")
    os.utime(corpus, (1, 1))
    assert subwords(str(corpus), "train", 3, tokenizer).words == 3


def test_streams_across_chunks(generator):
    lengths = torch.randint(1, 6, (30,), generator=generator).tolist()
    documents = [np.arange(n, dtype=np.uint16) + 100 * i for i, n in enumerate(lengths)]
    chunks = []
    for i in range(0, 30, 4):
        bounds = np.cumsum([0, *lengths[i : i + 4]])
        padding = np.full(3, 65535, np.uint16)  # a slice of a longer file
        chunks.append((np.concatenate([padding, *documents[i : i + 4], padding]), bounds + 3))
    tokens, flat = Tokens(chunks), np.concatenate(documents)
    assert (tokens.count, tokens.documents) == (len(flat), 30)
    for length in (1, 3, 17, len(flat)):
        assert stream_of_windows(tokens, length) == flat[: len(flat) // length * length].tolist()
    assert all(np.array_equal(tokens.document(i), d) for i, d in enumerate(documents))
    windows = StreamWindows(tokens, 3)
    rows = torch.tensor([5, 0, 5])
    assert torch.equal(windows[rows], windows[:][rows])


def stream_of_windows(tokens: Tokens, length: int) -> list[int]:
    return StreamWindows(tokens, length)[:].flatten().tolist()


def test_files_of_every_kind_hold_the_same_text(tmp_path, corpus):
    import datasets

    rows = datasets.Dataset.from_dict({"body": LINES})
    rows.to_parquet(tmp_path / "a.parquet")
    rows.to_csv(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": line}) for line in LINES))
    wanted = stream_of(characters(str(corpus), length=10))
    for suffix in ("parquet", "csv", "jsonl"):
        assert stream_of(characters(str(tmp_path / f"a.{suffix}"), length=10, column="body")) == wanted
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.txt").write_text("abc\n" * 10)
    (tmp_path / "set" / "test.txt").write_text("xyz\n" * 10)
    assert characters(str(tmp_path / "set"), "test", 4).decode(torch.tensor([[23, 24]])) == ["xy"]
    assert stream_of(characters(str(tmp_path / "set"), "test", 4))[:4] == [23, 24, 25, 26]
    assert characters(str(tmp_path / "set"), "train[:20%]", 4).tokens == 8
    assert characters(str(corpus), "train[:1]", 4).words == 4
    assert [d for d in documents(str(corpus), documents="lines") if d.strip()] == KEPT


def test_bad_text_is_refused_in_one_line(tmp_path, corpus, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "odd.doc").write_text("words")
    (tmp_path / "raw").write_text("Words")
    (tmp_path / "broken.json").write_text('{"json": 1}')
    (tmp_path / "numbers.csv").write_text("text\n1\n2\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    poem = str(corpus)
    for attempt, words in (
        (lambda: characters(str(tmp_path / "absent.txt")), "there is no file"),
        (lambda: characters("shakespear"), "did you mean shakespeare"),
        (lambda: characters("shakespeare", "valid"), "no split valid: choose from test, train, validation"),
        (lambda: characters("shakespeare", column="body"), "no column body: its columns are title, text"),
        (lambda: characters(poem, "test"), "has the split train, not test"),
        (lambda: characters(str(tmp_path), "test"), "no text for the split test"),
        (lambda: characters(poem, length=10_000), "length=10000: the text has"),
        (lambda: characters(poem, length=0), "length=0"),
        (lambda: characters(str(tmp_path / "blank.txt")), "has no text in the split train"),
        (lambda: characters(str(tmp_path / "odd.doc")), r"ends in \.doc: rename"),
        (lambda: characters(str(tmp_path / "numbers.csv")), "has the type int64, not text"),
        (lambda: characters(str(tmp_path / "latin.txt")), "cannot be read as text"),
        (lambda: text8("dev"), "no split dev: choose from train"),
        (lambda: text8("train"), "there is no file text8.*download"),
        (lambda: text8("train", 2, path="raw"), "byte b'W' at 0"),
        (lambda: tokenizer_file("absent.json"), "cannot be read.*tokenizer.json"),
        (lambda: tokenizer_file("broken.json"), "is not a tokenizer"),
        (lambda: SubwordTokenizer(tokenizer.json, "<end>"), "no token '<end>'"),
        (lambda: SubwordTokenizer("{}"), "not a tokenizer"),
        (lambda: subwords(poem, "train", 8, "gpt2"), "tokenizer='gpt2'"),
        (lambda: subwords(poem, "train", 9999, tokenizer), "length=9999"),
        (lambda: subwords(poem, "train", 2, tokenizer, Packed(ends=True)), "length=2: .* give a length of 3"),
        (lambda: subwords(poem, "train", 0, tokenizer, Padded()), "length=0"),
        (lambda: train_tokenizer(KEPT, vocabulary=100), "vocabulary=100: give 257"),
        (lambda: characters(poem, length=7).batches(1000), "batch=1000"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_an_n_gram_by_hand():
    """On "aab": P(a) = (2 + 2 / 3) / 5; after a, c(aa) = c(ab) = 1 and T = 2, so P(a | a) = (1 + 2 P(a)) / 4.

    B never leads on.
    """
    text = torch.tensor([0, 0, 1])
    a, b, c = (2 + 2 / 3) / 5, (1 + 2 / 3) / 5, (2 / 3) / 5
    unigram, bigram = NGram(1, 3).fit(text), NGram(2, 3).fit(text)
    torch.testing.assert_close(unigram.bits(text[None]), -torch.tensor([a * a * b], dtype=torch.float64).log2())
    after = torch.tensor([[(1 + 2 * a) / 4, (1 + 2 * b) / 4, 2 * c / 4], [a, b, c]], dtype=torch.float64)
    torch.testing.assert_close(bigram.probabilities(torch.tensor([[0], [1]])), after)
    torch.testing.assert_close(
        bigram.probabilities(torch.empty(1, 0, dtype=torch.int64)), torch.tensor([[a, b, c]], dtype=torch.float64)
    )
    torch.testing.assert_close(bigram.bits(text), -(a * after[0, 0] * after[0, 1]).log2()[None])
    torch.testing.assert_close(
        NGram(2, 3).fit(text[None]).bits(torch.tensor([[1, 2]])), -torch.tensor([b * c], dtype=torch.float64).log2()
    )


def test_an_n_gram_is_a_distribution_in_every_context(generator):
    text = torch.randint(0, 4, (3, 40), generator=generator)
    model = NGram(3, 5).fit(text)
    contexts = torch.tensor(list(itertools.product(range(5), repeat=2)))
    for h in (contexts[:, :0], contexts[:, :1], contexts, torch.cat([contexts, contexts], 1)):
        p = model.probabilities(h)
        assert (p > 0).all()
        torch.testing.assert_close(p.sum(1), torch.ones(len(h), dtype=torch.float64))
    every = torch.tensor(list(itertools.product(range(5), repeat=4)))
    assert float((-model.bits(every)).exp2().sum()) == pytest.approx(1.0)  # so its bits are a code
    steps = [model.probabilities(text[:, :i]).gather(1, text[:, i : i + 1]) for i in range(40)]
    torch.testing.assert_close(model.bits(text), -torch.cat(steps, 1).log2().sum(1))


def test_baselines_on_shakespeare():
    train, test = shakespeare("train", 256).windows[:], shakespeare("test", 256).windows[:]
    found = [float(NGram(order, 27).fit(train).bits(test).sum()) / test.numel() for order in (1, 3, 5)]
    assert found == pytest.approx([4.07, 2.75, 2.16], abs=0.01)


def test_a_markov_chain_by_enumeration():
    p = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.0, 0.5], [0.2, 0.2, 0.6]], dtype=torch.float64)
    chain = deserialize(serialize(MarkovChain(p)))
    pi = chain.stationary()
    torch.testing.assert_close(pi @ p, pi)
    assert float(pi.sum()) == pytest.approx(1.0)
    distribution = {(i, j, k): float(pi[i] * p[i, j] * p[j, k]) for i, j, k in itertools.product(range(3), repeat=3)}
    assert chain.entropy(3) == pytest.approx(-sum(q * math.log2(q) for q in distribution.values() if q))
    assert chain.entropy(3) - chain.entropy(2) == pytest.approx(chain.entropy_rate())
    windows = torch.tensor([w for w, q in distribution.items() if q])
    torch.testing.assert_close(
        chain.bits(windows), -torch.tensor([q for q in distribution.values() if q], dtype=torch.float64).log2()
    )


def test_sparse_chains(generator):
    for seed in range(5):
        chain = sparse_chain(27, seed)
        assert 1.5 < chain.entropy_rate() < 2
        assert chain.stationary().min() > 0.01
        rows = chain.transition
        overlap = torch.stack([torch.minimum(rows, rows.roll(n, 0)).sum(1).mean() for n in (1, 9)])
        assert overlap[0] > 3 * overlap[1]  # neighbors have the same successors
    assert not torch.equal(sparse_chain(27, 0).transition, sparse_chain(27, 1).transition)
    x = chain.sample(4000, 20, generator)
    counts = torch.bincount((x[:, :-1] * 27 + x[:, 1:]).flatten(), minlength=729).view(27, 27) / (4000 * 19)
    torch.testing.assert_close(counts, (chain.stationary()[:, None] * chain.transition).float(), atol=0.004, rtol=0)
    for column in (0, 19):  # stationary from the first token on
        assert (torch.bincount(x[:, column], minlength=27) / 4000 - chain.stationary()).abs().max() < 0.02
    bits = NGram(2, 27).fit(chain.sample(8000, 50, generator)).bits(x)
    assert float(bits.mean()) == pytest.approx(chain.entropy(20), rel=0.01)
    assert float(chain.bits(x).mean()) == pytest.approx(chain.entropy(20), rel=0.01)
    judged = generative_perplexity(NGram(2, 27).fit(x), x)
    assert judged.perplexity == pytest.approx(2 ** (chain.entropy(20) / 20), rel=0.05)


def test_entropy_and_distinct():
    samples = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]])
    assert entropy(samples, 3) == pytest.approx(0.5)  # one bit and none
    assert entropy(torch.arange(8)[None], 50_000) == pytest.approx(3.0)
    assert distinct(samples, 1) == 3 / 8
    assert distinct(samples, 2) == 4 / 6  # 00 01 11 22
    judged = generative_perplexity(NGram(1, 3).fit(samples), samples)
    p = [(n + 3 * (1 / 3)) / 11 for n in (2, 2, 4)]  # T = 3 kinds among 8 tokens
    assert judged.perplexity == pytest.approx((p[0] * p[1]) ** (-2 / 8) * p[2] ** (-4 / 8))
    assert judged.entropy == pytest.approx(0.5)


def test_bad_symbols_are_refused():
    x = torch.zeros(2, 3, dtype=torch.int64)
    half = torch.full((2, 2), 0.5, dtype=torch.float64)
    for attempt, words in (
        (lambda: NGram(0, 3), "order=0"),
        (lambda: NGram(20, 27), "vocabulary=27: .*below 2"),
        (lambda: NGram(2, 3).bits(x), "call fit"),
        (lambda: NGram(2, 3).fit(x + 3), "tokens from 3 to 3: this model has tokens 0 to 2"),
        (lambda: NGram(2, 3).fit(x[:0]), "text of shape"),
        (lambda: entropy(x + 3, 3), "tokens 0 to 2"),
        (lambda: distinct(x, 4), "n=4"),
        (lambda: MarkovChain(half.float()), "float32"),
        (lambda: MarkovChain(half * 1.1), "row of transition is not a distribution"),
        (lambda: MarkovChain(torch.eye(3, dtype=torch.float64)), "from every token to every other"),
        (lambda: sparse_chain(2), "vocabulary=2"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            attempt()
        assert re.fullmatch(".*", str(error.value))
