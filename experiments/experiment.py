"""What an experiment is: data, a network, a way to train, to sample and to measure, as one frozen dataclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..shared.code_length import CodeLength
from ..shared.data import Batches
from ..shared.denoiser import Denoiser
from ..shared.errors import UsageError
from ..shared.objective import Objective
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.training import Training

CodeLengthOf = Callable[..., CodeLength]


class Experiment(ABC):
    """One run. `ImageExperiment` and `TextExperiment` say what their data are, a paper's class how its model is built.

    Attributes:
        training: how it is trained.
        sampling_steps: steps of the sampler.
    """

    training: Training
    sampling_steps: int

    code_length_kind = "upper bound"
    """What the code length is: an upper bound, or exact up to dequantisation."""
    loss_unit = "loss"
    """What the loss curve shows."""
    picture = "samples.png"
    """What samples are written to where no other name is given."""

    @abstractmethod
    def load(self, split: str = "train", progress: Progress = silent) -> Any:
        """A split of the data, with its `shape` and `quantization`."""

    def settled(self) -> Experiment:
        """The same with whatever it points to outside of its run taken in."""
        return self

    @abstractmethod
    def on(self, name: str) -> Experiment:
        """The same with data of another name.

        Those of a recipe that lie elsewhere now, or some for an imported checkpoint.
        """

    @abstractmethod
    def batches(self, data: Any) -> Batches:
        """A split in the form that the model takes, with its conditions."""

    @abstractmethod
    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        """The conditions of samples number `rows`."""

    @abstractmethod
    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        """The levels, int64, of a sample in that form."""

    @abstractmethod
    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        """A fresh denoiser in its objective."""

    @abstractmethod
    def sampler(self, denoiser: Denoiser) -> Sampler:
        """The paper's sampler."""

    def grid(self, denoiser: Denoiser, steps: int) -> int | Tensor:
        """The times at which `steps` steps of the sampler are taken.

        The schedule's own unless a paper says otherwise.
        """
        return steps

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """The paper's figure from this recipe: trains it into `folder` if need be, and writes a picture and a table
        there.

        Returns:
            The table, as Markdown.
        """
        raise UsageError("this recipe has no figure of its own: `unnoise evaluate` measures its run")

    @abstractmethod
    def code_length(self, denoiser: Denoiser, quantization: Quantization) -> CodeLengthOf:
        """The paper's code length of levels, as a function of (levels, source of noise, progress, conditions)."""

    @abstractmethod
    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        """Writes samples to a file, and returns what of them can be read on a terminal."""

    @abstractmethod
    def evaluate(
        self,
        denoiser: Denoiser,
        *,
        count: int | None,
        steps: int | Tensor,
        seed: int = 0,
        trained_on: Mapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> dict[str, Any]:
        """Code length and samples, measured on `count` held-out examples, None for all.

        `trained_on` is what the checkpoint says of its batches: where those to train on are others now, so may be those
        held out.
        """


def at_most(name: str, value: int, limit_name: str, limit: int) -> None:
    """Refuses a value above a limit, or below one."""
    if not 1 <= value <= limit:
        raise UsageError(f"{name}={value}: give a whole number from 1 to {limit_name}={limit}")
