"""Flow matching: its loss by hand, Euler's method as DDIM, straightness, the figure."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import Recorded

from unnoise.continuous import DDIM
from unnoise.experiments.gaussian_parts import GAUSSIAN
from unnoise.experiments.notation import read
from unnoise.experiments.papers import flow_matching
from unnoise.experiments.papers.flow_matching import bend
from unnoise.experiments.parts import part, write
from unnoise.experiments.time_grids import whole
from unnoise.sde import (
    Adaptive,
    DenoisingLoss,
    FixedSteps,
    Learned,
    ProbabilityFlow,
    Straight,
    euler,
    heun2,
    midpoint_rule,
    straight,
    time_coordinates,
)
from unnoise.shared.gaussian.analytic import AnalyticGaussian
from unnoise.shared.networks import MLP
from unnoise.shared.progress import silent
from unnoise.shared.quantization import Quantization
from unnoise.shared.sampler import counted
from unnoise.shared.serialization import deserialize, serialize

RECIPE = flow_matching.smoke()
INTEGRATORS = {
    "euler": FixedSteps(euler),
    "midpoint": FixedSteps(midpoint_rule),
    "heun": FixedSteps(heun2),
    "rk45": Adaptive(0.1, 0.1),
}


def flow(denoiser, solver: str) -> ProbabilityFlow:
    """The sampler of the recipe with another solver."""
    sampler = RECIPE.sampler.changed(integrator=INTEGRATORS[solver])
    return replace(RECIPE, sampler=sampler).sampler_of(denoiser)


def random_denoiser(seed: int = 0) -> Learned:
    torch.manual_seed(seed)
    return Learned(MLP(3, width=32, depth=2), Straight(), straight)


def test_the_loss_is_that_of_the_papers(generator):
    """`||F(x_t, t) - (epsilon - x_0)||^2` at `x_t = (1 - t) x_0 + t epsilon`.

    The network sees x_t over its largest possible size.
    """
    denoiser = random_denoiser()
    x0, epsilon, t = (torch.randn(40, 3, generator=generator) for _ in range(3))
    t = t[:, 0].sigmoid().double()
    loss = DenoisingLoss.flow_matching(denoiser).at(x0, t, generator=Recorded(epsilon))
    u = t[:, None].float()
    x_t = (1 - u) * x0 + u * epsilon
    f = denoiser.network(x_t / ((1 - u) ** 2 + u**2).sqrt(), 1000 * t.float())
    assert torch.allclose(loss.total, ((f - (epsilon - x0)) ** 2).mean(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7, torch.tensor([1.0, 0.9, 0.35, 0.1, 0.0])])
def test_euler_is_ddim(steps, generator):
    """On straight paths DDIM's step, `alpha_s x_0 + sigma_s epsilon`, is `x_t + (s - t) v`."""
    denoiser, x = random_denoiser(), torch.randn(16, 3, generator=generator)
    by_euler, by_ddim = (sampler(x, steps=steps) for sampler in (flow(denoiser, "euler"), DDIM(denoiser)))
    assert torch.allclose(by_euler, by_ddim, atol=1e-5)
    t, s = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    f = denoiser.estimate(x, t).out
    assert torch.allclose(DDIM(denoiser).step(x, t, s), x - 0.3 * f, atol=1e-5)


