"""What the three families share: the interfaces of processes, denoisers, objectives and samplers, and their values.

Its modules and the sub-packages `data`, `figures`, `gaussian`, `metrics`, `networks` and `training` are imported when
first used, so `import unnoise.shared` imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import imported_later, lazily

if TYPE_CHECKING:
    from . import data as data
    from . import figures as figures
    from . import gaussian as gaussian
    from . import metrics as metrics
    from . import networks as networks
    from . import training as training
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


_MODULES = {
    "code_length": "CodeLength",
    "corruption": "Corruption",
    "denoiser": "Denoiser",
    "editing": "Inpainting RePaint sdedit",
    "errors": "Notice UsageError",
    "importance_sampling": "ImportanceSampling",
    "objective": "Loss Objective ObjectiveWrapper Stratified TimeSampling antithetic independent",
    "quantization": "Quantization",
    "random": "Source Streams",
    "sampler": "CorrectorPredictor PredictorCorrector Sampler counted",
    "serialization": "deserialize serializable serialize",
    "time_inputs": "LastIndex TimeInput log_half_noise_level log_noise_level nearest_index noise_level quarter_log "
    "reversed_index song_vp step_index thousandth_index thousandths",
}
"""The names that each module of this package defines for it."""

imported_later(*(f"{__name__}.{module}" for module in _MODULES))
__getattr__, __dir__ = lazily(__name__, _MODULES, _PACKAGES)
