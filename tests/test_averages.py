"""Averages of the weights: the weight of each step in closed form, snapshots, and reconstructed power functions."""

import json
import math

import pytest
import torch
from torch import nn

from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.training.averages import Decay, HalfLife, PowerFunction, averaging, exponent_of, std_of
from unnoise.shared.training.posthoc import (
    Profile,
    drop_later,
    profile_error,
    reconstruct,
    snapshots,
    solve,
    write_snapshot,
)

BATCH = 8


def weights_of_steps(average, steps):
    """The weight of the initial value, and of the value after each step, in an average."""
    weights = torch.zeros(steps + 1, dtype=torch.float64)
    weights[0] = 1.0
    for step in range(steps):
        d = average.decay(step, BATCH)
        weights *= d
        weights[step + 1] += 1 - d
    return weights


def assert_weights(average, expected):
    torch.testing.assert_close(weights_of_steps(average, len(expected) - 1), expected, rtol=1e-12, atol=1e-15)


def test_constant_decay():
    powers = 0.9 ** torch.arange(20, -1, -1, dtype=torch.float64)
    assert_weights(Decay(0.9, warmup=False), torch.cat([powers[:1], 0.1 * powers[1:]]))
    assert Decay(0.0).decay(0, BATCH) == 0.0


def test_decay_with_a_warm_up():
    """While it lasts, the initial value has the weight 1 x 2 x ... / (10 x 11 x ...), which is 9! n! / (n + 9)!."""
    steps = 30
    first = math.factorial(9) * math.factorial(steps) / math.factorial(steps + 9)
    assert float(weights_of_steps(Decay(0.9999), steps)[0]) == pytest.approx(first, rel=1e-12)
    late = Decay(0.9)  # reached at (1 + n) / (10 + n) = 0.9, n = 80
    assert late.decay(79, BATCH) == 80 / 89 < 0.9 == late.decay(81, BATCH)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2])
def test_power_function(std):
    """Step i of n has the weight (i / n)^(g + 1) - ((i - 1) / n)^(g + 1): the integral of the profile over a step."""
    steps, exponent = 50, exponent_of(std)
    edges = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** (exponent + 1)
    assert_weights(PowerFunction(std), torch.cat([torch.zeros(1, dtype=torch.float64), edges.diff()]))
    weights = weights_of_steps(PowerFunction(std), 4000)
    times = torch.arange(4001, dtype=torch.float64)
    mean = (weights * times).sum()
    assert float((weights * (times - mean) ** 2).sum().sqrt() / 4000) == pytest.approx(std, rel=1e-3)


def test_plain_mean_is_the_widest_power_function():
    assert exponent_of(12**-0.5) == pytest.approx(0, abs=1e-9)
    assert_weights(PowerFunction(12**-0.5), torch.tensor([0.0, *[0.1] * 10], dtype=torch.float64))
    assert std_of(exponent_of(0.07)) == pytest.approx(0.07, rel=1e-12)


