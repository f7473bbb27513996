"""Imports networks of Song et al. (2021) from yang-song/score_sde_pytorch: DDPM, DDPM++, NCSN++ under VP, sub-VP, VE.

A checkpoint is a dictionary with `model`, a state dict whose names start with "module.", and `ema`, whose
`shadow_params` are the averaged parameters without names, in the order of the model's own. The layers are in one flat
list, `all_modules`, whose sequence is the structure (`song_layers`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from torch import Tensor, nn

from ...continuous import Tabulated
from ...sde import VE, VP, Learned, NoiseLevels, SubVP, vp_betas
from ...shared.errors import UsageError
from ...shared.gaussian.prediction import noise, scaled_score
from ...shared.networks import UNet
from ...shared.networks.adapters import CenteredInput, TimesSigma
from ...shared.quantization import Quantization
from ...shared.time_inputs import log_noise_level, reversed_index, song_vp, step_index
from .settings import Settings, attach
from .song_layers import LIST, model_of, names, shape, structure
from .weights import averaged, falling, fill, listed, quoted, stripped, tensor

PREFIX = "module."
BUFFERS = ("sigmas", "all_modules.0.W")
"""Tensors of a state dict that are not parameters: noise levels, and the frequencies of Fourier features."""
SDES = ("vp", "subvp", "ve")
TOPS: dict[int, tuple[float, ...]] = {32: (50.0,), 64: (90.0,)}
LARGE_TOPS, BOTTOM, CHANNELS = (348.0, 378.0, 380.0, 1348.0), 0.01, 3
"""The largest noise levels of VE for images of 256 pixels and more, the smallest of all, and the image channels.

`TOPS` has the largest noise level for smaller images.
"""
SIZES = {
    "cifar10": 32,
    "celeba": 64,
    "church": 256,
    "bedroom": 256,
    "celebahq_256": 256,
    "ffhq_256": 256,
    "ffhq_1024": 1024,
}
PUBLISHED = re.compile(
    rf"(^|/)(?P<sde>{'|'.join(SDES)})/(?P<data>{'|'.join(SIZES)})_(?P<model>ddpm|ddpmpp|ncsnpp)"
    r"(?P<deep>_deep)?(?P<continuous>_continuous)?/[^/]*$"
)
"""Paths of the published checkpoints, such as vp/cifar10_ddpmpp_continuous/checkpoint_8.pth.

Only the path contains the process and the data.
"""
BETAS, STEPS, STEPS_OF_LARGE, LARGE = {"beta_min": 0.1, "beta_max": 20.0}, 1000, 2000, 256
"""Settings of all published checkpoints: beta at both ends, and `num_scales` for images below and from 256 pixels."""
PROCESS = (
    'the file does not contain its process, which is sde="vp", "subvp" or "ve", and for VP alone '
    "continuous=True or False"
)
SIZE = "the weights do not determine the size of the images"
CHAIN = "the file has no noise levels by which to count the steps of its schedule"


def looks_like(contents: Any) -> bool:
    """Returns whether a file's contents have the names of these networks, in a dictionary or a plain state dict."""
    return {"all_modules.0.weight", "all_modules.0.W"} & parts(contents)[0].keys() != set()


