"""Imports networks of Karras et al. (2022) from NVlabs/edm: DDPM++, NCSN++ and ADM under four preconditioners.

A checkpoint is a pickle with `ema`, the averaged network inside of its preconditioner. The names of the tensors contain
the resolutions, and show which blocks have attention.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...continuous import Tabulated, betas_of
from ...sde import EDM, VE, VP, Learned, Preconditioned
from ...shared.errors import UsageError
from ...shared.gaussian.prediction import noise, scaled_score
from ...shared.networks import UNet
from ...shared.networks.embeddings import SINES, Fourier
from ...shared.networks.progressive import InputResidual, InputSkip, OutputSkip
from ...shared.networks.resampling import FIR, MEAN, SMOOTH
from ...shared.networks.unet_variants import DDPMPP, EDM_ADM, Resampled, UNetVariant
from ...shared.quantization import Quantization
from ...shared.time_inputs import LastIndex, log_half_noise_level, nearest_index, quarter_log, song_vp
from .files import state_dict
from .karras_settings import (
    CLASSES,
    HEADS,
    NO_HEADS,
    NO_PRECOND,
    REQUIRED,
    SONG_M,
    TABLE,
    USES,
    pickled_heads,
    settings_of,
    sizes_of,
)
from .pickles import Record
from .settings import Settings, attach
from .unets import attention_names, block_names, channels_first, layers
from .weights import Converted, Names, fill, listed, quoted, refuse_rounded, renamed, stripped, tensor

PREFIX, FILTER = "model.", ".resample_filter"
BLOCK = {"norm1": "norm0", "conv1": "conv0", "modulation": "affine", "norm2": "norm1", "conv2": "conv1", "skip": "skip"}
ATTENTION = {"norm": "norm2", "qkv": "qkv", "out": "proj"}
ENDS = {"time.mlp.0": "map_layer0", "time.mlp.2": "map_layer1"}
LARGEST_TRAINED, SMALLEST_TRAINED = 80.0, 0.002
"""The largest and the smallest noise level of the paper's sampling grid."""


def edm(network: UNet, settings: Settings, table: Tensor | None) -> Learned:
    """Returns the denoiser of the EDM preconditioner.

    `sigma_min` and `sigma_max` of a pickle narrow the paper's range of noise levels, as in its sampler.
    """
    why, examples = REQUIRED["edm"]
    (sigma_data,) = settings.numbers(why, **examples)
    low = settings.assume("sigma_min", 0.0, "no smallest noise level, as by default")
    high = settings.assume("sigma_max", math.inf, "no largest noise level, as by default")
    schedule = EDM(narrowed(low, "sigma_min", settings), narrowed(high, "sigma_max", settings))
    return Learned(network, schedule, Preconditioned(sigma_data), quarter_log)


def vp(network: UNet, settings: Settings, table: Tensor | None) -> Learned:
    """Returns the denoiser of Song et al.'s (2021) VP preconditioner, whose time input is `(M - 1) t`."""
    why, examples = REQUIRED["vp"]
    settings.require(why, **examples)
    (steps,) = settings.counts(why, M=SONG_M)
    slope, low = settings.numbers(why, beta_d=19.9, beta_min=0.1)
    if steps < 2:
        raise UsageError(
            f"{settings.source}: M={steps}: the time input (M - 1) t would always be 0: give one such as {SONG_M}"
        )
    smallest = settings.assume("epsilon_t", 1e-5, "the smallest time of training, as published")
    time_input = song_vp if steps == SONG_M else LastIndex(float(steps - 1))
    return Learned(network, VP(low, low + slope, t_min=smallest), noise, time_input)


def ve(network: UNet, settings: Settings, table: Tensor | None) -> Learned:
    """Returns the denoiser of Song et al.'s (2021) VE preconditioner.

    Sigmas are twice theirs, because data in [-1, 1] are twice as wide as data in [0, 1].
    """
    why, examples = REQUIRED["ve"]
    low, high = settings.numbers(why, **examples)
    return Learned(network, VE(low, high), scaled_score, log_half_noise_level, scaled=False)


