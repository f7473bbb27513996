"""Recognizes the format of a checkpoint of any supported project, and loads its denoiser."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ...shared.denoiser import Denoiser
from ...shared.errors import UsageError
from ...shared.training import load as load_own
from ..code_lengths import Bound
from . import diffusers, files, hub, karras, ncsnv2, openai, pesser, song, text
from .diffusers_options import FIXED
from .imported import Imported
from .settings import attach


class Format(NamedTuple):
    """A file format of another project.

    Attributes:
        name: the name that is shown.
        looks_like: whether a file's contents have this format.
        denoiser: `(contents, source, **flags) -> Denoiser`.
    """

    name: str
    looks_like: Callable[[Any], bool]
    denoiser: Callable[..., Denoiser]


FORMATS = (
    Format("pesser / ermongroup DDPM", pesser.looks_like, pesser.denoiser),
    Format("improved-diffusion / guided-diffusion", openai.looks_like, openai.denoiser),
    Format("score_sde", song.looks_like, song.denoiser),
    Format("NCSNv2", ncsnv2.looks_like, ncsnv2.denoiser),
    Format("EDM", karras.looks_like, karras.denoiser),
    Format("MDLM", text.looks_like_mdlm, text.mdlm),
    Format("SEDD", text.looks_like_sedd, text.sedd),
)


class Opened(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        format: the format's name.
        denoiser: the denoiser, in evaluation mode.
    """

    format: str
    denoiser: Denoiser


OWN = "unnoise"
"""The name of this package's own format."""
SHOWN, LONGEST = 5, 80
"""In errors about unknown files: the most names, and the most characters of each."""
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load(path: Path | str, **flags: Any) -> Any:
    """Loads a pretrained checkpoint as a denoiser, ready for any sampler, likelihood or evaluation.

    Averaged weights are used where the file has raw ones too. Schedule, prediction, time input, range and shape of the
    data are those of training: `denoiser.corruption`, `.predicts`, `.time_input`, `.quantization` and `.shape`.
    `denoiser.assumed` lists what the file does not determine. No code in the file is run.

    Args:
        path: a file, a folder, or a name on the Hub such as "google/ddpm-cifar10-32" or "owner/name/folder/file.pth".
        flags: settings that the format does not contain, such as `num_heads=4` or `sde="vp"`; an error names those
            that are missing.

    Returns:
        the denoiser in evaluation mode, on the CPU; for a classifier of guided-diffusion, the `NoisyClassifier`.

    Raises:
        UsageError: for a file that is missing, damaged, of an unknown format, or refers to code, and for weights that
            do not fit.
    """
    return opened(path, flags).denoiser


def opened(path: Path | str, flags: dict[str, Any]) -> Opened:
    """Loads a pretrained checkpoint as `load` does, and returns the format's name too."""
    path = hub.local(path)
    return of_folder(path, flags) if path.is_dir() else of_file(path, flags)


def of_folder(folder: Path, flags: dict[str, Any]) -> Opened:
    """Loads the denoiser in a folder: a run of this package, a diffusers folder, or weights with a `config.json`."""
    if (folder / "checkpoint.json").is_file() or (folder / "checkpoints").is_dir():
        refuse_flags(flags, {}, "this package's own checkpoints")
        checkpoint = load_own(folder)
        denoiser = checkpoint.average.denoiser
        attach(denoiser, quantization=checkpoint.quantization, shape=checkpoint.shape)
        attach(denoiser, **settings_of(checkpoint.experiment))
        return Opened(OWN, denoiser.eval())
    if diffusers.looks_like(folder):
        refuse_flags(flags, {}, "diffusers folders")
        return Opened("diffusers", diffusers.denoiser(folder).eval())
    weights = [p for pattern in WEIGHTS for p in sorted(folder.glob(pattern))]
    if not weights:
        raise UsageError(
            f"there are no weights in {folder}: give a folder that contains {', '.join(WEIGHTS)}, or checkpoints/"
        )
    if len({p.stem.removeprefix("pytorch_") for p in weights}) > 1:  # model.safetensors is pytorch_model.bin once more
        raise UsageError(
            f"there are several weight files in {folder}: give one of {', '.join(str(p) for p in weights[:10])}"
        )
    return of_file(weights[0], flags)


def settings_of(run: Any) -> dict[str, Any]:
    """Returns what an imported run keeps of a diffusers folder's scheduler, `clip` and `variance`, as attributes."""
    if not isinstance(run, Imported) or not isinstance(run.code_length, Bound):
        return {}
    limit = math.inf if run.clip is None else run.clip["high"]
    return {"clip": limit} | ({"variance": run.variance} if run.variance in FIXED.values() else {})


def of_file(path: Path, flags: dict[str, Any]) -> Opened:
    """Loads the denoiser in a file."""
    contents = files.read(path)
    format_ = format_of(contents)
    if format_ is None and isinstance(contents, dict) and contents.keys() == {"state_dict"}:
        contents = contents["state_dict"]
        format_ = format_of(contents)
    if format_ is None:
        raise UsageError(
            f"{path} does not contain a known network ({summary(contents)}): "
            f"supported are {', '.join(f.name for f in FORMATS)} and diffusers folders"
        )
    known = {k: p for k, p in inspect.signature(format_.denoiser).parameters.items() if p.kind is p.KEYWORD_ONLY}
    beside = path.parent / "config.json"
    if "config" in known and "config" not in flags and beside.is_file():
        flags = flags | {"config": files.json_object(beside)}
    refuse_flags(flags, known, f"{format_.name} checkpoints")
    return Opened(format_.name, format_.denoiser(contents, str(path), **flags).eval())


def format_of(contents: Any) -> Format | None:
    """Returns the format of a file's contents, or None if it is unknown."""
    return next((f for f in FORMATS if f.looks_like(contents)), None)


def refuse_flags(flags: dict[str, Any], known: dict[str, Any], name: str) -> None:
    """Raises `UsageError` for flags that a format does not take."""
    if further := sorted(flags.keys() - known.keys()):
        takes = ", ".join(k for k in known if k != "config") or "none"
        raise UsageError(f"{name} do not take {', '.join(further)}: leave it out (flags that they take: {takes})")


def summary(contents: Any) -> str:
    """Describes a file's contents in a few words."""
    if isinstance(contents, dict):
        # Only keys that are strings are shown: a file can nest tuples so deeply that their text has no end.
        names = [k[:LONGEST] if isinstance(k, str) else f"a {type(k).__name__}" for k in islice(contents, SHOWN)]
        return f"{len(contents)} entries: {', '.join(names)}{', ...' if len(contents) > SHOWN else ''}"
    return f"a {type(contents).__name__}"