def test_half_life_in_images():
    average = HalfLife(80, rampup=None)
    assert average.decay(0, 8) ** 10 == pytest.approx(0.5, rel=1e-12)
    assert average.decay(0, 16) ** 5 == pytest.approx(0.5, rel=1e-12)
    ramped = HalfLife(80, rampup=0.5)
    assert ramped.decay(0, 8) == 0.0
    assert ramped.decay(5, 8) == pytest.approx(0.5 ** (8 / (0.5 * 5 * 8)))
    assert ramped.decay(20, 8) == ramped.decay(500, 8) == average.decay(0, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decay(1.0), "rate=1.0"),
        (lambda: Decay(-0.1), "rate=-0.1"),
        (lambda: Decay("slow"), "rate=slow"),  # pyright: ignore[reportArgumentType]
        (lambda: Decay(0.9, warmup=3), "warmup=3"),  # pyright: ignore[reportArgumentType]
        (lambda: HalfLife(0), "images=0"),
        (lambda: HalfLife(math.inf), "images=inf"),
        (lambda: HalfLife(100, rampup=0), "rampup=0"),
        (lambda: HalfLife(100, rampup=math.nan), "rampup=nan"),
        (lambda: PowerFunction(0.0), "std=0.0"),
        (lambda: PowerFunction(0.3), "std=0.3"),
        (lambda: PowerFunction(math.nan), "std=nan"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("average", [Decay(0.99, warmup=False), HalfLife(100, None), PowerFunction(0.1)])
def test_values(average):
    again = deserialize(json.loads(json.dumps(serialize(average))))
    assert again == average
    assert hash(again) == hash(average)
    assert repr(Decay(0.99)) == "Decay(rate=0.99)"


def test_averagings_parameters_and_copies_buffers():
    average, module = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        average.weight.fill_(1.0)
        module.weight.fill_(3.0)
    module.get_buffer("running_mean").fill_(5.0)
    module.get_buffer("num_batches_tracked").fill_(7)
    averaging(average, module)(0.75)
    assert average.weight.tolist() == [1.5] * 3
    assert average.get_buffer("running_mean").tolist() == [5.0] * 3
    assert average.num_batches_tracked == 7


NARROW, WIDE = PowerFunction(0.05), PowerFunction(0.1)


def write(folder, step, begun=0, value=1.0, names=("w",), averages=(NARROW, WIDE)):
    modules = [nn.ParameterDict({name: torch.full((2,), value) for name in names}) for _ in averages]
    write_snapshot(folder, step, averages, [0, begun][: len(averages)], modules)


def test_snapshots_of_a_run(tmp_path):
    assert snapshots(tmp_path) == []
    for step in (10, 20, 30):
        write(tmp_path, step)
        assert (tmp_path / f"averages/{step:08d}.safetensors").is_file()
    assert [s.profile for s in snapshots(tmp_path, 20)] == [
        Profile(step, std) for step in (10, 20) for std in (0.05, 0.1)
    ]
    drop_later(tmp_path, 20)
    assert {s.profile.step for s in snapshots(tmp_path)} == {10, 20}
    assert [path.name for path in (tmp_path / "averages").iterdir() if path.name.startswith(".")] == []


def test_average_that_was_begun_late_is_left_out_while_it_is_young(tmp_path):
    """The weights of step 10 have the share (10 / n)^(g + 1) of it, which is below 1/1000 from n = 24 (g = 6.9)."""
    for step in (20, 23, 24):
        write(tmp_path, step, begun=10)
    assert [s.profile for s in snapshots(tmp_path) if s.profile.std == 0.1] == [Profile(24, 0.1)]
    assert len(snapshots(tmp_path)) == 4


def test_damaged_snapshots_are_left_out_with_a_notice(tmp_path):
    for step in (10, 20, 30):
        write(tmp_path, step)
    (tmp_path / "averages/00000020.safetensors").write_bytes(b"cut")
    with pytest.warns(Notice, match=r"00000020\.safetensors cannot be read .* is left out"):
        assert {s.profile.step for s in snapshots(tmp_path)} == {10, 30}


def test_constant_weights_are_reconstructed_exactly(tmp_path):
    for step in (10, 20, 30):
        write(tmp_path, step, value=3.0)
    found, error = reconstruct(snapshots(tmp_path), Profile(30, 0.07), ["w"])
    torch.testing.assert_close(found["w"], torch.full((2,), 3.0, dtype=torch.float64))
    assert 0 < error < 0.1
    assert reconstruct(snapshots(tmp_path), Profile(30, 0.1), ["w"])[1] < 1e-6


def test_error_falls_with_the_number_of_snapshots():
    def error(count):
        steps = [1000 * (i + 1) / count for i in range(count)]
        inputs = [Profile(step, std) for step in steps for std in (0.05, 0.1)]
        return solve(inputs, [Profile(1000, 0.15)]), inputs

    errors = [profile_error(inputs, Profile(1000, 0.15), x[:, 0]) for x, inputs in map(error, (1, 4, 16))]
    assert errors[0] > 2 * errors[1] > 10 * errors[2]


def test_impossible_reconstructions_say_what_exists(tmp_path):
    with pytest.raises(UsageError, match=r"power\(std=0.07\) cannot .*: the run has no power-function average; train"):
        reconstruct([], Profile(30, 0.07), ["w"])
    write(tmp_path, 30, averages=(NARROW,))
    with pytest.raises(UsageError, match=r"has only the power function of std 0.05 at step 30"):
        reconstruct(snapshots(tmp_path), Profile(30, 0.07), ["w"])
    write(tmp_path, 40, names=("other",))
    with pytest.raises(UsageError, match=r"00000040.safetensors cannot be read .*: delete it to leave it out"):
        reconstruct(snapshots(tmp_path), Profile(40, 0.07), ["w"])
    with pytest.raises(UsageError, match="do not differ: give each once"):
        solve([Profile(10, 0.1), Profile(10, 0.1)], [Profile(10, 0.1)])
