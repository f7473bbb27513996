"""Checkpoints of ermongroup/ddim and of pesser/pytorch_diffusion, who ported Ho et al.'s (2020) own weights to its layout."""

from __future__ import annotations

from typing import Any

from ...continuous import Learned, Tabulated, linear_betas
from ...shared.errors import UsageError
from ...shared.labels import step_index
from ...shared.networks import UNet
from ...shared.networks.style import DDPM
from ...shared.scale import Scale
from .unets import Layer, block_names, layers, separate
from .weights import Made, Names, count, fill, listed, renamed, stripped, tensor

PREFIX, LANDMARK = "module.", "temb.dense.0.weight"
STEPS = 1000
RELEASED = {(1, 2, 2, 2): 32, (1, 2, 2, 2, 4): 64, (1, 1, 2, 2, 4, 4): 256}
"""Pixels across, by the multipliers: CIFAR-10, CelebA, LSUN and CelebA-HQ."""
BLOCK = {"norm1": "norm1", "conv1": "conv1", "modulation": "temb_proj", "norm2": "norm2", "conv2": "conv2", "skip": "nin_shortcut"}
ENDS = {"time.mlp.0": "temb.dense.0", "time.mlp.2": "temb.dense.1", "stem": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}


def looks_like(contents: Any) -> bool:
    """Whether these are the weights of such a model, plain or in the list that its training writes."""
    return any(LANDMARK in state for state in _parts(contents) if state is not None)


def denoiser(contents: Any, source: str, *, image_size: int | None = None) -> Learned:
    """The DDPM on 1000 linear steps, with the averaged weights where the file has them: the fifth entry of the list.

    Args:
        contents: a state dict, or `[model, optimizer, epoch, step, ema]`, or the same without `ema`.
        source: the file, for errors.
        image_size: pixels across; None for those of the released networks, which their sizes tell.

    Raises:
        UsageError: for another network's file, weights that do not fit, and without a size for a network that is none of the released ones.
    """
    if image_size is not None and image_size < 1:
        raise UsageError(f"image_size={image_size}: give the height and width of the images in pixels, such as 32")
    model, average = _parts(contents)
    state = model if average is None else average
    if not looks_like(contents):
        raise UsageError(f"{source} does not hold a DDPM of this format: its names are {listed(sorted(state)) or 'none'}")
    width, channels = tensor(state, "conv_in.weight", 4, source).shape[:2]
    levels, blocks = count(state, "down.{}.block.0.norm1.weight"), count(state, "down.0.block.{}.norm1.weight")
    wide = [len(tensor(state, f"down.{n}.block.0.conv1.bias", 1, source)) for n in range(levels)]
    if not wide:
        raise UsageError(f"{source}: down.0.block.0.norm1.weight is missing, and sizes are read from it: give a whole file")
    attention = tuple(2**n for n in range(levels) if f"down.{n}.attn.0.norm.weight" in state)
    size = image_size or (RELEASED.get(tuple(w // width for w in wide)) if width == 128 and blocks == 2 else None)
    if size is None:
        raise UsageError(f"{source}: the weights do not tell the size of the images: give it, such as image_size=32")
    network = UNet((channels, size, size), width, [w / width for w in wide], blocks, attention, dropout=0.1, style=DDPM)
    fill(network, names(network), state, source)
    learned = Learned(network, Tabulated(linear_betas(STEPS)), label=step_index)
    learned.scale, learned.shape = Scale(), network.shape
    return learned


def names(network: UNet) -> Names:
    """Ours to theirs."""
    found: Names = renamed("", "", ENDS)
    for layer in layers(network):
        found |= _names(layer)
    return found


def _names(layer: Layer) -> Names:
    part, level, index, role = layer.place
    if part == "middle":
        theirs = ("mid.block_1", "mid.attn_1", "mid.block_2")[index]
    else:
        theirs = f"{part}.{level}." + {"block": f"block.{index}", "attention": f"attn.{index}"}.get(role, f"{part}sample")
    if role == "block":
        return block_names(layer, theirs, BLOCK)
    if role == "attention":
        q, k, v = ((f"{theirs}.{n}.weight", f"{theirs}.{n}.bias") for n in "qkv")
        out = renamed(f"{layer.name}.out", f"{theirs}.proj_out", {"": ""})
        out[f"{layer.name}.out.weight"] = Made((f"{theirs}.proj_out.weight",), lambda w: w.flatten(2))
        return renamed(layer.name, theirs, {"norm": "norm"}) | separate(layer, q, k, v) | out
    return renamed(layer.name, theirs, {"conv": "conv"})


def _parts(contents: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The model and the averaged weights, where the file has any: a list of five keeps them last, one of four keeps none."""
    held = list(contents) if isinstance(contents, list | tuple) else [contents]
    average = stripped(held[4], PREFIX) if len(held) == 5 else None
    return stripped(held[0], PREFIX) if held else {}, average or None
