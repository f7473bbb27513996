"""How good samples are."""

from .frechet import frechet_distance

__all__ = ["frechet_distance"]