def test_solvers_agree_in_the_limit_and_cost_what_they_should(generator):
    denoiser = AnalyticGaussian(torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.4], [0.4, 0.3]]), Straight())
    x = torch.randn(16, 2, generator=generator)
    # All denoise at the end in the same way, from the same last time.
    grid = torch.cat([torch.linspace(1, 1e-3, 200, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    precise = flow_matching.cifar10().sampler_of(denoiser)(x, steps=whole(denoiser.corruption))
    for solver, calls, far in (("euler", 200, 0.03), ("midpoint", 399, 2e-4), ("heun", 399, 2e-4), ("rk45", None, 0.1)):
        with counted(denoiser) as count:
            end = flow(denoiser, solver)(x, steps=whole(denoiser.corruption) if solver == "rk45" else grid)
        assert calls is None or count.calls == calls
        assert float((end - precise).abs().max()) < far


def test_the_grid_of_an_adaptive_solver():
    denoiser = random_denoiser()
    assert flow_matching.cifar10().grid(denoiser, 100).tolist() == [1.0, denoiser.corruption.t_last, 0.0]
    assert flow_matching.digits().grid(denoiser, 25) == 25


def test_how_straight_a_path_is():
    """The velocity of `(1 - t) a + t b + sin(pi t) c` differs from the chord by `pi cos(pi t) c`.

    The mean of its square is `pi^2 / 2 |c|^2`.
    """
    a, b, c = torch.tensor([[[1.0, 2.0]], [[4.0, -2.0]], [[0.3, 0.1]]], dtype=torch.float64)
    times = torch.linspace(1, 0, 401, dtype=torch.float64)
    path = [(1 - t) * a + t * b + torch.sin(math.pi * t) * c for t in times]
    assert bend(path, times) == pytest.approx(math.pi**2 / 2 * 0.1 / 25, rel=1e-3)
    uneven = times**2
    assert bend([(1 - t) * a + t * b for t in uneven], uneven) == pytest.approx(0, abs=1e-12)


def test_paths_to_a_point_are_straight(generator):
    """Where the data are one point every path is a chord; toward a Gaussian whose mean is far they are nearly so."""
    times = torch.linspace(1, 0, 51, dtype=torch.float64)
    bends = []
    for spread in (0.0, 1.0):
        oracle = AnalyticGaussian(torch.full((2,), 3.0), spread * torch.eye(2), Straight())
        x = torch.randn(50, 2, generator=generator)
        bends.append(bend([x, *flow(oracle, "euler").trajectory(x, steps=50)], times))
    assert bends[0] < 1e-9
    assert 1e-3 < bends[1] < 0.2


def test_published_settings():
    cifar = flow_matching.cifar10()
    assert (cifar.data.batch, cifar.training.steps, cifar.training.learning_rate) == (256, 391_000, 5e-4)
    assert cifar.sampler == part(ProbabilityFlow, integrator=Adaptive(1e-5, 1e-5), coordinates=time_coordinates)
    assert cifar.training.warmup + cifar.training.cooldown == cifar.training.steps
    assert cifar.code_length.tolerance == 1e-5


@pytest.mark.parametrize("preset", ["cifar10", "digits", "mnist", "smoke"])
def test_presets_can_be_serialized(preset):
    recipe = getattr(flow_matching, preset)()
    assert deserialize(json.loads(json.dumps(serialize(recipe)))) == recipe
    assert read(write(recipe.sampler), GAUSSIAN, "Sampler") == recipe.sampler
    assert getattr(flow_matching, preset).__doc__


def test_smoke_draws_its_figure(tmp_path):
    page = RECIPE.figure.draw(RECIPE, tmp_path).read_text()
    for picture in ("figure.png", "samples.png"):
        assert (tmp_path / picture).stat().st_size > 3000
        assert f"({picture})" in page
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == 4 * 4 + 3 + 1
    for name, steps, evaluations in (("Euler", 35, 35), ("Heun", 18, 35), ("midpoint", 3, 5), ("DDIM, eta 1", 5, 5)):
        assert f"{name}, {steps} steps, {evaluations} evaluations" in results
    assert 0 <= results["bend"]["bend"] < 1
    assert "nan" not in page


def test_smoke_is_measured(generator):
    quantization, k = Quantization(17), torch.arange(17).expand(4, 1, 17)
    assert torch.equal(RECIPE.levels(quantization, RECIPE.form(quantization, k, generator)), k)
    images = RECIPE.load("test")
    denoiser = RECIPE.objective(images.shape, images.quantization).denoiser
    length = RECIPE.code_length_of(denoiser, images.quantization)(
        images.k[:50], generator, silent, label=images.label[:50]
    )
    assert torch.isfinite(length.bits_per_dim(images.dims)).all()
