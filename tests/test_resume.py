"""What may change between a run and its resumption: each parameter keeps its own state, and every difference is refused or said."""

import contextlib
import copy
import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unnoise.continuous import Learned, Simple, Tabulated, linear_betas
from unnoise.experiments import load
from unnoise.shared.data import Batches
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.networks import MLP
from unnoise.shared.scale import Scale
from unnoise.shared.training import Trainer, Training
from unnoise.shared.training.checkpoint import numbered
from unnoise.shared.training.folder import locked, refuse_several

CONFIG = Training(steps=6, learning_rate=1e-2, warmup=2, log_every=3, save_every=3)


def batches(features=6, levels=17):
    k = torch.randint(0, levels, (40, features), generator=torch.Generator().manual_seed(0))
    return Batches(k, 8, Scale(levels), Scale.dequantised)


class Own(nn.Module):
    """Two layers, declared in either order: the names are the same, and the order of the parameters is not."""

    def __init__(self, order=("first", "second")):
        super().__init__()
        for name in order:
            torch.manual_seed(len(name))
            setattr(self, name, nn.Linear(6, 8) if name == "first" else nn.Linear(8, 6))
        self.unused = nn.Parameter(torch.zeros(3))  # a module's own parameters come before those of its layers

    def forward(self, x, label):
        return self.second(torch.tanh(self.first(x)))


def objective(network=None, frozen=(), **options):
    torch.manual_seed(0)
    network = MLP(6, 16, 1) if network is None else network
    for name in frozen:
        network.get_submodule(name).requires_grad_(False)
    return Simple(Learned(network, Tabulated(linear_betas(40)), **options))


def stopped_at_three(folder, make=objective, config=CONFIG):
    Trainer(make(), config, folder=folder).fit(batches())
    shutil.rmtree(folder / "checkpoints" / "00000006")


def resumed(folder, make=objective, config=CONFIG, data=None):
    trainer = Trainer(make(), config, folder=folder)
    trainer.fit(batches() if data is None else data, resume=True)
    return trainer


def slots(trainer):
    """The optimizer's state by name."""
    names = {p: name.replace("_orig_mod.", "") for name, p in trainer.objective.named_parameters()}
    return {names[p]: found for p, found in trainer.optimizer.state.items()}


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def by_number(home, names):
    """Rewrites a checkpoint as earlier versions wrote it: the optimizer's state by place, and no digests."""
    tensors, description = load_file(home / "tensors.safetensors"), json.loads((home / "checkpoint.json").read_text())
    del description["digest"], description["frozen"]
    for key in [k for k in tensors if k.startswith("optimizer.")]:
        name, _, slot = key.removeprefix("optimizer.").rpartition(".")
        tensors[f"optimizer.{names.index(name)}.{slot}"] = tensors.pop(key)
    save_file(tensors, home / "tensors.safetensors")
    (home / "checkpoint.json").write_text(json.dumps(description))


@pytest.mark.parametrize("part", ["time", "leave", "layers"])
@pytest.mark.parametrize("thawed", [True, False])
def test_state_stays_with_its_parameter(tmp_path, part, thawed):
    """What was trained then and now goes on with its state; the rest starts afresh, and is named."""
    then, now = ((part,), ()) if thawed else ((), (part,))
    stopped_at_three(tmp_path, lambda: objective(frozen=then))
    stored = load_file(tmp_path / "checkpoints" / "00000003" / "tensors.safetensors")
    words = (
        "frozen there and trained here: the optimizer state starts" if thawed else "trained there and frozen here: the optimizer state is"
    )
    trainer = Trainer(objective(frozen=now), CONFIG, folder=tmp_path)
    with pytest.warns(Notice, match=rf"goes on at step 3: \d+ parameters \(denoiser.network.{part}.* were {words}"):
        trainer._open(batches(), resume=True)
    found = slots(trainer)
    trained = {name for name, p in trainer.objective.named_parameters() if p.requires_grad}
    assert set(found) == {name for name in trained if f".{part}." not in name}
    for name, state in found.items():
        for slot in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(state[slot], stored[f"optimizer.{name}.{slot}"])
    with pytest.warns(Notice):
        trainer = resumed(tmp_path, lambda: objective(frozen=now))
    for name, p in trainer.objective.named_parameters():
        assert torch.isfinite(p).all()
        if name in trained:
            assert slots(trainer)[name]["step"] == (3 if f".{part}." in name else 6)
            assert slots(trainer)[name]["exp_avg"].shape == p.shape
    assert same(trainer.objective, load(tmp_path).objective)
    resumed(tmp_path, lambda: objective(frozen=now), Training(**{**vars(CONFIG), "steps": 8}))  # now without a word


