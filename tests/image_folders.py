"""Small folders of images."""

import numpy as np
from PIL import Image

from unnoise.shared.data import image_dataset


def put(root, *names):
    """Images of one pixel, number n with the value n, in the order of their names here."""
    for n, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(np.full((1, 1), n, np.uint8)).save(path)
        else:
            path.write_text("words")
    return root


def read(root, split="train"):
    """Values of the images, labels and names of a split."""
    found = image_dataset(root, split=split)
    return found.k.flatten().tolist(), None if found.label is None else found.label.tolist(), found.names
