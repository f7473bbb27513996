"""Networks that were released with Song et al. (2021), from yang-song/score_sde_pytorch: DDPM, DDPM++ and NCSN++ under
VP, sub-VP and VE.

A released file is a dictionary with `model`, a state dict whose names start with "module.", and `ema`, whose
`shadow_params` are the averaged parameters without names, in the order of the model's own. The layers lie in one flat
list, `all_modules`: their sequence is the structure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from torch import Tensor, nn

from ...continuous import Tabulated
from ...sde import VE, VP, Learned, NoiseLevels, SubVP, vp_betas
from ...shared.errors import UsageError
from ...shared.gaussian.prediction import noise, scaled_score
from ...shared.networks import UNet
from ...shared.networks.adapters import CenteredInput, TimesSigma
from ...shared.networks.blocks import ResidualBlock
from ...shared.networks.embeddings import SINES, Fourier
from ...shared.networks.progressive import InputResidual, InputSkip, OutputSkip
from ...shared.networks.resampling import MEAN, SMOOTH
from ...shared.networks.unet_variants import DDPMPP, HALF, SONG_DDPM, Resampled, Strided, UNetVariant
from ...shared.quantization import Quantization
from ...shared.time_inputs import log_noise_level, reversed_index, song_vp, step_index
from .settings import Settings
from .unets import Layer, block_names, layers, separate
from .weights import Made, Names, averaged, falling, fill, listed, quoted, renamed, stripped, tensor

PREFIX, LIST = "module.", "all_modules."
BUFFERS = ("sigmas", "all_modules.0.W")
"""What is in a state dict and no parameter: noise levels, and the Fourier features' frequencies."""
SDES = ("vp", "subvp", "ve")
TOPS: dict[int, tuple[float, ...]] = {32: (50.0,), 64: (90.0,)}
LARGE_TOPS, BOTTOM, CHANNELS = (348.0, 378.0, 380.0, 1348.0), 0.01, 3
"""The largest noise level of VE by the size of its images, those from 256 pixels on, the smallest of all, and the
images' channels.
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
RELEASED = re.compile(
    rf"(^|/)(?P<sde>{'|'.join(SDES)})/(?P<data>{'|'.join(SIZES)})_(?P<model>ddpm|ddpmpp|ncsnpp)(?P<deep>_deep)?(?P<continuous>_continuous)?/[^/]*$"
)
"""The paths of released files, such as vp/cifar10_ddpmpp_continuous/checkpoint_8.pth.

