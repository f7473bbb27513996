"""Score SDEs: schedules, predictor-corrector sampling, the probability flow and its exact likelihood, and their ancestors and heirs."""

from ..shared.denoiser import Learned
from ..shared.dequantisation import Uniform, Variational
from ..shared.latents import slerp
from ..shared.prediction import Preconditioned, clean, noise, straight, velocity
from ..shared.sampler import CorrectorPredictor, PredictorCorrector
from .annealing import Normaliser, log_normaliser
from .charts import angle, clock
from .correctors import AnnealedLangevin, Langevin, batch_norms, own_norms, snr_of
from .energy import EnergyDenoiser, Potential
from .flow import ProbabilityFlow
from .implicit import Implicit, Sliced
from .integrators import (
    Adaptive,
    SciPy,
    Steps,
    TorchDiffEq,
    bogacki_shampine,
    dormand_prince,
    euler,
    heun2,
    heun3,
    midpoint,
    rk4,
)
from .likelihood import ChangeOfVariables, ExactTrace, Hutchinson
from .noise_levels import Levels, best_epsilon, geometric_sigmas, largest_sigma, level_count, level_ratio
from .objectives import EDMLoss, FlowMatching, MaximumLikelihood, ScoreMatching, g_squared, sigma_squared
from .predictors import EulerMaruyama, ReverseDiffusion, Still
from .schedules import EDM, VE, VP, Straight, SubVP, vp_betas
from .sde import SDE

__all__ = [
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Adaptive",
    "AnnealedLangevin",
    "ChangeOfVariables",
    "CorrectorPredictor",
    "EDMLoss",
    "EnergyDenoiser",
    "EulerMaruyama",
    "ExactTrace",
    "FlowMatching",
    "Hutchinson",
    "Implicit",
    "Langevin",
    "Learned",
    "Levels",
    "MaximumLikelihood",
    "Normaliser",
    "Potential",
    "Preconditioned",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "SciPy",
    "ScoreMatching",
    "Sliced",
    "Steps",
    "Still",
    "Straight",
    "SubVP",
    "TorchDiffEq",
    "Uniform",
    "Variational",
    "angle",
    "batch_norms",
    "best_epsilon",
    "bogacki_shampine",
    "clean",
    "clock",
    "dormand_prince",
    "euler",
    "g_squared",
    "geometric_sigmas",
    "heun2",
    "heun3",
    "largest_sigma",
    "level_count",
    "level_ratio",
    "log_normaliser",
    "midpoint",
    "noise",
    "own_norms",
    "rk4",
    "sigma_squared",
    "slerp",
    "snr_of",
    "straight",
    "velocity",
    "vp_betas",
]
