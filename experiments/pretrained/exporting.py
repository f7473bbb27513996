"""Import of pretrained checkpoints into this package's format, and export to diffusers: the two commands."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from ...shared.errors import UsageError
from ...shared.gaussian.denoiser import Learned
from ...shared.training.folder import writable
from ...shared.training.saving import save
from .diffusers import looks_like
from .diffusers_export import export
from .hub import local
from .imported import ImportedTokens, imported, kind_of, named, noted, objective
from .loading import OWN, Opened, opened


@dataclass(frozen=True)
class Flags:
    """Settings that a format does not contain; None where the file, its name or its `config.json` determines them."""

    image_size: int | None = None
    """Height and width of the images, in pixels, such as 64."""
    num_heads: int | None = None
    """improved-diffusion, guided-diffusion: number of attention heads, such as 4."""
    num_head_channels: int | None = None
    """improved-diffusion, guided-diffusion, ADM of EDM: channels of each attention head, such as 64."""
    use_new_attention_order: bool | None = None
    """improved-diffusion, guided-diffusion: whether attention splits q, k and v before the heads, True or False."""
    noise_schedule: str | None = None
    """improved-diffusion, guided-diffusion: schedule of the betas, linear or cosine."""
    diffusion_steps: int | None = None
    """improved-diffusion, guided-diffusion: number of steps of the diffusion in training, such as 1000."""
    rescale_timesteps: bool | None = None
    """improved-diffusion, guided-diffusion: whether the time input is the step times 1000 / diffusion_steps."""
    predict_xstart: bool | None = None
    """improved-diffusion, guided-diffusion: whether the network predicts the clean image, not the noise."""
    learn_sigma: bool | None = None
    """improved-diffusion, guided-diffusion: whether half of the output channels are a variance.
    Needed where the numbers of channels leave it open."""
    sde: str | None = None
    """score_sde: the SDE, vp, subvp or ve."""
    continuous: bool | None = None
    """score_sde: whether the model was trained in continuous time, True or False."""
    beta_min: float | None = None
    """score_sde, vp of EDM: beta at t = 0, such as 0.1."""
    beta_max: float | None = None
    """score_sde: beta at t = 1, such as 20."""
    num_scales: int | None = None
    """score_sde: number of steps of a discrete VP model whose file has no noise levels, such as 1000."""
    centered: bool | None = None
    """score_sde: whether images are in [-1, 1], the default of vp and subvp, instead of [0, 1]; True or False."""
    scale_by_sigma: bool | None = None
    """score_sde: whether the output of a VE network is divided by sigma, by default True.
    SEDD: whether the log ratios are scaled by the noise."""
    skip_rescale: bool | None = None
    """score_sde: whether residual sums are divided by sqrt(2), by default True for NCSN++ and DDPM++."""
    fir: bool | None = None
    """score_sde: whether images are resized with the filter (1, 3, 3, 1), True or False."""
    rescaled: bool | None = None
    """ermongroup DDPM, NCSNv2: whether images are in [-1, 1], by default True for DDPM and False for NCSNv2."""
    logit_transform: bool | None = None
    """NCSNv2: whether images are logits; such models cannot be imported."""
    beta_schedule: str | None = None
    """ermongroup DDPM: schedule of the betas, linear, quad, const, jsd, sigmoid, warmup10 or warmup50."""
    beta_start: float | None = None
    """ermongroup DDPM: the first beta, such as 0.0001."""
    beta_end: float | None = None
    """ermongroup DDPM: the last beta, such as 0.02."""
    num_diffusion_timesteps: int | None = None
    """ermongroup DDPM: number of steps of the diffusion in training, such as 1000."""
    precond: str | None = None
    """EDM: the preconditioning, edm, vp, ve or iddpm."""
    sigma_data: float | None = None
    """edm of EDM: standard deviation of the data, such as 0.5."""
    sigma_min: float | None = None
    """EDM's ve: smallest noise level for images in [-1, 1], such as 0.02; edm: only if larger than 0.002.
    MDLM, SEDD with geometric noise: the noise at t = 0, such as 0.0001."""
    sigma_max: float | None = None
    """EDM's ve: largest noise level for images in [-1, 1], such as 100; edm: only if smaller than 80.
    MDLM, SEDD with geometric noise: the noise at t = 1, such as 20."""
    beta_d: float | None = None
    """vp of EDM: beta_max - beta_min, such as 19.9."""
    M: int | None = None
    """vp of EDM: number of steps that the time input counts, such as 1000."""
    parameterization: str | None = None
    """MDLM: parametrization of the network, subs or sedd."""
    time_conditioning: bool | None = None
    """MDLM: whether the network has a time input, True or False."""
    noise: str | None = None
    """MDLM, SEDD: noise schedule, loglinear or geometric."""
    uniform: bool | None = None
    """SEDD: whether the transition is uniform instead of absorbing, True or False."""
    length: int | None = None
    """MDLM, SEDD: number of tokens in a sequence, such as 1024."""
    n_heads: int | None = None
    """MDLM, SEDD: number of attention heads, such as 12, for a file without rotary frequencies."""

    def given(self) -> dict[str, Any]:
        """Returns the settings that are not None, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


