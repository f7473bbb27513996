"""Data: everything yields dicts `{"x0": ..., conditions by name}` and knows its own scale."""

from .alphabets import Alphabet, Letters, Pieces, tokenizer_file, train_tokenizer
from .batches import Batches
from .images import ImageSet, image_set, images
from .text import characters, documents, letters, pieces, shakespeare, text8
from .textsets import TextSet
from .toy import MarkovChain, sparse_chain
from .windows import Packed, Padded, Windows

__all__ = [
    "Alphabet",
    "Batches",
    "ImageSet",
    "Letters",
    "MarkovChain",
    "Packed",
    "Padded",
    "Pieces",
    "TextSet",
    "Windows",
    "characters",
    "documents",
    "image_set",
    "images",
    "letters",
    "pieces",
    "shakespeare",
    "sparse_chain",
    "text8",
    "tokenizer_file",
    "train_tokenizer",
]
