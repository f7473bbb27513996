"""The Hub, with folders in its place: what is uploaded, what is fetched, and the messages where neither is possible."""

import shutil
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from pretrained_helpers import refused
from safetensors.torch import load_file, save_file

from unnoise.continuous import DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.experiments import load, pretrained
from unnoise.experiments.cli import main
from unnoise.experiments.pretrained import hub
from unnoise.shared.networks import UNet
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training


class Remote(NamedTuple):
    """The folder that stands for the Hub, and what was asked of it."""

    home: Path
    calls: list


class Batches:
    """One image for ever, with what checkpoints keep of it."""

    quantization, shape = Quantization(17), (1, 4, 4)

    def __iter__(self):
        while True:
            yield {"x0": torch.zeros(1, 1, 4, 4)}


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints."""
    torch.manual_seed(0)
    objective = DenoisingLoss.simple(Learned(UNet((1, 4, 4), 8, (1,), 1, ()), Tabulated(linear_betas(50))))
    config = Training(steps=2, warmup=0, save_every=1, learning_rate=0.1)
    Trainer(objective, config, folder=tmp_path / "run").fit(Batches())
    return tmp_path / "run"


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder that stands for the Hub, `owner/name` for each repository."""
    home, calls = tmp_path / "remote", []

    def create_repo(self, repo_id, **options):
        calls.append((repo_id, self.token, options))
        (home / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        calls.append(commit_message)
        shutil.copytree(folder_path, home / repo_id, dirs_exist_ok=True)

    def snapshot_download(repo_id, *, allow_patterns):
        if not (home / repo_id).is_dir():
            raise LocalEntryNotFoundError("cannot find the snapshot\nand a second line")
        fetched = tmp_path / "fetched"
        shutil.rmtree(fetched, ignore_errors=True)
        fetched.mkdir()
        for pattern in allow_patterns:
            for path in (home / repo_id).rglob(pattern):
                target = fetched / path.relative_to(home / repo_id)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        return str(fetched)

    def hf_hub_download(repo_id, filename):
        if not (home / repo_id / filename).is_file():
            raise LocalEntryNotFoundError("")
        return str(home / repo_id / filename)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    home.mkdir()
    return Remote(home, calls)


def test_a_run_goes_up_and_comes_back(run, remote):
    """The newest checkpoint is what is uploaded, its weights come back bit for bit, and its optimizer's state may be
    missing.
    """
    assert pretrained.push(run, "owner/name", private=True, token="secret").endswith("/owner/name")
    assert remote.calls == [
        ("owner/name", "secret", {"private": True, "exist_ok": True}),
        "unnoise checkpoint 00000002",
    ]
    there = remote.home / "owner" / "name"
    assert sorted(p.name for p in there.iterdir()) == ["checkpoint.json", "tensors.safetensors"]
    x, t = torch.randn(2, 1, 4, 4), torch.tensor(0.5)
    with torch.no_grad():
        expected = load(run).average.denoiser(x, t)
        assert not torch.equal(expected, load(run / "checkpoints" / "00000001").average.denoiser(x, t))
        denoiser = pretrained.load("owner/name")
        assert torch.equal(denoiser(x, t), expected)
        assert (denoiser.quantization, denoiser.shape, denoiser.training) == (Quantization(17), (1, 4, 4), False)
        tensors = load_file(there / "tensors.safetensors")
        save_file({k: v for k, v in tensors.items() if not k.startswith("optimizer.")}, there / "tensors.safetensors")
        assert torch.equal(pretrained.load("owner/name")(x, t), expected)


def test_an_older_checkpoint_by_its_folder(run, remote):
    pretrained.push(run / "checkpoints" / "00000001", "owner/old")
    assert remote.calls[-1] == "unnoise checkpoint 00000001"
    with torch.no_grad():
        x, t = torch.randn(2, 1, 4, 4), torch.tensor(0.5)
        assert torch.equal(
            pretrained.load("owner/old")(x, t), load(run / "checkpoints" / "00000001").average.denoiser(x, t)
        )


def test_a_file_within_a_repository_is_fetched_alone(remote):
    folder = remote.home / "owner" / "name" / "vp"
    folder.mkdir(parents=True)
    torch.save({"weight": torch.zeros(1)}, folder / "weights.pth")
    assert hub.local("owner/name/vp/weights.pth") == folder / "weights.pth"
    refused(lambda: pretrained.load("owner/name/vp/weights.pth"), "weights.pth does not contain a known network")
    refused(lambda: pretrained.load("owner/name/vp/other.pth"), "it was not found on the Hub (LocalEntryNotFoundError)")


def test_the_configuration_beside_a_file_comes_with_it(remote, monkeypatch):
    """Text models say in it what they are; other files have none, and need none."""
    asked = []
    fetch = huggingface_hub.hf_hub_download
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args: (asked.append(args), fetch(*args))[1])
    for folder in (remote.home / "owner" / "name", remote.home / "owner" / "name" / "vp"):
        folder.mkdir(parents=True)
        (folder / "model.bin").write_text("{}")
    (remote.home / "owner" / "name" / "config.json").write_text("{}")
    hub.local("owner/name/model.bin")
    assert asked == [("owner/name", "model.bin"), ("owner/name", "config.json")]
    assert hub.local("owner/name/vp/model.bin").name == "model.bin"
    assert asked[2:] == [("owner/name", "vp/model.bin"), ("owner/name", "vp/config.json")]


def test_only_files_of_weights_and_their_descriptions_are_fetched(remote):
    folder = remote.home / "owner" / "name"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "model.py", "README.md", "images.zip"):
        (folder / name).write_text("{}")
    assert sorted(p.name for p in hub.local("owner/name").iterdir()) == [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
    ]


def test_a_local_path_comes_first(run, remote, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    assert hub.local(f"{run.parent.name}/run") == Path(f"{run.parent.name}/run")


@pytest.mark.parametrize("name", ["none", "./owner/name", "/owner/name", "~/owner/name", "owner/na me", "../x"])
def test_what_cannot_be_a_name_is_not_looked_up(remote, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refused(lambda: pretrained.load(name), f"there is no file {name}: give a file, a folder, or a name on the Hub")


def test_a_name_that_is_not_there(remote, capsys, tmp_path):
    refused(
        lambda: pretrained.load("owner/none"),
        "there is no file owner/none",
        "cannot find the snapshot): check the spelling",
    )
    assert main(["import", "owner/none", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("unnoise: there is no file owner/none")
    assert err.count("\n") == 1


def test_no_network():
    """The client itself, which the tests keep off the network."""
    refused(
        lambda: pretrained.load("owner/none"),
        "there is no file owner/none",
        "check the spelling and the network connection",
    )
    refused(lambda: pretrained.load("owner/none/file.pth"), "there is no file owner/none/file.pth")


@pytest.mark.parametrize(
    "error", [OSError("401 Unauthorized\nmore"), ValueError("401 Unauthorized"), RuntimeError("401 Unauthorized")]
)
def test_a_refused_upload_is_one_line(run, remote, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    refused(lambda: pretrained.push(run, "owner/name"), "the Hub refused owner/name (401 Unauthorized): log in")


def test_what_is_no_run_is_not_uploaded(tmp_path, remote):
    refused(lambda: pretrained.push(tmp_path, "owner/name"), "there is no checkpoint in")
    assert remote.calls == []
