import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from unnoise.experiments.papers import mdlm
from unnoise.experiments.text_measures import code, evaluate_text, figures_of, zero_shot
from unnoise.shared.data import CharacterTokenizer, SubwordTokenizer, TextDataset, characters, subwords, train_tokenizer
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.metrics import ngrams
from unnoise.shared.metrics.causal import CausalScore
from unnoise.shared.metrics.errors import ratio_of_sums
from unnoise.shared.metrics.measurement import Evaluation, Origin
from unnoise.shared.metrics.ngrams import Stream, counts, divergence, overlap
from unnoise.shared.metrics.text import NGram
from unnoise.shared.metrics.text_samples import evaluate_texts
from unnoise.shared.progress import silent
from unnoise.shared.random import Streams


def test_errors_of_ratios_and_perplexities_cover(generator):
    """Of 1,000 simulated evaluations, 95 % of the intervals contain the figures of the population."""
    runs, windows, rate = 1000, 150, 2.0
    tokens = 1 + torch.poisson(torch.full((runs, windows), 20.0, dtype=torch.float64), generator)
    effect = 1 + 0.3 * torch.randn(runs, windows, generator=generator, dtype=torch.float64)
    # Long windows are coded worse, so that the mean of the ratios is another number than the ratio of the sums.
    nats = rate * tokens * effect + 0.02 * (tokens - 21) * tokens
    truth = rate + 0.02 * 20 / 21  # E[(T - 21) T] / E[T], with T - 1 of a Poisson distribution
    text = TextDataset(tokens, CharacterTokenizer(), 400, 1000, 200)
    exact, hits = figures_of(text, truth, 0.0), dict.fromkeys(figures_of(text, truth, 0.0), 0)
    for a, b in zip(nats, tokens, strict=True):
        for name, (value, error) in figures_of(text, *ratio_of_sums(a, b)).items():
            hits[name] += abs(value - exact[name][0]) < 1.96 * error
    assert len(hits) == 5
    assert all(0.93 < hit / runs < 0.97 for hit in hits.values())
    assert exact["bits_per_character"][0] == pytest.approx(truth / math.log(2) * 0.4)
    assert exact["perplexity_per_word"][0] == pytest.approx(math.exp(2 * truth))


def test_divergence_in_closed_form():
    a, b = torch.tensor([[0, 1, 0, 1]]), torch.tensor([[0, 0, 0, 1]])
    h = [-sum(p * math.log2(p) for p in x) for x in ([0.5, 0.5], [0.75, 0.25], [0.625, 0.375])]
    assert divergence(a, b, 1) == pytest.approx(h[2] - (h[0] + h[1]) / 2)
    assert divergence(a, a, 3) == 0
    assert divergence(a, b + 2, 2) == pytest.approx(1)  # bits: they have no bigram in common
    assert divergence(torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 1]]), 1, padding=2) == 0
    assert counts(a, 2, 2).tolist() == [[0, 2, 1, 0]]


