"""Entries of the configurations of a `UNet2DModel` and a scheduler: those that are read, refused, or only sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ...continuous import clean, large, noise, small, velocity
from ...shared.errors import UsageError
from .weights import listed, quoted

DOWN, UP = {"DownBlock2D": False, "AttnDownBlock2D": True}, {"UpBlock2D": False, "AttnUpBlock2D": True}
PREDICTIONS = {"epsilon": noise, "sample": clean, "v_prediction": velocity}
FIXED = {"fixed_small": small, "fixed_small_log": small, "fixed_large": large}
"""Variances of reverse steps by the library's names; `learned_range` is that of a network with twice the channels."""
OVER_STEPS = "DDPM DDIM PNDM DPMSolverMultistep DPMSolverSinglestep UniPCMultistep DEISMultistep"
OVER_SIGMAS = "EulerDiscrete EulerAncestralDiscrete HeunDiscrete LMSDiscrete"
SCHEDULERS = tuple(f"{kind}Scheduler" for kind in (*OVER_STEPS.split(), *OVER_SIGMAS.split()))
"""Supported schedulers. All define the schedule by betas; they differ in their samplers, which are not read."""


def whole(value: Any) -> bool:
    """Returns whether a value is a whole number of at least 1."""
    return type(value) is int and 0 < value < 2**20


def several(value: Any, each: Callable[[Any], bool]) -> bool:
    """Returns whether a value is a list of at least one item, all of which satisfy `each`."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(each, value))


def share(value: Any) -> bool:
    """Returns whether a value is a number in [0, 1]."""
    return isinstance(value, float | int) and 0 <= value <= 1


def real(value: Any) -> bool:
    """Returns whether a value is a finite number above 0."""
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 < value < math.inf


def among(*known: Any) -> Callable[[Any], bool]:
    """Returns a test of whether a value is one of these."""
    return lambda value: value in known


Options = dict[str, tuple[Any, Callable[[Any], bool]]]
"""The default of each option, and a test of which values are supported."""
OPTIONS: Options = {
    "act_fn": ("silu", among("silu", "swish")),
    "add_attention": (True, among(True)),
    "attention_head_dim": (8, lambda v: v is None or whole(v)),
    "block_out_channels": ((224, 448, 672, 896), lambda v: several(v, whole)),
    "center_input_sample": (False, among(False)),
    "class_embed_type": (None, among(None)),
    "down_block_types": (("DownBlock2D", *["AttnDownBlock2D"] * 3), lambda v: several(v, among(*DOWN))),
    "downsample_padding": (1, among(0, 1)),
    "downsample_type": ("conv", among("conv")),
    "dropout": (0.0, share),
    "flip_sin_to_cos": (True, among(True, False)),
    "freq_shift": (0, among(0, 1)),
    "in_channels": (3, whole),
    "layers_per_block": (2, whole),
    "mid_block_scale_factor": (1, among(1)),
    "mid_block_type": ("UNetMidBlock2D", among("UNetMidBlock2D")),
    "norm_eps": (1e-5, share),
    "norm_num_groups": (32, whole),
    "num_class_embeds": (None, lambda v: v is None or whole(v)),
    "out_channels": (3, whole),
    "resnet_time_scale_shift": ("default", among("default", "scale_shift")),
    "time_embedding_dim": (None, among(None)),
    "time_embedding_type": ("positional", among("positional", "learned")),
    "up_block_types": ((*["AttnUpBlock2D"] * 3, "UpBlock2D"), lambda v: several(v, among(*UP))),
    "upsample_type": ("conv", among("conv")),
}
BESIDE = ("sample_size", "attn_norm_num_groups", "num_train_timesteps")
"""Entries that are read separately; the last is the length of a table of time features, which its tensor has too."""
NULL = "_last_class_is_none"
"""An entry that this package's export writes: the last class stands for no class.

