"""Imported runs in checkpoints of earlier versions, whose sampler and code length were one of three classes."""

from __future__ import annotations

from typing import Any

from ...continuous import DDIM, Heun
from ...discrete import Ancestral
from ...shared.random import categorical
from ...shared.serialization import earlier, serialize
from ..code_lengths import Bound, Exact, TokenBound
from ..parts import part
from ..time_grids import Karras
from .imported import NoCodeLength, clipped, learned_or_large, no_samples

Description = dict[str, Any]
LARGE = ("continuous.large", "unnoise.continuous.posterior.large")


def called(name: str, arguments: Description) -> Description:
    """Returns the description of an object of a class."""
    return {"class": f"experiments.{name}", "arguments": arguments}


def parts_of(family: Description, low: float, high: float) -> Description:
    """Returns the descriptions of sampler and code length of an earlier family, for data in [low, high]."""
    kind, arguments = family["class"].rsplit(".", 1)[1], family["arguments"]
    if kind == "Classifiers":
        return {"sampler": serialize(part(no_samples)), "code_length": serialize(NoCodeLength())}
    if kind == "Flows":
        length = Exact(arguments["tolerance"])
        return {
            "sampler": serialize(part(Heun)),
            "spacing": serialize(Karras()),
            "code_length": serialize(length),
        }
    limit = arguments["clip"]
    clip = clipped(*((low, high) if limit is None else (-limit, limit)))
    variance = arguments["variance"]
    return {
        "sampler": serialize(part(DDIM)),
        "clip": serialize(clip),
        "variance": serialize(learned_or_large) if variance.get("function") in LARGE else variance,
        "code_length": serialize(Bound(arguments["bound_terms"], clip=clip)),
    }


def of_images(arguments: Description) -> Description:
    """Returns today's description of an imported model of images."""
    if "family" not in arguments:
        return called("Imported", arguments)
    quantization = arguments.get("quantization") or arguments["scale"]
    of_data = {name: arguments.get(name) for name in ("shape", "classes")}
    of_data |= {"quantization": quantization, "needs": arguments["needs"], "images": arguments["data"]}
    limits = quantization["arguments"]
    kept = {name: arguments[name] for name in ("source", "sampling_steps")}
    parts = parts_of(arguments["family"], limits["low"], limits["high"])
    return called("Imported", kept | parts | {"data": called("GivenImages", of_data)})


def of_text(arguments: Description) -> Description:
    """Returns today's description of an imported model of text."""
    of_data = {name: arguments[name] for name in ("vocabulary", "text")}
    kept = {name: arguments[name] for name in ("source", "sampling_steps")}
    sampler = serialize(part(Ancestral, last=categorical))
    length = serialize(TokenBound(arguments["bound_terms"]))
    data = called("GivenText", of_data)
    return called("ImportedTokens", kept | {"data": data, "sampler": sampler, "code_length": length})


def code_length_of(name: str) -> Any:
    """Returns the conversion of a family that stands alone: to its code length, for data in [-1, 1]."""
    return lambda arguments: parts_of({"class": f".{name}", "arguments": arguments}, -1.0, 1.0)["code_length"]


for home in ("experiments", "unnoise.experiments.imported"):
    earlier(f"{home}.Imported", of_images)
    earlier(f"{home}.ImportedText", of_text)
    for family in ("Chains", "Flows", "Classifiers"):
        earlier(f"{home}.{family}", code_length_of(family))
