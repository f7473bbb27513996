"""Categorical diffusion: D3PM with structured transition matrices, multinomial diffusion, MDLM, SEDD and tauLDR."""

from .bound import VariationalBound
from .denoiser import Categorical, CategoricalDenoiser, CategoricalOracle, CleanDenoiser, ScoreEntropyDenoiser, scaled_by_noise
from .heads import carried, direct, logistic, residual
from .information import mutual_information
from .objectives import ContinuousBound, CrossEntropy, Hybrid
from .reverse import Marginal, Product
from .samplers import Ancestral, most_likely
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

__all__ = [
    "Absorbing",
    "Ancestral",
    "BandDiagonal",
    "Categorical",
    "CategoricalDenoiser",
    "CategoricalOracle",
    "CleanDenoiser",
    "Constant",
    "ContinuousBound",
    "Cosine",
    "CrossEntropy",
    "Dense",
    "DiscretizedGaussian",
    "Exponential",
    "GaussianTarget",
    "Geometric",
    "Hybrid",
    "LogLinear",
    "Marginal",
    "Mixture",
    "NearestNeighbor",
    "NoiseSchedule",
    "Product",
    "ReverseModel",
    "ScoreEntropyDenoiser",
    "Steps",
    "Transition",
    "Uniform",
    "VariationalBound",
    "carried",
    "cosine",
    "direct",
    "linear",
    "logistic",
    "most_likely",
    "mutual_information",
    "nearest",
    "reciprocal",
    "residual",
    "scaled_by_noise",
    "sinkhorn",
]
