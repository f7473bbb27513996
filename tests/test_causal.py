import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unnoise.shared.errors import UsageError
from unnoise.shared.metrics.causal import CausalJudge, causal_score


class Bigrams:
    """A causal model whose next token depends on the last one and on how many came before."""

    def __init__(self, vocabulary=5):
        self.table = torch.randn(
            vocabulary, vocabulary, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        self.shapes = []

    def logits(self, ids):
        self.shapes.append(tuple(ids.shape))
        place = torch.arange(ids.shape[1], dtype=torch.float64)[:, None]
        return self.table[ids] * (1 + 0.1 * place)

    def nats(self, chunk):
        """The code length of all tokens of a chunk but the first, one by one."""
        return [
            -float(torch.log_softmax(self.table[chunk[i - 1]] * (1 + 0.1 * (i - 1)), 0)[chunk[i]])
            for i in range(1, len(chunk))
        ]


TEXTS = [[0, 1, 2, 3, 4, 0, 1], [2], [3, 3, 3, 1, 1], []]


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("begin", [None, 4])
def test_chunks_are_coded_alone(batch, begin):
    model = Bigrams()
    score = causal_score(model, TEXTS, context=4, begin=begin, batch=batch)
    size, first = (4, []) if begin is None else (3, [begin])
    expected = [
        [nats for start in range(0, len(text), size) for nats in model.nats([*first, *text[start : start + size]])]
        for text in TEXTS
    ]
    assert score.tokens.tolist() == ([5, 0, 3, 0] if begin is None else [7, 1, 5, 0]) == [len(e) for e in expected]
    assert score.nats.tolist() == pytest.approx([sum(e) for e in expected])
    assert max(shape[1] for shape in model.shapes) == 4
    assert max(shape[0] for shape in model.shapes) <= batch
    value, error = score.perplexity
    mean = sum(map(sum, expected)) / sum(map(len, expected))
    assert value == pytest.approx(math.exp(mean))
    deviations = torch.tensor([sum(e) - mean * len(e) for e in expected], dtype=torch.float64)
    assert error == pytest.approx(value * float(deviations.std()) / 2 / (sum(map(len, expected)) / 4))


def test_the_entropy_is_that_of_single_texts():
    score = causal_score(Bigrams(), [[0, 1, 2, 3], [2, 2, 2, 2], [0, 0, 1, 1]])
    assert score.entropy == pytest.approx((2 + 0 + 1) / 3)
    assert score.entropy_error == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: causal_score(Bigrams(), TEXTS, context=1), "context=1: give 2 or more"),
        (lambda: causal_score(Bigrams(), []), "there are no texts"),
        (lambda: causal_score(Bigrams(), [[1], [2]]), "no text has two tokens"),
        (lambda: CausalJudge("gpt2", "float8"), "dtype=float8: choose from float32"),
        (
            lambda: CausalJudge("gpt2-large"),
            r"gpt2-large needs the package transformers.*pip install 'unnoise\[text\]'",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(attempt, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=words) as error:
        attempt()
    assert re.fullmatch(".*", str(error.value))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random GPT-2 with a tokenizer of bytes."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, "<|endoftext|>"])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    path, end = tmp_path_factory.mktemp("gpt2-tiny"), "<|endoftext|>"
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end)
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 256, "eos_token_id": 256}
    config = transformers.GPT2Config(vocab_size=257, initializer_range=0.5, **sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


WORDS = ["to be or not to be, that is the question", "a", "whether 'tis nobler"]


@pytest.mark.parametrize("begin", [False, True])
def test_a_model_of_transformers(folder, begin):
    import transformers

    judge = CausalJudge(folder, begin=begin, batch=2, device="cpu")
    assert judge.context == 16  # that of the model
    assert "float32" in judge.settings
    assert "its tokenizer of 257 tokens (SHA-256 " in judge.settings
    assert "chunks of 16 tokens" in judge.settings
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    nats, counts = [], []
    for text in WORDS:
        ids, total, count = judge.tokenizer(text, add_special_tokens=False)["input_ids"], 0.0, 0
        size, first = (15, [256]) if begin else (16, [])
        for start in range(0, len(ids), size):
            chunk = torch.tensor([[*first, *ids[start : start + size]]])
            with torch.no_grad():
                log_p = model(chunk).logits[0].double().log_softmax(-1)
            total -= sum(float(log_p[i - 1, chunk[0, i]]) for i in range(1, chunk.shape[1]))
            count += chunk.shape[1] - 1
        nats, counts = [*nats, total], [*counts, count]
    score = judge.score(WORDS)
    assert score.tokens.tolist() == counts
    assert score.nats.tolist() == pytest.approx(nats, rel=1e-5)
    features = judge.features(WORDS)
    for row, text in zip(features, WORDS, strict=True):
        ids = torch.tensor([judge.encode([text])[0][:16]])
        with torch.no_grad():
            torch.testing.assert_close(row, model.transformer(ids).last_hidden_state[0, -1], rtol=1e-4, atol=1e-5)
    low = CausalJudge(folder, "bfloat16", begin=begin, device="cpu")
    assert low.score(WORDS).perplexity[0] == pytest.approx(score.perplexity[0], rel=0.1)
    assert "bfloat16" in low.settings


def test_models_that_cannot_be_loaded(folder, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for name, words in ((str(tmp_path), "cannot be read"), ("nobody/no-such-model", "cannot be fetched from the Hub")):
        with pytest.raises(UsageError, match=f"the causal language model {name} .*{words}.*give the path") as error:
            CausalJudge(name)
        assert re.fullmatch(".*", str(error.value))


def test_weights_in_pickle_files_are_not_read(folder, tmp_path):
    path = Path(shutil.copytree(folder, tmp_path / "pickled"))
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"pickled cannot be read .*: give the path of a folder"):
        CausalJudge(path)
