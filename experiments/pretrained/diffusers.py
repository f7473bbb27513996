"""Imports folders of the diffusers library: a `UNet2DModel` and its scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...continuous import BetaTable, Learned, Tabulated, cosine_betas, zero_terminal
from ...continuous.posterior import ReverseVariance
from ...shared.errors import UsageError
from ...shared.gaussian.schedule import Schedule
from ...shared.networks import UNet
from ...shared.networks.blocks import GroupNormalization
from ...shared.networks.embeddings import Sinusoidal
from ...shared.networks.unet_variants import Strided, UNetVariant
from ...shared.quantization import Quantization
from ...shared.time_inputs import TimeInput, step_index, thousandth_index, thousandths
from .diffusers_options import (
    AVERAGING,
    BESIDE,
    DOWN,
    FIXED,
    NOT_IN_SHAPES,
    NULL,
    OPTIONS,
    PREDICTIONS,
    SAMPLING,
    SCHEDULER_DEFAULTS,
    SCHEDULERS,
    TABLE,
    UP,
    left_out,
    read_options,
    refuse_unknown,
    relevant,
    several,
    whole,
)
from .files import json_object, naming, read
from .settings import attach
from .unets import Layer, as_conv1d, block_names, layers, separate
from .weights import Converted, Names, fill, renamed

BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "modulation": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
ENDS = {
    "time.mlp.0": "time_embedding.linear_1",
    "time.mlp.2": "time_embedding.linear_2",
    "stem": "conv_in",
    "head.0": "conv_norm_out",
    "head.2": "conv_out",
}
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention layers before diffusers 0.12, which older files on the Hub have."""
TIME_INPUTS = (step_index, thousandths, thousandth_index)
TIME_TABLE = "time_proj.weight"
LATENTS = ("vae", "vqvae", "movq")


def looks_like(folder: Path) -> bool:
    """Returns whether a folder is a pipeline or a model of diffusers, supported or not."""
    home = _home(folder)
    return (folder / "model_index.json").is_file() or (
        home is not None and "_class_name" in json_object(home / "config.json")
    )


def denoiser(folder: Path) -> Learned:
    """Returns the model with its scheduler's table of betas; `.assumed` lists assumptions, one sentence each.

    Its estimates are clipped as in the scheduler (`.clip`, read by `Chains`), and its reverse variance is the
    scheduler's (`.variance`).

    Raises:
        UsageError: for latent-diffusion models, for classes and options that this package does not support, with their
            names, and for weights that are missing or do not fit.
    """
    index = json_object(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    if coder := next((name for name in LATENTS if index.get(name) not in (None, [None, None])), None):
        raise UsageError(
            f"{folder}: its network generates latents, which its {coder} decodes; only networks of pixels are supported"
        )
    home = _home(folder)
    if home is None:
        raise UsageError(
            f"{folder}: a {index.get('_class_name')} without unet/config.json is not supported; "
            "pipelines with a UNet2DModel are"
        )
    config = json_object(home / "config.json")
    if (kind := config.get("_class_name")) != "UNet2DModel":
        raise UsageError(f"{home}: a {str(kind)[:60]} is not supported; a UNet2DModel is")
    files = [home / f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "bin")]
    path = next((p for p in files if p.is_file()), None)
    if path is None:
        raise UsageError(f"there are no weights in {home}: put {files[0].name} or {files[1].name} beside config.json")
    scheduler, network = _scheduler(folder), unet(config, str(home))
    schedule, state = table(scheduler, str(folder)), state_of(path)
    fill(network, names(network), state, str(path), ignored=[TIME_TABLE])
    time_input = (
        step_index
        if config.get("time_embedding_type") != "learned"
        else time_input_of(state.get(TIME_TABLE), network, schedule, str(path))
    )
    options = scheduler_options(scheduler, str(folder))
    variance, clip = variance_of(options, network, str(folder)), clip_of(options)
    with naming(f"{folder}: scheduler_config.json"):
        learned = Learned(network, schedule, PREDICTIONS[options["prediction_type"]], time_input)
    attach(learned, quantization=Quantization(), shape=network.shape, clip=clip)
    if variance is not None:
        attach(learned, variance=variance)
    assumed = (
        *left_out(config, read_options(config, OPTIONS, str(home), "network"), NOT_IN_SHAPES, "unet's config.json"),
        *left_out(scheduler, options, relevant(options), "scheduler_config.json"),
        *sampling_notes(scheduler, clip),
        *(
            [f"the code length uses the variance beta_t, {no_setting(scheduler)}"]
            if variance is None and network.outputs == 1
            else []
        ),
    )
    attach(learned, assumed=assumed)
    return learned


