"""The networks of the papers, by name: functions that build them, with the parameter counts of the released ones."""

from __future__ import annotations

from dataclasses import replace

from .embeddings import Sinusoidal
from .encoder import Encoder
from .image_dit import ImageDiT
from .unet import UNet
from .unet_variants import ADM, DDPM, DDPMPP, EDM_ADM, IMPROVED, NCSNPP, NCSNPP_SKIP, SONG_DDPM

LARGE = (1, 1, 2, 2, 4, 4)


def ddpm_cifar10() -> UNet:
    """35.7 M (Ho et al. 2020)."""
    return UNet((3, 32, 32), 128, (1, 2, 2, 2), 2, (2,), dropout=0.1, variant=DDPM)


def ddpm_lsun256() -> UNet:
    """113.7 M: LSUN and CelebA-HQ at 256 pixels (Ho et al. 2020)."""
    return UNet((3, 256, 256), 128, LARGE, 2, (16,), variant=DDPM)


def ddim_celeba64() -> UNet:
    """78.7 M (Song et al. 2020, DDIM)."""
    return UNet((3, 64, 64), 128, (1, 2, 2, 2, 4), 2, (4,), dropout=0.1, variant=DDPM)


def improved_cifar10() -> UNet:
    """52.5 M (Nichol & Dhariwal 2021), with a learned variance."""
    return UNet((3, 32, 32), 128, (1, 2, 2, 2), 3, (2, 4), heads=4, dropout=0.3, outputs=2, variant=IMPROVED)


def improved_imagenet64(conditional: bool = False) -> UNet:
    """121 M, or 273 M with classes (Nichol & Dhariwal 2021)."""
    classes, width = (1000, 192) if conditional else (None, 128)
    return UNet(
        (3, 64, 64),
        width,
        (1, 2, 3, 4),
        3,
        (4, 8),
        heads=4,
        outputs=2,
        classes=classes,
        variant=IMPROVED,
        null_label=False,
    )


def improved_lsun256() -> UNet:
    """113.7 M (Nichol & Dhariwal 2021): the embedding is added, as in DDPM."""
    return UNet((3, 256, 256), 128, LARGE, 2, (16,), outputs=2, variant=replace(IMPROVED, adaptive=False))


def adm_imagenet64() -> UNet:
    """296 M (Dhariwal & Nichol 2021)."""
    return UNet(
        (3, 64, 64),
        192,
        (1, 2, 3, 4),
        3,
        (2, 4, 8),
        dropout=0.1,
        outputs=2,
        classes=1000,
        variant=ADM,
        null_label=False,
    )


def adm_imagenet128() -> UNet:
    """422 M (Dhariwal & Nichol 2021), with four heads at every level."""
    variant = replace(ADM, head_width=None)
    return UNet(
        (3, 128, 128),
        256,
        (1, 1, 2, 3, 4),
        2,
        (4, 8, 16),
        heads=4,
        outputs=2,
        classes=1000,
        variant=variant,
        null_label=False,
    )


def adm_imagenet256(conditional: bool = True) -> UNet:
    """554 M, or without classes 553 M, LSUN's network too, there with dropout 0.1 (Dhariwal & Nichol 2021)."""
    classes = 1000 if conditional else None
    return UNet((3, 256, 256), 256, LARGE, 2, (8, 16, 32), outputs=2, classes=classes, variant=ADM, null_label=False)


def adm_imagenet512() -> UNet:
    """559 M (Dhariwal & Nichol 2021)."""
    return UNet(
        (3, 512, 512), 256, (0.5, *LARGE), 2, (16, 32, 64), outputs=2, classes=1000, variant=ADM, null_label=False
    )


