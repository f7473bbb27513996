"""Exports denoisers as folders of the diffusers library."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...continuous import BetaTable, Learned, large
from ...shared.errors import UsageError
from ...shared.networks import UNet
from ...shared.networks.blocks import SelfAttention
from ...shared.networks.embeddings import Sinusoidal
from ...shared.networks.unet_variants import Strided, UNetVariant
from .diffusers import TIME_INPUTS, TIME_TABLE, features, indices, names
from .diffusers_options import FIXED, NULL, PREDICTIONS
from .weights import Converted

REMEDY = "as after training here with --network.variant ddpm"


class Exported(NamedTuple):
    """A denoiser that diffusers can express, and the parts of it whose types are then known."""

    denoiser: Learned
    network: UNet
    schedule: BetaTable
    time: Sinusoidal
    resize: Strided


def export(denoiser: Learned, folder: Path | str) -> Path:
    """Writes a denoiser as a folder for `DDPMPipeline.from_pretrained`: `unet/`, `scheduler/` and `model_index.json`.

    The scheduler samples as in Ho et al. (2020): with the large variance, or the learned one, and x_0 clipped to
    [-1, 1]. A denoiser that was imported from such a folder keeps the variance and the clipping that it had there.

    Diffusers' networks are fed the index i of the step. For another time input that differs from i by a constant, such
    as `thousandths` at T = 1000, the first layer of the time perceptron is transformed (`shifted`); for any other, the
    folder contains a table of the time features, a row for each step.

    For a network with classes, the folder's `unet` takes `class_labels`, the null class last; the pipeline cannot call
    it, because it has no class labels.

    Raises:
        UsageError: for properties that `UNet2DModel` and `DDPMScheduler` do not have, with each reason; nothing is
            written then.
    """
    folder = Path(folder)
    if reasons := unlike(denoiser):
        raise UsageError(f"this denoiser cannot be written for diffusers: {'; '.join(reasons)}")
    exported = _exported(denoiser)
    network, by = exported.network, shift(denoiser)
    own = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    state = {}
    if by is None:
        state[TIME_TABLE] = features(network, exported.schedule, denoiser.time_input)
    elif by:
        own["time.mlp.0.weight"] = shifted(own["time.mlp.0.weight"], network, by)
    for ours, theirs in names(network).items():
        parts = own[ours].chunk(len(theirs.names)) if isinstance(theirs, Converted) else [own[ours]]
        linear = isinstance(theirs, Converted) and own[ours].ndim == 3  # attention: convolutions of kernel size 1 here
        for name, part in zip(theirs.names if isinstance(theirs, Converted) else (theirs,), parts, strict=True):
            state[name] = (part[..., 0] if linear else part).contiguous().clone()
    for path, config in (
        ("unet/config.json", _unet_config(exported, by is None)),
        ("scheduler/scheduler_config.json", _scheduler_config(exported)),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(config, indent=1))
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return folder


def shift(denoiser: Learned) -> float | None:
    """Returns the time input minus diffusers' index of the step: 0 for `step_index`; None if that is not constant."""
    assert isinstance(denoiser.schedule, BetaTable)
    steps = indices(denoiser.schedule)
    above = denoiser.time_input(denoiser.schedule, (steps + 1) / len(steps)) - steps
    return round(float(above[0]), 6) if float(above.max() - above.min()) < 1e-6 else None


def shifted(weight: Tensor, network: UNet, by: float) -> Tensor:
    """Returns the layer `(out, width)` whose output for the features of i is that of `weight` for those of `i + by`.

    It uses `sin((i + b) w) = sin(i w) cos(b w) + cos(i w) sin(b w)` and
    `cos((i + b) w) = cos(i w) cos(b w) - sin(i w) sin(b w)`.
    """
    assert isinstance(network.variant.time, Sinusoidal)
    order = -1 if network.variant.time.cosine_first else 1
    (of_sin, of_cos), (sin, cos) = (
        v.double().chunk(2, dim=-1)[::order]
        for v in (weight, network.time.encode(torch.tensor([by], dtype=torch.float64)))
    )
    return torch.cat([of_sin * cos - of_cos * sin, of_sin * sin + of_cos * cos][::order], dim=1).to(weight.dtype)


