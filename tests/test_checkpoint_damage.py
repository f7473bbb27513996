"""Checkpoints, logs and disks that fail.

What is loaded is what was saved, or one line says what is wrong and what to do.
"""

import errno
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from damaged_runs import CONFIG, batches, objective, refused, resume
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import nn

from unnoise.continuous import DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.experiments import load
from unnoise.experiments.cli import main
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.metrics.measurement import Evaluation, Measurement
from unnoise.shared.networks import MLP
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training, folder, saving
from unnoise.shared.training.checkpoint import list_checkpoints, newest
from unnoise.shared.training.digests import digest
from unnoise.shared.training.folder import read_metrics, write_text
from unnoise.shared.training.parts import write_parts

FULL = OSError(errno.ENOSPC, "No space left on device")
FULL_DISK = "(No space left on device): free disk space, or choose another place\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    home = tmp_path_factory.mktemp("trained") / "run"
    Trainer(objective(), CONFIG, folder=home).fit(batches())
    return home


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def tried(call):
    """What the call gives, or the line of its error."""
    try:
        return call(), ""
    except UsageError as error:
        line = str(error)
    assert "\n" not in line
    return None, line


def weights(found):
    return {f"{name}.{k}": v for name in ("objective", "average") for k, v in getattr(found, name).state_dict().items()}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(["tensors.safetensors", "checkpoint.json"]),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(-1, 7),
)
def test_a_flipped_bit_or_a_cut_is_found(trained, tmp_path, file, where, bit):
    """Anywhere in either file: the weights are those that were saved, or there is one line."""
    expected, home = weights(load(trained)), tmp_path / "00000006"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(trained / "checkpoints" / "00000006", home)
    content = bytearray((home / file).read_bytes())
    place = int(where * len(content))
    if bit < 0:
        del content[place:]
    else:
        content[place] ^= 1 << bit
    (home / file).write_bytes(content)
    found, said = tried(lambda: load(home))
    if found is None:
        assert said.startswith("the checkpoint ")
        return
    assert bit >= 0
    assert (found.step, found.quantization, found.shape) == (6, Quantization(17), (3,))
    assert all(torch.equal(v, expected[k]) for k, v in weights(found).items())


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_damaged_description_of_earlier_versions_ends_in_a_line(trained, tmp_path, where, bit):
    """These have no digest, and so a change can be read as another value.

    What cannot be built is said to be damaged.
    """
    home = tmp_path / "00000006"
    if not home.exists():
        shutil.copytree(trained / "checkpoints" / "00000006", home)
    description = json.loads((trained / "checkpoints" / "00000006" / "checkpoint.json").read_text())
    del description["digest"], description["frozen"]
    content = bytearray(json.dumps(description).encode())
    content[int(where * len(content))] ^= 1 << bit
    (home / "checkpoint.json").write_bytes(content)
    tried(lambda: load(home))


def test_weights_of_every_kind_are_looked_at(run):
    """One bit in every third tensor; the last of a float's bits changes it by a millionth."""
    home = run / "checkpoints" / "00000006"
    file = home / "tensors.safetensors"
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    for name, held in list(json.loads(whole[8 : 8 + size]).items())[::3]:
        content = bytearray(whole)
        content[8 + size + held["data_offsets"][0]] ^= 1
        file.write_bytes(content)
        refused(
            lambda: load(home),
            "is damaged",
            f"{name.split('.')[0]}.* differ from those that were written",
            "take ",
            "00000004",
        )
    file.write_bytes(whole)
    load(run)


def test_digests_tell_names_dtypes_and_shapes_apart():
    v = torch.arange(6.0)
    cases = [
        {"a": v},
        {"b": v},
        {"a": v.reshape(2, 3)},
        {"a": v.view(torch.int32)},
        {"a": v, "b": v[:0]},
        {"a": v.double()},
        {},
    ]
    cases += [{"a": v.to(dtype)} for dtype in (torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.complex64)]
    assert len({digest(case) for case in cases}) == len(cases)
    assert digest({"b": v, "a": v[0]}) == digest({"a": v[0].clone(), "b": v.clone()})
    assert digest({"a": v.reshape(2, 3).T}) == digest({"a": v.reshape(2, 3).T.contiguous()})


