"""Imports NCSNv2 and its two deeper variants (Song & Ermon 2020, arXiv 2006.09011) from ermongroup/ncsnv2.

A checkpoint is a list `[model, optimizer, epoch, step, ema]`. `model` is a state dict whose names start with "module.".
`ema` contains the averaged parameters, with which the paper samples, by the same names without that prefix, and no
buffers: the noise levels are in `model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...sde import Learned, NoiseLevels
from ...shared.errors import UsageError
from ...shared.gaussian.prediction import scaled_score
from ...shared.networks.adapters import CenteredInput
from ...shared.networks.refinenet import RefineNet
from ...shared.quantization import Quantization
from ...shared.time_inputs import reversed_index
from .settings import Settings, attach
from .weights import Names, falling, fill, listed, renamed, stripped, tensor

PREFIX = "module."
STAGES = (("1", "2", "3", "4"), ("1", "2", "3", "4", "5"), ("1", "2", "3", "31", "4", "5"))
"""Names of the residual stages (`res1`, ...) of NCSNv2, NCSNv2Deeper and NCSNv2Deepest, in computation order."""
PUBLISHED = {(4, 232, 50): 32, (4, 500, 90): 64, (5, 1086, 190): 128, (6, 2311, 348): 256}
"""Image size by number of stages, number of noise levels, and the largest noise level of the published checkpoints.

CIFAR-10, CelebA, LSUN bedroom and tower, and FFHQ.
"""
DILATED = (2, 4)
"""Dilations of the last stages, which shapes do not determine; stages between the first and these halve the size."""
AS_PUBLISHED = "as in all published configurations"
NORM = ("alpha", "gamma", "beta")
LANDMARKS = (
    "begin_conv.weight",
    "normalizer.alpha",
    "end_conv.weight",
    "res1.0.normalize1.alpha",
    "refine1.crp.convs.0.weight",
)


def looks_like(state: Any) -> bool:
    """Returns whether a file's contents have the names of these networks, in a list or a plain state dict."""
    model, _ = parts(state)
    return all(name in model for name in LANDMARKS)


