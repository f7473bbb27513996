"""The log of a run: loss by quarter of time, throughput, held-out loss at fixed noise, estimate of the whole run."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from small_runs import Own, batches, objective
from torch import nn
from without_float64 import DEVICE, WithoutFloat64, moved

from unnoise.continuous import DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.experiments.recipes import find
from unnoise.experiments.reproduce import held_out_of
from unnoise.shared.data import Batches
from unnoise.shared.errors import UsageError
from unnoise.shared.objective import Loss
from unnoise.shared.progress import silent
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import Streams, derived_seed
from unnoise.shared.training import Trainer, Training, estimate, log
from unnoise.shared.training.estimate import Estimate, duration, kept, line
from unnoise.shared.training.folder import read_metrics
from unnoise.shared.training.held_out import HeldOut, spread
from unnoise.shared.training.log import Log
from unnoise.shared.training.throughput import flops_per_example, peak_flops, unit_of

CPU = torch.device("cpu")


def loss(total, t, **parts):
    return Loss(torch.tensor(total), {k: torch.tensor(v) for k, v in parts.items()}, torch.tensor(t))


def last_line(folder):
    return read_metrics(folder / "metrics.jsonl")[-1]


def test_a_line_has_the_means_over_examples_and_the_loss_by_quarter_of_time(tmp_path):
    written = Log(tmp_path, 0, clip=2.0)
    written.add(loss([1.0, 2.0], [0.1, 0.3], mse=[5.0, 7.0]), torch.tensor(1.0))
    written.add(loss([3.0, 6.0], [0.25, 1.0], mse=[9.0, 3.0]), torch.tensor(3.0))
    written.write(2, 1e-3, held_out_loss=0.5)
    found = last_line(tmp_path)
    assert found["loss"] == 3.0
    assert found["mse"] == 6.0
    assert {k: v for k, v in found.items() if k.startswith("loss_q")} == {
        "loss_q1": 1.0,
        "loss_q2": 2.5,
        "loss_q4": 6.0,
    }
    assert (found["gradient_norm"], found["clipped"], found["skipped"]) == (2.0, 0.5, 0)
    assert (found["learning_rate"], found["held_out_loss"]) == (1e-3, 0.5)


def test_steps_that_are_not_finite_are_counted_and_left_out_of_every_mean(tmp_path):
    written = Log(tmp_path, 0)
    written.add(loss([1.0, 2.0], [0.1, 0.6]), torch.tensor(1.0))
    written.add(loss([float("nan"), 9.0], [0.1, 0.6]), torch.tensor(1.0))
    written.add(loss([9.0, 9.0], [0.1, 0.6]), torch.tensor(float("inf")))
    written.write(3, 1e-3)
    found = last_line(tmp_path)
    assert (found["loss"], found["loss_q1"], found["loss_q3"], found["skipped"]) == (1.5, 1.0, 2.0, 2)
    assert found["gradient_norm"] == 1.0
    written.add(loss([float("nan")], [0.1]), torch.tensor(1.0))
    with pytest.raises(FloatingPointError, match="no gradient of the last 1 steps was finite"):
        written.write(4, 1e-3)


def test_a_line_waits_for_the_steps_by_which_float16_finds_its_scale(tmp_path):
    written = Log(tmp_path, 0, patience=2)
    for step in (1, 2):
        written.add(loss([1.0], [0.1]), torch.tensor(float("inf")))
        written.write(step, 1e-3)
    assert not (tmp_path / "metrics.jsonl").read_text()
    written.add(loss([3.0], [0.1]), torch.tensor(1.0))
    written.write(3, 1e-3)
    assert (last_line(tmp_path)["loss"], last_line(tmp_path)["skipped"]) == (3.0, 2)
    for _ in range(3):
        written.add(loss([1.0], [0.1]), torch.tensor(float("inf")))
    with pytest.raises(FloatingPointError, match="no gradient of the last 3 steps was finite"):
        written.write(6, 1e-3)


def test_processes_are_added_before_means_are_taken(tmp_path, monkeypatch):
    other = torch.tensor([[5.0, 1.0, 5.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    monkeypatch.setattr(log, "add_over_processes", lambda v: v + other if v.ndim == 2 else v)
    written = Log(tmp_path, 0)
    written.add(loss([1.0], [0.9]), torch.tensor(1.0))
    written.write(1, 1e-3)
    found = last_line(tmp_path)
    assert (found["loss"], found["loss_q1"], found["loss_q4"]) == (3.0, 5.0, 1.0)


def test_throughput_leaves_out_pauses_and_the_first_batch_and_counts_waiting(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(log.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(log, "peak_of", lambda device, precision: 1e4)
    written = Log(tmp_path, 0)
    with written.waiting():
        written.begin(objective(Own()), {"x0": torch.zeros(8, 6)}, 16, "float32")
        clock[0] += 100  # compiles
    for _ in range(2):
        with written.waiting():
            clock[0] += 1
        clock[0] += 3
        written.add(loss([1.0], [0.5]), torch.tensor(1.0))
    with written.pausing():
        clock[0] += 50
    written.write(2, 1e-3)
    found = last_line(tmp_path)
    assert found["examples_per_second"] == 4.0  # 32 examples in 8 seconds
    assert found["data_wait"] == 0.25
    assert found["flop_utilization"] == round(4 * 576 / 1e4, 4)
    assert (found["seconds"], written.apart) == (158.0, 50.0)


@pytest.mark.parametrize(
    ("x0", "name", "each"),
    [
        (torch.zeros(4, 3, 8, 8), "images_per_second", 1),
        (torch.zeros(4, 128, dtype=torch.long), "tokens_per_second", 128),
    ],
)
def test_throughput_is_in_images_or_tokens(tmp_path, monkeypatch, x0, name, each):
    clock = [0.0]
    monkeypatch.setattr(log.time, "perf_counter", lambda: clock[0])
    written = Log(tmp_path, 0)
    with written.waiting():
        written.begin(objective(Own()), {"x0": x0}, 4, "float32")
    clock[0] += 2
    written.add(loss([1.0], [0.5]), torch.tensor(1.0))
    written.write(1, 1e-3)
    assert last_line(tmp_path)[name] == 2 * each


def test_flops_are_three_times_those_of_the_matrix_products_of_one_example():
    made, x0 = objective(Own()).train(), torch.randn(32, 6)
    random, training = torch.get_rng_state(), [m.training for m in made.modules()]
    assert flops_per_example(made, {"x0": x0}) == 3 * 2 * (6 * 8 + 8 * 6)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in made.modules()] == training


def test_an_objective_whose_flops_cannot_be_counted_has_none():
    assert flops_per_example(objective(Own()), {"x0": torch.randn(4, 5)}) is None
    assert flops_per_example(DenoisingLoss.simple(Learned(Free(), Tabulated(linear_betas(40)))), {"x0": X}) is None


class Free(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, label):
        return x * self.scale


X = torch.zeros(2, 6)


def test_the_peak_of_a_gpu_goes_by_whole_words_of_its_name():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", "tf32") == 156e12
    assert peak_flops("NVIDIA A10", "float32") == 31.2e12
    assert peak_flops("NVIDIA L40S", "bfloat16") == 362e12
    assert peak_flops("NVIDIA L4", "bfloat16") == 121e12
    assert peak_flops("Tesla V100-SXM2-16GB", "bfloat16") is None
    assert peak_flops("NVIDIA A10G", "float32") is None
    assert peak_flops("Some other device", "float32") is None


def test_what_is_counted_is_read_from_a_batch():
    assert unit_of(torch.zeros(4, 3, 8, 8)) == ("images", 1)
    assert unit_of(torch.zeros(4, 3, 8, 8, dtype=torch.long)) == ("images", 1)
    assert unit_of(torch.zeros(4, 128, dtype=torch.long)) == ("tokens", 128)
    assert unit_of(torch.zeros(4, 128)) == ("examples", 1)


def test_the_estimate_is_one_line():
    config = Training(steps=800_000, save_every=10_000, keep=4, keep_every=80_000)
    text = line(config, 0, 1 / 11.2, 400_000_000, None)
    assert text == "800,000 steps at 11.2 a second: 20 h; checkpoints 13 x 0.4 GB"
    assert line(config, 799_990, 2.5, 3_100_000, 31_200_000_000).startswith("10 steps at 2.5 s each: 25 s; checkpoints")
    assert line(config, 799_990, 2.5, 3_100_000, 31_200_000_000).endswith("13 x 3.1 MB; at most 31 GB of GPU memory")
    assert [duration(s) for s in (40, 720, 12_600, 72_000, 540_000)] == ["40 s", "12 min", "3.5 h", "20 h", "6.2 days"]


@pytest.mark.parametrize("steps", [7, 40, 61])
def test_the_number_of_checkpoints_is_that_which_a_run_leaves(steps):
    for save_every, keep, keep_every in itertools.product((1, 4, 6, 100), (1, 3), (0, 8, 10)):
        saved = sorted({*range(save_every, steps + 1, save_every), steps})
        left = {s for s in saved if keep_every and s % keep_every == 0} | set(saved[-keep:])
        config = Training(steps=steps, save_every=save_every, keep=keep, keep_every=keep_every)
        assert kept(config) == len(left), config
        assert kept(config, best=True) == min(len(left) + 1, len(saved)), config


def test_the_estimate_times_steps_six_to_twenty_without_pauses(monkeypatch):
    clock, lines = [0.0], []
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    config = Training(steps=120, save_every=50)
    timed = Estimate(lines.append, config, 100, CPU, lambda: {"a": torch.zeros(250_000)})
    for done in range(101, 121):
        clock[0] += 9.0 if done <= 105 else 0.5
        timed.step(done, paused=0.0)
    assert lines == []  # nothing is left to estimate
    config = Training(steps=1020, save_every=500)
    timed = Estimate(lines.append, config, 0, CPU, lambda: {"a": torch.zeros(250_000)})
    for done in range(1, 31):
        clock[0] += 9.0 if done <= 5 else 0.5
        clock[0] += 7.0 if done == 10 else 0.0
        timed.step(done, paused=7.0 if done >= 10 else 0.0)
    assert lines == ["1,000 steps at 2 a second: 8.3 min; checkpoints 2 x 1.0 MB"]


def test_the_held_out_loss_is_the_mean_at_fixed_noise_and_spread_times():
    made = objective().eval()
    examples = HeldOut(batches(), 20, seed=5)
    assert examples.count == 24  # whole batches of 8
    first = examples.loss(made, CPU)
    total = 0.0
    for n in range(3):
        index, x0 = torch.arange(8) + 8 * n, batches().at(n, range(8))["x0"]
        t = made.denoiser.corruption.training_time((index.double() + 0.5) * 0.6180339887498949 % 1)
        with torch.no_grad():
            total += float(made.at(x0, t, generator=Streams(derived_seed(5, "held-out"), index)).total.double().sum())
    assert first == pytest.approx(total / 24, rel=1e-7)
    torch.manual_seed(3)
    assert examples.loss(made, CPU) == first
    assert examples.loss(made, CPU, micro_batch=3) == pytest.approx(first, rel=1e-6)
    with torch.no_grad():
        next(iter(made.parameters())).add_(0.1)
    assert examples.loss(made, CPU) != first


def test_the_held_out_loss_is_the_same_on_a_device_without_float64(tmp_path):
    made, examples = objective().eval(), HeldOut(batches(), 8)
    known = examples.loss(made, CPU)
    with WithoutFloat64():
        assert examples.loss(moved(made), DEVICE) == pytest.approx(known, rel=1e-4)
        written = Log(tmp_path, 0, DEVICE)
        total, norm = (torch.tensor(value).to(DEVICE) for value in ([1.0, 3.0], 2.0))
        written.add(Loss(total, {}, torch.tensor([0.1, 0.9], dtype=torch.float64)), norm)
        written.write(1, 1e-3)
    assert last_line(tmp_path)["loss"] == 2.0


def test_held_out_times_are_spread_evenly():
    u = spread(torch.arange(256))
    assert torch.histc(u.float(), 16, 0, 1).sub(16).abs().max() <= 2


def test_a_run_logs_the_held_out_loss_of_its_averages_when_it_is_due(tmp_path):
    config = Training(steps=7, learning_rate=1e-2, log_every=3, save_every=100, held_out_every=2, held_out_count=8)
    examples, said = HeldOut(batches(), 8), []
    trainer = Trainer(objective(), config, folder=tmp_path, held_out=examples, say=said.append)
    average = trainer.fit(batches())
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [entry["step"] for entry in lines] == [2, 3, 4, 6, 7]
    assert ["held_out_loss" in entry for entry in lines] == [True, False, True, True, True]
    assert lines[-1]["held_out_loss"] == examples.loss(average, CPU)
    assert all(entry["examples_per_second"] > 0 and 0 <= entry["data_wait"] <= 1 for entry in lines)
    assert said == []  # fewer than twenty steps


def test_a_run_of_more_than_twenty_steps_is_estimated_once():
    said = []
    Trainer(objective(), Training(steps=30, save_every=20, keep=1), say=said.append).fit(batches())
    (text,) = said
    assert text.startswith("10 steps at ")
    assert "; checkpoints 1 x " in text


def test_the_held_out_examples_of_a_recipe(tmp_path):
    recipe, said = find("ddpm-smoke"), []
    found = held_out_of(recipe, silent, said.append)
    assert 256 <= found.count < 256 + recipe.data.batch
    off = replace(recipe, training=replace(recipe.training, held_out_every=0))
    assert held_out_of(off, silent, said.append) is None
    assert said == []
    (tmp_path / "train").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "train" / "a.png")
    without = replace(recipe, data=replace(recipe.data, name=str(tmp_path), classes=None))
    assert held_out_of(without, silent, said.append) is None
    assert len(said) == 1
    assert said[0].startswith("no loss on held-out examples in the log: ")


def test_watching_changes_no_weight(tmp_path):
    config = Training(steps=4, learning_rate=1e-2, log_every=1, save_every=100, held_out_every=1, held_out_count=8)
    with_it = Trainer(objective(), config, folder=tmp_path, held_out=HeldOut(batches(), 8)).fit(batches())
    without = Trainer(objective(), config).fit(batches())
    for a, b in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_held_out_set_smaller_than_asked_for_is_taken_whole():
    few = Batches(torch.zeros(10, 6, dtype=torch.uint8), 4, Quantization(17), Quantization.continuous)
    assert HeldOut(few, 1000).count == 8


@pytest.mark.parametrize(("name", "value"), [("held_out_every", -1), ("held_out_count", 0)])
def test_wrong_settings_are_refused(name, value):
    with pytest.raises(UsageError, match=f"{name}={value}: give a whole number"):
        Training(**{name: value})


def test_the_log_is_json(tmp_path):
    Trainer(objective(), Training(steps=2, log_every=1), folder=tmp_path).fit(batches())
    for text in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert json.loads(text)["loss_q1"] >= 0 or "loss_q1" not in json.loads(text)