The one place that names process and data.
"""
BETAS, STEPS, STEPS_OF_LARGE, LARGE = {"beta_min": 0.1, "beta_max": 20.0}, 1000, 2000, 256
"""Of all released files: beta at both ends, and `num_scales`, which is another one from 256 pixels on."""
BLOCK = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "modulation": "Dense_0", "norm2": "GroupNorm_1", "conv2": "Conv_1"}
PROCESS = (
    'the file does not tell its process, which is sde="vp", "subvp" or "ve", and for VP alone continuous=True or False'
)


SIZE = "the weights do not tell the size of the images"
CHAIN = "the file has no noise levels to count the steps of the chain by"


def looks_like(contents: Any) -> bool:
    """Whether a file's content has the names of these networks, in a dictionary as released or as a plain state dict."""
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
    """The denoiser of a released network, of square images in [-1, 1], or in [0, 1] under VE.

    Widths, blocks and attention follow from the weights; averaged ones are taken where they are there. Networks with
    Fourier features are of continuous VE, whose range the file tells. The process of the others is not in the file, but
    in the released files' paths, such as vp/cifar10_ddpmpp_continuous/checkpoint_8.pth: without "continuous" the
    network belongs to the chain of `num_scales` steps. Sub-VP, which has no such chain, is always continuous. A path
    tells nothing where a flag or the file's own noise levels contradict it.

    Args:
        contents: `{"model": ..., "ema": {"shadow_params": [...], ...}, ...}`, or a state dict, with or without
            "module." before its names.
        source: the file.
        sde: "vp", "subvp" or "ve"; None for what the path or the network says.
        continuous: whether it was trained in continuous time; None for what the path or the network says.
        image_size: height and width of the images, which the weights do not say; None for what the path of a released
            file says.
        beta_min, beta_max: of VP and sub-VP; None for what the path of a released file says.
        num_scales: steps of VP's chain; None for the number of noise levels in the file.
        centered: whether images are in [-1, 1], and not in [0, 1]; None for [0, 1] under VE alone, as released.
        scale_by_sigma: VE: whether the network gives sigma times the score before a division; None for True, as
            released.
        skip_rescale: whether sums of blocks are divided by sqrt(2); None for NCSN++ and DDPM++ alone, as released.
        fir: whether sizes change by the filter (1, 3, 3, 1) or by means; None for what all released networks do, which
            is to use it exactly where the image accompanies the way down.

    Raises:
        UsageError: for another network's file, settings that nothing tells or that the file contradicts, averages that
            are not those of the model, tensors that are missing or surplus, and shapes that do not fit.
    """
    if image_size is not None and image_size < 1:
        raise UsageError(
            f"{source}: image_size={image_size}: give the height and width of the images in pixels, such as 32"
        )
    model, ema = parts(contents)
    if not looks_like(contents):
        raise UsageError(
            f"{source} does not hold a network of Song et al. (2021): its names are {listed(sorted(map(str, model))) or 'none'}"
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
    process = settled(settings, read.fourier)
    (pixels,) = settings.ask(SIZE, image_size=32)
    with settings.of_file():
        network = UNet(
            (read.channels, pixels, pixels),
            read.width,
            read.multipliers,
            read.blocks,
            read.attention,
            variant=read.style,
        )
        fill(network, names(network, read.fourier), state, source, ignored=("sigmas",))
        made = placed(network, process, settings, state)
    made.assumed = settings.assumed
    return made


def settings_of(given: Mapping[str, Any], state: Mapping[str, Any], source: str) -> Settings:
    """The settings, with what the file's noise levels and its path tell."""
    sigmas = state.get("sigmas")
    told = {"num_scales": len(sigmas)} if isinstance(sigmas, Tensor) and sigmas.ndim == 1 else {}
    found = RELEASED.search(PurePath(source).as_posix().lower())
    if found is None:
        return Settings(source, given, told)
    sde, continuous, size = found["sde"], found["continuous"] is not None, SIZES[found["data"]]
    named = {
        "sde": sde,
        "continuous": continuous,
        "image_size": size,
        "num_scales": STEPS_OF_LARGE if size >= LARGE else STEPS,
    }
    named |= {"centered": sde != "ve", "scale_by_sigma": sde == "ve", "skip_rescale": found["model"] != "ddpm"}
    named |= {} if sde == "ve" else BETAS
    named |= {} if found["model"] == "ddpm" else {"fir": found["model"] == "ncsnpp"}
    name = f"{sde}/{found['data']}_{found['model']}{found['deep'] or ''}{found['continuous'] or ''}"
    return Settings(source, given, told, named, name, contradiction(found, state))


def contradiction(found: re.Match[str], state: Mapping[str, Any]) -> str:
    """What a file has that the released one of its path has not, in words; "" for nothing."""
    sde, features = found["sde"], found["sde"] == "ve" and found["continuous"] is not None
    fourier, sigmas, size = f"{LIST}0.W" in state, state.get("sigmas"), SIZES[found["data"]]
    if fourier != features:
        return f"it has {'' if fourier else 'no '}Fourier features"
    channels = shape(state, f"{LIST}{2 + fourier}.weight")[1:2]
    if channels != (CHANNELS,):
        return f"its images have {', '.join(map(str, channels))} channels, and not {CHANNELS}"
    if (model := model_of(state)) != found["model"]:
        return f"its layers are those of {model}"
    if sde == "ve" and isinstance(sigmas, Tensor) and sigmas.ndim == 1 and len(sigmas):
        ends = [float(sigmas[n]) for n in (0, -1)]
        if not (near(ends[1], BOTTOM) and any(near(ends[0], top) for top in TOPS.get(size, LARGE_TOPS))):
            return f"its noise levels go from {ends[0]:g} to {ends[1]:g}"
    return ""


def near(a: float, b: float) -> bool:
    """Whether two noise levels are the same but for rounding."""
    return abs(a - b) <= 1e-4 * b


def model_of(state: Mapping[str, Any]) -> str:
    """The model by its layers: strides are those of "ddpm", an image that accompanies the way down that of "ncsnpp"."""
    found = {kind(module) for module in listing(state).values()}
    return "ddpm" if "strided" in found else "ncsnpp" if found & {"residual", "skip"} else "ddpmpp"


def parts(contents: Any) -> tuple[dict[str, Any], Any]:
    """The model by names without "module.", and `ema` or None."""
    if not isinstance(contents, Mapping):
        return {}, None
    model, ema = contents, None
    if isinstance(contents.get("model"), Mapping):
        model, ema = contents["model"], contents.get("ema")
    return stripped(model, PREFIX), ema


@dataclass(frozen=True)
class Structure:
    """What the sequence of layers tells.

    Attributes:
        channels: of the image.
        width: at full resolution.
        multipliers: of each resolution.
        blocks: for each resolution.
        attention: down-sampling factors.
        fourier: whether the time enters by Fourier features.
        style: of the blocks.
    """

    channels: int
    width: int
    multipliers: tuple[float, ...]
    blocks: int
    attention: tuple[int, ...]
    fourier: bool
    style: UNetVariant


def structure(state: Mapping[str, Any], source: str, settings: Settings) -> Structure:
    """Reads the list of layers up to the middle, and the rest for what it adds to the image."""
    found = listing(state)
    numbers = sorted(found)
    modules = [found[n] for n in numbers]
    kinds = [kind(module) for module in modules]
    if unknown := [
        f"all_modules.{n} with {', '.join(found[n])}" for n, k in zip(numbers, kinds, strict=True) if k == "unknown"
    ]:
        raise UsageError(f"{source}: {len(unknown)} layers are not known, or cut short: {listed(unknown)}")
    fourier = kinds[0] == "fourier"
    at = 3 + fourier  # behind the two layers of the time, and the stem
    if kinds[fourier:at] != ["linear", "linear", "conv"]:
        raise UsageError(
            f"{source} should start with a time embedding and a convolution, not with {', '.join(kinds[:at])}"
        )
    width, channels = tensor(state, f"{LIST}{numbers[at - 1]}.weight", 4, source).shape[:2]

    blocks = [n for n, k in enumerate(kinds) if k in ("block", "resizing")]
    first = next((n for n, k in enumerate(kinds) if k in ("resizing", "strided")), None)
    each = (
        (len(blocks) - 3) // 2 if first is None else sum(n < first for n in blocks)
    )  # one resolution: down, two in the middle, up
    wide, attention, enters = [], [], None
    while True:
        level = len(wide)
        if kinds[at : at + 1] != ["block"]:
            raise UsageError(f"{source}: all_modules.{at} should be the first residual block of a resolution")
        wide.append(len(tensor(state, f"{LIST}{numbers[at]}.Conv_0.weight", 4, source)))
        if kinds[at + 1 : at + 2] == ["attention"]:
            attention.append(2**level)
        at += each * (1 + (2**level in attention))
        if kinds[at : at + 1] not in (["resizing"], ["strided"]):
            break
        at += 1
        if kinds[at : at + 1] in (["residual"], ["skip"]):
            enters, at = kinds[at], at + 1
    if "residual" in kinds[at:]:
        raise UsageError(
            f"{source} has a residual output (progressive=residual), which no released network has and which is not read"
        )
    style = style_of(kinds, modules, enters, leaves="norm" in kinds[at:-2], settings=settings)
    multipliers = tuple(w // width if w % width == 0 else w / width for w in wide)
    return Structure(channels, width, multipliers, each, tuple(attention), fourier, style)


def listing(state: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The tensors of each layer by its number."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"all_modules\.(\d{1,4})\.(.+)", name):
            found.setdefault(int(match[1]), {})[match[2]] = value
    return found


def kind(module: Mapping[str, Any]) -> str:
    """What a layer of the list is, by the names of its tensors."""
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
    """Of a tensor; empty for none."""
    return tuple(getattr(module.get(name), "shape", ()))


def style_of(
    kinds: list[str], modules: list[dict[str, Any]], enters: str | None, leaves: bool, settings: Settings
) -> UNetVariant:
    """The style of these layers."""
    time = Fourier() if kinds[0] == "fourier" else SINES
    if not settings.known:
        settings.say("nonlinearity='swish': no other is computed, and the weights of others look the same")
    if "strided" in kinds or any("Dense_0.weight" in module and "NIN_0.W" in module for module in modules):
        settings.refuse_unused("its sizes change by strides", "fir")
        # NCSN++ with resblock_type 'ddpm' has the same tensors, and skip_rescale is an option of NCSN++ alone.
        rescaled = settings.assume(
            "skip_rescale", False, "strides and no filters are read as Song et al.'s DDPM, not as an NCSN++"
        )
        return replace(SONG_DDPM, time=time, norm=DDPMPP.norm, gain=HALF) if rescaled else replace(SONG_DDPM, time=time)
    if enters == "residual":  # such a layer is there with filters alone
        settings.tell("fir", True)
    gain = HALF if settings.assume("skip_rescale", True, "as in all released NCSN++ and DDPM++") else 1.0
    taps = (
        SMOOTH if settings.assume("fir", enters is not None, "as in all released networks with this way down") else MEAN
    )
    if taps == SMOOTH and not settings.known:
        settings.say(
            "the filter is (1, 3, 3, 1), as fir_kernel of all released networks: no other is computed, and weights look the same"
        )
    entering = {"skip": InputSkip(taps), "residual": InputResidual(taps), None: None}[enters]
    resize = Resampled(taps, project=True)
    return replace(
        DDPMPP, time=time, resize=resize, gain=gain, enters=entering, leaves=OutputSkip(taps) if leaves else None
    )


def settled(settings: Settings, fourier: bool) -> tuple[str, bool]:
    """The process, and whether its time is continuous.

    As given, as the network says, or as the released path says, in this order.
    """
    source, sde, continuous = settings.source, settings.given.get("sde"), settings.given.get("continuous")
    if sde is None:
        sde = (
            settings.assume("sde", "ve", "Fourier features are those of VE in all released networks")
            if fourier
            else settings.get("sde")
        )
    if sde not in (*SDES, None):
        raise UsageError(f"{source}: sde={quoted(sde)} is not known: {PROCESS.partition(', which is ')[2]}")
    if sde is not None and ((sde == "ve") < fourier or (sde == "ve" and continuous not in (None, fourier))):
        says = (
            "Fourier features, which are those of continuous VE"
            if fourier
            else "steps for times, so that its VE is not continuous"
        )
        raise UsageError(
            f"{source}: sde={sde!r} and continuous={continuous}, but the network has {says}: leave both out, or correct them"
        )
    if sde == "subvp" and continuous is False:
        raise UsageError(
            f"{source}: sde='subvp' and continuous=False, but sub-VP has no chain of steps: leave continuous out"
        )
    settings.later(SIZE, image_size=32)
    if sde != "ve":
        settings.later(
            "the file does not tell the betas " + ("that VP and sub-VP have" if sde is None else f"of sde={sde!r}"),
            **BETAS,
        )
    if sde is None:
        settings.ask(PROCESS, sde="vp", continuous=True)
    if sde != "vp":
        return sde, sde == "subvp" or fourier
    if settings.get("continuous") is False:
        settings.later(CHAIN, num_scales=STEPS)
    return sde, settings.ask(PROCESS, continuous=True)[0]


def placed(network: UNet, process: tuple[str, bool], settings: Settings, state: Mapping[str, Any]) -> Learned:
    """The network under its process, on data of its range."""
    sde, continuous = process
    centered = settings.assume(
        "centered",
        sde != "ve",
        f"as all released {sde} networks, for images in {'[0, 1]' if sde == 've' else '[-1, 1]'}",
    )
    inner = network if centered else CenteredInput(network)
    made = ve(inner, continuous, settings, state) if sde == "ve" else vp(inner, sde, continuous, settings)
    made.quantization, made.shape = Quantization() if centered else Quantization(256, 0.0, 1.0), network.shape
    return made


def vp(network: nn.Module, sde: str, continuous: bool, settings: Settings) -> Learned:
    """Under VP or sub-VP; the time input of continuous ones is 999 t for any `num_scales`."""
    betas = settings.numbers(f"the file does not tell the betas of sde={sde!r}", **BETAS)
    if settings.assume("scale_by_sigma", False, "as all released VP and sub-VP networks"):
        raise UsageError(
            f"{settings.source}: scale_by_sigma=True of sde={sde!r} is not computed: only VE networks that divide by sigma are read"
        )
    if not continuous:
        (steps,) = settings.counts(CHAIN, num_scales=STEPS)
        settings.say("the code length takes the variance beta_t; DDIM's samples need none")
        return Learned(network, Tabulated(vp_betas(steps, *betas)), noise, step_index, scaled=False)
    if "num_scales" not in settings.told:
        settings.refuse_unused("continuous time has no steps", "num_scales")
    return Learned(network, (SubVP if sde == "subvp" else VP)(*betas), noise, song_vp, scaled=False)


def ve(network: nn.Module, continuous: bool, settings: Settings, state: Mapping[str, Any]) -> Learned:
    """Under VE, with the file's noise levels."""
    settings.refuse_unused("VE has no betas", *BETAS)
    levels = falling(tensor(state, "sigmas", 1, settings.source), settings.source).flip(0)
    if not settings.assume("scale_by_sigma", True, "as all released VE networks"):
        network = TimesSigma(network, None if continuous else levels.flip(0).float())
    if continuous:
        low, high = (float(f"{levels[n]:.12g}") for n in (0, -1))  # without the rounding of exp(log(sigma))
        return Learned(network, VE(low, high), scaled_score, log_noise_level, scaled=False)
    return Learned(network, NoiseLevels(levels), scaled_score, reversed_index, scaled=False)


def names(network: UNet, fourier: bool) -> Names:
    """Ours to theirs, by counting along the list."""
    found: Names = {"time.encode.frequencies": f"{LIST}0.W"} if fourier else {}
    for ours in ("time.mlp.0", "time.mlp.2", "stem"):
        found |= renamed("", "", {ours: f"{LIST}{len(found) // 2 + fourier}"})
    number = 3 + fourier
    for layer in layers(network):
        found |= layer_names(layer, number, skip="NIN_0" if isinstance(network.style.resize, Strided) else "Conv_2")
        number += 2 if layer.place.role == "leave" else 1
    return found | renamed("head", "", {"0": f"{LIST}{number}", "2": f"{LIST}{number + 1}"})


def layer_names(layer: Layer, number: int, skip: str) -> Names:
    """Ours to theirs for the layer that is `number` in the list.

    A prediction on the way up is a norm and a convolution there.
    """
    theirs, role, module = f"{LIST}{number}", layer.place.role, layer.module
    if role == "attention":
        of = [(f"{theirs}.NIN_{n}.W", f"{theirs}.NIN_{n}.b") for n in range(4)]
        found = renamed(layer.name, theirs, {"norm": "GroupNorm_0"}) | separate(layer, *of[:3], flip=True)
        return found | nin(f"{layer.name}.out", f"{theirs}.NIN_3", 1)
    if isinstance(module, ResidualBlock):
        found = block_names(layer, theirs, BLOCK | {"skip": skip})
        return (
            found | nin(f"{layer.name}.skip", f"{theirs}.{skip}", 2)
            if skip == "NIN_0" and f"{layer.name}.skip.weight" in found
            else found
        )
    if role == "enter":
        residual = hasattr(module, "shrink")
        return renamed(layer.name, theirs, {"shrink.conv": "Conv2d_0"} if residual else {"conv": "Conv_0"})
    if role == "leave":
        return renamed(f"{layer.name}.head", "", {"0": theirs, "2": f"{LIST}{number + 1}"})
    return renamed(layer.name, theirs, {"conv": "Conv_0"})


def nin(ours: str, theirs: str, dims: int) -> Names:
    """Names of a convolution one wide over `dims` dimensions, for a matrix `(in, out)`."""
    return {
        f"{ours}.weight": Made((f"{theirs}.W",), lambda w: w.transpose(0, 1)[(..., *[None] * dims)]),
        f"{ours}.bias": f"{theirs}.b",
    }
