"""The layers of our U-Nets one by one, so that an importer says what each is called elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...shared.networks import Encoder, UNet
from ...shared.networks.blocks import ResidualBlock, SelfAttention
from .weights import Made, Names, renamed


class Place(NamedTuple):
    """Where a layer is.

    Attributes:
        part: "down", "middle" or "up".
        level: resolution, 0 the full one.
        index: number of the stage in its resolution, or in the middle; for what resizes or joins, the number of stages.
        role: "block", "attention", "shrink", "enter", "leave" or "grow".
    """

    part: str
    level: int
    index: int
    role: str


class Layer(NamedTuple):
    """A layer: its name in the network, where it is, and itself."""

    name: str
    place: Place
    module: nn.Module


def layers(network: UNet | Encoder) -> Iterator[Layer]:
    """The residual blocks, attention layers and resizing layers, in the order in which a signal meets them."""
    for level, parts in enumerate(network.down):
        yield from _level(parts, f"down.{level}", "down", level)
    for index, module in enumerate(network.middle):
        yield Layer(f"middle.{index}", Place("middle", len(network.down) - 1, index, _role(module)), module)
    for number, parts in enumerate(getattr(network, "up", ())):
        yield from _level(parts, f"up.{number}", "up", len(network.up) - 1 - number)


def _level(parts: nn.ModuleDict, name: str, part: str, level: int) -> Iterator[Layer]:
    for index, stage in enumerate(parts["stages"]):
        for number, module in enumerate(stage):
            yield Layer(f"{name}.stages.{index}.{number}", Place(part, level, index, _role(module)), module)
    for role in ("shrink", "enter", "leave", "grow"):
        if role in parts:
            yield Layer(f"{name}.{role}", Place(part, level, len(parts["stages"]), role), parts[role])


def _role(module: nn.Module) -> str:
    return "attention" if isinstance(module, SelfAttention) else "block"


def block_names(layer: Layer, theirs: str, parts: Mapping[str, str]) -> Names:
    """Names of a residual block: `parts` maps norm1, conv1, modulation, norm2, conv2 and skip.

    A block without skip weights has none.
    """
    has_skip = isinstance(layer.module, ResidualBlock) and not isinstance(layer.module.skip, nn.Identity)
    return renamed(layer.name, theirs, {k: v for k, v in parts.items() if k != "skip" or has_skip})


def attention_names(
    layer: Layer, theirs: str, parts: Mapping[str, str], order: Callable[[Tensor, int], Tensor]
) -> Names:
    """Names of an attention layer with one tensor for queries, keys and values.

    Args:
        layer: ours.
        theirs: their prefix.
        parts: norm, qkv and out.
        order: brings the outputs of their qkv, and the number of heads, into our order: q, k, v, then heads, then
            channels.
    """
    names, heads = renamed(layer.name, theirs, {"norm": parts["norm"]}), layer.module.heads
    for tensor in ("weight", "bias"):
        names[f"{layer.name}.qkv.{tensor}"] = Made(
            (f"{theirs}.{parts['qkv']}.{tensor}",), lambda w: as_conv1d(order(w, heads))
        )
        names[f"{layer.name}.out.{tensor}"] = Made((f"{theirs}.{parts['out']}.{tensor}",), as_conv1d)
    return names


def as_conv1d(w: Tensor) -> Tensor:
    """The weight of a linear layer or of a convolution one wide, `(out, in, ...)`, as that of ours, `(out, in, 1)`.

    Biases as they are.
    """
    return w if w.ndim == 1 else w.flatten(1)[..., None]


def qkv_first(w: Tensor, heads: int) -> Tensor:
    """Outputs in the order q, k, v, then heads, then channels: ours already."""
    return w


def heads_first(w: Tensor, heads: int) -> Tensor:
    """Outputs in the order heads, then q, k, v, then channels, as Nichol & Dhariwal (2021) have them, in ours."""
    return w.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def channels_first(w: Tensor, heads: int) -> Tensor:
    """Outputs in the order heads, then channels, then q, k, v, as Karras et al. (2022) have them, in ours."""
    return w.unflatten(0, (heads, -1, 3)).permute(2, 0, 1, *range(3, w.ndim + 2)).flatten(0, 2)


def separate(layer: Layer, q: tuple[str, str], k: tuple[str, str], v: tuple[str, str], flip: bool = False) -> Names:
    """Names of our qkv for separate layers, each given as its names of weight and bias.

    `flip` for weights `(in, out)`.
    """
    names: Names = {}
    for tensor, theirs in zip(("weight", "bias"), zip(q, k, v, strict=True), strict=True):
        names[f"{layer.name}.qkv.{tensor}"] = Made(
            theirs, lambda *ws: as_conv1d(torch.cat([w.T if flip and w.ndim == 2 else w for w in ws]))
        )
    return names