def denoiser(
    contents: Any,
    source: str,
    *,
    sde: str | None = None,
    continuous: bool | None = None,
    image_size: int | None = None,
    beta_min: float | None = None,
    beta_max: float | None = None,
    num_scales: int | None = None,
    centered: bool | None = None,
    scale_by_sigma: bool | None = None,
    skip_rescale: bool | None = None,
    fir: bool | None = None,
) -> Learned:
    """Returns the denoiser of a network for square images in [-1, 1], or in [0, 1] under VE.

    Widths, blocks and attention follow from the weights; averaged weights are used where the file has them. Networks
    with Fourier features are trained on continuous VE, whose noise levels are in the file. The process of other
    networks is not in the file, but in the paths of the published checkpoints, such as
    vp/cifar10_ddpmpp_continuous/checkpoint_8.pth: without "continuous", the network was trained on a schedule of
    `num_scales` steps. Sub-VP has no such schedule and is always continuous. A path is ignored where a flag or the
    file's noise levels contradict it.

    Args:
        contents: `{"model": ..., "ema": {"shadow_params": [...], ...}, ...}`, or a state dict, with or without
            "module." before its names.
        source: the file.
        sde: "vp", "subvp" or "ve"; None to use the network's or the path's.
        continuous: whether it was trained in continuous time; None to use the network's or the path's.
        image_size: height and width of the images in pixels, which weights do not contain; None to use the path's.
        beta_min, beta_max: of VP and sub-VP; None to use the path's.
        num_scales: steps of VP's discrete schedule; None for the number of noise levels in the file.
        centered: whether images are in [-1, 1] instead of [0, 1]; None for True except under VE, as published.
        scale_by_sigma: VE: whether the network's output is divided by sigma to get the score; None for True, as
            published.
        skip_rescale: whether sums of blocks are divided by sqrt(2); None for NCSN++ and DDPM++ alone, as published.
        fir: whether resolutions change by the filter (1, 3, 3, 1) instead of by means; None to use the filter exactly
            where the image is fed to each resolution on the way down, as in all published networks.

    Raises:
        UsageError: for the file of another network, settings that are missing or that the file contradicts, averages
            that do not fit the model, tensors that are missing or unexpected, and wrong shapes.
    """
    if image_size is not None and image_size < 1:
        raise UsageError(
            f"{source}: image_size={image_size}: give the height and width of the images in pixels, such as 32"
        )
    model, ema = parts(contents)
    if not looks_like(contents):
        raise UsageError(
            f"{source} does not contain a network of Song et al. (2021): its names are "
            f"{listed(sorted(map(str, model))) or 'none'}"
        )
    state = averaged(model, ema, BUFFERS.__contains__, source)
    given = {"sde": sde, "continuous": continuous, "image_size": image_size, "beta_min": beta_min, "beta_max": beta_max}
    given |= {
        "num_scales": num_scales,
        "centered": centered,
        "scale_by_sigma": scale_by_sigma,
        "skip_rescale": skip_rescale,
        "fir": fir,
    }
    settings = settings_of(given, state, source)
    read = structure(state, source, settings)
    process = process_of(settings, read.fourier)
    (pixels,) = settings.require(SIZE, image_size=32)
    with settings.naming_file():
        network = UNet(
            (read.channels, pixels, pixels),
            read.width,
            read.multipliers,
            read.blocks,
            read.attention,
            variant=read.variant,
        )
        fill(network, names(network, read.fourier), state, source, ignored=("sigmas",))
        learned = with_process(network, process, settings, state)
    attach(learned, assumed=settings.assumed)
    return learned


def settings_of(flags: Mapping[str, Any], state: Mapping[str, Any], source: str) -> Settings:
    """Returns the settings, from the flags, the file's noise levels and its path."""
    sigmas = state.get("sigmas")
    from_file = {"num_scales": len(sigmas)} if isinstance(sigmas, Tensor) and sigmas.ndim == 1 else {}
    match = PUBLISHED.search(PurePath(source).as_posix().lower())
    if match is None:
        return Settings(source, flags, from_file)
    sde, continuous, size = match["sde"], match["continuous"] is not None, SIZES[match["data"]]
    from_name: dict[str, Any] = {
        "sde": sde,
        "continuous": continuous,
        "image_size": size,
        "num_scales": STEPS_OF_LARGE if size >= LARGE else STEPS,
    }
    from_name |= {"centered": sde != "ve", "scale_by_sigma": sde == "ve", "skip_rescale": match["model"] != "ddpm"}
    from_name |= {} if sde == "ve" else BETAS
    from_name |= {} if match["model"] == "ddpm" else {"fir": match["model"] == "ncsnpp"}
    name = f"{sde}/{match['data']}_{match['model']}{match['deep'] or ''}{match['continuous'] or ''}"
    return Settings(source, flags, from_file, from_name, name, contradiction(match, state))


def contradiction(match: re.Match[str], state: Mapping[str, Any]) -> str:
    """Describes how a file differs from the published checkpoint of its path; "" where it does not."""
    sde, features = match["sde"], match["sde"] == "ve" and match["continuous"] is not None
    fourier, sigmas, size = f"{LIST}0.W" in state, state.get("sigmas"), SIZES[match["data"]]
    if fourier != features:
        return f"it has {'' if fourier else 'no '}Fourier features"
    channels = shape(state, f"{LIST}{2 + fourier}.weight")[1:2]
    if channels != (CHANNELS,):
        return f"its images have {', '.join(map(str, channels))} channels, not {CHANNELS}"
    if (model := model_of(state)) != match["model"]:
        return f"its layers are those of {model}"
    if sde == "ve" and isinstance(sigmas, Tensor) and sigmas.ndim == 1 and len(sigmas):
        ends = [float(sigmas[n]) for n in (0, -1)]
        if not (near(ends[1], BOTTOM) and any(near(ends[0], top) for top in TOPS.get(size, LARGE_TOPS))):
            return f"its noise levels range from {ends[0]:g} to {ends[1]:g}"
    return ""


def near(a: float, b: float) -> bool:
    """Returns whether two noise levels are equal up to rounding."""
    return abs(a - b) <= 1e-4 * b


