"""`unnoise doctor`: each check on a run that has the fault, and on one that has not."""

import json
import math
from dataclasses import replace

import pytest
import torch
from small_runs import batches, objective
from torch import nn

from unnoise.continuous import Learned, Tabulated, linear_betas
from unnoise.discrete import Categorical, Uniform, cosine
from unnoise.experiments import doctor, model_checks
from unnoise.experiments.cli import main
from unnoise.experiments.doctor import Check, Run, report
from unnoise.experiments.model_checks import balanced, classes_seen, color_of_samples, effect_of_conditions
from unnoise.shared.data import image_dataset
from unnoise.shared.training import Trainer, Training, load
from unnoise.shared.training.averages import Decay, HalfLife

CONFIG = Training(steps=1000, learning_rate=1e-3, warmup=100, cooldown=100, ema=0.99)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    Trainer(objective(), Training(steps=2, log_every=1), folder=folder).fit(batches())
    return load(folder)


@pytest.fixture
def run(checkpoint, tmp_path):
    """Returns a function that makes a run of 40 lines from formulas of the line's number from 0 to 1."""

    def make(config=CONFIG, done=1000, **quantities):
        lines = [
            {"step": 25 * n + 25} | {k: v(n / 39) if callable(v) else v for k, v in quantities.items()}
            for n in range(40)
        ]
        return Run(tmp_path, lines, checkpoint._replace(step=done), config)

    return make


def wrong(check):
    assert check is not None
    return check.wrong


def test_weights_that_are_not_finite(run, checkpoint):
    assert wrong(doctor.finite_weights(run())) == ""
    name = next(k for k in checkpoint.tensors if k.startswith("average."))
    broken = {**checkpoint.tensors, name: torch.full((3,), math.nan)}
    found = doctor.finite_weights(replace(run(), checkpoint=checkpoint._replace(tensors=broken)))
    assert f"1 of {len(broken) - slots(checkpoint)} tensors of weights have NaN" in wrong(found)
    assert name in wrong(found)


def slots(checkpoint):
    return sum(k.startswith("optimizer.") for k in checkpoint.tensors)


@pytest.mark.parametrize("average", [Decay(0.9999), Decay(0.99, warmup=False), HalfLife(4000)])
def test_averages_that_have_forgotten_the_initial_weights(run, average):
    assert wrong(doctor.age_of_average(run(replace(CONFIG, ema=average)))) == ""


def test_an_average_that_is_too_young(run):
    found = wrong(doctor.age_of_average(run(replace(CONFIG, ema=Decay(0.9999, warmup=False)))))
    assert "they still contain 90% of the initial ones (half-life 6,931 steps, 1,000 steps done)" in found
    assert "--training.ema 0.9862" in found  # a half-life of a twentieth of the run
    assert wrong(doctor.age_of_average(run(replace(CONFIG, ema=Decay(0.9999, warmup=False)), done=60_000))) == ""


def test_a_learning_rate_that_is_never_reached(run):
    assert wrong(doctor.peak_learning_rate(run())) == ""
    assert wrong(doctor.peak_learning_rate(run(replace(CONFIG, warmup=0, cooldown=1000)))) == ""
    found = wrong(doctor.peak_learning_rate(run(replace(CONFIG, warmup=1000, cooldown=1000))))
    assert "the learning rate reaches only 0.000251 of 0.001, because warm-up (1000) and" in found


def test_skipped_gradients(run):
    assert wrong(doctor.skipped_gradients(run(skipped=0))) == ""
    assert "5.0% of the steps (50) were skipped" in wrong(doctor.skipped_gradients(run(skipped=1.25)))


def test_gradients_that_are_nearly_always_clipped(run):
    settled = {"clipped": lambda x: float(x < 0.3), "gradient_norm": lambda x: 3.0 if x < 0.3 else 0.2}
    assert wrong(doctor.clipped_gradients(run(**settled))) == ""
    found = wrong(doctor.clipped_gradients(run(clipped=0.99, gradient_norm=7.0)))
    assert "99% of the later steps had their gradient clipped (median norm 7, clip 1)" in found
    assert "100% of the later" in wrong(doctor.clipped_gradients(run(gradient_norm=7.0)))  # of an earlier version
    assert doctor.clipped_gradients(run(replace(CONFIG, clip=math.inf), clipped=1.0, gradient_norm=7.0)) is None


def test_a_loss_that_rises_or_stays_flat(run):
    def noise(x):
        return 0.02 * math.sin(100 * x)

    assert wrong(doctor.trend_of_loss(run(loss=lambda x: 0.1 + math.exp(-20 * x) + noise(x)))) == ""
    rising = wrong(doctor.trend_of_loss(run(loss=lambda x: 0.1 + 0.2 * x + noise(x))))
    assert rising.startswith("the loss rises: 0.17")
    assert "the loss hardly falls: 1.0" in wrong(doctor.trend_of_loss(run(loss=lambda x: 1.0 + noise(x))))
    assert doctor.trend_of_loss(replace(run(), lines=[{"step": 1, "loss": 1.0}])) is None


def test_spikes_at_small_times(run):
    calm = {f"loss_q{n}": lambda x, n=n: (1 + 0.3 * math.sin(70 * x)) / n**3 for n in (1, 2, 3, 4)}
    assert wrong(doctor.spikes_at_small_times(run(**calm))) == ""
    spike = calm | {"loss_q1": lambda x: 9.0 if abs(x - 0.8) < 0.02 else 1.0}
    assert "spikes up to 9 times its median, at other times up to 1.3" in wrong(
        doctor.spikes_at_small_times(run(**spike))
    )
    everywhere = dict.fromkeys(calm, spike["loss_q1"])  # one bad batch, at all times
    assert wrong(doctor.spikes_at_small_times(run(**everywhere))) == ""