def state_of(path: Path) -> dict[str, Any]:
    """Returns the state dict in a file, under diffusers' current names."""
    contents = read(path)
    if not isinstance(contents, Mapping) or not all(isinstance(name, str) for name in contents):
        raise UsageError(
            f"{path} contains a {type(contents).__name__} that is not a state dict of names and tensors: "
            "download it again"
        )
    return {modern(name): value for name, value in contents.items()}


def unet(config: Mapping[str, Any], source: str) -> UNet:
    """Builds the network of a `UNet2DModel`'s configuration."""
    refuse_unknown(config, (*OPTIONS, *BESIDE, *AVERAGING), f"{source}/config.json")
    options = read_options(config, OPTIONS, source, "network")
    down, up, wide = options["down_block_types"], options["up_block_types"], options["block_out_channels"]
    channels, out, groups = options["in_channels"], options["out_channels"], options["norm_num_groups"]
    attends, size = [DOWN[kind] for kind in down], config.get("sample_size")
    if attends != [UP[kind] for kind in reversed(up)] or config.get("attn_norm_num_groups") not in (None, groups):
        raise UsageError(
            f"{source}: {down} and {up} are not supported: attention on the way up must mirror that on the way down, "
            "with attn_norm_num_groups equal to norm_num_groups"
        )
    if len(wide) != len(down) or out not in (channels, 2 * channels):
        raise UsageError(
            f"{source}: block_out_channels={wide} for {len(down)} resolutions, and in_channels={channels} with "
            f"out_channels={out}, are not supported: give one number for each resolution, and as many output as input "
            "channels, or twice as many"
        )
    pixels: tuple[int, ...]
    if isinstance(size, int) and whole(size):
        pixels = (size, size)
    elif isinstance(size, list | tuple) and several(size, whole) and len(size) == 2:
        pixels = tuple(size)
    else:
        raise UsageError(
            f"{source}: sample_size={size!r} is not an image size: write that of the training into config.json, "
            "such as 32"
        )
    null = config.get(NULL) is True
    variant = UNetVariant(
        norm=GroupNormalization(groups, 1, options["norm_eps"]),
        adaptive=options["resnet_time_scale_shift"] == "scale_shift",
        resize=Strided(same=options["downsample_padding"] == 0),
        head_width=options["attention_head_dim"],
        time=Sinusoidal(bool(options["flip_sin_to_cos"]), options["freq_shift"] == 1),
    )
    return UNet(
        (channels, *pixels),
        wide[0],
        [c / wide[0] for c in wide],
        options["layers_per_block"],
        [2**n for n, attend in enumerate(attends) if attend],
        dropout=options["dropout"],
        classes=None if options["num_class_embeds"] is None else options["num_class_embeds"] - null,
        outputs=out // channels,
        variant=variant,
        null_label=null,
    )


