"""What the networks of signals are told beside the signal and the time.

A class, a vector, an image, a token sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .blocks import enlarged
from .caption_encoder import CaptionEncoder
from .embeddings import null_of


class Conditioned(nn.Module, ABC):
    """A network `(x, time, label, vector, image, tokens) -> out` of which each condition is there or not.

    A subclass sets the attributes before it uses the methods, and calls `build_conditions` where their layers shall be
    in the order of the parameters.

    Attributes:
        shape: `(C, *size)` of one example.
        classes: number of class labels, or None.
        null_label: whether a label, index `classes`, stands for none.
        vector: size of a continuous condition vector, or None.
        image: channels of a condition image, 0 for none.
        tokens: encoder of a token sequence, or None.
        augment: size of a vector of augmentations, or None.
        null_vector: the learned vector `(vector,)` that stands for none, where the network takes a vector.
    """

    shape: tuple[int, ...]
    classes: int | None
    null_label: bool
    vector: int | None
    image: int
    tokens: CaptionEncoder | None
    augment: int | None

    def build_conditions(self, embedding: int, features: int) -> None:
        """The layers of vector, tokens and augmentations: a two-layer perceptron, a linear one of the last state, and
        one without bias.

        Args:
            embedding: size of what vector and tokens join, the embedding.
            features: size of what the augmentations join, the features of the time.
        """
        if self.vector is not None:
            self.null_vector = nn.Parameter(torch.randn(self.vector))
            self.vector_mlp = nn.Sequential(
                nn.Linear(self.vector, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
            )
        if self.tokens is not None:
            self.pooled = nn.Linear(self.tokens.width, embedding)
        if self.augment is not None:
            self.augmented = nn.Linear(self.augment, features, bias=False)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that `forward` takes, such as `("label", "image")`."""
        taken = {"label": self.classes is not None, "vector": self.vector is not None, "image": self.image > 0}
        taken |= {"tokens": self.tokens is not None, "augment": self.augment is not None}
        return tuple(name for name, built in taken.items() if built)

    def null(self, condition: str) -> Tensor:
        """What stands for no condition, for one example.

        The label `classes`, the learned null vector, padding for tokens, zeros.
        """
        nulls = {
            "label": torch.tensor(self.classes) if self.classes is not None and self.null_label else None,
            "vector": None if self.vector is None else self.null_vector,
            "tokens": None if self.tokens is None else torch.tensor(-1),
            "augment": None if self.augment is None else torch.zeros(self.augment),
        }
        return null_of(nulls, condition)

    def told(self, batch: int, vector: Tensor | None, tokens: Tensor | None) -> tuple[Tensor | float, Tensor | None]:
        """What vector and tokens add to the embedding, `(B, embedding)` or 0, and the states `(B, L, width)` that
        attention attends to.
        """
        added, context = 0.0, None
        if self.vector is not None:
            added = self.vector_mlp(self._vector(vector, batch))
        if self.tokens is not None:
            context = self._states(tokens, batch)
            added = added + self.pooled(self.tokens.pool(context))
        return added, context

    def augmentation(self, augment: Tensor | None, batch: int) -> Tensor | float:
        """What a vector of augmentations adds to the features of the time, `(B, features)` or 0."""
        if augment is None:
            return 0.0
        if augment.shape != (batch, self.augment):
            raise UsageError(
                f"the network takes augment=... of shape {(batch, self.augment)}, not {tuple(augment.shape)}"
            )
        return self.augmented(augment.to(self.augmented.weight.dtype))

    def joined(self, x: Tensor, image: Tensor | None) -> Tensor:
        """`x` with the condition image, enlarged to its size, as further channels."""
        if not self.image:
            return x
        size = x.shape[2:]
        fits = (
            image is not None
            and image.ndim == x.ndim
            and image.shape[:2] == (len(x), self.image)
            and image.is_floating_point()
        )
        if not fits or any(a > b for a, b in zip(image.shape[2:], size, strict=True)):
            given = "none" if image is None else f"{image.dtype} of shape {tuple(image.shape)}"
            raise UsageError(
                f"the network takes image=... of shape {(len(x), self.image, *size)} or smaller sizes, real-valued, not {given}"
            )
        return torch.cat([x, enlarged(image.to(x.dtype), size)], dim=1)

    def _vector(self, vector: Tensor | None, batch: int) -> Tensor:
        if vector is None:
            return self.null_vector.expand(batch, -1)
        if vector.shape != (batch, self.vector):
            raise UsageError(f"the network takes vector=... of shape {(batch, self.vector)}, not {tuple(vector.shape)}")
        return vector.to(self.null_vector.dtype)

    def _states(self, tokens: Tensor | None, batch: int) -> Tensor:
        if tokens is None:
            return self.tokens.null(batch)
        if len(tokens) != batch:
            raise UsageError(f"the network takes tokens=... with {batch} rows, one for each signal, not {len(tokens)}")
        return self.tokens(tokens)

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        vector: Tensor | None = None,
        image: Tensor | None = None,
        tokens: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """The prediction at `x` `(B, C, *size)` and the labels of time `(B,)`."""


def check_conditions(
    classes: int | None,
    outputs: int,
    vector: int | None,
    image: int,
    tokens: CaptionEncoder | None,
    augment: int | None,
    categories: int | None = None,
) -> None:
    """Raises `UsageError` unless every number that is given is one or more, and tokens have an encoder."""
    if not (tokens is None or isinstance(tokens, nn.Module)):
        raise UsageError(
            f"tokens={tokens!r}: give the encoder of a token sequence, such as TokenEncoder(vocabulary=27, length=64)"
        )
    if outputs < 1 or image < 0 or any(n is not None and n < 1 for n in (classes, categories, vector, augment)):
        raise UsageError(
            f"classes={classes}, levels={categories}, outputs={outputs}, vector={vector}, image={image}, augment={augment}: "
            "give one or more, or leave it out"
        )


def check_shape(shape: Sequence[int]) -> None:
    """Raises `UsageError` unless the shape has channels and 1 to 3 sizes."""
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise UsageError(f"shape {tuple(shape)} must be (channels, *size) with one to three sizes, such as (1, 28, 28)")
