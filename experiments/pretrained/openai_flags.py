"""Flags of improved-diffusion and guided-diffusion that weights do not determine, and their published values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, NamedTuple

from ...continuous import cosine_betas, linear_betas
from ...shared.errors import UsageError

BETAS = {"linear": linear_betas, "cosine": cosine_betas}
EXAMPLE = {
    "image_size": 64,
    "num_heads": 4,
    "use_new_attention_order": False,
    "noise_schedule": "cosine",
    "diffusion_steps": 4000,
    "rescale_timesteps": True,
    "predict_xstart": False,
    "learn_sigma": True,
}


@dataclass(frozen=True)
class Flags:
    """Settings that a file does not contain, under the names of the original code's flags; None for unknown ones."""

    image_size: int | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    use_new_attention_order: bool | None = None
    noise_schedule: str | None = None
    diffusion_steps: int | None = None
    rescale_timesteps: bool | None = None
    predict_xstart: bool | None = None
    learn_sigma: bool | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "num_heads", "num_head_channels", "diffusion_steps"):
            if (value := getattr(self, name)) is not None and (type(value) is not int or value < 1):
                raise UsageError(
                    f"{name}={value!r}: give a whole number of at least 1, such as {EXAMPLE.get(name, 64)}"
                )
        for name in ("use_new_attention_order", "rescale_timesteps", "predict_xstart", "learn_sigma"):
            if (value := getattr(self, name)) is not None and type(value) is not bool:
                raise UsageError(f"{name}={value!r}: give True or False")
        if self.noise_schedule is not None and self.noise_schedule not in tuple(BETAS):
            raise UsageError(f"noise_schedule={self.noise_schedule!r}: give one of {', '.join(BETAS)}")
        if self.num_heads is not None and self.num_head_channels is not None:
            raise UsageError(
                f"num_heads={self.num_heads} and num_head_channels={self.num_head_channels}: "
                "give the one that was set in training"
            )


IMPROVED = Flags(32, 4, None, False, "cosine", 4000, True, False, True)
GUIDED = Flags(256, None, 64, False, "linear", 1000, False, False, True)
LSUN = replace(GUIDED, num_heads=1, num_head_channels=None)
CLASSIFIER = replace(GUIDED, predict_xstart=False, learn_sigma=False)
PUBLISHED = {
    "cifar10_uncond_50M_500K": IMPROVED,
    "cifar10_uncond_vlb_50M_500K": IMPROVED,
    "imagenet64_uncond_100M_1500K": replace(IMPROVED, image_size=64),
    "imagenet64_uncond_vlb_100M_1500K": replace(IMPROVED, image_size=64),
    "imagenet64_cond_270M_250K": replace(IMPROVED, image_size=64, rescale_timesteps=False),
    "lsun_uncond_100M_1200K_bs128": LSUN,
    "lsun_uncond_100M_2400K_bs64": LSUN,
    "64x64_diffusion": replace(GUIDED, image_size=64, use_new_attention_order=True, noise_schedule="cosine"),
    "128x128_diffusion": replace(GUIDED, image_size=128, num_heads=4, num_head_channels=None),
    "256x256_diffusion": GUIDED,
    "256x256_diffusion_uncond": GUIDED,
    "512x512_diffusion": replace(GUIDED, image_size=512),
    "lsun_bedroom": GUIDED,
    "lsun_cat": GUIDED,
    "lsun_horse": GUIDED,
    "lsun_horse_nodropout": GUIDED,
    "64_256_upsampler": replace(GUIDED, num_heads=4, num_head_channels=None),
    "128_512_upsampler": replace(GUIDED, image_size=512),
    "64x64_classifier": replace(CLASSIFIER, image_size=64, noise_schedule="cosine"),
    "128x128_classifier": replace(CLASSIFIER, image_size=128),
    "256x256_classifier": CLASSIFIER,
    "512x512_classifier": replace(CLASSIFIER, image_size=512),
}


class Sizes(NamedTuple):
    """Sizes of a network, by which a published checkpoint differs from other files of its name.

    Attributes:
        channels: model channels at full resolution.
        entries: input blocks: resolutions times (residual blocks per resolution + 1).
        classes: number of classes; None for an unconditional network.
        entering: input channels.
        leaving: output channels; None for a classifier.
    """

    channels: int
    entries: int
    classes: int | None = None
    entering: int = 3
    leaving: int | None = 6


SIZES = {
    "cifar10_uncond_50M_500K": Sizes(128, 16),
    "cifar10_uncond_vlb_50M_500K": Sizes(128, 16),
    "imagenet64_uncond_100M_1500K": Sizes(128, 16),
    "imagenet64_uncond_vlb_100M_1500K": Sizes(128, 16),
    "imagenet64_cond_270M_250K": Sizes(192, 16, 1000),
    "lsun_uncond_100M_1200K_bs128": Sizes(128, 18),
    "lsun_uncond_100M_2400K_bs64": Sizes(128, 18),
    "64x64_diffusion": Sizes(192, 16, 1000),
    "128x128_diffusion": Sizes(256, 15, 1000),
    "256x256_diffusion": Sizes(256, 18, 1000),
    "256x256_diffusion_uncond": Sizes(256, 18),
    "512x512_diffusion": Sizes(256, 21, 1000),
    **{f"lsun_{name}": Sizes(256, 18) for name in ("bedroom", "cat", "horse", "horse_nodropout")},
    "64_256_upsampler": Sizes(192, 18, 1000, 6),
    "128_512_upsampler": Sizes(192, 18, 1000, 6),
    "64x64_classifier": Sizes(128, 20, 1000, leaving=None),
    "128x128_classifier": Sizes(128, 15, 1000, leaving=None),
    "256x256_classifier": Sizes(128, 18, 1000, leaving=None),
    "512x512_classifier": Sizes(128, 21, 1000, leaving=None),
}


def published_name(source: str) -> str:
    """Returns the name of the published checkpoint that a file is named after, or ""."""
    name = PurePath(source).name.removesuffix(".pt")
    return next((k for k in sorted(PUBLISHED, key=len, reverse=True) if name == k or name.endswith(f"_{k}")), "")


def published_flags(source: str, given: Mapping[str, Any], sizes: Sizes | None = None) -> Flags | None:
    """Returns the flags of the published checkpoint that a file is named after, or None.

    None is returned for any other name, and where a given flag (except the image size) or the sizes of the network
    differ from the published ones.
    """
    name = published_name(source)
    flags = PUBLISHED.get(name)
    other = [k for k, v in given.items() if v is not None and k != "image_size" and v != getattr(flags, k, None)]
    return None if other or (sizes is not None and sizes != SIZES.get(name)) else flags