def test_checkpoints_without_digests_are_loaded_as_before(run):
    expected = weights(load(run))
    for home in list_checkpoints(run / "checkpoints"):
        description = json.loads((home / "checkpoint.json").read_text())
        del description["digest"], description["frozen"]
        (home / "checkpoint.json").write_text(json.dumps(description))
    assert all(torch.equal(v, expected[k]) for k, v in weights(load(run)).items())


def test_a_description_that_was_changed_by_hand_says_how_to_take_it(run):
    path = run / "checkpoints" / "00000006" / "checkpoint.json"
    description = json.loads(path.read_text())
    description["quantization"]["arguments"]["levels"] = 33
    path.write_text(json.dumps(description))
    refused(
        lambda: load(path.parent),
        "checkpoint.json differs from what was written; if you changed it yourself",
        'remove its entry "digest"',
    )
    del description["digest"]
    path.write_text(json.dumps(description))
    assert load(run).quantization == Quantization(33)


@pytest.mark.parametrize("lost", ["checkpoint.json", "tensors.safetensors", "both"])
def test_a_half_copied_checkpoint_is_passed_over_with_a_line(run, lost):
    """The newest intact one of a run is taken; a checkpoint that is asked for by its own folder is not replaced."""
    home = run / "checkpoints" / "00000006"
    for name in ("checkpoint.json", "tensors.safetensors"):
        if lost in (name, "both"):
            (home / name).unlink()
    with pytest.warns(Notice, match=r"00000006 is damaged \(No such file.*\): 00000004 is used instead"):
        assert load(run).step == 4
    if lost != "both":
        refused(lambda: load(home), "is damaged", "take ", "00000004")
    with pytest.warns(Notice, match=r"continues at step 4: .*00000006 is damaged .* and kept as 00000006.damaged$"):
        resume(run)
    assert load(run).step == 6
    assert sorted(p.name for p in home.parent.iterdir()) == ["00000004", "00000006", "00000006.damaged"]


def test_other_things_beside_the_checkpoints_are_no_checkpoints(run):
    home = run / "checkpoints"
    for name in ("00000009 (copy)", "00000010.bak", "notes"):
        (home / name).mkdir()
    (home / "00000011").write_text("a file")
    (home / ".00000012.part").mkdir()
    assert load(run).step == 6
    resume(run, Training(**{**vars(CONFIG), "steps": 8}))
    assert not (home / ".00000012.part").exists()  # left by a process that was killed


def test_the_newest_is_the_largest_number(tmp_path):
    for name in ("99999999", "100000000", "00000005"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest(tmp_path).name == "100000000"
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == ["00000005", "99999999", "100000000"]


def failing(real, allowed, error=FULL):
    """A function that does its work some times, and then fails as a full disk does."""
    calls = []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) > allowed:
            raise error
        return real(*args, **kwargs)

    return call


def half(tensors, path):
    """What a full disk leaves of a file."""
    Path(path).write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("what", ["tensors", "tensors in Rust", "description", "rename", "log", "watch"])
