"""Measures of the quality of samples, and numbers that carry how they were measured."""

from typing import TYPE_CHECKING

from ..lazy import lazily
from .inception_score import inception_score  # a module has this name, too

if TYPE_CHECKING:
    from .causal import CausalJudge
    from .features import Features
    from .frechet import Moments, frechet_distance, frechet_of_moments
    from .images import image_measures
    from .inception import Inception
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

__getattr__, __dir__ = lazily(
    __name__,
    {
        "causal": "CausalJudge",
        "features": "Features",
        "frechet": "Moments frechet_distance frechet_of_moments",
        "images": "image_measures",
        "inception": "Inception",
        "kernel": "kernel_distance",
        "measurement": "Evaluation Origin Protocol",
        "neighbors": "memorized nearest_neighbors neighbor_measures",
        "pixels": "Pixels",
        "references": "Reference read_reference reference_of",
        "text": "NGram PerplexityAndEntropy distinct entropy generative_perplexity",
        "text_samples": "evaluate_texts",
        "transformers_features": "TransformersFeatures",
    },
)