def unlike(denoiser: Learned) -> list[str]:
    """Returns the reasons why diffusers cannot express a denoiser, each with what it can express."""
    network = getattr(denoiser, "network", None)
    if not isinstance(denoiser, Learned) or not isinstance(network, UNet):
        what = type(denoiser).__name__ + (
            f" ({type(network).__name__})" if isinstance(network, torch.nn.Module) else ""
        )
        load_first = ": load it first, with load(path)" if isinstance(denoiser, str | Path) else ""
        return [f"it is a {what}, but must be a Learned denoiser of a UNet{load_first}"]
    variant, divisor = network.variant, 2 ** (len(network.multipliers) - 1)
    groups = {m.num_groups for m in network.modules() if isinstance(m, torch.nn.GroupNorm)}
    plain = UNetVariant(
        variant.norm, variant.adaptive, variant.resize, head_width=variant.head_width, time=variant.time
    )
    quantization = getattr(denoiser, "quantization", None)
    time_input = getattr(denoiser.time_input, "__name__", denoiser.time_input)
    time_inputs, predictions = (", ".join(f.__name__ for f in known) for known in (TIME_INPUTS, PREDICTIONS.values()))
    low, high = getattr(quantization, "low", -1), getattr(quantization, "high", 1)
    reasons = [
        (
            len(network.shape) != 3 or network.categories is not None,
            "its data must be images of real numbers",
        ),
        (
            any(n % divisor for n in network.shape[1:]),
            f"its image size {network.shape[1:]} must be a multiple of {divisor}",
        ),
        (
            bool({*network.conditions} - {"label"}),
            f"it takes {', '.join(network.conditions)}, but can only take a class label",
        ),
        (
            replace(variant, wide_stem=False) != plain,
            f"its blocks are joined as in NCSN++, DDPM++ or EDM, but must be joined {REMEDY}",
        ),
        (
            not isinstance(variant.resize, Strided),
            f"its sizes change inside residual blocks, but must change {REMEDY}",
        ),
        (
            not isinstance(variant.time, Sinusoidal),
            f"its time features are Fourier features, but must be sines {REMEDY}",
        ),
        (
            len(groups) > 1,
            f"its norms have {sorted(groups)} groups, but must all have one number, {REMEDY} "
            "--network.width 32, 64, 96, ...",
        ),
        (
            head_width(network) == 0,
            f"its heads have {head_widths(network)} channels, but must all have one number, "
            "as after training with --network.heads 1",
        ),
        (
            network.multipliers[0] != 1,
            "its first resolution is wider than its time features: its multipliers must begin with 1",
        ),
        (
            not isinstance(denoiser.schedule, BetaTable),
            "its schedule must be a table of steps, as in the recipes ddpm and improved-ddpm",
        ),
        (
            denoiser.corruption is not denoiser.schedule,
            "it was moved to another schedule than its network's: export it as it was before `on`",
        ),
        (
            denoiser.time_input not in TIME_INPUTS,
            f"its time input is {time_input}, but must be one of {time_inputs}",
        ),
        (denoiser.predicts not in PREDICTIONS.values(), f"its prediction must be one of {predictions}"),
        (
            denoiser.scaled and denoiser.sigma_data != 1,
            f"its network takes c_in x_t of sigma_data={denoiser.sigma_data:g}, but c_in must be 1: "
            "give sigma_data=1, or scaled=False",
        ),
        (
            quantization is not None and (low, high) != (-1, 1),
            f"its data are in [{low:g}, {high:g}], but must be in [-1, 1]",
        ),
    ]
    return [reason for holds, reason in reasons if holds]


def head_widths(network: UNet) -> list[int]:
    """Returns the channels per head of its attention layers."""
    return sorted({m.qkv.in_channels // m.heads for m in network.modules() if isinstance(m, SelfAttention)})


def head_width(network: UNet) -> int | None:
    """Returns `attention_head_dim`: None for one head in every layer, 0 for heads that it cannot express."""
    if all(m.heads == 1 for m in network.modules() if isinstance(m, SelfAttention)):
        return None
    widths = head_widths(network)
    return widths[0] if len(widths) == 1 else 0


def _exported(denoiser: Learned) -> Exported:
    network, schedule = denoiser.network, denoiser.schedule
    assert isinstance(network, UNet)
    assert isinstance(schedule, BetaTable)
    time, resize = network.variant.time, network.variant.resize
    assert isinstance(time, Sinusoidal)
    assert isinstance(resize, Strided)
    return Exported(denoiser, network, schedule, time, resize)


def _unet_config(exported: Exported, table: bool) -> dict[str, Any]:
    network = exported.network
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
        "downsample_padding": int(not exported.resize.same),
        "dropout": network.dropout,
        "flip_sin_to_cos": exported.time.cosine_first,
        "freq_shift": int(exported.time.inclusive),
        # Without this entry, the attention in the middle of an adaptive network has no norm.
        "attn_norm_num_groups": groups if network.variant.adaptive else None,
        "norm_eps": network.variant.norm.eps,
        "norm_num_groups": groups,
        "num_class_embeds": None if network.classes is None else network.classes + network.null_label,
        **({NULL: True} if network.classes is not None and network.null_label else {}),
        "resnet_time_scale_shift": "scale_shift" if network.variant.adaptive else "default",
        "time_embedding_type": "learned" if table else "positional",
        "num_train_timesteps": exported.schedule.steps if table else None,
    }


def _scheduler_config(exported: Exported) -> dict[str, Any]:
    denoiser, network, schedule, *_ = exported
    clip = getattr(denoiser, "clip", None)
    fixed = {v: k for k, v in reversed(FIXED.items())}[getattr(denoiser, "variance", large)]
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.steps,
        "trained_betas": schedule.betas.tolist(),
        "prediction_type": next(name for name, predicts in PREDICTIONS.items() if predicts is denoiser.predicts),
        "variance_type": "learned_range" if network.outputs == 2 else fixed,
        "clip_sample": clip != math.inf,
        "clip_sample_range": 1.0 if clip in (None, math.inf) else clip,
    }
