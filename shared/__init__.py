"""What the three families share: the interfaces of processes, denoisers, objectives and samplers, and their values.

The sub-packages `data`, `figures`, `gaussian`, `metrics`, `networks` and `training` are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .code_length import CodeLength
from .corruption import Corruption
from .denoiser import Denoiser
from .editing import Inpainting, RePaint, sdedit
from .errors import Notice, UsageError
from .importance_sampling import ImportanceSampling
from .objective import Loss, Objective, ObjectiveWrapper, Stratified, TimeSampling, antithetic, independent
from .quantization import Quantization
from .random import Source, Streams
from .sampler import CorrectorPredictor, PredictorCorrector, Sampler, counted
from .serialization import deserialize, serializable, serialize
from .time_inputs import (
    LastIndex,
    TimeInput,
    log_half_noise_level,
    log_noise_level,
    nearest_index,
    noise_level,
    quarter_log,
    reversed_index,
    song_vp,
    step_index,
    thousandth_index,
    thousandths,
)

if TYPE_CHECKING:
    from . import data as data
    from . import figures as figures
    from . import gaussian as gaussian
    from . import metrics as metrics
    from . import networks as networks
    from . import training as training

__all__ = [
    "CodeLength",
    "CorrectorPredictor",
    "Corruption",
    "Denoiser",
    "ImportanceSampling",
    "Inpainting",
    "LastIndex",
    "Loss",
    "Notice",
    "Objective",
    "ObjectiveWrapper",
    "PredictorCorrector",
    "Quantization",
    "RePaint",
    "Sampler",
    "Source",
    "Stratified",
    "Streams",
    "TimeInput",
    "TimeSampling",
    "UsageError",
    "antithetic",
    "counted",
    "deserialize",
    "independent",
    "log_half_noise_level",
    "log_noise_level",
    "nearest_index",
    "noise_level",
    "quarter_log",
    "reversed_index",
    "sdedit",
    "serializable",
    "serialize",
    "song_vp",
    "step_index",
    "thousandth_index",
    "thousandths",
]

_PACKAGES = ("data", "figures", "gaussian", "metrics", "networks", "training")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES})