FLAGS = tuple(f.name for f in fields(Flags))
VALUE = r"""(?:'[^']*'|"[^"]*"|[\w.]+)"""
OTHER = r"""(?:, or |, | or )(?:'[^']*'|"[^"]*"|True\b|False\b)"""
"""A pattern of one more value of an option, as in `sde='vp', 'subvp' or 've'`."""


@contextlib.contextmanager
def on_the_command_line(names: Collection[str] = FLAGS) -> Iterator[None]:
    """Rewrites the names of flags in errors as options: `--image-size 64` for `image_size=64`."""
    try:
        yield
    except UsageError as error:
        raise UsageError(as_options(str(error), names)) from error


def as_options(text: str, names: Collection[str] = FLAGS) -> str:
    """Returns the text with flags written as options, except in paths and in quotation marks.

    Flags are Python's `name=value`, also with several values, names with an underscore, and names in a list of flags.
    """
    if not names:
        return text
    any_of, before = "|".join(sorted(names, key=len, reverse=True)), r"(?<![\w/.\"'-])"
    text = re.sub(r"\bpretrained\.load\(path, ([^()]*)\)", r"\1", text)
    text = re.sub(rf"{before}({any_of})=({VALUE}(?:{OTHER})*)", lambda m: alternatives(option(m[1]), m[2]), text)
    before_list, after_list = r"\b(give|do not take|do not determine|they take:)", r"(?= as in |: leave|\)|, and | \()"
    lists = rf"{before_list} ((?:{any_of})(?:, (?:{any_of}))*){after_list}"
    text = re.sub(lists, lambda m: f"{m[1]} {', '.join(map(option, m[2].split(', ')))}", text)
    several = "|".join(name for name in any_of.split("|") if "_" in name)
    return (
        re.sub(rf"(?<!configuration has ){before}({several})(?![\w/=\"'-])", lambda m: option(m[1]), text)
        if several
        else text
    )


def option(name: str) -> str:
    """Returns a flag as an option of the command line."""
    return f"--{name.replace('_', '-')}"


def alternatives(name: str, values: str) -> str:
    """Returns the option once with each of the values."""
    return re.sub(rf"(?<![\w.])(?!or\b){VALUE}", lambda m: f"{name} {m[0].strip(chr(39) + chr(34))}", values)


class ImportReport(NamedTuple):
    """The result of an import.

    Attributes:
        about: descriptions of the checkpoint, by name.
        assumed: assumptions about it, a sentence each, which name flags as options.
        usage: the next commands, as `Kind.usage`.
    """

    about: dict[str, str]
    assumed: tuple[str, ...]
    usage: str


