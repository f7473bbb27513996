"""One notation for all parts of a model: the name and the arguments that differ from their defaults."""

import dataclasses
import importlib
import inspect
import pkgutil

import pytest
import torch

import unnoise
from unnoise import continuous, discrete, sde
from unnoise.shared import serialization
from unnoise.shared.gaussian import MinSNR, OutputError, Preconditioned, noise
from unnoise.shared.objective import Stratified
from unnoise.shared.quantization import Quantization
from unnoise.shared.time_inputs import LastIndex

for module in pkgutil.walk_packages(unnoise.__path__, "unnoise."):
    if module.name.split(".")[1] in ("continuous", "discrete", "sde", "shared"):
        importlib.import_module(module.name)

OTHERS = ("experiments.", "training.", "data.", "test")  # recipes, and what is not a part of a model
PARTS = {
    name: cls
    for name, cls in serialization._KNOWN.items()
    if dataclasses.is_dataclass(cls) and inspect.isclass(cls) and not name.startswith(OTHERS)
}
REQUIRED = {
    "gaussian.OutputError": {"predicts": noise},
    "shared.LastIndex": {"last": 999},
    "continuous.Tabulated": {"betas": torch.tensor([0.25, 0.5])},
    "continuous.ZeroTerminal": {"schedule": continuous.LinearBetas()},
    "continuous.Shifted": {"schedule": sde.VP(), "shift": -1.5},
    "continuous.LogInterpolated": {"share": 0.5},
    "sde.Tableau": {"order": 1, "nodes": (0,), "rows": ((),)},
    "sde.NoiseLevels": {"sigmas": torch.tensor([0.5, 2.0])},
}
WRITTEN = {"gaussian.OutputError": "predicts=noise", "shared.LastIndex": "last=999"}


def test_parts_are_found():
    assert len(PARTS) > 25
    assert {"discrete.LogLinearNoise", "gaussian.MinSNR", "shared.Quantization", "networks.UNetVariant"} <= set(PARTS)


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_part_is_written_without_its_defaults(name):
    cls = PARTS[name]
    required = [
        f.name
        for f in dataclasses.fields(cls)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    given = REQUIRED.get(name, {})
    assert sorted(given) == sorted(required), "give the arguments of a new part in REQUIRED"
    part = cls(**given)
    text = repr(part)
    inner = text.removeprefix(f"{cls.__name__}(").removesuffix(")")
    assert text == f"{cls.__name__}({inner})"
    assert [word.partition("=")[0] for word in inner.split(", ") if "=" in word][: len(required)] == required
    assert inner == WRITTEN.get(name, inner)
    assert bool(inner) == bool(required)
    assert part == cls(**given)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (discrete.LogLinearNoise(), "LogLinearNoise()"),
        (discrete.LogLinearNoise(eps=0.01), "LogLinearNoise(eps=0.01)"),
        (discrete.Absorbing(5, discrete.CosineNoise()), "Absorbing(categories=5, schedule=CosineNoise())"),
        (discrete.Product(eps=1e-6), "Product(eps=1e-06)"),
        (discrete.TabulatedNoise(torch.tensor([0.25, 0.5])), "TabulatedNoise(events=[0.25, 0.5])"),
        (MinSNR(), "MinSNR()"),
        (MinSNR(3.0), "MinSNR(gamma=3.0)"),
        (OutputError(Preconditioned(0.25)), "OutputError(predicts=Preconditioned(sigma_data=0.25))"),
        (Stratified(2.0), "Stratified(power=2.0)"),
        (Quantization(levels=2, low=0.0), "Quantization(levels=2, low=0.0)"),
        (LastIndex(99), "LastIndex(last=99)"),
        (continuous.Cosine(), "Cosine()"),
        (continuous.CosineBetas(s=0.01), "CosineBetas(s=0.01)"),
        (continuous.ZeroTerminal(continuous.CosineBetas(50)), "ZeroTerminal(schedule=CosineBetas(steps=50))"),
    ],
)
def test_arguments_other_than_defaults_are_written(part, text):
    assert repr(part) == text


@dataclasses.dataclass(frozen=True)
class Quadratic(discrete.NoiseSchedule):
    """A schedule of a user's."""

    events: float = 3.0

    def total(self, t):
        return self.events * t**2

    def rate(self, t):
        return 2 * self.events * t

    def time(self, total):
        return (total / self.events).sqrt()


def test_values_of_a_users_dataclass():
    assert repr(Quadratic()) == "Quadratic()"
    assert repr(discrete.Uniform(3, Quadratic(4.0))) == "Uniform(categories=3, schedule=Quadratic(events=4.0))"
    assert Quadratic() == Quadratic(3.0) != Quadratic(4.0)
    assert hash(Quadratic()) == hash(Quadratic(4.0))
    assert discrete.LogLinearNoise() == discrete.LogLinearNoise() != discrete.LogLinearNoise(0.1)


def test_a_notation_of_ones_own_is_inherited():
    class Named(discrete.CosineNoise):
        def __repr__(self):
            return "named"

    @dataclasses.dataclass(frozen=True)
    class Further(Named):
        size: int = 1

    assert repr(Further()) == "named"
    assert Further(size=2) == Further(size=2) != Further(size=3)
