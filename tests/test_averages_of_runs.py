"""Averages of runs: several at once, resumed bit for bit, added and dropped, and chosen when a run is loaded."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from small_runs import batches, objective, resumed, same

import unnoise
from unnoise.experiments import load
from unnoise.experiments.cli import main
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.serialization import serialize
from unnoise.shared.training import Trainer, Training
from unnoise.shared.training.averages import Decay, HalfLife, PowerFunction
from unnoise.shared.training.posthoc import snapshots

POWERS = (PowerFunction(0.05), PowerFunction(0.1))
CONFIG = Training(
    steps=40,
    learning_rate=1e-2,
    warmup=2,
    ema=HalfLife(64, rampup=None),
    averages=(*POWERS, PowerFunction(0.15), Decay(0.9, warmup=False)),
    snapshot_every=10,
    save_every=20,
    log_every=20,
)
LAWS = (HalfLife(64, rampup=None), *CONFIG.averages)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, and its trainer."""
    folder = tmp_path_factory.mktemp("averages") / "run"
    trainer = Trainer(objective(), CONFIG, folder=folder)
    trainer.fit(batches())
    return folder, trainer


def stopped_at_twenty(folder, config=CONFIG):
    Trainer(objective(), config, folder=folder).fit(batches())
    shutil.rmtree(folder / "checkpoints" / "00000040")