def bring(source: str, out: Path, flags: Flags, data: str | None = None, tokenizer: Path | None = None) -> ImportReport:
    """Imports a pretrained checkpoint: writes it to `out` in this package's own format.

    Raw and averaged weights are both the averaged weights of the file, at step 0.

    Args:
        source: a file, a folder or a name on the Hub.
        out: the folder of the new run, which has no checkpoint yet.
        flags: settings that the format does not contain.
        data: the data to evaluate it on by default; see `Images.name` and `Text.name`.
        tokenizer: the path of `tokenizer.json`, for text.

    Raises:
        UsageError: for a folder that has a checkpoint, or a file that cannot be read; the message names flags as
            options.
    """
    refuse_held(out)
    read, assumed = named_as_options(source, flags)
    if read.format == OWN:
        raise UsageError(
            f"{source} is a checkpoint of this package already: use it in `unnoise sample` and `unnoise evaluate` "
            "directly"
        )
    denoiser, run = read.denoiser, imported(read.denoiser, str(source))
    run = run if data is None else run.with_data(data)
    if tokenizer is not None:
        if not isinstance(run, ImportedTokens):
            raise UsageError(f"--tokenizer {tokenizer}: {source} is a model of images: leave out --tokenizer")
        run = run.with_tokenizer(str(tokenizer))
    run, both = run.self_contained(), objective(denoiser)
    save(
        writable(out),
        objective=both,
        average=both,
        step=0,
        experiment=run,
        batches=noted(denoiser),
    )
    return ImportReport(about(read), assumed, kind_of(denoiser).usage)


def named_as_options(source: str, flags: Flags) -> tuple[Opened, tuple[str, ...]]:
    """Returns the denoiser of a source and the assumptions about it; messages name flags as options.

    Folders of diffusers have no flags, so entries of their configuration that have the same names stay unchanged.
    """
    given = flags.given()
    with on_the_command_line(given):
        path = local(source)
    names = given if path.is_dir() and looks_like(path) else FLAGS
    with on_the_command_line(names):
        read = opened(path, given)
    return read, tuple(as_options(line, names) for line in getattr(read.denoiser, "assumed", ()))


def refuse_held(out: Path) -> None:
    """Raises `UsageError` for a folder that has a checkpoint."""
    if (out / "checkpoint.json").exists() or any((out / "checkpoints").glob("*")):
        raise UsageError(f"{out} has a checkpoint already, which is not overwritten: choose another folder")


def about(read: Opened) -> dict[str, str]:
    """Returns descriptions of an opened checkpoint, by name."""
    denoiser, kind = read.denoiser, kind_of(read.denoiser)
    network, (quantization, shape, *_) = cast(nn.Module, denoiser.network), noted(denoiser)
    inner = getattr(network, "inner", None)
    name = type(network).__name__ + ("" if inner is None else f" of {type(inner).__name__}")
    return {
        "format": read.format,
        "network": f"{name}, {sum(p.numel() for p in network.parameters()):,} parameters",
        "schedule": kind.process(denoiser),
        "prediction": kind.output(denoiser),
        "time input": named(denoiser.time_input),
        "data": f"{quantization.levels} {'tokens' if len(shape) == 1 else 'quantization levels'}"
        + ("" if len(shape) == 1 else f" in [{quantization.low:g}, {quantization.high:g}]"),
        "size": "x".join(map(str, shape)),
        "conditions": ", ".join(denoiser.conditions or ()) or "none",
    }


def send(source: str, out: Path, flags: Flags) -> tuple[str, ...]:
    """Exports a run, or a pretrained file, as a diffusers folder; returns assumptions about the file, a sentence each.

    Raises:
        UsageError: for a folder that is not empty, an unreadable file, or a model that diffusers cannot express.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder, and nothing is overwritten: choose another folder")
    read, assumed = named_as_options(source, flags)
    export(cast(Learned, read.denoiser), out)
    return assumed
