"""How good samples are."""

from .frechet import frechet_distance
from .text import Generated, NGram, distinct, entropy, generative_perplexity

__all__ = ["Generated", "NGram", "distinct", "entropy", "frechet_distance", "generative_perplexity"]
