"""Denoisers written as folders of the diffusers library."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...continuous import Learned, Tabulated, large
from ...shared.errors import UsageError
from ...shared.networks import UNet
from ...shared.networks.blocks import SelfAttention
from ...shared.networks.embeddings import Sinusoidal
from ...shared.networks.unet_variants import Strided, UNetVariant
from .diffusers import LABELS, TIME_TABLE, features, indices, names
from .diffusers_options import FIXED, NULL, PREDICTIONS
from .weights import Made

REMEDY = "those that are trained here with --network.style ddpm"


def export(denoiser: Learned, folder: Path | str) -> Path:
    """Writes a denoiser as a folder that `DDPMPipeline.from_pretrained` opens: `unet/`, `scheduler/` and
    `model_index.json`.

    The scheduler samples as Ho et al. (2020) do: the large variance, or the learned one, and x_0 clipped to [-1, 1];
    what came out of such a folder goes back with the variance and the clipping that it had. A network that is fed
    another number than diffusers' index i of the step is written with the first layer of its time perceptron turned
    (`turned`) where the two differ by a constant, as `thousandths` does at T = 1000, and else with a table of its time
    features, a row for each step. Of a network with classes the folder's `unet` takes `class_labels`, the null one
    last; the pipeline itself, which has none, cannot call it.

    Raises:
        UsageError: for what `UNet2DModel` and `DDPMScheduler` do not have, with each reason; nothing is written then.
    """
    folder = Path(folder)
    if reasons := unlike(denoiser):
        raise UsageError(f"this denoiser cannot be written for diffusers: {'; '.join(reasons)}")
    network, by = denoiser.network, shift(denoiser)
    own = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    state = {}
    if by is None:
        state[TIME_TABLE] = features(network, denoiser.schedule, denoiser.time_input)
    elif by:
        own["time.mlp.0.weight"] = turned(own["time.mlp.0.weight"], network, by)
    for ours, theirs in names(network).items():
        parts = own[ours].chunk(len(theirs.names)) if isinstance(theirs, Made) else [own[ours]]
        linear = isinstance(theirs, Made) and own[ours].ndim == 3  # attention: one-wide convolutions here
        for name, part in zip(theirs.names if isinstance(theirs, Made) else (theirs,), parts, strict=True):
            state[name] = (part[..., 0] if linear else part).contiguous().clone()
    for part, found in (("unet", _unet_config(denoiser, by is None)), ("scheduler", _scheduler_config(denoiser))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / ("config.json" if part == "unet" else "scheduler_config.json")).write_text(
            json.dumps(found, indent=1)
        )
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return folder


def shift(denoiser: Learned) -> float | None:
    """What the label is above diffusers' index at every step: 0 for `step_index`; None where that is no constant."""
    steps = indices(denoiser.schedule)
    above = denoiser.time_input(denoiser.schedule, (steps + 1) / len(steps)) - steps
    return round(float(above[0]), 6) if float(above.max() - above.min()) < 1e-6 else None


def turned(weight: Tensor, network: UNet, by: float) -> Tensor:
    """The layer `(out, width)` that gives for the features of i what `weight` gives for those of `i + by`.

    By `sin((i + b) w) = sin(i w) cos(b w) + cos(i w) sin(b w)` and
    `cos((i + b) w) = cos(i w) cos(b w) - sin(i w) sin(b w)`.
    """
    order = -1 if network.style.time.cosine_first else 1
    (of_sin, of_cos), (sin, cos) = (
        v.double().chunk(2, dim=-1)[::order]
        for v in (weight, network.time.encode(torch.tensor([by], dtype=torch.float64)))
    )
    return torch.cat([of_sin * cos - of_cos * sin, of_sin * sin + of_cos * cos][::order], dim=1).to(weight.dtype)