def test_the_order_of_parameters_does_not_matter(tmp_path):
    """A network whose layers are declared in another order goes on as if it were the same, for it is."""
    whole = Trainer(objective(Own()), CONFIG, folder=tmp_path / "whole").fit(batches())
    stopped_at_three(tmp_path / "parts", lambda: objective(Own()))
    trainer = resumed(tmp_path / "parts", lambda: objective(Own(("second", "first"))))
    expected = dict(whole.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in trainer.average.named_parameters())


def own(frozen=(), used=False):
    network = Own()
    if used:
        network.register_parameter("unused", None)
    return objective(network, frozen=frozen)


def trained_names(made):
    return [name for name, p in made.named_parameters() if p.requires_grad]


def test_state_by_number_is_taken_where_the_parameters_are_the_same(tmp_path):
    """Of checkpoints of earlier versions, bit for bit; a parameter without a gradient, first, has a number and no state."""
    assert trained_names(own())[0] == "denoiser.network.unused"
    whole = Trainer(own(), CONFIG, folder=tmp_path / "whole").fit(batches())
    stopped_at_three(tmp_path / "parts", own)
    home = tmp_path / "parts" / "checkpoints" / "00000003"
    by_number(home, trained_names(own()))
    assert not any(".0." in k for k in load_file(home / "tensors.safetensors") if k.startswith("optimizer."))
    assert same(whole, resumed(tmp_path / "parts", own).average)
    stored = load_file(tmp_path / "parts" / "checkpoints" / "00000006" / "tensors.safetensors")
    assert "optimizer.denoiser.network.second.bias.exp_avg" in stored


@pytest.mark.parametrize(
    ("then", "now"), [((), ("first",)), (("first",), ()), (("first",), ("second",)), (("second",), ("first",)), (("second",), ())]
)
def test_state_by_number_of_other_parameters_is_not_taken(tmp_path, then, now):
    """Fewer, more, and as many of other shapes."""
    stopped_at_three(tmp_path, lambda: own(then, used=True))
    by_number(tmp_path / "checkpoints" / "00000003", trained_names(own(then, used=True)))
    with pytest.warns(Notice, match="its optimizer state belongs to other parameters than are trained here, and starts afresh"):
        trainer = resumed(tmp_path, lambda: own(now, used=True))
    assert len(slots(trainer)) == len(trainer.parameters) > 0
    for p, state in trainer.optimizer.state.items():
        assert (state["exp_avg"].shape, state["step"]) == (p.shape, 3)


def test_a_checkpoint_without_optimizer_state_says_that_it_starts_afresh(tmp_path):
    stopped_at_three(tmp_path)
    file = tmp_path / "checkpoints" / "00000003" / "tensors.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.startswith("optimizer.")}, file)
    with pytest.warns(Notice, match="holds no optimizer state, which starts afresh"):
        resumed(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 2e-2),
        ("betas", (0.9, 0.99)),
        ("epsilon", 1e-6),
        ("weight_decay", 0.1),
        ("warmup", 4),
        ("cooldown", 2),
        ("clip", 0.5),
        ("ema", 0.5),
        ("bfloat16", None),
        ("seed", 3),
    ],
)
def test_settings_that_change_the_course_are_said(tmp_path, name, value):
    stopped_at_three(tmp_path)
    config = Training(**{**vars(CONFIG), name: value})
    with pytest.warns(Notice, match=rf"other settings \({name}.*: .* there, .* here\): they hold from here on"):
        trainer = resumed(tmp_path, config=config)
    if name in ("betas", "weight_decay"):
        assert trainer.optimizer.param_groups[0][name] == value
    with pytest.warns(Notice, match=f"{name}.*it is finished, and stays as it is"):
        resumed(tmp_path)


