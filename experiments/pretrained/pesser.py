"""Checkpoints of ermongroup/ddim and of pesser/pytorch_diffusion, who ported Ho et al.'s (2020) own weights to its
layout.
"""

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
from .settings import Settings
from .unets import Layer, block_names, layers, separate
from .weights import Made, Names, count, fill, listed, quoted, renamed, stripped, tensor

PREFIX, LANDMARK = "module.", "temb.dense.0.weight"
WIDTH, BLOCKS, CHANNELS = 128, 2, 3
"""Of all released networks."""
SIZES = {(1, 2, 2, 2): 32, (1, 2, 2, 2, 4): 64, (1, 1, 2, 2, 4, 4): 256}
"""Pixels across of the released networks by their multipliers: CIFAR-10, CelebA, LSUN and CelebA-HQ."""
RELEASED = {
    32: r"model-790000\.ckpt|(ema_)?diffusion_cifar10_model/[^/]*",
    64: r"celeba/ckpt\.pth",
    256: r"model-(2388000|1761000|4432000)\.ckpt|(ema_)?diffusion_lsun_(bedroom|cat|church)_model/[^/]*"
    r"|(celeba_hq|bedroom|church_outdoor)\.ckpt",
}
"""The paths of released files by pixels across.

Ho et al.'s weights, ermongroup's CelebA, and those that SDEdit brought along.
"""
TRAINED = {
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_diffusion_timesteps": 1000,
    "rescaled": True,
}
"""All of them."""
VARIANCE = "the code length takes the variance beta_t (var_type 'fixedlarge'); DDIM's samples need none"
LOGVAR = "logvar"
"""A parameter of models of type "bayesian", one number for each step, which their output does not depend on."""
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
    """Whether these are the weights of such a model, plain or in the list that its training writes."""
    return any(LANDMARK in state for state in _parts(contents) if state is not None)


