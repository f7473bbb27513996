"""What the files of Karras et al. (2022) and their names say of a network beside its weights, and what is asked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .pickles import Record
from .settings import LARGEST, Settings

TABLE = "u"
"""Noise levels of the preconditioner of Nichol & Dhariwal's (2021) networks, from the largest to zero."""
SONG_M = 1000
"""M of Song et al.'s (2021) networks, whose label has a name of its own."""
NEEDS: dict[str, tuple[str, dict[str, float]]] = {
    "edm": ("the file does not tell the preconditioner's sigma_data", {"sigma_data": 0.5}),
    "vp": ("the file does not tell the VP preconditioner's settings", {"beta_d": 19.9, "beta_min": 0.1, "M": SONG_M}),
    "ve": (
        "the file does not tell the noise levels that the VE preconditioner was trained on",
        {"sigma_min": 0.02, "sigma_max": 100.0},
    ),
}
"""What to ask for by preconditioner: why, and a value of each."""
UNTOLD = "a state dict does not tell how the network is preconditioned, by precond='edm', 'vp', 've', 'iddpm' (Karras et al.'s own are 'edm')"
UNTOLD_HEADS = "the weights do not tell the heads"
USES = {
    "edm": {"sigma_data", "sigma_min", "sigma_max"},
    "vp": {"beta_d", "beta_min", "M", "epsilon_t"},
    "ve": {"sigma_min", "sigma_max"},
    "iddpm": {"M"},
}
"""Settings by preconditioner."""
CLASSES = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}
RELEASED = re.compile(
    r"((edm|baseline)-(cifar10-32x32|ffhq-64x64|afhqv2-64x64|imagenet-64x64)-((?:un)?cond)-(vp|ve|adm))(\..*)?"
)
"""The names of released files, whatever they end in."""
LABELS = {"cifar10-32x32": 10, "imagenet-64x64": 1000}
"""Classes of conditional networks."""
CHANNELS = 3
"""Of all released networks."""
KINDS = {"vp": "DDPM++", "ve": "NCSN++", "adm": "ADM"}
BASELINES: dict[str, dict[str, Any]] = {
    "vp": {"precond": "vp", "beta_d": 19.9, "beta_min": 0.1, "M": SONG_M, "epsilon_t": 1e-5},
    "ve": {"precond": "ve", "sigma_min": 0.02, "sigma_max": 100.0},
    "adm": {"precond": "iddpm", "M": 1000},
}
HEADS = {192: 64}
"""Channels of each head by the width of the network: ImageNet-64, the only released ADM."""


def settings_of(given: Mapping[str, Any], held: Any, state: Mapping[str, Any], source: str) -> Settings:
    """The settings, with what the pickle, the state dict and the file's name tell."""
    told: dict[str, Any] = {"precond": "iddpm"} if TABLE in state else {}
    if isinstance(held, Record):
        told["precond"] = CLASSES[held.name]
        heads = pickled_heads(held) if "out_conv.weight" in state else None
        told |= {} if heads is None else {"num_head_channels": heads}
        told |= {name: held.state[name] for name in USES[told["precond"]] if name in held.state}
    found = RELEASED.fullmatch(PurePath(source).name.lower())
    if found is None:
        return Settings(source, given, told)
    own = {"precond": "edm", "sigma_data": 0.5, "sigma_min": 0.0, "sigma_max": math.inf}
    named = (own if found[2] == "edm" else BASELINES[found[5]]) | (
        {"num_head_channels": HEADS[192]} if found[5] == "adm" else {}
    )
    return Settings(source, given, told, named, found[1], contradiction(found, state))


def contradiction(found: re.Match[str], state: Mapping[str, Any]) -> str:
    """What a file has that the released one of its name has not, in words; "" for nothing."""
    size = found[3].rpartition("x")[2]
    stem, labels = state.get(f"enc.{size}x{size}_conv.weight"), state.get("map_label.weight")
    kind = "adm" if "out_conv.weight" in state else "ve" if "map_noise.freqs" in state else "vp"
    channels, classes = getattr(stem, "shape", ())[1:2], getattr(labels, "shape", ())[1:2]
    if stem is None or max(sizes_of(state)) != int(size):
        return f"it has no images of {size} x {size}"
    if channels != (CHANNELS,):
        return f"its images have {', '.join(map(str, channels))} channels, and not {CHANNELS}"
    if classes != ((LABELS[found[3]],) if found[4] == "cond" and found[3] in LABELS else ()):
        return f"it has {', '.join(map(str, classes)) or 'no'} classes"
    return "" if kind == found[5] else f"its layers are those of {KINDS[kind]}, and not of {KINDS[found[5]]}"


def sizes_of(state: Mapping[str, Any]) -> list[int]:
    """Pixels across of each resolution, the full one first."""
    return sorted({int(m[1]) for name in state if (m := re.match(r"enc\.(\d{1,5})x\1_", name))}, reverse=True)


def pickled_heads(held: Any) -> int | None:
    """Channels of each attention head that a pickled network's blocks tell."""
    if not isinstance(held, Record):
        return None
    blocks, met = [held], {id(held)}
    for record in blocks:  # which grows
        inner = record.state.get("_modules")
        further = [part for part in inner.values() if isinstance(part, Record)] if isinstance(inner, Mapping) else []
        blocks += [part for part in further if id(part) not in met]
        met |= {id(part) for part in further}
        heads, channels = record.state.get("num_heads"), record.state.get("out_channels")
        if isinstance(heads, int) and isinstance(channels, int) and 0 < heads <= channels < LARGEST:
            return channels // heads
    return None
