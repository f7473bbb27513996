"""Structured denoising diffusion in discrete state spaces, on text (Austin et al. 2021, arXiv 2107.03006)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from ..discrete import (
    Absorbing,
    Ancestral,
    Categorical,
    CategoricalDenoiser,
    D3PMLoss,
    Marginal,
    Mixture,
    NearestNeighbor,
    NoiseSchedule,
    Product,
    Transition,
    Uniform,
    cosine,
    direct,
    mutual_information,
    nearest,
    reciprocal,
    residual,
)
from ..shared.data import TextDataset
from ..shared.errors import UsageError
from ..shared.objective import Objective, Stratified
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings
from .experiment import at_most
from .text_comparison import compare
from .texts import Text, TextExperiment, TextNetwork

HEADS = {"direct": direct, "residual": residual}
REVERSE = {"product": Product, "marginal": Marginal}
EXACT, AT_ONCE = 1024, 1000
"""The largest vocabulary whose embeddings are not projected; the number of windows that are counted at a time."""


@serializable(
    "experiments.D3PMText",
    formerly="unnoise.experiments.d3pm_text.D3PMText",
    renamed={"neighbours": "neighbors", "budget": "seconds_per_model"},
)
@dataclass(frozen=True)
class D3PMText(TextExperiment):
    """Absorbing, uniform or nearest-neighbor transitions between tokens, in T steps."""

    transition: Literal["absorbing", "uniform", "nearest", "absorbing+nearest"] = "absorbing"
    """Transition matrix: absorbing in a mask, uniform, or between nearest neighbors.
    Nearest neighbors are tokens that occur in similar contexts."""
    schedule: Literal["reciprocal", "cosine", "mutual-information"] = "reciprocal"
    """Schedule of the transition probabilities."""
    steps: int = 1000
    """Number of steps of the diffusion, T, such as 1000."""
    ce: float = 0.01
    """Weight lambda of the cross-entropy in the loss; the paper has 0.01, for absorbing transitions only."""
    reverse: Literal["product", "marginal"] = "product"
    """How p(x_0) gives the distribution of x_s: the product as published, or the exact marginal.
    The marginal trains faster where tokens are not masked."""
    head: Literal["direct", "residual"] = "direct"
    """Output of the network: direct is a logit for each token, residual adds 1 to the logit of x_t."""
    neighbors: int = 5
    """Number of neighbors of each token, for nearest."""
    seconds_per_model: float | None = None
    """Processor time in seconds for the training of each model by `unnoise reproduce`, such as 240.
    None trains for --training.steps."""
    measured: tuple[int, int] = (400, 200)
    """Number of held-out windows that `unnoise reproduce` codes with each model, and of samples that it draws."""

    loss_unit = "L_n + lambda CE, nats/token"

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)
        if "nearest" in self.transition and self.schedule == "reciprocal":
            raise UsageError(
                f"transition={self.transition}: schedule=reciprocal erases the text in the last step, which moves "
                "between neighbors cannot do: give --schedule mutual-information or cosine"
            )

    @property
    def bytes_per_logit(self) -> int:
        """Approximate memory of a training step, in bytes for each logit; matrices of neighbors are float64."""
        return 150 if "nearest" in self.transition else 16

    def corruption(self, quantization: Quantization) -> Transition:
        """Returns the transition; token frequencies and neighbors are those of the training text."""
        if self.transition == "absorbing":
            return Absorbing(quantization.levels, self.table(lambda noise: Absorbing(quantization.levels, noise)))
        if self.transition == "uniform":
            return Uniform(quantization.levels, self.table(lambda noise: Uniform(quantization.levels, noise)))
        near = nearest(context_embeddings(self.load()), self.neighbors)
        moves = NearestNeighbor(near, self.table(lambda noise: NearestNeighbor(near, noise)))
        return (
            moves
            if self.transition == "nearest"
            else Mixture(moves, Absorbing(quantization.levels, reciprocal(self.steps)))
        )

    def table(self, build: Callable[[NoiseSchedule], Transition]) -> Tensor | NoiseSchedule:
        """Returns the schedule of the transition that `build` makes from one."""
        if self.schedule == "mutual-information":
            return mutual_information(build, self.load().frequencies(), self.steps)
        return (cosine if self.schedule == "cosine" else reciprocal)(self.steps)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[CategoricalDenoiser]:
        transition = self.corruption(quantization)
        network = self.network.build(transition.states, shape[0], quantization.levels)
        denoiser = Categorical(network, transition, REVERSE[self.reverse](), head=HEADS[self.head])
        return D3PMLoss(denoiser, self.ce, times=Stratified(), padding=self.padding)

    def sampler(self, denoiser: CategoricalDenoiser) -> Sampler:
        return Ancestral(denoiser)

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Bits/char of D3PM's transitions, MDLM, SEDD and UDLM after equal training time (as table 1 and later)."""
        from .mdlm import MDLM
        from .sedd import SEDD
        from .udlm import UDLM

        shared = {
            "text": self.text,
            "training": self.training,
            "sampling_steps": self.sampling_steps,
            "bound_terms": self.bound_terms,
        }
        rotary = replace(self.network, kind="dit")
        information = replace(self, schedule="mutual-information", ce=0.0, reverse="marginal", head="residual")
        models = {
            "D3PM absorbing": replace(self, transition="absorbing", schedule="reciprocal", ce=0.01),
            "D3PM nearest": replace(information, transition="nearest"),
            "D3PM uniform": replace(information, transition="uniform"),
            "MDLM": MDLM(network=replace(rotary, timed=False), **shared),
            "SEDD absorbing": SEDD(network=rotary, **shared),
            "UDLM": UDLM(network=self.network, **shared),
        }
        return compare(
            models, folder, progress, seconds=self.seconds_per_model, windows=self.measured[0], samples=self.measured[1]
        )


