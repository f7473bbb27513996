"""The networks of the papers: functions that build them, with the parameter counts of the published checkpoints.

Weights are random. U-Nets and `ImageDiT`s are called as `network(x, time, **conditions)`, with x `(B, C, *size)`, the
time inputs `(B,)` and class labels `label=...`, int64 `(B,)`; the docstrings name the time input (of
`shared.time_inputs`) of the pretrained weights. "A learned variance" means twice as many output channels: the
prediction, then the variance output.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import UsageError
from .embeddings import Sinusoidal
from .encoder import Encoder
from .image_dit import ImageDiT
from .unet import UNet
from .unet_settings import LARGE, UNETS
from .unet_variants import ADM, NCSNPP


def unet(name: str, size: int, **further: Any) -> UNet:
    """Returns the U-Net of that name in `UNETS` for RGB images of `size` pixels; `further` are arguments of `UNet`."""
    return UNet((3, size, size), **UNETS[name], **further)


def deepened(name: str, deep: bool, **changes: Any) -> UNet:
    """Returns a U-Net for CIFAR-10, with 8 residual blocks for each resolution if `deep`."""
    settings = UNETS[name] | changes
    if deep:
        settings["blocks"] = 8
    return UNet((3, 32, 32), **settings)


def ddpm_cifar10() -> UNet:
    """Returns DDPM's U-Net for CIFAR-10, 35.7 M random weights (Ho et al. 2020); time input `step_index`."""
    return unet("ddpm_cifar10", 32)


def ddpm_lsun256() -> UNet:
    """Returns DDPM's U-Net for LSUN and CelebA-HQ of 256 pixels, 113.7 M random weights (Ho et al. 2020).

    Time input: `step_index`.
    """
    return unet("ddpm_lsun256", 256)


def ddim_celeba64() -> UNet:
    """Returns DDIM's U-Net for CelebA of 64 pixels, 78.7 M random weights (Song et al. 2020).

    Time input: `step_index`.
    """
    return unet("ddim_celeba64", 64)


def improved_cifar10() -> UNet:
    """Returns the U-Net for CIFAR-10 with a learned variance, 52.5 M random weights (Nichol & Dhariwal 2021).

    Time input: `thousandth_index`.
    """
    return unet("improved_cifar10", 32, outputs=2)


def improved_imagenet64(conditional: bool = False) -> UNet:
    """Returns the U-Net for ImageNet of 64 pixels, with random weights (Nichol & Dhariwal 2021).

    It has 121 M parameters, or 273 M if `conditional`, which needs one of 1000 class labels for each example; a learned
    variance; and the time input `thousandth_index`, or `step_index` if conditional.
    """
    if conditional:
        return unet("improved_imagenet64_classes", 64, outputs=2, classes=1000)
    return unet("improved_imagenet64", 64, outputs=2, null_label=False)


def improved_lsun256() -> UNet:
    """Returns the U-Net for LSUN of 256 pixels, 113.7 M random weights (Nichol & Dhariwal 2021).

    The time embedding is added in each block, and does not scale, as in DDPM. It has a learned variance, and the time
    input `step_index`.
    """
    return unet("improved_lsun256", 256, outputs=2)


def adm_imagenet64() -> UNet:
    """Returns ADM's U-Net for ImageNet of 64 pixels, 296 M random weights (Dhariwal & Nichol 2021).

    It needs one of 1000 class labels for each example, and has a learned variance and the time input `step_index`.
    """
    return unet("adm_imagenet64", 64, outputs=2, classes=1000)


def adm_imagenet128() -> UNet:
    """Returns ADM's U-Net for ImageNet of 128 pixels, 422 M random weights (Dhariwal & Nichol 2021).

    It has four attention heads at every resolution. Labels, learned variance and time input are as in `adm_imagenet64`.
    """
    return unet("adm_imagenet128", 128, outputs=2, classes=1000)


def adm_imagenet256(conditional: bool = True) -> UNet:
    """Returns ADM's U-Net for ImageNet of 256 pixels, with random weights (Dhariwal & Nichol 2021).

    It has 554 M parameters if `conditional`, else 553 M; the unconditional network serves for LSUN too, there with
    dropout 0.1. Labels, learned variance and time input are as in `adm_imagenet64`.
    """
    return unet("adm_imagenet256", 256, outputs=2, classes=1000 if conditional else None)


def adm_imagenet512() -> UNet:
    """Returns ADM's U-Net for ImageNet of 512 pixels, 559 M random weights (Dhariwal & Nichol 2021).

    Labels, learned variance and time input are as in `adm_imagenet64`.
    """
    return unet("adm_imagenet512", 512, outputs=2, classes=1000)


