"""Categorical diffusion: D3PM with structured transition matrices, multinomial diffusion, MDLM, SEDD and tauLDR."""

from ..shared.importance import Importance
from ..shared.random import categorical
from .bound import VariationalBound
from .denoiser import Categorical, CategoricalDenoiser, CategoricalOracle, CleanDenoiser, ScoreEntropyDenoiser, scaled_by_noise, unscaled
from .editing import Infilling, between, prefix, sliding, suffix
from .guidance import ClassifierFree, ClassifierGuided, every_neighbour, first_order
from .heads import carried, direct, logistic, residual
from .information import mutual_information
from .leaping import RateCorrector, TauLeaping, ordinal, single
from .objectives import ContinuousBound, CrossEntropy, Hybrid
from .reverse import Marginal, Product, to_leave_one_out, to_posterior
from .samplers import Ancestral, Euler, most_likely, reverse_rates
from .schedules import Constant, Cosine, Exponential, Geometric, LogLinear, NoiseSchedule, Steps, cosine, linear, reciprocal
from .transition import (
    Absorbing,
    BandDiagonal,
    Dense,
    DiscretizedGaussian,
    GaussianTarget,
    Mixture,
    NearestNeighbor,
    ReverseModel,
    Transition,
    Uniform,
    nearest,
    sinkhorn,
)
from .truncation import Nucleus, Tempered
from .unmasking import FirstHitting, Remasking, Unmasking

__all__ = [
    "Absorbing",
    "Ancestral",
    "BandDiagonal",
    "Categorical",
    "CategoricalDenoiser",
    "CategoricalOracle",
    "ClassifierFree",
    "ClassifierGuided",
    "CleanDenoiser",
    "Constant",
    "ContinuousBound",
    "Cosine",
    "CrossEntropy",
    "Dense",
    "DiscretizedGaussian",
    "Euler",
    "Exponential",
    "FirstHitting",
    "GaussianTarget",
    "Geometric",
    "Hybrid",
    "Importance",
    "Infilling",
    "LogLinear",
    "Marginal",
    "Mixture",
    "NearestNeighbor",
    "NoiseSchedule",
    "Nucleus",
    "Product",
    "RateCorrector",
    "Remasking",
    "ReverseModel",
    "ScoreEntropyDenoiser",
    "Steps",
    "TauLeaping",
    "Tempered",
    "Transition",
    "Uniform",
    "Unmasking",
    "VariationalBound",
    "between",
    "carried",
    "categorical",
    "cosine",
    "direct",
    "every_neighbour",
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
