"""Every recipe is made of the parts that it was made of, and can be written and read back."""

import copy
import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from recipe_snapshots import assert_same, on_meta, snapshot

from unnoise.continuous import Cosine, LinearBetas, karras, sections, small
from unnoise.experiments.catalog import kind_of
from unnoise.experiments.code_lengths import Bound
from unnoise.experiments.notation import read, write
from unnoise.experiments.papers import ddpm
from unnoise.experiments.parts import Part
from unnoise.experiments.recipes import RECIPES, find
from unnoise.experiments.time_grids import Karras, Sections
from unnoise.sde import EDM
from unnoise.shared.errors import UsageError
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.training.averages import Decay, HalfLife

PARTS = json.loads((Path(__file__).parent / "snapshots" / "recipes.json").read_text())


def own_file(folder, name, code):
    head = "from unnoise.experiments.papers import ddpm\n"
    (folder / f"{name}.py").write_text(head + code)
    return folder / f"{name}.py"


def test_no_recipe_is_missing():
    later = {"openmoji-captions", "openmoji-groups", "openmoji-smoke", "fast-digits", "fast-smoke"}
    assert RECIPES.keys() == PARTS.keys() | later


PLAIN = Decay(0.9999, warmup=False)
AVERAGES = {
    **dict.fromkeys(("ddpm-cifar10", "ddpm-celebahq256", "ddpm-lsun256", "ddim-cifar10", "ddim-celeba64"), PLAIN),
    **dict.fromkeys((f"improved-ddpm-{n}" for n in ("cifar10", "imagenet64", "imagenet64-classes", "lsun256")), PLAIN),
    **dict.fromkeys((f"guided-diffusion-{n}" for n in ("imagenet64", "imagenet128", "imagenet256", "lsun256")), PLAIN),
    **dict.fromkeys(("classifier-free-imagenet64", "classifier-free-imagenet128", "upsampling-imagenet256"), PLAIN),
    **dict.fromkeys(("progressive-distillation-cifar10", "progressive-distillation-imagenet64"), PLAIN),
    **dict.fromkeys(("d3pm-cifar10", "inverse-problems-cifar10", "inverse-problems-celeba64"), PLAIN),
    "ddim-lsun256": Decay(0.999, warmup=False),
    **dict.fromkeys((f"ncsn-{name}-v2" for name in ("cifar10", "celeba64", "lsun128")), Decay(0.999, warmup=False)),
    "ncsn-cifar10": Decay(0.0, warmup=False),
    **dict.fromkeys((f"edm-{name}" for name in ("cifar10", "cifar10-classes", "ffhq64", "afhqv2-64")), HalfLife(5e5)),
    "edm-imagenet64": HalfLife(5e7),
}
"""Averages as published, where version 0.2 had a constant decay of the same rate and a warm-up in its place."""


@pytest.mark.parametrize("name", PARTS)
def test_recipes_have_the_same_parts(name, monkeypatch):
    """The parts of version 0.2, in which a paper was a class and its settings were options of its own."""
    on_meta(monkeypatch)
    found, expected = snapshot(find(name), monkeypatch), copy.deepcopy(PARTS[name])
    then = expected["training"]["arguments"]["ema"]
    if name in AVERAGES:
        average, batch = AVERAGES[name], expected["data"]["arguments"]["batch"]
        assert average.decay(10**9, batch) == pytest.approx(then, rel=1e-12)
        expected["training"]["arguments"]["ema"] = repr(average)
    assert_same(found, expected)


def test_data_of_other_forms():
    """What classes of earlier versions did to their data is a setting of the data now."""
    assert {name for name in RECIPES if getattr(find(name).data, "tint", False)} == {
        f"inverse-problems-{name}" for name in ("digits", "mnist", "smoke")
    }
    smaller = {name: getattr(find(name).data, "smaller", None) for name in RECIPES}
    assert {name.removeprefix("upsampling-"): factor for name, factor in smaller.items() if factor} == {
        "digits": 2,
        "mnist": 4,
        "smoke": 2,
        "imagenet256": 4,
    }


def settings_of(value):
    """The fields of a recipe, of its loss, its code length and its figure, with their values."""
    for field in fields(value):
        part = getattr(value, field.name)
        if is_dataclass(part) and field.name in ("loss", "code_length", "figure"):
            yield from settings_of(part)
        else:
            yield field, part


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_written_and_read(name):
    recipe = find(name)
    assert deserialize(json.loads(json.dumps(serialize(recipe)))) == recipe
    for field, value in settings_of(recipe):
        if isinstance(value, Part) or callable(value):
            text = write(value)
            assert repr(value) == text or not isinstance(value, Part)
            assert write(read(text, recipe.catalog, kind_of(field.type, recipe.catalog.kinds))) == text


def test_unknown_recipes_suggest_the_nearest():
    with pytest.raises(UsageError, match=r"there is no recipe edm: did you mean edm-afhqv2-64 or .*edm-smoke\?"):
        find("edm")
    with pytest.raises(UsageError, match=r"there is no recipe dpm-digits: did you mean ddpm-digits\?"):
        find("dpm-digits")
    with pytest.raises(UsageError, match="`unnoise recipes` lists them"):
        find("zzz")


def test_functions_of_ones_own(tmp_path, monkeypatch):
    path = own_file(tmp_path, "my_recipes", "def small():\n    return ddpm.smoke()\n")
    assert find(f"{path}:small") == ddpm.smoke()
    assert find("unnoise.experiments.papers.ddpm:lsun256") == ddpm.lsun256()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def small(width):\n    return ddpm.smoke()\n", "small needs width: give a function without arguments"),
        (
            "def small():\n    return 3\n",
            r"small\(\) returns 3: give a function without arguments",
        ),
        ("small = ddpm.smoke()\n", "small is GaussianRecipe.*: give a function without arguments"),
        ("def small():\n    return 1 / 0\n", r"small\(\) raises ZeroDivisionError: division by zero"),
        ("def smaller():\n    return ddpm.smoke()\n", "does not define small: did you mean smaller"),
    ],
)
def test_other_functions_are_refused_in_one_line(code, message, tmp_path, request):
    path = own_file(tmp_path, f"own_{abs(hash(request.node.name))}", code)
    with pytest.raises(UsageError, match=message) as refusal:
        find(f"{path}:small")
    assert "\n" not in str(refusal.value)


def test_defaults_of_code_lengths_and_spacings():
    """A schedule in continuous time is bounded on a chain of 256 steps; rho and counts reach the grids."""
    recipe = replace(ddpm.smoke(), schedule=Cosine())
    denoiser = recipe.objective((1, 8, 8), Quantization(17)).denoiser
    assert Bound().bound(denoiser, Quantization(17), small).schedule.steps == 256
    assert Bound(steps=40).bound(denoiser, Quantization(17), small).schedule.steps == 40
    assert torch.equal(Karras(5.0)(8, EDM()), karras(8, EDM(), 5.0))
    assert not torch.equal(Karras()(8, EDM()), karras(8, EDM(), 5.0))
    assert torch.equal(Sections((3, 2))(5, LinearBetas(100)), sections([3, 2], 100))