def linear(steps: int, start: float, end: float) -> Tensor:
    """Evenly spaced."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def warmup(steps: int, start: float, end: float, share: float) -> Tensor:
    """Linear over a share of the steps, then `end`."""
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
"""`beta_schedule`: betas of (num_diffusion_timesteps, beta_start, beta_end)."""
UNREAD = {"const": ("beta_start",), "jsd": ("beta_start", "beta_end")}
"""What a schedule does not read."""
SCHEDULE = "the weights do not tell the schedule"


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
    """The DDPM on its chain, with the averaged weights where the file has them: the fifth entry of the list.

    Args:
        contents: a state dict, or `[model, optimizer, epoch, step, ema]`, or the same without `ema`.
        source: the file; the paths of released ones tell the schedule, where widths, blocks and channels are theirs
            too.
        image_size: pixels across; None for those of the released networks, which their sizes tell.
        beta_schedule, beta_start, beta_end, num_diffusion_timesteps: of `diffusion` in the configuration, not scaled by
            the steps.
        rescaled: whether images are in [-1, 1], and not in [0, 1]; None for True, as in all configurations.

    Raises:
        UsageError: for another network's file, weights that do not fit, settings that nothing tells or that the file
            contradicts, and without a size for a network other than the released ones.
    """
    if image_size is not None and image_size < 1:
        raise UsageError(
            f"{source}: image_size={image_size}: give the height and width of the images in pixels, such as 32"
        )
    model, average = _parts(contents)
    state = model if average is None else average
    if not looks_like(contents):
        raise UsageError(
            f"{source} does not hold a DDPM of this format: its names are {listed(sorted(state)) or 'none'}"
        )
    given = {"image_size": image_size, "beta_schedule": beta_schedule, "beta_start": beta_start, "beta_end": beta_end}
    given |= {"num_diffusion_timesteps": num_diffusion_timesteps, "rescaled": rescaled}
    told = {"num_diffusion_timesteps": len(tensor(state, LOGVAR, 1, source))} if LOGVAR in state else {}
    width, channels = tensor(state, "conv_in.weight", 4, source).shape[:2]
    levels, blocks = count(state, "down.{}.block.0.norm1.weight"), count(state, "down.0.block.{}.norm1.weight")
    wide = [len(tensor(state, f"down.{n}.block.0.conv1.bias", 1, source)) for n in range(levels)]
    if not wide:
        raise UsageError(
            f"{source}: down.0.block.0.norm1.weight is missing, and sizes are read from it: give a whole file"
        )
    attention = tuple(2**n for n in range(levels) if f"down.{n}.attn.0.norm.weight" in state)
    settings = settings_of(given, told, source, (channels, width, blocks, *(w / width for w in wide)))
    settings.later(SCHEDULE, **wanted(settings))
    size = size_of(settings, width, blocks, tuple(w / width for w in wide))
    with settings.of_file():
        schedule = Tabulated(betas(settings))
        network = UNet(
            (channels, size, size), width, [w / width for w in wide], blocks, attention, dropout=0.1, variant=DDPM
        )
        learned = Learned(network, schedule, time_input=step_index)
    fill(network, names(network), state, source, ignored=(LOGVAR,))
    centered = settings.assume("rescaled", True, "images are in [-1, 1], as in all configurations of its projects")
    settings.say(VARIANCE)
    settings.say_raw(contents, average)
    learned.quantization, learned.shape, learned.assumed = (
        Quantization() if centered else Quantization(256, 0.0, 1.0),
        network.shape,
        settings.assumed,
    )
    return learned


def settings_of(given: Mapping[str, Any], told: Mapping[str, Any], source: str, sizes: tuple[float, ...]) -> Settings:
    """The settings.

    A released path tells what they are where (channels, width, blocks, multipliers...) are those of its network.
    """
    path = PurePath(source).as_posix().lower()
    for multipliers, pixels in SIZES.items():
        if found := re.search(f"(^|/)({RELEASED[pixels]})$", path):
            own = (CHANNELS, WIDTH, BLOCKS, *multipliers)
            both = [", ".join(f"{n:g}" for n in numbers) for numbers in (sizes, own)]
            against = (
                f"its channels, width, blocks and multipliers are {both[0]}, and those of the released file {both[1]}"
            )
            return Settings(source, given, told, TRAINED, found[2], "" if sizes == own else against)
    return Settings(source, given, told)


def size_of(settings: Settings, width: int, blocks: int, multipliers: tuple[float, ...]) -> int:
    """Pixels across: as given, or those of the released network of these sizes."""
    known = SIZES.get(multipliers) if (width, blocks) == (WIDTH, BLOCKS) else None
    if known is not None:
        return settings.assume("image_size", known, "as of the released network of these widths")
    return settings.ask("the weights do not tell the size of the images", image_size=32)[0]


def wanted(settings: Settings) -> dict[str, Any]:
    """What the schedule reads, with an example of each."""
    schedule = settings.get("beta_schedule")
    if schedule is not None and schedule not in SCHEDULES:
        raise UsageError(
            f"{settings.source}: beta_schedule={quoted(schedule)} is not known: give one of {', '.join(SCHEDULES)}"
        )
    unread = UNREAD.get(schedule, ())
    settings.refuse_unused(f"beta_schedule={schedule!r} does not read it", *unread)
    return {name: example for name, example in TRAINED.items() if name not in (*unread, "rescaled")}


def betas(settings: Settings) -> Tensor:
    """The betas of the chain."""
    examples = wanted(settings)
    settings.ask(SCHEDULE, **examples)
    schedule, ends = (
        settings.get("beta_schedule"),
        {name: TRAINED[name] for name in ("beta_start", "beta_end") if name in examples},
    )
    found = dict(zip(ends, settings.numbers(SCHEDULE, **ends), strict=True))
    (steps,) = settings.counts(SCHEDULE, num_diffusion_timesteps=1000)
    return SCHEDULES[schedule](steps, found.get("beta_start", 0.0), found.get("beta_end", 0.0))


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
        theirs = f"{part}.{level}." + {"block": f"block.{index}", "attention": f"attn.{index}"}.get(
            role, f"{part}sample"
        )
    if role == "block":
        return block_names(layer, theirs, BLOCK)
    if role == "attention":
        q, k, v = ((f"{theirs}.{n}.weight", f"{theirs}.{n}.bias") for n in "qkv")
        out = renamed(f"{layer.name}.out", f"{theirs}.proj_out", {"": ""})
        out[f"{layer.name}.out.weight"] = Made((f"{theirs}.proj_out.weight",), lambda w: w.flatten(2))
        return renamed(layer.name, theirs, {"norm": "norm"}) | separate(layer, q, k, v) | out
    return renamed(layer.name, theirs, {"conv": "conv"})


def _parts(contents: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The model and the averaged weights, where the file has any: the fifth entry of a list; one of four keeps none."""
    held = list(contents) if isinstance(contents, list | tuple) else [contents]
    average = stripped(held[4], PREFIX) if len(held) > 4 else None
    return stripped(held[0], PREFIX) if held else {}, average or None