def context_embeddings(text: TextDataset, windows: int = 20_000) -> Tensor:
    """Returns embeddings of the tokens, `(K, d)`, made from the tokens that occur before and after each.

    An embedding is the square roots of the two distributions, so that angles between embeddings compare distributions.
    With more than 1024 tokens it is projected at random to 256 numbers, which hardly changes angles. A token that does
    not occur in these windows has a random embedding, and so arbitrary neighbors.
    """
    size, count, source = text.vocabulary, min(windows, len(text.windows)), torch.Generator().manual_seed(0)
    pairs = csr_array((size, size))
    for start in range(0, count, AT_ONCE):
        k = text.windows[start : min(start + AT_ONCE, count)].numpy().astype(np.int64)
        place = k[:, :-1].ravel(), k[:, 1:].ravel()
        pairs = pairs + coo_array((np.ones(len(place[0])), place), (size, size)).tocsr()  # adds up what occurs twice
    roots = [pairs, pairs.T.tocsr()]
    for c in roots:
        c.data = np.sqrt(c.data / np.repeat(c.sum(1), np.diff(c.indptr)))
    if size <= EXACT:
        found = torch.from_numpy(np.concatenate([c.toarray() for c in roots], 1))
    else:
        found = torch.from_numpy(
            sum(c @ torch.randn(size, 256, dtype=torch.float64, generator=source).numpy() for c in roots)
        )
    alone = (found == 0).all(1)
    found[alone] = torch.randn(int(alone.sum()), found.shape[1], dtype=torch.float64, generator=source)
    return found


def text8() -> D3PMText:
    """text8, absorbing, lambda 0.01: 1.45 bits/char at 1000 steps, 1.47 at 256, 1.56 at 20.

    Uniform 1.61, nearest neighbors 1.59.
    """
    training = Training(steps=1_000_000, learning_rate=5e-4, warmup=10_000, clip=1.0, ema=0.9999, watch_every=10_000)
    return D3PMText(Text("text8", 512, 256), TextNetwork("t5", 768, 12, 12, 3072), training, 1000)


def lm1b() -> D3PMText:
    """LM1B, 8192 tokens (train_tokenizer, saved as lm1b.json), packed in windows of 128.

    Perplexity per word 76.9 at 1000 steps with absorbing transitions, 137.9 with uniform ones.
    """
    training = Training(steps=1_000_000, learning_rate=5e-4, warmup=10_000, clip=1.0, ema=0.9999, watch_every=10_000)
    return D3PMText(Text("lm1b", 512, 128, tokenizer="lm1b.json"), TextNetwork("t5", 768, 12, 12, 3072), training, 1000)


def chain() -> D3PMText:
    """A Markov chain on 27 tokens, whose entropy is known.

    The comparison takes four minutes on one core for each model.
    """
    return D3PMText(**common_settings.chain(), seconds_per_model=240)


def shakespeare() -> D3PMText:
    """Shakespeare as 27 characters, in windows of 128; the comparison takes seven minutes of one core a model."""
    return D3PMText(**common_settings.shakespeare(), seconds_per_model=400, measured=(200, 60))


def smoke() -> D3PMText:
    """A test of a few seconds that every part of the recipe runs."""
    return D3PMText(**common_settings.smoke_text(), steps=100, measured=(8, 8))
