"""Faults of disks and machines: the newest intact checkpoint is used, and a run ends as if nothing had happened."""

import errno
import itertools
import json
import math
import os
import shutil
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from damaged_runs import Killed, batches, config, losses, names, objective, refused, resume, same, train

from unnoise.experiments import load
from unnoise.experiments.cli import main
from unnoise.shared.errors import Notice
from unnoise.shared.metrics.measurement import Evaluation, Measurement
from unnoise.shared.training import Trainer, folder, saving
from unnoise.shared.training.checkpoint import best, list_checkpoints, read
from unnoise.shared.training.folder import read_metrics
from unnoise.shared.training.parts import PARTS, write_parts


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    home = tmp_path_factory.mktemp("whole") / "run"
    train(home)
    return home


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


DAMAGE = {
    "a flipped bit in the weights": lambda home: flip(home / "tensors.safetensors"),
    "a flipped bit in the description": lambda home: flip(home / "checkpoint.json"),
    "a cut file": lambda home: cut(home / "tensors.safetensors"),
    "an empty file": lambda home: (home / "checkpoint.json").write_bytes(b""),
    "a missing file": lambda home: (home / "tensors.safetensors").unlink(),
    "an empty folder": lambda home: [path.unlink() for path in home.iterdir()],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_is_resumed_from_the_newest_intact_checkpoint(whole, run, kind):
    """One line says what is damaged, and the damaged checkpoint is kept under another name."""
    DAMAGE[kind](run / "checkpoints" / "00000006")
    with pytest.warns(Notice) as caught:
        assert load(run).step == 4
    assert len(caught) == 1
    assert "00000006 is damaged (" in str(caught[0].message)
    assert str(caught[0].message).endswith("): 00000004 is used instead")
    with pytest.warns(Notice, match=r"continues at step 4: .*6 is damaged \(.*\) and kept as 00000006.damaged$"):
        resume(run)
    assert names(run) == ["00000004", "00000006", "00000006.damaged"]
    assert same(load(run).objective, load(whole).objective)
    kept = [
        (p / "tensors.safetensors").read_bytes() for p in (run / "checkpoints/00000006", whole / "checkpoints/00000006")
    ]
    assert kept[0] == kept[1]
    assert losses(run) == losses(whole)


def test_damaged_checkpoints_do_not_push_intact_ones_out(run):
    """They do not count among the newest that are kept."""
    for step in (8, 10, 12):
        shutil.copytree(run / "checkpoints" / "00000006", run / "checkpoints" / f"{step:08d}")
        cut(run / "checkpoints" / f"{step:08d}" / "tensors.safetensors")
    with pytest.warns(Notice, match=r"12 is damaged .*10 is damaged .*08 is damaged"):
        resume(run, config(steps=7, keep=1))
    assert names(run) == ["00000007", "00000008.damaged", "00000010.damaged", "00000012.damaged"]
    assert load(run).step == 7


def test_where_none_is_intact_the_line_says_so(run):
    for home in list_checkpoints(run / "checkpoints"):
        cut(home / "tensors.safetensors")
    refused(lambda: load(run), "00000006 is damaged (", "), and so is 00000004: train again")
    refused(lambda: resume(run), "00000006 is damaged (", "), and so is 00000004: train again")
    assert names(run) == ["00000004", "00000006"]


def test_a_checkpoint_of_a_later_version_is_not_passed_over(run):
    path = run / "checkpoints" / "00000006" / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    refused(lambda: load(run), "has format 99")
    refused(lambda: resume(run), "has format 99")


def test_a_checkpoint_that_a_run_in_progress_deletes_is_not_damaged(run, monkeypatch):
    """The list is read anew where the checkpoint has gone in the meantime."""
    real, home = read, run / "checkpoints"

    def reading(path):
        if path.name == "00000006" and path.exists():
            shutil.copytree(path, home / "00000008")
            shutil.rmtree(path)
        return real(path)

    monkeypatch.setattr("unnoise.shared.training.checkpoint.read", reading)
    load(run)


@pytest.fixture(scope="module")
def from_the_command_line(tmp_path_factory):
    home = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "ddpm-smoke", "--training.watch-every", "0", "--out", str(home)]) == 0
    return home


