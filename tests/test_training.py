"""The trainer: resuming bit for bit, checkpoints without flags, and guards."""

import json
import os
import shutil
import signal
import threading

import numpy as np
import pytest
import torch

from unnoise.continuous import DenoisingLoss, Learned, Tabulated, linear_betas, velocity
from unnoise.discrete import Absorbing, Categorical, D3PMLoss, Marginal, reciprocal
from unnoise.experiments import load
from unnoise.sde import VE
from unnoise.shared.data import Batches
from unnoise.shared.errors import UsageError
from unnoise.shared.networks import MLP, UNet
from unnoise.shared.objective import Loss, Objective, Stratified, independent
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.time_inputs import noise_level
from unnoise.shared.training import Trainer, Training, precision
from unnoise.shared.training.averages import averaging
from unnoise.shared.training.folder import read_metrics
from unnoise.shared.training.optim import clip_gradients, learning_rate


def batches():
    return Batches(
        torch.randint(0, 17, (40, 6), generator=torch.Generator().manual_seed(0)),
        8,
        Quantization(17),
        Quantization.dequantized,
    )


def objective():
    torch.manual_seed(0)
    return DenoisingLoss.simple(Learned(MLP(6, 16, 1), Tabulated(linear_betas(40)), velocity))


CONFIG = Training(steps=12, learning_rate=1e-2, warmup=3, cooldown=4, log_every=3, save_every=5)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = Trainer(objective(), CONFIG, folder=tmp_path / "whole").fit(batches())
    Trainer(objective(), CONFIG, folder=tmp_path / "parts").fit(batches())
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "00000012")  # as if it had stopped at step 10
    resumed = Trainer(objective(), CONFIG, folder=tmp_path / "parts").fit(batches(), resume=True)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    steps = [[line["step"] for line in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "parts")]
    assert steps == [[3, 6, 9, 12]] * 2


def test_ctrl_c_saves_a_whole_step_and_resumes(tmp_path):
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    endless = Training(steps=10**6, learning_rate=1e-3, log_every=10, save_every=10**6)
    with pytest.raises(KeyboardInterrupt):
        Trainer(objective(), endless, folder=tmp_path).fit(batches())
    saved = load(tmp_path).step
    assert saved > 0
    trainer = Trainer(objective(), Training(steps=saved + 2, learning_rate=1e-3), folder=tmp_path)
    trainer.fit(batches(), resume=True)
    assert trainer.step == saved + 2


def test_checkpoints_need_no_flags(tmp_path):
    average = Trainer(objective(), CONFIG, folder=tmp_path).fit(batches())
    loaded = load(tmp_path)
    assert (loaded.step, loaded.quantization, loaded.shape) == (12, Quantization(17), (6,))
    x, t = torch.randn(4, 6), torch.tensor(0.4)
    assert torch.equal(loaded.average.denoiser(x, t), average.denoiser(x, t))
    assert not torch.equal(loaded.objective.denoiser(x, t), average.denoiser(x, t))
    text = json.loads((tmp_path / "checkpoints" / "00000012" / "checkpoint.json").read_text())
    assert text["weights"]["objective.*"] == "raw"
    assert set(text["versions"]) == {"python", "torch", "unnoise"}


@pytest.mark.parametrize(
    "make",
    [
        objective,
        lambda: DenoisingLoss.score_matching(
            Learned(UNet((1, 4, 4), 8, (1, 2), 1, (), classes=3), VE(sigma_max=9.0), time_input=noise_level),
            Stratified(2.0),
        ),
        lambda: D3PMLoss(
            Categorical(UNet((2, 4), 8, (1,), 1, (), categories=6), Absorbing(5, reciprocal(7)), Marginal()), ce=0.3
        ),
    ],
)
def test_descriptions_round_trip(make):
    first = make()
    text = json.loads(json.dumps(serialize(first)))
    again = deserialize(text)
    assert serialize(again) == serialize(first)
    assert [p.shape for p in again.parameters()] == [p.shape for p in first.parameters()]


def test_numbers_of_numpy_are_described_as_numbers():
    made = DenoisingLoss.simple(
        Learned(MLP(np.int64(6), np.int32(16), 1), Tabulated(linear_betas(np.int64(40))), sigma_data=np.float32(1))
    )
    assert json.dumps(serialize(made)) == json.dumps(
        serialize(DenoisingLoss.simple(Learned(MLP(6, 16, 1), Tabulated(linear_betas(40)), sigma_data=1.0)))
    )
    with pytest.raises(UsageError, match=r"cannot contain numpy\.ndarray"):
        serialize(np.zeros(2))


def test_a_description_can_name_only_what_is_marked():
    for evil in ("os.system", "unnoise.shared.training.checkpoint.save", "builtins.eval"):
        with pytest.raises(UsageError, match="which no imported module defines"):
            deserialize({"class": evil, "arguments": {}})
        with pytest.raises(UsageError, match="which no imported module defines"):
            deserialize({"function": evil})


