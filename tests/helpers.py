"""What several test files need."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unnoise.shared.gaussian.denoiser import Estimate, GaussianDenoiser
from unnoise.shared.random import Streams
from unnoise.shared.tensors import exact, like

FIXTURES = Path(__file__).parent / "fixtures"


class Fixture:
    """Numbers computed by a reference codebase."""

    def __init__(self, name: str) -> None:
        self.about = json.loads((FIXTURES / f"{name}.json").read_text())
        self._arrays = np.load(FIXTURES / f"{name}.npz")

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self._arrays[key])

    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._arrays.files)


def peer_state(fixture: str) -> dict[str, Tensor]:
    """The state dict of a network fixture, in the order and dtypes of the reference project.

    Each tensor is a function of its name.
    """
    about, arrays = json.loads((FIXTURES / f"{fixture}.json").read_text()), np.load(FIXTURES / f"{fixture}.npz")
    state = {}
    for key in about["state_dict_order"]:
        if key not in about["weights"]:
            state[key] = torch.from_numpy(arrays[f"state:{key}"])
            continue
        shape, mean, std = about["weights"][key]
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        normal = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
        state[key] = torch.from_numpy(np.asarray(np.float32(mean) + np.float32(std) * normal))
    return state


def assert_samples_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """For each example, the largest difference is below `tolerance` of that example's largest value."""
    assert actual.shape == expected.shape
    difference, size = ((a.flatten(1).abs().amax(1)) for a in (actual - expected, expected))
    assert (difference <= tolerance * size).all(), (difference / size).tolist()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """The largest difference is below `tolerance` of the expected array's largest value."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().item() or 1.0
    assert (actual - expected).abs().max().item() <= tolerance * scale


class Recorded(Streams):
    """A source of noise that replays given draws."""

    def __init__(self, *draws: Tensor) -> None:
        self.draws, self.batch = list(draws), None

    def normal(self, shape, dtype, device) -> Tensor:
        draw = self.draws.pop(0)
        assert draw.shape == tuple(shape)
        return draw.to(dtype)


class FromScore(GaussianDenoiser):
    """A denoiser with a given score."""

    def __init__(self, score: Tensor, schedule) -> None:
        super().__init__()
        self.given, self.corruption = score, schedule

    def estimate(self, x_t: Tensor, t: Tensor, **cond) -> Estimate:
        alpha, sigma = self.corruption(exact(t))
        return Estimate(1 / alpha, sigma**2 / alpha, self.given)


def mean_and_variance(denoiser, x, t, **cond):
    """`E[x_0 | x_t]` and the variance output."""
    found = denoiser.estimate(x, t, **cond)
    return found.mean(x), found.variance_output


class Own(nn.Module):
    """`f(x, time)`, with a parameter."""

    def __init__(self, f):
        super().__init__()
        self.f, self.quantization = f, nn.Parameter(torch.ones(()))

    def forward(self, x, time):
        return self.f(self.quantization * x if x.is_floating_point() else x, time)


class Formula(nn.Module):
    """A network that is a formula of (x, label)."""

    def __init__(self, formula) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.formula(x, label)


class Recording(nn.Module):
    """A network that records its labels."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, time, label=None):
        self.seen.append(label)
        return x


def tweedie(denoiser: GaussianDenoiser, x_t: Tensor, t: Tensor, **cond) -> Tensor:
    """The score that follows from a denoiser's mean."""
    alpha, sigma = (like(c, x_t) for c in denoiser.corruption(exact(t)))
    return (alpha * denoiser(x_t, t, **cond) - x_t) / sigma**2
