"""Denoisers of models that are in memory: a network and the scheduler that it was trained with, both of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...continuous import Learned, Tabulated, betas_of, straight
from ...sde import Straight
from ...shared.calling import refuse_signature, signature_of
from ...shared.errors import UsageError
from ...shared.gaussian.schedule import Schedule
from ...shared.networks.adapters import IntegerTime, TensorOutput
from ...shared.time_inputs import LastIndex, TimeInput, step_index, thousandths
from .diffusers import betas_of_options, clip_of
from .diffusers_options import FIXED, PREDICTIONS, TABLE, read_options, several, whole
from .files import naming
from .settings import attach

FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
"""Schedulers on the straight path, whose networks predict epsilon - x_0 and are fed sigma times 1000."""
FLOW_PREDICTION = "flow_prediction"
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
"""Entries that define the betas, which are compared with the scheduler's own table."""
CONTINUOUS_FEATURES = ("positional", "fourier")
"""Values of `time_embedding_type` for which any real number is a time input."""
NOT_CONDITIONS = ("return_dict",)
REMEDIES = {
    "EDM": "for its networks build Learned(TensorOutput(unet), EDM(), Preconditioned(0.5), quarter_log), with the "
    "scheduler's sigma_min, sigma_max and sigma_data",
    "ScoreSdeVe": "its networks return the score: build Learned(network, VE(), scaled_score, noise_level, "
    "scaled=False), with the scheduler's sigma_min and sigma_max, and a network that returns sigma times the score",
    "Flow": "on the straight path build Learned(TensorOutput(unet), Straight(), straight, scaled=False)",
}
"""What to build for the networks of schedulers that are not supported, by the beginning of the scheduler's name."""


def wrap(unet: nn.Module, scheduler: Any) -> Learned:
    """Returns the Gaussian denoiser of a network in memory and its scheduler, such as a pipeline's unet and scheduler.

    The network is used as it is: it is not copied, moved or switched to another mode, and gradients reach its weights.
    It is a model of diffusers, such as a `UNet2DModel` or `UNet2DConditionModel`, or any module that is called as
    `unet(x, timestep, **conditions)` and returns a tensor, a tuple that starts with one, or an object with the
    attribute `sample`. Conditions are passed to it under its own names: `encoder_hidden_states`, `class_labels`.

    The scheduler defines what the network was trained on: the schedule (its `alphas_cumprod`, with terminal SNR zero
    too), the prediction (epsilon, sample or v_prediction) and whether the network predicts the variance
    (`learned_range`). The time input is the index of the step, n - 1 at t = n / T. Between two steps it is a fraction
    for models whose time features are sines, and rounded to the nearest index for other networks. Flow matching
    (`FlowMatchEulerDiscreteScheduler`, or `use_flow_sigmas`) is the schedule `Straight`, on which t is sigma and the
    time input is T t.

    How the scheduler samples is not used: give the steps to a sampler of this package. The steps of the scheduler's
    `timesteps` are the times `(timesteps + 1) / T` followed by 0; those of flow matching are its `sigmas`.

    Args:
        unet: the network, `(x, timestep (B,), **conditions) -> F`, of the shape of x, or with twice the channels.
        scheduler: the scheduler of the training, with the attributes `config` and `alphas_cumprod`.

    Returns:
        The denoiser. Its attribute `clip` is the bound to which the scheduler clips estimates of x_0, infinity if it
        does not, None if it has no such setting: for clipped samples use `Clipped(denoiser, -clip, clip)`. `variance`
        is the scheduler's fixed variance, if it has one, and `shape` that of an example, if the model's configuration
        contains it.

    Raises:
        UsageError: for other than a module and a scheduler, for schedulers of other processes, with what to build
            instead, and for settings that are not supported, with their names.
    """
    if not isinstance(unet, nn.Module):
        raise UsageError(
            f"unet is a {type(unet).__name__}, not an nn.Module: give network and scheduler, in this order, such as "
            "wrap(pipeline.unet, pipeline.scheduler)"
        )
    refuse_signature(unet)
    kind, model, config = type(scheduler).__name__, configuration(unet), configuration(scheduler)
    refuse_other_process(scheduler, config)
    flow = is_flow(scheduler, config)
    options = options_of(config, kind, flow)
    network = TensorOutput(unet, outputs_of(model, options["variance_type"], type(unet).__name__, kind))
    schedule: Schedule
    time_input: TimeInput[Schedule]
    if flow:
        rows = options["num_train_timesteps"]
        schedule, predicts = Straight(), straight
        time_input = thousandths if rows == 1000 else LastIndex(float(rows))
    else:
        with naming(kind):
            schedule = table_of(scheduler, config, kind)
        predicts, time_input = PREDICTIONS[options["prediction_type"]], step_index
    integers = not flow and model.get("time_embedding_type") not in CONTINUOUS_FEATURES
    with naming(kind):
        # On the straight path the network is fed x_t itself, whose standard deviation is below 1.
        fed = IntegerTime(network) if integers else network
        learned = Learned(fed, schedule, predicts, time_input, scaled=not flow)
    learned.conditions = conditions_of(unet)
    attach(learned, clip=clip_of(options))
    if (variance := FIXED.get(options["variance_type"])) is not None:
        attach(learned, variance=variance)
    if (shape := shape_of(model)) is not None:
        attach(learned, shape=shape)
    return learned


def configuration(part: Any) -> Mapping[str, Any]:
    """Returns the configuration of a model or scheduler, without entries that begin with _; empty if it has none."""
    config = getattr(part, "config", None)
    return {k: v for k, v in config.items() if not k.startswith("_")} if isinstance(config, Mapping) else {}