def test_a_full_disk_ends_in_a_line_that_says_what_is_saved(tmp_path, monkeypatch, what):
    """What was saved before stays whole, nothing half-written is left, and the run goes on to the same weights."""
    whole = Trainer(objective(), CONFIG).fit(batches())
    home = tmp_path / "run"
    with monkeypatch.context() as patch:
        watch = None
        if what == "tensors":
            patch.setattr(saving, "save_file", failing(saving.save_file, 1))
        elif what == "tensors in Rust":
            calls = []
            real = saving.save_file
            patch.setattr(saving, "save_file", lambda *a: (calls.append(1), (half if len(calls) > 1 else real)(*a)))
        elif what == "description":
            patch.setattr(Path, "write_text", failing(Path.write_text, 1))
        elif what == "rename":
            patch.setattr(saving.os, "replace", failing(os.replace, 2))  # the log's, and one checkpoint's
        elif what == "log":
            patch.setattr(folder.Metrics, "write", failing(folder.Metrics.write, 3))
        else:
            watch = failing(lambda *_: None, 1)
        config = Training(**{**vars(CONFIG), "watch_every": 2})
        said = refused(
            lambda: Trainer(objective(), config, folder=home, watch=watch).fit(batches()),
            "No space left on device",
            "free disk space",
        )
        saved = 4 if what == "watch" else 2
        assert f"the run in {home} stopped after step 4, because the disk cannot be written" in said
        assert f"it is saved up to step {saved}" in said
    assert load(home).step == saved
    assert not list(home.glob("checkpoints/.*"))
    again = resume(home)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert [line["step"] for line in read_metrics(home / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_disk_that_was_full_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "save_file", failing(None, 0))
    refused(
        lambda: Trainer(objective(), CONFIG, folder=tmp_path).fit(batches()),
        "no step of it is saved; free disk space, and start again",
    )


@pytest.mark.parametrize("room", [600, 20_000])
def test_a_real_limit_of_a_files_size(tmp_path, room):
    """The system's own refusal, of a line of the log or of the weights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    wide = Training(**{**vars(CONFIG), "log_every": 1, "save_every": 5})

    def limit(average, step):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))

    torch.manual_seed(0)
    large = DenoisingLoss.simple(Learned(MLP(3, 64, 1), Tabulated(linear_betas(40))))
    config = Training(**{**vars(wide), "watch_every": 1})
    try:
        said = refused(
            lambda: Trainer(large, config, folder=tmp_path, watch=limit).fit(batches()),
            "File too large",
            "no step of it is saved",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ("after step 5" in said) == (room > 10_000)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_full_disk_is_an_error_of_the_disk_for_divided_weights_too(tmp_path):
    """torch.distributed.checkpoint raises an error that is neither an OSError nor an Exception."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            write_parts(tmp_path / "parts", {"weight": torch.ones(2000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_command_line_says_it_in_a_line(tmp_path, monkeypatch, capsys):
    """And what was measured is printed before it is written; the file of before stays."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_file", failing(saving.save_file, 1))
        assert main(["train", "ddpm-smoke", "--training.watch-every", "0"]) == 2
        err = capsys.readouterr().err
        assert err.splitlines()[-1].startswith("unnoise: the run in runs/ddpm-smoke stopped after step 8")
        assert (err.count("unnoise:"), "Traceback" in err) == (1, False)
    assert main(["train", "ddpm-smoke", "--training.watch-every", "0", "--resume"]) == 0
    file = tmp_path / "runs" / "ddpm-smoke" / "evaluation.json"
    file.write_text("of before")
    found = Evaluation({}, [Measurement("bits_per_dim", 2.5)])
    monkeypatch.setattr("unnoise.experiments.gaussian.GaussianRecipe.evaluate", lambda *a, **k: found)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(folder.os, "replace", failing(None, 0))
        assert main(["evaluate", "runs/ddpm-smoke"]) == 2
        out = capsys.readouterr()
    assert out.err.endswith(f"unnoise: cannot write runs/ddpm-smoke/evaluation-1.json {FULL_DISK}")
    assert "2.5" in out.out
    assert file.read_text() == "of before"
    assert sorted(p.name for p in file.parent.iterdir()) == ["checkpoints", "evaluation.json", "metrics.jsonl"]
    monkeypatch.setattr("unnoise.experiments.gaussian.GaussianRecipe.show", failing(None, 0))
    assert main(["sample", "runs/ddpm-smoke", "--count", "2", "--steps", "2", "--out", "x.png"]) == 2
    assert capsys.readouterr().err.endswith(f"unnoise: cannot write x.png {FULL_DISK}")


def test_a_text_is_written_whole_or_not_at_all(tmp_path):
    path = write_text(tmp_path / "a.txt", "one\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        refused(lambda: write_text(path, "two\n" * 1000), "a.txt (File too large)")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "one\n"
    refused(lambda: write_text(tmp_path / "none" / "a.txt", ""), "No such file")


def test_weights_of_an_own_network_keep_their_names(tmp_path):
    """Names that other classes had in earlier versions stand in own networks, too."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.dequantiser = nn.Linear(3, 3)

        def forward(self, x, time):
            return self.dequantiser(x)

    loss = DenoisingLoss.simple(Learned(Own(), Tabulated(linear_betas(40))))
    Trainer(loss, Training(steps=1, warmup=1), folder=tmp_path).fit([{"x0": torch.zeros(2, 3)}])
    found = load(tmp_path, network=Own()).objective.denoiser.network.dequantiser
    assert torch.equal(found.weight, loss.denoiser.network.dequantiser.weight)