def scheduler_options(scheduler: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns the options that are read from a scheduler's configuration, with the defaults of that scheduler.

    Raises:
        UsageError: for a scheduler that is not in `SCHEDULERS`, a configuration without betas, values that are not
            supported, and entries with unknown names.
    """
    if (kind := scheduler.get("_class_name")) not in SCHEDULERS:
        raise UsageError(f"{source}: a {str(kind)[:60]} is not supported; these are: {', '.join(SCHEDULERS)}")
    if scheduler.get("beta_schedule") is None and scheduler.get("trained_betas") is None:
        raise UsageError(
            f"{source}: scheduler_config.json contains neither beta_schedule nor trained_betas: "
            "use the one of the training"
        )
    entries = SCHEDULER_DEFAULTS.get(kind, {}) | dict(scheduler)
    if "predict_epsilon" in entries:  # versions before 0.10
        prediction = "epsilon" if entries.pop("predict_epsilon") in (True, None) else "sample"
        entries = {"prediction_type": prediction} | entries
    refuse_unknown(entries, (*TABLE, *SAMPLING), f"{source}: scheduler_config.json")
    options = read_options(entries, TABLE, source, "schedule")
    if options["thresholding"] and options["sample_max_value"] != 1:
        raise UsageError(
            f"{source}: thresholding=True with sample_max_value={options['sample_max_value']} is not supported; "
            "sample_max_value=1, which clips, is"
        )
    return options


def clip_of(options: Mapping[str, Any]) -> float | None:
    """Returns the bound that estimates are clipped to; infinity if they are not, None if the setting is absent."""
    if options["thresholding"]:
        return 1.0
    return {None: None, False: math.inf, True: float(options["clip_sample_range"])}[options["clip_sample"]]


def variance_of(options: Mapping[str, Any], network: UNet, source: str) -> ReverseVariance | None:
    """Returns the scheduler's reverse variance; None if it does not have one, or the network predicts it.

    Raises:
        UsageError: where the network has twice the channels and the scheduler does not read them, or the other way
            round.
    """
    name, twice = options["variance_type"], network.outputs == 2
    if twice != (name == "learned_range"):
        channels = f"in_channels={network.shape[0]} and out_channels={network.shape[0] * network.outputs}"
        raise UsageError(
            f"{source}: variance_type={name!r} in scheduler_config.json and {channels} in config.json: 'learned_range' "
            "is for networks with twice as many output channels, and only for them; write the value of training into "
            "scheduler_config.json"
        )
    return FIXED.get(name)


def sampling_notes(scheduler: Mapping[str, Any], clip: float | None) -> tuple[str, ...]:
    """Returns sentences about what a scheduler's own sampler does differently from DDIM here."""
    kind = scheduler["_class_name"]
    other = [
        f"{name}={v!r}" for name, usual in SAMPLING.items() if (v := scheduler.get(name)) is not None and v not in usual
    ]
    notes = [
        f"samples are drawn by DDIM on evenly spaced steps, not by the {kind}"
        + (f" ({', '.join(other)})" if other else "")
    ]
    return (*notes, *([f"estimates are clipped to [-1, 1], {no_setting(scheduler)}"] if clip is None else []))


def no_setting(scheduler: Mapping[str, Any]) -> str:
    """Returns the reason for an assumption about a setting that a scheduler does not have."""
    return f"as a {scheduler['_class_name']} has no such setting"


def table(scheduler: Mapping[str, Any], source: str) -> Tabulated:
    """Returns the schedule of a scheduler's configuration.

    Raises:
        UsageError: for a configuration that `scheduler_options` refuses, and a table of another length than the steps.
    """
    options = scheduler_options(scheduler, source)
    trained = options["trained_betas"]
    if trained is not None and scheduler.get("num_train_timesteps") not in (None, len(trained)):
        raise UsageError(
            f"{source}: num_train_timesteps={options['num_train_timesteps']}, but trained_betas has {len(trained)} "
            "values: correct one"
        )
    with naming(f"{source}: scheduler_config.json"):
        return Tabulated(betas_of_options(options))


def betas_of_options(options: Mapping[str, Any]) -> Tensor:
    """Returns the betas that the options of a scheduler define, in float64, `(T,)`.

    Raises:
        UsageError: for a table of one step that is to end at zero SNR.
    """
    steps, (low, high) = options["num_train_timesteps"], (options["beta_start"], options["beta_end"])
    if options["trained_betas"] is not None:
        betas = torch.tensor(options["trained_betas"], dtype=torch.float64)
    elif options["beta_schedule"] == "linear":
        betas = torch.linspace(low, high, steps, dtype=torch.float64)
    elif options["beta_schedule"] == "scaled_linear":
        betas = torch.linspace(low**0.5, high**0.5, steps, dtype=torch.float64) ** 2
    else:
        betas = cosine_betas(steps)
    return zero_terminal(betas) if options["rescale_betas_zero_snr"] else betas


def names(network: UNet) -> Names:
    """Returns the name in the file of each of the network's tensors."""
    names: Names = renamed("", "", ENDS)
    if network.label is not None:
        names["label.table.weight"] = "class_embedding.weight"
    for layer in layers(network):
        names |= _names(layer, len(network.multipliers))
    return names


def _names(layer: Layer, resolutions: int) -> Names:
    part, resolution, index, role = layer.place
    if part == "middle":
        theirs = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")[index]
    else:
        inside = {"block": f"resnets.{index}", "attention": f"attentions.{index}"}.get(role, f"{part}samplers.0")
        theirs = f"{part}_blocks.{resolution if part == 'down' else resolutions - 1 - resolution}.{inside}"
    if role == "block":
        return block_names(layer, theirs, BLOCK)
    if role == "attention":
        q, k, v = ((f"{theirs}.to_{n}.weight", f"{theirs}.to_{n}.bias") for n in "qkv")
        names = renamed(layer.name, theirs, {"norm": "group_norm"}) | separate(layer, q, k, v)
        return names | {
            f"{layer.name}.out.{t}": Converted((f"{theirs}.to_out.0.{t}",), as_conv1d) for t in ("weight", "bias")
        }
    return renamed(layer.name, theirs, {"conv": "conv"})


def modern(name: str) -> str:
    """Returns diffusers' current name of a tensor."""
    parts = name.split(".")
    if "attentions" in parts[:-1] and parts[-2] in OLD:
        parts[-2] = OLD[parts[-2]]
    return ".".join(parts)


def indices(schedule: BetaTable) -> Tensor:
    """Returns diffusers' indices of the steps, 0..T - 1, float64 `(T,)`."""
    return torch.arange(schedule.steps, dtype=torch.float64)


def features(network: UNet, schedule: BetaTable, time_input: TimeInput[Schedule]) -> Tensor:
    """Returns the time features of every step, `(T, width)`."""
    return network.time.encode(time_input(schedule, (indices(schedule) + 1) / schedule.steps).float())


def time_input_of(stored: Tensor | None, network: UNet, schedule: BetaTable, source: str) -> TimeInput[Schedule]:
    """Returns the time input whose features a table contains."""
    for time_input in TIME_INPUTS:
        expected = features(network, schedule, time_input)
        if (
            isinstance(stored, Tensor)
            and stored.shape == expected.shape
            and torch.allclose(stored.float(), expected, rtol=0, atol=1e-4)
        ):
            return time_input
    raise UsageError(
        f"{source}: its table of time features ({TIME_TABLE}) does not consist of the sines of a known time input: "
        "only sinusoidal time features are supported"
    )


def _home(folder: Path) -> Path | None:
    """Returns the folder of the U-Net: averaged weights, which a training keeps beside raw ones, come first."""
    return next((p for p in (folder / "unet_ema", folder / "unet", folder) if (p / "config.json").is_file()), None)


def _scheduler(folder: Path) -> dict[str, Any]:
    home = next((p for p in (folder / "scheduler", folder) if (p / "scheduler_config.json").is_file()), None)
    if home is None:
        raise UsageError(
            f"there is no scheduler_config.json in {folder}, which contains the schedule of training: "
            "put it beside config.json"
        )
    return json_object(home / "scheduler_config.json")
