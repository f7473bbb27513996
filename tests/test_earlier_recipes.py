"""Recipes of version 0.2, where a paper was a class, have the same parts when they are read from a checkpoint."""

import json
from pathlib import Path

import pytest
from recipe_snapshots import assert_same, on_meta, snapshot

import unnoise.experiments.pretrained.earlier_recipes  # noqa: F401
from unnoise.shared.serialization import deserialize, serialize

HOME = Path(__file__).parent / "snapshots"
PARTS = json.loads((HOME / "recipes.json").read_text())
EARLIER = json.loads((HOME / "earlier_recipes.json").read_text())
MORE = EARLIER["more"]


AUGMENTED = ("edm-cifar10", "edm-cifar10-classes", "edm-ffhq64", "edm-afhqv2-64")
"""Recipes whose images were mirrored then, and have the augmentation of the paper now."""


def mirrored(parts):
    """The parts of a recipe without the augmentation and its 9 labels for the network."""
    text = json.dumps(parts).replace('"augment": 9', '"augment": null').replace('"flip": false', '"flip": true')
    return json.loads(text) | {"parameters": parts["parameters"] - 9 * 128}


def name_of(number):
    return f"{number}-{MORE[number]['description']['class'].rsplit('.', 1)[-1]}"


@pytest.mark.parametrize("name", PARTS)
def test_descriptions_of_then_give_the_same_parts(name, monkeypatch):
    on_meta(monkeypatch)
    recipe = deserialize(EARLIER["recipes"][name])
    expected = mirrored(PARTS[name]) if name in AUGMENTED else PARTS[name]
    assert_same(snapshot(recipe, monkeypatch), expected)
    assert deserialize(json.loads(json.dumps(serialize(recipe)))) == recipe


@pytest.mark.parametrize("number", range(len(MORE)), ids=name_of)
def test_every_choice_of_then_gives_the_same_parts(number, monkeypatch):
    """With every value that an option of then could have: other samplers, transitions, losses, networks."""
    on_meta(monkeypatch)
    assert_same(snapshot(deserialize(MORE[number]["description"]), monkeypatch), MORE[number]["parts"])
