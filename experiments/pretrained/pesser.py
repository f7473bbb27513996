"""Imports checkpoints of ermongroup/ddim, and Ho et al.'s (2020) weights as ported by pesser/pytorch_diffusion."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from ...continuous import Learned, Tabulated
from ...shared.errors import UsageError
from ...shared.networks import UNet
from ...shared.networks.unet_variants import DDPM
from ...shared.quantization import Quantization
from ...shared.time_inputs import step_index
from .settings import Settings, attach
from .unets import Layer, block_names, layers, separate
from .weights import Converted, Names, count, fill, listed, quoted, renamed, stripped, tensor

PREFIX, LANDMARK = "module.", "temb.dense.0.weight"
WIDTH, BLOCKS, CHANNELS = 128, 2, 3
"""Of all published checkpoints."""
SIZES = {(1, 2, 2, 2): 32, (1, 2, 2, 2, 4): 64, (1, 1, 2, 2, 4, 4): 256}
"""Image size of the published checkpoints by their multipliers: CIFAR-10, CelebA, LSUN and CelebA-HQ."""
PUBLISHED = {
    32: r"model-790000\.ckpt|(ema_)?diffusion_cifar10_model/[^/]*",
    64: r"celeba/ckpt\.pth",
    256: r"model-(2388000|1761000|4432000)\.ckpt|(ema_)?diffusion_lsun_(bedroom|cat|church)_model/[^/]*"
    r"|(celeba_hq|bedroom|church_outdoor)\.ckpt",
}
"""Paths of the published checkpoints by image size: Ho et al.'s weights, ermongroup's CelebA, and those of SDEdit."""
TRAINED = {
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_diffusion_timesteps": 1000,
    "rescaled": True,
}
"""Settings of all published checkpoints."""
VARIANCE = "the code length uses the variance beta_t (var_type 'fixedlarge'); samples of DDIM do not depend on it"
LOGVAR = "logvar"
"""A parameter of models of type "bayesian", one number for each step; their output does not depend on it."""
BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "modulation": "temb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "nin_shortcut",
}
ENDS = {
    "time.mlp.0": "temb.dense.0",
    "time.mlp.2": "temb.dense.1",
    "stem": "conv_in",
    "head.0": "norm_out",
    "head.2": "conv_out",
}


def looks_like(contents: Any) -> bool:
    """Returns whether these are weights of such a model, plain or in the list that its training writes."""
    return any(LANDMARK in state for state in _parts(contents) if state is not None)


def linear(steps: int, start: float, end: float) -> Tensor:
    """Returns evenly spaced betas, float64 `(steps,)`."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def warmup(steps: int, start: float, end: float, share: float) -> Tensor:
    """Returns betas that rise linearly over a share of the steps and then stay at `end`, float64 `(steps,)`."""
    rising = int(steps * share)
    return torch.cat([linear(rising, start, end), linear(steps - rising, end, end)])


SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": linear,
    "quad": lambda steps, start, end: linear(steps, start**0.5, end**0.5) ** 2,
    "const": lambda steps, start, end: linear(steps, end, end),
    "jsd": lambda steps, start, end: 1 / linear(steps, steps, 1),
    "sigmoid": lambda steps, start, end: start + (end - start) * linear(steps, -6, 6).sigmoid(),
    "warmup10": lambda steps, start, end: warmup(steps, start, end, 0.1),
    "warmup50": lambda steps, start, end: warmup(steps, start, end, 0.5),
}
"""By `beta_schedule`, the betas as a function of (num_diffusion_timesteps, beta_start, beta_end)."""
UNUSED = {"const": ("beta_start",), "jsd": ("beta_start", "beta_end")}
"""Settings that a schedule does not depend on."""
SCHEDULE = "the weights do not determine the schedule"


def denoiser(
    contents: Any,
    source: str,
    *,
    image_size: int | None = None,
    beta_schedule: str | None = None,
    beta_start: float | None = None,
    beta_end: float | None = None,
    num_diffusion_timesteps: int | None = None,
    rescaled: bool | None = None,
) -> Learned:
    """Returns the DDPM with its schedule, with averaged weights where the file has them (fifth entry of the list).

    Args:
        contents: a state dict, or `[model, optimizer, epoch, step, ema]`, or the same without `ema`.
        source: the file; the path of a published checkpoint determines the schedule, where the file also has its
            width, blocks and channels.
        image_size: height and width of the images in pixels; None for those of the published checkpoint with these
            widths.
        beta_schedule, beta_start, beta_end, num_diffusion_timesteps: as in `diffusion` of the configuration; betas are
            not scaled by the number of steps.
        rescaled: whether images are in [-1, 1] instead of [0, 1]; None for True, as in all configurations.

    Raises:
        UsageError: for the file of another network, weights that do not fit, settings that are missing or that the
            file contradicts, and a missing size of an unpublished network.
    """
    if image_size is not None and image_size < 1:
        raise UsageError(
            f"{source}: image_size={image_size}: give the height and width of the images in pixels, such as 32"
        )
    model, average = _parts(contents)
    state = model if average is None else average
    if not looks_like(contents):
        raise UsageError(
            f"{source} does not contain a DDPM of this format: its names are {listed(sorted(state)) or 'none'}"
        )
    given = {"image_size": image_size, "beta_schedule": beta_schedule, "beta_start": beta_start, "beta_end": beta_end}
    given |= {"num_diffusion_timesteps": num_diffusion_timesteps, "rescaled": rescaled}
    stored = {"num_diffusion_timesteps": len(tensor(state, LOGVAR, 1, source))} if LOGVAR in state else {}
    width, channels = tensor(state, "conv_in.weight", 4, source).shape[:2]
    resolutions, blocks = count(state, "down.{}.block.0.norm1.weight"), count(state, "down.0.block.{}.norm1.weight")
    wide = [len(tensor(state, f"down.{n}.block.0.conv1.bias", 1, source)) for n in range(resolutions)]
    if not wide:
        raise UsageError(
            f"{source}: down.0.block.0.norm1.weight is missing, but the network's sizes are read from it: "
            "give the complete file"
        )
    attention = tuple(2**n for n in range(resolutions) if f"down.{n}.attn.0.norm.weight" in state)
    settings = settings_of(given, stored, source, (channels, width, blocks, *(w / width for w in wide)))
    settings.require_too(SCHEDULE, **schedule_examples(settings))
    size = size_of(settings, width, blocks, tuple(w / width for w in wide))
    with settings.naming_file():
        schedule = Tabulated(betas(settings))
        network = UNet(
            (channels, size, size), width, [w / width for w in wide], blocks, attention, dropout=0.1, variant=DDPM
        )
        learned = Learned(network, schedule, time_input=step_index)
    fill(network, names(network), state, source, ignored=(LOGVAR,))
    centered = settings.assume("rescaled", True, "images are in [-1, 1], as in all configurations of its projects")
    settings.note(VARIANCE)
    settings.note_raw_weights(contents, average)
    attach(
        learned,
        quantization=Quantization() if centered else Quantization(256, 0.0, 1.0),
        shape=network.shape,
        assumed=settings.assumed,
    )
    return learned


