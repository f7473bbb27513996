"""The U-Net of the diffusion papers, for real-valued and categorical signals of 1, 2 or 3 dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..serialization import serializable
from ..tensors import refuse_unless
from .blocks import conv, differentiable_twice, zeroed
from .caption_encoder import CaptionEncoder
from .conditioned import Conditioned, check_conditions
from .embeddings import LabelEmbedding, TimeEmbedding, refuse_others
from .unet_stages import UNetStages, ascend, check_signal, check_sizes, descend, run
from .unet_variants import PLAIN, UNetVariant


@serializable(
    "networks.UNet", formerly="unnoise.shared.networks.unet.UNet", renamed={"levels": "categories", "style": "variant"}
)
class UNet(Conditioned):
    """Residual U-Net with self-attention (Ho et al. 2020, appendix B; adaptive norms of Dhariwal & Nichol 2021).

    Args:
        shape: shape of one example, `(C, *size)` with 1, 2 or 3 sizes, each of any length.
        width: number of channels at full resolution.
        multipliers: channel multiplier of each resolution; the sizes halve from one to the next.
        blocks: residual blocks for each resolution on the way down (one more on the way up).
        attention: down-sampling factors at which every block is followed by self-attention: 2 is half the resolution,
            which for 32 x 32 images is the papers' "16".
        heads: number of attention heads, where `variant.head_width` does not determine it.
        dropout: probability of dropout inside residual blocks.
        classes: number of class labels, or None for an unconditional network; label `None` is the null class, index
            `classes`.
        categories: None for real-valued signals `(B, C, *size)`; or the number K of categories of integer signals in
            0..K-1, for which the network returns logits `(B, C, *size, K)`.
        outputs: output channels for each input channel of a real-valued signal: `(B, outputs * C, *size)`, the first C
            of them the prediction.
        vector: size of a continuous condition vector, which a two-layer perceptron adds to the time embedding, or None;
            vector `None`, and any row that equals it, is the learned `null_vector`.
        image: channels of a condition image, concatenated with those of the signal (Saharia et al. 2021; the upsamplers
            of Dhariwal & Nichol 2021); a smaller image is interpolated linearly to the signal's size. 0 for a network
            without.
        tokens: encoder of a token sequence, or None; every attention layer attends to its states too, and the last one
            is added to the time embedding (Nichol et al. 2021, GLIDE, section 3); tokens `None` are all padding.
        logits: output numbers for each integer, where these are not K logits: 2 for a logistic head, K - 1 where the
            last category is a mask.
        variant: how the blocks are built and connected: `DDPM`, `ADM`, `NCSNPP`, ... of `networks.unet_variants`.
        augment: size of a vector of augmentation parameters (Karras et al. 2022, appendix F.2), or None; augment `None`
            is zeros.
        null_label: False for a network that needs a class label for every example, as in Dhariwal & Nichol (2021).

    Raises:
        UsageError: for a shape without 1 to 3 sizes, a signal or a condition that does not fit, a condition that the
            network was not built with, or a missing image.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        multipliers: Sequence[float] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (2,),
        heads: int = 1,
        dropout: float = 0.0,
        classes: int | None = None,
        categories: int | None = None,
        outputs: int = 1,
        vector: int | None = None,
        image: int = 0,
        tokens: CaptionEncoder | None = None,
        logits: int | None = None,
        variant: UNetVariant = PLAIN,
        augment: int | None = None,
        null_label: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(shape, width, multipliers, blocks, heads, attention, variant)
        check_conditions(classes, outputs, vector, image, tokens, augment, categories)
        if logits is not None and (categories is None or logits < 1):
            raise UsageError(
                f"logits={logits} with categories={categories}: logits are for integer signals: give categories=... "
                "too, and logits of 1 or more"
            )
        if categories is not None and (image or outputs > 1):
            raise UsageError(
                f"image={image} and outputs={outputs} are for real-valued signals: leave them out, or build without "
                f"categories={categories}"
            )
        self.shape, self.width, self.multipliers, self.blocks = tuple(shape), width, tuple(multipliers), blocks
        self.attention, self.heads, self.dropout = tuple(attention), heads, dropout
        self.classes, self.categories, self.outputs = classes, categories, outputs
        self.vector, self.image, self.tokens, self.logits = vector, image, tokens, logits
        self.variant, self.augment, self.null_label = variant, augment, null_label

        dims, channels, embedding = len(shape) - 1, shape[0], 4 * width
        entering, leaving = channels * (categories or 1) + image, channels * (logits or categories or outputs)
        stages = UNetStages(
            dims, embedding, self.attention, heads, dropout, None if tokens is None else tokens.width, variant
        )
        self.time = TimeEmbedding(width, embedding, variant.time)
        self.label = None
        if classes is not None:
            self.label = LabelEmbedding(classes, self.time.features if variant.early_label else embedding, null_label)
        self.stem = conv(dims, entering, stages.stem(width, multipliers))
        self.down, skips = stages.down(entering, width, multipliers, blocks)
        lowest = skips[-1]
        self.up, current = stages.up(skips, width, multipliers, blocks, leaving)
        self.middle = stages.middle(lowest)  # after the way up, since optimizer states go by the order of parameters
        self.head = nn.Sequential(variant.norm(current), nn.SiLU(), zeroed(conv(dims, current, leaving)))
        self.finish = None if variant.progressive_output is None else variant.progressive_output.finish(dims)
        self.build_conditions(embedding, self.time.features)

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
        """Returns the prediction `(B, outputs * C, *size)`, or the logits `(B, C, *size, K)`, not normalized.

        With `logits`, the last size is `logits` in place of K = `categories`.

        Args:
            x: `(B, C, *size)`, real-valued, or int64 in 0..K-1 with `categories`.
            time: time inputs `(B,)`, in the units that the network was trained with (usually 0 to 1000).
            label: class labels, int64 `(B,)`, `classes` for "no label", or None.
            vector: `(B, vector)` or None.
            image: `(B, image, *size)`, each size at most that of x; required where the network is built with it.
            tokens: integers `(B, L)`, -1 for padding, or None.
            augment: `(B, augment)` or None.
        """
        check_signal(x, self.shape)
        refuse_others(self.conditions, label=label, vector=vector, image=image, tokens=tokens, augment=augment)
        added, context = self.embed_conditions(len(x), vector, tokens)
        embedding = self._embedding(time, label, augment, len(x)) + added
        signal = self._input(x, image)
        with differentiable_twice(x, time, vector, image):
            skips = descend(self.down, signal, self.stem(signal), embedding, context)
            h = run(self.middle, skips[-1], embedding, context)
            running, h = ascend(self.up, h, skips, embedding, context)
        out = self.head(h)
        if self.finish is not None and running is not None:
            out = out + self.finish(running, tuple(out.shape[2:]))
        return self._output(out, x)

    def _embedding(self, time: Tensor, label: Tensor | None, augment: Tensor | None, batch: int) -> Tensor:
        classes = 0.0 if self.label is None else self.label(label, batch)
        early = self.embed_augmentations(augment, batch) + (classes if self.variant.early_label else 0.0)
        embedding = self.time(time, early)
        return embedding if self.variant.early_label else embedding + classes

    def _input(self, x: Tensor, image: Tensor | None) -> Tensor:
        if self.categories is None:
            return self.with_image(x, image)
        refuse_unless(
            (x >= 0) & (x < self.categories),
            f"a category is outside 0..{self.categories - 1}: this network has categories={self.categories}; for a "
            "mask beside K categories, build it with categories=K + 1, logits=K",
        )
        one_hot = F.one_hot(x, self.categories).movedim(-1, 2)  # (B, C, K, *size)
        return one_hot.flatten(1, 2).to(self.stem.weight.dtype)

    def _output(self, h: Tensor, x: Tensor) -> Tensor:
        if self.categories is None:
            return h
        return h.unflatten(1, (x.shape[1], self.logits or self.categories)).movedim(2, -1)  # (B, C, *size, K)
