"""Folders of the diffusers library: a `UNet2DModel` and its scheduler, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...continuous import Learned, Tabulated, clean, cosine_betas, noise, velocity, zero_terminal
from ...shared.errors import UsageError
from ...shared.labels import step_index
from ...shared.networks import UNet
from ...shared.networks.blocks import Groups, SelfAttention
from ...shared.networks.embeddings import Sinusoidal
from ...shared.networks.style import Strided, Style
from ...shared.scale import Scale
from .files import read
from .unets import Layer, as_conv1d, block_names, layers, separate
from .weights import Made, Names, fill, renamed

BLOCK = {"norm1": "norm1", "conv1": "conv1", "modulation": "time_emb_proj", "norm2": "norm2", "conv2": "conv2", "skip": "conv_shortcut"}
ENDS = {
    "time.mlp.0": "time_embedding.linear_1",
    "time.mlp.2": "time_embedding.linear_2",
    "stem": "conv_in",
    "head.0": "conv_norm_out",
    "head.2": "conv_out",
}
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention layers before diffusers 0.12, as the older files on the Hub have them."""
DOWN, UP = {"DownBlock2D": False, "AttnDownBlock2D": True}, {"UpBlock2D": False, "AttnUpBlock2D": True}
PREDICTIONS = {"epsilon": noise, "sample": clean, "v_prediction": velocity}
EXPECTED = {
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_type": ("conv",),
    "mid_block_scale_factor": (1, 1.0),
    "mid_block_type": ("UNetMidBlock2D",),
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv",),
}
"""Options of `UNet2DModel` with one value that is read here; where a file leaves them out they have it."""


def looks_like(folder: Path) -> bool:
    """Whether a folder holds a `UNet2DModel`, alone or in a pipeline."""
    return (home := _home(folder)) is not None and "UNet2DModel" in (home / "config.json").read_text()


def denoiser(folder: Path) -> Learned:
    """The model under its scheduler's table of betas.

    Raises:
        UsageError: for options that these networks do not have, with their names, and weights that do not fit.
    """
    home = _home(folder)
    config, scheduler = _json(home / "config.json"), _scheduler(folder)
    network = unet(config, str(home))
    files = [home / f"diffusion_pytorch_model.{kind}" for kind in ("safetensors", "bin")]
    path = next((p for p in files if p.is_file()), None)
    if path is None:
        raise UsageError(f"there are no weights in {home}: {files[0].name} or {files[1].name} is expected beside config.json")
    state = {modern(k): v for k, v in read(path).items()}
    fill(network, names(network), state, str(path))
    learned = Learned(network, table(scheduler, str(folder)), PREDICTIONS[scheduler.get("prediction_type", "epsilon")], step_index)
    learned.scale, learned.shape = Scale(), network.shape
    return learned


def unet(config: Mapping[str, Any], source: str) -> UNet:
    """The network of a `UNet2DModel`'s configuration."""
    other = {k: config[k] for k, known in EXPECTED.items() if k in config and config[k] not in known}
    down, up = config["down_block_types"], config["up_block_types"]
    other |= {k: v for k, v in (("down_block_types", down), ("up_block_types", up)) if not set(v) <= {*DOWN, *UP}}
    if other:
        raise UsageError(f"{source}: no network here has {', '.join(f'{k}={v!r}' for k, v in other.items())}; DDPM-like ones are read")
    attends = [DOWN[kind] for kind in down]
    if attends != [UP[kind] for kind in reversed(up)] or config.get("attn_norm_num_groups") not in (None, config.get("norm_num_groups")):
        raise UsageError(f"{source}: {down} and {up}: attention on the way up mirrors that on the way down in the networks here")
    channels, wide = config["in_channels"], config["block_out_channels"]
    size = config.get("sample_size") or 32
    style = Style(
        norm=Groups(config.get("norm_num_groups") or 32, 1, config.get("norm_eps", 1e-5)),
        adaptive=config.get("resnet_time_scale_shift", "default") == "scale_shift",
        resize=Strided(same=config.get("downsample_padding", 1) == 0),
        head_width=config.get("attention_head_dim", 8),
        time=Sinusoidal(config.get("flip_sin_to_cos", True), config.get("freq_shift", 0) == 1),
    )
    return UNet(
        (channels, *((size, size) if isinstance(size, int) else size)),
        wide[0],
        [c / wide[0] for c in wide],
        config.get("layers_per_block", 2),
        [2**n for n, attend in enumerate(attends) if attend],
        dropout=config.get("dropout", 0.0),
        classes=config.get("num_class_embeds"),
        outputs=config["out_channels"] // channels,
        style=style,
        null_label=False,
    )


