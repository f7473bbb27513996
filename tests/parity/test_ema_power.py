"""Power-function averages and their post-hoc reconstruction, held to numbers of NVlabs/edm2 in float64.

Its half-life counts images after the step, and that of Karras et al. (2022) before it.
"""

import numpy as np
import pytest
import torch
from helpers import Fixture, assert_close
from torch import nn

from unnoise.shared.training.averages import Decay, HalfLife, PowerFunction, averaging, exponent_of, std_of
from unnoise.shared.training.posthoc import (
    Profile,
    Snapshot,
    inner_products,
    profile_error,
    reconstruct,
    snapshots,
    solve,
    write_snapshot,
)

FIXTURE = Fixture("ema_power")
CONFIG = FIXTURE.about["config"]
READS = (
    "exponents|stds|steps|weights_after_each_step|exponent_of_std|std_of_exponent|beta|response",
    r"posthoc\.(four_times|earlier_output|one_profile|other_profiles)\.(in_ofs|in_std|out_ofs|out_std|A|B|coefficients)",
    r"training\.(ema_0\.05|ema_0\.1|ema_0\.07|ema_0\.15|halflife_ramped|halflife_fixed|coefficients|reconstructed)",
)
WEIGHTS = FIXTURE["weights_after_each_step"]
BATCH = CONFIG["training"]["batch"]
STEPS = CONFIG["training"]["steps"]
HALF_LIFE = CONFIG["training"]["halflife_Mimg"] * 1e6
RAMPUP = CONFIG["training"]["rampup_ratio"]


def close(actual, expected):
    assert_close(torch.as_tensor(actual, dtype=torch.float64), expected, 1e-9)


class Vector(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value.clone())


def averaged(average, shift=0):
    """The average after each step, as the trainer updates it."""
    mean, rows = Vector(WEIGHTS[0]), []
    for step in range(STEPS):
        averaging(mean, Vector(WEIGHTS[step + 1]))(average.decay(step + shift, BATCH))
        rows.append(mean.value.detach().clone())
    return torch.stack(rows)


def test_exponent_and_width():
    close([exponent_of(float(std)) for std in FIXTURE["stds"]], FIXTURE["exponent_of_std"])
    close([std_of(float(exponent)) for exponent in FIXTURE["exponents"]], FIXTURE["std_of_exponent"])


def test_decay_of_each_step():
    """`beta` is a function of images after the step and of images of the step."""
    actual = [
        [PowerFunction(float(std)).decay(int(images / batch) - 1, int(batch)) for std in FIXTURE["stds"]]
        for images, batch in FIXTURE["steps"]
    ]
    close(actual, FIXTURE["beta"])


def test_profile():
    about = CONFIG["response"]
    times = np.arange(about["length"], dtype=np.float64)
    for i, last in enumerate(about["ofs"]):
        for j, std in enumerate(about["std"]):
            profile = np.where(times <= last, times ** exponent_of(std), 0.0)
            close(profile / profile.sum(), FIXTURE["response"][i, j])


def profiles(case, name):
    times, stds = FIXTURE[f"posthoc.{case}.{name}_ofs"], FIXTURE[f"posthoc.{case}.{name}_std"]
    return [Profile(float(time), float(std)) for time, std in zip(times, stds, strict=True)]


@pytest.mark.parametrize("case", ["four_times", "earlier_output", "one_profile", "other_profiles"])
def test_coefficients(case):
    inputs, outputs = profiles(case, "in"), profiles(case, "out")
    close(inner_products(inputs, inputs), FIXTURE[f"posthoc.{case}.A"])
    close(inner_products(inputs, outputs), FIXTURE[f"posthoc.{case}.B"])
    close(solve(inputs, outputs), FIXTURE[f"posthoc.{case}.coefficients"])


@pytest.mark.parametrize("std", [0.05, 0.1, 0.07, 0.15])
def test_average_of_a_training(std):
    close(averaged(PowerFunction(std)), FIXTURE[f"training.ema_{std:g}"])


def test_half_life():
    close(averaged(HalfLife(HALF_LIFE, RAMPUP), shift=1), FIXTURE["training.halflife_ramped"])
    close(averaged(HalfLife(HALF_LIFE, None)), FIXTURE["training.halflife_fixed"])
    close(averaged(Decay(0.5 ** (BATCH / HALF_LIFE), warmup=False)), FIXTURE["training.halflife_fixed"])


def test_reconstruction_of_a_training(tmp_path):
    about = CONFIG["training"]
    averages = [PowerFunction(std) for std in about["stds"]]
    rows = [averaged(average) for average in averages]
    held = [
        Snapshot(Profile(step, average.std), {"average.value": values[step - 1]}, "average")
        for step in about["snapshots"]
        for average, values in zip(averages, rows, strict=True)
    ]
    wanted = [Profile(STEPS, std) for std in about["wanted"]]
    close(solve([snapshot.profile for snapshot in held], wanted), FIXTURE["training.coefficients"])
    for i, profile in enumerate(wanted):
        found, error = reconstruct(held, profile, ["value"])
        close(found["value"], FIXTURE["training.reconstructed"][i])
        true = FIXTURE[f"training.ema_{profile.std:g}"][-1]
        assert (found["value"] - true).abs().max() < 0.2
        assert error < 0.12
        coefficients = FIXTURE["training.coefficients"][:, i].numpy()
        assert error == pytest.approx(profile_error([s.profile for s in held], profile, coefficients))
    for step in about["snapshots"]:  # the same from files, which are in float32
        write_snapshot(tmp_path, step, averages, [0, 0], [Vector(values[step - 1]) for values in rows])
    assert [s.profile for s in snapshots(tmp_path)] == [s.profile for s in held]
    found, _ = reconstruct(snapshots(tmp_path), wanted[0], ["value"])
    assert_close(found["value"], FIXTURE["training.reconstructed"][0], 1e-6)
