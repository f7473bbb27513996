"""Measured numbers that carry how they were measured, and of what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..errors import UsageError

LABELS = {
    "features": "features",
    "features_hash": "hash of the features' weights",
    "resize": "resize",
    "reference": "reference",
    "reference_hash": "hash of the reference",
    "samples": "number of samples",
    "settings": "settings",
}
"""The fields of a protocol in words."""


@dataclass(frozen=True)
class Protocol:
    """How a number is measured: two numbers can be compared only where these fields are equal.

    Attributes:
        features: name of the feature extractor, such as `inception`; empty for measures without features.
        features_hash: first 12 hexadecimal digits of the SHA-256 of the extractor's weights.
        resize: how images are resized for the extractor, such as `TensorFlow 1 bilinear to 299 x 299`.
        reference: what samples are compared with, or examples that are coded, such as `digits, train, 1437 images`.
        reference_hash: first 12 hexadecimal digits of the SHA-256 of its content.
        samples: number of samples or of coded examples.
        settings: the settings of the measure, such as `k=3`, or `upper bound, 100 terms`.
        coded: whether examples of the reference are coded, instead of samples compared with it; it follows from the
            measure, and is not compared.
    """

    features: str = ""
    features_hash: str = ""
    resize: str = ""
    reference: str = ""
    reference_hash: str = ""
    samples: int = 0
    settings: str = ""
    coded: bool = field(default=False, compare=False)

    def differences(self, other: Protocol) -> list[str]:
        """Returns a line for each field in which two protocols differ, `resize: none and bicubic`."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.compare}
        return [f"{LABELS[name]}: {a or 'none'} and {b or 'none'}" for name, (a, b) in pairs.items() if a != b]

    def short(self) -> str:
        """Returns the protocol on one line."""
        hashed = f" #{self.features_hash[:6]}" * bool(self.features_hash)
        against = f" #{self.reference_hash[:6]}" * bool(self.reference_hash)
        parts = [
            f"{self.features}{hashed}",
            self.resize,
            f"{self.samples:,} {'examples' if self.coded else 'samples'}" * bool(self.samples),
            f"{'of' if self.coded else 'against'} {self.reference}{against}" * bool(self.reference),
            self.settings,
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Origin:
    """Where samples come from, or by which model examples were coded: what a comparison may vary.

    Attributes:
        sampler: the sampler in the notation of parts; empty where it is unknown.
        steps: number of sampling steps.
        evaluations: number of network evaluations for each sample.
        weights: `raw`, or the average of the weights, such as `Decay(0.999)`.
        precision: arithmetic of the network, such as `float32`.
        seed: the seed of the samples, or of the noise of a code length.
        version: version of this package.
    """

    sampler: str = ""
    steps: int = 0
    evaluations: int = 0
    weights: str = ""
    precision: str = ""
    seed: int | None = None
    version: str = ""

    def short(self) -> str:
        """Returns the origin on one line."""
        parts = [
            self.sampler,
            f"{self.steps} steps" * bool(self.steps),
            f"{self.evaluations} evaluations" * bool(self.evaluations),
            f"weights {self.weights}" * bool(self.weights),
            self.precision,
            "" if self.seed is None else f"seed {self.seed}",
            f"unnoise {self.version}" * bool(self.version),
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Measurement:
    """A measured number with its unit, its error, and how it was got.

    Attributes:
        name: name of the measure, such as `fid`, `bits_per_dim` or `precision_inception`.
        value: the number.
        protocol: how it was measured.
        origin: of what it was measured.
        error: standard error, or None where none is known.
        unit: the unit, such as `bits/dim`; empty for none.
        better: whether `lower` or `higher` values are better, `closer` those near to that of real data, or empty.
        held_out: the number of real held-out data by the same protocol, or None.
        note: a remark that has to be read with the number, such as `biased: fewer samples than features`.
    """

    name: str
    value: float
    protocol: Protocol = field(default_factory=Protocol)
    origin: Origin = field(default_factory=Origin)
    error: float | None = None
    unit: str = ""
    better: str = ""
    held_out: float | None = None
    note: str = ""

    def of(self, origin: Origin) -> Measurement:
        """Returns the measurement with another origin."""
        return replace(self, origin=origin)

    def line(self) -> str:
        """Returns the number with its error, the number of real data, and the protocol in short form."""
        error = "" if self.error is None or math.isnan(self.error) else f" ± {self.error:.2g}"
        unit = f" {self.unit}" * bool(self.unit)
        real = "" if self.held_out is None else f" (real held-out data {four_digits(self.held_out)})"
        note = f"; {self.note}" * bool(self.note)
        return f"{self.name:24} {four_digits(self.value)}{error}{unit}{real}  [{self.protocol.short()}{note}]"

    def as_json(self) -> dict[str, Any]:
        """Returns the measurement as a dict for JSON."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Measurement:
        """Returns the measurement that `as_json` described; unknown fields are left out.

        Raises:
            UsageError: for data that do not describe a measurement.
        """
        try:
            own = {name: data[name] for name in ("name", "error", "unit", "better", "held_out", "note") if name in data}
            protocol = Protocol(**chosen(Protocol, data["protocol"]))
            origin = Origin(**chosen(Origin, data["origin"]))
            value = math.nan if data["value"] is None else float(data["value"])
            return Measurement(**own, value=value, protocol=protocol, origin=origin)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"a measurement cannot be read ({error}): measure again with `unnoise evaluate`"
            ) from error


def four_digits(value: float) -> str:
    """Returns a number with four significant digits, and with all digits before the point: `0.001235`, `12346`."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def chosen(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those values of a dict that are fields of a dataclass."""
    return {f.name: given[f.name] for f in fields(cls) if f.name in given}


def finite(value: Any) -> Any:
    """Returns JSON values with None in place of NaN and infinity, which JSON cannot represent."""
    if isinstance(value, Mapping):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Evaluation(Mapping[str, Any]):
    """The measurements of one run or one set of samples, and facts about it. A mapping of all numbers by name.

    Args:
        about: facts such as the summary of the data, by name.
        measurements: the measurements, with different names.
    """

    def __init__(self, about: Mapping[str, Any], measurements: Sequence[Measurement]) -> None:
        self.about, self.measurements = dict(about), tuple(measurements)
        self._values = self.about | {m.name: m.value for m in self.measurements}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def measurement(self, name: str) -> Measurement:
        """Returns the measurement of a name.

        Raises:
            UsageError: for a name that was not measured; the message lists those that were.
        """
        for found in self.measurements:
            if found.name == name:
                return found
        names = ", ".join(m.name for m in self.measurements) or "nothing"
        raise UsageError(f"{name} was not measured; {names} was: give one of these, or measure it too")

    def of(self, origin: Origin, **about: Any) -> Evaluation:
        """Returns the evaluation with an origin for all of its measurements, and with more facts."""

        def merged(known: Origin) -> Origin:
            return replace(origin, **{f.name: v for f in fields(Origin) if (v := getattr(known, f.name)) != f.default})

        return Evaluation(self.about | about, [m.of(merged(m.origin)) for m in self.measurements])

    def as_json(self) -> dict[str, Any]:
        """Returns all numbers by name, and under `measurements` a list of all; None for NaN and infinity."""
        return finite(self._values | {"measurements": [m.as_json() for m in self.measurements]})

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Evaluation:
        """Returns the evaluation that `as_json` described."""
        found = [Measurement.from_json(m) for m in data.get("measurements", [])]
        names = {m.name for m in found} | {"measurements"}
        return Evaluation({n: v for n, v in data.items() if n not in names}, found)
