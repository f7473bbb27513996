"""Measures of the quality of samples, and numbers that carry how they were measured."""

from .causal import CausalJudge
from .features import Features
from .frechet import Moments, frechet_distance, frechet_of_moments
from .images import image_measures
from .inception import Inception
from .inception_score import inception_score
from .kernel import kernel_distance
from .measurement import Evaluation, Origin, Protocol
from .neighbors import memorized, nearest_neighbors, neighbor_measures
from .pixels import Pixels
from .references import Reference, read_reference, reference_of
from .text import NGram, PerplexityAndEntropy, distinct, entropy, generative_perplexity
from .text_samples import evaluate_texts
from .transformers_features import TransformersFeatures

__all__ = [
    "CausalJudge",
    "Evaluation",
    "Features",
    "Inception",
    "Moments",
    "NGram",
    "Origin",
    "PerplexityAndEntropy",
    "Pixels",
    "Protocol",
    "Reference",
    "TransformersFeatures",
    "distinct",
    "entropy",
    "evaluate_texts",
    "frechet_distance",
    "frechet_of_moments",
    "generative_perplexity",
    "image_measures",
    "inception_score",
    "kernel_distance",
    "memorized",
    "nearest_neighbors",
    "neighbor_measures",
    "read_reference",
    "reference_of",
]