def adm_classifier(size: int) -> Encoder:
    """Returns ADM's classifier of noisy ImageNet images, with random weights (Dhariwal & Nichol 2021).

    Called with x_t `(B, 3, size, size)` and the time input, `step_index` for the pretrained weights; returns logits
    `(B, 1000)`.

    Args:
        size: height and width in pixels: 64, 128, 256 or 512, with 65, 43, 54 or 54 M parameters.

    Raises:
        UsageError: for another size.
    """
    sizes = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: LARGE, 512: (0.5, *LARGE)}
    if size not in sizes:
        raise UsageError(f"size={size}: ADM's classifiers are of {', '.join(map(str, sizes))} pixels")
    multipliers = sizes[size]
    attention = tuple(size // pixels for pixels in (32, 16, 8))
    return Encoder(
        (3, size, size), 1000, 128, multipliers, 4 if size == 64 else 2, attention, variant=ADM, positional=True
    )


def song_ddpm_cifar10() -> UNet:
    """Returns the DDPM of Song et al. (2021) for CIFAR-10, 35.2 M random weights.

    Time input: `song_vp` in continuous time, `step_index` on a table of steps.
    """
    return unet("song_ddpm_cifar10", 32)


def ddpmpp_cifar10(deep: bool = False) -> UNet:
    """Returns DDPM++ for CIFAR-10, 61.8 M random weights, or 106.6 M if `deep` (Song et al. 2021).

    Time input: `song_vp` in continuous time, `step_index` on a table of steps.
    """
    return deepened("ddpmpp_cifar10", deep)


def ncsnpp_cifar10(deep: bool = False, fourier: bool = True) -> UNet:
    """Returns NCSN++ for CIFAR-10, 62.8 M random weights, or 107.6 M if `deep` (Song et al. 2021).

    Its time input is `log_noise_level`. Without Fourier features (`fourier=False`) it has 62.7 M parameters, unless
    deep, and its time input is a step in place of a noise level.
    """
    return deepened("ncsnpp_cifar10", deep, **({} if fourier else {"variant": replace(NCSNPP, time=Sinusoidal())}))


def ncsnpp_lsun256() -> UNet:
    """Returns NCSN++ for LSUN, CelebA-HQ and FFHQ of 256 pixels, 65.6 M random weights (Song et al. 2021).

    Time input: `log_noise_level`.
    """
    return unet("ncsnpp_lsun256", 256)


def ncsnpp_ffhq1024() -> UNet:
    """Returns NCSN++ for FFHQ of 1024 pixels, 105.8 M random weights (Song et al. 2021).

    Time input: `log_noise_level`.
    """
    return unet("ncsnpp_ffhq1024", 1024)


def edm_cifar10_vp(conditional: bool = False) -> UNet:
    """Returns EDM's DDPM++ for CIFAR-10, 55.7 M random weights (Karras et al. 2022).

    Its conditions are `augment`, 9 augmentation parameters `(B, 9)` or None, and, if `conditional`, one of 10 class
    labels or None; the embedding of None is the bias of the class layer in the published code. Time input:
    `quarter_log`.
    """
    return unet("edm_cifar10_vp", 32, classes=10 if conditional else None, augment=9)


def edm_cifar10_ve(conditional: bool = False) -> UNet:
    """Returns EDM's NCSN++ for CIFAR-10, 56.4 M random weights (Karras et al. 2022).

    Conditions and time input are as in `edm_cifar10_vp`.
    """
    return unet("edm_cifar10_ve", 32, classes=10 if conditional else None, augment=9)


def edm_ffhq64_vp() -> UNet:
    """Returns EDM's DDPM++ for FFHQ of 64 pixels, 61.8 M random weights (Karras et al. 2022).

    The network of AFHQv2 is the same with dropout 0.25. The condition `augment` and the time input are as in
    `edm_cifar10_vp`.
    """
    return unet("edm_ffhq64_vp", 64, augment=9)


def edm_ffhq64_ve() -> UNet:
    """Returns EDM's NCSN++ for FFHQ of 64 pixels, 62.8 M random weights (Karras et al. 2022).

    The network of AFHQv2 is the same with dropout 0.25. The condition `augment` and the time input are as in
    `edm_cifar10_vp`.
    """
    return unet("edm_ffhq64_ve", 64, augment=9)


def edm_imagenet64() -> UNet:
    """Returns EDM's ADM for ImageNet of 64 pixels, 295.9 M random weights (Karras et al. 2022).

    It needs one of 1000 class labels for each example. Time input: `quarter_log`.
    """
    return unet("edm_imagenet64", 64, classes=1000)


def dit_s2() -> ImageDiT:
    """Returns DiT-S/2 for latents of ImageNet of 256 pixels, 33 M random weights (Peebles & Xie 2023, table 1).

    Latents are `(B, 4, 32, 32)`. It has a learned variance, 1000 class labels (or None for no label) and the time input
    `step_index`.
    """
    return ImageDiT((4, 32, 32), 2, 384, 12, 6, classes=1000, outputs=2)


def dit_b2() -> ImageDiT:
    """Returns DiT-B/2, 130 M random weights; otherwise as `dit_s2`."""
    return ImageDiT((4, 32, 32), 2, 768, 12, 12, classes=1000, outputs=2)


def dit_l2() -> ImageDiT:
    """Returns DiT-L/2, 458 M random weights; otherwise as `dit_s2`."""
    return ImageDiT((4, 32, 32), 2, 1024, 24, 16, classes=1000, outputs=2)


def dit_xl2() -> ImageDiT:
    """Returns DiT-XL/2, 675 M random weights; otherwise as `dit_s2`."""
    return ImageDiT((4, 32, 32), 2, 1152, 28, 16, classes=1000, outputs=2)