class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 6)

    def forward(self, x, label):
        return self.layer(x)


def test_a_network_of_ones_own(tmp_path):
    average = Trainer(DenoisingLoss.simple(Learned(Own(), Tabulated(linear_betas(40)))), CONFIG, folder=tmp_path).fit(
        batches()
    )
    with pytest.raises(UsageError, match=r"a network of your own, .*Own: give it as load\(path, network="):
        load(tmp_path)
    loaded = load(tmp_path, network=Own())
    x, t = torch.randn(4, 6), torch.tensor(0.4)
    assert torch.equal(loaded.average.denoiser(x, t), average.denoiser(x, t))
    assert not torch.equal(loaded.objective.denoiser(x, t), average.denoiser(x, t))


def test_damaged_or_missing_checkpoints_say_so(tmp_path):
    with pytest.raises(UsageError, match="there is no checkpoint in"):
        load(tmp_path / "nothing")
    Trainer(objective(), CONFIG, folder=tmp_path / "run").fit(batches())
    with pytest.raises(UsageError, match="there are some in .*run"):
        load(tmp_path / "rum")
    tensors = tmp_path / "run" / "checkpoints" / "00000012" / "tensors.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="is damaged"):
        load(tensors.parent)
    tensors.write_bytes(whole)
    path = tensors.with_name("checkpoint.json")
    text = path.read_text()
    path.write_text(text.replace('"width": 16', '"width": 32'))
    with pytest.raises(UsageError, match='is damaged .*differs from what was written; .*remove its entry "digest"'):
        load(path.parent)
    path.write_text(text.replace('"width": 16', '"width": 32').replace('"digest"', '"of another file"'))
    with pytest.raises(UsageError, match=r"do not match: .*is \(16,\), not \(32,\)"):
        load(tmp_path / "run")
    for broken in (text[:100], "[1, 2]", "{}"):
        path.write_text(broken)
        with pytest.raises(UsageError, match="is damaged .*: take .*00000010"):
            load(path.parent)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    Trainer(objective(), CONFIG, folder=tmp_path).fit(batches())
    with pytest.raises(UsageError, match="already has a run"):
        Trainer(objective(), CONFIG, folder=tmp_path).fit(batches())
    other = DenoisingLoss.simple(Learned(MLP(6, 16, 1), Tabulated(linear_betas(40))))
    with pytest.raises(UsageError, match=r"other settings: denoiser.predicts.function: was .*velocity, now .*noise"):
        Trainer(other, CONFIG, folder=tmp_path).fit(batches(), resume=True)


class Poisoned(Objective):
    """Gives a loss that is not finite at some steps."""

    def __init__(self, every):
        super().__init__()
        self.denoiser = Learned(MLP(6, 8, 1), Tabulated(linear_betas(40)))
        self.every, self.calls, self.times = every, 0, independent

    def at(self, x0, t, *, generator=None, **cond):
        self.calls += 1
        loss = self.denoiser(x0, torch.tensor(0.5)).square().mean(1)
        return Loss(loss / (0.0 if self.calls % self.every == 0 else 1.0), {}, t)


def test_a_gradient_that_is_not_finite_is_skipped_and_many_are_refused(tmp_path):
    torch.manual_seed(0)
    trainer = Trainer(Poisoned(every=5), Training(steps=10, log_every=10))
    average = trainer.fit(batches())
    assert all(torch.isfinite(p).all() for p in [*trainer.parameters, *average.parameters()])
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        Trainer(Poisoned(every=1), Training(steps=10, log_every=5)).fit(batches())


def test_clipping_learning_rate_and_average():
    p = torch.nn.Parameter(torch.zeros(4))
    p.grad = torch.full((4,), 3.0)
    assert float(clip_gradients([p], 1.0)) == 6.0
    assert float(p.grad.norm()) == pytest.approx(1, rel=1e-5)
    p.grad = torch.tensor([1.0, torch.nan, 0, 0])
    clip_gradients([p], 1.0)
    assert (p.grad == 0).all()
    config = Training(steps=10, learning_rate=1.0, warmup=4, cooldown=5)
    assert [learning_rate(config, n) for n in range(10)] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    )
    a, b = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(a.weight)
    torch.nn.init.ones_(b.weight)
    averaging(a, b)(0.1)
    assert a.weight.item() == pytest.approx(0.9)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [(name, value) for name in ("steps", "log_every", "save_every") for value in (0, -1, 2.5, 10.0, True, None, "many")]
    + [(name, value) for name in ("warmup", "cooldown", "watch_every") for value in (-1, 0.5, False, "few")]
    + [(name, value) for name in ("learning_rate", "epsilon", "clip") for value in (0, -1.0, NAN, None, "fast")]
    + [(name, INF) for name in ("learning_rate", "epsilon", "weight_decay", "ema")]
    + [
        ("weight_decay", -0.1),
        ("weight_decay", NAN),
        ("ema", 1.0),
        ("ema", -0.1),
        ("ema", NAN),
        ("ema", "slow"),
        ("precision", "half"),
    ]
    + [("betas", value) for value in ((0.9,), (0.9, 0.99, 0.999), 0.9, (0.9, 1.0), (NAN, 0.9), ("a", "b"))],
)
def test_settings_are_checked(name, wrong):
    with pytest.raises(UsageError, match=rf"^{name}=.*: give ") as caught:
        Training(**{name: wrong})
    assert "\n" not in str(caught.value)


