"""The flat list of layers of Song et al.'s (2021) networks: their structure, and the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...shared.errors import UsageError
from ...shared.networks import UNet
from ...shared.networks.blocks import ResidualBlock
from ...shared.networks.embeddings import SINES, Fourier
from ...shared.networks.progressive import InputResidual, InputSkip, OutputSkip
from ...shared.networks.resampling import MEAN, SMOOTH
from ...shared.networks.unet_variants import DDPMPP, HALF, SONG_DDPM, Resampled, Strided, UNetVariant
from .settings import Settings
from .unets import Layer, block_names, layers, separate
from .weights import Converted, Names, listed, renamed, tensor

LIST = "all_modules."
BLOCK = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "modulation": "Dense_0", "norm2": "GroupNorm_1", "conv2": "Conv_1"}


@dataclass(frozen=True)
class Structure:
    """The structure that the sequence of layers determines.

    Attributes:
        channels: image channels.
        width: channels at full resolution.
        multipliers: channel multiplier of each resolution.
        blocks: residual blocks per resolution.
        attention: down-sampling factors with attention.
        fourier: whether the time features are Fourier features.
        variant: of the U-Net.
    """

    channels: int
    width: int
    multipliers: tuple[float, ...]
    blocks: int
    attention: tuple[int, ...]
    fourier: bool
    variant: UNetVariant


def structure(state: Mapping[str, Any], source: str, settings: Settings) -> Structure:
    """Reads the structure from the list of layers."""
    tensors = listing(state)
    numbers = sorted(tensors)
    modules = [tensors[n] for n in numbers]
    kinds = [kind(module) for module in modules]
    if unknown := [
        f"all_modules.{n} with {', '.join(tensors[n])}" for n, k in zip(numbers, kinds, strict=True) if k == "unknown"
    ]:
        raise UsageError(
            f"{source}: {len(unknown)} layers are unknown or incomplete ({listed(unknown)}): give the complete file"
        )
    fourier = kinds[0] == "fourier"
    at = 3 + fourier  # after the two layers of the time embedding, and the stem
    if kinds[fourier:at] != ["linear", "linear", "conv"]:
        raise UsageError(
            f"{source} must start with a time embedding and a convolution, not with {', '.join(kinds[:at])}: "
            "give the complete file"
        )
    width, channels = tensor(state, f"{LIST}{numbers[at - 1]}.weight", 4, source).shape[:2]

    blocks = [n for n, k in enumerate(kinds) if k in ("block", "resizing")]
    first = next((n for n, k in enumerate(kinds) if k in ("resizing", "strided")), None)
    each = (
        (len(blocks) - 3) // 2 if first is None else sum(n < first for n in blocks)
    )  # one resolution: down, two in the middle, up
    wide, attention, enters = [], [], None
    while True:
        if kinds[at : at + 1] != ["block"]:
            raise UsageError(
                f"{source}: all_modules.{at} must be the first residual block of a resolution: give the complete file"
            )
        resolution = len(wide)
        wide.append(len(tensor(state, f"{LIST}{numbers[at]}.Conv_0.weight", 4, source)))
        if kinds[at + 1 : at + 2] == ["attention"]:
            attention.append(2**resolution)
        at += each * (1 + (2**resolution in attention))
        if kinds[at : at + 1] not in (["resizing"], ["strided"]):
            break
        at += 1
        if kinds[at : at + 1] in (["residual"], ["skip"]):
            enters, at = kinds[at], at + 1
    if "residual" in kinds[at:]:
        raise UsageError(
            f"{source} has a residual output (progressive=residual), which no published network has and which is not "
            "supported"
        )
    variant = variant_of(kinds, modules, enters, leaves="norm" in kinds[at:-2], settings=settings)
    multipliers = tuple(w // width if w % width == 0 else w / width for w in wide)
    return Structure(channels, width, multipliers, each, tuple(attention), fourier, variant)


def listing(state: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Returns the tensors of each layer, by its number in the list."""
    tensors: dict[int, dict[str, Any]] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"all_modules\.(\d{1,4})\.(.+)", name):
            tensors.setdefault(int(match[1]), {})[match[2]] = value
    return tensors


def kind(module: Mapping[str, Any]) -> str:
    """Returns the kind of a layer, from the names and shapes of its tensors."""
    if "W" in module:
        return "fourier"
    conv = shape(module, "Conv_0.weight")
    if "Conv_0.weight" in module and module.keys() & {"Dense_0.weight", "GroupNorm_1.weight", "Conv_1.weight"}:
        if len(conv) != 4:
            return "unknown"
        return "resizing" if "Conv_2.weight" in module and conv[0] == conv[1] else "block"
    if module.keys() & {"NIN_1.W", "NIN_2.W", "NIN_3.W"}:
        return "attention"
    if "Conv2d_0.weight" in module:
        return "residual"
    if "Conv_0.weight" in module:
        return "skip" if conv[-1:] == (1,) else "strided"
    return {4: "conv", 2: "linear", 1: "norm"}.get(len(shape(module, "weight")), "unknown")


