"""Differences of two descriptions, such as a checkpoint's and that of the model that is to be trained further."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import shown

ABSENT = "nothing"
"""Written by `difference` for an entry that one of the two does not have."""


def difference(stored: Any, given: Any, at: str = "") -> list[str]:
    """Returns the differences of two descriptions, one short line each: `network.width: was 32, now 64`.

    Args:
        stored, given: descriptions, the nested dicts and lists that `serialize` returns.
        at: where in the whole description these two stand, for the lines.
    """
    if isinstance(stored, dict) and isinstance(given, dict) and class_name(stored) == class_name(given):
        if {*stored, *given} == {"tensor", "dtype"} and stored.keys() == given.keys():
            return difference_of_tensors(stored, given, at.strip("."))
        pairs = {k: (stored.get(k, ABSENT), given.get(k, ABSENT)) for k in stored | given}
        return [d for k, (a, b) in pairs.items() for d in difference(a, b, f"{at}.{k}" if k != "arguments" else at)]
    if isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        return [d for i, (a, b) in enumerate(zip(stored, given, strict=True)) for d in difference(a, b, f"{at}[{i}]")]
    if isinstance(stored, str) and isinstance(given, str) and stored != given and stored[:1] == given[:1] == "{":
        try:  # such as the content of a tokenizer.json, in any layout
            return difference(json.loads(stored), json.loads(given), at)
        except ValueError:
            pass
    same = stored == given or (stored != stored and given != given)  # NaN
    return [] if same else [f"{at.strip('.')}: was {brief(stored)}, now {brief(given)}"]


def class_name(description: Mapping[str, Any]) -> Any:
    """Returns the class in a description, or None for a description without a class."""
    return next((description[k] for k in ("class", "external") if isinstance(description.get(k), str)), None)


def difference_of_tensors(stored: Mapping[str, Any], given: Mapping[str, Any], at: str) -> list[str]:
    """Returns the difference of two descriptions of tensors: their shapes, or the first value that differs."""
    a, b = (torch.tensor(d["tensor"], dtype=torch.float64) for d in (stored, given))
    if a.shape != b.shape:
        before, after = (" x ".join(map(str, v.shape)) or "1" for v in (a, b))
        return [f"{at}: was {before} values, now {after}"]
    if len(places := torch.nonzero((a != b) & ~(a.isnan() & b.isnan()))):
        first = tuple(places[0].tolist())
        more = f", the first of {len(places)} that differ" * (len(places) > 1)
        return [f"{at}{list(first) or ''}: was {float(a[first])}, now {float(b[first])}{more}"]
    return [] if stored["dtype"] == given["dtype"] else [f"{at}: was {stored['dtype']}, now {given['dtype']}"]


def brief(value: Any, most: int = 60) -> str:
    """Returns a part of a description as a text of about `most` characters or fewer: a class by its name."""
    if isinstance(value, dict) and (name := class_name(value)) is not None:
        return str(name)
    text = str(value)
    if len(text) <= most:
        return text
    if isinstance(value, str):
        return f"{len(text):,} characters (SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:8]}...)"
    return f"{len(value)} values" if isinstance(value, list) else shown(text, most)