The library ignores entries that begin with _.
"""
AVERAGING = ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
"""Entries that the library's training adds to the configuration of averaged weights."""
NOT_IN_SHAPES = (
    "attention_head_dim",
    "downsample_padding",
    "flip_sin_to_cos",
    "freq_shift",
    "norm_eps",
    "norm_num_groups",
)
"""Options that the shapes of tensors do not determine."""
TABLE: Options = {
    "num_train_timesteps": (1000, whole),
    "beta_start": (1e-4, share),
    "beta_end": (0.02, share),
    "beta_schedule": ("linear", among("linear", "scaled_linear", "squaredcos_cap_v2")),
    "trained_betas": (None, lambda v: v is None or several(v, share)),
    "rescale_betas_zero_snr": (False, among(True, False)),
    "use_flow_sigmas": (False, among(False, None)),
    "prediction_type": ("epsilon", among(*PREDICTIONS)),
    "timestep_type": ("discrete", among("discrete")),
    "variance_type": (None, among(None, *FIXED, "learned_range")),
    "clip_sample": (None, among(None, True, False)),
    "clip_sample_range": (1.0, real),
    "thresholding": (False, among(True, False, None)),
    "sample_max_value": (1.0, real),
}
SCHEDULER_DEFAULTS = {
    "DDPMScheduler": {"clip_sample": True, "variance_type": "fixed_small"},
    "DDIMScheduler": {"clip_sample": True},
    "HeunDiscreteScheduler": {"clip_sample": False, "beta_start": 0.00085, "beta_end": 0.012},
}
"""Defaults of single schedulers that differ from those in `TABLE`."""
NOTED = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "prediction_type",
    "variance_type",
    "clip_sample",
    "clip_sample_range",
)
"""Entries that change what is computed; their defaults are reported where a configuration leaves them out."""
SAMPLING = {
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "steps_offset": (0,),
    "set_alpha_to_one": (True, False),
    "skip_prk_steps": (False,),
    "solver_order": (2,),
    "algorithm_type": ("dpmsolver++", "deis"),
    "solver_type": ("midpoint", "bh2", "logrho"),
    "lower_order_final": (True, False),
    "euler_at_final": (False,),
    "use_karras_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "final_sigmas_type": ("zero",),
    "lambda_min_clipped": (-math.inf,),
    "predict_x0": (True,),
    "disable_corrector": ([],),
    "solver_p": (),
    "sigma_min": (),
    "sigma_max": (),
    "interpolation_type": ("linear",),
    "dynamic_thresholding_ratio": (0.995,),
    "flow_shift": (1.0,),
    "use_dynamic_shifting": (False,),
    "time_shift_type": ("exponential",),
    "shift_terminal": (),
    "tensor_format": ("pt", "np"),
    "timestep_values": (),
}
"""Entries that only the library's samplers read, with their usual values; other values are reported as not read."""


def read_options(config: Mapping[str, Any], options: Options, source: str, what: str) -> dict[str, Any]:
    """Returns the options of a configuration, completed by their defaults.

    Raises:
        UsageError: for unsupported values, with the names of all of them; `what` is the part that has them.
    """
    values = {name: config.get(name, default) for name, (default, _) in options.items()}
    if other := [f"{name}={value!r}"[:100] for name, value in values.items() if not options[name][1](value)]:
        raise UsageError(f"{source}: {', '.join(other)} is not supported by any {what} of this package")
    return values


def relevant(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the entries of `NOTED` that change what is computed under these options.

    A table of betas does not depend on its ends, and without clipping there is no range.
    """
    without = {"num_train_timesteps"} if options["trained_betas"] is not None else set()
    without |= {"beta_start", "beta_end"} if without or options["beta_schedule"] == "squaredcos_cap_v2" else set()
    without |= {"clip_sample", "clip_sample_range"} if options["thresholding"] else set()
    without |= {"clip_sample_range"} if not options["clip_sample"] else set()
    return tuple(name for name in NOTED if name not in without)


def refuse_unknown(config: Mapping[str, Any], known: tuple[str, ...], source: str) -> None:
    """Raises `UsageError` for entries of other names, whose effect is unknown; those that begin with _ are ignored."""
    if other := [f"{name}={quoted(v)}" for name, v in config.items() if name not in known and not name.startswith("_")]:
        raise UsageError(
            f"{source}: {listed(other)} is not known: remove it from the file if it does not change the output"
        )


def left_out(
    config: Mapping[str, Any], options: Mapping[str, Any], names: tuple[str, ...], file: str
) -> tuple[str, ...]:
    """Returns a sentence about the entries that a configuration leaves out, with the defaults that are used."""
    defaults = ", ".join(
        f"{name}={options[name]!r}" for name in names if name not in config and options[name] is not None
    )
    return (f"{file} leaves out entries, for which the library's defaults are used: {defaults}",) if defaults else ()