def parts(contents: Any) -> tuple[dict[str, Any], Any]:
    """Returns the model, without "module." in its names, and `ema` or None."""
    if not isinstance(contents, Mapping):
        return {}, None
    model, ema = contents, None
    if isinstance(contents.get("model"), Mapping):
        model, ema = contents["model"], contents.get("ema")
    return stripped(model, PREFIX), ema


def process_of(settings: Settings, fourier: bool) -> tuple[str, bool]:
    """Returns the process, and whether its time is continuous.

    They come from the flags, the network, or the path of a published checkpoint, in this order.
    """
    source, sde, continuous = settings.source, settings.flags.get("sde"), settings.flags.get("continuous")
    if sde is None:
        sde = (
            settings.assume("sde", "ve", "as in all published networks with Fourier features")
            if fourier
            else settings.get("sde")
        )
    if sde not in (*SDES, None):
        raise UsageError(f"{source}: sde={quoted(sde)} is not known: {PROCESS.partition(', which is ')[2]}")
    if sde is not None and ((sde == "ve") < fourier or (sde == "ve" and continuous not in (None, fourier))):
        kind = (
            "Fourier features, which belong to continuous VE"
            if fourier
            else "step indices as time inputs, so VE cannot be continuous"
        )
        raise UsageError(
            f"{source}: sde={sde!r} and continuous={continuous}, but the network has {kind}: "
            "leave both out, or correct them"
        )
    if sde == "subvp" and continuous is False:
        raise UsageError(
            f"{source}: sde='subvp' and continuous=False, but sub-VP has no discrete schedule: leave continuous out"
        )
    settings.require_too(SIZE, image_size=32)
    if sde != "ve":
        settings.require_too(
            "the file does not contain the betas of " + ("VP and sub-VP" if sde is None else f"sde={sde!r}"),
            **BETAS,
        )
    if sde is None:
        (sde, _) = settings.require(PROCESS, sde="vp", continuous=True)
    if sde != "vp":
        return sde, sde == "subvp" or fourier
    if settings.get("continuous") is False:
        settings.require_too(CHAIN, num_scales=STEPS)
    return sde, settings.require(PROCESS, continuous=True)[0]


def with_process(network: UNet, process: tuple[str, bool], settings: Settings, state: Mapping[str, Any]) -> Learned:
    """Returns the denoiser of a network with its process, for data of its range."""
    sde, continuous = process
    centered = settings.assume(
        "centered",
        sde != "ve",
        f"as in all published {sde} networks, for images in {'[0, 1]' if sde == 've' else '[-1, 1]'}",
    )
    inner = network if centered else CenteredInput(network)
    learned = ve(inner, continuous, settings, state) if sde == "ve" else vp(inner, sde, continuous, settings)
    quantization = Quantization() if centered else Quantization(256, 0.0, 1.0)
    attach(learned, quantization=quantization, shape=network.shape)
    return learned


def vp(network: nn.Module, sde: str, continuous: bool, settings: Settings) -> Learned:
    """Returns the denoiser under VP or sub-VP; in continuous time, the time input is 999 t for any `num_scales`."""
    betas = settings.numbers(f"the file does not contain the betas of sde={sde!r}", **BETAS)
    if settings.assume("scale_by_sigma", False, "as in all published VP and sub-VP networks"):
        raise UsageError(
            f"{settings.source}: scale_by_sigma=True with sde={sde!r} is not supported: only the output of VE networks "
            "can be divided by sigma; leave it out"
        )
    if not continuous:
        (steps,) = settings.counts(CHAIN, num_scales=STEPS)
        settings.note("the code length uses the variance beta_t; samples of DDIM do not depend on it")
        return Learned(network, Tabulated(vp_betas(steps, *betas)), noise, step_index, scaled=False)
    if "num_scales" not in settings.from_file:
        settings.refuse_unused("continuous time has no steps", "num_scales")
    return Learned(network, (SubVP if sde == "subvp" else VP)(*betas), noise, song_vp, scaled=False)


def ve(network: nn.Module, continuous: bool, settings: Settings, state: Mapping[str, Any]) -> Learned:
    """Returns the denoiser under VE, with the file's noise levels."""
    settings.refuse_unused("VE has no betas", *BETAS)
    sigmas = falling(tensor(state, "sigmas", 1, settings.source), settings.source).flip(0)
    if not settings.assume("scale_by_sigma", True, "as in all published VE networks"):
        network = TimesSigma(network, None if continuous else sigmas.flip(0).float())
    if continuous:
        low, high = (float(f"{sigmas[n]:.12g}") for n in (0, -1))  # without the rounding of exp(log(sigma))
        return Learned(network, VE(low, high), scaled_score, log_noise_level, scaled=False)
    return Learned(network, NoiseLevels(sigmas), scaled_score, reversed_index, scaled=False)
