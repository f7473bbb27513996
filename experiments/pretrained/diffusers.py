"""Folders of the diffusers library: a `UNet2DModel` and its scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...continuous import Learned, Tabulated, cosine_betas, zero_terminal
from ...continuous.posterior import ReverseVariance
from ...shared.errors import UsageError
from ...shared.networks import UNet
from ...shared.networks.blocks import Groups
from ...shared.networks.embeddings import Sinusoidal
from ...shared.networks.unet_variants import Strided, UNetVariant
from ...shared.quantization import Quantization
from ...shared.time_inputs import TimeInput, step_index, thousandth_index, thousandths
from .diffusers_options import (
    AVERAGING,
    BESIDE,
    DOWN,
    FIXED,
    NULL,
    OPTIONS,
    OWN,
    PREDICTIONS,
    SAMPLING,
    SCHEDULERS,
    TABLE,
    TRACELESS,
    UP,
    left_out,
    refuse_unknown,
    settled,
    several,
    used,
    whole,
)
from .files import json_object, naming, read
from .unets import Layer, as_conv1d, block_names, layers, separate
from .weights import Made, Names, fill, renamed

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
"""Names of attention layers before diffusers 0.12, as the older files on the Hub have them."""
LABELS = (step_index, thousandths, thousandth_index)
TIME_TABLE = "time_proj.weight"
LATENTS = ("vae", "vqvae", "movq")


def looks_like(folder: Path) -> bool:
    """Whether a folder is of diffusers: a pipeline, or one model. What it holds may be none that is read."""
    home = _home(folder)
    return (folder / "model_index.json").is_file() or (
        home is not None and "_class_name" in json_object(home / "config.json")
    )


def denoiser(folder: Path) -> Learned:
    """The model under its scheduler's table of betas; `.assumed` is what no file tells, a sentence each.

    Its estimates are clipped as the scheduler's are (`.clip`, of `Chains`), and its reverse variance is the scheduler's
    (`.variance`).

    Raises:
        UsageError: for models of latents, classes and options that these networks do not have, with their names, and
            weights that are missing or do not fit.
    """
    index = json_object(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    if coder := next((name for name in LATENTS if index.get(name) not in (None, [None, None])), None):
        raise UsageError(
            f"{folder}: its network makes latents, which its {coder} decodes; networks of pixels are read here"
        )
    home = _home(folder)
    if home is None:
        raise UsageError(
            f"{folder}: a {index.get('_class_name')} without unet/config.json is not read here; those with a UNet2DModel are"
        )
    config = json_object(home / "config.json")
    if (kind := config.get("_class_name")) != "UNet2DModel":
        raise UsageError(f"{home}: a {str(kind)[:60]} is not read here; a UNet2DModel is")
    files = [home / f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "bin")]
    path = next((p for p in files if p.is_file()), None)
    if path is None:
        raise UsageError(
            f"there are no weights in {home}: {files[0].name} or {files[1].name} is expected beside config.json"
        )
    scheduler, network = _scheduler(folder), unet(config, str(home))
    schedule, state = table(scheduler, str(folder)), state_of(path)
    fill(network, names(network), state, str(path), ignored=[TIME_TABLE])
    label = (
        step_index
        if config.get("time_embedding_type") != "learned"
        else label_of(state.get(TIME_TABLE), network, schedule, str(path))
    )
    told = read_of(scheduler, str(folder))
    variance = variance_of(told, network, str(folder))
    with naming(f"{folder}: scheduler_config.json"):
        learned = Learned(network, schedule, PREDICTIONS[told["prediction_type"]], label)
    learned.quantization, learned.shape, learned.clip = Quantization(), network.shape, clip_of(told)
    if variance is not None:
        learned.variance = variance
    learned.assumed = (
        *left_out(config, settled(config, OPTIONS, str(home), ""), TRACELESS, "unet's config.json"),
        *left_out(scheduler, told, used(told), "scheduler_config.json"),
        *unread(scheduler, learned.clip),
        *(
            [f"the code length takes the variance beta_t, {silent(scheduler)}"]
            if variance is None and network.outputs == 1
            else []
        ),
    )
    return learned


def state_of(path: Path) -> dict[str, Any]:
    """The state dict in a file, under the names of today."""
    contents = read(path)
    if not isinstance(contents, Mapping) or not all(isinstance(name, str) for name in contents):
        raise UsageError(
            f"{path} holds a {type(contents).__name__} that is no state dict of names and tensors: fetch it again"
        )
    return {modern(name): value for name, value in contents.items()}


def unet(config: Mapping[str, Any], source: str) -> UNet:
    """The network of a `UNet2DModel`'s configuration."""
    refuse_unknown(config, (*OPTIONS, *BESIDE, *AVERAGING), f"{source}/config.json")
    told = settled(config, OPTIONS, source, "no network here")
    down, up, wide, size = (
        told["down_block_types"],
        told["up_block_types"],
        told["block_out_channels"],
        config.get("sample_size"),
    )
    attends, groups, channels, out = (
        [DOWN[kind] for kind in down],
        told["norm_num_groups"],
        told["in_channels"],
        told["out_channels"],
    )
    if attends != [UP[kind] for kind in reversed(up)] or config.get("attn_norm_num_groups") not in (None, groups):
        raise UsageError(
            f"{source}: {down} and {up}: attention on the way up mirrors that on the way down in the networks here"
        )
    if len(wide) != len(down) or out not in (channels, 2 * channels):
        raise UsageError(
            f"{source}: block_out_channels={wide} for {len(down)} resolutions, and in_channels={channels} with out_channels={out}: "
            "networks here have one number for each resolution, and as many channels out as in, or twice as many"
        )
    if not whole(size) and not (several(size, whole) and len(size) == 2):
        raise UsageError(
            f"{source}: sample_size={size!r} is no size of images: write that of the training into config.json, such as 32"
        )
    null = config.get(NULL) is True
    style = UNetVariant(
        norm=Groups(groups, 1, told["norm_eps"]),
        adaptive=told["resnet_time_scale_shift"] == "scale_shift",
        resize=Strided(same=told["downsample_padding"] == 0),
        head_width=told["attention_head_dim"],
        time=Sinusoidal(bool(told["flip_sin_to_cos"]), told["freq_shift"] == 1),
    )
    return UNet(
        (channels, *((size, size) if isinstance(size, int) else size)),
        wide[0],
        [c / wide[0] for c in wide],
        told["layers_per_block"],
        [2**n for n, attend in enumerate(attends) if attend],
        dropout=told["dropout"],
        classes=None if told["num_class_embeds"] is None else told["num_class_embeds"] - null,
        outputs=out // channels,
        variant=style,
        null_label=null,
    )