def settings_of(
    flags: Mapping[str, Any], from_file: Mapping[str, Any], source: str, sizes: tuple[float, ...]
) -> Settings:
    """Returns the settings; `sizes` are (channels, width, blocks, *multipliers).

    The path of a published checkpoint determines them where the file has its sizes.
    """
    path = PurePath(source).as_posix().lower()
    for multipliers, pixels in SIZES.items():
        if match := re.search(f"(^|/)({PUBLISHED[pixels]})$", path):
            published = (CHANNELS, WIDTH, BLOCKS, *multipliers)
            both = [", ".join(f"{n:g}" for n in numbers) for numbers in (sizes, published)]
            contradiction = (
                f"its channels, width, blocks and multipliers are {both[0]}, but {both[1]} in the published checkpoint"
            )
            return Settings(source, flags, from_file, TRAINED, match[2], "" if sizes == published else contradiction)
    return Settings(source, flags, from_file)


def size_of(settings: Settings, width: int, blocks: int, multipliers: tuple[float, ...]) -> int:
    """Returns the image size in pixels: as given, or that of the published checkpoint of these sizes."""
    known = SIZES.get(multipliers) if (width, blocks) == (WIDTH, BLOCKS) else None
    if known is not None:
        return settings.assume("image_size", known, "as in the published checkpoint of these widths")
    return settings.require("the weights do not determine the size of the images", image_size=32)[0]


def schedule_examples(settings: Settings) -> dict[str, Any]:
    """Returns the settings that the schedule depends on, with an example of each."""
    schedule = settings.get("beta_schedule")
    if schedule is not None and schedule not in SCHEDULES:
        raise UsageError(
            f"{settings.source}: beta_schedule={quoted(schedule)} is not known: give one of {', '.join(SCHEDULES)}"
        )
    unused = () if schedule is None else UNUSED.get(schedule, ())
    settings.refuse_unused(f"beta_schedule={schedule!r} does not depend on it", *unused)
    return {name: example for name, example in TRAINED.items() if name not in (*unused, "rescaled")}


def betas(settings: Settings) -> Tensor:
    """Returns the betas of the chain, float64 `(num_diffusion_timesteps,)`."""
    examples = schedule_examples(settings)
    settings.require(SCHEDULE, **examples)
    schedule = settings.get("beta_schedule")
    ends: dict[str, float] = {name: examples[name] for name in ("beta_start", "beta_end") if name in examples}
    values = dict(zip(ends, settings.numbers(SCHEDULE, **ends), strict=True))
    (steps,) = settings.counts(SCHEDULE, num_diffusion_timesteps=1000)
    return SCHEDULES[schedule](steps, values.get("beta_start", 0.0), values.get("beta_end", 0.0))


def names(network: UNet) -> Names:
    """Returns the name in the file of each of the network's tensors."""
    names: Names = renamed("", "", ENDS)
    for layer in layers(network):
        names |= _names(layer)
    return names


def _names(layer: Layer) -> Names:
    part, resolution, index, role = layer.place
    if part == "middle":
        theirs = ("mid.block_1", "mid.attn_1", "mid.block_2")[index]
    else:
        theirs = f"{part}.{resolution}." + {"block": f"block.{index}", "attention": f"attn.{index}"}.get(
            role, f"{part}sample"
        )
    if role == "block":
        return block_names(layer, theirs, BLOCK)
    if role == "attention":
        q, k, v = ((f"{theirs}.{n}.weight", f"{theirs}.{n}.bias") for n in "qkv")
        out = renamed(f"{layer.name}.out", f"{theirs}.proj_out", {"": ""})
        out[f"{layer.name}.out.weight"] = Converted((f"{theirs}.proj_out.weight",), lambda w: w.flatten(2))
        return renamed(layer.name, theirs, {"norm": "norm"}) | separate(layer, q, k, v) | out
    return renamed(layer.name, theirs, {"conv": "conv"})


def _parts(contents: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Returns the model, and the averaged weights, the fifth entry of a list, or None for a file without averages."""
    held = list(contents) if isinstance(contents, list | tuple) else [contents]
    average = stripped(held[4], PREFIX) if len(held) > 4 else None
    return stripped(held[0], PREFIX) if held else {}, average or None