def test_settings_of_numpy_are_numbers(tmp_path):
    """They are described in a checkpoint as Python's own."""
    config = Training(
        steps=np.int64(3), learning_rate=np.float32(0.5), betas=[np.float64(0.5), 0.9], warmup=np.int32(1), clip=INF
    )
    assert [type(v) for v in (config.steps, config.learning_rate, *config.betas, config.warmup)] == [
        int,
        float,
        float,
        float,
        int,
    ]
    Trainer(objective(), config, folder=tmp_path).fit(batches())
    assert load(tmp_path).description["config"]["arguments"]["clip"] == INF


def test_what_cannot_be_described_shows_before_training(tmp_path):
    def label(schedule, t):
        return t

    unmarked = DenoisingLoss.simple(Learned(MLP(6, 8, 1), Tabulated(linear_betas(40)), time_input=label))
    with pytest.raises(UsageError, match="mark the class or function"):
        Trainer(unmarked, CONFIG, folder=tmp_path)
    Trainer(unmarked, CONFIG).fit(batches())  # without a folder nothing needs a description


def test_dropout_is_resumed_too(tmp_path):
    def dropping():
        torch.manual_seed(0)
        return DenoisingLoss.simple(Learned(UNet((1, 2, 3), 8, (1,), 1, (), dropout=0.5), Tabulated(linear_betas(40))))

    k = torch.randint(0, 17, (40, 1, 2, 3), generator=torch.Generator().manual_seed(0))
    whole = Trainer(dropping(), CONFIG, folder=tmp_path / "whole").fit(Batches(k, 8, Quantization(17)))
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "00000012")
    with (tmp_path / "part" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # a crash in the middle of a line
    resumed = Trainer(dropping(), CONFIG, folder=tmp_path / "part").fit(Batches(k, 8, Quantization(17)), resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_losses_are_float32_under_autocast():
    torch.manual_seed(0)
    denoiser = Learned(UNet((1, 4, 4), 8, (1,), 1, ()), Tabulated(linear_betas(40)))
    categorical = Categorical(UNet((1, 4, 4), 8, (1,), 1, (), categories=5), Absorbing(4, reciprocal(7)))
    with torch.autocast("cpu", torch.bfloat16):
        assert DenoisingLoss.simple(denoiser)(torch.randn(2, 1, 4, 4)).total.dtype == torch.float32
        assert D3PMLoss(categorical)(torch.randint(0, 4, (2, 1, 4, 4))).total.dtype == torch.float32


def test_names_of_earlier_versions_are_known():
    import unnoise.experiments  # noqa: F401
    from unnoise.shared.serialization import deserialize

    data = deserialize({"class": "unnoise.experiments.experiment.Data", "arguments": {"name": "digits", "batch": 3}})
    assert (type(data).__module__, data.batch) == ("unnoise.experiments.image_data", 3)


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """An argument that has come since, with a default, is not another setting."""
    Trainer(objective(), CONFIG, folder=tmp_path).fit(batches())
    for file in tmp_path.glob("checkpoints/*/checkpoint.json"):
        stored = json.loads(file.read_text())
        del stored["digest"], stored["frozen"]
        del stored["objective"]["arguments"]["denoiser"]["arguments"]["sigma_data"]
        file.write_text(json.dumps(stored))
    Trainer(objective(), CONFIG, folder=tmp_path).fit(batches(), resume=True)


def test_automatic_precision_is_that_of_the_device(tmp_path, monkeypatch):
    """`precision="auto"`: half precision where the processor multiplies such numbers natively, float32 elsewhere."""
    cpu = torch.device("cpu")
    for flags, native in (("fpu avx2 avx512_bf16 sse", True), ("fpu amx_bf16", True), ("fpu avx2 avx512f", False)):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
        monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
        chosen, why = precision.precision_of("auto", cpu)
        assert (chosen.autocast is torch.bfloat16) is native
        assert why.startswith(f"precision {'bfloat16' if native else 'float32'}, because cpu")
        assert precision.precision_of("bfloat16", cpu) == (precision.PRECISIONS["bfloat16"], "")
        assert precision.precision_of("float32", cpu)[0].autocast is None
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "none")
    assert precision.precision_of("auto", cpu)[0].name == "float32"
    for capability, native in (((7, 5), False), ((8, 0), True), ((9, 0), True)):  # Turing, Ampere, Hopper
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert (precision.precision_of("auto", torch.device("cuda"))[0].name == "bfloat16") is native
