"""Data sets of images and text: batches are dicts `{"x0": ..., conditions by name}`."""

from typing import TYPE_CHECKING

from ..lazy import lazily
from .images import ImageDataset, image_dataset, images  # a module has this name, too

if TYPE_CHECKING:
    from .augmentation import Augmentation
    from .batches import Batches
    from .captions import CaptionTokens, caption_tokens
    from .streaming import StreamedBatches
    from .synthetic import MarkovChain, sparse_chain
    from .tensors import TensorDataset, tensor_dataset
    from .text import character_batches, characters, documents, shakespeare, subwords, text8
    from .text_dataset import TextDataset
    from .tokenizers import CharacterTokenizer, SubwordTokenizer, Tokenizer, tokenizer_file, train_tokenizer
    from .windows import Packed, Padded, Windows

__all__ = [
    "Augmentation",
    "Batches",
    "CaptionTokens",
    "CharacterTokenizer",
    "ImageDataset",
    "MarkovChain",
    "Packed",
    "Padded",
    "StreamedBatches",
    "SubwordTokenizer",
    "TensorDataset",
    "TextDataset",
    "Tokenizer",
    "Windows",
    "caption_tokens",
    "character_batches",
    "characters",
    "documents",
    "image_dataset",
    "images",
    "shakespeare",
    "sparse_chain",
    "subwords",
    "tensor_dataset",
    "text8",
    "tokenizer_file",
    "train_tokenizer",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "augmentation": "Augmentation",
        "batches": "Batches",
        "captions": "CaptionTokens caption_tokens",
        "streaming": "StreamedBatches",
        "synthetic": "MarkovChain sparse_chain",
        "tensors": "TensorDataset tensor_dataset",
        "text": "character_batches characters documents shakespeare subwords text8",
        "text_dataset": "TextDataset",
        "tokenizers": "CharacterTokenizer SubwordTokenizer Tokenizer tokenizer_file train_tokenizer",
        "windows": "Packed Padded Windows",
    },
)
