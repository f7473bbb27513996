"""Imports checkpoints of improved-diffusion (Nichol & Dhariwal 2021) and guided-diffusion (Dhariwal & Nichol 2021).

They are state dicts without flags. Some settings follow from shapes and names (docs/importing.md lists them). Others do
not: heads, the order in which heads and q, k, v are split, the schedule, the prediction, and for some numbers of
channels the learned variance. They are known for published checkpoints, by name, and required as flags otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...continuous import Learned, Tabulated, clean, noise
from ...shared.errors import UsageError
from ...shared.gaussian.guidance import NoisyClassifier
from ...shared.networks import Encoder, UNet
from ...shared.networks.unet_variants import ADM, Resampled, Strided, UNetVariant
from ...shared.quantization import Quantization
from ...shared.time_inputs import step_index, thousandth_index
from .openai_flags import BETAS, EXAMPLE, SIZES, Flags, Sizes, published_flags, published_name
from .settings import attach
from .unets import Layer, attention_names, block_names, heads_first, layers, qkv_first
from .weights import Converted, Names, count, fill, renamed, tensor

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
STEM = "input_blocks.0.0.weight"
POOL = "out.2.positional_embedding"
"""A tensor that only classifiers have."""


def looks_like(contents: Any) -> bool:
    """Returns whether this is a state dict of either project."""
    return isinstance(contents, Mapping) and {"time_embed.0.weight", STEM} <= contents.keys()


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
    predict_xstart: bool | None = None,
    learn_sigma: bool | None = None,
) -> Learned | NoisyClassifier:
    """Returns the denoiser of a model, or the `NoisyClassifier` of a classifier; `.assumed` lists assumptions.

    Args:
        contents: the state dict.
        source: the file; the name of a published checkpoint determines its flags.
        image_size: height and width of the images in pixels; a classifier's file determines it.
        num_heads, num_head_channels: number of attention heads, or channels of each.
        use_new_attention_order: whether q, k, v are split before the heads; not for classifiers, which split the heads
            first.
        noise_schedule: "linear" or "cosine".
        diffusion_steps: T.
        rescale_timesteps: whether the network is fed `t 1000 / T`.
        predict_xstart: whether the network predicts x_0 instead of the noise; not for classifiers.
        learn_sigma: whether half of the output channels are a variance; required where the numbers of input and output
            channels allow both. Not for classifiers.

    Raises:
        UsageError: for a flag that is missing, that no network can have, or that the file contradicts, and for weights
            that do not fit.
    """
    given = Flags(
        image_size,
        num_heads,
        num_head_channels,
        use_new_attention_order,
        noise_schedule,
        diffusion_steps,
        rescale_timesteps,
        predict_xstart,
        learn_sigma,
    )
    is_classifier = POOL in contents
    channels = {} if is_classifier else image_channels(contents, given, source)
    if len(channels) == 1:  # a name with another value is then ignored
        given = replace(given, learn_sigma=next(iter(channels)))
    sizes = sizes_of(contents, source)
    flags = complete(given, source, is_classifier, ambiguous=len(channels) > 1, sizes=sizes)
    order = qkv_first if flags.use_new_attention_order else heads_first
    schedule = table(flags, source)
    time_input = thousandth_index if flags.rescale_timesteps else step_index
    network: UNet | Encoder
    if is_classifier:
        network = classifier(contents, source, flags)
        fill(network, names(network, contents, order) | pool_names(), contents, source)
        denoiser = NoisyClassifier(network, schedule, time_input)
    else:
        learned = bool(flags.learn_sigma)
        network = unet(contents, source, flags, channels[learned], learned)
        fill(network, names(network, contents, order), contents, source)
        denoiser = Learned(network, schedule, clean if flags.predict_xstart else noise, time_input)
    name = published_name(source) if published_flags(source, vars(given), sizes) else ""
    attach(denoiser, quantization=Quantization(), shape=network.shape, assumed=assumed(network, flags, name))
    return denoiser


def sizes_of(state: Mapping[str, Tensor], source: str) -> Sizes:
    """Returns the sizes by which a published checkpoint differs from other files of its name."""
    is_classifier, entries = POOL in state, 1  # the stem
    while any(f"input_blocks.{entries}.0.{part}.weight" in state for part in ("in_layers.0", "op")):
        entries += 1
    labels = "out.2.c_proj.bias" if is_classifier else "label_emb.weight"
    classes = len(tensor(state, labels, 2 - is_classifier, source)) if labels in state else None
    width, entering = tensor(state, "time_embed.0.weight", 2, source).shape[1], tensor(state, STEM, 4, source).shape[1]
    leaving = None if is_classifier else len(tensor(state, "out.2.bias", 1, source))
    return Sizes(width, entries, classes, entering, leaving)


def complete(
    given: Flags, source: str, classifier: bool, *, ambiguous: bool = False, sizes: Sizes | None = None
) -> Flags:
    """Returns the given flags, completed by those of the published checkpoint that the file is named after.

    Args:
        given: the flags of the caller.
        source: the file.
        classifier: whether it is a classifier's.
        ambiguous: whether `learn_sigma` is required.
        sizes: of the network, None to go by the name alone.

    Raises:
        UsageError: for flags that are missing, or that a classifier does not have.
    """
    usual = Flags(use_new_attention_order=False, predict_xstart=False, learn_sigma=False) if classifier else Flags()
    known = {k: v for k, v in vars(given).items() if v is not None}
    flags = replace(published_flags(source, known, sizes) or usual, **known)
    if classifier and flags.use_new_attention_order:
        raise UsageError(
            f"{source}: classifiers split the heads before q, k, v: leave use_new_attention_order=True out"
        )
    if classifier and (name := next((k for k in ("predict_xstart", "learn_sigma") if getattr(flags, k)), None)):
        raise UsageError(f"{source}: a classifier predicts log p(label) and no image: leave {name}=True out")
    no_heads = flags.num_heads is None and flags.num_head_channels is None
    optional = (
        {"num_head_channels"} | ({"image_size"} if classifier else set()) | (set() if ambiguous else {"learn_sigma"})
    )
    missing = [k for k, v in vars(flags).items() if (no_heads if k == "num_heads" else v is None and k not in optional)]
    if missing:
        listed = ", ".join(k if k != "num_heads" else "num_heads (or num_head_channels)" for k in missing)
        name = published_name(source)
        why = f"the published {name} has other flags than are given" if name else "the file name is not a published one"
        why = f"the published {name} is another network" if name and sizes not in (None, SIZES[name]) else why
        raise UsageError(
            f"{source}: the weights of this format do not determine {listed}, and {why}: "
            f"give the values of training, such as {', '.join(f'{k}={EXAMPLE[k]!r}' for k in missing)}"
        )
    return flags


def image_channels(state: Mapping[str, Tensor], given: Flags, source: str) -> dict[bool, int]:
    """Returns the channels of the images for each value of `learn_sigma` that the network's channels allow.

    A network has as many output channels as the images, or twice as many where it learns a variance. Its input channels
    are those of the images and of a condition image, such as an upsampler's.

    Raises:
        UsageError: for a file without output blocks, for numbers of channels that no network has, and for none with the
            given `learn_sigma`.
    """
    if not count(state, "output_blocks.{}.0.in_layers.0.weight"):
        raise UsageError(
            f"{source} has neither output_blocks.0.0.in_layers.0.weight (a denoiser) nor {POOL} (a classifier): "
            "classifiers with another classifier_pool than attention are not supported"
        )
    entering, leaving = tensor(state, STEM, 4, source).shape[1], len(tensor(state, "out.2.bias", 1, source))
    possible = {learned: leaving // (1 + learned) for learned in (False, True) if leaving % (1 + learned) == 0}
    fit = {k: c for k, c in possible.items() if c <= entering and given.learn_sigma in (None, k)}
    if not fit:
        contradicted = "" if given.learn_sigma is None else f"learn_sigma={given.learn_sigma} does not fit: "
        raise UsageError(
            f"{source}: {contradicted}the network has {entering} input channels ({STEM}) and {leaving} output channels "
            "(out.2.bias); for images of c channels there are c outputs, or 2 c with learn_sigma=True, and c inputs, "
            "or more with a condition image"
        )
    return fit


def table(flags: Flags, source: str) -> Tabulated:
    """Returns the schedule."""
    assert flags.noise_schedule is not None
    try:
        return Tabulated(BETAS[flags.noise_schedule](flags.diffusion_steps))
    except UsageError as error:
        given = f"noise_schedule={flags.noise_schedule!r}, diffusion_steps={flags.diffusion_steps}"
        raise UsageError(f"{source}: {given}: {error}") from error


def assumed(network: UNet | Encoder, flags: Flags, name: str) -> tuple[str, ...]:
    """Returns a sentence for each assumption; `name` is the published checkpoint that gives the flags, or ""."""
    channels, further, learned = network.shape[0], getattr(network, "image", 0), getattr(network, "outputs", 2) == 2
    heads = flags.num_heads if isinstance(network, UNet) else None
    sentences = [
        (name, f"settings without a flag are those of the published checkpoint {name}, recognized by the file name"),
        (
            further not in (0, channels),
            f"the first {channels} input channels are the noisy image's, the other {further} a condition image's",
        ),
        (heads and not name, f"attention on the way up has {heads} heads, as on the way down (num_heads_upsample -1)"),
        (
            not learned,
            "the code length uses the variance beta_t (sigma_small False); samples of DDIM do not depend on it",
        ),
    ]
    return tuple(sentence for holds, sentence in sentences if holds)


@dataclass(frozen=True)
class Structure:
    """The structure that the input blocks determine.

    Attributes:
        width: model channels.
        multipliers: channel multiplier of each resolution.
        blocks: residual blocks per resolution.
        attention: down-sampling factors with attention.
        variant: of the U-Net, except for its heads.
    """

    width: int
    multipliers: tuple[float, ...]
    blocks: int
    attention: tuple[int, ...]
    variant: UNetVariant


def structure(state: Mapping[str, Tensor], source: str, resolutions: int | None) -> Structure:
    """Reads the structure of the input blocks; `resolutions` is their number where the output blocks determine it."""
    width, entries, *_ = sizes_of(state, source)
    stem = len(tensor(state, STEM, 4, source))
    ends = [f"input_blocks.{n}.0.out_layers.3.bias" for n in range(entries)]
    channels = [len(tensor(state, k, 1, source)) if k in state else None for k in ends]
    attended = [f"input_blocks.{n}.1.qkv.weight" in state for n in range(entries)]
    structures = []
    for count_ in range(1, entries + 1) if resolutions is None else (resolutions,):
        if entries % count_:
            continue
        each = entries // count_  # the stem or a resizing layer, and the blocks
        groups = [range(n * each + 1, (n + 1) * each) for n in range(count_)]
        resizing = [n * each for n in range(1, count_)]
        even = all(len({(channels[n], attended[n]) for n in group}) == 1 for group in groups)
        if (
            even
            and not any(attended[n] for n in resizing)
            and all(channels[n] in (None, channels[n - 1]) for n in resizing)
        ):
            structures.append(
                (each - 1, [ends[group[0]] for group in groups], [attended[group[0]] for group in groups])
            )
    if len(structures) != 1:
        raise UsageError(
            f"{source}: {len(structures)} networks have input blocks like these: give a file of one of the "
            "original architectures"
        )
    blocks, biases, attention = structures[0]
    wide = [len(tensor(state, name, 1, source)) for name in biases]
    adaptive = len(tensor(state, "input_blocks.1.0.emb_layers.1.bias", 1, source)) == 2 * wide[0]
    resize = Strided() if any(f"input_blocks.{n}.0.op.weight" in state for n in range(entries)) else Resampled()
    variant = replace(ADM, adaptive=adaptive, resize=resize, wide_stem=stem == wide[0])
    factors = tuple(2**n for n, attends in enumerate(attention) if attends)
    return Structure(width, tuple(w / width for w in wide), blocks, factors, variant)


def refuse_uneven(read: Structure, flags: Flags, source: str) -> None:
    """Raises `UsageError` for heads that do not divide the channels of an attention layer, and for uneven sizes.

    The lowest resolution always has attention. The image size must be divisible by 2 at each resolution but the last.
    """
    last = len(read.multipliers) - 1
    wide = [round(read.width * m) for n, m in enumerate(read.multipliers) if n == last or 2**n in read.attention]
    for name in ("num_heads", "num_head_channels"):
        value = getattr(flags, name)
        if value is not None and (uneven := [c for c in wide if c % value]):
            raise UsageError(
                f"{source}: {name}={value} does not divide the {uneven[0]} channels of a layer: "
                "give the value of training"
            )
    if flags.image_size is not None and flags.image_size % 2**last:
        raise UsageError(
            f"{source}: image_size={flags.image_size} cannot be halved {last} times: give a multiple of {2**last}"
        )


def unet(state: Mapping[str, Tensor], source: str, flags: Flags, channels: int, learned: bool) -> UNet:
    """Builds the U-Net of these shapes, for images of this many channels."""
    assert flags.image_size is not None
    entries = count(state, "output_blocks.{}.0.in_layers.0.weight")
    grows = sum(
        any(f"output_blocks.{n}.{i}.{k}" in state for i in (1, 2) for k in ("conv.weight", "in_layers.0.weight"))
        for n in range(entries)
    )
    read = structure(state, source, grows + 1)
    refuse_uneven(read, flags, source)
    return UNet(
        (channels, flags.image_size, flags.image_size),
        read.width,
        read.multipliers,
        read.blocks,
        read.attention,
        heads=flags.num_heads or 1,
        classes=len(tensor(state, "label_emb.weight", 2, source)) if "label_emb.weight" in state else None,
        outputs=1 + learned,
        image=state[STEM].shape[1] - channels,
        variant=replace(read.variant, head_width=flags.num_head_channels),
        null_label=False,
    )


def classifier(state: Mapping[str, Tensor], source: str, flags: Flags) -> Encoder:
    """Builds the classifier of these shapes; the number of positions that it pools determines the image size."""
    read = structure(state, source, None)
    refuse_uneven(read, flags, source)
    positions = tensor(state, POOL, 2, source).shape[1] - 1  # the mean has a position too
    size = math.isqrt(positions) * 2 ** (len(read.multipliers) - 1)
    if flags.image_size not in (None, size):
        raise UsageError(
            f"{source}: image_size={flags.image_size}, but {POOL} has {positions} positions, as for image_size={size}: "
            "leave image_size out"
        )
    return Encoder(
        (tensor(state, STEM, 4, source).shape[1], size, size),
        len(tensor(state, "out.2.c_proj.bias", 1, source)),
        read.width,
        read.multipliers,
        read.blocks,
        read.attention,
        heads=flags.num_heads or 1,
        variant=replace(read.variant, head_width=flags.num_head_channels),
        positional=True,
    )


def names(network: UNet | Encoder, state: Mapping[str, Tensor], order: Any) -> Names:
    """Returns the name in the file of each of the network's tensors; `order` reorders q, k, v and heads."""
    names: Names = renamed("", "", ENDS)
    if isinstance(network, UNet):
        names |= renamed("", "", {"head.0": "out.0", "head.2": "out.2"})
        if network.label is not None:
            names["label.table.weight"] = "label_emb.weight"
    each = network.blocks + 1
    for layer in layers(network):
        part, resolution, index, role = layer.place
        position = int(role == "attention")
        if part == "middle":
            theirs = f"middle_block.{index}"
        elif part == "down":
            theirs = f"input_blocks.{resolution * each + index + 1}.{position}"
        else:
            number = (len(network.multipliers) - 1 - resolution) * each + index
            if role == "grow":  # after the last block of the resolution, and its attention
                number, position = number - 1, 1 + (2**resolution in network.attention)
            theirs = f"output_blocks.{number}.{position}"
        names |= _names(layer, theirs, order)
    return names


def _names(layer: Layer, theirs: str, order: Any) -> Names:
    if layer.place.role == "attention":
        return attention_names(layer, theirs, ATTENTION, order)
    if hasattr(layer.module, "conv1"):
        return block_names(layer, theirs, BLOCK)
    return renamed(layer.name, theirs, {"conv": "op" if layer.place.role == "shrink" else "conv"})


def pool_names() -> Names:
    """Returns the names of the classifier's pooling, whose heads are split after q, k and v in all checkpoints."""
    names: Names = renamed("pool", "out", {"norm": "0"})
    names["pool.positions"] = "out.2.positional_embedding"
    for ours, theirs in (("qkv", "qkv_proj"), ("out", "c_proj")):
        names |= {
            f"pool.{ours}.weight": Converted((f"out.2.{theirs}.weight",), lambda w: w.flatten(1)),
            f"pool.{ours}.bias": f"out.2.{theirs}.bias",
        }
    return names
