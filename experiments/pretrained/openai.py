"""Checkpoints of improved-diffusion (Nichol & Dhariwal 2021) and guided-diffusion (Dhariwal & Nichol 2021): state dicts
without any flags.

What shapes and names tell is read from them: docs/importing.md lists it. Heads, the order in which heads and q, k, v
are split, the schedule, the prediction, and for some numbers of channels the learned variance cannot be told: they are
known for the released files, by name, and asked for elsewhere.
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
from .openai_flags import BETAS, BODIES, EXAMPLE, Body, Flags, known, released
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
STEM = "input_blocks.0.0.weight"
POOL = "out.2.positional_embedding"
"""Of classifiers alone."""


def looks_like(contents: Any) -> bool:
    """Whether this is a state dict of either project."""
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
    """The denoiser of a model, or the `NoisyClassifier` of a classifier; `.assumed` is what nothing told, a sentence
    each.

    Args:
        contents: the state dict.
        source: the file; its name tells the flags of the released ones.
        image_size: pixels; a classifier's file tells them.
        num_heads, num_head_channels: attention heads, or channels of each.
        use_new_attention_order: whether q, k, v are split before the heads; not for classifiers, which split the heads
            first.
        noise_schedule: "linear" or "cosine".
        diffusion_steps: T.
        rescale_timesteps: whether the network is fed `t 1000 / T`.
        predict_xstart: whether it gives x_0, and not the noise; not for classifiers.
        learn_sigma: whether half of the channels out are a variance; asked for where the numbers of channels in and out
            can be read in two ways. Not for classifiers.

    Raises:
        UsageError: for a flag that neither the file, its name nor the caller tells, that no network can have or the
            file contradicts, and for weights that do not fit.
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
    judges = POOL in contents
    fit = {} if judges else readings(contents, given, source)
    if len(fit) == 1:  # so that a name which says otherwise is not the file's
        given = replace(given, learn_sigma=next(iter(fit)))
    held = body(contents, source)
    flags = settled(given, source, judges, ambiguous=len(fit) > 1, held=held)
    order = qkv_first if flags.use_new_attention_order else heads_first
    schedule = table(flags, source)
    label = thousandth_index if flags.rescale_timesteps else step_index
    network: UNet | Encoder
    if judges:
        network = classifier(contents, source, flags)
        fill(network, names(network, contents, order) | pool_names(), contents, source)
        made = NoisyClassifier(network, schedule, label)
    else:
        network = unet(contents, source, flags, fit[flags.learn_sigma], flags.learn_sigma)
        fill(network, names(network, contents, order), contents, source)
        made = Learned(network, schedule, clean if flags.predict_xstart else noise, label)
    name = released(source) if known(source, vars(given), held) else ""
    made.quantization, made.shape, made.assumed = Quantization(), network.shape, assumed(network, flags, name)
    return made


def body(state: Mapping[str, Tensor], source: str) -> Body:
    """What tells a released file from another of its name."""
    judges, entries = POOL in state, 1  # the stem
    while any(f"input_blocks.{entries}.0.{part}.weight" in state for part in ("in_layers.0", "op")):
        entries += 1
    labels = "out.2.c_proj.bias" if judges else "label_emb.weight"
    classes = len(tensor(state, labels, 2 - judges, source)) if labels in state else None
    width, entering = tensor(state, "time_embed.0.weight", 2, source).shape[1], tensor(state, STEM, 4, source).shape[1]
    return Body(width, entries, classes, entering, None if judges else len(tensor(state, "out.2.bias", 1, source)))


def settled(given: Flags, source: str, classifier: bool, *, ambiguous: bool = False, held: Body | None = None) -> Flags:
    """The flags that were given, those of the released file of this name for the rest, and an error for what is still
    open.
    """
    usual = Flags(use_new_attention_order=False, predict_xstart=False, learn_sigma=False) if classifier else Flags()
    told = {k: v for k, v in vars(given).items() if v is not None}
    flags = replace(known(source, told, held) or usual, **told)
    if classifier and flags.use_new_attention_order:
        raise UsageError(
            f"{source}: classifiers split the heads before q, k, v: leave use_new_attention_order=True out"
        )
    if classifier and (name := next((k for k in ("predict_xstart", "learn_sigma") if getattr(flags, k)), None)):
        raise UsageError(f"{source}: a classifier gives log p(label) and no image: leave {name}=True out")
    heads = flags.num_heads is None and flags.num_head_channels is None
    needless = (
        {"num_head_channels"} | ({"image_size"} if classifier else set()) | (set() if ambiguous else {"learn_sigma"})
    )
    open_flags = [k for k, v in vars(flags).items() if (heads if k == "num_heads" else v is None and k not in needless)]
    if open_flags:
        missing = ", ".join(k if k != "num_heads" else "num_heads (or num_head_channels)" for k in open_flags)
        name = released(source)
        why = f"the released {name} had other flags than are given" if name else "the name is not a released one"
        why = f"the released {name} is another network" if name and held not in (None, BODIES[name]) else why
        raise UsageError(
            f"{source}: the weights of this format do not tell {missing}, and {why}: give "
            f"what it was in training, such as {', '.join(f'{k}={EXAMPLE[k]!r}' for k in open_flags)}"
        )
    return flags


