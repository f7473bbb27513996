"""The papers' scripts: every preset can be built and serialized, every smoke run draws its figure."""

import inspect
import json
import math

import pytest
import torch

from unnoise import sde
from unnoise.continuous import ImportanceSampling, Tabulated, large, linear_betas
from unnoise.experiments import (
    classifier_free,
    ddim,
    ddpm,
    guided_diffusion,
    improved_ddpm,
    progressive_distillation,
    upsampling,
)
from unnoise.experiments.cli import main
from unnoise.experiments.images import flipped
from unnoise.experiments.recipes import RECIPES, SCRIPTS
from unnoise.experiments.time_grids import spaced
from unnoise.shared.errors import UsageError
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize


@pytest.mark.parametrize("name", RECIPES)
def test_every_preset_can_be_serialized(name):
    experiment = RECIPES[name]()
    assert deserialize(json.loads(json.dumps(serialize(experiment)))) == experiment
    assert RECIPES[name].__doc__


def test_every_preset_of_a_script_is_a_recipe():
    """Public functions of a module without parameters are its presets."""
    for script, presets in SCRIPTS.values():
        found = {
            n
            for n, f in vars(script).items()
            if getattr(f, "__module__", "") == script.__name__ and callable(f) and not isinstance(f, type)
        }
        takes_nothing = {n for n in found if not inspect.signature(vars(script)[n]).parameters}
        assert takes_nothing == set(presets)


def test_published_settings():
    """Spot checks against the papers' tables."""
    cifar = ddpm.cifar10()
    assert (cifar.training.steps, cifar.training.learning_rate, cifar.training.warmup, cifar.data.batch) == (
        800_000,
        2e-4,
        5000,
        128,
    )
    assert (cifar.variance, cifar.steps, cifar.network.dropout, cifar.data.flip) == ("large", 1000, 0.1, True)
    assert cifar.sampler(cifar.objective((3, 8, 8), Quantization()).denoiser).variance is large
    improved = improved_ddpm.cifar10()
    assert (improved.steps, improved.betas, improved.vlb, improved.training.clip) == (4000, "cosine", 1e-3, math.inf)
    assert (improved.network.attention, improved.network.heads, improved.network.dropout) == ((2, 4), 4, 0.3)
    assert improved_ddpm.imagenet64_classes().vlb == 1 / 4000
    assert ddim.cifar10().spacing == "quad"
    assert ddim.lsun256().training.ema == 0.999
    assert (ddim.celeba64().grid(improved.objective((3, 8, 8), Quantization()).denoiser, 40) * 4000)[:2].tolist() == [
        3901,
        3801,
    ]
    assert ddpm.lsun256().variance == "small"
    assert progressive_distillation.cifar10().last_two == 2
    assert classifier_free.imagenet64().share == 0.3
    assert classifier_free.imagenet128().share == 0.2
    assert guided_diffusion.imagenet64().betas == "cosine"
    assert guided_diffusion.lsun256().spacing == "90,60,60,20,20"
    assert progressive_distillation.cifar10().students()[0] == 4096
    assert progressive_distillation.cifar10().students()[-4:] == [8, 4, 2, 1]


def test_what_the_losses_of_improved_ddpm_are(tmp_path):
    from dataclasses import replace

    recipe = improved_ddpm.smoke()
    kinds = {
        loss: replace(recipe, loss=loss).objective((1, 8, 8), Quantization(17)) for loss in ("simple", "hybrid", "vlb")
    }
    assert [type(o).__name__ for o in kinds.values()] == ["DenoisingLoss", "Hybrid", "ImportanceSampling"]
    assert [o.denoiser.has_variance_output for o in kinds.values()] == [False, True, True]
    assert isinstance(kinds["vlb"], ImportanceSampling)
    assert recipe.sampler(kinds["simple"].denoiser).variance is large


WITHOUT_FIGURE = ("score-sde", "multinomial", "mdlm", "sedd", "tauldr", "udlm")
DRAWN_ELSEWHERE = ("edm", "flow-matching", "inverse-problems", "ncsn")
"""Whose own test files draw the figure."""
REPEATED = ("ddpm", "progressive-distillation", "d3pm-text-chain")
"""All recipes keep what they trained in the same way: one model, a chain of models, and models of text."""


