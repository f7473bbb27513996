"""Image features of DINOv2 and CLIP through the `transformers` library, and extractors by name."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import UsageError
from ..progress import Progress, silent
from ..quantization import Quantization
from .features import Features, cannot_be_loaded, digest_of, in_float32, to_bytes, to_rgb
from .inception import Inception
from .pixels import Pixels

SIZE = 224
"""Height and width to which images are resized for DINOv2."""
BATCH = 50
"""The number of images that pass through the network at a time."""


class Kind(NamedTuple):
    """A kind of network: its class in `transformers`, its output, published weights, and normalization of images."""

    network: str
    output: str
    model: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


KINDS = {
    "dinov2": Kind(
        "Dinov2Model", "pooler_output", "facebook/dinov2-large", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
    "clip": Kind(
        "CLIPVisionModelWithProjection",
        "image_embeds",
        "openai/clip-vit-large-patch14",
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
}
NAMED = ("inception", *KINDS, "pixels")
"""The names of extractors that are trained on no set of the user."""


class TransformersFeatures(Features):
    """Features of DINOv2 (Oquab et al. 2023) or image embeddings of CLIP (Radford et al. 2021).

    DINOv2's are the class token after the last layer normalization, as Stein et al. (2023) compare images by them;
    CLIP's are projected, and not scaled to unit length. Images are converted to 8 bits and RGB, resized bicubically
    with smoothing to 224 x 224 (for CLIP, to the size that it was trained on), and normalized with the mean and
    deviation of the network's training data.

    Args:
        kind: `dinov2` or `clip`.
        model: a name on the Hub or a folder, with `config.json` and `model.safetensors`; None for the published weights
            that papers use, `facebook/dinov2-large` or `openai/clip-vit-large-patch14`.
        device: where the network runs; None for a GPU where there is one.

    Raises:
        UsageError: without the package transformers, or where the model cannot be loaded.
    """

    def __init__(self, kind: str, model: str | None = None, device: torch.device | str | None = None) -> None:
        self.kind, self.device = KINDS[kind], torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = loaded(self.kind, model or self.kind.model).float().eval().requires_grad_(False).to(self.device)
        self._digest, config = digest_of(self.network.state_dict()), self.network.config
        self.pixels: int = config.image_size if kind == "clip" else SIZE
        self.size = config.projection_dim if kind == "clip" else config.hidden_size
        self.name, self.resize = kind, f"bicubic to {self.pixels} x {self.pixels}, with smoothing"

    @property
    def digest(self) -> str:
        return self._digest

    @torch.inference_mode()
    def of(self, k: Tensor, quantization: Quantization) -> Tensor:
        """Returns the features of images, float32 `(N, d)` on the CPU."""
        mean, deviation = (
            torch.tensor(values, device=self.device).view(3, 1, 1) for values in (self.kind.mean, self.kind.deviation)
        )
        parts = []
        for part in to_rgb(to_bytes(k, quantization)).split(BATCH):
            x, size = part.to(self.device).float() / 255, (self.pixels, self.pixels)
            x = interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
            with in_float32():
                found = self.network(pixel_values=(x - mean) / deviation)
            parts.append(found[self.kind.output].cpu())
        return torch.cat(parts)


def loaded(kind: Kind, model: str) -> Any:
    """Returns the network, a module, of a name or folder, of which only tensors are read.

    Raises:
        UsageError: without the package transformers, or where the model cannot be loaded.
    """
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            f"features of {model} need the package transformers, which is not installed: pip install "
            "'unnoise[features]', or measure with --features judge"
        ) from error
    network: Any = getattr(transformers, kind.network)
    try:
        return network.from_pretrained(model, use_safetensors=True)
    except Exception as error:  # the library raises errors of many kinds
        raise UsageError(
            f"{cannot_be_loaded(model, error)}: fetch it elsewhere and put its folder, with config.json and "
            "model.safetensors, into the cache of the Hub (HF_HOME), or measure with --features judge"
        ) from error


def features_named(name: str, *, device: torch.device | str | None = None, progress: Progress = silent) -> Features:
    """Returns the extractor of a name in `NAMED`, with published weights.

    Raises:
        UsageError: for another name, and where weights or the package transformers are missing.
    """
    if name == "inception":
        return Inception(device=device, progress=progress)
    if name == "pixels":
        return Pixels()
    if name not in KINDS:
        raise UsageError(f"{name} is not the name of image features: choose from {', '.join(NAMED)}")
    return TransformersFeatures(name, device=device)
