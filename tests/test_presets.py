"""Every paper's network has the number of parameters of the released one."""

import pytest
import torch

from unnoise.shared.networks import presets

COUNTS = [
    (presets.ddpm_cifar10, {}, 35_746_307),
    (presets.ddim_celeba64, {}, 78_700_803),
    (presets.ddpm_lsun256, {}, 113_673_219),
    (presets.song_ddpm_cifar10, {}, 35_218_947),
    (presets.ddpmpp_cifar10, {}, 61_804_419),
    (presets.ddpmpp_cifar10, {"deep": True}, 106_632_579),
    (presets.ncsnpp_cifar10, {}, 62_758_915),
    (presets.ncsnpp_cifar10, {"deep": True}, 107_587_075),
    (presets.ncsnpp_cifar10, {"fourier": False}, 62_693_251),
    (presets.ncsnpp_lsun256, {}, 65_574_549),
    (presets.ncsnpp_ffhq1024, {}, 105_785_896),
    (presets.improved_cifar10, {}, 52_546_438),
    (presets.improved_lsun256, {}, 113_676_678),
    (presets.improved_imagenet64, {}, 121_063_942),
    (presets.improved_imagenet64, {"conditional": True}, 273_049_350),
    (presets.adm_imagenet64, {}, 295_904_454),
    (presets.adm_imagenet128, {}, 421_529_606),
    (presets.adm_imagenet256, {}, 553_838_086),
    (presets.adm_imagenet256, {"conditional": False}, 552_814_086),
    (presets.adm_imagenet512, {}, 558_997_638),
    (presets.adm_classifier, {"size": 64}, 65_438_568),
    (presets.adm_classifier, {"size": 128}, 42_568_040),
    (presets.adm_classifier, {"size": 256}, 54_096_360),
    (presets.adm_classifier, {"size": 512}, 54_448_360),
    (presets.edm_cifar10_vp, {}, 55_733_891),
    (presets.edm_cifar10_vp, {"conditional": True}, 55_735_299),
    (presets.edm_cifar10_ve, {}, 56_397_827),
    (presets.edm_ffhq64_vp, {}, 61_805_571),
    (presets.edm_ffhq64_ve, {}, 62_761_091),
    (presets.edm_imagenet64, {}, 295_899_267),
]


COUNT_FIXED = (presets.ncsnpp_cifar10, presets.ncsnpp_lsun256, presets.ncsnpp_ffhq1024)
"""Song et al. (2021) count their Fourier frequencies, which are drawn once and not trained; Karras et al. (2022) do not."""


@pytest.mark.parametrize(("preset", "options", "count"), COUNTS, ids=lambda v: getattr(v, "__name__", None))
def test_parameter_counts_are_the_released_ones(preset, options, count):
    with torch.device("meta"):
        network = preset(**options)
    fixed = {"frequencies": network.time.encode.frequencies} if preset in COUNT_FIXED and options != {"fourier": False} else {}
    assert sum(p.numel() for p in [*network.parameters(), *fixed.values()]) == count