def is_flow(scheduler: Any, config: Mapping[str, Any]) -> bool:
    """Returns whether a scheduler's process is the straight path of flow matching."""
    own = any(parent.__name__ in FLOWS for parent in type(scheduler).__mro__)
    return own or (config.get("prediction_type") == FLOW_PREDICTION and config.get("use_flow_sigmas") is True)


def refuse_other_process(scheduler: Any, config: Mapping[str, Any]) -> None:
    """Raises for what is not a scheduler, or not one of a table of betas or of flow matching.

    Raises:
        UsageError: with what to give or build instead.
    """
    kind = type(scheduler).__name__
    if isinstance(scheduler, nn.Module | type) or not config:
        found = f"the class {scheduler.__name__}" if isinstance(scheduler, type) else f"a {kind} without config"
        raise UsageError(f"scheduler is {found}: give the scheduler of the training, such as DDPMScheduler()")
    if is_flow(scheduler, config):
        if config.get("invert_sigmas"):
            raise UsageError(f"{kind}: invert_sigmas=True is not supported: its sigma grows from noise to data")
    elif not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        remedy = next(
            (v for k, v in REMEDIES.items() if kind.startswith(k)),
            "for another process build Learned(TensorOutput(unet), schedule, prediction, time_input)",
        )
        raise UsageError(
            f"a {kind} has no alphas_cumprod, the table of a chain of betas: give the scheduler of the training, such "
            f"as DDPMScheduler(); {remedy}"
        )


def options_of(config: Mapping[str, Any], kind: str, flow: bool) -> dict[str, Any]:
    """Returns the options of a scheduler that its table of betas does not contain.

    Raises:
        UsageError: for values that are not supported.
    """
    elsewhere = {*BETAS[1:], "sample_max_value", *(("prediction_type", "use_flow_sigmas") if flow else ())}
    known = {name: option for name, option in TABLE.items() if name not in elsewhere}
    options = read_options(config, known, kind, "schedule")
    if options["thresholding"] and (largest := config.get("sample_max_value", 1.0)) != 1:
        p = config.get("dynamic_thresholding_ratio", 0.995)
        raise UsageError(
            f"{kind}: thresholding=True with sample_max_value={largest} is not supported: give the scheduler with "
            f"thresholding=False, and wrap the denoiser in Thresholded(denoiser, {p})"
        )
    return options


def table_of(scheduler: Any, config: Mapping[str, Any], kind: str) -> Tabulated:
    """Returns the schedule of a scheduler's `alphas_cumprod`, float32, from betas of the highest precision it has.

    These are the betas of its configuration in float64, or its own in float32, if `alphas_cumprod` follows from them,
    or else the ratios of `alphas_cumprod`.

    Raises:
        UsageError: for a table that is not one of betas.
    """
    live = scheduler.alphas_cumprod.detach().double().cpu()
    settings = {name: config.get(name, TABLE[name][0]) for name in BETAS}
    if all(TABLE[name][1](value) for name, value in settings.items()):
        betas = betas_of_options(settings)
        if follows(live, betas):
            return Tabulated(betas)
    own = getattr(scheduler, "betas", None)
    if isinstance(own, Tensor) and follows(live, own.detach().double().cpu()):
        return Tabulated(own)
    return Tabulated(betas_of(live))


def follows(alphas_cumprod: Tensor, betas: Tensor) -> bool:
    """Returns whether `alphas_cumprod` `(T,)` is the product of `1 - betas`, as float32 computes it."""
    product = (1 - betas).cumprod(0)  # schedulers replace 0 at its end by 2^-24
    return alphas_cumprod.shape == product.shape and torch.allclose(alphas_cumprod, product, rtol=2e-4, atol=1e-6)


def outputs_of(model: Mapping[str, Any], variance: str | None, name: str, kind: str) -> int:
    """Returns the number of output channels for each channel of x_t: 2 for a network that predicts the variance.

    Raises:
        UsageError: for a model whose channels do not fit the scheduler's variance.
    """
    learned = variance == "learned_range"
    channels, out = model.get("in_channels"), model.get("out_channels")
    if not isinstance(channels, int) or not isinstance(out, int):
        return 1 + learned
    found = f"in_channels={channels} and out_channels={out}"
    if out not in (channels, 2 * channels):
        raise UsageError(
            f"{name} has {found}, but x_t has as many channels as x_0: wrap it in a module of your own, whose forward "
            "joins x_t and the other input channels, which are its conditions"
        )
    if (out != channels) != learned:
        raise UsageError(
            f"{name} has {found}, but the {kind} has variance_type={variance!r}: 'learned_range' is for networks with "
            "twice as many output channels, and only for them; give the scheduler of the training"
        )
    return 1 + learned


def conditions_of(unet: nn.Module) -> tuple[str, ...] | None:
    """Returns the names of the conditions that a network takes, from its signature; None if it takes any name."""
    if (listed := getattr(unet, "conditions", None)) is not None:
        return listed
    if (signature := signature_of(unet)) is None:
        return None
    own = [p for p in list(signature.parameters.values())[2:] if p.name not in NOT_CONDITIONS]
    if any(p.kind is p.VAR_KEYWORD for p in own):
        return None
    return tuple(p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def shape_of(model: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Returns the shape of an example that a model's configuration contains, or None."""
    channels, size = model.get("in_channels"), model.get("sample_size")
    sizes: Any = (size, size) if whole(size) else size
    if not isinstance(channels, int) or not several(sizes, whole):
        return None
    return (channels, *sizes)