def test_settings_of_pace_may_change(tmp_path):
    stopped_at_three(tmp_path)
    more = Training(**{**vars(CONFIG), "steps": 8, "log_every": 1, "save_every": 2, "watch_every": 1, "device": "cpu"})
    assert resumed(tmp_path, config=more).step == 8
    with pytest.warns(Notice, match="it has 8 steps, more than steps=6, and nothing is trained"):
        assert resumed(tmp_path).step == 8


def test_other_data_are_refused(tmp_path):
    stopped_at_three(tmp_path)
    for data, words in (
        (batches(levels=9), r"the data differ from those of the run in .*: scale.levels: 17 there, 9 here"),
        (batches(features=5), r"the data differ .*: shape\[0\]: 6 there, 5 here"),
        (Batches(torch.zeros(40, 6, dtype=torch.uint8), 4, Scale(17), Scale.dequantised), "batch: 8 there, 4 here"),
    ):
        with pytest.raises(UsageError, match=words):
            resumed(tmp_path, data=data)
    for k, labels in ((torch.zeros(40, 6), None), (batches().k, {"label": torch.zeros(40)})):
        data = Batches(k, 8, Scale(17), Scale.dequantised, labels)
        with pytest.warns(Notice, match="the data have other values than the checkpoint's: they hold from here on"):
            Trainer(objective(), CONFIG, folder=tmp_path)._open(data, resume=True)
        assert data.position == 3
    assert Batches(batches().k.to(torch.uint8), 8, Scale(17)).content() == batches().content()
    endless = ({"x0": torch.randn(8, 6)} for _ in range(100))
    with pytest.warns(Notice, match="the batches start from their beginning, for they have no load_state_dict"):
        resumed(tmp_path, data=endless)


