"""Which format a file or folder has, and what it becomes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ...shared.denoiser import Denoiser
from ...shared.errors import UsageError
from ...shared.training import load as load_own
from . import diffusers, files, hub, karras, ncsnv2, openai, pesser, song, text


class Format(NamedTuple):
    """A format of files.

    Attributes:
        name: for people.
        looks_like: whether a file's contents are of it.
        denoiser: `(contents, source, **flags)` to the denoiser.
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
    """What a path held.

    Attributes:
        format: for people.
        denoiser: in evaluation mode.
    """

    format: str
    denoiser: Denoiser


OWN = "unnoise"
"""The name of this package's own format."""
SHOWN, LONGEST = 5, 80
"""Names of a file that is not known, in errors: how many, and how much of each."""
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load(path: Path | str, **flags: Any) -> Denoiser:
    """A released checkpoint as a denoiser, ready for any sampler, likelihood or evaluation.

    The averaged weights are taken where a file has raw ones too. Schedule, prediction, time label and range are those
    that the network was trained with: `denoiser.corruption`, `.predicts`, `.time_input` and `.quantization`, `.shape`. Nothing
    in the file is run.

    Args:
        path: a file, a folder, or a name on the Hub such as "google/ddpm-cifar10-32" or "owner/name/folder/file.pth".
        flags: what the format does not say, such as `num_heads=4` or `sde="vp"`; an error names those that are missing.

    Returns:
        in evaluation mode, on the CPU; for a guided-diffusion classifier the `NoisyClassifier`.

    Raises:
        UsageError: for a file that is missing, damaged, of no known format, or names code to be run, and for weights
            that do not fit.
    """
    return opened(path, flags).denoiser


def opened(path: Path | str, flags: dict[str, Any]) -> Opened:
    """The same with the format's name."""
    path = hub.local(path)
    return of_folder(path, flags) if path.is_dir() else of_file(path, flags)


def of_folder(folder: Path, flags: dict[str, Any]) -> Opened:
    """The denoiser in a folder: a run of this package, a diffusers folder, or weights beside their `config.json`."""
    if (folder / "checkpoint.json").is_file() or (folder / "checkpoints").is_dir():
        refuse_flags(flags, {}, "this package's own checkpoints")
        found = load_own(folder)
        denoiser = found.average.denoiser
        denoiser.quantization, denoiser.shape = found.quantization, found.shape
        for name in ("clip", "variance"):  # of a diffusers folder's scheduler
            if hasattr(family := getattr(found.experiment, "family", None), name):
                setattr(denoiser, name, getattr(family, name))
        return Opened(OWN, denoiser.eval())
    if diffusers.looks_like(folder):
        refuse_flags(flags, {}, "diffusers folders")
        return Opened("diffusers", diffusers.denoiser(folder).eval())
    weights = [p for pattern in WEIGHTS for p in sorted(folder.glob(pattern))]
    if not weights:
        raise UsageError(
            f"there are no weights in {folder}: a file of {', '.join(WEIGHTS)} is expected, or a folder with checkpoints/"
        )
    if len({p.stem.removeprefix("pytorch_") for p in weights}) > 1:  # model.safetensors is pytorch_model.bin once more
        raise UsageError(
            f"there are several files of weights in {folder}: give one of {', '.join(str(p) for p in weights[:10])}"
        )
    return of_file(weights[0], flags)


def of_file(path: Path, flags: dict[str, Any]) -> Opened:
    """The denoiser in a file."""
    contents = files.read(path)
    found = format_of(contents)
    if found is None and isinstance(contents, dict) and contents.keys() == {"state_dict"}:
        contents = contents["state_dict"]
        found = format_of(contents)
    if found is None:
        raise UsageError(
            f"{path} holds no network that is known here ({told(contents)}): "
            f"{', '.join(f.name for f in FORMATS)} and diffusers folders are read"
        )
    known = {k: p for k, p in inspect.signature(found.denoiser).parameters.items() if p.kind is p.KEYWORD_ONLY}
    beside = path.parent / "config.json"
    if "config" in known and "config" not in flags and beside.is_file():
        flags = flags | {"config": files.json_object(beside)}
    refuse_flags(flags, known, f"{found.name} checkpoints")
    return Opened(found.name, found.denoiser(contents, str(path), **flags).eval())


def format_of(contents: Any) -> Format | None:
    """The format of a file's contents, or None."""
    return next((f for f in FORMATS if f.looks_like(contents)), None)


def refuse_flags(flags: dict[str, Any], known: dict[str, Any], name: str) -> None:
    """Raises `UsageError` for flags that a format does not take."""
    if further := sorted(flags.keys() - known.keys()):
        takes = ", ".join(k for k in known if k != "config") or "none"
        raise UsageError(f"{name} do not take {', '.join(further)}: leave it out (flags that they take: {takes})")


def told(contents: Any) -> str:
    """What a file holds, in a few words."""
    if isinstance(contents, dict):
        # Other keys than strings are not written out: a file can nest tuples so that their text has no end.
        names = [k[:LONGEST] if isinstance(k, str) else f"a {type(k).__name__}" for k in islice(contents, SHOWN)]
        return f"{len(contents)} entries: {', '.join(names)}{', ...' if len(contents) > SHOWN else ''}"
    return f"a {type(contents).__name__}"
