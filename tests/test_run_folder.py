"""One process at a time writes into a run's folder, and what cannot be written there shows before training."""

import contextlib
import re
import signal
import subprocess
import sys

import pytest
import torch
from small_runs import CONFIG, Own, batches, objective, resumed, same
from torch import nn

from unnoise.experiments.studies import demo
from unnoise.shared.data import Batches
from unnoise.shared.errors import UsageError
from unnoise.shared.networks import MLP
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training, folder
from unnoise.shared.training.folder import locked, refuse_several


def test_networks_spread_over_devices_are_refused():
    wrapped = nn.DataParallel(MLP(6, 16, 1))
    with pytest.raises(
        UsageError, match="wrapped in DataParallel, and the trainer connects the processes itself: give the network"
    ):
        Trainer(objective(wrapped), CONFIG)


def test_one_of_several_processes_that_are_not_connected_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for place in (None, tmp_path / "run"):
        with pytest.raises(UsageError, match=r"one of 2 processes .* that are not connected, .*: train within"):
            Trainer(objective(), CONFIG, folder=place)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("known_from", ["environment", "process group"])
def test_commands_of_one_process_refuse_several(tmp_path, monkeypatch, capsys, known_from):
    from unnoise.experiments.cli import main

    if known_from == "environment":
        monkeypatch.setenv("WORLD_SIZE", "2")
    else:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    for command in (["reproduce", "ddpm-smoke"], ["demo"]):
        assert main([*command, "--out", str(tmp_path / "run")]) == 2
        err = capsys.readouterr().err
        assert re.fullmatch(r"unnoise: this is one of 2 processes .*: start one, without torchrun.*\n", err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("world_size", ["", "1", "many", "-3"])
def test_one_process_alone_is_not_refused(monkeypatch, world_size):
    monkeypatch.setenv("WORLD_SIZE", world_size)
    refuse_several()


def test_two_runs_at_a_time_do_not_write_into_one_folder(tmp_path):
    seen = []

    def watch(average, step):
        seen.append(step)
        for resume in (False, True):
            with pytest.raises(
                UsageError, match="another process trains into .*run: wait for it, end it, or choose another folder"
            ):
                Trainer(objective(), CONFIG, folder=tmp_path / "run").fit(batches(), resume=resume)

    config = Training(**{**vars(CONFIG), "watch_every": 2})
    plain = Trainer(objective(), config).fit(batches())
    assert same(plain, Trainer(objective(), config, folder=tmp_path / "run", watch=watch).fit(batches()))
    assert seen == [2, 4, 6]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoints", "metrics.jsonl"]
    with pytest.raises(UsageError, match="already has a run"):  # nothing is held after an error either
        Trainer(objective(), config, folder=tmp_path / "run").fit(batches())
    resumed(tmp_path / "run", config=Training(**{**vars(config), "steps": 7}))


def test_the_lock_of_a_killed_process_is_lifted(tmp_path):
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); "
    code += "print(flush=True); time.sleep(60)"
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

    for network, words in (
        (Extra(), "cannot contain denoiser.network._extra_state, a dict"),
        (Sparse(), "denoiser.network.table"),
    ):
        with pytest.raises(UsageError, match=words):
            Trainer(objective(network), CONFIG, folder=tmp_path / "run")
    with pytest.raises(UsageError, match="cannot contain builtins.object"):
        Trainer(objective(), CONFIG, folder=tmp_path / "run", experiment=object())
    k = torch.zeros(40, 6, dtype=torch.uint8)
    data = Odd(k, 8, Quantization(17), Quantization.dequantized)
    data.state = {"position": torch.tensor(3)}
    made = objective()
    made.forward = untouched
    with pytest.raises(UsageError, match="the batches' state_dict is not JSON"):
        Trainer(made, CONFIG, folder=tmp_path / "run").fit(data)
    frozen = objective().requires_grad_(False)
    with pytest.raises(UsageError, match="the objective has no parameter to train"):
        Trainer(frozen, CONFIG)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"3"])
def test_a_damaged_note_of_the_demo(tmp_path, content):
    (tmp_path / "demo.json").write_bytes(content)
    with pytest.raises(UsageError, match="demo.json .*choose another folder with --out"):
        demo.prepare(demo.Demo(out=tmp_path, resume=True, smoke=True))


def test_a_demo_that_trains_is_not_moved_away(tmp_path):
    out = demo.prepare(demo.Demo(out=tmp_path / "demo", smoke=True))
    (out / "ddpm").mkdir()
    with locked(out / "ddpm"), pytest.raises(UsageError, match="another process trains into"):
        demo.prepare(demo.Demo(out=out, smoke=True))
    demo.prepare(demo.Demo(out=out, smoke=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo", "demo.1"]


@pytest.mark.parametrize(
    "place", ["a file", "below a file", "a broken link", "a long name", "no character", "a number"]
)
def test_a_run_needs_a_folder(tmp_path, place):
    (tmp_path / "file").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    odd = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "run", "a broken link": tmp_path / "link"}
    odd |= {"a long name": tmp_path / ("a" * 300), "no character": "a\0b", "a number": 3}
    with pytest.raises(UsageError, match="cannot write to the folder"):
        Trainer(objective(), CONFIG, folder=odd[place])
    assert (tmp_path / "file").read_text() == "years of work"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Trainer(objective(), {"steps": 3}), r"config=.*: give Training\(steps"),
        (lambda: Trainer(objective(), None), r"config=None: give Training\(steps"),
        (lambda: Trainer(MLP(6, 16, 1), CONFIG), "MLP is not an objective: give one of a denoiser"),
        (lambda: Trainer(objective().denoiser, CONFIG), "Learned is not an objective"),
        (lambda: Trainer(objective().to("meta"), CONFIG), "the objective lies on the device meta"),
        (lambda: Training(device=0), "device=0: give the name"),
        (lambda: Training(device=None), "device=None: give the name"),
        (lambda: Training(device="meta"), "device=meta: give the name"),
    ],
)
def test_what_a_trainer_does_not_take_is_refused_in_one_line(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_a_device_may_be_torchs(tmp_path):
    Trainer(objective(), Training(**{**vars(CONFIG), "device": torch.device("cpu")}), folder=tmp_path).fit(batches())
