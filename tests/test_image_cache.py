"""Decoded images in files: the same numbers as from memory, whole or written again, within any memory."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from unnoise.experiments.evaluation import bits_per_dim
from unnoise.experiments.image_data import Images
from unnoise.experiments.recipes import find
from unnoise.shared import memory
from unnoise.shared.data import cache, image_dataset, stacking
from unnoise.shared.data.array_files import SelectedRows
from unnoise.shared.data.mapped import ImageWriter, MappedRows
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.metrics.judge import Judge, marginal_bits_per_dim
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache of one's own, in small record batches."""
    monkeypatch.setenv("UNNOISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("unnoise.shared.data.mapped.BLOCK", 1000)
    return tmp_path / "cache" / "images"


def pictures(root, count, color=(), size=(4, 6)):
    """Random images, gray but for some."""
    root.mkdir()
    draws = np.random.default_rng(0)
    for n in range(count):
        shape = (*size, 3) if n in color else size
        Image.fromarray(draws.integers(0, 256, shape, np.uint8)).save(root / f"{n:03}.png")
    return root


@pytest.mark.parametrize("color", [(), (0,), (70,), range(100)])
def test_rows_of_the_file_are_those_of_memory(tmp_path, folder, color):
    root = pictures(tmp_path / "a", 100, color)
    held, mapped = (image_dataset(root, memory=where) for where in ("memory", "mapped"))
    assert isinstance(mapped.k, MappedRows)
    assert mapped.k.shape == held.k.shape == (100, 3 if color else 1, 4, 6)
    assert len(mapped.k.starts) > 2
    assert mapped.summary == f"{held.summary}; read from 0.0 GB on disk when needed"
    assert torch.equal(pickle.loads(pickle.dumps(mapped.k))[:], held.k)  # noqa: S301, of our own
    for rows in (torch.tensor([99, 0, 41, 41, 42, 43, -1]), slice(None), slice(90, None), slice(3, 50, 7), slice(0, 0)):
        assert torch.equal(mapped.k[rows], held.k[rows])
    assert list(folder.glob("*.arrow")) == [folder / mapped.k.path]
    with pytest.raises(IndexError, match="row 100 of 100"):
        mapped.k[torch.tensor([100])]


@pytest.mark.parametrize("conditions", [(), ("label",)])
def test_batches_are_the_same_bit_for_bit(tmp_path, conditions):
    """Order, dequantization noise, flips, labels and the small condition images, and the fingerprint of the content."""
    root = pictures(tmp_path / "a", 60, (5,), (4, 4))
    for n, path in enumerate(sorted(root.glob("*.png"))):
        (root / f"c{n % 3}").mkdir(exist_ok=True)
        path.rename(root / f"c{n % 3}" / path.name)
    sets = [image_dataset(root, memory=where) for where in ("memory", "mapped")]
    made = [s.batches(16, Quantization.dequantized, conditions=conditions, seed=3) for s in sets]
    for one, two in zip(*(zip(range(8), m, strict=False) for m in made), strict=True):
        assert one[1].keys() == two[1].keys()
        assert all(torch.equal(one[1][name], two[1][name]) for name in one[1])
    assert made[0].state_dict() == made[1].state_dict()
    made = []
    for where in ("memory", "mapped"):
        data = Images(str(root), 16, smaller=2, memory=where)
        made.append(next(iter(data.batches(data.load(), Quantization.continuous, 0))))
    assert all(torch.equal(made[0][name], made[1][name]) for name in ("x0", "image"))
    sub = [s.subset(7) for s in sets]
    assert torch.equal(sub[0].k, sub[1].k)
    assert torch.equal(sets[0].in_memory, sets[1].in_memory)


def test_images_are_decoded_once(tmp_path, folder, monkeypatch):
    """A large set is read from the cache until it changes, which a size, a file or a time of change does."""
    root, calls = pictures(tmp_path / "a", 12), []
    monkeypatch.setattr(cache, "LARGE", 10)
    read = stacking.read_one
    monkeypatch.setattr(stacking, "read_one", lambda *a: calls.append(a) or read(*a))
    first = image_dataset(root)
    assert isinstance(first.k, torch.Tensor)
    assert (len(calls), len(list(folder.glob("*.arrow")))) == (12, 1)
    assert torch.equal(image_dataset(root).k, first.k)
    assert len(calls) == 12
    assert image_dataset(root, size=(2, 2)).shape == (1, 2, 2)
    assert len(calls) == 24
    os.utime(root / "003.png", (1, 1))
    assert torch.equal(image_dataset(root).k, first.k)
    assert len(calls) == 36
    (root / "003.png").unlink()
    assert len(image_dataset(root).k) == 11
    assert len(calls) == 47
    for n in (1, 2):
        (root / f"00{n}.png").unlink()
    image_dataset(root)  # a small set
    assert len(list(folder.glob("*.arrow"))) == 4
    assert not list(folder.glob("*.part"))


def damaged(path, how):
    whole = path.read_bytes()
    if how == "cut":
        path.write_bytes(whole[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("words")
    elif how == "footer":
        path.write_bytes(whole[:-40] + bytes(b ^ 255 for b in whole[-40:-10]) + whole[-10:])
    elif how == "version":
        path.write_bytes(whole.replace(b'"version": 1', b'"version": 0'))
    elif how == "other rows":
        with ImageWriter(path, (1, 4, 6)) as writer:
            writer.add(np.zeros((1, 4, 6), np.uint8))
            writer.finish([])
    else:
        schema = pa.schema([("pixels", pa.string()), ("notes", pa.string())], metadata={"unnoise": json.dumps(how)})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            file.write_batch(pa.record_batch([["a"], ["[]"]], schema=schema))


@pytest.mark.parametrize(
    "how", ["cut", "empty", "text", "footer", "version", "other rows", {"version": 1, "shape": [1, 4, 6]}, {}]
)
def test_a_damaged_file_is_written_again(tmp_path, folder, how):
    root = pictures(tmp_path / "a", 50)
    k = image_dataset(root, memory="mapped").k
    held = k[:]
    damaged(folder / k.path, how)
    with pytest.warns(Notice, match=r"the decoded images .* are damaged \(.+\) and written again"):
        again = image_dataset(root, memory="mapped").k
    assert torch.equal(again[:], held)
    os.truncate(again.path, os.stat(again.path).st_size // 2)
    with pytest.raises(UsageError, match="was cut off since it was opened"):
        again[:]
    os.unlink(again.path)
    with pytest.raises(UsageError, match="cannot be read .No such file"):
        again[:]


def test_broken_images_leave_no_file(tmp_path, folder):
    root = pictures(tmp_path / "a", 5)
    (root / "002.png").write_text("words")
    with pytest.raises(UsageError, match=r"1 of 5 images of .* cannot be read: 002.png"):
        image_dataset(root, memory="mapped")
    Image.new("L", (9, 9)).save(root / "002.png")
    with pytest.raises(UsageError, match="2 different shapes"):
        image_dataset(root, memory="mapped")
    assert [p.suffix for p in folder.iterdir()] == [".lock"] * 2


def test_a_cache_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    root = pictures(tmp_path / "a", 12)
    monkeypatch.setattr(cache, "LARGE", 10)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("UNNOISE_CACHE", str(tmp_path / "file"))
    with pytest.warns(Notice, match="are decoded at every start: .*file/images cannot be written .Not a directory"):
        assert len(image_dataset(root).k) == 12
    with pytest.raises(UsageError, match="cannot be written .*: set UNNOISE_CACHE"):
        image_dataset(root, memory="mapped")
    monkeypatch.setenv("UNNOISE_CACHE", "none")
    assert len(image_dataset(root).k) == 12
    with pytest.raises(UsageError, match="memory=mapped reads from the cache, and UNNOISE_CACHE is none"):
        image_dataset(root, memory="mapped")
    with pytest.raises(UsageError, match="memory=disk: choose from auto, memory, mapped"):
        image_dataset(root, memory="disk")
    monkeypatch.setenv("UNNOISE_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.warns(Notice, match="are decoded at every start: .* cannot be written .0.0 GB are needed, and 0.0 GB"):
        image_dataset(root)


def test_auto_chooses_by_the_free_memory(tmp_path, monkeypatch):
    root = pictures(tmp_path / "a", 12)  # 288 bytes
    for free, kind in ((None, torch.Tensor), (576, torch.Tensor), (575, MappedRows)):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        found = image_dataset(root)
        assert isinstance(found.k, kind)
    assert found.notes[-1] == "read from 0.0 GB on disk when needed, since 0.0 GB of memory are free"
    monkeypatch.setattr(memory, "available", lambda: 4 * 575)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert isinstance(image_dataset(root).k, MappedRows)
    assert image_dataset(root).notes[-1].endswith("since 0.0 GB of memory are free for 4 processes")
    half = image_dataset(root, held_out=4, split="test")
    assert isinstance(half.k, SelectedRows)
    monkeypatch.setattr(memory, "available", lambda: None)
    assert torch.equal(half.k[:], image_dataset(root, held_out=4, split="test").k)
    monkeypatch.setattr(memory, "available", lambda: 287)
    with pytest.raises(UsageError, match="12 images of 1x4x6 need 0.0 GB of memory"):
        _ = found.in_memory


def test_a_recipe_trains_and_is_measured_alike(tmp_path):
    """The same weights, the same judge and the same code lengths, from memory and from the file."""
    pictures(tmp_path / "a", 40, (5,), (8, 8))
    for n, path in enumerate(sorted((tmp_path / "a").glob("*.png"))):
        (tmp_path / "a" / f"c{n % 2}").mkdir(exist_ok=True)
        path.rename(tmp_path / "a" / f"c{n % 2}" / path.name)
    found = []
    for where in ("memory", "mapped"):
        data = Images(str(tmp_path / "a"), 8, classes=2, flip=True, held_out=10, memory=where)
        recipe = replace(find("ddpm-smoke"), data=data)
        train, test = data.load(), data.load("test")
        assert isinstance(train.k, SelectedRows) == (where == "mapped")
        objective = recipe.objective(train.shape, train.quantization)
        torch.manual_seed(0)
        for parameter in objective.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        trained = Trainer(objective, Training(steps=3, warmup=1)).fit(recipe.batches(train)).denoiser
        judge = Judge(train, steps=3)
        quality, bits = judge.quality(test.k), bits_per_dim(recipe, trained, test)
        found.append((bits, quality, judge.accuracy(test), marginal_bits_per_dim(train, test)))
    assert found[0] == found[1]


def test_worker_processes_decode_the_same(tmp_path, monkeypatch):
    root = pictures(tmp_path / "a", 150, (140,))
    (root / "077.png").write_text("words")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    said = []
    for several in (1000, 10):
        monkeypatch.setattr(stacking, "SEVERAL", several)
        with pytest.raises(UsageError) as error:
            image_dataset(root)
        said.append(str(error.value))
    assert said[0] == said[1]
    (root / "077.png").unlink()
    both = []
    for several in (1000, 10):
        monkeypatch.setattr(stacking, "SEVERAL", several)
        both.append(image_dataset(root))
    assert torch.equal(both[0].k, both[1].k)
    assert both[0].summary == both[1].summary


def test_processes_write_one_file(tmp_path, folder):
    root = pictures(tmp_path / "a", 40)
    code = """
        import os, sys
        from unnoise.shared.data import image_dataset

        parent = os.getpid()
        children = [os.fork() for _ in range(2) if os.getpid() == parent]
        if os.getpid() == parent:
            raise SystemExit(max(os.waitpid(child, 0)[1] for child in children) != 0)
        print(len(image_dataset(sys.argv[1], memory="mapped").k), flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(root)]
    assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout == b"40\n" * 2
    assert [p.suffix for p in sorted(folder.iterdir())] == [".arrow", ".lock"]


LIMITED = """
    import resource, sys, torch
    from pathlib import Path
    from unnoise.continuous import DenoisingLoss, Learned
    from unnoise.sde import VP
    from unnoise.shared import data, quantization
    from unnoise.shared.data.mapped import mapped_rows
    from unnoise.shared.networks import UNet
    from unnoise.shared.training import Trainer, Training

    def train(k, steps):
        images = data.ImageDataset(k, None, quantization.Quantization())
        network = UNet((3, 32, 32), width=8, multipliers=(1, 1), blocks=1)
        Trainer(DenoisingLoss.simple(Learned(network, VP())), Training(steps=steps)).fit(images.batches(8))
        return images

    torch.set_num_threads(1)
    k, allowed = mapped_rows(Path(sys.argv[1])), int(sys.argv[2])
    train(k[:64], 8)  # what libraries and the network take is not counted
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + allowed,) * 2)
    try:
        k[:]
        raise SystemExit("the whole set fits")
    except MemoryError:
        pass
    images = train(k, 12)
    print(len(k) * images.dims // allowed)
"""


def test_a_set_of_twelve_times_the_memory_trains(tmp_path, monkeypatch):
    """Under the limit of `ulimit -v`: what libraries and the network take, and a twelfth of the set."""
    monkeypatch.setattr("unnoise.shared.data.mapped.BLOCK", 2**20)
    path, shape, count = tmp_path / "x.arrow", (3, 32, 32), 128_000
    image = np.arange(3 * 32 * 32, dtype=np.uint32).astype(np.uint8).reshape(shape)
    with ImageWriter(path, shape) as writer:
        for _ in range(count):
            writer.add(image)
        writer.finish([])
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(path), str(count * image.size // 12)]
    out = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    )
    assert out.stdout.split()[-1:] == ["12"], out.stderr[-2000:]
