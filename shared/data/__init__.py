"""Data: everything yields dicts `{"x0": ..., conditions by name}` and knows its own scale."""

from .batches import Batches
from .images import ImageSet, image_set, images
from .text import letters

__all__ = ["Batches", "ImageSet", "image_set", "images", "letters"]
