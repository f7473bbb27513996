"""Gaussian models compute on devices without float64, such as MPS, with the numbers of a CPU; it is emulated here."""

import copy

import pytest
import torch
from without_float64 import DEVICE, WithoutFloat64, moved

from unnoise.experiments.recipes import find
from unnoise.shared.errors import UsageError
from unnoise.shared.progress import silent
from unnoise.shared.random import Streams, normal, uniform
from unnoise.shared.tensors import exact, like, times_at

GAUSSIAN = ("ddpm", "improved-ddpm", "edm", "score-sde", "flow-matching", "ncsn", "classifier-free")
CATEGORICAL = ("d3pm", "mdlm", "sedd")


def model(name):
    """The recipe of that name, its training data, four examples and its objective."""
    recipe = find(f"{name}-smoke")
    data = recipe.load("train")
    torch.manual_seed(0)
    objective = recipe.objective(data.shape, data.quantization)
    for p in objective.parameters():
        torch.nn.init.normal_(p, std=0.05)
    batch = {key: value[:4] for key, value in next(iter(recipe.batches(data))).items()}
    return recipe, data, batch, objective


def sampled(recipe, data, batch, objective, device):
    denoiser, rows = objective.eval().requires_grad_(False).denoiser, torch.arange(3)
    steps = recipe.grid(denoiser, min(recipe.sampling_steps, 3))
    sampler, conditions = recipe.sampler_of(denoiser), recipe.conditions(rows.to(device))
    return sampler(shape=(3, *data.shape), steps=steps, generator=Streams(0, rows), **conditions)


def trained(recipe, data, batch, objective, device):
    batch = {key: value.to(device) for key, value in batch.items()}
    loss = objective(**batch, generator=Streams(0, range(4))).total
    loss.mean().backward()
    return loss.detach()


def coded(recipe, data, batch, objective, device):
    measure = recipe.code_length_of(objective.eval().requires_grad_(False).denoiser, data.quantization)
    k = (data.k if hasattr(data, "k") else data.windows)[torch.arange(2)]
    conditions = {key: value[:2].to(device) for key, value in batch.items() if key != "x0"}
    return measure(k.to(device), Streams(0, range(2)), silent, **conditions).nats


@pytest.mark.parametrize("compute", [sampled, trained, coded])
@pytest.mark.parametrize("name", GAUSSIAN)
def test_numbers_are_those_of_a_cpu(name, compute):
    *of, objective = model(name)
    known = compute(*of, copy.deepcopy(objective), "cpu")
    with WithoutFloat64():
        found = compute(*of, moved(objective), DEVICE).cpu()
    torch.testing.assert_close(found.to(known.dtype), known, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compute", [sampled, trained, coded])
@pytest.mark.parametrize("name", CATEGORICAL)
def test_categorical_models_are_refused(name, compute):
    *of, objective = model(name)
    with WithoutFloat64(), pytest.raises(UsageError, match="mps has no float64, .*: give --device cpu"):
        compute(*of, moved(objective), DEVICE)


def test_noise_is_that_of_the_cpu():
    for draw in (uniform, normal):
        known = draw((2, 5), Streams(0, [3, 4]))
        with WithoutFloat64():
            found = draw((2, 5), Streams(0, [3, 4]), device=DEVICE)
            assert found.device == DEVICE
            assert torch.equal(found.cpu(), known)


def test_times_and_coefficients_stay_in_float64():
    t = torch.tensor([0.25, 1 / 3], dtype=torch.float64)
    with WithoutFloat64():
        x = torch.ones(2, 3, device=DEVICE)
        assert times_at(t, x).device.type == "cpu"
        assert torch.equal(times_at(t, x), t)
        assert exact(x).dtype == torch.float64
        assert exact(x).device.type == "cpu"
        assert like(t, x).device == DEVICE
        assert like(t, x).shape == (2, 1)
        assert like(t[0], x).device.type == "cpu"  # scalars of the CPU are taken by all devices
        assert torch.equal((like(t, x) * x).cpu(), t.float()[:, None].expand(2, 3))


def test_the_emulated_device():
    """What it refuses is what makes the other tests fail."""
    with WithoutFloat64():
        x = torch.ones(2, 3, device=DEVICE)
        with pytest.raises(TypeError, match=r"float64 on mps"):
            x.double()
        with pytest.raises(TypeError, match=r"float64 to mps"):
            torch.ones(2, dtype=torch.float64).to(DEVICE)
        with pytest.raises(TypeError, match=r"float64 on mps"):
            torch.zeros(2, dtype=torch.float64, device=DEVICE)
        with pytest.raises(RuntimeError, match="not on the same device"):
            x + torch.ones(2, 3)
        with pytest.raises(NotImplementedError, match="ndtri"):
            torch.special.ndtri(x)
        assert (x.sum(1) * torch.tensor(2.0)).device == DEVICE
        assert x.cpu().device.type == "cpu"
        assert x.new_zeros(2).device == DEVICE
