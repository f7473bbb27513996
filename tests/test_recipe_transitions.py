"""The transitions of the papers in the notation of parts: each builds the transition of its formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from unnoise.discrete import (
    Absorbing,
    Dense,
    DiscretizedGaussian,
    GaussianTarget,
    GeometricNoise,
    LogLinearNoise,
    Mixture,
    NearestNeighbor,
    Uniform,
    cosine,
    linear,
    mutual_information,
    nearest,
    reciprocal,
)
from unnoise.experiments import notation
from unnoise.experiments.categorical_builders import context_embeddings
from unnoise.experiments.categorical_parts import CATEGORICAL
from unnoise.experiments.papers import d3pm_images, d3pm_text, mdlm, multinomial, sedd, tauldr, udlm
from unnoise.experiments.parts import Context, built
from unnoise.experiments.text_data import Text
from unnoise.shared.errors import UsageError
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize

T = 10
MOVES = "NearestNeighbor(neighbors=context-neighbors(count=5)"
"""Moves between five neighbors, without the end of the notation, which has the schedule."""


@pytest.fixture(scope="module")
def text():
    return Text("shakespeare", length=16).load()


def read(line, **values):
    """Returns the transition of a line in the notation, which its notation and its checkpoint have too."""
    part = notation.read(line, CATEGORICAL, "Transition")
    written = notation.write(part)
    assert notation.write(notation.read(written, CATEGORICAL, "Transition")) == written
    assert deserialize(serialize(part)) == part
    return built(part, Context(**values))


TEXTS = {
    ("absorbing", "reciprocal"): "Absorbing(schedule=reciprocal(steps=10))",
    ("absorbing", "cosine"): "Absorbing(schedule=cosine(steps=10))",
    ("absorbing", "mutual-information"): "with-mutual-information(transition=Absorbing, steps=10)",
    ("uniform", "reciprocal"): "Uniform(schedule=reciprocal(steps=10))",
    ("uniform", "cosine"): "Uniform(schedule=cosine(steps=10))",
    ("uniform", "mutual-information"): "with-mutual-information(transition=Uniform, steps=10)",
    ("nearest", "cosine"): f"{MOVES}, schedule=cosine(steps=10))",
    ("nearest", "mutual-information"): f"with-mutual-information(transition={MOVES}), steps=10)",
    ("absorbing+nearest", "cosine"): f"Mixture(moves={MOVES}, schedule=cosine(steps=10)), "
    "resampling=Absorbing(schedule=reciprocal(steps=10)))",
    ("absorbing+nearest", "mutual-information"): f"Mixture(moves=with-mutual-information(transition={MOVES}), "
    "steps=10), resampling=Absorbing(schedule=reciprocal(steps=10)))",
}


@pytest.mark.parametrize("names", TEXTS, ids=" ".join)
def test_transitions_of_text(names, text):
    """D3PM on text: every transition on every schedule that does not erase the text in one step."""
    kind, schedule = names
    near = nearest(context_embeddings(text), 5)
    builds = {
        "absorbing": lambda noise: Absorbing(27, noise),
        "uniform": lambda noise: Uniform(27, noise),
        "nearest": lambda noise: NearestNeighbor(near, noise),
    }
    build = builds[kind.split("+")[-1]]
    table = (
        mutual_information(build, text.frequencies(), T)
        if schedule == "mutual-information"
        else {"cosine": cosine, "reciprocal": reciprocal}[schedule](T)
    )
    expected = build(table)
    if "+" in kind:
        expected = Mixture(expected, Absorbing(27, reciprocal(T)))
    assert read(TEXTS[names], text=text, categories=27) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Uniform(schedule=cosine(10))", Uniform(256, cosine(T))),
        ("absorbing-gray(schedule=reciprocal(10))", Absorbing(256, reciprocal(T), mask=128)),
        (
            "DiscretizedGaussian(schedule=linear(40, start=0.0025, stop=0.5))",
            DiscretizedGaussian(256, linear(40, 0.1 / 40, 20 / 40)),
        ),
        ("GaussianTarget", GaussianTarget(256)),
        ("GaussianTarget(reach=2, width=34)", GaussianTarget(256, reach=2.0, width=34.0)),
        ("Absorbing(schedule=LogLinearNoise)", Absorbing(256, LogLinearNoise())),
        ("Absorbing(schedule=log-linear(eps=0.01))", Absorbing(256, LogLinearNoise(0.01))),
        ("Uniform(schedule=GeometricNoise())", Uniform(256, GeometricNoise())),
        ("Uniform(schedule=LogLinearNoise())", Uniform(256, LogLinearNoise())),
    ],
)
def test_transitions_of_quantization_levels_and_in_continuous_time(line, expected):
    assert read(line, categories=256) == expected


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (d3pm_images.cifar10(), DiscretizedGaussian(256, linear(1000, 1e-4, 0.02))),
        (replace(d3pm_images.cifar10(), transition=d3pm_images.absorbing(T)), Absorbing(256, reciprocal(T), mask=128)),
        (replace(d3pm_images.cifar10(), transition=d3pm_images.uniform(T)), Uniform(256, cosine(T))),
        (d3pm_text.text8(), Absorbing(256, reciprocal(1000))),
        (multinomial.text8(), Uniform(256, cosine(1000))),
        (mdlm.text8(), Absorbing(256, LogLinearNoise())),
        (sedd.text8(), Absorbing(256, LogLinearNoise())),
        (udlm.text8(), Uniform(256, LogLinearNoise())),
        (tauldr.cifar10(), GaussianTarget(256)),
    ],
)
def test_transitions_of_recipes(recipe, expected):
    assert recipe.transition_of(Quantization(256)) == expected


def test_a_matrix_and_a_table_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one /= one.sum(1, keepdim=True)
    np.save("one.npy", one.numpy())
    betas, identity = linear(5, 0.1, 0.3), torch.eye(4, dtype=torch.float64)
    table = torch.stack([(1 - b) * identity + b * one for b in betas])
    np.save("table.npy", table.numpy())
    found = read('from-file(path="one.npy", schedule=linear(steps=5, start=0.1, stop=0.3))', categories=3)
    assert isinstance(found, Dense)
    assert (found.categories, found.states, found.steps) == (3, 4, 5)
    torch.testing.assert_close(found.matrices, table)
    assert read("from-file('table.npy')", categories=3) == Dense(table, categories=3)
    long = read("from-file('one.npy')", categories=4)
    torch.testing.assert_close(long.matrices[:, 0, 1], cosine(1000) * one[0, 1])
    np.save("wide.npy", np.ones((2, 3)))
    for line, categories, words in [
        ("from-file('table.npy', schedule=cosine(5))", 4, "is a table of 5 steps, which takes no schedule"),
        ("from-file('one.npy')", 5, r"give one matrix \(K, K\) or a table \(T, K, K\), .* at least 5"),
        ("from-file('wide.npy')", 2, r"has shape \(2, 3\)"),
        ("from-file('none.npy')", 2, "there is no file none.npy"),
    ]:
        with pytest.raises(UsageError, match=words) as error:
            built(notation.read(line, CATEGORICAL, "Transition"), Context(categories=categories))
        assert "\n" not in str(error.value)


def test_correctors_of_tau_leaping():
    line = "PredictorCorrector(predictor=TauLeaping, corrector=RateCorrector(repeats=10))"
    recipe = replace(tauldr.smoke(), sampler=notation.read(line, CATEGORICAL, "Sampler"))
    denoiser = recipe.objective((1, 4, 4), Quantization(17)).denoiser
    sampler = recipe.sampler_of(denoiser)
    assert (type(sampler.predictor).__name__, type(sampler.corrector).__name__) == ("TauLeaping", "RateCorrector")
    assert sampler.predictor.denoiser is sampler.corrector.denoiser is denoiser
    assert (sampler.corrector.repeats, sampler.corrector.below) == (10, 0.1)
