"""The papers' scripts: every preset can be built and serialized, every smoke run draws its figure."""

import importlib
import inspect
import json
import math
from dataclasses import replace

import pytest
import torch

import unnoise
from unnoise import sde
from unnoise.continuous import CosineBetas, ImportanceSampling, LogInterpolated, Tabulated, large, linear_betas, small
from unnoise.experiments.cli import main
from unnoise.experiments.evaluation import draw
from unnoise.experiments.gaussian_parts import GAUSSIAN
from unnoise.experiments.image_data import Flipped, Images
from unnoise.experiments.notation import read
from unnoise.experiments.papers import (
    classifier_free,
    ddim,
    ddpm,
    guided_diffusion,
    improved_ddpm,
    progressive_distillation,
)
from unnoise.experiments.recipes import PAPERS, RECIPES
from unnoise.experiments.time_grids import Sections, quadratic, spaced
from unnoise.shared.errors import UsageError
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.training.averages import Decay


@pytest.mark.parametrize("name", RECIPES)
def test_every_preset_can_be_serialized(name):
    recipe = RECIPES[name]()
    assert deserialize(json.loads(json.dumps(serialize(recipe)))) == recipe
    assert RECIPES[name].__doc__


def test_every_preset_of_a_script_is_a_recipe():
    """Public functions of a module without parameters are its presets."""
    for module, presets in PAPERS.values():
        script = importlib.import_module(f"unnoise.experiments.{module}")
        found = {
            n
            for n, f in vars(script).items()
            if getattr(f, "__module__", "") == script.__name__ and callable(f) and not isinstance(f, type)
        }
        takes_nothing = {n for n in found if not inspect.signature(vars(script)[n]).parameters}
        assert takes_nothing == set(presets.split())


def test_published_settings():
    """Spot checks against the papers' tables."""
    cifar = ddpm.cifar10()
    assert (cifar.training.steps, cifar.training.learning_rate, cifar.training.warmup, cifar.data.batch) == (
        800_000,
        2e-4,
        5000,
        128,
    )
    assert (cifar.variance, cifar.schedule.steps, cifar.data.flip) == (large, 1000, True)
    assert cifar.network["dropout"] == 0.1
    assert cifar.sampler_of(cifar.objective((3, 8, 8), Quantization()).denoiser).variance is large
    improved = improved_ddpm.cifar10()
    assert (improved.schedule, improved.training.clip) == (CosineBetas(4000), math.inf)
    assert improved.loss.objective["vlb"] == 1e-3
    assert [improved.network[name] for name in ("attention", "heads", "dropout")] == [(2, 4), 4, 0.3]
    assert improved_ddpm.imagenet64_classes().loss.objective["vlb"] == 1 / 4000
    assert ddim.cifar10().spacing is quadratic
    assert ddim.lsun256().training.ema == Decay(0.999, warmup=False)
    assert (ddim.celeba64().grid(improved.objective((3, 8, 8), Quantization()).denoiser, 40) * 4000)[:2].tolist() == [
        3901,
        3801,
    ]
    assert ddpm.lsun256().variance is small
    assert progressive_distillation.cifar10().figure.last_two == 2
    assert classifier_free.imagenet64().variance == LogInterpolated(0.3)
    assert classifier_free.imagenet128().variance == LogInterpolated(0.2)
    assert [classifier_free.imagenet128().guidance["w"], classifier_free.imagenet128().loss.drop_label] == [0.3, 0.2]
    assert guided_diffusion.imagenet64().schedule == CosineBetas(1000)
    assert guided_diffusion.lsun256().spacing == Sections((90, 60, 60, 20, 20))
    assert guided_diffusion.digits().loss.objective["vlb"] == 1 / guided_diffusion.digits().schedule.steps
    distilled = progressive_distillation.cifar10()
    students = distilled.figure.counts(distilled.sampling_steps)
    assert students[0] == 4096
    assert students[-4:] == [8, 4, 2, 1]


def test_what_the_losses_of_improved_ddpm_are():
    recipe = improved_ddpm.smoke()
    variants = recipe.figure.variants(recipe)
    made = {loss: variant.objective((1, 8, 8), Quantization(17)) for loss, variant in variants.items()}
    assert variants["L_hybrid"] is recipe
    assert [type(o).__name__ for o in made.values()] == ["DenoisingLoss", "Hybrid", "ImportanceSampling"]
    assert [o.denoiser.has_variance_output for o in made.values()] == [False, True, True]
    assert isinstance(made["L_vlb"], ImportanceSampling)
    assert variants["L_simple"].sampler_of(made["L_simple"].denoiser).variance is large


WITHOUT_FIGURE = ("openmoji", "fast", "score-sde", "multinomial", "mdlm", "sedd", "tauldr", "udlm")
DRAWN_ELSEWHERE = ("edm", "flow-matching", "inverse-problems", "ncsn")
"""Whose own test files draw the figure."""
REPEATED = ("ddpm", "progressive-distillation", "d3pm-text-chain")
"""All recipes keep what they trained in the same way: one model, a chain of models, and models of text."""


