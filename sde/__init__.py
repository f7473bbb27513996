"""Score SDEs: VP, sub-VP and VE, predictor-corrector sampling, the probability flow and its exact likelihood."""

from ..shared.denoiser import Learned
from ..shared.prediction import clean, noise, velocity
from ..shared.sampler import PredictorCorrector
from .correctors import Langevin, batch_norms, own_norms
from .flow import ProbabilityFlow
from .likelihood import ChangeOfVariables
from .objectives import ScoreMatching
from .predictors import EulerMaruyama, ReverseDiffusion
from .schedules import VE, VP, SubVP
from .sde import SDE

__all__ = [
    "SDE",
    "VE",
    "VP",
    "ChangeOfVariables",
    "EulerMaruyama",
    "Langevin",
    "Learned",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "ScoreMatching",
    "SubVP",
    "batch_norms",
    "clean",
    "noise",
    "own_norms",
    "velocity",
]
