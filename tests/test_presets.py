"""Every paper's network has the number of parameters of the published one, and the recipes train these networks."""

import dataclasses
import inspect

import pytest
import torch

from unnoise.experiments import recipes
from unnoise.experiments.image_data import Images
from unnoise.experiments.papers import (
    classifier_free,
    d3pm_images,
    ddim,
    ddpm,
    edm,
    guided_diffusion,
    improved_ddpm,
    inverse_problems,
    score_sde,
    tauldr,
)
from unnoise.shared.errors import UsageError
from unnoise.shared.networks import Encoder, UNet, presets
from unnoise.shared.quantization import Quantization

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
"""Song et al. (2021) count their Fourier frequencies, which are drawn once and not trained; Karras et al.

(2022) do not.
"""


@pytest.mark.parametrize(("preset", "options", "count"), COUNTS, ids=lambda v: getattr(v, "__name__", None))
def test_parameter_counts_are_the_released_ones(preset, options, count):
    with torch.device("meta"):
        network = preset(**options)
    fixed = (
        {"frequencies": network.time.encode.frequencies}
        if preset in COUNT_FIXED and options != {"fourier": False}
        else {}
    )
    assert sum(p.numel() for p in [*network.parameters(), *fixed.values()]) == count


"""Weights of the layer of Karras et al.'s augmentations, of which the recipes have the mirror alone."""
DROPOUT = "dropout is the data set's"
ONE_HOT = (256 - 1) * 3 * 128 * 9
"""Weights by which the first layer is wider for categories than for real numbers."""
LOGISTIC = 3 * (128 * 9 + 1)
"""Those of the second number that a logistic head has for each channel."""
RECIPES = [
    # recipe, pixels, preset and its options, parameters beyond the preset's and the arguments that differ, with the
    # reason
    (ddpm.cifar10, 32, presets.ddpm_cifar10, {}, None),
    (ddpm.lsun256, 256, presets.ddpm_lsun256, {}, None),
    (ddpm.celebahq256, 256, presets.ddpm_lsun256, {}, None),
    (ddim.cifar10, 32, presets.ddpm_cifar10, {}, None),
    (ddim.celeba64, 64, presets.ddim_celeba64, {}, None),
    (ddim.lsun256, 256, presets.ddpm_lsun256, {}, None),
    (inverse_problems.cifar10, 32, presets.ddpm_cifar10, {}, None),
    (inverse_problems.celeba64, 64, presets.ddim_celeba64, {}, None),
    (improved_ddpm.cifar10, 32, presets.improved_cifar10, {}, None),
    (improved_ddpm.imagenet64, 64, presets.improved_imagenet64, {}, None),
    (improved_ddpm.imagenet64_classes, 64, presets.improved_imagenet64, {"conditional": True}, None),
    (improved_ddpm.lsun256, 256, presets.improved_lsun256, {}, None),
    (guided_diffusion.imagenet64, 64, presets.adm_imagenet64, {}, None),
    (guided_diffusion.imagenet128, 128, presets.adm_imagenet128, {}, None),
    (guided_diffusion.imagenet256, 256, presets.adm_imagenet256, {}, None),
    (guided_diffusion.lsun256, 256, presets.adm_imagenet256, {"conditional": False}, (0, {"dropout"}, DROPOUT)),
    (score_sde.cifar10, 32, presets.ddpmpp_cifar10, {}, None),
    (score_sde.cifar10_subvp, 32, presets.ddpmpp_cifar10, {}, None),
    (score_sde.cifar10_likelihood, 32, presets.ddpmpp_cifar10, {}, None),
    (score_sde.cifar10_subvp_deep, 32, presets.ddpmpp_cifar10, {"deep": True}, None),
    (score_sde.cifar10_ve, 32, presets.ncsnpp_cifar10, {}, None),
    (score_sde.cifar10_ve_deep, 32, presets.ncsnpp_cifar10, {"deep": True}, None),
    (
        score_sde.celeba64_ve,
        64,
        presets.ncsnpp_cifar10,
        {},
        (0, {"shape", "attention"}, "16 pixels are another factor of 64"),
    ),
    (score_sde.ffhq256_ve, 256, presets.ncsnpp_lsun256, {}, None),
    (
        edm.cifar10,
        32,
        presets.edm_cifar10_vp,
        {},
        None,
    ),
    (edm.cifar10_classes, 32, presets.edm_cifar10_vp, {"conditional": True}, None),
    (edm.ffhq64, 64, presets.edm_ffhq64_vp, {}, None),
    (edm.afhqv2_64, 64, presets.edm_ffhq64_vp, {}, (0, {"dropout"}, DROPOUT)),
    (edm.imagenet64, 64, presets.edm_imagenet64, {}, None),
    (
        classifier_free.imagenet64,
        64,
        presets.adm_imagenet64,
        {},
        (
            768 - 3 * (192 * 9 + 1),
            {"null_label", "outputs"},
            "a row for no label, which guidance needs, and a fixed variance",
        ),
    ),
    (
        classifier_free.imagenet128,
        128,
        presets.adm_imagenet128,
        {},
        (
            1024 - 3 * (256 * 9 + 1),
            {"null_label", "outputs"},
            "a row for no label, which guidance needs, and a fixed variance",
        ),
    ),
    (
        d3pm_images.cifar10,
        32,
        presets.ddpm_cifar10,
        {},
        (ONE_HOT + LOGISTIC, {"categories", "logits"}, "quantization levels are categories"),
    ),
    (
        tauldr.cifar10,
        32,
        presets.ddpm_cifar10,
        {},
        (ONE_HOT + LOGISTIC, {"categories", "logits"}, "quantization levels are categories"),
    ),
]
WITHOUT_RECIPE = {
    "song_ddpm_cifar10": "for importing the pretrained weights",
    "ncsnpp_ffhq1024": "for importing the pretrained weights",
    "adm_imagenet512": "the guided models of 512 pixels are not included",
    "edm_cifar10_ve": "the recipes train the better configuration, VP",
    "edm_ffhq64_ve": "the recipes train the better configuration, VP",
    "dit_s2": "trained on latents, which no recipe has",
    "dit_b2": "as dit_s2",
    "dit_l2": "as dit_s2",
    "dit_xl2": "as dit_s2",
}
WITHOUT_PRESET = {
    "flow-matching-cifar10": "no parameter count is sourced",
    "progressive-distillation-cifar10": "the paper's blocks are not here",
    "progressive-distillation-imagenet64": "the paper's blocks are not here",
    "upsampling-imagenet256": "the published network has class labels too",
    "ncsn-cifar10": "a U-Net stands for NCSN's RefineNet",
    "ncsn-cifar10-v2": "a RefineNet, counted in test_refinenet.py",
    "ncsn-celeba64-v2": "a RefineNet",
    "ncsn-lsun128-v2": "a RefineNet",
}
SMALL = ("digits", "mnist", "smoke", "captions", "groups")


