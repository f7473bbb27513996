"""The parts of categorical recipes by kind and name."""

from __future__ import annotations

from .. import discrete
from ..discrete.reverse import ReverseModel
from ..discrete.schedules import NoiseSchedule
from ..discrete.transition.base import Transition
from ..shared.objective import Objective
from ..shared.random import categorical
from ..shared.sampler import CorrectorPredictor, PredictorCorrector, Sampler
from . import categorical_builders, code_lengths
from .catalog import BUILDERS, SHARED, Catalog, classes, of_module

BUILDERS.update(
    of_module(discrete, "cosine", "linear", "reciprocal"),
    of_module(categorical_builders, "context_neighbors", "with_mutual_information", "from_file", "absorbing_gray"),
)
CATEGORICAL = Catalog(
    SHARED
    | {
        "Transition": [
            *classes(Transition, discrete),
            categorical_builders.with_mutual_information,
            categorical_builders.from_file,
            categorical_builders.absorbing_gray,
        ],
        "NoiseSchedule": [*classes(NoiseSchedule, discrete), discrete.cosine, discrete.linear, discrete.reciprocal],
        "ReverseModel": classes(ReverseModel, discrete),
        "Head": of_module(discrete, "direct", "residual", "carried", "logistic"),
        "CategoricalDenoiser": [discrete.Categorical, discrete.ScoreEntropyDenoiser],
        "ClassifierFree": [discrete.ClassifierFree],
        "Objective": classes(Objective, discrete),
        "Sampler": [*classes(Sampler, discrete), PredictorCorrector, CorrectorPredictor],
        "TokenBound": [code_lengths.TokenBound],
        "Last": [discrete.most_likely, categorical],
        "Jumps": [discrete.ordinal, discrete.single],
        "Offset": [discrete.scaled_by_noise, discrete.unscaled],
        "neighbors": [categorical_builders.context_neighbors],
    }
)
"""The parts of categorical recipes."""
