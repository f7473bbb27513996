"""A recipe of a paper at its true size, from files in the columns of its data set; random images stand in for it."""

import datasets
import numpy as np
import pytest
from PIL import Image

from unnoise.experiments.cli import main

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STEPS, BATCH = 20, 4
"""The paper's batch is 128: the network and the images are of true size, and a batch is cut into micro-batches."""


def cifar10(root):
    """`plain_text/train-00000-of-00001.parquet` and the same of test, with the columns img and label."""
    draws = np.random.default_rng(0)
    (root / "plain_text").mkdir(parents=True)
    for split, count in (("train", 200), ("test", 50)):
        images = [Image.fromarray(draws.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(count)]
        rows = datasets.Dataset.from_dict({"img": images, "label": [n % 10 for n in range(count)]})
        rows = rows.cast_column("img", datasets.Image()).cast_column("label", datasets.ClassLabel(names=NAMES))
        rows.to_parquet(root / "plain_text" / f"{split}-00000-of-00001.parquet")
    return str(root)


@pytest.mark.slow
def test_ddpm_on_cifar10_starts_stops_resumes_and_samples(tmp_path, capsys):
    name, run = cifar10(tmp_path / "cifar10"), str(tmp_path / "run")
    settings = ["--data.name", name, "--data.batch", str(BATCH), "--training.micro-batch", str(BATCH // 2)]
    assert main(["train", "ddpm-cifar10", "--out", run, *settings, "--training.steps", str(STEPS // 2)]) == 0
    out = capsys.readouterr().out
    assert "200 images of 3x32x32, 10 classes: airplane 20, automobile 20" in out
    assert main(["train", run, "--resume", "--training.steps", str(STEPS)]) == 0
    assert (tmp_path / "run" / "checkpoints").is_dir()
    assert main(["sample", run, "--count", "4", "--steps", "4", "--out", str(tmp_path / "four.npz")]) == 0
    with np.load(tmp_path / "four.npz") as found:
        assert found["arr_0"].shape == (4, 32, 32, 3)