@pytest.fixture
def on_meta(monkeypatch):
    """Networks of recipes without memory."""
    for cls in (UNet, Encoder):

        def init(self, *args, make=cls.__init__, **further):
            with torch.device("meta"):
                make(self, *args, **further)

        init.__signature__ = inspect.signature(cls.__init__)
        monkeypatch.setattr(cls, "__init__", init)


def name_of(value):
    return f"{value.__module__.rsplit('.', 1)[-1]}.{value.__name__}" if callable(value) else None


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def arguments(network):
    """What a network was built with; a number of heads says nothing where a head has its width."""
    names = set(inspect.signature(type(network).__init__).parameters) - {"self"}
    found = {name: getattr(network, name) for name in names}
    if network.variant.head_width is not None:
        del found["heads"]
    if not found.get("classes"):
        found.pop("null_label", None)
    return found


@pytest.mark.parametrize(("recipe", "size", "preset", "options", "apart"), RECIPES, ids=name_of)
def test_recipes_train_the_papers_networks(recipe, size, preset, options, apart, on_meta):
    """The network of a recipe has the published parameters and arguments, but for what is listed with a reason."""
    network = recipe().objective((3, size, size), Quantization()).denoiser.network
    with torch.device("meta"):
        paper = preset(**options)
    more, changed, _ = apart or (0, set(), "")
    published = next(count for made, given, count in COUNTS if (made, given) == (preset, options))
    frequencies = network.time.encode.frequencies.numel() if preset in COUNT_FIXED else 0
    assert parameters(network) == published + more - frequencies
    ours, theirs = arguments(network), arguments(paper)
    assert {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)} == changed


def test_presets_and_recipes_take_their_networks_from_one_table(monkeypatch, on_meta):
    for name, settings in presets.UNETS.items():
        monkeypatch.setitem(presets.UNETS, name, settings | {"dropout": 0.77})
    for recipe, _, preset, options, apart in RECIPES:
        assert preset(**options).dropout == 0.77
        own = apart is not None and "dropout" in apart[1]
        assert (recipe().network["dropout"] == 0.77) != own


@pytest.mark.parametrize(
    ("recipe", "size"),
    [(guided_diffusion.imagenet64, 64), (guided_diffusion.imagenet128, 128), (guided_diffusion.imagenet256, 256)],
)
def test_recipes_train_the_papers_classifiers(recipe, size, on_meta):
    made = recipe()
    network = made.figure.objective(made, (3, size, size)).denoiser.network
    with torch.device("meta"):
        paper = presets.adm_classifier(size)
    assert parameters(network) == parameters(paper)
    assert arguments(network) == arguments(paper)


def test_every_preset_and_recipe_is_compared_or_has_a_reason():
    made = {
        name
        for name, value in vars(presets).items()
        if inspect.isfunction(value)
        and value.__module__ == presets.__name__
        and "name" not in inspect.signature(value).parameters  # functions that the networks are built with
    }
    compared = {preset.__name__ for _, _, preset, _, _ in RECIPES} | {"adm_classifier"}
    assert made - compared == WITHOUT_RECIPE.keys()
    known = {make: name for name, make in recipes.RECIPES.items() if isinstance(make().data, Images)}
    papers = {name for make, name in known.items() if make.__name__ not in SMALL}
    assert papers - {known[recipe] for recipe, *_ in RECIPES} == WITHOUT_PRESET.keys()


def test_classifier_free_guidance_refuses_a_network_without_a_null_label():
    recipe = classifier_free.smoke()
    recipe = dataclasses.replace(recipe, network=recipe.network.changed(null_label=False))
    with pytest.raises(UsageError, match="this network has no value for an absent label"):
        recipe.objective((1, 8, 8), Quantization(17))


@pytest.mark.parametrize(
    ("preset", "millions"), [(presets.dit_s2, 33), (presets.dit_b2, 130), (presets.dit_l2, 458), (presets.dit_xl2, 675)]
)
def test_transformers_have_the_published_sizes(preset, millions):
    """In millions, as the paper prints them (Peebles & Xie 2023, table 1); test_image_dit.py counts them by hand."""
    with torch.device("meta"):
        network = preset()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def test_a_classifier_of_another_size_is_refused():
    with pytest.raises(UsageError, match="size=96: ADM's classifiers are of 64, 128, 256, 512 pixels"):
        presets.adm_classifier(96)