def iddpm(network: UNet, settings: Settings, table: Tensor | None) -> Learned:
    """Returns the denoiser of Nichol & Dhariwal's (2021) preconditioner.

    `table` is u, the values of sigma / alpha from the largest to 0.
    """
    if table is None:
        raise UsageError(
            f"{settings.source}: {TABLE} is missing, the noise levels of precond='iddpm', which define its schedule: "
            "give the complete file"
        )
    refuse_rounded({TABLE: table}, settings.source)
    u = table.double()
    if len(u) < 2 or not (u[0] < torch.inf and u[-1] == 0 and (u.diff() < 0).all()):
        raise UsageError(
            f"{settings.source}: the noise levels {TABLE} must decrease from a finite value to 0: "
            "give the complete file"
        )
    settings.add_from_file("M", len(u) - 1)
    if network.outputs > 2:
        raise UsageError(
            f"{settings.source}: precond='iddpm', but the network has {network.outputs} output channels for each image "
            "channel instead of 1 (noise) or 2 (noise and variance): give the complete file"
        )
    if network.outputs == 1:
        settings.note("the code length uses the variance beta_t; samples of DDIM do not depend on it")
    return Learned(network, Tabulated(betas_of(1 / (1 + u[:-1].flip(0) ** 2))), noise, nearest_index)


def narrowed(value: Any, name: str, settings: Settings) -> float:
    """Returns an end of the range of noise levels for sampling.

    It is the paper's for 0, for infinity, and for a pickled value outside of the paper's range, as in its sampler.
    """
    own = SMALLEST_TRAINED if name == "sigma_min" else LARGEST_TRAINED
    if isinstance(value, int | float) and value in (0, math.inf):
        return own
    (value,) = settings.numbers("", **{name: 1.0})
    inside = max(SMALLEST_TRAINED, min(value, LARGEST_TRAINED))
    if inside not in (value, own) or (inside != value and name not in settings.from_file):
        raise UsageError(
            f"{settings.source}: {name}={value:g} is outside of the sampling range {SMALLEST_TRAINED:g} to "
            f"{LARGEST_TRAINED:g}, which it must narrow: leave it out, or give a value inside"
        )
    return inside


PRECONDITIONERS: dict[str, Callable[[UNet, Settings, Tensor | None], Learned]] = {
    "edm": edm,
    "vp": vp,
    "ve": ve,
    "iddpm": iddpm,
}


def looks_like(contents: Any) -> bool:
    """Returns whether a file contains such a pickle, a network of one, or a state dict with these names."""
    held = averaged(contents)
    if isinstance(held, Record):
        return held.name in CLASSES
    state = stripped(held, PREFIX)
    return {"map_layer0.weight", "map_layer1.weight"} <= state.keys() and any(STEM.fullmatch(name) for name in state)


def denoiser(
    contents: Any,
    source: str,
    *,
    precond: str | None = None,
    sigma_data: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    beta_d: float | None = None,
    beta_min: float | None = None,
    M: int | None = None,
    num_head_channels: int | None = None,
) -> Learned:
    """Returns the denoiser of a network for images in [-1, 1].

    Sizes, multipliers, blocks and attention follow from the weights' names and shapes. The denoiser's schedule is that
    of its preconditioner; `on(EDM())` moves any denoiser to the noise levels of the paper's samplers. Between two noise
    levels of their table, networks of `iddpm` are fed the step of the nearer one.

    A pickle contains its preconditioner with its settings. A state dict contains neither, except the table of "iddpm";
    they are known where the file has the name of a published checkpoint, such as edm-cifar10-32x32-cond-vp.pkl, unless
    a flag or the file contradicts the name.

    Args:
        contents: the contents of a pickle, with the network under `ema`, or the network, or its state dict.
        source: the file.
        precond: "edm", "vp", "ve" or "iddpm".
        sigma_data: of "edm".
        sigma_min, sigma_max: of "ve", for data in [-1, 1]; of "edm", where they narrow the sampling range.
        beta_d, beta_min, M: of "vp".
        num_head_channels: channels of each attention head of ADM; None for the pickled network's own, and in a state
            dict of width 192 for 64, as published.

    Raises:
        UsageError: for the file of another network, for a preconditioner, settings or heads that are missing or that
            the file contradicts, for unknown filters, for tensors that are missing or unexpected, and for wrong shapes.
    """
    if not looks_like(contents):
        raise UsageError(
            f"{source} does not contain a network of Karras et al. (2022): give a pickle with one under `ema`, "
            "or its state dict"
        )
    if num_head_channels is not None and num_head_channels < 1:
        raise UsageError(
            f"{source}: num_head_channels={num_head_channels}: give the channels of each attention head, such as 64"
        )
    held = averaged(contents)
    state = stripped(state_dict(held) if isinstance(held, Record) else held, PREFIX)
    given = {"precond": precond, "sigma_data": sigma_data, "sigma_min": sigma_min, "sigma_max": sigma_max}
    given |= {"beta_d": beta_d, "beta_min": beta_min, "M": M, "num_head_channels": num_head_channels}
    settings = settings_of(given, held, state, source)
    precond = settings.get("precond")
    if "out_conv.weight" in state and tensor(state, "map_layer0.weight", 2, source).shape[1] not in HEADS:
        settings.require_too(NO_HEADS, num_head_channels=64)
    if precond in (None, *REQUIRED):
        why, examples = REQUIRED[precond or "edm"]
        settings.require_too(why, **examples)
    if precond is None:
        settings.require(NO_PRECOND, precond="edm")
    if precond not in PRECONDITIONERS:
        raise UsageError(f"{source}: precond={quoted(precond)} is not known: give one of {', '.join(PRECONDITIONERS)}")
    settings.refuse_unused(
        f"precond={precond!r} does not depend on it", *sorted(set().union(*USES.values()) - USES[precond])
    )
    with settings.naming_file():
        network, read = built(state, source, settings, pickled_heads(held))
    constant = {name for name in state if name.endswith(FILTER)}
    if precond == "iddpm":
        constant.add(TABLE)
    elif network.outputs != 1:
        raise UsageError(
            f"{source}: precond={precond!r}, but the network has {network.outputs} output channels for each image "
            "channel: give precond='iddpm', whose networks may have two"
        )
    fill(network, names(network, state, read), state, source, ignored=constant)
    table = tensor(state, TABLE, 1, source) if TABLE in state else None
    with settings.naming_file():
        learned = PRECONDITIONERS[precond](network, settings, table)
    attach(learned, quantization=Quantization(), shape=network.shape, assumed=settings.assumed)
    return learned