def table(scheduler: Mapping[str, Any], source: str) -> Tabulated:
    """The betas of a scheduler's configuration."""
    steps = scheduler.get("num_train_timesteps", 1000)
    ends = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    kind = scheduler.get("beta_schedule", "linear")
    if (betas := scheduler.get("trained_betas")) is not None:
        betas = torch.tensor(betas, dtype=torch.float64)
    elif kind == "linear":
        betas = torch.linspace(*ends, steps, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(ends[0] ** 0.5, ends[1] ** 0.5, steps, dtype=torch.float64) ** 2
    elif kind == "squaredcos_cap_v2":
        betas = cosine_betas(steps)
    else:
        raise UsageError(f"{source}: beta_schedule={kind!r} is not known here: linear, scaled_linear and squaredcos_cap_v2 are")
    if scheduler.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise UsageError(f"{source}: prediction_type={scheduler['prediction_type']!r}: give one of {', '.join(PREDICTIONS)}")
    return Tabulated(zero_terminal(betas) if scheduler.get("rescale_betas_zero_snr") else betas)


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
    if "attentions" in parts and parts[-2] in OLD:
        parts[-2] = OLD[parts[-2]]
    return ".".join(parts)


def export(denoiser: Learned, folder: Path) -> Path:
    """Writes a denoiser as a folder that `DDPMPipeline.from_pretrained` opens: `unet/`, `scheduler/` and `model_index.json`.

    The scheduler samples as Ho et al. (2020) do: the large variance, or the learned one, and x_0 clipped to [-1, 1].

    Raises:
        UsageError: for what `UNet2DModel` and `DDPMScheduler` do not have, with each reason; nothing is written then.
    """
    if reasons := unlike(denoiser):
        raise UsageError(f"this denoiser cannot be written for diffusers: {'; '.join(reasons)}")
    network, own = denoiser.network, denoiser.network.state_dict()
    state = {}
    for ours, theirs in names(network).items():
        parts = own[ours].chunk(len(theirs.names)) if isinstance(theirs, Made) else [own[ours]]
        linear = isinstance(theirs, Made) and own[ours].ndim == 3  # attention: one-wide convolutions here
        for name, part in zip(theirs.names if isinstance(theirs, Made) else (theirs,), parts, strict=True):
            state[name] = (part[..., 0] if linear else part).detach().cpu().contiguous().clone()
    for part, found in (("unet", _unet_config(network)), ("scheduler", _scheduler_config(denoiser))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / ("config.json" if part == "unet" else "scheduler_config.json")).write_text(json.dumps(found, indent=1))
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return folder


def unlike(denoiser: Learned) -> list[str]:
    """What of a denoiser diffusers cannot express, a reason each."""
    network = getattr(denoiser, "network", None)
    if not isinstance(denoiser, Learned) or not isinstance(network, UNet):
        return ["only a Learned denoiser of a UNet can"]
    style, halvings = network.style, 2 ** (len(network.multipliers) - 1)
    groups = {m.num_groups for m in network.modules() if isinstance(m, torch.nn.GroupNorm)}
    heads = {m.heads for m in network.modules() if isinstance(m, SelfAttention)}
    plain = Style(style.norm, style.adaptive, style.resize, head_width=style.head_width, time=style.time)
    reasons = {
        "its signals are not images of numbers": len(network.shape) != 3 or network.levels is not None,
        f"sizes {network.shape[1:]} do not halve evenly": any(n % halvings for n in network.shape[1:]),
        "it has conditions other than a class": bool({*network.conditions} - {"label"}),
        "its blocks are joined in ways of NCSN++ or ADM": replace(style, wide_stem=False) != plain,
        "its sizes change inside residual blocks": not isinstance(style.resize, Strided),
        "its time enters by Fourier features": not isinstance(style.time, Sinusoidal),
        f"its norms have {sorted(groups)} groups, and one number is expressible": len(groups) > 1,
        f"it has {sorted(heads)} heads in every layer, and a width of heads is expressible": style.head_width is None and heads != {1},
        "its first resolution is wider than its time features": network.multipliers[0] != 1,
        "its schedule is no table of steps": not isinstance(denoiser.schedule, Tabulated),
        "its network is not fed the index of the step (label=step_index)": denoiser.label is not step_index,
        "its prediction is none of noise, clean and velocity": denoiser.predicts not in PREDICTIONS.values(),
    }
    return [reason for reason, holds in reasons.items() if holds]


def _unet_config(network: UNet) -> dict[str, Any]:
    attends = [2**n in network.attention for n in range(len(network.multipliers))]
    groups = next(m.num_groups for m in network.modules() if isinstance(m, torch.nn.GroupNorm))
    height, width = network.shape[1:]
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": network.shape[0],
        "out_channels": network.shape[0] * network.outputs,
        "block_out_channels": [int(network.width * m) for m in network.multipliers],
        "layers_per_block": network.blocks,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "attention_head_dim": network.style.head_width,
        "downsample_padding": int(not network.style.resize.same),
        "dropout": network.dropout,
        "flip_sin_to_cos": network.style.time.cosine_first,
        "freq_shift": int(network.style.time.inclusive),
        "attn_norm_num_groups": groups if network.style.adaptive else None,  # without it the attention in the middle has no norm
        "norm_eps": network.style.norm.eps,
        "norm_num_groups": groups,
        "num_class_embeds": None if network.classes is None else network.classes + network.null_label,
        "resnet_time_scale_shift": "scale_shift" if network.style.adaptive else "default",
    }


def _scheduler_config(denoiser: Learned) -> dict[str, Any]:
    schedule = denoiser.schedule
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.steps,
        "trained_betas": schedule.betas.tolist(),
        "prediction_type": next(name for name, predicts in PREDICTIONS.items() if predicts is denoiser.predicts),
        "variance_type": "learned_range" if denoiser.network.outputs == 2 else "fixed_large",
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }


def _home(folder: Path) -> Path | None:
    """Where the U-Net of a folder lies: in it, or in its `unet`."""
    return next((p for p in (folder / "unet", folder) if (p / "config.json").is_file()), None)


def _scheduler(folder: Path) -> dict[str, Any]:
    home = next((p for p in (folder / "scheduler", folder) if (p / "scheduler_config.json").is_file()), None)
    if home is None:
        raise UsageError(
            f"there is no scheduler_config.json in {folder}: it says what the network was trained on; put it beside config.json"
        )
    return _json(home / "scheduler_config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}): fetch it again") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no JSON object: fetch it again")
    return found
