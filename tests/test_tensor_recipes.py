"""Recipes on real-valued arrays: code lengths of densities in closed form, and runs by the command line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unnoise.continuous import Ancestral, LinearBetas, Tabulated, VariationalBound, large
from unnoise.experiments.cli import main
from unnoise.experiments.code_lengths import Bound, Exact
from unnoise.experiments.papers import d3pm_images, ddpm, edm, flow_matching, score_sde
from unnoise.experiments.parts import part
from unnoise.experiments.tensor_data import Tensors, compared
from unnoise.sde import VP
from unnoise.shared.code_length import total_nats
from unnoise.shared.data.array_files import arrays_in
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian
from unnoise.shared.gaussian.denoiser import Clipped, Thresholded
from unnoise.shared.networks import MLP
from unnoise.shared.progress import silent
from unnoise.shared.standardization import Standardization

SCALE = Standardization((1.0,), (4.0,))


def gaussian(schedule: object, d: int = 3) -> AnalyticGaussian:
    """The exact denoiser of standardized data with unequal variances."""
    return AnalyticGaussian(torch.zeros(d), torch.diag(torch.tensor([0.5, 1.0, 1.5])), schedule)  # pyright: ignore[reportArgumentType]


def data(count: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Data in their own units, and their negative log-density in nats."""
    std = 4 * torch.tensor([0.5, 1.0, 1.5]).sqrt()
    x = 1 + std * torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return x, -total_nats(torch.distributions.Normal(torch.ones(3), std).log_prob(x.double()))


def test_the_exact_code_length_is_the_density_in_the_units_of_the_data() -> None:
    x, nats = data(20)
    measure = Exact(1e-7).of(gaussian(VP()), SCALE, large)
    found = measure(x, torch.Generator().manual_seed(0), silent)
    # Hutchinson's signs give the exact trace of a diagonal Jacobian; the flow stops at t_min
    torch.testing.assert_close(found.nats.double(), nats, rtol=2e-3, atol=2e-3)


def test_the_bound_of_standard_normal_data_is_their_entropy() -> None:
    """Then the reverse steps with the variance beta are exact, and the exact denoiser's bound has no gap."""
    x = 1 + 4 * torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    nats = -total_nats(torch.distributions.Normal(1, 4).log_prob(x.double()))
    denoiser = AnalyticGaussian(torch.zeros(3), torch.eye(3), Tabulated(LinearBetas(100).betas))
    code = Bound(terms=None).of(denoiser, SCALE, large)(x, torch.Generator().manual_seed(0), silent)
    gap = code.nats - nats
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(len(x)) < 0.3


def test_the_last_term_of_the_bound_is_the_log_density_of_the_last_step() -> None:
    """A table of one step: prior and last term are in closed form."""
    x = torch.tensor([[0.3], [-1.2]])
    schedule = Tabulated(torch.tensor([0.5], dtype=torch.float64))
    denoiser = AnalyticGaussian(torch.zeros(1), torch.zeros(1, 1), schedule)  # E[x_0 | x_1] = 0
    code = VariationalBound(denoiser, None)(x, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), math.sqrt(0.5))
    torch.testing.assert_close(code.data, -normal.log_prob(x.double())[:, 0])
    torch.testing.assert_close(code.prior, 0.5 * x.double()[:, 0] ** 2)
    assert code.path.abs().max() == 0
    with pytest.raises(UsageError, match="x0 is torch.int64: give real numbers"):
        VariationalBound(denoiser, None)(torch.zeros(2, 1, dtype=torch.int64))


