"""Bundled images that most runs of the tests load several times are decoded once in a process."""

import importlib
from contextlib import contextmanager


@contextmanager
def decoded_once(of):
    """Within the block the images of a bundled data set are decoded at the first loading of each of their splits."""
    images = importlib.import_module("unnoise.shared.data.images")
    decode, kept = images.pixels_of, {}

    def pixels_of(pictures, name, size, memory, progress):
        if name != of or memory not in ("auto", "memory"):
            return decode(pictures, name, size, memory, progress)
        key = str((pictures.identity(), size))
        if key not in kept:
            kept[key] = decode(pictures, name, size, memory, progress)
        k, notes = kept[key]
        return k.clone(), list(notes)

    images.pixels_of = pixels_of
    yield
    images.pixels_of = decode
