"""Samples and code lengths are functions of the seed and of the example's number, on any number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sampling_worker import COMMANDS, work

from unnoise.experiments import chunks
from unnoise.experiments.chunks import in_chunks
from unnoise.experiments.cli import computing, main
from unnoise.experiments.evaluation import bits_per_dim
from unnoise.experiments.papers import d3pm_images, ddpm
from unnoise.shared import distributed
from unnoise.shared.data import image_dataset
from unnoise.shared.distributed import rows_of, share
from unnoise.shared.errors import Notice, UsageError

LINES = "the cat sat on the mat and the dog ran to the red barn\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of two small runs, of images and of text."""
    home = tmp_path_factory.mktemp("runs")
    (home / "lines.txt").write_text(LINES * 60)
    lines = {"ddpm": ("ddpm-smoke",), "mdlm": ("mdlm-smoke", "--data.name", str(home / "lines.txt"))}
    for name, line in lines.items():
        settings = ("--data.batch", "4", "--training.steps", "2", "--training.learning-rate", "0.1")
        assert main(["train", *line, *settings, "--out", str(home / name)]) == 0
    return home


def test_two_processes_equal_one(home, tmp_path, capfd):
    """Exactly, since networks are called with the same batches; the process of rank 0 alone prints and writes."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work(home, one)
    finally:
        torch.set_num_threads(threads)
    capfd.readouterr()
    worker = Path(__file__).with_name("sampling_worker.py")
    done = subprocess.run(
        [sys.executable, worker, home, two],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("samples in") == len(COMMANDS)
    assert done.stdout.count("written to") == 1
    assert done.stderr.count("1 examples, 300 at a time, occupy 1 of 2 processes: give --batch 1 to occupy all") == 1
    for name in COMMANDS:
        with np.load(one / f"{name}.npz") as a, np.load(two / f"{name}.npz") as b:
            assert all(np.array_equal(a[key], b[key]) for key in a), name
    found = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    assert found[0] == found[1]
    assert found[0]["evaluation"]["windows"] == 5


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize(("count", "unit"), [(7, 2), (1, 300), (12, 1), (10, 5), (900, 300)])
def test_rows_of_the_processes(monkeypatch, parts, count, unit):
    monkeypatch.setattr(distributed, "world_size", lambda: parts)
    rows = [rows_of(count, unit, rank) for rank in range(parts)]
    assert [n for part in rows for n in part] == list(range(count))
    assert all(part.start % unit == 0 for part in rows if part)
    sizes = [-(-len(part) // unit) for part in rows]
    assert max(sizes) - min(sizes) <= 1
    assert rows[0]
    assert [list(share(5, r, 3)) for r in range(3)] == [[0, 1], [2, 3], [4]]


class Small:
    """A computation on a GPU that has room for so many rows."""

    def __init__(self, most):
        self.most, self.sizes = most, []

    def __call__(self, rows):
        self.sizes.append(len(rows))
        if len(rows) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return rows[:, None] * 10


def test_chunks_that_do_not_fit_are_halved():
    compute = Small(3)
    with pytest.warns(Notice, match="do not fit into the memory of the GPU") as said:
        found = in_chunks(compute, 21, 8)
    assert torch.equal(found, 10 * torch.arange(21)[:, None])
    assert compute.sizes == [8, 4, *[2] * 10, 1]
    assert [str(w.message).partition("; ")[2] for w in said] == [f"--batch {n} does so from the start" for n in (4, 2)]


def test_one_row_that_does_not_fit_is_refused():
    with pytest.warns(Notice), pytest.raises(UsageError, match=r"one example does not fit .*CUDA out of memory"):
        in_chunks(Small(0), 4, 2)


def test_a_code_length_does_not_depend_on_the_chunk():
    """Of the bound of a chain and that of tokens: up to the rounding of batched products."""
    images = image_dataset("digits", split="test").subset(5)
    for recipe in (ddpm.smoke(), d3pm_images.smoke()):
        torch.manual_seed(0)
        denoiser = recipe.objective(images.shape, images.quantization).denoiser.eval().requires_grad_(False)
        for p in denoiser.parameters():
            torch.nn.init.normal_(p, std=0.1)
        found = [bits_per_dim(recipe, denoiser, images, seed=3, size=size) for size in (5, 2, 1)]
        assert found[0] == pytest.approx(found[1], rel=1e-5)
        assert found[0] == pytest.approx(found[2], rel=1e-5)
        assert found[0][0] != pytest.approx(bits_per_dim(recipe, denoiser, images, seed=4)[0], rel=1e-5)


def lines_of(capsys, *arguments):
    """The status of a command, and what it prints on stderr."""
    capsys.readouterr()
    return main([str(a) for a in arguments]), capsys.readouterr().err


@pytest.mark.filterwarnings("always::unnoise.shared.errors.Notice")
def test_options_of_computing(home, tmp_path, capsys, monkeypatch):
    made = []

    def compiled(network):
        made.append(type(network).__name__)
        return torch.compile(network, backend="eager")

    monkeypatch.setattr(computing, "compiled", compiled)
    sample = ("sample", home / "ddpm", "--count", 3)
    cases = {"plain": (), "compiled": ("--compile",), "graphs": ("--cuda-graphs",), "tf32": ("--precision", "tf32")}
    cases["bfloat16"] = ("--precision", "bfloat16")
    found, err = {}, {}
    for name, options in cases.items():
        status, err[name] = lines_of(capsys, *sample, *options, "--device", "cpu", "--out", tmp_path / f"{name}.npz")
        assert status == 0, err[name]
        with np.load(tmp_path / f"{name}.npz") as arrays:
            found[name] = arrays["arr_0"]
    assert err["graphs"] == "unnoise: --cuda-graphs has no effect on cpu: CUDA graphs exist on NVIDIA GPUs alone\n"
    assert made == ["UNet"]
    assert np.array_equal(found["plain"], found["graphs"])
    assert np.array_equal(found["plain"], found["tf32"])  # on a CPU
    assert np.mean(found["plain"] != found["compiled"]) < 0.02
    assert not np.array_equal(found["plain"], found["bfloat16"])


@pytest.mark.filterwarnings("always::unnoise.shared.errors.Notice")
def test_the_precision_that_is_chosen_is_printed(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unnoise.shared.training.precision.native_bfloat16", lambda device: True)
    status, err = lines_of(
        capsys, "sample", home / "ddpm", "--count", 1, "--precision", "auto", "--out", tmp_path / "a.npz"
    )
    assert (status, err) == (0, "unnoise: precision bfloat16, because cpu has native bfloat16 arithmetic\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--batch", 0), "--batch 0: give a whole number"), (("--device", "cuda:7"), "device=cuda:7 is not available")],
)
def test_options_that_are_refused(home, capsys, options, words):
    status, err = lines_of(capsys, "sample", home / "ddpm", *options)
    assert (status, err.count("\n")) == (2, 1)
    assert words in err


def test_a_device_that_cannot_hold_the_model(home, capsys, monkeypatch):
    def to(module, device):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype\nmore")

    monkeypatch.setattr("unnoise.continuous.Learned.to", to)
    status, err = lines_of(capsys, "sample", home / "ddpm", "--device", "cpu")
    assert (status, err) == (
        2,
        "unnoise: --device cpu: Cannot convert a MPS Tensor to float64 dtype: give --device cpu\n",
    )


def test_other_processes_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["demo", "--smoke"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("unnoise, process 1: this is one of 2 processes")


def test_an_accelerator_without_memory_is_emptied(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    with pytest.warns(Notice, match="4 examples do not fit into the memory of the GPU, so 2 are taken at a time"):
        assert chunks.halved(4, "out of memory") == 2
    assert emptied == [1]