@pytest.mark.parametrize("name", [n for n in SCRIPTS if n not in WITHOUT_FIGURE + DRAWN_ELSEWHERE])
def test_every_smoke_recipe_draws_its_figure(name, tmp_path, capsys):
    out = tmp_path / name
    assert main(["reproduce", f"{name}-smoke", "--out", str(out)]) == 0
    page = (out / "table.md").read_text()
    for picture in [line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")]:
        assert (out / picture).stat().st_size > 3000
    assert page.count("\n| ") > 2
    assert "nan" not in page
    capsys.readouterr()
    if name not in REPEATED:
        return
    before = {p: p.stat().st_mtime for p in out.rglob("*.safetensors")}
    assert main(["reproduce", f"{name}-smoke", "--out", str(out)]) == 0  # nothing is trained again
    assert {p: p.stat().st_mtime for p in out.rglob("*.safetensors")} == before
    assert (out / "table.md").read_text() == page
    capsys.readouterr()


def test_a_recipe_without_a_figure_says_so(tmp_path, capsys):
    assert main(["reproduce", "tauldr-smoke", "--out", str(tmp_path / "a")]) == 2
    assert "no figure of its own" in capsys.readouterr().err


def test_schedules_are_drawn(tmp_path, capsys):
    assert main(["plot-schedules", "--out", str(tmp_path / "s.png"), "--steps", "100"]) == 0
    assert (tmp_path / "s.png").stat().st_size > 30_000
    capsys.readouterr()


def test_spacing_by_name():
    table = Tabulated(linear_betas(1000))
    assert spaced("50", table) == 50
    assert (spaced("ddim50", table) * 1000)[:2].tolist() == [981, 961]
    assert len(spaced("90,60,60,20,20", table)) == 251
    assert float(spaced("trailing10", table)[0]) == 1
    assert (spaced("quad10", table) * 1000)[-2] == 1
    for spec, words in (
        ("fast50", "give a number such as 50"),
        ("10,a", "give a number such as 50"),
        ("ddim", "give a number"),
    ):
        with pytest.raises(UsageError, match=words):
            spaced(spec, table)
    with pytest.raises(UsageError, match="the time of this model is continuous"):
        spaced("ddim50", sde.VP())


def test_half_of_the_images_are_mirrored(generator):
    k = torch.arange(4).repeat(1000, 1, 2, 1)
    x = flipped(Quantization.continuous)
    out = Quantization(4).quantize(x(Quantization(4), k, generator))
    mirrored = (out == k.flip(-1)).all(-1).all(-1).all(-1)
    kept = (out == k).all(-1).all(-1).all(-1)
    assert (mirrored ^ kept).all()
    assert 430 < int(mirrored.sum()) < 570


def test_what_cannot_be_is_refused():
    for make, words in (
        (lambda: classifier_free.ClassifierFreeGuidance(), "classifier-free guidance needs labels"),
        (
            lambda: progressive_distillation.ProgressiveDistillation(sampling_steps=48, until=5),
            "give sampling_steps that are until times 2, 4, 8",
        ),
        (lambda: ddim.ImplicitModel(sampling_steps=2000), "sampling_steps=2000"),
        (
            lambda: guided_diffusion.GuidedDiffusion(spacing="nonsense"),
            "steps=nonsense is unknown: give a number",
        ),
        (
            lambda: guided_diffusion.GuidedDiffusion(spacing="10,20", sampling_steps=40),
            "do not add up to sampling_steps=40",
        ),
        (lambda: upsampling.Upsampler(factor=1), "factor=1"),
        (
            lambda: upsampling.Upsampler(factor=3).small(Quantization(), torch.zeros(1, 1, 8, 8)),
            "the size of the images, 8x8, cannot be divided",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            make()


@pytest.mark.parametrize("name", ["d3pm-text", "multinomial", "mdlm", "sedd"])
def test_text_is_trained_sampled_and_measured(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"{name}-smoke", "--out", "run"]) == 0
    assert len((tmp_path / "run" / "samples-000008.txt").read_text().split()) > 0
    assert main(["sample", "run", "--count", "3", "--steps", "3"]) == 0
    assert (tmp_path / "samples.txt").exists()
    assert main(["sample", "run", "--out", "a.png"]) == 2
    assert "ends in .txt" in capsys.readouterr().err
    assert main(["evaluate", "run", "--count", "6"]) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["bits_per_character"] == pytest.approx(found["bits_per_token"])  # one token is one character
    assert found["perplexity_per_token"] == pytest.approx(2 ** found["bits_per_token"])
    assert sum(found["bits_per_token_prior_path_data"]) == pytest.approx(found["bits_per_token"], rel=1e-6)
    assert 0 < found["sample_entropy_bits"] < 4.8
    assert found["generative_perplexity_per_token_5_gram"] > 1
