"""Checkpoints of improved-diffusion (Nichol & Dhariwal 2021) and guided-diffusion (Dhariwal & Nichol 2021): state dicts without any flags.

What shapes and names tell is read from them. Heads, the order in which heads and q, k, v are split, and the schedule cannot be told: they
are known for the released files, by name, and asked for elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from torch import Tensor

from ...continuous import Learned, Tabulated, cosine_betas, linear_betas
from ...shared.errors import UsageError
from ...shared.guidance import NoisyClassifier
from ...shared.labels import step_index, thousandth_index
from ...shared.networks import Encoder, UNet
from ...shared.networks.style import ADM, Resampled, Strided, Style
from ...shared.scale import Scale
from .unets import Layer, attention_names, block_names, heads_first, layers, qkv_first
from .weights import Made, Names, count, fill, renamed, tensor

BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "modulation": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
ENDS = {"time.mlp.0": "time_embed.0", "time.mlp.2": "time_embed.2", "stem": "input_blocks.0.0"}
BETAS = {"linear": linear_betas, "cosine": cosine_betas}
EXAMPLE = {
    "image_size": 64,
    "num_heads": 4,
    "use_new_attention_order": False,
    "noise_schedule": "cosine",
    "diffusion_steps": 4000,
    "rescale_timesteps": True,
}
POOL = "out.2.positional_embedding"
"""Of classifiers alone."""


@dataclass(frozen=True)
class Flags:
    """What a file does not say, under the names of the reference code's own flags; None for what is to be asked for."""

    image_size: int | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    use_new_attention_order: bool | None = None
    noise_schedule: str | None = None
    diffusion_steps: int | None = None
    rescale_timesteps: bool | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "num_heads", "num_head_channels", "diffusion_steps"):
            if (value := getattr(self, name)) is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{name}={value!r}: give a whole number of at least 1, such as {EXAMPLE.get(name, 64)}")
        for name in ("use_new_attention_order", "rescale_timesteps"):
            if (value := getattr(self, name)) is not None and type(value) is not bool:
                raise UsageError(f"{name}={value!r}: give True or False")
        if self.noise_schedule is not None and self.noise_schedule not in tuple(BETAS):
            raise UsageError(f"noise_schedule={self.noise_schedule!r}: give one of {', '.join(BETAS)}")
        if self.num_heads is not None and self.num_head_channels is not None:
            raise UsageError(
                f"num_heads={self.num_heads} and num_head_channels={self.num_head_channels}: give one of them, as it was in training"
            )


IMPROVED = Flags(32, 4, None, False, "cosine", 4000, True)
GUIDED = Flags(256, None, 64, False, "linear", 1000, False)
KNOWN = {
    "cifar10_uncond_50M_500K": IMPROVED,
    "cifar10_uncond_vlb_50M_500K": IMPROVED,
    "imagenet64_uncond_100M_1500K": replace(IMPROVED, image_size=64),
    "imagenet64_uncond_vlb_100M_1500K": replace(IMPROVED, image_size=64),
    "imagenet64_cond_270M_250K": replace(IMPROVED, image_size=64, rescale_timesteps=False),
    "lsun_uncond_100M_1200K_bs128": Flags(256, 1, None, False, "linear", 1000, False),
    "lsun_uncond_100M_2400K_bs64": Flags(256, 1, None, False, "linear", 1000, False),
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
    "64x64_classifier": replace(GUIDED, image_size=64, noise_schedule="cosine"),
    "128x128_classifier": replace(GUIDED, image_size=128),
    "256x256_classifier": GUIDED,
    "512x512_classifier": replace(GUIDED, image_size=512),
}


def looks_like(contents: Any) -> bool:
    """Whether this is a state dict of either project."""
    return isinstance(contents, Mapping) and {"time_embed.0.weight", "input_blocks.0.0.weight"} <= contents.keys()