def read_of(scheduler: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns the settings that are read from a scheduler's configuration, with the defaults of that scheduler.

    Raises:
        UsageError: for a scheduler that is not in `SCHEDULERS`, a configuration without betas, values that are not
            supported, and entries with unknown names.
    """
    if (kind := scheduler.get("_class_name")) not in SCHEDULERS:
        raise UsageError(f"{source}: a {str(kind)[:60]} is not read here; these are: {', '.join(SCHEDULERS)}")
    if scheduler.get("beta_schedule") is None and scheduler.get("trained_betas") is None:
        raise UsageError(
            f"{source}: scheduler_config.json says neither beta_schedule nor trained_betas: fetch the one of the training"
        )
    found = OWN.get(kind, {}) | dict(scheduler)
    if "predict_epsilon" in found:  # as versions before 0.10 wrote it
        found = {"prediction_type": "epsilon" if found.pop("predict_epsilon") in (True, None) else "sample"} | found
    refuse_unknown(found, (*TABLE, *SAMPLING), f"{source}: scheduler_config.json")
    told = settled(found, TABLE, source, "no table here")
    if told["thresholding"] and told["sample_max_value"] != 1:
        raise UsageError(
            f"{source}: thresholding=True with sample_max_value={told['sample_max_value']}: a largest value of 1 is read, which clips"
        )
    return told


def clip_of(told: Mapping[str, Any]) -> float | None:
    """How far the scheduler lets estimates go; infinity where it does not clip, None where it has no such setting."""
    if told["thresholding"]:
        return 1.0
    return {None: None, False: math.inf, True: float(told["clip_sample_range"])}[told["clip_sample"]]


def variance_of(told: Mapping[str, Any], network: UNet, source: str) -> ReverseVariance | None:
    """The scheduler's reverse variance; None where it has none, or the network says it.

    Raises:
        UsageError: where the network has twice the channels and the scheduler does not read them, or the other way
            round.
    """
    name, twice = told["variance_type"], network.outputs == 2
    if twice != (name == "learned_range"):
        channels = f"in_channels={network.shape[0]} and out_channels={network.shape[0] * network.outputs}"
        raise UsageError(
            f"{source}: variance_type={name!r} in scheduler_config.json and {channels} in config.json: networks of twice the channels "
            "are those of learned_range, and these alone; write into scheduler_config.json what it was in training"
        )
    return FIXED.get(name)


def unread(scheduler: Mapping[str, Any], clip: float | None) -> tuple[str, ...]:
    """What a scheduler's own sampler does in another way than DDIM here."""
    kind = scheduler["_class_name"]
    other = [
        f"{name}={v!r}" for name, usual in SAMPLING.items() if (v := scheduler.get(name)) is not None and v not in usual
    ]
    said = [
        f"samples are drawn by DDIM on evenly spaced steps, not by the {kind}"
        + (f" ({', '.join(other)})" if other else "")
    ]
    return (*said, *([f"estimates are clipped to [-1, 1], {silent(scheduler)}"] if clip is None else []))


def silent(scheduler: Mapping[str, Any]) -> str:
    """Why something is assumed that a scheduler has no setting of."""
    return f"as a {scheduler['_class_name']} does not say"


def table(scheduler: Mapping[str, Any], source: str) -> Tabulated:
    """The betas of a scheduler's configuration.

    Raises:
        UsageError: for a configuration that `read_of` refuses, and a table of another length than the steps.
    """
    told = read_of(scheduler, source)
    steps, (low, high) = told["num_train_timesteps"], (told["beta_start"], told["beta_end"])
    if told["trained_betas"] is not None and scheduler.get("num_train_timesteps") not in (
        None,
        len(told["trained_betas"]),
    ):
        raise UsageError(
            f"{source}: num_train_timesteps={steps}, and trained_betas are {len(told['trained_betas'])}: correct the one"
        )
    if (betas := told["trained_betas"]) is not None:
        betas = torch.tensor(betas, dtype=torch.float64)
    elif told["beta_schedule"] == "linear":
        betas = torch.linspace(low, high, steps, dtype=torch.float64)
    elif told["beta_schedule"] == "scaled_linear":
        betas = torch.linspace(low**0.5, high**0.5, steps, dtype=torch.float64) ** 2
    else:
        with naming(f"{source}: scheduler_config.json"):
            betas = cosine_betas(steps)
    with naming(f"{source}: scheduler_config.json"):
        return Tabulated(zero_terminal(betas) if told["rescale_betas_zero_snr"] else betas)


def names(network: UNet) -> Names:
    """Ours to theirs."""
    found: Names = renamed("", "", ENDS)
    if network.label is not None:
        found["label.table.weight"] = "class_embedding.weight"
    for layer in layers(network):
        found |= _names(layer, len(network.multipliers))
    return found


def _names(layer: Layer, levels: int) -> Names:
    part, level, index, role = layer.place
    if part == "middle":
        theirs = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")[index]
    else:
        inside = {"block": f"resnets.{index}", "attention": f"attentions.{index}"}.get(role, f"{part}samplers.0")
        theirs = f"{part}_blocks.{level if part == 'down' else levels - 1 - level}.{inside}"
    if role == "block":
        return block_names(layer, theirs, BLOCK)
    if role == "attention":
        q, k, v = ((f"{theirs}.to_{n}.weight", f"{theirs}.to_{n}.bias") for n in "qkv")
        found = renamed(layer.name, theirs, {"norm": "group_norm"}) | separate(layer, q, k, v)
        found |= {f"{layer.name}.out.{t}": Made((f"{theirs}.to_out.0.{t}",), as_conv1d) for t in ("weight", "bias")}
        return found
    return renamed(layer.name, theirs, {"conv": "conv"})


def modern(name: str) -> str:
    """A tensor's name as diffusers gives it today."""
    parts = name.split(".")
    if "attentions" in parts[:-1] and parts[-2] in OLD:
        parts[-2] = OLD[parts[-2]]
    return ".".join(parts)


def indices(schedule: Tabulated) -> Tensor:
    """The numbers of the steps there, 0..T - 1."""
    return torch.arange(schedule.steps, dtype=torch.float64)


def features(network: UNet, schedule: Tabulated, label: TimeInput) -> Tensor:
    """The time features of every step, `(T, width)`."""
    return network.time.encode(label(schedule, (indices(schedule) + 1) / schedule.steps).float())


def label_of(found: Tensor | None, network: UNet, schedule: Tabulated, source: str) -> TimeInput:
    """The label whose features a table holds."""
    for label in LABELS:
        expected = features(network, schedule, label)
        if (
            isinstance(found, Tensor)
            and found.shape == expected.shape
            and torch.allclose(found.float(), expected, rtol=0, atol=1e-4)
        ):
            return label
    raise UsageError(
        f"{source}: its time features are a table ({TIME_TABLE}) of other numbers than sines; networks here have sines"
    )


def _home(folder: Path) -> Path | None:
    """Where the U-Net of a folder lies: in it, or in its `unet`.

    Averaged weights, which a training keeps beside the raw ones, first.
    """
    return next((p for p in (folder / "unet_ema", folder / "unet", folder) if (p / "config.json").is_file()), None)


def _scheduler(folder: Path) -> dict[str, Any]:
    home = next((p for p in (folder / "scheduler", folder) if (p / "scheduler_config.json").is_file()), None)
    if home is None:
        raise UsageError(
            f"there is no scheduler_config.json in {folder}: it says what the network was trained on; put it beside config.json"
        )
    return json_object(home / "scheduler_config.json")