def test_each_average_is_the_weighted_sum_of_the_weights(tmp_path):
    """The weights after each step are those of the raw objective, taken from checkpoints of every step."""
    config = replace(CONFIG, steps=6, save_every=1, keep=6)
    trainer = Trainer(objective(), config, folder=tmp_path)
    before = {name: p.detach().clone().double() for name, p in trainer.objective.named_parameters()}
    trainer.fit(batches())
    rows = [dict(load(tmp_path, checkpoint=step).objective.named_parameters()) for step in range(1, 7)]
    for law, average in zip(LAWS, trainer.averages, strict=True):
        for name, p in average.named_parameters():
            expected = before[name]
            for step, row in enumerate(rows):
                d = law.decay(step, 8)  # batches have 8 examples
                expected = d * expected + (1 - d) * row[name].double()
            torch.testing.assert_close(p.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_has_the_same_averages_and_snapshots_bit_for_bit(run, tmp_path):
    stopped_at_twenty(tmp_path)
    (tmp_path / "averages/00000030.safetensors").write_bytes(b"of the part that is done anew")
    trainer = resumed(tmp_path, config=CONFIG)
    for a, b in zip(run[1].averages, trainer.averages, strict=True):
        assert same(a, b)
    for step in (10, 20, 30, 40):
        name = f"averages/{step:08d}.safetensors"
        assert (tmp_path / name).read_bytes() == (run[0] / name).read_bytes()


def test_the_checkpoint_names_its_averages(run):
    description = json.loads((run[0] / "checkpoints/00000040/checkpoint.json").read_text())
    assert description["weights"] == {
        "objective.*": "raw",
        "average.*": "HalfLife(images=64.0, rampup=None)",
        "average1.*": "PowerFunction(std=0.05)",
        "average2.*": "PowerFunction(std=0.1)",
        "average3.*": "PowerFunction(std=0.15)",
        "average4.*": "Decay(rate=0.9, warmup=False)",
    }
    assert description["begun"] == [0] * 5


def test_averages_that_are_added_and_dropped_are_named(tmp_path):
    first = replace(CONFIG, averages=(*POWERS, Decay(0.9)))
    stopped_at_twenty(tmp_path, first)
    second = replace(CONFIG, averages=(Decay(0.9), POWERS[1], PowerFunction(0.2)))
    with pytest.warns(Notice) as found:
        trainer = resumed(tmp_path, config=second)
    (text,) = [str(w.message) for w in found if issubclass(w.category, Notice)]
    assert "the average PowerFunction(std=0.2) is new, and starts from the averaged weights of the run" in text
    assert "the average PowerFunction(std=0.05) is dropped" in text
    assert "Decay" not in text
    assert "other settings" not in text
    assert trainer.begun == [0, 0, 0, 20]
    assert load(tmp_path).description["begun"] == [0, 0, 0, 20]
    assert {s.profile.std for s in snapshots(tmp_path) if s.profile.step > 20} == {0.1}  # 0.2 is young
    whole = Trainer(objective(), replace(second, averages=second.averages[:2]))
    whole.fit(batches())
    for a, b in zip(whole.averages, trainer.averages[:3], strict=True):
        assert same(a, b)


def test_another_first_average_continues_the_first(tmp_path):
    stopped_at_twenty(tmp_path)
    config = replace(CONFIG, ema=POWERS[1], averages=CONFIG.averages[:1], steps=21, snapshot_every=0)
    with pytest.warns(Notice, match=r"the average HalfLife\(images=64.0, rampup=None\) is dropped"):
        trainer = resumed(tmp_path, config=config)
    d = POWERS[1].decay(20, 8)
    old = load(tmp_path, checkpoint=20, average=POWERS[1]).average.state_dict()
    raw = load(tmp_path).objective.state_dict()
    for name, value in trainer.averages[0].state_dict().items():
        torch.testing.assert_close(value, d * old[name] + (1 - d) * raw[name], rtol=1e-5, atol=1e-6)


def test_weights_are_chosen_when_a_run_is_loaded(run):
    folder, trainer = run
    assert same(load(folder).average, trainer.averages[0])
    assert same(load(folder, average="raw").average, trainer.objective)
    for law, average in zip(LAWS, trainer.averages, strict=True):
        chosen = load(folder, average=law)
        assert same(chosen.average, average)
        assert chosen.description["weights"]["average.*"] == repr(law)
        assert not any(p.requires_grad for p in chosen.average.parameters())


def distance(a, b):
    return sum(float((p - q).square().sum()) for p, q in zip(a.parameters(), b.parameters(), strict=True)) ** 0.5


def test_a_reconstructed_average_is_the_tracked_one(run, tmp_path):
    """0.15 was tracked, and is reconstructed from 0.05 and 0.1 in a copy of the run that has only these."""
    folder, _ = run
    Trainer(objective(), replace(CONFIG, averages=POWERS, snapshot_every=4), folder=tmp_path).fit(batches())
    for step in (40, 20):
        wanted = load(folder, checkpoint=step, average=PowerFunction(0.15)).average
        found = load(tmp_path, checkpoint=step, average=PowerFunction(0.15))
        nearest = min(distance(load(folder, checkpoint=step, average=power).average, wanted) for power in POWERS)
        assert distance(found.average, wanted) < 0.1 * nearest
    text = found.description["weights"]["average.*"]
    assert text.startswith("PowerFunction(std=0.15), reconstructed from 10 averages: its profile differs by ")
    with pytest.warns(Notice, match="profile differs by 4.*%; more snapshots, or a std nearer to those of the run"):
        load(tmp_path, average=PowerFunction(0.01))


def test_averages_that_a_run_does_not_have_are_refused(run, tmp_path):
    with pytest.raises(UsageError, match=r"no average Decay\(rate=0.5\): give one that it has \(HalfLife"):
        load(run[0], average=Decay(0.5))
    with pytest.raises(UsageError, match="average=fast: give raw, or an average"):
        load(run[0], average="fast")  # pyright: ignore[reportArgumentType]
    Trainer(objective(), Training(steps=2, learning_rate=1e-2, averages=(POWERS[0],)), folder=tmp_path).fit(batches())
    with pytest.raises(UsageError, match=r"power\(std=0.1\) cannot .* only the power function of std 0.05 at step 2"):
        load(tmp_path, average=POWERS[1])


def test_settings(tmp_path):
    assert Training(ema=0.99).ema == Decay(0.99)
    assert serialize(Training(averages=POWERS))["arguments"]["averages"] == [serialize(a) for a in POWERS]
    with pytest.raises(UsageError, match="snapshot_every=5: give power functions"):
        Training(snapshot_every=5, averages=(Decay(0.5),))
    with pytest.raises(UsageError, match="averages="):
        Training(averages=(0.5,))  # pyright: ignore[reportArgumentType]


def command(*arguments):
    return main([str(a) for a in arguments])


def test_the_command_line_tracks_and_chooses_averages(tmp_path, capsys):
    averages = ("--training.ema", "half-life(images=500)", "--training.averages", "power(0.05), power(std=0.1)")
    line = (
        "--training.steps",
        4,
        "--training.snapshot-every",
        2,
        "--training.held-out-every",
        0,
        "--training.watch-every",
        0,
    )
    assert command("train", "ddpm-smoke", "--out", tmp_path / "run", *averages, *line) == 0
    training = unnoise.load(tmp_path / "run").experiment.training
    assert (training.ema, training.averages) == (HalfLife(500), POWERS)
    capsys.readouterr()
    sample = ("sample", tmp_path / "run", "--count", 2, "--steps", 2, "--format", "npz", "--out")
    for text, said in (
        ("raw", "weights: raw"),
        ("power(std=0.07)", "weights: PowerFunction(std=0.07), reconstructed from"),
    ):
        assert command(*sample, tmp_path / "a.npz", "--average", text) == 0
        assert said in capsys.readouterr().out
        (tmp_path / "a.npz").unlink()
    for text, said in (
        ("decay(0.5)", "the run has no average Decay(rate=0.5)"),
        ("fast", "--average: fast is not an Average of this family"),
    ):
        assert command(*sample, tmp_path / "a.npz", "--average", text) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    for options, said in (
        (("--training.averages", "0.5"), "averages="),
        (("--training.ema", "power"), "needs std"),
        (("--training.ema", "1.5"), "ema=1.5"),
        (("--training.ema.images", "0"), "images=0"),
    ):
        more = ("--training.ema", "half-life(5)") if "images" in options[0] else ()
        assert command("train", "ddpm-smoke", "--out", tmp_path / "other", *more, *options) == 2
        assert said in capsys.readouterr().err
