"""Categorical diffusion: D3PM with structured transition matrices, multinomial diffusion, MDLM, SEDD and tauLDR."""

from ..shared.importance_sampling import ImportanceSampling
from ..shared.random import categorical
from .analytic import AnalyticCategorical
from .bound import VariationalBound
from .denoiser import Categorical, CategoricalDenoiser, CleanDenoiser
from .editing import Infilling, between, prefix, sliding, suffix
from .guidance import ClassifierFree, ClassifierGuided, every_neighbor, first_order
from .heads import carried, direct, logistic, residual
from .information import mutual_information
from .logit_filters import Temperature, TopP
from .objectives import ContinuousBound, CrossEntropy, D3PMLoss
from .reverse import Marginal, Product, to_leave_one_out, to_posterior
from .samplers import Ancestral, Euler, most_likely, reverse_rates
from .schedules import (
    ConstantNoise,
    CosineNoise,
    ExponentialNoise,
    GeometricNoise,
    LogLinearNoise,
    NoiseSchedule,
    TabulatedNoise,
    cosine,
    linear,
    reciprocal,
)
from .score_entropy import ScoreEntropyDenoiser, scaled_by_noise, unscaled
from .tau_leaping import RateCorrector, TauLeaping, ordinal, single
from .transition import (
    Absorbing,
    BandDiagonal,
    Dense,
    DiscretizedGaussian,
    GaussianTarget,
    GenericTransition,
    Mixture,
    NearestNeighbor,
    ReverseModel,
    Transition,
    Uniform,
    nearest,
    sinkhorn,
)
from .unmasking import FirstHitting, Remasking, Unmasking

__all__ = [
    "Absorbing",
    "AnalyticCategorical",
    "Ancestral",
    "BandDiagonal",
    "Categorical",
    "CategoricalDenoiser",
    "ClassifierFree",
    "ClassifierGuided",
    "CleanDenoiser",
    "ConstantNoise",
    "ContinuousBound",
    "CosineNoise",
    "CrossEntropy",
    "D3PMLoss",
    "Dense",
    "DiscretizedGaussian",
    "Euler",
    "ExponentialNoise",
    "FirstHitting",
    "GaussianTarget",
    "GenericTransition",
    "GeometricNoise",
    "ImportanceSampling",
    "Infilling",
    "LogLinearNoise",
    "Marginal",
    "Mixture",
    "NearestNeighbor",
    "NoiseSchedule",
    "Product",
    "RateCorrector",
    "Remasking",
    "ReverseModel",
    "ScoreEntropyDenoiser",
    "TabulatedNoise",
    "TauLeaping",
    "Temperature",
    "TopP",
    "Transition",
    "Uniform",
    "Unmasking",
    "VariationalBound",
    "between",
    "carried",
    "categorical",
    "cosine",
    "direct",
    "every_neighbor",
    "first_order",
    "linear",
    "logistic",
    "most_likely",
    "mutual_information",
    "nearest",
    "ordinal",
    "prefix",
    "reciprocal",
    "residual",
    "reverse_rates",
    "scaled_by_noise",
    "single",
    "sinkhorn",
    "sliding",
    "suffix",
    "to_leave_one_out",
    "to_posterior",
    "unscaled",
]
