"""Released checkpoints into this package's own format, and out of it: what `unnoise import` and `unnoise export` do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..shared.errors import UsageError
from ..shared.quantization import Quantization
from ..shared.training.checkpoint import save
from ..shared.training.folder import writable
from . import pretrained
from .imported_runs import imported, kind_of, named, objective
from .pretrained.diffusers import looks_like
from .pretrained.hub import local
from .pretrained.loading import OWN, Opened, opened


@dataclass(frozen=True)
class Flags:
    """What formats do not say; None where the file, its name or its `config.json` tells."""

    image_size: int | None = None
    """Height and width of the images."""
    num_heads: int | None = None
    """improved-diffusion, guided-diffusion: attention heads."""
    num_head_channels: int | None = None
    """improved-diffusion, guided-diffusion, EDM's ADM: channels of each attention head, in place of their number."""
    use_new_attention_order: bool | None = None
    """improved-diffusion, guided-diffusion: whether q, k, v are split before the heads."""
    noise_schedule: str | None = None
    """improved-diffusion, guided-diffusion: linear or cosine."""
    diffusion_steps: int | None = None
    """improved-diffusion, guided-diffusion: steps of training, such as 1000."""
    rescale_timesteps: bool | None = None
    """improved-diffusion, guided-diffusion: whether the network is fed t 1000 / diffusion_steps."""
    predict_xstart: bool | None = None
    """improved-diffusion, guided-diffusion: whether the network gives the clean image, and not the noise."""
    learn_sigma: bool | None = None
    """improved-diffusion, guided-diffusion.

    Whether half of the channels out are a variance, where the numbers do not tell.
    """
    sde: str | None = None
    """score_sde: vp, subvp or ve."""
    continuous: bool | None = None
    """score_sde: whether it was trained in continuous time."""
    beta_min: float | None = None
    """score_sde, EDM's vp: beta at t = 0, such as 0.1."""
    beta_max: float | None = None
    """score_sde: beta at t = 1, such as 20."""
    num_scales: int | None = None
    """score_sde: steps of a VP chain whose file has no noise levels to count, such as 1000."""
    centered: bool | None = None
    """score_sde: whether images are in [-1, 1], as those of vp and subvp are if nothing is said, and not in [0, 1]."""
    scale_by_sigma: bool | None = None
    """score_sde: whether a VE network's output is divided by sigma, True if nothing is said; SEDD.

    Whether ratios are.
    """
    skip_rescale: bool | None = None
    """score_sde: whether sums of blocks are divided by sqrt(2), True for NCSN++ and DDPM++ if nothing is said."""
    fir: bool | None = None
    """score_sde: whether sizes change by the filter (1, 3, 3, 1)."""
    rescaled: bool | None = None
    """ermongroup DDPM, NCSNv2: whether images are in [-1, 1], True for DDPM and False for NCSNv2 if nothing is said."""
    logit_transform: bool | None = None
    """NCSNv2: whether images are logits, which are not read."""
    beta_schedule: str | None = None
    """ermongroup DDPM: linear, quad, const, jsd, sigmoid, warmup10 or warmup50."""
    beta_start: float | None = None
    """ermongroup DDPM: the first beta, such as 0.0001."""
    beta_end: float | None = None
    """ermongroup DDPM: the last beta, such as 0.02."""
    num_diffusion_timesteps: int | None = None
    """ermongroup DDPM: steps of training, such as 1000."""
    precond: str | None = None
    """EDM: the preconditioner, edm, vp, ve or iddpm."""
    sigma_data: float | None = None
    """EDM's edm: standard deviation of the data, such as 0.5."""
    sigma_min: float | None = None
    """EDM's ve: the smallest noise level for images in [-1, 1], such as 0.02; of edm, where it is larger than 0.002;
    MDLM, SEDD: the noise at t = 0 where it is geometric, such as 0.0001."""
    sigma_max: float | None = None
    """EDM's ve: the largest noise level for images in [-1, 1], such as 100; of edm, where it is smaller than 80;
    MDLM, SEDD: the noise at t = 1 where it is geometric, such as 20."""
    beta_d: float | None = None
    """EDM's vp: beta_max - beta_min, such as 19.9."""
    M: int | None = None
    """EDM's vp: steps that its time input counts, such as 1000."""
    parameterization: str | None = None
    """MDLM: subs or sedd."""
    time_conditioning: bool | None = None
    """MDLM: whether the network is told the noise."""
    noise: str | None = None
    """MDLM, SEDD: loglinear or geometric."""
    uniform: bool | None = None
    """SEDD: whether tokens are resampled and not masked."""
    length: int | None = None
    """MDLM, SEDD: tokens in a sequence."""
    n_heads: int | None = None
    """MDLM, SEDD: attention heads of a file without rotary rates, such as 12."""

    def given(self) -> dict[str, Any]:
        """Those that are not None."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


FLAGS = tuple(f.name for f in fields(Flags))
VALUE = r"""(?:'[^']*'|"[^"]*"|[\w.]+)"""
OTHER = r"""(?:, or |, | or )(?:'[^']*'|"[^"]*"|True\b|False\b)"""
"""A further value of an option, as in `sde='vp', 'subvp' or 've'`."""


@contextlib.contextmanager
def on_the_command_line(names: Collection[str] = FLAGS) -> Iterator[None]:
    """Errors within it name flags as options: `--image-size 64` for `image_size=64`."""
    try:
        yield
    except UsageError as error:
        raise UsageError(as_options(str(error), names)) from error


