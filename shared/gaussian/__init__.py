"""Gaussian diffusion in discrete and in continuous time: schedules, denoisers, the denoising loss and guidance."""

from .analytic import AnalyticGaussian, AnalyticMixture
from .denoiser import Clipped, DenoiserWrapper, Estimate, GaussianDenoiser, Learned, Thresholded
from .dequantization import DequantizedLoss, Dequantizer, UniformDequantization, VariationalDequantization
from .guidance import (
    ClassifierFree,
    ClassifierGradient,
    ClassifierGuided,
    ClassifierLoss,
    ConditionDropout,
    NoisyClassifier,
)
from .interpolation import slerp
from .loss import DenoisingLoss
from .prediction import Preconditioned, clean, noise, scaled_score, straight, velocity
from .schedule import Schedule, TableSchedule
from .weights import MinSNR, OutputError, Weight, likelihood_weight, snr, truncated_snr, velocity_weight

__all__ = [
    "AnalyticGaussian",
    "AnalyticMixture",
    "ClassifierFree",
    "ClassifierGradient",
    "ClassifierGuided",
    "ClassifierLoss",
    "Clipped",
    "ConditionDropout",
    "DenoiserWrapper",
    "DenoisingLoss",
    "DequantizedLoss",
    "Dequantizer",
    "Estimate",
    "GaussianDenoiser",
    "Learned",
    "MinSNR",
    "NoisyClassifier",
    "OutputError",
    "Preconditioned",
    "Schedule",
    "TableSchedule",
    "Thresholded",
    "UniformDequantization",
    "VariationalDequantization",
    "Weight",
    "clean",
    "likelihood_weight",
    "noise",
    "scaled_score",
    "slerp",
    "snr",
    "straight",
    "truncated_snr",
    "velocity",
    "velocity_weight",
]
