"""The interface of an experiment: one frozen dataclass that builds, trains, samples and measures a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic

from torch import Tensor
from typing_extensions import Self, TypeVar

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
"""Computes code lengths from quantization levels, a source of noise, a progress reporter and conditions by name."""
D = TypeVar("D", bound=Denoiser, default=Any)


class Experiment(ABC, Generic[D]):
    """One experiment, generic in its denoiser. Every concrete class is a frozen dataclass.

    `ImageExperiment` and `TextExperiment` add the data; the class of a paper adds how its model is built.

    Attributes:
        training: the settings of the training.
        sampling_steps: the number of steps of the sampler.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    training: Training
    sampling_steps: int

    code_length_kind = "upper bound"
    """Whether the code length is an upper bound, or exact up to dequantization."""
    loss_unit = "loss"
    """The quantity and unit on the axis of the loss curve."""
    picture = "samples.png"
    """The default file name for samples."""

    @property
    def classes(self) -> int | None:
        """The number of class labels that the model is conditioned on; None for a model without labels."""
        return None

    @abstractmethod
    def load(self, split: str = "train", progress: Progress = silent) -> Any:
        """Returns a split of the data, with its `shape` and `quantization`."""

    def self_contained(self) -> Self:
        """Returns the experiment with absolute paths and the contents of its tokenizer, independent of the folder."""
        return self

    @abstractmethod
    def with_data(self, name: str) -> Self:
        """Returns the experiment with data of another name.

        Used for data that have moved since training, and for imported checkpoints, which come without data.
        """

    @abstractmethod
    def batches(self, data: Any) -> Batches:
        """Returns batches of a split in the form that the model takes, with its conditions."""

    @abstractmethod
    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        """Returns the conditions, by name, of the samples whose numbers are `rows`."""

    @abstractmethod
    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        """Returns the quantization levels, int64, of samples in the form that the model takes."""

    @abstractmethod
    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[D]:
        """Returns a new, untrained denoiser in its objective."""

    @abstractmethod
    def sampler(self, denoiser: D) -> Sampler:
        """Returns the sampler of the paper."""

    def grid(self, denoiser: D, steps: int) -> int | Tensor:
        """Returns the times of `steps` sampling steps; their number alone where the schedule chooses the times."""
        return steps

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Draws the figure of the paper: trains into `folder` where needed, and writes a picture and a table there.

        Returns:
            The path of the table, a Markdown file.
        """
        raise UsageError("this recipe has no figure of its own: measure its run with `unnoise evaluate`")

    @abstractmethod
    def code_length(self, denoiser: D, quantization: Quantization) -> CodeLengthOf:
        """Returns the code length of the paper, a function of (levels, source of noise, progress, conditions)."""

    @abstractmethod
    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        """Writes samples to a file, and returns the part of them that a terminal can show."""

    @abstractmethod
    def evaluate(
        self,
        denoiser: D,
        *,
        count: int | None,
        steps: int | Tensor,
        seed: int = 0,
        trained_on: Mapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> dict[str, Any]:
        """Measures code length and samples on `count` held-out examples, None for all.

        `trained_on` is what the checkpoint recorded about its training batches: where the training data are different
        now, the held-out data may be different too.
        """


def at_most(name: str, value: int, limit_name: str, limit: int) -> None:
    """Raises `UsageError` for a value above a limit or below one."""
    if not 1 <= value <= limit:
        raise UsageError(f"{name}={value}: give a whole number from 1 to {limit_name}={limit}")
