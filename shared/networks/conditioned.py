"""Conditions of the networks for signals: a class label, a vector, an image, a token sequence, augmentations."""

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
    """A network `(x, time, label, vector, image, tokens, augment) -> out`, built with any of these conditions or none.

    A subclass sets the attributes before it uses the methods, and calls `build_conditions` at the place that the
    conditions' layers shall have in the order of the parameters.

    Attributes:
        shape: shape `(C, *size)` of one example.
        classes: number of class labels, or None.
        null_label: whether the label with index `classes` stands for "no label".
        vector: size of a continuous condition vector, or None.
        image: number of channels of a condition image, 0 for a network without.
        tokens: encoder of a token sequence, or None.
        augment: size of a vector of augmentations, or None.
        null_vector: the learned vector `(vector,)` that stands for "no vector", where the network takes a vector.
    """

    shape: tuple[int, ...]
    classes: int | None
    null_label: bool
    vector: int | None
    image: int
    tokens: CaptionEncoder | None
    augment: int | None

    def build_conditions(self, embedding: int, features: int) -> None:
        """Builds the layers of the conditions vector, tokens and augment.

        These are a two-layer perceptron, a linear layer of the encoder's last state, and a linear layer without bias.

        Args:
            embedding: size of the time embedding, to which vector and tokens are added.
            features: size of the features of the time, to which the augmentations are added.
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
        """Returns the value that stands for "no condition", for one example.

        For label the index `classes`, `()`; for vector the learned null vector, `(vector,)`; for tokens the padding -1,
        `()`; for augment zeros, `(augment,)`.

        Raises:
            UsageError: for a condition that has no such value: an image, or a label without `null_label`.
        """
        nulls = {
            "label": torch.tensor(self.classes) if self.classes is not None and self.null_label else None,
            "vector": None if self.vector is None else self.null_vector,
            "tokens": None if self.tokens is None else torch.tensor(-1),
            "augment": None if self.augment is None else torch.zeros(self.augment),
        }
        return null_of(nulls, condition)

    def embed_conditions(
        self, batch: int, vector: Tensor | None, tokens: Tensor | None
    ) -> tuple[Tensor | float, Tensor | None]:
        """Returns the sum of the embeddings of vector and tokens, and the states of the tokens.

        The first is added to the time embedding, `(B, embedding)`, or 0 for a network without these conditions; the
        second is the context of attention, `(B, L, width)` with the length L and the width of the encoder, or None.

        Args:
            batch: B.
            vector: `(B, vector)`; None for the null vector.
            tokens: integers `(B, any)`, -1 for padding; None for all padding.
        """
        added, context = 0.0, None
        if self.vector is not None:
            added = self.vector_mlp(self._vector(vector, batch))
        if self.tokens is not None:
            context = self._states(self.tokens, tokens, batch)
            added = added + self.pooled(self.tokens.pool(context))
        return added, context

    def embed_augmentations(self, augment: Tensor | None, batch: int) -> Tensor | float:
        """Returns the embedding of the augmentations, `(B, features)`, for augment `(B, augment)`; 0 for None.

        It is added to the features of the time.
        """
        if augment is None:
            return 0.0
        if augment.shape != (batch, self.augment):
            raise UsageError(
                f"the network takes augment=... of shape {(batch, self.augment)}, not {tuple(augment.shape)}"
            )
        return self.augmented(augment.to(self.augmented.weight.dtype))

    def with_image(self, x: Tensor, image: Tensor | None) -> Tensor:
        """Returns `x` with the condition image, enlarged to the size of `x`, as further channels.

        The image `(B, image, *smaller or equal)` is interpolated linearly; the result is `(B, C + image, *size)`. A
        network without this condition returns x.

        Raises:
            UsageError: for a missing image, or one that is larger than x, integer or of another shape.
        """
        if not self.image:
            return x
        size = x.shape[2:]
        if (
            image is None
            or image.ndim != x.ndim
            or image.shape[:2] != (len(x), self.image)
            or not image.is_floating_point()
            or any(a > b for a, b in zip(image.shape[2:], size, strict=True))
        ):
            given = "none" if image is None else f"{image.dtype} of shape {tuple(image.shape)}"
            raise UsageError(
                f"the network takes image=... of shape {(len(x), self.image, *size)} or smaller sizes, real-valued, "
                f"not {given}"
            )
        return torch.cat([x, enlarged(image.to(x.dtype), size)], dim=1)

    def _vector(self, vector: Tensor | None, batch: int) -> Tensor:
        if vector is None:
            return self.null_vector.expand(batch, -1)
        if vector.shape != (batch, self.vector):
            raise UsageError(f"the network takes vector=... of shape {(batch, self.vector)}, not {tuple(vector.shape)}")
        return vector.to(self.null_vector.dtype)

    def _states(self, encoder: CaptionEncoder, tokens: Tensor | None, batch: int) -> Tensor:
        if tokens is None:
            return encoder.null(batch)
        if len(tokens) != batch:
            raise UsageError(f"the network takes tokens=... with {batch} rows, one for each signal, not {len(tokens)}")
        return encoder(tokens)

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
        """Returns the output at `x` `(B, C, *size)` and the time inputs `(B,)`; absent conditions are None."""


def check_conditions(
    classes: int | None,
    outputs: int,
    vector: int | None,
    image: int,
    tokens: CaptionEncoder | None,
    augment: int | None,
    categories: int | None = None,
) -> None:
    """Raises `UsageError` unless each given number is 1 or more (image: 0 or more) and `tokens` is an encoder."""
    if not (tokens is None or isinstance(tokens, nn.Module)):
        raise UsageError(
            f"tokens={tokens!r}: give the encoder of a token sequence, such as CaptionEncoder(vocabulary=27, length=64)"
        )
    if outputs < 1 or image < 0 or any(n is not None and n < 1 for n in (classes, categories, vector, augment)):
        raise UsageError(
            f"classes={classes}, categories={categories}, outputs={outputs}, vector={vector}, image={image}, "
            f"augment={augment}: each must be 1 or more where it is given"
        )


def check_shape(shape: Sequence[int]) -> None:
    """Raises `UsageError` unless the shape is a number of channels and 1 to 3 sizes."""
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise UsageError(f"shape {tuple(shape)} must be (channels, *size) with one to three sizes, such as (1, 28, 28)")
