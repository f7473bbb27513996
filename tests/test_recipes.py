"""Every recipe is made of the parts that it was made of, and can be written and read back."""

import json
from pathlib import Path

import pytest
from recipe_snapshots import assert_same, on_meta, snapshot

from unnoise.experiments.recipes import RECIPES, find

PARTS = json.loads((Path(__file__).parent / "fixtures" / "recipes.json").read_text())


def test_no_recipe_is_missing():
    assert RECIPES.keys() == PARTS.keys()


@pytest.mark.parametrize("name", PARTS)
def test_recipes_have_the_same_parts(name, monkeypatch):
    """The parts of version 0.2, in which a paper was a class and its settings were options of its own."""
    on_meta(monkeypatch)
    assert_same(snapshot(find(name), monkeypatch), PARTS[name])


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
