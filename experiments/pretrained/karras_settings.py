"""Settings of Karras et al.'s (2022) networks: those that files and file names contain, and those that are required."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .pickles import Record
from .settings import LARGEST, Settings

TABLE = "u"
"""Buffer of the preconditioner of Nichol & Dhariwal's (2021) networks: noise levels, from the largest to zero."""
SONG_M = 1000
"""M of Song et al.'s (2021) networks, for which the time input `song_vp` exists."""
REQUIRED: dict[str, tuple[str, dict[str, float]]] = {
    "edm": ("the file does not contain the preconditioner's sigma_data", {"sigma_data": 0.5}),
    "vp": (
        "the file does not contain the VP preconditioner's settings",
        {"beta_d": 19.9, "beta_min": 0.1, "M": SONG_M},
    ),
    "ve": (
        "the file does not contain the noise levels that the VE preconditioner was trained on",
        {"sigma_min": 0.02, "sigma_max": 100.0},
    ),
}
"""Settings that are required, by preconditioner: why, and an example of each."""
NO_PRECOND = (
    "a state dict does not determine the preconditioner, precond='edm', 'vp', 've', 'iddpm' "
    "('edm' for the models of the paper)"
)
NO_HEADS = "the weights do not determine the attention heads"
USES = {
    "edm": {"sigma_data", "sigma_min", "sigma_max"},
    "vp": {"beta_d", "beta_min", "M", "epsilon_t"},
    "ve": {"sigma_min", "sigma_max"},
    "iddpm": {"M"},
}
"""Settings by preconditioner."""
CLASSES = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}
PUBLISHED = re.compile(
    r"((edm|baseline)-(cifar10-32x32|ffhq-64x64|afhqv2-64x64|imagenet-64x64)-((?:un)?cond)-(vp|ve|adm))(\..*)?"
)
"""Names of the published checkpoints, with any extension."""
CLASSES_OF_DATA = {"cifar10-32x32": 10, "imagenet-64x64": 1000}
"""Number of classes of the conditional networks."""
CHANNELS = 3
"""Image channels of all published checkpoints."""
ARCHITECTURES = {"vp": "DDPM++", "ve": "NCSN++", "adm": "ADM"}
BASELINES: dict[str, dict[str, Any]] = {
    "vp": {"precond": "vp", "beta_d": 19.9, "beta_min": 0.1, "M": SONG_M, "epsilon_t": 1e-5},
    "ve": {"precond": "ve", "sigma_min": 0.02, "sigma_max": 100.0},
    "adm": {"precond": "iddpm", "M": 1000},
}
HEADS = {192: 64}
"""Channels of each attention head by the width of the network: ImageNet-64, the only published ADM."""


def settings_of(flags: Mapping[str, Any], network: Any, state: Mapping[str, Any], source: str) -> Settings:
    """Returns the settings, from flags, the pickled network (if a `Record`), its tensors and the file name."""
    from_file: dict[str, Any] = {"precond": "iddpm"} if TABLE in state else {}
    if isinstance(network, Record):
        from_file["precond"] = CLASSES[network.name]
        heads = pickled_heads(network) if "out_conv.weight" in state else None
        from_file |= {} if heads is None else {"num_head_channels": heads}
        from_file |= {name: network.state[name] for name in USES[from_file["precond"]] if name in network.state}
    match = PUBLISHED.fullmatch(PurePath(source).name.lower())
    if match is None:
        return Settings(source, flags, from_file)
    edm = {"precond": "edm", "sigma_data": 0.5, "sigma_min": 0.0, "sigma_max": math.inf}
    from_name = (edm if match[2] == "edm" else BASELINES[match[5]]) | (
        {"num_head_channels": HEADS[192]} if match[5] == "adm" else {}
    )
    return Settings(source, flags, from_file, from_name, match[1], contradiction(match, state))


def contradiction(match: re.Match[str], state: Mapping[str, Any]) -> str:
    """Describes how a file differs from the published checkpoint of its name; "" where it does not."""
    data, size = match[3], match[3].rpartition("x")[2]
    stem, labels = state.get(f"enc.{size}x{size}_conv.weight"), state.get("map_label.weight")
    kind = "adm" if "out_conv.weight" in state else "ve" if "map_noise.freqs" in state else "vp"
    channels, classes = getattr(stem, "shape", ())[1:2], getattr(labels, "shape", ())[1:2]
    if stem is None or max(sizes_of(state)) != int(size):
        return f"its images are not {size} x {size}"
    if channels != (CHANNELS,):
        return f"its images have {', '.join(map(str, channels))} channels, not {CHANNELS}"
    if classes != ((CLASSES_OF_DATA[data],) if match[4] == "cond" and data in CLASSES_OF_DATA else ()):
        return f"it has {', '.join(map(str, classes)) or 'no'} classes"
    return "" if kind == match[5] else f"its layers are those of {ARCHITECTURES[kind]}, not {ARCHITECTURES[match[5]]}"


def sizes_of(state: Mapping[str, Any]) -> list[int]:
    """Returns the image size at each resolution in pixels, full resolution first."""
    return sorted({int(m[1]) for name in state if (m := re.match(r"enc\.(\d{1,5})x\1_", name))}, reverse=True)


def pickled_heads(network: Any) -> int | None:
    """Returns the channels of each attention head, from the blocks of a pickled network; None for a state dict."""
    if not isinstance(network, Record):
        return None
    blocks, met = [network], {id(network)}
    for record in blocks:  # the list grows meanwhile
        inner = record.state.get("_modules")
        further = [part for part in inner.values() if isinstance(part, Record)] if isinstance(inner, Mapping) else []
        blocks += [part for part in further if id(part) not in met]
        met |= {id(part) for part in further}
        heads, channels = record.state.get("num_heads"), record.state.get("out_channels")
        if isinstance(heads, int) and isinstance(channels, int) and 0 < heads <= channels < LARGEST:
            return channels // heads
    return None