def unlike(denoiser: Learned) -> list[str]:
    """What of a denoiser diffusers cannot express, and what it can: a reason each."""
    network = getattr(denoiser, "network", None)
    if not isinstance(denoiser, Learned) or not isinstance(network, UNet):
        what = type(denoiser).__name__ + (
            f" ({type(network).__name__})" if isinstance(network, torch.nn.Module) else ""
        )
        load_first = ": load it first, with load(path)" if isinstance(denoiser, str | Path) else ""
        return [f"it is a {what}, and a Learned denoiser of a UNet is expressible{load_first}"]
    style, halvings = network.style, 2 ** (len(network.multipliers) - 1)
    groups = {m.num_groups for m in network.modules() if isinstance(m, torch.nn.GroupNorm)}
    plain = UNetVariant(style.norm, style.adaptive, style.resize, head_width=style.head_width, time=style.time)
    scale, named = (
        getattr(denoiser, "quantization", None),
        getattr(denoiser.time_input, "__name__", denoiser.time_input),
    )
    labels, predictions = (", ".join(f.__name__ for f in known) for known in (LABELS, PREDICTIONS.values()))
    reasons = [
        (
            len(network.shape) != 3 or network.levels is not None,
            "its signals are no images of real numbers, and these alone are expressible",
        ),
        (
            any(n % halvings for n in network.shape[1:]),
            f"its sizes {network.shape[1:]} do not halve evenly: multiples of {halvings} do",
        ),
        (
            bool({*network.conditions} - {"label"}),
            f"it takes {', '.join(network.conditions)}, and a class label alone is expressible",
        ),
        (
            replace(style, wide_stem=False) != plain,
            f"its blocks are joined as in NCSN++, DDPM++ or EDM, and {REMEDY} are expressible",
        ),
        (
            not isinstance(style.resize, Strided),
            f"its sizes change inside residual blocks, and {REMEDY} are expressible",
        ),
        (not isinstance(style.time, Sinusoidal), f"its time enters by Fourier features, and {REMEDY} are expressible"),
        (
            len(groups) > 1,
            f"its norms have {sorted(groups)} groups, and one number is expressible, as {REMEDY} --network.width 32, 64, 96, ... have",
        ),
        (
            head_width(network) == 0,
            f"its heads have {head_widths(network)} channels, and one number is expressible, as --network.heads 1 gives in training",
        ),
        (
            network.multipliers[0] != 1,
            "its first resolution is wider than its time features, and networks whose multipliers begin with 1 are expressible",
        ),
        (
            not isinstance(denoiser.schedule, Tabulated),
            "its schedule is no table of steps: those of the recipes ddpm and improved-ddpm are",
        ),
        (
            denoiser.corruption is not denoiser.schedule,
            "it was put on another schedule than its network's: export it as it was before `on`",
        ),
        (denoiser.time_input not in LABELS, f"its network is fed {named}, and {labels} are expressible"),
        (denoiser.predicts not in PREDICTIONS.values(), f"its prediction is not expressible, and {predictions} are"),
        (
            denoiser.scaled and denoiser.sigma_data != 1,
            f"its network takes c_in x_t of sigma_data={denoiser.sigma_data:g}, and c_in = 1 is expressible: sigma_data=1, or scaled=False",
        ),
        (
            scale is not None and (scale.low, scale.high) != (-1, 1),
            f"its data lie in [{getattr(scale, 'low', 0):g}, {getattr(scale, 'high', 0):g}], and [-1, 1] is expressible",
        ),
    ]
    return [reason for holds, reason in reasons if holds]


def head_widths(network: UNet) -> list[int]:
    """Channels of the heads of its attention layers."""
    return sorted({m.qkv.in_channels // m.heads for m in network.modules() if isinstance(m, SelfAttention)})


def head_width(network: UNet) -> int | None:
    """What is `attention_head_dim` there: None for one head in every layer, and 0 for what it cannot say."""
    if all(m.heads == 1 for m in network.modules() if isinstance(m, SelfAttention)):
        return None
    widths = head_widths(network)
    return widths[0] if len(widths) == 1 else 0


def _unet_config(denoiser: Learned, learned: bool) -> dict[str, Any]:
    network = denoiser.network
    attends = [2**n in network.attention for n in range(len(network.multipliers))]
    groups = next(m.num_groups for m in network.modules() if isinstance(m, torch.nn.GroupNorm))
    height, width = network.shape[1:]
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": network.shape[0],
        "out_channels": network.shape[0] * network.outputs,
        "block_out_channels": [round(network.width * m) for m in network.multipliers],
        "layers_per_block": network.blocks,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "attention_head_dim": head_width(network),
        "downsample_padding": int(not network.style.resize.same),
        "dropout": network.dropout,
        "flip_sin_to_cos": network.style.time.cosine_first,
        "freq_shift": int(network.style.time.inclusive),
        "attn_norm_num_groups": groups
        if network.style.adaptive
        else None,  # without it the attention in the middle has no norm
        "norm_eps": network.style.norm.eps,
        "norm_num_groups": groups,
        "num_class_embeds": None if network.classes is None else network.classes + network.null_label,
        **({NULL: True} if network.classes is not None and network.null_label else {}),
        "resnet_time_scale_shift": "scale_shift" if network.style.adaptive else "default",
        "time_embedding_type": "learned" if learned else "positional",
        "num_train_timesteps": denoiser.schedule.steps if learned else None,
    }


def _scheduler_config(denoiser: Learned) -> dict[str, Any]:
    schedule, clip = denoiser.schedule, getattr(denoiser, "clip", None)
    fixed = {v: k for k, v in reversed(FIXED.items())}[getattr(denoiser, "variance", large)]
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.steps,
        "trained_betas": schedule.betas.tolist(),
        "prediction_type": next(name for name, predicts in PREDICTIONS.items() if predicts is denoiser.predicts),
        "variance_type": "learned_range" if denoiser.network.outputs == 2 else fixed,
        "clip_sample": clip != math.inf,
        "clip_sample_range": 1.0 if clip in (None, math.inf) else clip,
    }