def adm_classifier(size: int) -> Encoder:
    """65, 43, 54 or 54 M for 64, 128, 256 or 512 pixels (Dhariwal & Nichol 2021)."""
    multipliers = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: LARGE, 512: (0.5, *LARGE)}[size]
    attention = tuple(size // pixels for pixels in (32, 16, 8))
    return Encoder(
        (3, size, size), 1000, 128, multipliers, 4 if size == 64 else 2, attention, variant=ADM, positional=True
    )


def song_ddpm_cifar10() -> UNet:
    """35.2 M: the DDPM of Song et al. (2021)."""
    return UNet((3, 32, 32), 128, (1, 2, 2, 2), 2, (2,), dropout=0.1, variant=SONG_DDPM)


def ddpmpp_cifar10(deep: bool = False) -> UNet:
    """DDPM++ of 61.8 M, or deep of 106.6 M (Song et al. 2021)."""
    return UNet((3, 32, 32), 128, (1, 2, 2, 2), 8 if deep else 4, (2,), dropout=0.1, variant=DDPMPP)


def ncsnpp_cifar10(deep: bool = False, fourier: bool = True) -> UNet:
    """NCSN++ of 62.8 M, or deep of 107.6 M (Song et al. 2021).

    Without Fourier features 62.7 M, for steps in place of noise levels.
    """
    variant = NCSNPP if fourier else replace(NCSNPP, time=Sinusoidal())
    return UNet((3, 32, 32), 128, (1, 2, 2, 2), 8 if deep else 4, (2,), dropout=0.1, variant=variant)


def ncsnpp_lsun256() -> UNet:
    """65.6 M: NCSN++ of LSUN, CelebA-HQ and FFHQ at 256 pixels (Song et al. 2021)."""
    return UNet((3, 256, 256), 128, (1, 1, 2, 2, 2, 2, 2), 2, (16,), variant=NCSNPP_SKIP)


def ncsnpp_ffhq1024() -> UNet:
    """105.8 M (Song et al. 2021)."""
    return UNet((3, 1024, 1024), 16, (1, 2, 4, 8, 16, 32, 32, 32), 1, (64,), variant=NCSNPP_SKIP)


def edm_cifar10_vp(conditional: bool = False) -> UNet:
    """55.7 M: DDPM++ as Karras et al. (2022) train it, with augmentations.

    With classes, the bias of their layer is the row of no label.
    """
    classes = 10 if conditional else None
    variant = replace(DDPMPP, early_label=True)
    return UNet((3, 32, 32), 128, (2, 2, 2), 4, (2,), dropout=0.13, classes=classes, variant=variant, augment=9)


def edm_cifar10_ve(conditional: bool = False) -> UNet:
    """56.4 M: NCSN++ as Karras et al. (2022) train it, with augmentations; classes as in `edm_cifar10_vp`."""
    classes = 10 if conditional else None
    variant = replace(NCSNPP, early_label=True)
    return UNet((3, 32, 32), 128, (2, 2, 2), 4, (2,), dropout=0.13, classes=classes, variant=variant, augment=9)


def edm_ffhq64_vp() -> UNet:
    """61.8 M: FFHQ and AFHQv2, there with dropout 0.25 (Karras et al. 2022)."""
    return UNet(
        (3, 64, 64), 128, (1, 2, 2, 2), 4, (4,), dropout=0.05, variant=replace(DDPMPP, early_label=True), augment=9
    )


def edm_ffhq64_ve() -> UNet:
    """62.8 M: FFHQ and AFHQv2, there with dropout 0.25 (Karras et al. 2022)."""
    return UNet(
        (3, 64, 64), 128, (1, 2, 2, 2), 4, (4,), dropout=0.05, variant=replace(NCSNPP, early_label=True), augment=9
    )


def edm_imagenet64() -> UNet:
    """295.9 M: ADM as Karras et al. (2022) train it."""
    return UNet(
        (3, 64, 64), 192, (1, 2, 3, 4), 3, (2, 4, 8), dropout=0.1, classes=1000, variant=EDM_ADM, null_label=False
    )


def dit_s2() -> ImageDiT:
    """33 M: DiT-S/2 on latents of 256 pixels, with a learned variance (Peebles & Xie 2023, table 1)."""
    return ImageDiT((4, 32, 32), 2, 384, 12, 6, classes=1000, outputs=2)


def dit_b2() -> ImageDiT:
    """130 M: DiT-B/2."""
    return ImageDiT((4, 32, 32), 2, 768, 12, 12, classes=1000, outputs=2)


def dit_l2() -> ImageDiT:
    """458 M: DiT-L/2."""
    return ImageDiT((4, 32, 32), 2, 1024, 24, 16, classes=1000, outputs=2)


def dit_xl2() -> ImageDiT:
    """675 M: DiT-XL/2."""
    return ImageDiT((4, 32, 32), 2, 1152, 28, 16, classes=1000, outputs=2)