@pytest.mark.filterwarnings("default::unnoise.shared.errors.Notice")
def test_every_command_uses_the_intact_checkpoint(from_the_command_line, tmp_path, monkeypatch, capsys):
    """In one line of stderr; a checkpoint that is asked for is not replaced."""
    run = tmp_path / "run"
    shutil.copytree(from_the_command_line, run)
    first, last = list_checkpoints(run / "checkpoints")
    flip(last / "tensors.safetensors")
    found = Evaluation({}, [Measurement("bits_per_dim", 2.5)])
    monkeypatch.setattr("unnoise.experiments.gaussian.GaussianRecipe.evaluate", lambda *a, **k: found)
    few = ["--count", "2", "--steps", "2"]
    capsys.readouterr()

    def said(status, *arguments):
        assert main([str(a) for a in arguments]) == status
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("unnoise: ")]

    for command in (["sample", run, *few], ["evaluate", run]):
        (line,) = said(0, *command)
        assert f"{last} is damaged (" in line
        assert line.endswith(f"{first.name} is used instead")
    for chosen in (["--checkpoint", int(last.name)], [f"--checkpoint={int(last.name)}"]):
        (line,) = said(2, "sample", run, *few, *chosen)
        assert line.endswith(f"take {first}")
    assert said(0, "sample", run, *few, "--checkpoint", int(first.name)) == []
    (line,) = said(2, "sample", run, *few, "--checkpoint", 3)
    assert line.endswith(f"has those of the steps {int(first.name)}, {int(last.name)}; give one of them, or best")
    (line,) = said(0, "train", "ddpm-smoke", "--out", run, "--resume")
    assert "continues at step" in line
    assert line.endswith(f"and kept as {last.name}.damaged")
    assert said(0, "sample", run, *few) == []


def test_files_reach_the_disk_before_their_names(tmp_path, monkeypatch):
    """After a power failure a checkpoint under its final name is whole."""
    events, real, replace = [], os.fsync, os.replace

    def flushed(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(f"{Path(a).name} > {Path(b).name}"), replace(a, b)))
    train(tmp_path, steps=1)
    assert sorted(events[-6:-2]) == [".00000001.part", "checkpoint.json", "metrics.jsonl", "tensors.safetensors"]
    assert events[-2:] == [".00000001.part > 00000001", "checkpoints"]


OPERATIONS = [
    (saving, "save_file"),
    (saving, "flush"),
    (saving.os, "replace"),
    (saving.shutil, "rmtree"),
    (Path, "write_text"),
]


@contextmanager
def killed_at(number, monkeypatch):
    """Ends the process before the operation of that number on the disk."""
    counted = itertools.count()

    def wrapped(real):
        def call(*args, **kwargs):
            if next(counted) == number:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for place, name in OPERATIONS:
            patch.setattr(place, name, wrapped(getattr(place, name)))
        yield counted


def test_a_process_that_is_killed_at_any_moment_of_writing_loses_one_interval_at_most(whole, tmp_path, monkeypatch):
    """Before each operation on the disk in turn; the run then continues without help, to the same weights."""
    train(tmp_path / "begun", steps=4, keep=1)
    for number in itertools.count():
        home = tmp_path / str(number)
        shutil.copytree(tmp_path / "begun", home)
        with killed_at(number, monkeypatch):
            try:
                train(home, resumed=True, keep=1)
                break
            except Killed:
                pass
        assert load(home).step in (4, 6)
        train(home, resumed=True, keep=1)
        assert same(load(home).objective, load(whole).objective)
        assert losses(home) == losses(whole)
        assert names(home)[-1] == "00000006"
    assert number > 9
    assert names(home) == ["00000006"]


def test_a_checkpoint_of_which_a_part_is_deleted_is_not_found(run, monkeypatch):
    """A process that is killed while it deletes one leaves it under another name, and the next one deletes the rest."""

    def half(path, **options):
        next(path.iterdir()).unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(saving.shutil, "rmtree", lambda path, **options: half(path) if path.exists() else None)
        with pytest.raises(Killed):
            saving.remove(run / "checkpoints" / "00000004")
    assert names(run) == [".00000004.old.part", "00000006"]
    resume(run, config(steps=8))
    assert names(run) == ["00000006", "00000008"]


def test_parts_are_put_together_without_a_moment_without_a_checkpoint(run, monkeypatch, tmp_path):
    """A process that is killed while it does so leaves the parts, or the one file."""
    original = run / "checkpoints" / "00000006"
    description, tensors = read(original)
    (original / "tensors.safetensors").unlink()
    description["digest"] = write_parts(original / PARTS, tensors)["digest"]
    description["digest"]["description"] = saving.digest_of_text(description)
    (original / "checkpoint.json").write_text(json.dumps(description))
    for number in itertools.count():
        home = tmp_path / str(number) / "00000006"
        shutil.copytree(original, home)
        with killed_at(number, monkeypatch):
            try:
                saving.consolidate(home)
                break
            except Killed:
                pass
        assert all(torch.equal(v, tensors[k]) for k, v in read(home)[1].items())
        saving.consolidate(home)
        assert sorted(p.name for p in home.iterdir()) == ["checkpoint.json", "tensors.safetensors"]
    assert number > 4
    assert read(home)[1].keys() == tensors.keys()
    flip(original / PARTS / next(p.name for p in (original / PARTS).iterdir()))
    refused(lambda: read(original), "is damaged", f"{PARTS}/", "differs from what was written")