def denoiser(
    state: Any,
    source: str,
    *,
    image_size: int | None = None,
    rescaled: bool | None = None,
    logit_transform: bool | None = None,
) -> Learned:
    """Returns the denoiser of a network for square images in [0, 1].

    Width, channels, number of stages and their depth follow from the shapes of the tensors, the schedule from the
    buffer `sigmas`: index i of the original code, which counts from the largest sigma, is the time `(N - i) / N` here.

    Args:
        state: `[model, optimizer, epoch, step, ema]`, whose averaged weights are used where it has them, or a state
            dict, with or without "module." before its names.
        source: the file, for errors.
        image_size: height and width of the images in pixels, which the file does not contain; None for that of the
            published checkpoint with these stages and noise levels.
        rescaled: whether images are in [-1, 1] instead of [0, 1]; None for False, as in all published configurations.
        logit_transform: whether images are logits; None for False, as published; True is not supported.

    Raises:
        UsageError: for the file of another network, tensors that are missing or unexpected, wrong shapes, noise levels
            that do not decrease, images that are logits, and a missing size of an unpublished network.
    """
    if image_size is not None and image_size < 1:
        raise UsageError(
            f"{source}: image_size={image_size}: give the height and width of the images in pixels, such as 32"
        )
    model, average = parts(state)
    if not looks_like(state):
        raise UsageError(
            f"{source} does not contain an NCSNv2: its names are {listed(sorted(map(str, model))) or 'none'}"
        )
    sigmas, weights = falling(tensor(model, "sigmas", 1, source), source), dict(model if average is None else average)
    weights.pop("sigmas", None)
    stages = tuple(sorted({name[3:].partition(".")[0] for name in weights if name.startswith("res")}))
    if stages not in STAGES:
        raise UsageError(
            f"{source}: NCSNv2 has the stages res1 to res4, res1 to res5, or these and res31, not "
            f"{listed(list(stages))}: give the complete file"
        )
    width, channels = tensor(weights, "begin_conv.weight", 4, source).shape[:2]
    settings = Settings(source, {"image_size": image_size, "rescaled": rescaled, "logit_transform": logit_transform})
    size = size_of(settings, len(stages), sigmas)
    network = RefineNet(
        (channels, size, size),
        width,
        multipliers=[max(len(tensor(weights, f"res{s}.1.conv1.weight", 4, source)) // width, 1) for s in stages],
        dilations=(1,) * (len(stages) - len(DILATED)) + DILATED,
    )
    fill(network, names(stages), weights, source)
    if settings.assume("logit_transform", False, AS_PUBLISHED):
        raise UsageError(
            f"{source}: logit_transform=True: networks of image logits are not supported, "
            "only of images in [0, 1] or [-1, 1]"
        )
    centered = settings.assume("rescaled", False, f"images are in [0, 1], {AS_PUBLISHED}")
    settings.note(f"nonlinearity='elu': the weights do not determine it, and no other is supported; {AS_PUBLISHED}")
    settings.note_raw_weights(state, average)
    learned = Learned(
        network if centered else CenteredInput(network),
        NoiseLevels(sigmas.flip(0)),
        scaled_score,
        reversed_index,
        scaled=False,
    )
    attach(
        learned,
        quantization=Quantization() if centered else Quantization(256, 0.0, 1.0),
        shape=network.shape,
        assumed=settings.assumed,
    )
    return learned


def parts(state: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Returns the model and the averaged weights, or None, of a file's contents; names have no "module."."""
    held = list(state) if isinstance(state, Sequence) and not isinstance(state, str) else [state]
    model = stripped(held[0], PREFIX) if held else {}
    return model, (stripped(held[4], PREFIX) if len(held) > 4 else None) or None


def size_of(settings: Settings, stages: int, sigmas: Tensor) -> int:
    """Returns the image size in pixels: as given, or that of the published checkpoint of these stages and noise levels.

    Raises:
        UsageError: where neither is known.
    """
    known = PUBLISHED.get((stages, len(sigmas), round(float(sigmas[0]))))
    if known is not None:
        return settings.assume("image_size", known, "as in the published checkpoint of these stages and noise levels")
    return settings.require("the weights do not determine the size of the images", image_size=32)[0]


def names(stages: Sequence[str]) -> Names:
    """Returns the names in the file of a RefineNet's tensors, from the names of the residual stages."""
    names = renamed("", "", {"stem": "begin_conv", "head": "end_conv"}) | renamed(
        "", "", {"norm": "normalizer"}, of=NORM
    )
    for i, stage in enumerate(stages):
        for block in range(2):
            ours, theirs = f"stages.{i}.{block}", f"res{stage}.{block}"
            halves = block == 0 and 0 < i < len(stages) - len(DILATED)
            deeper = ".conv" if halves else ""  # inside of the module that averages
            names |= renamed(ours, theirs, {"conv1": "conv1", "conv2": f"conv2{deeper}"})
            names |= renamed(ours, theirs, {"norm1": "normalize1", "norm2": "normalize2"}, of=NORM)
            if i > 0 and block == 0:
                names |= renamed(ours, theirs, {"skip": f"shortcut{deeper}"})
        names |= refinement(
            f"refinements.{i}",
            refining(stage, stages),
            inputs=1 if i == len(stages) - 1 else 2,
            outs=3 if i == 0 else 1,
        )
    return names


def refining(stage: str, stages: Sequence[str]) -> str:
    """Returns the name in the file of the refinement block of a residual stage.

    `refine1` belongs to the last stage, `refine31` to `res31`.
    """
    last = int(stages[-1])
    return f"refine{stage if stage == '31' else last + 1 - int(stage)}"


def refinement(ours: str, theirs: str, inputs: int, outs: int) -> Names:
    """Returns the names of one refinement's tensors; residual unit u has the convolutions `u_1` and `u_2`, u >= 1."""
    units = {f"adapt.{i}.{u}": f"adapt_convs.{i}.{u + 1}" for i in range(inputs) for u in range(2)}
    units |= {f"out.{u}": f"output_convs.{u + 1}" for u in range(outs)}
    convs = {f"{unit}.conv{c}": f"{other}_{c}_conv" for unit, other in units.items() for c in (1, 2)}
    convs |= {f"pool.convs.{c}": f"crp.convs.{c}" for c in range(2)}
    names = renamed(ours, theirs, convs, of=("weight",))
    if inputs > 1:
        names |= renamed(ours, theirs, {f"fuse.convs.{c}": f"msf.convs.{c}" for c in range(inputs)})
    return names