def test_estimates_of_real_valued_data_are_not_limited() -> None:
    x = torch.full((2, 3), 40.0)
    denoiser = gaussian(Tabulated(LinearBetas(50).betas))
    codes = [Bound(terms=None, clip=clip).of(denoiser, SCALE, large) for clip in (part(Clipped), None)]
    one, other = (code(x, torch.Generator().manual_seed(0), silent).nats for code in codes)
    assert torch.equal(one, other)
    with pytest.raises(UsageError, match="limits estimates to a range, and real-valued data have none"):
        Bound(clip=part(Thresholded)).of(denoiser, SCALE, large)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents with labels, and vectors."""
    home, random = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    latents = (3 + 2 * random.standard_normal((60, 4, 8, 8))).astype(np.float16)
    np.savez(home / "latents.npz", x=latents, label=np.arange(60) % 3)
    np.save(home / "vectors.npy", random.standard_normal((60, 5)).astype(np.float32))
    return home


def command(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def test_recipes_refuse_settings_of_quantized_data(folder: Path) -> None:
    arrays = Tensors(str(folder / "latents.npz"))
    for recipe, match in (
        (
            replace(ddpm.smoke(), data=arrays),
            r"clip=Clipped\(\) is for quantized data, .* give clip=None \(--clip None\)",
        ),
        (replace(edm.smoke(), data=arrays), r"dequantize=True is for quantized data, .*\(--no-dequantize\)"),
        (replace(edm.smoke(), data=arrays, dequantize=False, range=(0.0, 1.0)), r"range=\(0.0, 1.0\) is for quantized"),
    ):
        loaded = recipe.load()
        with pytest.raises(UsageError, match=match):
            recipe.objective(loaded.shape, loaded.quantization)
    with pytest.raises(UsageError, match="Tensors are real-valued, and a categorical model is of quantization levels"):
        replace(d3pm_images.smoke(), data=arrays)


@pytest.mark.parametrize("paper", [ddpm, edm, score_sde, flow_matching])
def test_every_gaussian_recipe_takes_arrays(paper, folder: Path) -> None:
    arrays = Tensors(str(folder / "vectors.npy"), batch=8)
    recipe = replace(paper.smoke(), data=arrays, clip=None, dequantize=False, network=part(MLP, width=8, depth=1))
    recipe = replace(recipe, sampler=part(Ancestral)) if paper is score_sde else recipe  # Langevin needs 16 dimensions
    loaded = recipe.load()
    objective = recipe.objective(loaded.shape, loaded.quantization)
    recipe.check(objective, loaded.shape, loaded.quantization)
    batch = next(iter(recipe.batches(loaded)))
    assert batch["x0"].shape == (8, 5)
    assert torch.equal(batch["x0"], loaded.quantization.standardized(loaded.k[recipe.batches(loaded).order(0)[:8]]))
    torch.testing.assert_close(recipe.levels(SCALE, SCALE.standardized(loaded.k[:])), loaded.k[:])
    assert objective(**batch).total.isfinite().all()


def test_a_run_on_arrays_by_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, latents = tmp_path / "run", folder / "latents.npz"
    given = (
        "--data",
        latents,
        "--data.classes",
        3,
        "--data.scale",
        "channels",
        "--no-dequantize",
        "--training.steps",
        2,
    )
    assert command("train", "edm-smoke", *given, "--data.batch", 8, "--out", run) == 0, capsys.readouterr().err
    assert "examples of 4x8x8, float16; 3 classes" in capsys.readouterr().out
    assert command("sample", run, "--count", 3, "--steps", 2) == 0, capsys.readouterr().err
    assert command("sample", run, "--count", 3, "--steps", 2, "--out", tmp_path / "again.npy") == 0
    assert "standard deviation" in capsys.readouterr().out
    with np.load(run / "samples.npz") as file:
        assert file["label"].tolist() == [0, 1, 2]
        assert file["x"].shape == (3, 4, 8, 8)
        assert np.array_equal(file["x"], np.load(tmp_path / "again.npy"))
    assert command("sample", run, "--format", "picture") == 2
    assert "the samples are arrays: give npz or npy" in capsys.readouterr().err
    assert command("evaluate", run, "--count", 3, "--steps", 2) == 0, capsys.readouterr().err
    found = json.loads((run / "evaluation.json").read_text())
    assert found["nats_per_dim_of_density"] == pytest.approx(found["bits_per_dim_of_density"] * math.log(2))
    assert found["kind"] == "exact -log p(x) of a density"
    assert found["held_out_mean"] == pytest.approx(3, abs=0.5)
    assert found["frechet"] > 0
    assert found["frechet_of_held_out"] > 0
    assert tuple(arrays_in(str(run / "samples.npz"))[0].shape) == (3, 4, 8, 8)  # samples are files of arrays, too


def test_data_on_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(words: str, *arguments: object) -> None:
        assert command("train", *arguments, "--out", tmp_path / "none") == 2
        assert words in capsys.readouterr().err

    refused("there is no file nowhere.npy", "edm-smoke", "--data", "nowhere.npy")
    refused("there is no folder /nowhere", "edm-smoke", "--data", "/nowhere")
    refused("Tensors has no argument foo", "edm-smoke", "--data", "Tensors('x.npy', foo=3)")
    refused("categorical model is of quantization levels or tokens", "d3pm-smoke", "--data", folder / "vectors.npy")


def test_held_out_arrays_are_as_many_as_samples(folder: Path) -> None:
    """The distance depends on the number of examples, so that of held-out ones is of the same number."""
    train, test = (Tensors(str(folder / "latents.npz")).load(split) for split in ("train", "test"))
    same = test.subset(3).k[:]
    about, distance = compared(same, train, test, "latents")
    assert distance.held_out == about["frechet_of_held_out"] == pytest.approx(distance.value, rel=1e-6)
    assert distance.note == "biased: fewer samples and reference examples than features"
    more = torch.cat([test.k[:], test.k[:]])
    assert compared(more, train, test, "latents")[1].note.endswith(f"real data: {len(test.k)} examples")
    assert compared(more, train, None, "latents")[1].held_out is None