QUICK = ("ddpm", "d3pm", "classifier-free")
"""Whose figures are drawn in every run of the tests; `make slow` and `make smoke` draw the others."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in QUICK else pytest.mark.slow)
        for n in PAPERS
        if n not in WITHOUT_FIGURE + DRAWN_ELSEWHERE
    ],
)
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
    x = Flipped(Quantization.continuous)
    out = Quantization(4).quantize(x(Quantization(4), k, generator))
    mirrored = (out == k.flip(-1)).all(-1).all(-1).all(-1)
    kept = (out == k).all(-1).all(-1).all(-1)
    assert (mirrored ^ kept).all()
    assert 430 < int(mirrored.sum()) < 570


def checked(recipe):
    objective = recipe.objective((1, 8, 8), Quantization(17))
    recipe.check(objective, (1, 8, 8), Quantization(17))


def test_what_cannot_be_is_refused():
    guided, students = classifier_free.smoke(), progressive_distillation.Students(until=5)
    for make, words in (
        (
            lambda: checked(replace(guided, data=replace(guided.data, classes=None))),
            "guidance by label needs a denoiser that takes it",
        ),
        (
            lambda: checked(replace(guided, loss=replace(guided.loss, drop_label=0.0))),
            "needs a network that was also trained without labels",
        ),
        (lambda: students.counts(48), "give sampling_steps that are until times 2, 4, 8"),
        (lambda: checked(replace(ddim.smoke(), sampling_steps=2000)), "steps=2000: this table has 100 steps"),
        (lambda: read("nonsense", GAUSSIAN, "Spacing"), "nonsense is not a Spacing"),
        (lambda: Images(smaller=1), "smaller=1"),
        (
            lambda: Images(smaller=3).small(Quantization(), torch.zeros(1, 1, 8, 8)),
            "the size of the images, 8x8, cannot be divided",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            make()


def test_students_of_a_teacher():
    counts = progressive_distillation.Students(until=3).counts
    assert counts(48) == [24, 12, 6, 3]
    for steps in (1, 3, 16, 20):
        with pytest.raises(UsageError, match=f"sampling_steps={steps}, until=3"):
            counts(steps)


def test_a_student_is_a_run_of_its_own(tmp_path):
    """Its folder has a recipe with its number of steps, by which it is sampled and measured."""
    recipe = progressive_distillation.smoke()
    recipe.figure.draw(recipe, tmp_path)
    run = unnoise.load(tmp_path / "student-2")
    own = run.experiment
    assert (own.sampling_steps, own.training.steps, own.network["dropout"]) == (2, 4, 0.0)
    drawn = draw(own, own.sampler_of(run.average.denoiser), run.shape, run.quantization, 3)
    assert (drawn.levels.shape, drawn.evaluations) == ((3, 1, 8, 8), 2)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["student, 2 steps"]["evaluations"] == found["teacher, 2 steps"]["evaluations"] == 2


def test_curves_and_rows_of_a_sweep(tmp_path):
    """A figure by a strength: rows in their order, and the runs by their names in the results."""
    recipe = classifier_free.smoke()
    recipe = replace(recipe, figure=classifier_free.GuidanceStrengths((0.0, 2.0)))
    page = recipe.figure.draw(recipe, tmp_path).read_text()
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found) == ["w = 0", "w = 2"]
    assert [found[name]["evaluations"] for name in found] == [4, 8]
    numbers = [f"{found['w = 2'][name]:{form}}" for name, form in (("agreement", ".3f"), ("sure", ".3f"))]
    assert f"| 2 | 3 | {' | '.join(numbers)} | {found['w = 2']['frechet']:.2f} |" in page.splitlines()


@pytest.mark.parametrize("name", ["d3pm-text", "multinomial", "mdlm", "sedd"])
def test_text_is_trained_sampled_and_measured(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"{name}-smoke", "--out", "run"]) == 0
    assert len((tmp_path / "run" / "samples-000008.txt").read_text().split()) > 0
    assert main(["sample", "run", "--count", "3", "--steps", "3"]) == 0
    assert (tmp_path / "run" / "samples.txt").exists()
    assert main(["sample", "run", "--out", "a.png"]) == 2
    assert "ends in .txt" in capsys.readouterr().err
    assert main(["evaluate", "run", "--count", "6"]) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["bits_per_character"] == pytest.approx(found["bits_per_token"])  # one token is one character
    assert found["perplexity_per_token"] == pytest.approx(2 ** found["bits_per_token"])
    assert sum(found["bits_per_token_prior_path_data"]) == pytest.approx(found["bits_per_token"], rel=1e-6)
    assert 0 < found["sample_entropy_bits"] < 4.8
    assert found["generative_perplexity_per_token_5_gram"] > 1