def denoiser(
    contents: Mapping[str, Tensor],
    source: str,
    *,
    image_size: int | None = None,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    use_new_attention_order: bool | None = None,
    noise_schedule: str | None = None,
    diffusion_steps: int | None = None,
    rescale_timesteps: bool | None = None,
) -> Learned | NoisyClassifier:
    """The denoiser of a model, or the `NoisyClassifier` of a classifier.

    Args:
        contents: the state dict.
        source: the file; its name tells the flags of the released ones.
        image_size: pixels.
        num_heads, num_head_channels: attention heads, or channels of each.
        use_new_attention_order: whether q, k, v are split before the heads; not for classifiers, which split the heads first.
        noise_schedule: "linear" or "cosine".
        diffusion_steps: T.
        rescale_timesteps: whether the network is fed `t 1000 / T`.

    Raises:
        UsageError: for a flag that neither the file, its name nor the caller tells, or that no network can have, and for weights that
            do not fit.
    """
    given = Flags(image_size, num_heads, num_head_channels, use_new_attention_order, noise_schedule, diffusion_steps, rescale_timesteps)
    flags = settled(given, source, POOL in contents)
    order = qkv_first if flags.use_new_attention_order else heads_first
    schedule = Tabulated(BETAS[flags.noise_schedule](flags.diffusion_steps))
    label = thousandth_index if flags.rescale_timesteps else step_index
    shape = (3, flags.image_size, flags.image_size)
    network: UNet | Encoder
    if POOL in contents:
        network = classifier(contents, source, flags)
        fill(network, names(network, contents, order) | pool_names(), contents, source)
        made = NoisyClassifier(network, schedule, label)
    else:
        network = unet(contents, source, flags)
        fill(network, names(network, contents, order), contents, source)
        made = Learned(network, schedule, label=label)
    made.scale, made.shape = Scale(), shape
    return made


def settled(given: Flags, source: str, classifier: bool) -> Flags:
    """The flags that were given, those of the released file of this name for the rest, and an error for what is still open."""
    name = PurePath(source).name.removesuffix(".pt")
    name = next((k for k in sorted(KNOWN, key=len, reverse=True) if name == k or name.endswith(f"_{k}")), "")
    usual = Flags(use_new_attention_order=False, diffusion_steps=1000, rescale_timesteps=False) if classifier else Flags()
    flags = KNOWN.get(name, usual)
    told = {k: v for k, v in vars(given).items() if v is not None}
    if "num_heads" in told or "num_head_channels" in told:
        flags = replace(flags, num_heads=None, num_head_channels=None)
    flags = replace(flags, **told)
    if classifier and flags.use_new_attention_order:
        raise UsageError(f"{source}: classifiers split the heads before q, k, v: leave use_new_attention_order=True out")
    heads = flags.num_heads is None and flags.num_head_channels is None
    open_flags = [k for k, v in vars(flags).items() if (heads if k == "num_heads" else v is None and k != "num_head_channels")]
    if open_flags:
        missing = ", ".join(k if k != "num_heads" else "num_heads (or num_head_channels)" for k in open_flags)
        raise UsageError(
            f"{source}: the weights of this format do not tell {missing}, and the name is none of the released ones: give "
            f"what it was in training, such as {', '.join(f'{k}={EXAMPLE[k]!r}' for k in open_flags)}"
        )
    return flags


@dataclass(frozen=True)
class Structure:
    """What the way down tells.

    Attributes:
        width: model channels.
        multipliers: of each resolution.
        blocks: for each resolution.
        attention: down-sampling factors.
        style: with the heads left open.
    """

    width: int
    multipliers: tuple[float, ...]
    blocks: int
    attention: tuple[int, ...]
    style: Style


def structure(state: Mapping[str, Tensor], source: str, levels: int | None) -> Structure:
    """Reads the way down; `levels` is the number of resolutions where the way up tells it."""
    entries = 1  # the stem
    while any(f"input_blocks.{entries}.0.{part}.weight" in state for part in ("in_layers.0", "op")):
        entries += 1
    width, stem = tensor(state, "time_embed.0.weight", 2, source).shape[1], len(tensor(state, "input_blocks.0.0.weight", 4, source))
    ends = [f"input_blocks.{n}.0.out_layers.3.bias" for n in range(entries)]
    channels = [len(tensor(state, k, 1, source)) if k in state else None for k in ends]
    attended = [f"input_blocks.{n}.1.qkv.weight" in state for n in range(entries)]
    found = []
    for count_ in range(1, entries + 1) if levels is None else (levels,):
        if entries % count_:
            continue
        each = entries // count_  # the stem, or what resizes, and the blocks
        groups = [range(n * each + 1, (n + 1) * each) for n in range(count_)]
        resizing = [n * each for n in range(1, count_)]
        even = all(len({(channels[n], attended[n]) for n in group}) == 1 for group in groups)
        if even and not any(attended[n] for n in resizing) and all(channels[n] in (None, channels[n - 1]) for n in resizing):
            found.append((each - 1, [ends[group[0]] for group in groups], [attended[group[0]] for group in groups]))
    if len(found) != 1:
        raise UsageError(f"{source}: {len(found)} networks have input blocks like these: the file is not one of the released architectures")
    blocks, biases, attention = found[0]
    wide = [len(tensor(state, name, 1, source)) for name in biases]
    adaptive = len(tensor(state, "input_blocks.1.0.emb_layers.1.bias", 1, source)) == 2 * wide[0]
    resize = Strided() if any(f"input_blocks.{n}.0.op.weight" in state for n in range(entries)) else Resampled()
    style = replace(ADM, adaptive=adaptive, resize=resize, wide_stem=stem == wide[0])
    factors = tuple(2**n for n, attends in enumerate(attention) if attends)
    return Structure(width, tuple(w / width for w in wide), blocks, factors, style)


