"""Discrete-time Gaussian diffusion: DDPM and its successors, up to guided, distilled and few-step sampling."""

from ..shared.gaussian import (
    Clipped,
    DenoisingLoss,
    Learned,
    MinSNR,
    OutputError,
    Schedule,
    Thresholded,
    clean,
    noise,
    slerp,
    snr,
    truncated_snr,
    velocity,
)
from ..shared.importance_sampling import ImportanceSampling
from .betas import (
    betas_of,
    constant_betas,
    cosine_betas,
    linear_betas,
    quadratic_betas,
    reciprocal_betas,
    sigmoid_betas,
    warmup_betas,
    zero_terminal,
)
from .bound import RateDistortion, VariationalBound
from .distillation import Distillation
from .grids import karras, log_spaced, quadratic, sections, strided, trailing
from .objectives import Hybrid, Variational
from .posterior import LogInterpolated, large, learned_diagonal, learned_range, posterior, small
from .prediction import PosteriorMean
from .samplers import DDIM, Ancestral, encode
from .schedules import Cosine, Shifted, Tabulated, resolution_shift, tabulate
from .solvers import LMS, DPMSolver, DPMSolverPP, DPMSolverPPSingle, Heun, UniPC, curved, exponential, midpoint
from .stochastic import Churned, Renoised

__all__ = [
    "DDIM",
    "LMS",
    "Ancestral",
    "Churned",
    "Clipped",
    "Cosine",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverPPSingle",
    "DenoisingLoss",
    "Distillation",
    "Heun",
    "Hybrid",
    "ImportanceSampling",
    "Learned",
    "LogInterpolated",
    "MinSNR",
    "OutputError",
    "PosteriorMean",
    "RateDistortion",
    "Renoised",
    "Schedule",
    "Shifted",
    "Tabulated",
    "Thresholded",
    "UniPC",
    "Variational",
    "VariationalBound",
    "betas_of",
    "clean",
    "constant_betas",
    "cosine_betas",
    "curved",
    "encode",
    "exponential",
    "karras",
    "large",
    "learned_diagonal",
    "learned_range",
    "linear_betas",
    "log_spaced",
    "midpoint",
    "noise",
    "posterior",
    "quadratic",
    "quadratic_betas",
    "reciprocal_betas",
    "resolution_shift",
    "sections",
    "sigmoid_betas",
    "slerp",
    "small",
    "snr",
    "strided",
    "tabulate",
    "trailing",
    "truncated_snr",
    "velocity",
    "warmup_betas",
    "zero_terminal",
]