@contextmanager
def mounted(place, options):
    """A file system in memory."""
    place.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("this user cannot mount file systems")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_full(whole, tmp_path):
    """Of 120 kB; the checkpoint before is intact and is used, and the run goes on where there is room."""
    with mounted(tmp_path / "disk", "size=120k"):
        home = tmp_path / "disk" / "run"

        def fill(average, step):
            if step == 3:
                with suppress(OSError):
                    (tmp_path / "disk" / "other").write_bytes(bytes(200_000))

        line = refused(lambda: train(home, watch=fill, watch_every=1), "No space left on device", "free disk space")
        assert "it is saved up to step 2" in line
        assert (load(home).step, names(home)) == (2, ["00000002"])
        (tmp_path / "disk" / "other").unlink()
        assert same(resume(home), load(whole).average)
        assert losses(home) == losses(whole)


def test_a_disk_that_is_read_only(whole, tmp_path):
    """What is saved can be read there, and the run goes on when it can be written again."""
    with mounted(tmp_path / "disk", "size=2m"):
        home = tmp_path / "disk" / "run"
        train(home, steps=4)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        assert load(home).step == 4
        refused(lambda: resume(home), "cannot write to the folder", "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(tmp_path / "disk")], check=True)
        assert same(resume(home), load(whole).average)


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("what", ["save_file", "flush"])
def test_every_refusal_of_the_disk_leaves_the_checkpoint_before(whole, tmp_path, monkeypatch, error, what):
    real, calls = getattr(saving, what), itertools.count()

    def refuse(*args, **kwargs):
        if next(calls) >= (1 if what == "save_file" else 6):
            raise OSError(error, os.strerror(error))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(saving, what, refuse)
        line = refused(lambda: train(tmp_path), os.strerror(error), "it is saved up to step 2; ")
    assert ("free disk space" in line, "make the folder writable" in line) == (
        error == errno.EDQUOT,
        error != errno.EDQUOT,
    )
    assert names(tmp_path) == ["00000002"]
    assert same(resume(tmp_path), load(whole).average)


@pytest.mark.parametrize(
    ("keep", "every", "left"), [(1, 0, [12]), (3, 0, [8, 10, 12]), (2, 4, [4, 8, 10, 12]), (1, 6, [6, 12])]
)
def test_the_newest_are_kept_and_every_so_many(tmp_path, keep, every, left):
    train(tmp_path, steps=12, keep=keep, keep_every=every)
    assert [int(name) for name in names(tmp_path)] == left


def test_the_best_by_held_out_loss_is_kept_and_loaded(tmp_path, capsys):
    values = dict(zip((2, 4, 6, 8, 10), (3.0, 1.0, math.nan, 2.0, 1.5), strict=True))
    trainer = Trainer(objective(), config(steps=10, keep=2, held_out_every=1), folder=tmp_path)
    trainer.held_out = object()
    trainer._held_out_loss = lambda: values.get(trainer.step, -5.0)
    trainer.fit(batches())
    assert names(tmp_path) == ["00000004", "00000008", "00000010"]
    assert best(tmp_path / "checkpoints").name == "00000004"
    assert load(tmp_path, checkpoint="best").step == 4
    assert load(tmp_path, checkpoint=8).step == load(tmp_path, checkpoint="8").step == 8
    assert load(tmp_path).step == 10
    refused(lambda: load(tmp_path, checkpoint=5), "checkpoint=5: ", "the steps 4, 8, 10; give one of them, or best")
    (tmp_path / "checkpoints" / "00000004" / "checkpoint.json").write_text("{")
    assert load(tmp_path, checkpoint="best").step == 10


def test_each_checkpoint_has_the_held_out_loss_of_its_step(tmp_path):
    """Also where that is not due by its own setting."""
    trainer = Trainer(objective(), config(held_out_every=5), folder=tmp_path)
    trainer.held_out = object()
    trainer._held_out_loss = lambda: 10.0 + trainer.step
    trainer.fit(batches())
    found = {
        line["step"]: line["held_out_loss"]
        for line in read_metrics(tmp_path / "metrics.jsonl")
        if "held_out_loss" in line
    }
    assert found == {2: 12.0, 4: 14.0, 5: 15.0, 6: 16.0}
    assert load(tmp_path).description["held_out_loss"] == 16.0


def test_there_is_no_best_without_held_out_losses(run):
    refused(lambda: load(run, checkpoint="best"), "have no held-out loss; give one of their steps (4, 6)")


def test_flushing_passes_over_folders_that_cannot_be_flushed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    (tmp_path / "a").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(folder.os, "fsync", refuse)
        folder.flush(tmp_path)
        with pytest.raises(OSError, match="Invalid argument"):
            folder.flush(tmp_path / "a")
