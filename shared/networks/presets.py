"""The networks of the papers, by name: functions that build them, with the parameter counts of the released ones."""

from __future__ import annotations

from dataclasses import replace

from .embeddings import Sinusoidal
from .encoder import Encoder
from .image_dit import ImageDiT
from .style import ADM, DDPM, DDPMPP, EDM_ADM, IMPROVED, NCSNPP, NCSNPP_SKIP, SONG_DDPM
from .unet import UNet

LARGE = (1, 1, 2, 2, 4, 4)


def ddpm_cifar10() -> UNet:
    """35.7 M (Ho et al. 2020)."""
    return UNet((3, 32, 32), 128, (1, 2, 2, 2), 2, (2,), dropout=0.1, style=DDPM)


def ddpm_lsun256() -> UNet:
    """113.7 M: LSUN and CelebA-HQ at 256 pixels (Ho et al. 2020)."""
    return UNet((3, 256, 256), 128, LARGE, 2, (16,), style=DDPM)


def ddim_celeba64() -> UNet:
    """78.7 M (Song et al. 2020, DDIM)."""
    return UNet((3, 64, 64), 128, (1, 2, 2, 2, 4), 2, (4,), dropout=0.1, style=DDPM)


def improved_cifar10() -> UNet:
    """52.5 M (Nichol & Dhariwal 2021), with a learned variance."""
    return UNet((3, 32, 32), 128, (1, 2, 2, 2), 3, (2, 4), heads=4, dropout=0.3, outputs=2, style=IMPROVED)


def improved_imagenet64(conditional: bool = False) -> UNet:
    """121 M, or 273 M with classes (Nichol & Dhariwal 2021)."""
    classes, width = (1000, 192) if conditional else (None, 128)
    return UNet((3, 64, 64), width, (1, 2, 3, 4), 3, (4, 8), heads=4, outputs=2, classes=classes, style=IMPROVED, null_label=False)


def improved_lsun256() -> UNet:
    """113.7 M (Nichol & Dhariwal 2021): the embedding is added, as in DDPM."""
    return UNet((3, 256, 256), 128, LARGE, 2, (16,), outputs=2, style=replace(IMPROVED, adaptive=False))


def adm_imagenet64() -> UNet:
    """296 M (Dhariwal & Nichol 2021)."""
    return UNet((3, 64, 64), 192, (1, 2, 3, 4), 3, (2, 4, 8), dropout=0.1, outputs=2, classes=1000, style=ADM, null_label=False)


def adm_imagenet128() -> UNet:
    """422 M (Dhariwal & Nichol 2021), with four heads at every level."""
    style = replace(ADM, head_width=None)
    return UNet((3, 128, 128), 256, (1, 1, 2, 3, 4), 2, (4, 8, 16), heads=4, outputs=2, classes=1000, style=style, null_label=False)


def adm_imagenet256(conditional: bool = True) -> UNet:
    """554 M, or without classes 553 M, LSUN's network too, there with dropout 0.1 (Dhariwal & Nichol 2021)."""
    classes = 1000 if conditional else None
    return UNet((3, 256, 256), 256, LARGE, 2, (8, 16, 32), outputs=2, classes=classes, style=ADM, null_label=False)


def adm_imagenet512() -> UNet:
    """559 M (Dhariwal & Nichol 2021)."""
    return UNet((3, 512, 512), 256, (0.5, *LARGE), 2, (16, 32, 64), outputs=2, classes=1000, style=ADM, null_label=False)


def adm_classifier(size: int) -> Encoder:
    """65, 43, 54 or 54 M for 64, 128, 256 or 512 pixels (Dhariwal & Nichol 2021)."""
    multipliers = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: LARGE, 512: (0.5, *LARGE)}[size]
    attention = tuple(size // pixels for pixels in (32, 16, 8))
    return Encoder((3, size, size), 1000, 128, multipliers, 4 if size == 64 else 2, attention, style=ADM, positional=True)


def song_ddpm_cifar10() -> UNet:
    """35.2 M: the DDPM of Song et al. (2021)."""
    return UNet((3, 32, 32), 128, (1, 2, 2, 2), 2, (2,), dropout=0.1, style=SONG_DDPM)


def ddpmpp_cifar10(deep: bool = False) -> UNet:
    """DDPM++ of 61.8 M, or deep of 106.6 M (Song et al. 2021)."""
    return UNet((3, 32, 32), 128, (1, 2, 2, 2), 8 if deep else 4, (2,), dropout=0.1, style=DDPMPP)


def ncsnpp_cifar10(deep: bool = False, fourier: bool = True) -> UNet:
    """NCSN++ of 62.8 M, or deep of 107.6 M (Song et al. 2021); without Fourier features 62.7 M, for steps in place of noise levels."""
    style = NCSNPP if fourier else replace(NCSNPP, time=Sinusoidal())
    return UNet((3, 32, 32), 128, (1, 2, 2, 2), 8 if deep else 4, (2,), dropout=0.1, style=style)


def ncsnpp_lsun256() -> UNet:
    """65.6 M: NCSN++ of LSUN, CelebA-HQ and FFHQ at 256 pixels (Song et al. 2021)."""
    return UNet((3, 256, 256), 128, (1, 1, 2, 2, 2, 2, 2), 2, (16,), style=NCSNPP_SKIP)


def ncsnpp_ffhq1024() -> UNet:
    """105.8 M (Song et al. 2021)."""
    return UNet((3, 1024, 1024), 16, (1, 2, 4, 8, 16, 32, 32, 32), 1, (64,), style=NCSNPP_SKIP)


def edm_cifar10_vp(conditional: bool = False) -> UNet:
    """55.7 M: DDPM++ as Karras et al. (2022) train it, with augmentations; with classes, the bias of their layer is the row of no label."""
    classes = 10 if conditional else None
    style = replace(DDPMPP, early_label=True)
    return UNet((3, 32, 32), 128, (2, 2, 2), 4, (2,), dropout=0.13, classes=classes, style=style, augment=9)


def edm_cifar10_ve(conditional: bool = False) -> UNet:
    """56.4 M: NCSN++ as Karras et al. (2022) train it, with augmentations; classes as in `edm_cifar10_vp`."""
    classes = 10 if conditional else None
    style = replace(NCSNPP, early_label=True)
    return UNet((3, 32, 32), 128, (2, 2, 2), 4, (2,), dropout=0.13, classes=classes, style=style, augment=9)


def edm_ffhq64_vp() -> UNet:
    """61.8 M: FFHQ and AFHQv2, there with dropout 0.25 (Karras et al. 2022)."""
    return UNet((3, 64, 64), 128, (1, 2, 2, 2), 4, (4,), dropout=0.05, style=replace(DDPMPP, early_label=True), augment=9)


def edm_ffhq64_ve() -> UNet:
    """62.8 M: FFHQ and AFHQv2, there with dropout 0.25 (Karras et al. 2022)."""
    return UNet((3, 64, 64), 128, (1, 2, 2, 2), 4, (4,), dropout=0.05, style=replace(NCSNPP, early_label=True), augment=9)


def edm_imagenet64() -> UNet:
    """295.9 M: ADM as Karras et al. (2022) train it."""
    return UNet((3, 64, 64), 192, (1, 2, 3, 4), 3, (2, 4, 8), dropout=0.1, classes=1000, style=EDM_ADM, null_label=False)


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
