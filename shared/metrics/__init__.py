"""Measures of the quality of samples."""

from .frechet import frechet_distance
from .text import NGram, PerplexityAndEntropy, distinct, entropy, generative_perplexity

__all__ = ["NGram", "PerplexityAndEntropy", "distinct", "entropy", "frechet_distance", "generative_perplexity"]
