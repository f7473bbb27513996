"""Generative perplexity of texts under a causal language model of the `transformers` library."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..code_length import perplexity
from ..errors import UsageError
from ..progress import Progress, silent
from .errors import ratio_of_sums
from .features import cannot_be_loaded, digest_of, in_float32

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class CausalModel(Protocol):
    """A causal language model: from token ids to the logits of the next token at each place."""

    def logits(self, ids: Tensor) -> Tensor:
        """Returns logits `(B, L, K)` of tokens `(B, L)`: those at place i are of the token at place i + 1."""
        ...


class CausalScore(NamedTuple):
    """The code length of texts under a causal language model.

    Attributes:
        nats: code length of each text, float64 `(N,)`, the sum over its scored tokens.
        tokens: number of scored tokens of each text, int64 `(N,)`.
        entropy: entropy of the frequencies of the tokens in one text, in bits, averaged over the texts.
        entropy_error: its standard error over the texts.
    """

    nats: Tensor
    tokens: Tensor
    entropy: float
    entropy_error: float

    @property
    def perplexity(self) -> tuple[float, float]:
        """The perplexity per scored token, `exp(sum of nats / number of tokens)`, and its standard error."""
        mean, error = ratio_of_sums(self.nats, self.tokens)
        return perplexity(mean), perplexity(mean) * error


def causal_score(
    model: CausalModel,
    texts: Sequence[Sequence[int]],
    *,
    context: int = 1024,
    begin: int | None = None,
    batch: int = 8,
    progress: Progress = silent,
) -> CausalScore:
    """Returns the code length of texts of token ids under a causal model.

    Each text is cut into chunks of at most `context` tokens, and each chunk is coded alone. The first token of a chunk
    has no context and is not scored, unless a token `begin` is put before each chunk (which then has `context - 1`
    tokens of the text) and all are scored.

    Args:
        model: the model.
        texts: the token ids of each text.
        context: the largest number of tokens that the model is given at once, `begin` included.
        begin: the token put before each chunk, such as the model's beginning-of-sequence token; None for none.
        batch: the number of chunks that are coded at a time.
        progress: how to report progress.

    Raises:
        UsageError: for a context below 2, or texts without a token to score.
    """
    if context < 2:
        raise UsageError(f"context={context}: give 2 or more tokens, of which all but the first are scored")
    if not texts:
        raise UsageError("there are no texts: give one or more")
    chunks = chunks_of(texts, context, begin)
    nats = torch.zeros(len(texts), dtype=torch.float64)
    tokens = torch.zeros(len(texts), dtype=torch.int64)
    starts = range(0, len(chunks), batch)
    for start in progress(starts, len(starts), "coding by the causal model"):
        part = chunks[start : start + batch]
        # Padding lies behind the text, which a causal model does not see from there.
        ids = torch.nn.utils.rnn.pad_sequence([chunk for _, chunk in part], batch_first=True)
        for (text, chunk), logits in zip(part, model.logits(ids), strict=True):
            own = logits[: len(chunk) - 1]
            log_p = (own if own.dtype == torch.float64 else own.float()).log_softmax(-1)
            nats[text] -= log_p.gather(1, chunk[1:, None].to(log_p.device)).double().sum().cpu()
            tokens[text] += len(chunk) - 1
    if int(tokens.sum()) == 0:
        raise UsageError("no text has two tokens, of which one can be scored: give longer texts")
    entropies = torch.stack([entropy_of(torch.as_tensor(text)) for text in texts if len(text)])
    error = float(entropies.std() / len(entropies) ** 0.5) if len(entropies) > 1 else float("nan")
    return CausalScore(nats, tokens, float(entropies.mean()), error)


def chunks_of(texts: Sequence[Sequence[int]], context: int, begin: int | None) -> list[tuple[int, Tensor]]:
    """Returns the chunks of texts, each with the number of its text; those without a token to score are left out."""
    size, first = (context, []) if begin is None else (context - 1, [begin])
    return [
        (number, torch.tensor([*first, *text[start : start + size]], dtype=torch.int64))
        for number, text in enumerate(texts)
        for start in range(0, len(text), size)
        if len(first) + len(text[start : start + size]) > 1
    ]


def entropy_of(tokens: Tensor) -> Tensor:
    """Returns the entropy of the frequencies of tokens `(L,)`, in bits, float64."""
    p = tokens.unique(return_counts=True)[1].double() / len(tokens)
    return -(p * p.log2()).sum()


class CausalJudge:
    """A causal language model of the `transformers` library with its tokenizer, which measures any texts.

    Texts are tokenized by its own tokenizer without added special tokens, and coded as in `causal_score`. Perplexities
    can be compared between samples of similar entropy only, and depend on dtype and tokenizer.

    Args:
        name: name of a model on the Hub, such as gpt2-large, or a folder with config.json, weights and tokenizer.
        dtype: dtype of the weights and the computation: float32, bfloat16, float16 or float64.
        context: number of tokens of a chunk; it is lowered to the model's largest.
        begin: whether the model's beginning-of-sequence token is put before each chunk, so that all tokens are scored.
        batch: the number of chunks that are coded at a time.
        device: the device; None for the first GPU, or the CPU.

    Attributes:
        digest: the first 12 hexadecimal digits of the SHA-256 of the weights.

    Raises:
        UsageError: without the package transformers, or where the model cannot be loaded.
    """

    def __init__(
        self,
        name: str | Path,
        dtype: str = "float32",
        *,
        context: int = 1024,
        begin: bool = False,
        batch: int = 8,
        device: str | torch.device | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise UsageError(f"dtype={dtype}: choose from {', '.join(DTYPES)}")
        self.path, self.dtype, self.batch = str(name), dtype, batch
        self.model, self.tokenizer = loaded(str(name))
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = self.model.to(device=self.device, dtype=DTYPES[dtype]).eval().requires_grad_(False)
        self.digest = digest_of(self.model.state_dict())
        most = getattr(self.model.config, "max_position_embeddings", None) or context
        self.context = min(context, most)
        self.begin: int | None = self.tokenizer.bos_token_id if begin else None
        if begin and self.begin is None:
            raise UsageError(f"begin=True: the tokenizer of {name} has no beginning-of-sequence token: leave it out")

    @property
    def name(self) -> str:
        """Short name: the last part of the name or path."""
        return self.path.rstrip("/\\").replace("\\", "/").split("/")[-1]

    @property
    def settings(self) -> str:
        """What perplexities depend on, in words: dtype, tokenizer, context and which tokens are scored."""
        first = "first token of a chunk not scored" if self.begin is None else "beginning token before each chunk"
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda pair: pair[1])
        content = hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:8]
        own = f"its tokenizer of {len(vocabulary):,} tokens (SHA-256 {content})"
        return f"{self.dtype}, {own}, chunks of {self.context} tokens coded alone, {first}"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of texts, without added special tokens."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on texts longer than the context, which are cut into chunks
            return [list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]

    @in_float32()
    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Returns logits `(B, L, K)` of tokens `(B, L)`."""
        return self.model(ids.to(self.device)).logits

    def score(self, texts: Sequence[str], progress: Progress = silent) -> CausalScore:
        """Returns the code length of texts, see `causal_score`."""
        ids = self.encode(texts)
        return causal_score(self, ids, context=self.context, begin=self.begin, batch=self.batch, progress=progress)

    @in_float32()
    @torch.no_grad()
    def features(self, texts: Sequence[str], progress: Progress = silent) -> Tensor:
        """Returns the last hidden state at the last token of each text, cut after the context, float32 `(N, d)`.

        These are the features of MAUVE (Pillutla et al. 2021, section 4).

        Raises:
            UsageError: for a text without tokens.
        """
        rows = []
        ids = [torch.tensor(text[: self.context], dtype=torch.int64) for text in self.encode(texts)]
        if any(len(row) == 0 for row in ids):
            raise UsageError(f"text {next(i for i, row in enumerate(ids) if not len(row))} is empty: leave it out")
        starts = range(0, len(ids), self.batch)
        for start in progress(starts, len(starts), f"{self.name} features"):
            part = ids[start : start + self.batch]
            padded = torch.nn.utils.rnn.pad_sequence(part, batch_first=True).to(self.device)
            states = self.model(padded, output_hidden_states=True).hidden_states[-1]
            rows += [state[len(row) - 1].float().cpu() for state, row in zip(states, part, strict=True)]
        return torch.stack(rows)


def loaded(name: str) -> tuple[Any, Any]:
    """Returns the causal model of a name or folder, and its tokenizer.

    Raises:
        UsageError: without the package transformers, or where the model cannot be loaded.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            f"a causal language model such as {name} needs the package transformers, which is not installed: "
            "pip install 'unnoise[text]'"
        ) from error
    open_as: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    try:
        return open_as(name, use_safetensors=True), AutoTokenizer.from_pretrained(name)
    except Exception as error:  # the library raises many kinds
        raise UsageError(
            f"the causal language model {cannot_be_loaded(name, error)}: give the path of a folder with its "
            "config.json, model.safetensors and tokenizer.json"
        ) from error