def test_another_recipe_is_said_and_another_model_refused(tmp_path):
    from dataclasses import replace

    from unnoise.experiments import ddpm

    recipe = ddpm.smoke()
    Trainer(objective(), CONFIG, folder=tmp_path, experiment=recipe).fit(batches())
    shutil.rmtree(tmp_path / "checkpoints" / "00000006")
    other = replace(recipe, data=replace(recipe.data, name="elsewhere"), training=replace(recipe.training, log_every=1))
    with pytest.warns(Notice, match=r"other settings \(data.name: digits there, elsewhere here\)"):
        Trainer(objective(), CONFIG, folder=tmp_path, experiment=other).fit(batches(), resume=True)
    with pytest.raises(UsageError, match="has other settings: denoiser.network.width: 16 there, 8 here"):
        resumed(tmp_path, lambda: objective(MLP(6, 8, 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision_is_part_of_a_run(tmp_path, dtype):
    """Weights come back in their own precision, and a run does not go on in another."""
    made = objective().to(dtype)
    expected = Trainer(made, CONFIG, folder=tmp_path).fit({"x0": torch.randn(8, 6, dtype=dtype)} for _ in range(6))
    loaded = load(tmp_path).average
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert same(expected, loaded)
    with pytest.raises(UsageError, match=rf"has denoiser.network.* in {dtype}, and it is torch.float32 here: give the run's precision"):
        resumed(tmp_path, config=Training(**{**vars(CONFIG), "steps": 8}))


def compiled(network):
    return torch.compile(network, backend="eager")


def compiled_in_place(network):
    network.compile(backend="eager")
    return network


def compiled_inside(network):
    network.layers[0] = torch.compile(network.layers[0], backend="eager")
    return network


WAYS = {"whole": compiled, "in place": compiled_in_place, "inside": compiled_inside}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler asks
@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_network_leaves_ordinary_checkpoints(tmp_path, way):
    """They are loaded, and gone on with, by the plain network and the compiled one alike, bit for bit."""

    def made():
        torch.manual_seed(0)
        return objective(WAYS[way](MLP(6, 16, 1)))

    plain = Trainer(objective(), CONFIG, folder=tmp_path / "plain").fit(batches())
    average = Trainer(made(), CONFIG, folder=tmp_path / "run").fit(batches())
    assert same(plain, average)
    loaded = load(tmp_path / "run")
    assert same(plain, loaded.average)
    assert type(loaded.average.denoiser.network) is MLP
    both = [load_file(tmp_path / name / "checkpoints" / "00000006" / "tensors.safetensors") for name in ("plain", "run")]
    assert both[0].keys() == both[1].keys()
    assert all(torch.equal(v, both[1][k]) for k, v in both[0].items())
    for folder in ("plain", "run"):
        shutil.rmtree(tmp_path / folder / "checkpoints" / "00000006")
    assert same(plain, resumed(tmp_path / "plain", made).average)
    assert same(plain, resumed(tmp_path / "run").average)


def test_a_compiled_network_of_ones_own(tmp_path):
    average = Trainer(objective(compiled(Own())), CONFIG, folder=tmp_path).fit(batches())
    with pytest.raises(UsageError, match=r"a network of your own, .*\.Own: give it"):
        load(tmp_path)
    for network in (Own(), compiled(Own())):
        loaded = load(tmp_path, network=network).average
        assert same(average, loaded)
        x = torch.randn(3, 6)
        assert torch.equal(loaded.denoiser(x, torch.tensor(0.5)), average.denoiser(x, torch.tensor(0.5)))


def test_a_run_of_a_compiled_network_of_earlier_versions_is_read(tmp_path):
    """These named the wrapper, and had its mark in every name."""
    average = Trainer(objective(), CONFIG, folder=tmp_path).fit(batches())
    for home in numbered(tmp_path / "checkpoints"):
        by_number(home, trained_names(objective()))
        tensors, description = load_file(home / "tensors.safetensors"), json.loads((home / "checkpoint.json").read_text())
        save_file({k.replace("network.", "network._orig_mod."): v for k, v in tensors.items()}, home / "tensors.safetensors")
        description["objective"]["arguments"]["denoiser"]["arguments"]["network"] = {"external": "torch._dynamo.eval_frame.OptimizedModule"}
        (home / "checkpoint.json").write_text(json.dumps(description))
    assert same(average, load(tmp_path, network=MLP(6, 16, 1)).average)
    shutil.rmtree(tmp_path / "checkpoints" / "00000006")
    torch.manual_seed(0)
    assert same(average, resumed(tmp_path, lambda: objective(compiled(MLP(6, 16, 1)))).average)


def test_networks_spread_over_devices_are_refused():
    wrapped = nn.DataParallel(MLP(6, 16, 1))
    with pytest.raises(UsageError, match="wrapped in DataParallel, and training runs on one device: give the network itself"):
        Trainer(objective(wrapped), CONFIG)


@pytest.mark.parametrize("told", ["environment", "process group"])
def test_one_of_several_processes_is_refused(tmp_path, monkeypatch, capsys, told):
    from unnoise.experiments.cli import main

    if told == "environment":
        monkeypatch.setenv("WORLD_SIZE", "2")
    else:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for folder in (None, tmp_path / "run"):
        with pytest.raises(UsageError, match=r"one of 2 processes .*: start one, without torchrun"):
            Trainer(objective(), CONFIG, folder=folder)
    for command in (["train", "ddpm-smoke"], ["reproduce", "ddpm-smoke"], ["demo"]):
        assert main([*command, "--out", str(tmp_path / "run")]) == 2
        err = capsys.readouterr().err
        assert re.fullmatch(r"unnoise: this is one of 2 processes.*\n", err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("told", ["", "1", "many", "-3"])
def test_one_process_alone_is_not_refused(monkeypatch, told):
    monkeypatch.setenv("WORLD_SIZE", told)
    refuse_several()


def test_two_runs_at_a_time_do_not_write_into_one_folder(tmp_path):
    seen = []

    def watch(average, step):
        seen.append(step)
        for resume in (False, True):
            with pytest.raises(UsageError, match="another process trains into .*run: wait for it, end it, or choose another folder"):
                Trainer(objective(), CONFIG, folder=tmp_path / "run").fit(batches(), resume=resume)

    config = Training(**{**vars(CONFIG), "watch_every": 2})
    plain = Trainer(objective(), config).fit(batches())
    assert same(plain, Trainer(objective(), config, folder=tmp_path / "run", watch=watch).fit(batches()))
    assert seen == [2, 4, 6]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoints", "metrics.jsonl"]
    with pytest.raises(UsageError, match="holds a run already"):  # nothing is held after an error either
        Trainer(objective(), config, folder=tmp_path / "run").fit(batches())
    resumed(tmp_path / "run", config=Training(**{**vars(config), "steps": 7}))


def test_the_lock_of_a_killed_process_is_lifted(tmp_path):
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(UsageError, match="another process trains"):
            Trainer(objective(), CONFIG, folder=tmp_path).fit(batches())
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    Trainer(objective(), CONFIG, folder=tmp_path).fit(batches())


def test_a_folder_that_is_moved_away_keeps_its_lock(tmp_path):
    """The lock goes with the folder; giving it back leaves the one of the folder that came in its place."""
    (tmp_path / "run").mkdir()
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(tmp_path / "run"))
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        with pytest.raises(UsageError), locked(tmp_path / "moved"):
            pass
        stack.enter_context(locked(tmp_path / "run"))
    with locked(tmp_path / "run"), locked(tmp_path / "moved"):
        pass


def test_a_file_system_without_locks_goes_without(tmp_path, monkeypatch):
    from unnoise.shared.training import folder

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(folder.fcntl, "flock", refuse)
    with locked(tmp_path):
        pass
    monkeypatch.setattr(folder, "fcntl", None)
    with locked(tmp_path):
        pass


class Odd(Batches):
    state = None

    def state_dict(self):
        return self.state


def test_what_a_checkpoint_cannot_hold_shows_before_training(tmp_path):
    """None of it after the last step."""

    def untouched(*args, **kwargs):
        raise AssertionError("it was trained")

    class Extra(Own):
        def get_extra_state(self):
            return {"a": 1}

    class Sparse(Own):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.eye(3).to_sparse())

    for network, words in ((Extra(), "cannot hold denoiser.network._extra_state, a dict"), (Sparse(), "denoiser.network.table")):
        with pytest.raises(UsageError, match=words):
            Trainer(objective(network), CONFIG, folder=tmp_path / "run")
    with pytest.raises(UsageError, match="cannot describe builtins.object"):
        Trainer(objective(), CONFIG, folder=tmp_path / "run", experiment=object())
    k = torch.zeros(40, 6, dtype=torch.uint8)
    data = Odd(k, 8, Scale(17), Scale.dequantised)
    data.state = {"position": torch.tensor(3)}
    made = objective()
    made.forward = untouched
    with pytest.raises(UsageError, match="the batches' state_dict is no JSON"):
        Trainer(made, CONFIG, folder=tmp_path / "run").fit(data)
    frozen = copy.deepcopy(objective()).requires_grad_(False)
    with pytest.raises(UsageError, match="no parameter of the objective is trained"):
        Trainer(frozen, CONFIG)


@pytest.mark.filterwarnings("default::unnoise.shared.errors.Notice")
def test_the_command_line_says_what_changed(tmp_path, monkeypatch, capsys):
    """Once, in one line, on the error's side; and goes on."""
    from unnoise.experiments.cli import main

    monkeypatch.chdir(tmp_path)
    train = ["train", "ddpm-smoke", "--training.watch-every", "0"]
    assert main(train) == 0
    capsys.readouterr()
    assert main([*train, "--training.steps", "10", "--resume"]) == 0
    assert "unnoise:" not in capsys.readouterr().err
    more = ["--training.steps", "12", "--training.learning-rate", "0.5", "--sampling-steps", "3", "--resume"]
    assert main([*train, *more]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unnoise:")]
    assert len(said) == 1
    assert re.search(
        r"goes on at step 10: other settings \(learning_rate: 0.001 there, 0.5 here; sampling_steps: \d+ there, 3 here\)", said[0]
    )
    (tmp_path / "runs" / "empty" / "checkpoints").mkdir(parents=True)
    assert main([*train, "--resume", "--out", "runs/empty"]) == 2
    assert "there is nothing to resume in runs/empty" in capsys.readouterr().err
