"""Every combination of parts is either refused before training in one line, or trains, samples and is measured."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unnoise.experiments.catalog import builds
from unnoise.experiments.cli.recipe_options import settings_of, with_parts, with_setting
from unnoise.experiments.code_lengths import TokenBound
from unnoise.experiments.evaluation import draw
from unnoise.experiments.notation import read
from unnoise.experiments.papers import d3pm_images, ddpm, mdlm, score_sde
from unnoise.experiments.parts import Part, parameters_of, write
from unnoise.shared.errors import UsageError
from unnoise.shared.quantization import Quantization

IMAGES = (1, 4, 4), Quantization(5)
TEXT = (8,), Quantization(6)
ARGUMENTS = {
    "OutputError": "OutputError(velocity)",
    "Shifted": "Shifted(Cosine(), -1.0)",
    "ZeroTerminal": "ZeroTerminal(LinearBetas(steps=50))",
    "Tabulated": None,  # tensors have no notation
    "NoiseLevels": None,
    "LinearBetas": "LinearBetas(steps=50)",
    "CosineBetas": "CosineBetas(steps=50)",
    "geometric_noise_levels": "geometric_noise_levels(0.05, 5.0, 20)",
    "LogInterpolated": "LogInterpolated(0.3)",
    "ImportanceSampling": "ImportanceSampling(Variational)",
    "PredictorCorrector": "PredictorCorrector(ReverseDiffusion, Langevin)",
    "CorrectorPredictor": "CorrectorPredictor(EulerMaruyama, Langevin)",
    "Churned": "Churned(Heun, 0.1)",
    "Renoised": "Renoised(Heun)",
    "annealed_langevin": "annealed_langevin(1e-4)",
    "Sections": "Sections((2, 1))",
    "ClassifierFree": "ClassifierFree(1.5)",
    "Bound": "Bound(terms=2)",
    "Exact": "Exact(0.1)",
}
CATEGORICAL_ARGUMENTS = {
    "PredictorCorrector": "PredictorCorrector(TauLeaping, RateCorrector(repeats=1))",
    "CorrectorPredictor": "CorrectorPredictor(TauLeaping, RateCorrector(repeats=1))",
    "ImportanceSampling": "ImportanceSampling(D3PMLoss)",
    "Absorbing": ["Absorbing(reciprocal(20))", "Absorbing(LogLinearNoise)", "Absorbing(CosineNoise)"],
    "Uniform": ["Uniform(cosine(20))", "Uniform(GeometricNoise)"],
    "BandDiagonal": "BandDiagonal(linear(20, 0.05, 0.2))",
    "DiscretizedGaussian": "DiscretizedGaussian(linear(20, 0.005, 1.0))",
    "GaussianTarget": "GaussianTarget(reach=2.0, width=10.0)",
    "Dense": None,
    "Mixture": "Mixture(BandDiagonal(linear(20, 0.05, 0.2)), Absorbing(reciprocal(20)))",
    "NearestNeighbor": None,  # needs a text
    "with_mutual_information": None,
    "from_file": None,
    "absorbing_gray": "absorbing_gray(reciprocal(20))",
    "ClassifierFree": "ClassifierFree(1.5)",
    "TokenBound": "TokenBound(terms=2)",
}
FREE = {"network", "training", "data", "figure"}


def notations(recipe, setting):
    """The parts of a kind in the notation, with arguments where they need some; None where a setting may be none."""
    own = ARGUMENTS if recipe.catalog.kinds.get("Schedule") else CATEGORICAL_ARGUMENTS
    found = []
    for name in recipe.catalog.kinds[setting.kind]:
        text = own.get(name, name)
        found += [] if text is None else [text] if isinstance(text, str) else text
    return found + ["None"] * ("None" in setting.type)


def recipes(make):
    base = make()
    base = replace(base, sampling_steps=3, data=replace(base.data))
    kinds = [s for s in settings_of(base, base.catalog) if s.kind and s.path.split(".")[0] not in FREE]
    return base, {s.path: notations(base, s) for s in kinds}


def combinations(make):
    base, choices = recipes(make)

    @st.composite
    def drawn(draw):
        names = draw(st.lists(st.sampled_from(sorted(choices)), min_size=1, max_size=4, unique=True))
        options = [(name, draw(st.sampled_from(choices[name]))) for name in names]
        if draw(st.booleans()):
            options.append(("loss.drop_label", 0.2))
        return base, options

    return drawn()


def with_all(base, options):
    words = [w for name, text in options if isinstance(text, str) for w in (f"--{name.replace('_', '-')}", text)]
    recipe, rest = with_parts(base, words)
    assert not rest
    for name, value in options:
        recipe = recipe if isinstance(value, str) else with_setting(recipe, name, value)
    return recipe


def trained_for_a_step(recipe, shape, quantization):
    """Trains a step, samples and measures; returns the refusal where the recipe is refused before."""
    torch.manual_seed(0)
    try:
        objective = recipe.objective(shape, quantization)
        recipe.check(objective, shape, quantization)
    except UsageError as refusal:
        return str(refusal)
    k = torch.randint(0, quantization.levels, (4, *shape))
    label = {"label": torch.arange(4) % 10} if recipe.classes else {}
    batch = recipe.form(quantization, k.to(torch.uint8) if len(shape) > 1 else k, torch.Generator().manual_seed(0))
    loss = objective(batch, generator=torch.Generator().manual_seed(1), **label).total
    assert loss.shape == (4,)
    assert torch.isfinite(loss).all()
    loss.mean().backward()
    denoiser = objective.denoiser.eval().requires_grad_(False)
    torch.optim.SGD([p for p in objective.parameters() if p.grad is not None], 1e-3).step()
    sampler = recipe.sampler_of(denoiser)
    run = draw(recipe, sampler, shape, quantization, 2, recipe.grid(denoiser, recipe.sampling_steps))
    assert run.levels.shape == (2, *shape)
    assert ((run.levels >= 0) & (run.levels < quantization.levels)).all()
    return None


GAUSSIAN = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@GAUSSIAN
@given(combinations(ddpm.smoke))
def test_ddpm(drawn):
    base, options = drawn
    refused_or_trained(base, options, *IMAGES)


@GAUSSIAN
@given(combinations(score_sde.smoke))
def test_score_sde(drawn):
    base, options = drawn
    refused_or_trained(base, options, *IMAGES)


@GAUSSIAN
@given(combinations(d3pm_images.smoke))
def test_d3pm(drawn):
    base, options = drawn
    refused_or_trained(base, options, *IMAGES)


@GAUSSIAN
@given(combinations(mdlm.smoke))
def test_mdlm(drawn):
    base, options = drawn
    refused_or_trained(base, options, *TEXT)


def refused_or_trained(base, options, shape, quantization):
    try:
        recipe = with_all(base, options)
    except UsageError as error:
        refusal: str | None = str(error)
    else:
        refusal = trained_for_a_step(recipe, shape, quantization)
    assert refusal is None or "\n" not in refusal


@pytest.mark.parametrize("make", [ddpm.smoke, d3pm_images.smoke, mdlm.smoke])
def test_every_part_is_tried(make):
    """No kind of part is left out, and what is written of a part is read back as an equal one."""
    base, choices = recipes(make)
    for path, texts in choices.items():
        kind = next(s.kind for s in settings_of(base, base.catalog) if s.path == path)
        assert texts, path
        for text in texts:
            part = read(text, base.catalog, kind)
            again = read(write(part), base.catalog, kind)
            assert again == part or write(again) == write(part)
            if isinstance(part, Part):
                assert builds(part.build)
                assert parameters_of(part.build)
    assert TokenBound(terms=2) == read("token-bound(terms=2)", mdlm.smoke().catalog, "TokenBound")