def test_overfitting(run):
    falls = {"loss": lambda x: 1 - 0.5 * x}
    assert wrong(doctor.held_out_trend(run(**falls, held_out_loss=lambda x: 1.1 - 0.4 * x))) == ""
    found = wrong(doctor.held_out_trend(run(**falls, held_out_loss=lambda x: 0.9 + (x - 0.5) ** 2)))
    assert "held-out loss rose from 0.9002 at step 500 to 1.1" in found
    both = {"loss": lambda x: 1 + x, "held_out_loss": lambda x: 0.9 + (x - 0.5) ** 2}
    assert wrong(doctor.held_out_trend(run(**both))) == ""  # this is a rising loss
    assert doctor.held_out_trend(run(loss=1.0)) is None


def test_a_device_that_waits_or_is_idle(run):
    assert wrong(doctor.waiting_for_data(run(data_wait=0.03))) == ""
    assert "waits for data 43% of the time: give --training.workers 4 (now 0)" in wrong(
        doctor.waiting_for_data(run(data_wait=0.43))
    )
    assert wrong(doctor.utilization(run(flop_utilization=0.35))) == ""
    idle = wrong(doctor.utilization(run(flop_utilization=0.031)))
    assert "uses 3.1% of its peak speed: give --training.precision bfloat16, --training.compile, a larger" in idle
    assert doctor.utilization(run()) is None


def test_classes_without_examples():
    assert wrong(classes_seen(torch.tensor([0, 1, 2, 2]), 3)) == ""
    found = wrong(classes_seen(torch.tensor([0, 2, 2]), 4, ("a", "b", "c", "d")))
    assert "has never seen 2 of its 4 classes (b, d)" in found
    assert classes_seen(None, 3) is None
    assert classes_seen(torch.tensor([0]), None) is None


class Labeled(nn.Module):
    conditions = ("label",)

    def __init__(self, effect, categories=0):
        super().__init__()
        self.effect, self.categories = effect, categories
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, time, label):
        if self.categories:
            logits = torch.zeros(*x.shape, self.categories)
            logits[..., 0] = self.effect * label[:, None]
            return logits
        return 0.1 * x * self.weight + self.effect * label[:, None]


@pytest.mark.parametrize("categories", [0, 5])
@pytest.mark.parametrize("effect", [0.0, 1e-5, 0.5])
def test_conditions_without_effect(effect, categories):
    network = Labeled(effect, categories)
    if categories:
        denoiser, x0 = Categorical(network, Uniform(5, cosine(20))), torch.randint(0, 5, (8, 6))
    else:
        denoiser, x0 = Learned(network, Tabulated(linear_betas(40))), torch.randn(8, 6)
    (found,) = effect_of_conditions(denoiser, x0, {"label": torch.arange(8) % 3})
    assert ("the condition label has no effect" in wrong(found)) == (effect < 0.1)
    assert effect_of_conditions(denoiser, x0, {"label": torch.ones(8, dtype=torch.long)}) == []


def test_a_shift_of_color():
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(60, 180, (400, 3, 4, 4), generator=generator)
    samples = torch.randint(60, 180, (64, 3, 4, 4), generator=generator)
    assert wrong(color_of_samples(samples, data, 256)) == ""
    shifted = samples.clone()
    shifted[:, 1] += 20
    found = wrong(color_of_samples(shifted, data, 256))
    assert "mean of channel 1 0.54" in found
    assert "channel 0" not in found
    flat = (samples.float() * 0.5 + 60).long()
    assert "contrast of channel 2" in wrong(color_of_samples(flat, data, 256))
    bright = torch.randint(0, 180, (400, 3, 1, 1), generator=generator) + data // 3  # a shift within its standard error
    assert wrong(color_of_samples(bright[:4] + 20, bright, 256)) == ""
    assert wrong(color_of_samples(bright + 20, bright, 256)) != ""


def test_samples_are_compared_with_as_many_images_of_each_class():
    digits = image_dataset("digits")
    kept = digits._replace(k=digits.k[:300], label=digits.label[:300])
    counts = torch.bincount(kept.label, minlength=10)
    assert len(balanced(kept, 10)) == 10 * int(counts.min())
    assert len(balanced(kept, None)) == 300


def test_the_report_has_a_line_for_each_fault_or_all_figures():
    fine, bad = Check("a 1"), Check("b 2", "b is 2, which is much: give 1")
    assert report("runs/a", [fine, fine]) == "runs/a: nothing looks wrong in 2 checks\n- a 1\n- a 1"
    text = report("runs/a", [fine, bad], ["the data"])
    assert text.splitlines() == [
        "runs/a: 1 of 2 checks found something",
        "- b is 2, which is much: give 1",
        "not looked at: the data",
    ]


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "ddpm-smoke", "--out", "run", "--training.log-every", "1"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(
        model_checks, "color_of_samples", lambda samples, data, levels: Check(f"{len(samples)} samples")
    )
    assert main(["doctor", "run", "--count", "4"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("run: ")
    assert main(["doctor", "run", "--count", "0"]) == 0
    assert "not looked at: the color of samples, because of --count 0" in capsys.readouterr().out
    assert main(["doctor", "run", "--count", "1"]) == 2
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert main(["doctor", "run", "--count", "0", "--data", "nowhere"]) == 0
    text = capsys.readouterr().out
    assert "not looked at: the log, because run/metrics.jsonl has no lines" in text
    assert "not looked at: the model on its data, because " in text
    assert json.loads((next((tmp_path / "run" / "checkpoints").iterdir()) / "checkpoint.json").read_text())["step"]
