"""Data: everything yields dicts `{"x0": ..., conditions by name}` and knows its own scale."""

from .batches import Batches
from .images import ImageDataset, image_dataset, images
from .synthetic import MarkovChain, sparse_chain
from .text import characters, documents, letters, pieces, shakespeare, text8
from .text_dataset import TextDataset
from .tokenizers import CharacterTokenizer, SubwordTokenizer, Tokenizer, tokenizer_file, train_tokenizer
from .windows import Packed, Padded, Windows

__all__ = [
    "Batches",
    "CharacterTokenizer",
    "ImageDataset",
    "MarkovChain",
    "Packed",
    "Padded",
    "SubwordTokenizer",
    "TextDataset",
    "Tokenizer",
    "Windows",
    "characters",
    "documents",
    "image_dataset",
    "images",
    "letters",
    "pieces",
    "shakespeare",
    "sparse_chain",
    "text8",
    "tokenizer_file",
    "train_tokenizer",
]
