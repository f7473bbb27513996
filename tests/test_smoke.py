"""The smallest forms of two recipes: trained, sampled, measured, resumed, drawn. `make smoke` does so for all."""

from __future__ import annotations

import pytest

from tests.smoke import tried


@pytest.mark.parametrize("name", ["ddpm-smoke", "mdlm-smoke"])
def test_the_smallest_form_of_a_recipe(name):
    assert tried(name)[2] == []
