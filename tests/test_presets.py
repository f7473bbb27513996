"""Every paper's network has the number of parameters of the released one."""

import pytest
import torch

from unnoise.experiments import ddim, ddpm, edm, guided_diffusion, improved_ddpm, score_sde
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


@pytest.mark.parametrize(
    ("recipe", "size", "further", "count"),
    [
        (ddpm.cifar10, 32, {}, 35_746_307),
        (ddpm.lsun256, 256, {}, 113_673_219),
        (ddim.celeba64, 64, {}, 78_700_803),
        (improved_ddpm.cifar10, 32, {"outputs": 2}, 52_546_438),
        (improved_ddpm.imagenet64_classes, 64, {"outputs": 2, "classes": 1000, "null_label": False}, 273_049_350),
        (improved_ddpm.lsun256, 256, {"outputs": 2}, 113_676_678),
        (guided_diffusion.imagenet64, 64, {"outputs": 2, "classes": 1000, "null_label": False}, 295_904_454),
        (guided_diffusion.imagenet128, 128, {"outputs": 2, "classes": 1000, "null_label": False}, 421_529_606),
        (guided_diffusion.imagenet256, 256, {"outputs": 2, "classes": 1000, "null_label": False}, 553_838_086),
        (score_sde.cifar10, 32, {}, 61_804_419),
        (score_sde.cifar10_ve_deep, 32, {}, 107_587_075 - 128),
        (score_sde.ffhq256_ve, 256, {}, 65_574_549 - 128),
        (edm.cifar10, 32, {"augment": 9}, 55_733_891),
        (edm.imagenet64, 64, {"classes": 1000, "null_label": False}, 295_899_267),
    ],
    ids=lambda v: f"{v.__module__.rsplit('.', 1)[-1]}.{v.__name__}" if callable(v) else None,
)
def test_recipes_train_the_papers_networks(recipe, size, further, count):
    with torch.device("meta"):
        network = recipe().network.build((3, size, size), **further)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize(
    ("preset", "millions"), [(presets.dit_s2, 33), (presets.dit_b2, 130), (presets.dit_l2, 458), (presets.dit_xl2, 675)]
)
def test_transformers_have_the_published_sizes(preset, millions):
    """In millions, as the paper prints them (Peebles & Xie 2023, table 1); test_image_dit.py counts them by hand."""
    with torch.device("meta"):
        network = preset()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions
