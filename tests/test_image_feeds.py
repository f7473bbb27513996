"""Recipes on augmented, class-balanced and streamed images: their settings, and runs that are interrupted."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from unnoise.experiments.cli import main
from unnoise.experiments.image_data import Images
from unnoise.experiments.papers import d3pm_images, ddpm
from unnoise.experiments.parts import part
from unnoise.shared.data import Batches
from unnoise.shared.data.feeding import feed
from unnoise.shared.data.image_stream import ImageStream
from unnoise.shared.data.streaming import StreamedBatches
from unnoise.shared.errors import UsageError
from unnoise.shared.networks import RefineNet
from unnoise.shared.training import Trainer

datasets.disable_progress_bars()


def encoded(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, split: str, shards: int, count: int, size: int = 8) -> None:
    """Parquet files in the layout of CIFAR-10 on the Hub, with random images; class 0 has most of them."""
    random = np.random.default_rng(shards)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    for shard in range(shards):
        images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        rows = [
            {"img": {"bytes": encoded(v), "path": None}, "label": n % 3 if n < 9 else 0} for n, v in enumerate(images)
        ]
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(str(folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("set")
    write(home, "train", 3, 20)
    write(home, "test", 1, 12)
    return home


def recipe_of(data: Images, **settings: Any) -> Any:
    training = {"log_every": 4, "save_every": 100, "watch_every": 0, "cooldown": 0} | settings
    recipe = ddpm.smoke()
    return replace(recipe, data=data, training=replace(recipe.training, **training))


def trained(recipe: Any, folder: Path | None, resume: bool = False) -> dict[str, torch.Tensor]:
    data = recipe.load()
    torch.manual_seed(0)
    objective = recipe.objective(data.shape, data.quantization)
    trainer = Trainer(objective, recipe.training, folder=folder, experiment=recipe)
    return trainer.fit(recipe.batches(data), resume=resume).state_dict()


@pytest.mark.parametrize("feed_of", ["augmented and balanced", "streamed"])
def test_an_interrupted_run_continues_bit_for_bit(feed_of: str, folder: Path, tmp_path: Path) -> None:
    data = Images(str(folder), batch=8, classes=3, augment=0.5)
    streamed = {"streaming": True, "shuffle_block": 16}
    data = replace(data, **streamed if feed_of == "streamed" else {"balanced": True})
    whole = trained(recipe_of(data, steps=12), tmp_path / "whole")
    trained(recipe_of(data, steps=7), tmp_path / "parts")
    parts = trained(recipe_of(data, steps=12), tmp_path / "parts", resume=True)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_worker_processes_give_the_same_augmented_batches(folder: Path) -> None:
    data = Images(str(folder), batch=8, classes=3, augment=0.5, balanced=True)
    recipe = recipe_of(data)
    loaded = recipe.load()
    expected = list(islice(recipe.batches(loaded), 6))
    batches = recipe.batches(loaded)
    read = feed(batches, range(8), workers=2)
    found = [next(read) for _ in range(6)]
    assert batches.position == 6  # not the position of the batches that were read ahead
    read.close()
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys() == {"x0", "label", "augment"}
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_networks_are_told_how_images_were_transformed(folder: Path) -> None:
    recipe = recipe_of(Images(str(folder), batch=8, augment=1.0))
    data = recipe.load()
    objective = recipe.objective(data.shape, data.quantization)
    recipe.check(objective, data.shape, data.quantization)
    assert objective.denoiser.network.augment == 9
    batch = next(iter(recipe.batches(data)))
    assert batch["augment"].shape == (8, 9)
    assert batch["augment"].abs().max() > 0
    assert recipe.conditions(torch.arange(2)) == {}  # samples are of images as they are
    for p in objective.parameters():
        torch.nn.init.normal_(p, std=0.1)
    torch.manual_seed(0)
    told = objective(**batch, generator=torch.Generator().manual_seed(0)).total
    untold = objective(batch["x0"], generator=torch.Generator().manual_seed(0)).total
    assert not torch.allclose(told, untold)


def test_balanced_images_have_each_class_equally_often(folder: Path) -> None:
    recipe = recipe_of(Images(str(folder), batch=6, balanced=True))
    data = recipe.load()
    batches = recipe.batches(data)
    assert isinstance(batches, Batches)
    assert data.label.bincount().tolist() == [42, 9, 9]
    assert data.label[batches.order(0)].bincount().tolist() == [20, 20, 20]


def test_settings_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="augment=2: give a probability"):
        Images(augment=2)
    with pytest.raises(UsageError, match="augment=0.1, flip=True, smaller=None: the augmentation mirrors"):
        Images(augment=0.1, flip=True)
    with pytest.raises(UsageError, match="data.augment is for real-valued images"):
        replace(d3pm_images.smoke(), data=Images(augment=0.1))
    with pytest.raises(UsageError, match="streaming=True, balanced=True: a stream is not held as a whole"):
        Images(str(folder), streaming=True, balanced=True)
    with pytest.raises(UsageError, match="streaming=True, memory=mapped"):
        Images(str(folder), streaming=True, memory="mapped")
    recipe = replace(recipe_of(Images(str(folder), augment=0.1)), network=part(RefineNet, width=8))
    data = recipe.load()
    with pytest.raises(UsageError, match="give data.augment=0, or a network with the argument augment"):
        recipe.objective(data.shape, data.quantization)


def test_a_streamed_run_by_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data.name", str(folder), "--data.batch", "8", "--data.streaming", "--data.shuffle-block", "16"]
    given += ["--data.classes", "None", "--training.steps", "2", "--training.watch-every", "0"]
    run = str(tmp_path / "run")
    assert main(["train", "ddpm-smoke", *given, "--out", run]) == 0, capsys.readouterr().err
    assert "a stream of images of 3x8x8 in 3 shards" in capsys.readouterr().out
    assert main(["sample", run, "--count", "2", "--steps", "2"]) == 0
    recipe = recipe_of(Images(str(folder), streaming=True, batch=8))
    assert isinstance(recipe.load(), ImageStream)
    assert isinstance(recipe.batches(recipe.load()), StreamedBatches)
    assert len(recipe.load("test").k) == 12


LIMITED = """
    import resource, sys, threading
    from unnoise.continuous import DenoisingLoss, Learned
    from unnoise.sde import VP
    from unnoise.shared.data.image_stream import image_stream
    from unnoise.shared.data.streaming import StreamedBatches
    from unnoise.shared.training import Trainer, Training
    import torch

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x, time):
            return self.layer(x)

    def train(stream, steps):
        batches = StreamedBatches(stream.stream, stream.decode, 1, stream.quantization, stream.shape, block=32)
        Trainer(DenoisingLoss.simple(Learned(Network(), VP())), Training(steps=steps)).fit(batches)
        return batches

    torch.set_num_threads(1)
    threading.stack_size(2**19)
    stream = image_stream(sys.argv[1])
    train(stream, 2)  # what libraries and the network take is not counted
    used, allowed = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize(), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (used + allowed,) * 2)
    position = train(stream, 720).position
    try:
        stream.first(100_000)
        print("the whole set fits")
    except (MemoryError, RuntimeError):
        print(position)
"""


@pytest.mark.slow
def test_a_set_of_twelve_times_the_memory_trains_as_a_stream(tmp_path: Path) -> None:
    """Under the limit of `ulimit -v`: what libraries and the network take, and a twelfth of the decoded set.

    The images that are trained on are more than would fit.
    """
    value, size, shards, count = np.arange(256 * 256 * 3, dtype=np.uint32), 256, 16, 512
    content = encoded(value.astype(np.uint8).reshape(size, size, 3))
    features = datasets.Features({"image": datasets.Image()})
    for shard in range(shards):
        rows = {"image": [{"bytes": content, "path": None}] * count}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"train-{shard}.parquet"))
    allowed = shards * count * value.size // 12
    alone = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path), str(allowed)]
    out = subprocess.run(command, capture_output=True, text=True, env=os.environ | alone)
    assert out.stdout.split()[-1:] == ["720"], out.stderr[-2000:]