def refuse_uneven(read: Structure, flags: Flags, source: str) -> None:
    """Raises `UsageError` for heads that do not divide the channels of a resolution with attention, which the lowest one always has."""
    last = len(read.multipliers) - 1
    wide = [round(read.width * m) for n, m in enumerate(read.multipliers) if n == last or 2**n in read.attention]
    for name in ("num_heads", "num_head_channels"):
        value = getattr(flags, name)
        if value is not None and (uneven := [c for c in wide if c % value]):
            raise UsageError(f"{source}: {name}={value} does not divide the {uneven[0]} channels of a layer: give it as it was in training")


def unet(state: Mapping[str, Tensor], source: str, flags: Flags) -> UNet:
    """The U-Net of these shapes."""
    entries = count(state, "output_blocks.{}.0.in_layers.0.weight")
    grows = sum(
        any(f"output_blocks.{n}.{i}.{k}" in state for i in (1, 2) for k in ("conv.weight", "in_layers.0.weight")) for n in range(entries)
    )
    read = structure(state, source, grows + 1)
    refuse_uneven(read, flags, source)
    channels, entering = 3, state["input_blocks.0.0.weight"].shape[1]
    return UNet(
        (channels, flags.image_size, flags.image_size),
        read.width,
        read.multipliers,
        read.blocks,
        read.attention,
        heads=flags.num_heads or 1,
        classes=len(tensor(state, "label_emb.weight", 2, source)) if "label_emb.weight" in state else None,
        outputs=len(tensor(state, "out.2.bias", 1, source)) // channels,
        image=entering - channels,
        style=replace(read.style, head_width=flags.num_head_channels),
        null_label=False,
    )


def classifier(state: Mapping[str, Tensor], source: str, flags: Flags) -> Encoder:
    """The classifier of these shapes."""
    read = structure(state, source, None)
    refuse_uneven(read, flags, source)
    return Encoder(
        (3, flags.image_size, flags.image_size),
        len(tensor(state, "out.2.c_proj.bias", 1, source)),
        read.width,
        read.multipliers,
        read.blocks,
        read.attention,
        heads=flags.num_heads or 1,
        style=replace(read.style, head_width=flags.num_head_channels),
        positional=True,
    )


def names(network: UNet | Encoder, state: Mapping[str, Tensor], order: Any) -> Names:
    """Ours to theirs."""
    found: Names = renamed("", "", ENDS)
    if isinstance(network, UNet):
        found |= renamed("", "", {"head.0": "out.0", "head.2": "out.2"})
        if network.label is not None:
            found["label.table.weight"] = "label_emb.weight"
    each = network.blocks + 1
    for layer in layers(network):
        part, level, index, role = layer.place
        position = int(role == "attention")
        if part == "middle":
            theirs = f"middle_block.{index}"
        elif part == "down":
            theirs = f"input_blocks.{level * each + index + 1}.{position}"
        else:
            number = (len(network.multipliers) - 1 - level) * each + index
            if role == "grow":  # after the last block of the level, and its attention
                number, position = number - 1, 1 + (2**level in network.attention)
            theirs = f"output_blocks.{number}.{position}"
        found |= _names(layer, theirs, order)
    return found


def _names(layer: Layer, theirs: str, order: Any) -> Names:
    if layer.place.role == "attention":
        return attention_names(layer, theirs, ATTENTION, order)
    if hasattr(layer.module, "conv1"):
        return block_names(layer, theirs, BLOCK)
    return renamed(layer.name, theirs, {"conv": "op" if layer.place.role == "shrink" else "conv"})


def pool_names() -> Names:
    """Of the classifier's pooling, whose heads are split after q, k and v in all releases."""
    found: Names = renamed("pool", "out", {"norm": "0"})
    found["pool.positions"] = "out.2.positional_embedding"
    for ours, theirs in (("qkv", "qkv_proj"), ("out", "c_proj")):
        found |= {
            f"pool.{ours}.weight": Made((f"out.2.{theirs}.weight",), lambda w: w.flatten(1)),
            f"pool.{ours}.bias": f"out.2.{theirs}.bias",
        }
    return found
