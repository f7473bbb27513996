"""The architectures of the papers' U-Nets, which their recipes and `presets` share."""

from __future__ import annotations

from typing import Any

from .unet_variants import (
    ADM,
    ADM_HEADS,
    DDPM,
    DDPMPP,
    EDM_ADM,
    EDM_DDPMPP,
    EDM_NCSNPP,
    IMPROVED,
    IMPROVED_ADDED,
    NCSNPP,
    NCSNPP_SKIP,
    SONG_DDPM,
    UNetVariant,
)

LARGE = (1, 1, 2, 2, 4, 4)
"""The multipliers of most U-Nets for 256 pixels."""
SMALL = (1, 2, 2, 2)
"""The multipliers of most U-Nets for 32 pixels."""


def settings(
    width: int,
    multipliers: tuple[float, ...],
    blocks: int,
    attention: tuple[int, ...],
    variant: UNetVariant,
    **further: Any,
) -> dict[str, Any]:
    """Returns arguments of `UNet` by name; `further` are those that few networks have."""
    size = {"width": width, "multipliers": multipliers, "blocks": blocks, "attention": attention}
    return size | {"variant": variant} | further


UNETS: dict[str, dict[str, Any]] = {
    "ddpm_cifar10": settings(128, SMALL, 2, (2,), DDPM, dropout=0.1),
    "ddpm_lsun256": settings(128, LARGE, 2, (16,), DDPM),
    "ddim_celeba64": settings(128, (1, 2, 2, 2, 4), 2, (4,), DDPM, dropout=0.1),
    "improved_cifar10": settings(128, SMALL, 3, (2, 4), IMPROVED, heads=4, dropout=0.3),
    "improved_imagenet64": settings(128, (1, 2, 3, 4), 3, (4, 8), IMPROVED, heads=4),
    "improved_imagenet64_classes": settings(192, (1, 2, 3, 4), 3, (4, 8), IMPROVED, heads=4, null_label=False),
    "improved_lsun256": settings(128, LARGE, 2, (16,), IMPROVED_ADDED),
    "adm_imagenet64": settings(192, (1, 2, 3, 4), 3, (2, 4, 8), ADM, dropout=0.1, null_label=False),
    "adm_imagenet128": settings(256, (1, 1, 2, 3, 4), 2, (4, 8, 16), ADM_HEADS, heads=4, null_label=False),
    "adm_imagenet256": settings(256, LARGE, 2, (8, 16, 32), ADM, null_label=False),
    "adm_imagenet512": settings(256, (0.5, *LARGE), 2, (16, 32, 64), ADM, null_label=False),
    "song_ddpm_cifar10": settings(128, SMALL, 2, (2,), SONG_DDPM, dropout=0.1),
    "ddpmpp_cifar10": settings(128, SMALL, 4, (2,), DDPMPP, dropout=0.1),
    "ncsnpp_cifar10": settings(128, SMALL, 4, (2,), NCSNPP, dropout=0.1),
    "ncsnpp_lsun256": settings(128, (1, 1, 2, 2, 2, 2, 2), 2, (16,), NCSNPP_SKIP),
    "ncsnpp_ffhq1024": settings(16, (1, 2, 4, 8, 16, 32, 32, 32), 1, (64,), NCSNPP_SKIP),
    "edm_cifar10_vp": settings(128, (2, 2, 2), 4, (2,), EDM_DDPMPP, dropout=0.13),
    "edm_cifar10_ve": settings(128, (2, 2, 2), 4, (2,), EDM_NCSNPP, dropout=0.13),
    "edm_ffhq64_vp": settings(128, SMALL, 4, (4,), EDM_DDPMPP, dropout=0.05),
    "edm_ffhq64_ve": settings(128, SMALL, 4, (4,), EDM_NCSNPP, dropout=0.05),
    "edm_imagenet64": settings(192, (1, 2, 3, 4), 3, (2, 4, 8), EDM_ADM, dropout=0.1, null_label=False),
}
"""Arguments of `UNet` by name, without those that depend on the data: image size, classes and output channels."""
