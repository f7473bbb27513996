"""The U-Net of the diffusion papers, for continuous and categorical signals of 1, 2 or 3 dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..describe import described
from ..errors import UsageError
from ..tensors import refuse_unless
from .blocks import Upsample, conv, enlarged, group_norm, zeroed
from .embeddings import LabelEmbedding, TimeEmbedding, null_of, refuse_others
from .stages import Stages, check_signal, check_sizes, descend, run
from .tokens import TokenEncoder


@described
class UNet(nn.Module):
    """Residual U-Net with self-attention (Ho et al. 2020, appendix B; adaptive norms of Dhariwal & Nichol 2021).

    Args:
        shape: shape of one example, `(C, *size)` with 1, 2 or 3 sizes, each of any length.
        width: channels at full resolution.
        multipliers: channel multiplier of each resolution; the sizes halve from one to the next.
        blocks: residual blocks for each resolution on the way down (one more on the way up).
        attention: down-sampling factors at which every block is followed by self-attention: 2 is half the resolution,
            which for 32 x 32 images is the papers' "16".
        heads: attention heads.
        dropout: probability inside residual blocks.
        classes: number of class labels, or None for an unconditional network; label `None` is the null class, index `classes`.
        levels: None for real-valued signals `(B, C, *size)` in and out; a number K for integer signals in 0..K-1, which come
            back as logits `(B, C, *size, K)`.
        outputs: real-valued channels out for each channel in: `(B, outputs * C, *size)`, the first C of them the prediction.
        vector: size of a continuous condition vector, which a two-layer perceptron adds to the time embedding, or None; vector
            `None` is the learned `null_vector`, and so is any row that equals it.
        image: channels of a condition image, joined to the signal's own channels (Saharia et al. 2021; the upsamplers of
            Dhariwal & Nichol 2021); a smaller one is interpolated linearly to the signal's size.
        tokens: encoder of a token sequence, or None; every attention layer attends to its states too, and the last one is added
            to the time embedding (Nichol et al. 2021, GLIDE, section 3); tokens `None` are all padding.
        logits: numbers that come back for each integer, where these are not one for each level: 2 for a logistic head.

    Attributes:
        null_vector: the learned vector `(vector,)` that stands for none, where the network takes a vector.

    Raises:
        UsageError: for a shape without 1 to 3 sizes, a signal or a condition that does not fit, a condition that the network was not
            built with, or a missing image.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (2,),
        heads: int = 1,
        dropout: float = 0.0,
        classes: int | None = None,
        levels: int | None = None,
        outputs: int = 1,
        vector: int | None = None,
        image: int = 0,
        tokens: TokenEncoder | None = None,
        logits: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(shape, width, multipliers, blocks, heads)
        if outputs < 1 or image < 0 or any(n is not None and n < 1 for n in (classes, levels, vector)):
            raise UsageError(
                f"classes={classes}, levels={levels}, outputs={outputs}, vector={vector}, image={image}: give one or more, or leave it out"
            )
        if logits is not None and (levels is None or logits < 1):
            raise UsageError(f"logits={logits} with levels={levels}: integer signals have logits, give levels=... too, and one or more")
        if levels is not None and (image or outputs > 1):
            raise UsageError(
                f"image={image} and outputs={outputs} are for real-valued signals: leave them out, or build without levels={levels}"
            )
        self.shape, self.width, self.multipliers, self.blocks = tuple(shape), width, tuple(multipliers), blocks
        self.attention, self.heads, self.dropout = tuple(attention), heads, dropout
        self.classes, self.levels, self.outputs = classes, levels, outputs
        self.vector, self.image, self.tokens, self.logits = vector, image, tokens, logits

        dims, channels, embedding = len(shape) - 1, shape[0], 4 * width
        stages = Stages(dims, embedding, self.attention, heads, dropout, None if tokens is None else tokens.width)
        self.time = TimeEmbedding(width, embedding)
        self.label = None if classes is None else LabelEmbedding(classes, embedding)
        self.stem = conv(dims, channels * (levels or 1) + image, width)
        self.down, skips = stages.down(width, multipliers, blocks)
        current = skips[-1]
        self.up = nn.ModuleList()  # before the middle: optimisers keep their state by the order of parameters
        self.middle = stages.middle(current)
        for depth, multiplier in reversed(list(enumerate(multipliers))):
            level = nn.ModuleList()
            for _ in range(blocks + 1):
                level.append(stages.stage(2**depth, current + skips.pop(), width * multiplier))
                current = width * multiplier
            self.up.append(nn.ModuleDict({"stages": level} if depth == 0 else {"stages": level, "grow": Upsample(dims, current)}))
        self.head = nn.Sequential(group_norm(current), nn.SiLU(), zeroed(conv(dims, current, channels * (logits or levels or outputs))))
        if vector is not None:
            self.null_vector = nn.Parameter(torch.randn(vector))
            self.vector_mlp = nn.Sequential(nn.Linear(vector, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if tokens is not None:
            self.pooled = nn.Linear(tokens.width, embedding)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that `forward` takes, such as `("label", "image")`."""
        taken = {"label": self.classes is not None, "vector": self.vector is not None, "image": self.image > 0}
        taken["tokens"] = self.tokens is not None
        return tuple(name for name, built in taken.items() if built)

    def null(self, condition: str) -> Tensor:
        """What stands for no condition, for one example: the label `classes`, the learned null vector, padding for tokens."""
        nulls = {
            "label": None if self.classes is None else torch.tensor(self.classes),
            "vector": None if self.vector is None else self.null_vector,
            "tokens": None if self.tokens is None else torch.tensor(-1),
        }
        return null_of(nulls, condition)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        vector: Tensor | None = None,
        image: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """The prediction `(B, outputs * C, *size)`, or the logits `(B, C, *size, levels)` (or as many as `logits` says).

        Args:
            x: `(B, C, *size)`.
            time: the labels `(B,)`.
            label: class indices `(B,)`, index `classes` for none, or None.
            vector: `(B, vector)` or None.
            image: `(B, image, *size)`, each size at most that of x; needed where the network is built with it.
            tokens: integers `(B, L)`, -1 for padding, or None.
        """
        check_signal(x, self.shape)
        refuse_others(self.conditions, label=label, vector=vector, image=image, tokens=tokens)
        embedding, context = self.time(time), None
        if self.label is not None:
            embedding = embedding + self.label(label, len(x))
        if self.vector is not None:
            embedding = embedding + self.vector_mlp(self._vector(vector, len(x)))
        if self.tokens is not None:
            context = self._states(tokens, len(x))
            embedding = embedding + self.pooled(self.tokens.pool(context))
        skips = descend(self.down, self.stem(self._enter(x, image)), embedding, context)
        h = run(self.middle, skips[-1], embedding, context)
        for level in self.up:
            for stage in level["stages"]:
                h = run(stage, torch.cat([h, skips.pop()], dim=1), embedding, context)
            if "grow" in level:
                h = level["grow"](h, skips[-1].shape[2:])
        return self._leave(self.head(h), x)

    def _enter(self, x: Tensor, image: Tensor | None) -> Tensor:
        if self.levels is not None:
            refuse_unless(
                (x >= 0) & (x < self.levels),
                f"a symbol is out of 0..{self.levels - 1}: this network has levels={self.levels}; for a mask of its own beside K levels "
                "build it with levels=K + 1, logits=K",
            )
            one_hot = F.one_hot(x, self.levels).movedim(-1, 2)  # (B, C, K, *size)
            return one_hot.flatten(1, 2).to(self.stem.weight.dtype)
        if not self.image:
            return x
        size = x.shape[2:]
        fits = image is not None and image.ndim == x.ndim and image.shape[:2] == (len(x), self.image) and image.is_floating_point()
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

    def _leave(self, h: Tensor, x: Tensor) -> Tensor:
        if self.levels is None:
            return h
        return h.unflatten(1, (x.shape[1], self.logits or self.levels)).movedim(2, -1)  # (B, C, *size, K)