STEM = re.compile(r"enc\.(\d{1,5})x\1_conv\.weight")


def averaged(contents: Any) -> Any:
    """Returns the network or state dict under `ema` where there is one, else the contents."""
    return (
        contents["ema"]
        if isinstance(contents, Mapping) and isinstance(contents.get("ema"), Record | Mapping)
        else contents
    )


@dataclass(frozen=True)
class Read:
    """The structure that the names of the tensors contain.

    Attributes:
        sizes: image size at each resolution, full resolution first.
        song: whether it is a network of Song et al.'s (2021) kind instead of ADM.
    """

    sizes: tuple[int, ...]
    song: bool

    def prefix(self, part: str, resolution: int) -> str:
        """Returns the prefix of the names at a resolution, on the way down ("enc") or up ("dec")."""
        return f"{part}.{self.sizes[resolution]}x{self.sizes[resolution]}"


def built(state: Mapping[str, Any], source: str, settings: Settings, pickled: int | None) -> tuple[UNet, Read]:
    """Builds the network of these names and shapes; `pickled` are its channels per head, where a pickle has them."""
    sizes = sizes_of(state)
    read = Read(tuple(sizes), song="out_conv.weight" not in state)
    stem, full = read.prefix("enc", 0), read.prefix("dec", 0)
    blocks = sum(re.fullmatch(rf"{stem}_block\d+\.conv0\.weight", name) is not None for name in state)
    firsts = [f"{read.prefix('enc', resolution)}_block0" for resolution in range(len(sizes))]
    head = f"{full}_aux_conv.weight" if read.song else "out_conv.weight"
    if any(size != sizes[0] >> resolution for resolution, size in enumerate(sizes)):
        raise UsageError(
            f"{source} has the resolutions {listed([str(size) for size in sizes])}, each of which must be half of the "
            "one before: give the complete file"
        )
    first, time = tensor(state, f"{stem}_conv.weight", 4, source), tensor(state, "map_layer0.weight", 2, source)
    channels, width = first.shape[1], len(first) if read.song else time.shape[1]
    wide = [len(tensor(state, f"{name}.conv0.weight", 4, source)) for name in firsts]
    attention = tuple(2**resolution for resolution, name in enumerate(firsts) if f"{name}.qkv.weight" in state)
    head_width = None
    if read.song:
        settings.refuse_unused("each of its attention layers has one head", "num_head_channels")
    else:
        if pickled is not None:
            settings.add_from_file("num_head_channels", pickled)
        if width in HEADS:
            head_width = settings.assume(
                "num_head_channels", HEADS[width], f"as in the published ADM, which has width {width} too"
            )
        else:
            (head_width,) = settings.require(NO_HEADS, num_head_channels=64)
    label, augment = "map_label.weight", "map_augment.weight"
    network = UNet(
        (channels, sizes[0], sizes[0]),
        width,
        tuple(w // width if w % width == 0 else w / width for w in wide),
        blocks,
        attention,
        classes=tensor(state, label, 2, source).shape[1] if label in state else None,
        outputs=max(len(tensor(state, head, 4, source)) // channels, 1),
        variant=variant_of(state, read, taps(state, source), head_width),
        augment=tensor(state, augment, 2, source).shape[1] if augment in state else None,
    )
    return network, read


def taps(state: Mapping[str, Any], source: str) -> FIR:
    """Returns the resampling filter, which all constant filters in the file must equal."""
    filters = {name: tensor(state, name, 4, source) for name in state if name.endswith(FILTER)}
    for known in (MEAN, SMOOTH):
        k = torch.tensor(known.taps, dtype=torch.float64)
        square = torch.outer(k, k)[None, None] / k.sum() ** 2
        if all(v.shape == square.shape and torch.allclose(v.double(), square, rtol=1e-3) for v in filters.values()):
            return known
    raise UsageError(
        f"{source}: its {len(filters)} resampling filters must all be (1, 1) or all (1, 3, 3, 1): no others are "
        "supported"
    )


def variant_of(state: Mapping[str, Any], read: Read, filters: FIR, head_width: int | None) -> UNetVariant:
    """Returns the variant of U-Net blocks with these names."""
    if not read.song:
        return replace(EDM_ADM, resize=Resampled(filters), head_width=head_width)
    has = {
        name.partition(".")[0].partition("_")[2]
        for name in (n.partition(".")[2] for n in state if n.startswith("enc."))
    }
    deepest = read.prefix("dec", len(read.sizes) - 1)
    return replace(
        DDPMPP,
        time=Fourier() if "map_noise.freqs" in state else SINES,
        resize=Resampled(filters, project=True),
        progressive_input=(
            InputResidual(filters) if "aux_residual" in has else InputSkip(filters) if "aux_skip" in has else None
        ),
        progressive_output=OutputSkip(filters)
        if len(read.sizes) > 1 and f"{deepest}_aux_conv.weight" in state
        else None,
        early_label=True,
    )


def names(network: UNet, state: Mapping[str, Any], read: Read) -> Names:
    """Returns the name in the file of each of the network's tensors."""
    names: Names = renamed("", "", ENDS | {"stem": f"{read.prefix('enc', 0)}_conv"})
    norm, head = (
        [f"{read.prefix('dec', 0)}_aux_{part}" for part in ("norm", "conv")] if read.song else ["out_norm", "out_conv"]
    )
    names |= renamed("", "", {"head.0": norm, "head.2": head})
    if "map_noise.freqs" in state:
        names["time.encode.frequencies"] = "map_noise.freqs"
    if "map_augment.weight" in state:
        names["augmented.weight"] = "map_augment.weight"
    if "map_label.weight" in state:
        names["label.table.weight"] = labels(read.song)
    for layer in layers(network):
        part, resolution, index, role = layer.place
        theirs = read.prefix("enc" if part == "down" else "dec", resolution)
        if role == "attention":  # in the block before it
            theirs += f"_in{index - 1}" if part == "middle" else f"_block{index}"
            names |= attention_names(layer, theirs, ATTENTION, channels_first)
        elif role == "block":
            theirs += f"_in{index // 2}" if part == "middle" else f"_block{index}"
            names |= block_names(layer, theirs, BLOCK)
        elif role == "shrink":
            names |= block_names(layer, f"{read.prefix('enc', resolution + 1)}_down", BLOCK)
        elif role == "grow":
            names |= block_names(layer, f"{read.prefix('dec', resolution - 1)}_up", BLOCK)
        elif role == "enter":
            residual = hasattr(layer.module, "shrink")
            theirs = f"{read.prefix('enc', resolution + 1)}_aux_{'residual' if residual else 'skip'}"
            names |= renamed(layer.name, "", {"shrink.conv" if residual else "conv": theirs})
        else:
            names |= renamed(f"{layer.name}.head", "", {"0": f"{theirs}_aux_norm", "2": f"{theirs}_aux_conv"})
    return names


def labels(song: bool) -> Converted:
    """Returns the class embeddings, the last one for no class, from a linear layer of one-hot vectors.

    For no class, that layer is fed zeros. Song et al.'s kind scales the vectors by the square root of their length and
    has a bias; in ADM no class adds nothing.
    """
    if song:
        return Converted(
            ("map_label.weight", "map_label.bias"),
            lambda w, b: torch.cat([w.T * w.shape[1] ** 0.5, torch.zeros_like(b)[None]]) + b,
        )
    return Converted(("map_label.weight",), lambda w: torch.cat([w.T, torch.zeros_like(w[:, :1].T)]))