def shape(module: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Returns the shape of the tensor of that name; an empty tuple if the module has no such tensor."""
    return tuple(getattr(module.get(name), "shape", ()))


def model_of(state: Mapping[str, Any]) -> str:
    """Returns "ddpm" for strided layers, "ncsnpp" where the image is fed to each resolution, else "ddpmpp"."""
    kinds = {kind(module) for module in listing(state).values()}
    return "ddpm" if "strided" in kinds else "ncsnpp" if kinds & {"residual", "skip"} else "ddpmpp"


def variant_of(
    kinds: list[str], modules: list[dict[str, Any]], enters: str | None, leaves: bool, settings: Settings
) -> UNetVariant:
    """Returns the variant of U-Net with these layers."""
    time = Fourier() if kinds[0] == "fourier" else SINES
    if not settings.is_published:
        settings.note("nonlinearity='swish': the weights do not determine it, and no other is supported")
    if "strided" in kinds or any("Dense_0.weight" in module and "NIN_0.W" in module for module in modules):
        settings.refuse_unused("its resolutions change by strided layers", "fir")
        # NCSN++ with resblock_type 'ddpm' has the same tensors, and skip_rescale is an option of NCSN++ alone.
        rescaled = settings.assume(
            "skip_rescale", False, "a network with strided layers is taken for Song et al.'s DDPM, not for an NCSN++"
        )
        return replace(SONG_DDPM, time=time, norm=DDPMPP.norm, gain=HALF) if rescaled else replace(SONG_DDPM, time=time)
    if enters == "residual":  # this layer exists only with filters
        settings.add_from_file("fir", True)
    gain = HALF if settings.assume("skip_rescale", True, "as in all published NCSN++ and DDPM++") else 1.0
    fir = settings.assume("fir", enters is not None, "as in all published networks with these layers on the way down")
    taps = SMOOTH if fir else MEAN
    if taps == SMOOTH and not settings.is_published:
        settings.note(
            "the filter is (1, 3, 3, 1), the fir_kernel of all published networks: the weights do not determine it, "
            "and no other is supported"
        )
    entering = {"skip": InputSkip(taps), "residual": InputResidual(taps), None: None}[enters]
    resize = Resampled(taps, project=True)
    return replace(
        DDPMPP,
        time=time,
        resize=resize,
        gain=gain,
        progressive_input=entering,
        progressive_output=OutputSkip(taps) if leaves else None,
    )


def names(network: UNet, fourier: bool) -> Names:
    """Returns the name in the file of each of the network's tensors, by counting along the list of layers."""
    names: Names = {"time.encode.frequencies": f"{LIST}0.W"} if fourier else {}
    for ours in ("time.mlp.0", "time.mlp.2", "stem"):
        names |= renamed("", "", {ours: f"{LIST}{len(names) // 2 + fourier}"})
    number = 3 + fourier
    for layer in layers(network):
        names |= layer_names(layer, number, skip="NIN_0" if isinstance(network.variant.resize, Strided) else "Conv_2")
        number += 2 if layer.place.role == "leave" else 1
    return names | renamed("head", "", {"0": f"{LIST}{number}", "2": f"{LIST}{number + 1}"})


def layer_names(layer: Layer, number: int, skip: str) -> Names:
    """Returns the names of one layer's tensors, which is `number` in the list.

    An output on the way up is two layers of the list, a norm and a convolution.
    """
    theirs, role, module = f"{LIST}{number}", layer.place.role, layer.module
    if role == "attention":
        of = [(f"{theirs}.NIN_{n}.W", f"{theirs}.NIN_{n}.b") for n in range(4)]
        names = renamed(layer.name, theirs, {"norm": "GroupNorm_0"}) | separate(layer, *of[:3], flip=True)
        return names | nin(f"{layer.name}.out", f"{theirs}.NIN_3", 1)
    if isinstance(module, ResidualBlock):
        names = block_names(layer, theirs, BLOCK | {"skip": skip})
        if skip == "NIN_0" and f"{layer.name}.skip.weight" in names:
            names |= nin(f"{layer.name}.skip", f"{theirs}.{skip}", 2)
        return names
    if role == "enter":
        residual = hasattr(module, "shrink")
        return renamed(layer.name, theirs, {"shrink.conv": "Conv2d_0"} if residual else {"conv": "Conv_0"})
    if role == "leave":
        return renamed(f"{layer.name}.head", "", {"0": theirs, "2": f"{LIST}{number + 1}"})
    return renamed(layer.name, theirs, {"conv": "Conv_0"})


def nin(ours: str, theirs: str, dims: int) -> Names:
    """Returns the names of a convolution of kernel size 1 over `dims` dimensions, where the file has a matrix."""
    return {
        f"{ours}.weight": Converted((f"{theirs}.W",), lambda w: w.transpose(0, 1)[(..., *[None] * dims)]),
        f"{ours}.bias": f"{theirs}.b",
    }