def as_options(said: str, names: Collection[str] = FLAGS) -> str:
    """The text with flags as options, outside of paths and of quotation marks.

    These are Python's `name=value`, each of several values by itself, names of several words, and names that are listed
    as flags.
    """
    if not names:
        return said
    any_of, before = "|".join(sorted(names, key=len, reverse=True)), r"(?<![\w/.\"'-])"
    said = re.sub(r"\breleased\.load\(path, ([^()]*)\)", r"\1", said)
    said = re.sub(rf"{before}({any_of})=({VALUE}(?:{OTHER})*)", lambda m: alternatives(option(m[1]), m[2]), said)
    lists = rf"\b(give|do not take|do not tell|they take:) ((?:{any_of})(?:, (?:{any_of}))*)(?= as in |: leave|\)|, and | \()"
    said = re.sub(lists, lambda m: f"{m[1]} {', '.join(map(option, m[2].split(', ')))}", said)
    several = "|".join(name for name in any_of.split("|") if "_" in name)
    return (
        re.sub(rf"(?<!configuration has ){before}({several})(?![\w/=\"'-])", lambda m: option(m[1]), said)
        if several
        else said
    )


def option(name: str) -> str:
    """A flag as it is given on the command line."""
    return f"--{name.replace('_', '-')}"


def alternatives(name: str, values: str) -> str:
    """The option with each of these values."""
    return re.sub(rf"(?<![\w.])(?!or\b){VALUE}", lambda m: f"{name} {m[0].strip(chr(39) + chr(34))}", values)


class Held(NamedTuple):
    """The data's scale and shape, as a checkpoint takes them from batches."""

    quantization: Quantization
    shape: tuple[int, ...]


class Brought(NamedTuple):
    """What was imported: what it is, in words by their names; what was assumed, a sentence each; and what to do with it
    (`Kind.usage`).

    What was assumed names flags as options.
    """

    about: dict[str, str]
    assumed: tuple[str, ...]
    usage: str


def bring(source: str, out: Path, flags: Flags, data: str | None = None, tokenizer: Path | None = None) -> Brought:
    """Writes a released checkpoint to `out` in this package's own format, and says what it found.

    Raw and averaged weights are both the file's averaged ones, at step 0.

    Args:
        source: the file, folder or name on the Hub.
        out: the run's folder, without a checkpoint in it.
        flags: what the format does not say.
        data: what to measure it on by default; see `Data.name` and `Text.name`.
        tokenizer: `tokenizer.json`, for text.

    Raises:
        UsageError: for a folder that holds a checkpoint, or a file that cannot be read; flags are named in it as
            options.
    """
    refuse_held(out)
    read, assumed = named_as_options(source, flags)
    if read.format == OWN:
        raise UsageError(
            f"{source} is a checkpoint of this package already: `unnoise sample` and `unnoise evaluate` take it as it is"
        )
    denoiser, experiment = read.denoiser, imported(read.denoiser, str(source))
    experiment = experiment if data is None else experiment.on(data)
    if tokenizer is not None:
        if not hasattr(experiment, "text"):
            raise UsageError(f"--tokenizer {tokenizer}: {source} is a network of images, leave it out")
        experiment = replace(experiment, text=replace(experiment.text, tokenizer=str(tokenizer)))
    experiment = experiment.settled()
    held, both = Held(denoiser.quantization, tuple(denoiser.shape)), objective(denoiser)
    save(
        writable(out),
        objective=both,
        average=both,
        optimizer=None,
        step=0,
        config=None,
        experiment=experiment,
        batches=held,
    )
    return Brought(about(read), assumed, kind_of(denoiser).usage)


def named_as_options(source: str, flags: Flags) -> tuple[Opened, tuple[str, ...]]:
    """A source's denoiser and what was assumed; errors and sentences name flags as options.

    Folders of diffusers have no flags, and their entries of the same names stay as they are.
    """
    given = flags.given()
    with on_the_command_line(given):
        path = local(source)
    names = given if path.is_dir() and looks_like(path) else FLAGS
    with on_the_command_line(names):
        read = opened(path, given)
    return read, tuple(as_options(line, names) for line in getattr(read.denoiser, "assumed", ()))


def refuse_held(out: Path) -> None:
    """Refuses a folder that holds a checkpoint."""
    if (out / "checkpoint.json").exists() or any((out / "checkpoints").glob("*")):
        raise UsageError(f"{out} holds a checkpoint already, which is not overwritten: choose another folder")


def about(read: Opened) -> dict[str, str]:
    """What was found in a file, in words."""
    denoiser, kind = read.denoiser, kind_of(read.denoiser)
    network, quantization = denoiser.network, denoiser.quantization
    inner = getattr(network, "inner", None)
    name = type(network).__name__ + ("" if inner is None else f" of {type(inner).__name__}")
    return {
        "format": read.format,
        "network": f"{name}, {sum(p.numel() for p in network.parameters()):,} parameters",
        "schedule": kind.process(denoiser),
        "prediction": kind.output(denoiser),
        "label": named(denoiser.time_input),
        "range": f"{quantization.levels} levels"
        + ("" if len(denoiser.shape) == 1 else f" in [{quantization.low:g}, {quantization.high:g}]"),
        "size": "x".join(map(str, denoiser.shape)),
        "conditions": ", ".join(denoiser.conditions or ()) or "none",
    }


def send(source: str, out: Path, flags: Flags) -> tuple[str, ...]:
    """Writes a run, or a released file, as a diffusers folder, and gives what was assumed of the file, a sentence each.

    Raises:
        UsageError: for a folder that is not empty, a file that cannot be read, or for what diffusers cannot express.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty, and nothing is overwritten: choose another folder")
    read, assumed = named_as_options(source, flags)
    pretrained.export(read.denoiser, out)
    return assumed
