"""One and several processes, one pass and micro-batches, draw the same numbers and train the same model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from safetensors.torch import load_file

from unnoise.experiments.cli import main
from unnoise.shared.distributed import share
from unnoise.shared.networks.dropout import Dropout, dropouts, give_rows
from unnoise.shared.objective import Stratified, antithetic, independent, times_of_rows
from unnoise.shared.random import Streams, kept, normal, place_words, row_words, uniform
from unnoise.shared.training import load

STEPS, HALF = 12, 6


def same_weights(a, b, **close):
    """Whether two runs end with the same raw and averaged weights and the same state of the optimizer."""
    a, b = load(a).tensors, load(b).tensors
    assert a.keys() == b.keys()
    assert {name.partition(".")[0] for name in a} >= {"objective", "average", "average1", "average2", "optimizer"}
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=name, **close)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of one process, and those that two processes trained, some from checkpoints of one."""
    home = tmp_path_factory.mktemp("runs")
    processes.run(home / "one", STEPS)
    processes.run(home / "importance", STEPS, kind="importance")
    processes.run(home / "half", HALF)
    for name in ("half-replicated", "half-sharded"):
        shutil.copytree(home / "half", home / name)
    jobs = [
        {"folder": "replicated", "steps": STEPS},
        {"folder": "sharded", "steps": STEPS, "parallel": "sharded", "micro_batch": 4, "keep": 9},
        {"folder": "half-replicated", "steps": STEPS, "resume": True, "micro_batch": 2},
        {"folder": "half-sharded", "steps": STEPS, "resume": True, "parallel": "sharded"},
        {"folder": "unseeded", "steps": STEPS, "kind": "unseeded", "parallel": "sharded"},
        {"folder": "importance-two", "steps": STEPS, "kind": "importance", "micro_batch": 4},
    ]
    (home / "jobs.json").write_text(json.dumps([job | {"folder": str(home / job["folder"])} for job in jobs]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = Path(__file__).parent
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*command, str(root / "processes.py"), str(home / "jobs.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return home


@pytest.mark.parametrize("name", ["replicated", "sharded", "half-replicated", "half-sharded", "unseeded"])
def test_two_processes_train_what_one_trains(trained, name):
    """Losses to 1e-5 over 12 steps, with dropout, flips, dropped conditions, several averages; also after a resume."""
    one, two = processes.losses(trained / "one"), processes.losses(trained / name)
    assert len(one) == len(two) == STEPS
    assert two == pytest.approx(one, rel=1e-5)
    same_weights(trained / "one", trained / name, rtol=1e-4, atol=1e-5)


def test_divided_weights_train_what_replicated_ones_train(trained):
    same_weights(trained / "replicated", trained / "sharded", rtol=1e-4, atol=1e-5)
    last = trained / "sharded" / "checkpoints" / f"{STEPS:08d}"
    assert sorted(p.name for p in last.iterdir()) == ["checkpoint.json", "tensors.safetensors"]


@pytest.mark.parametrize("name", ["replicated", "sharded", "half-sharded"])
def test_snapshots_of_power_functions_are_whole(trained, name):
    for step in (HALF, STEPS):
        one, two = (load_file(trained / run / f"averages/{step:08d}.safetensors") for run in ("one", name))
        assert one.keys() == two.keys() == {f"average1.{n}" for n, _ in processes.objective().named_parameters()}
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["replicated", "sharded"])
def test_one_process_goes_on_from_two(trained, tmp_path, name):
    shutil.copytree(trained / name, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{STEPS:08d}")
    assert (tmp_path / "run" / "checkpoints" / f"{HALF:08d}" / "parts").is_dir() is (name == "sharded")
    processes.run(tmp_path / "run", STEPS, resume=True)
    assert processes.losses(tmp_path / "run") == pytest.approx(processes.losses(trained / "one"), rel=1e-5)


def test_adaptive_times_see_the_whole_batch(trained):
    """Importance sampling with two processes and micro-batches records the losses that it records in one pass."""
    one, two = trained / "importance", trained / "importance-two"
    assert processes.losses(two) == pytest.approx(processes.losses(one), rel=1e-5)
    counts = [load(run).tensors["objective.counts"] for run in (one, two)]
    assert torch.equal(*counts)
    assert int(counts[0].sum()) == 12 * STEPS
    assert (counts[0] >= 2).all(), "the steps are drawn by their losses at the end"


@pytest.mark.parametrize("size", [1, 5])
def test_micro_batches_train_what_one_pass_trains(trained, tmp_path, size):
    processes.run(tmp_path / "run", STEPS, micro_batch=size, recompute=size == 5)
    assert processes.losses(tmp_path / "run") == pytest.approx(processes.losses(trained / "one"), rel=1e-5)
    same_weights(trained / "one", tmp_path / "run", rtol=1e-4, atol=1e-5)


def test_shares_are_a_partition():
    for count in range(20):
        for parts in range(1, 7):
            found = [share(count, n, parts) for n in range(parts)]
            assert [i for rows in found for i in rows] == list(range(count))
            assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.parametrize("times", [independent, antithetic, Stratified(), Stratified(2.0)])
def test_times_of_a_part_are_those_of_the_whole(times):
    """And so is the noise that is drawn after them."""
    whole = Streams(3, range(10), 10)
    expected, noise = times_of_rows(times, 10, whole), normal((10, 4), whole)
    for rows in (range(3), range(3, 8), range(8, 10)):
        part = Streams(3, rows, 10)
        assert torch.equal(times_of_rows(times, len(rows), part), expected[rows.start : rows.stop])
        assert torch.equal(normal((len(rows), 4), part), noise[rows.start : rows.stop])


def test_times_of_a_part_do_not_wait_for_a_device():
    """The device meta cannot be read, as one whose kernels are still queued can be read only after a wait."""
    part, other = Streams(3, range(3, 8), 10), Streams(3, range(3, 8), 10)
    assert uniform((5, 2), part, device="meta").device.type == "meta"
    uniform((5, 2), other)
    assert torch.equal(times_of_rows(antithetic, 5, part), times_of_rows(antithetic, 5, other))
    assert torch.equal(normal((5, 4), part), normal((5, 4), other))


def test_dropout_keeps_each_value_with_its_probability():
    """Independently over rows, places, layers and seeds: means and pair correlations within 5 standard errors."""
    p, n, cpu = 0.3, 64 * 2000, torch.device("cpu")
    words = [row_words(Streams(seed, range(64), 64).keys(), 2) for seed in (0, 1)]
    masks = [
        kept(rows[layer], place_words(layer, 2000, cpu), p).reshape(64, 40, 50).double()
        for rows in words
        for layer in (0, 1)
    ]
    for mask in masks:
        assert abs(float(mask.mean()) - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
        assert (mask.mean((1, 2)) - (1 - p)).abs().max() < 5 * (p * (1 - p) / 2000) ** 0.5
    pairs = [(a, b) for i, a in enumerate(masks) for b in masks[:i]]
    pairs += [(mask[1:], mask[:-1]) for mask in masks] + [(mask[..., 1:], mask[..., :-1]) for mask in masks]
    pairs += [(mask[:, 1:], mask[:, :-1]) for mask in masks] + [(mask[32:], mask[:32]) for mask in masks]
    for a, b in pairs:
        correlation = ((a - 1 + p) * (b - 1 + p)).mean() / (p * (1 - p))
        assert abs(float(correlation)) < 5 / a.numel() ** 0.5


def test_dropout_belongs_to_the_example():
    layers = torch.nn.Sequential(Dropout(0.5), Dropout(0.5))
    x = torch.ones(6, 100)
    give_rows(dropouts(layers), Streams(0, range(6), 6))
    whole = layers(x)
    assert set(whole.unique().tolist()) == {0.0, 4.0}
    assert 0.15 < float((whole > 0).float().mean()) < 0.35, "the two layers have masks of their own"
    give_rows(dropouts(layers), Streams(0, range(2, 4), 6))
    assert torch.equal(layers(x[2:4]), whole[2:4])
    assert torch.equal(layers.eval()(x), x)
    give_rows(dropouts(layers), None)
    layers.train()
    torch.manual_seed(0)
    assert not torch.equal(layers(x), layers(x))


def test_checkpoints_are_put_together_on_demand(trained, tmp_path, capsys):
    """By `unnoise consolidate RUN`; the tensors stay as they are."""
    shutil.copytree(trained / "sharded", tmp_path / "run")
    half = tmp_path / "run" / "checkpoints" / f"{HALF:08d}"
    before = load(half).tensors
    assert main(["consolidate", str(tmp_path / "run")]) == 0
    assert f"{half}/tensors.safetensors\n" in capsys.readouterr().out
    assert sorted(p.name for p in half.iterdir()) == ["checkpoint.json", "tensors.safetensors"]
    after = load(half).tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["replicated", "sharded"])
def test_the_command_trains_in_two_processes(tmp_path, parallel):
    """`torchrun ... -m unnoise train RECIPE`, with one output; then `unnoise sample` in one process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "unnoise"]
    options = ["--training.parallel", parallel, "--training.micro-batch", "16", "--out", "run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "train", "ddpm-smoke", *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("training ddpm-smoke") == 1
    one = [sys.executable, "-m", "unnoise", "sample", "run", "--count", "2", "--steps", "2"]
    subprocess.run(one, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