def readings(state: Mapping[str, Tensor], given: Flags, source: str) -> dict[bool, int]:
    """Channels of the images without and with a learned variance: those with which as many go in and come out as here.

    A network gives the channels of the images, or twice as many where it learns a variance, and takes those of the
    images and of a condition image, such as an upsampler's.

    Raises:
        UsageError: for a file without a way up, for numbers that no network has, or none with the given `learn_sigma`.
    """
    if not count(state, "output_blocks.{}.0.in_layers.0.weight"):
        raise UsageError(
            f"{source} has neither output_blocks.0.0.in_layers.0.weight, as a denoiser, nor {POOL}, as the released "
            "classifiers: those of another classifier_pool than attention are not read"
        )
    entering, leaving = tensor(state, STEM, 4, source).shape[1], len(tensor(state, "out.2.bias", 1, source))
    found = {learned: leaving // (1 + learned) for learned in (False, True) if leaving % (1 + learned) == 0}
    fit = {k: c for k, c in found.items() if c <= entering and given.learn_sigma in (None, k)}
    if not fit:
        said = "" if given.learn_sigma is None else f"learn_sigma={given.learn_sigma} does not fit: "
        raise UsageError(
            f"{source}: {said}{entering} channels go in ({STEM}) and {leaving} come out (out.2.bias); a network gives as many "
            "channels as its images have, or twice as many with learn_sigma=True, and takes as many, or more with a condition image"
        )
    return fit


def table(flags: Flags, source: str) -> Tabulated:
    """The schedule's table."""
    try:
        return Tabulated(BETAS[flags.noise_schedule](flags.diffusion_steps))
    except UsageError as error:
        given = f"noise_schedule={flags.noise_schedule!r}, diffusion_steps={flags.diffusion_steps}"
        raise UsageError(f"{source}: {given}: {error}") from error


def assumed(network: UNet | Encoder, flags: Flags, name: str) -> tuple[str, ...]:
    """What neither a file, nor its name, nor a flag tells."""
    channels, further, learned = network.shape[0], getattr(network, "image", 0), getattr(network, "outputs", 2) == 2
    heads = flags.num_heads if isinstance(network, UNet) else None
    said = [
        (name, f"what nothing else tells is that of the released {name}, by the name"),
        (
            further not in (0, channels),
            f"the first {channels} channels in are the noisy image's, {further} a condition image's",
        ),
        (heads and not name, f"attention on the way up has {heads} heads, as on the way down (num_heads_upsample -1)"),
        (not learned, "the code length takes the variance beta_t (sigma_small False); DDIM's samples need none"),
    ]
    return tuple(sentence for holds, sentence in said if holds)


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
    style: UNetVariant


def structure(state: Mapping[str, Tensor], source: str, levels: int | None) -> Structure:
    """Reads the way down; `levels` is the number of resolutions where the way up tells it."""
    width, entries, *_ = body(state, source)
    stem = len(tensor(state, STEM, 4, source))
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
        if (
            even
            and not any(attended[n] for n in resizing)
            and all(channels[n] in (None, channels[n - 1]) for n in resizing)
        ):
            found.append((each - 1, [ends[group[0]] for group in groups], [attended[group[0]] for group in groups]))
    if len(found) != 1:
        raise UsageError(
            f"{source}: {len(found)} networks have input blocks like these: the file is not one of the released architectures"
        )
    blocks, biases, attention = found[0]
    wide = [len(tensor(state, name, 1, source)) for name in biases]
    adaptive = len(tensor(state, "input_blocks.1.0.emb_layers.1.bias", 1, source)) == 2 * wide[0]
    resize = Strided() if any(f"input_blocks.{n}.0.op.weight" in state for n in range(entries)) else Resampled()
    style = replace(ADM, adaptive=adaptive, resize=resize, wide_stem=stem == wide[0])
    factors = tuple(2**n for n, attends in enumerate(attention) if attends)
    return Structure(width, tuple(w / width for w in wide), blocks, factors, style)


def refuse_uneven(read: Structure, flags: Flags, source: str) -> None:
    """Raises `UsageError` for heads that do not divide the channels of a resolution with attention, and for uneven
    sizes.

    The lowest resolution always has attention. A size must halve evenly.
    """
    last = len(read.multipliers) - 1
    wide = [round(read.width * m) for n, m in enumerate(read.multipliers) if n == last or 2**n in read.attention]
    for name in ("num_heads", "num_head_channels"):
        value = getattr(flags, name)
        if value is not None and (uneven := [c for c in wide if c % value]):
            raise UsageError(
                f"{source}: {name}={value} does not divide the {uneven[0]} channels of a layer: give it as it was in training"
            )
    if flags.image_size is not None and flags.image_size % 2**last:
        raise UsageError(
            f"{source}: image_size={flags.image_size} does not halve evenly {last} times: give a multiple of {2**last}"
        )


def unet(state: Mapping[str, Tensor], source: str, flags: Flags, channels: int, learned: bool) -> UNet:
    """The U-Net of these shapes, for images of so many channels."""
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
        variant=replace(read.style, head_width=flags.num_head_channels),
        null_label=False,
    )


def classifier(state: Mapping[str, Tensor], source: str, flags: Flags) -> Encoder:
    """The classifier of these shapes; the positions that it pools tell the size of its images."""
    read = structure(state, source, None)
    refuse_uneven(read, flags, source)
    positions = tensor(state, POOL, 2, source).shape[1] - 1  # the mean is one more
    size = math.isqrt(positions) * 2 ** (len(read.multipliers) - 1)
    if flags.image_size not in (None, size):
        raise UsageError(
            f"{source}: image_size={flags.image_size}, and {POOL} has {positions} positions, those of {size}: leave image_size out"
        )
    return Encoder(
        (tensor(state, STEM, 4, source).shape[1], size, size),
        len(tensor(state, "out.2.c_proj.bias", 1, source)),
        read.width,
        read.multipliers,
        read.blocks,
        read.attention,
        heads=flags.num_heads or 1,
        variant=replace(read.style, head_width=flags.num_head_channels),
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