def brute_force(rows, text, n, padding):
    known = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    own = [[tuple(row[i : i + n]) for i in range(len(row) - n + 1)] for row in rows]
    counted = [[gram in known for gram in row if padding not in gram] for row in own]
    return sum(map(sum, counted)) / max(1, sum(map(len, counted)))


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("at_once", [23, 1 << 16])
def test_overlap_against_all_pairs(padding, at_once, tmp_path, monkeypatch, generator):
    monkeypatch.setattr(ngrams, "AT_ONCE", at_once)
    path = tmp_path / "my.txt"
    path.write_text("".join("abcdz"[i] for i in torch.randint(4, (300,), generator=generator)))
    text = characters(str(path), "train", 10)  # a stream, whose n-grams cross the ends of windows
    stream = text.windows[:].flatten().tolist()
    rows = torch.randint(4, (12, 20), generator=generator)
    rows[0, 3:16] = torch.tensor(stream[5:18])
    rows[1, 10:] = 3
    for n in (1, 3, 5):
        (found,) = overlap([rows], Stream(text), n, padding)
        assert found.share == pytest.approx(brute_force(rows.tolist(), stream, n, padding))
        longest = max(m for m in range(1, 21) if brute_force(rows.tolist(), stream, m, padding) > 0)
        assert found.longest == longest
    (part,) = overlap([rows], Stream(text, 100), 5, padding)
    assert part.share == pytest.approx(brute_force(rows.tolist(), stream[:100], 5, padding))
    assert Stream(text, 100).digest() != Stream(text).digest()
    windows = torch.tensor(stream[:300]).view(30, 10)  # in memory, n-grams do not cross them
    (found,) = overlap([rows], Stream(windows), 3, padding)
    every = {tuple(w[i : i + 3]) for w in windows.tolist() for i in range(8)}
    expected = [g in every for r in rows.tolist() for i in range(18) if padding not in (g := tuple(r[i : i + 3]))]
    assert found.share == pytest.approx(np.mean(expected))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A small text in which the end is held out, as characters and as subwords."""
    path = tmp_path_factory.mktemp("text") / "my.txt"
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs"]
    order = torch.randint(8, (12000,), generator=torch.Generator().manual_seed(0)).tolist()
    path.write_text("\n".join(" ".join(words[i] for i in order[j : j + 10]) for j in range(0, 12000, 10)))
    return path


def test_the_content_of_a_text_is_that_of_its_documents(corpus):
    sizes = [subwords(str(corpus), "train", 8, train_tokenizer([corpus.read_text()], size)) for size in (260, 270)]
    assert sizes[0].content == sizes[1].content
    assert sizes[0].tokens != sizes[1].tokens
    assert sizes[0].content != subwords(str(corpus), "train[:50%]", 8, sizes[0].tokenizer).content
    spaced = SubwordTokenizer(sizes[0].tokenizer.json.replace('"add_prefix_space":false', '"add_prefix_space":true'))
    assert spaced.json != sizes[0].tokenizer.json
    assert subwords(str(corpus), "train", 8, spaced).content == sizes[0].content  # which decodes with a space first
    by_line = subwords(str(corpus), "train", 8, sizes[0].tokenizer, documents="lines")
    assert sizes[0].content != by_line.content  # whose perplexity per word is another


def test_samples_beside_real_text(corpus):
    text, train = (characters(str(corpus), f"train[{part}]", 32) for part in ("80%:", ":80%"))
    real = evaluate_texts(text.windows[:120], text, Origin(steps=7), train=train, name="my.txt")
    for name in ("sample_entropy_bits", "distinct_2", "distinct_4"):
        assert real[name] == real.measurement(name).held_out
    for n in (1, 2, 3, 4):
        assert real[f"ngram_divergence_{n}"] == 0 < real.measurement(f"ngram_divergence_{n}").held_out < 0.5
    code_length = real.measurement("generative_perplexity_per_token_5_gram")
    assert code_length.value == code_length.held_out
    bits = NGram(5, 27).fit(train.windows[:].long()).bits(text.windows[:120]) / 32
    assert code_length.value == pytest.approx(2 ** float(bits.mean()))
    error = float((2 ** bits.mean()) * math.log(2) * bits.std()) / math.sqrt(120)
    assert code_length.error == pytest.approx(error)
    mauve = real.measurement("mauve_bigrams")
    assert mauve.value == pytest.approx(1)
    assert 0.5 < mauve.held_out < 0.999  # of other windows
    copied = evaluate_texts(train.windows[:120], text, train=train)
    assert copied["overlap_32"] == 1
    assert copied["longest_run"] == 32
    assert copied.measurement("overlap_32").held_out < 0.2
    assert copied["generative_perplexity_per_token_5_gram"] == pytest.approx(code_length.value, rel=0.1)
    assert copied["mauve_bigrams"] > 0.5
    noise = evaluate_texts(torch.randint(27, (120, 32)), text, train=train)
    assert noise["mauve_bigrams"] < 0.02
    assert noise["overlap_32"] == 0
    assert noise["generative_perplexity_per_token_5_gram"] > 20 * code_length.value
    assert noise["sample_entropy_bits"] > real["sample_entropy_bits"]
    assert real.measurement("overlap_32").protocol.reference == "all of my.txt, train"
    assert all(m.protocol.samples == 120 and m.origin.steps == 7 for m in real.measurements)
    assert all(m.protocol.settings.endswith("texts of at most 32 of 27 characters") for m in real.measurements)


class Judge:
    """Stands for a causal language model of the `transformers` library."""

    name, digest, settings = "tiny", "0123456789ab", "float32, 27 characters"

    def score(self, texts, progress):
        nats = torch.tensor([float(len(text)) for text in texts], dtype=torch.float64)
        return CausalScore(nats, nats.long(), 3.0, 0.1)

    def features(self, texts, progress):
        return torch.tensor([[text.count("e") + 1.0, text.count("o") + 1.0] for text in texts])


def test_texts_from_anywhere_and_a_causal_model(corpus):
    text = characters(str(corpus), "train[80%:]", 32)
    texts = ["the quick brown fox", "over!"] * 60
    found = evaluate_texts(texts, text, judge_model=Judge(), without=("n-grams", "memorization"))
    entropy = found.measurement("sample_entropy_bits")
    own = [-sum((p := t.count(c) / len(t)) * math.log2(p) for c in set(t)) for t in ("the quick brown fox", "over")]
    assert entropy.value == pytest.approx(sum(own) / 2)
    assert {m.name for m in found.measurements} == {
        *("sample_entropy_bits", "mauve_bigrams"),
        *("generative_perplexity_tiny", "sample_entropy_tiny", "mauve_tiny"),
    }
    judged = found.measurement("generative_perplexity_tiny")
    assert judged.value == pytest.approx(judged.held_out) == pytest.approx(math.e)
    assert judged.note.startswith("at a sample entropy of 3.00 bits, of real text 3.00")
    assert (judged.protocol.features, judged.protocol.features_hash) == ("tiny", "0123456789ab")
    assert judged.protocol.settings.startswith("float32, 27 characters")
    few = evaluate_texts(["the quick"], text)
    assert few["mauve"] == "not measured: 1 samples or held-out windows, fewer than 100"
    assert few.measurement("sample_entropy_bits").error is None


def test_held_out_windows_are_as_long_as_the_texts(corpus):
    text = characters(str(corpus), "train[80%:]", 32)
    found = evaluate_texts(["the", "the quick brown fox"], text)
    lengths = [len("the"), len("the quick brown fox")]
    rows = [row[:length] for row, length in zip(text.decode(text.windows[:2]), lengths, strict=True)]
    own = [-sum((p := row.count(c) / len(row)) * math.log2(p) for c in set(row)) for row in rows]
    assert found.measurement("sample_entropy_bits").held_out == pytest.approx(sum(own) / 2)
    assert "at most 19 of 27 characters" in found.measurement("distinct_2").protocol.settings


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        ([], {}, "there are no texts"),
        (["!?"], {}, "contains nothing that this vocabulary"),
        (torch.zeros(0, 8, dtype=torch.int64), {}, r"texts of shape \(0, 8\)"),
        (torch.full((2, 8), -1), {}, "tokens from -1 to -1, and the tokenizer has 0 to 26 .27 is padding"),
        (torch.full((2, 8), 28), {}, "tokens from 28 to 28, and the tokenizer has 0 to 26"),
        (["the"], {"without": ("frechet",)}, "without=frechet: of text, choose from n-grams, judge, memorization"),
    ],
)
def test_bad_texts_are_refused_in_one_line(corpus, texts, options, words):
    with pytest.raises(UsageError, match=words) as error:
        evaluate_texts(texts, characters(str(corpus), "train", 8), **options)
    assert re.fullmatch(".*", str(error.value))


@pytest.fixture(scope="module")
def model(corpus):
    recipe = mdlm.smoke()
    recipe = replace(recipe, data=replace(recipe.data, name=str(corpus)))
    data = recipe.load("train")
    torch.manual_seed(0)
    return recipe, recipe.objective(data.shape, data.quantization).denoiser.eval()


def test_code_lengths_have_errors_and_protocols(model):
    recipe, denoiser = model
    test = recipe.load("test")
    found = code(recipe, denoiser, test, 20, what="my.txt, test", wrapping=recipe.data.wrapping)
    assert isinstance(found, Evaluation)
    bits, per_token, per_word = (
        found.measurement(name) for name in ("bits_per_token", "perplexity_per_token", "perplexity_per_word")
    )
    assert bits.error == found["standard_error"] > 0
    assert found["nats_per_token"] == pytest.approx(bits.value * math.log(2))
    assert per_token.error == pytest.approx(per_token.value * bits.error * math.log(2))
    words = test.tokens / test.words
    assert per_word.value == pytest.approx(2 ** (bits.value * words))
    assert per_word.error == pytest.approx(per_word.value * bits.error * math.log(2) * words)
    assert bits.unit == "bits/token"
    assert bits.protocol.samples == 20
    assert bits.protocol.reference_hash == test.content
    for words in ("upper bound, 4 terms", "documents end to end", "windows of 16 tokens, each coded alone", "27 char"):
        assert words in bits.protocol.settings
    whole = code(recipe, denoiser, replace(test, windows=test.windows[:3]))
    of_text = whole.measurement("bits_per_character").protocol
    assert of_text.samples == 0  # figures of a whole text are compared between tokenizers
    assert "27 characters" not in of_text.settings
    assert "27 characters" in whole.measurement("bits_per_token").protocol.settings


def test_figures_given_the_padding(corpus, tmp_path):
    train_tokenizer([corpus.read_text()], 270).save(tmp_path / "tokenizer.json")
    recipe = mdlm.smoke()
    data = replace(recipe.data, name=str(corpus), tokenizer=str(tmp_path / "tokenizer.json"), layout="padded")
    recipe = replace(recipe, data=data)
    test = recipe.load("test")
    denoiser = recipe.objective(test.shape, test.quantization).denoiser.eval()
    windows = test.windows[:5].long()
    windows[1, 9:] = windows[3, 4:] = test.padding
    test = replace(test, windows=windows)
    found = code(recipe, denoiser, test, 5)
    tokens = int((test.windows[:5] != test.padding).sum())
    saved = 5 * math.log2(test.length + 1) / tokens  # the bits of the length of each window
    assert found["bits_per_token_given_padding"] == pytest.approx(found["bits_per_token"] - saved)
    given = found.measurement("perplexity_per_token_given_padding")
    assert given.value == pytest.approx(2 ** found["bits_per_token_given_padding"])
    k, rows = test.windows[:5].long(), torch.arange(5)
    terms = recipe.code_length_of(denoiser, test.quantization)(k, Streams(0, rows), silent)[:3]
    exact = ratio_of_sums(sum(terms).double() - math.log(test.length + 1), (k != test.padding).sum(1))
    assert given.error == pytest.approx(given.value * exact[1])
    assert given.error != pytest.approx(given.value * found["standard_error"] * math.log(2)), "lengths vary"
    assert found.measurement("bits_per_token_given_padding").unit == "bits/token"
    assert recipe.data.wrapping == "one document in each window, cut or padded"


def test_zero_shot_code_lengths(model, tmp_path):
    recipe, denoiser = model
    path = tmp_path / "penn.txt"
    path.write_text("he is n't <unk> there\n" * 30)
    with pytest.warns(Notice, match="penn.txt is read with the detokenizer ptb; another is given as in ptb:penn.txt"):
        found = zero_shot(recipe, denoiser, str(path), count=5)
    own = characters(str(path), "train", 16, detokenizer="ptb")  # the whole file
    expected = code(recipe, denoiser, own, 5)
    for name in ("bits_per_token", "perplexity_per_token", "perplexity_per_word", "standard_error", "windows"):
        assert found[f"zero_shot_{name}"] == expected[name]
    settings = found.measurement("zero_shot_perplexity_per_word").protocol
    assert settings.reference == f"penn.txt, the whole file, detokenizer ptb, {own.characters:,} characters"
    assert settings.reference_hash == own.content
    assert "each coded alone" in settings.settings
    plain = zero_shot(recipe, denoiser, str(path), "none", count=5)
    assert "detokenizer none" in plain.measurement("zero_shot_bits_per_token").protocol.reference
    with pytest.raises(UsageError, match="there is no detokenizer pbt: did you mean ptb"):
        zero_shot(recipe, denoiser, str(path), "pbt")


def test_an_evaluation_of_text(model, corpus):
    recipe, denoiser = model
    options = {"count": 6, "steps": 3, "without": ("memorization",)}
    found = recipe.data.evaluate(recipe, denoiser, samples=4, zero_shot=f"none:{corpus}", **options)
    assert found["windows"] == 6
    assert found.measurement("sample_entropy_bits").protocol.samples == 4
    assert found.measurement("sample_entropy_bits").origin.steps == 3
    assert "overlap_16" not in found
    assert {"zero_shot_bits_per_token", "generative_perplexity_per_token_5_gram", "sampling_evaluations"} <= set(found)
    assert Evaluation.from_json(found.as_json()).measurements == found.measurements
    only = evaluate_text(recipe, denoiser, recipe.data, count=6, steps=3, without=("samples",))
    assert only["bits_per_token"] == found["bits_per_token"]
    assert "sample_entropy_bits" not in only
    neither = recipe.data.evaluate(recipe, denoiser, count=6, steps=3, without=("samples", "code-length"))
    assert neither.measurements == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": ("inception",)}, "features=inception are of images"),
        ({"statistics": "a.npz"}, "statistics=a.npz are of images"),
        (
            {"without": ("sample",)},
            "without=sample: did you mean samples. of text, choose from code-length, samples, n-grams",
        ),
        ({"samples": 0}, "samples=0: give a whole number"),
        ({"count": 0}, "count=0: give a whole number of windows of at least 1"),
        ({"samples": 3, "without": ("samples",)}, "samples=3 has no effect without samples"),
        ({"judge_model": "gpt2", "without": ("samples",)}, "judge_model=gpt2 has no effect without samples"),
        ({"zero_shot": "nowhere.txt"}, "there is no file nowhere.txt"),
    ],
)
def test_settings_without_effect_are_refused_in_one_line(model, options, words):
    recipe, denoiser = model
    with pytest.raises(UsageError, match=words) as error:
        recipe.data.evaluate(recipe, denoiser, **({"count": 6, "steps": 3} | options))
    assert re.fullmatch(".*", str(error.value))


def test_long_texts_are_cut_and_compared_in_the_same_form(corpus):
    """A causal model codes what the tokens decode to, of samples as of held-out text, and a fact says what was cut."""
    text, seen = characters(str(corpus), "train[80%:]", 32), []

    class Seen(Judge):
        def score(self, texts, progress):
            seen.append(texts)
            return super().score(texts, progress)

    long = "The QUICK brown fox jumps over 2 lazy dogs"
    found = evaluate_texts([long, "over"], text, judge_model=Seen(), without=("judge", "memorization"))
    assert found["cut"] == "1 of 2 texts are longer than 32 tokens, and are cut there"
    assert seen[0] == ["the quick brown fox jumps over lazy dogs"[:32], "over"]
    assert "cut" not in evaluate_texts(["over"], text)


def test_n_grams_longer_than_all_texts_are_left_out(corpus):
    text = characters(str(corpus), "train[80%:]", 32)
    found = evaluate_texts(["the", "fox"], text)
    assert "distinct_2" in found
    assert "distinct_4" not in found
    assert "ngram_divergence_4" not in found
    assert found["n_grams"] == "not measured above n=3: the longest text or window has so many tokens"
    assert "n_grams" not in evaluate_texts(["the fox"], text)
    assert "mauve" not in evaluate_texts(["the fox"], text, without=("judge",))
