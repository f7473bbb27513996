"""The layers of this package's U-Nets in order, for importers, which give the name of each in another project."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...shared.networks import Encoder, UNet
from ...shared.networks.blocks import ResidualBlock, SelfAttention
from .weights import Converted, Names, renamed


class Place(NamedTuple):
    """Where a layer is in a U-Net.

    Attributes:
        part: "down", "middle" or "up".
        resolution: index of the resolution, 0 for full resolution.
        index: index of the stage in its resolution or in the middle; for layers that resize or join, the number of
            stages.
        role: "block", "attention", "shrink", "enter", "leave" or "grow".
    """

    part: str
    resolution: int
    index: int
    role: str


class Layer(NamedTuple):
    """A layer: its name in the network, its place, and the module."""

    name: str
    place: Place
    module: nn.Module


def layers(network: UNet | Encoder) -> Iterator[Layer]:
    """Yields the residual blocks, attention layers and resizing layers in the order of computation."""
    for resolution, parts in enumerate(network.down):
        yield from _resolution(parts, f"down.{resolution}", "down", resolution)
    for index, module in enumerate(network.middle):
        yield Layer(f"middle.{index}", Place("middle", len(network.down) - 1, index, _role(module)), module)
    if isinstance(network, UNet):
        for number, parts in enumerate(network.up):
            yield from _resolution(parts, f"up.{number}", "up", len(network.up) - 1 - number)


def _resolution(parts: nn.Module, name: str, part: str, resolution: int) -> Iterator[Layer]:
    assert isinstance(parts, nn.ModuleDict)
    stages = parts["stages"]
    assert isinstance(stages, nn.ModuleList)
    for index, stage in enumerate(stages):
        for number, module in enumerate(stage.children()):
            yield Layer(f"{name}.stages.{index}.{number}", Place(part, resolution, index, _role(module)), module)
    for role in ("shrink", "enter", "leave", "grow"):
        if role in parts:
            yield Layer(f"{name}.{role}", Place(part, resolution, len(stages), role), parts[role])


def _role(module: nn.Module) -> str:
    return "attention" if isinstance(module, SelfAttention) else "block"


def block_names(layer: Layer, theirs: str, parts: Mapping[str, str]) -> Names:
    """Returns the names of a residual block's tensors: `parts` maps norm1, conv1, modulation, norm2, conv2 and skip.

    `skip` is left out for a block without skip weights.
    """
    has_skip = isinstance(layer.module, ResidualBlock) and not isinstance(layer.module.skip, nn.Identity)
    return renamed(layer.name, theirs, {k: v for k, v in parts.items() if k != "skip" or has_skip})


def attention_names(
    layer: Layer, theirs: str, parts: Mapping[str, str], order: Callable[[Tensor, int], Tensor]
) -> Names:
    """Returns the names of an attention layer's tensors, where one tensor holds queries, keys and values.

    Args:
        layer: this package's layer.
        theirs: prefix of the other project's names.
        parts: their names of norm, qkv and out.
        order: `(qkv, heads) -> qkv` with the outputs in this package's order: q, k, v, then heads, then channels.
    """
    assert isinstance(layer.module, SelfAttention)
    names, heads = renamed(layer.name, theirs, {"norm": parts["norm"]}), layer.module.heads
    for tensor in ("weight", "bias"):
        names[f"{layer.name}.qkv.{tensor}"] = Converted(
            (f"{theirs}.{parts['qkv']}.{tensor}",), lambda w: as_conv1d(order(w, heads))
        )
        names[f"{layer.name}.out.{tensor}"] = Converted((f"{theirs}.{parts['out']}.{tensor}",), as_conv1d)
    return names


def as_conv1d(w: Tensor) -> Tensor:
    """Returns the weight `(out, in, ...)` of a linear layer or a convolution of kernel size 1 as `(out, in, 1)`.

    Biases are returned as they are.
    """
    return w if w.ndim == 1 else w.flatten(1)[..., None]


def qkv_first(w: Tensor, heads: int) -> Tensor:
    """Returns outputs in the order q, k, v, then heads, then channels, which is this package's, unchanged."""
    return w


def heads_first(w: Tensor, heads: int) -> Tensor:
    """Reorders outputs from heads, then q, k, v, then channels (Nichol & Dhariwal 2021) to this package's order."""
    return w.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def channels_first(w: Tensor, heads: int) -> Tensor:
    """Reorders outputs from heads, then channels, then q, k, v (Karras et al. 2022) to this package's order."""
    return w.unflatten(0, (heads, -1, 3)).permute(2, 0, 1, *range(3, w.ndim + 2)).flatten(0, 2)


def separate(layer: Layer, q: tuple[str, str], k: tuple[str, str], v: tuple[str, str], flip: bool = False) -> Names:
    """Returns the names of an attention layer's qkv, where the other project has three layers.

    Args:
        layer: this package's layer.
        q, k, v: their names of weight and bias.
        flip: whether their weights are `(in, out)`.
    """
    names: Names = {}
    for tensor, theirs in zip(("weight", "bias"), zip(q, k, v, strict=True), strict=True):
        names[f"{layer.name}.qkv.{tensor}"] = Converted(
            theirs, lambda *ws: as_conv1d(torch.cat([w.T if flip and w.ndim == 2 else w for w in ws]))
        )
    return names
