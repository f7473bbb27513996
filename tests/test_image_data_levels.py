"""Images of fewer quantization levels than their set has."""

from __future__ import annotations

import pytest
import torch

from unnoise.experiments.image_data import Images
from unnoise.shared.errors import UsageError


def test_pixel_values_are_rounded_to_fewer_levels():
    whole, few = Images("openmoji32").load("test"), Images("openmoji32", levels=16).load("test")
    assert few.quantization.levels == 16
    assert torch.equal(few.k[:], whole.k[:] // 16)  # 256 levels in 16 groups of 16
    thirds = Images("digits", levels=3).load("test")
    assert torch.equal(thirds.k.long(), Images("digits").load("test").k.long() * 3 // 17)
    assert thirds.quantization.continuous(thirds.k).unique().tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("levels", [1, 17, 300])
def test_levels_that_are_not_fewer_are_refused(levels):
    with pytest.raises(UsageError, match=f"levels={levels}: these images have 17 quantization levels: give 2 to 16"):
        Images("digits", levels=levels).load("test")
