"""`unnoise check-data`: what is printed is what the data are."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_folders import put
from PIL import Image

from unnoise.experiments.check_data import check_data, data_named, described
from unnoise.experiments.cli import main
from unnoise.experiments.image_data import Images
from unnoise.experiments.recipes import find
from unnoise.shared.errors import UsageError


def lines(capsys, *arguments):
    """The printed lines by their names."""
    assert main(["check-data", *map(str, arguments)]) == 0, capsys.readouterr().err
    rows = [re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_images(tmp_path, capsys):
    for split, count in (("train", 6), ("test", 4)):
        put(tmp_path / "photos", *(f"{split}/{'cat' if n % 3 else 'dog'}/{n}.png" for n in range(count)))
    (tmp_path / "photos" / "train" / "README").write_text("words")
    shutil.copy(tmp_path / "photos" / "train" / "cat" / "5.png", tmp_path / "photos" / "train" / "cat" / "6.png")
    Image.new("L", (1, 1), 99).save(tmp_path / "photos" / "test" / "cat" / "1.png")
    said = lines(capsys, "photos", "--data.batch", 4, "--out", "shown.png")
    assert said["train"].startswith("7 images of 1x1x1, 2 classes: cat 5, dog 2; ")
    assert "1 other file left out: train/README" in said["train"]
    assert said["held out"].startswith("4 images of 1x1x1, 2 classes: cat 2, dog 2")
    assert said["batch: x0"].startswith("float32 (4, 1, 1, 1), -1 to -0.9")
    assert said["levels"] == "6 of 256 quantization levels occur, 0 to 5; they stand for -1 to 1"
    assert said["labels"] == "0 = cat: 5 train, 2 held out; 1 = dog: 2 train, 2 held out"
    assert said["duplicates"] == (
        "3 of 4 held-out images are in train, such as image 1, which is 1 of train; 1 of 7 training images are equal "
        "to an earlier one"
    )
    assert (tmp_path / "shown.txt").read_text().startswith("train            7 images")
    with Image.open(tmp_path / "shown.png") as page:
        assert page.size == (630, 42)  # 8 columns of a pixel with 1 between them, 42 times as large


def test_the_picture_is_the_batch_after_augmentation(tmp_path):
    """Half of the images are mirrored, which shows where left is black and right is white."""
    half = Image.new("L", (2, 1))
    half.putpixel((1, 0), 255)
    (tmp_path / "a").mkdir()
    for n in range(40):
        half.save(tmp_path / "a" / f"{n}.png")
    for flip, left in ((False, {0}), (True, {0, 255})):
        recipe = replace(find("ddpm-smoke"), data=Images(str(tmp_path / "a"), 36, flip=flip))
        said = check_data(recipe, tmp_path / "b.png")
        with Image.open(tmp_path / "b.png") as page:
            pixel = page.size[0] // 23  # 8 images of 2 pixels, with 1 between them
            assert {page.getpixel((3 * pixel * n, 0))[0] for n in range(8)} == left
        assert "held out         none: the folder" in said


def test_a_recipe_with_captions(capsys):
    said = lines(capsys, "openmoji-captions", "--data.caption-length", 8)
    assert said["captions"].startswith("grinning face; grinning face with big eyes; ")
    mean, most = re.fullmatch(r"([\d.]+) on average, (\d+) at most", said["caption tokens"]).groups()
    assert 1 < float(mean) < int(most) == 8
    assert said["batch: tokens"].startswith("int64 (32, 8), -1 to ")
    assert said["labels"].startswith("0 = activities: 73 train, 12 held out; 1 = animals-nature: 143 train")
    assert said["duplicates"].startswith("7 of 280 held-out images are in train")


def test_text(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 200)
    said = lines(capsys, "a.txt", "--data.length", 19, "--data.batch", 8)
    assert said["tokens"] == "3,420 in windows of 19; 7 of 27 different tokens occur"
    assert said["unknown"] == "0.00% of 3,420 tokens are unknown"
    assert said["example 1"] == "to be or not to be"
    assert said["duplicates"] == (
        "10 of 10 held-out windows are in train, such as window 0, which is 0 of train; 179 of 180 training windows "
        "are equal to an earlier one"
    )


def test_arrays(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.linspace(-3, 5, 400, dtype=np.float32).reshape(100, 4))
    said = lines(capsys, "x.npy", "--data.batch", 16)
    assert "examples of 4, float32" in said["train"]
    assert said["batch: x0"].startswith("float32 (16, 4), ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a data: unnoise check-data DATA"),
        (("nothing/at/all",), "there is no folder nothing/at/all"),
        (("digits", "--data.classes", "3"), "give --data.classes 10"),
        (("digits", "--out", "a.txt"), "--out a.txt: give a name that ends in .png"),
    ],
)
def test_wrong_data_are_one_line(arguments, said, capsys):
    assert main(["check-data", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_tensor_in_one_line():
    assert described(torch.tensor([[1.0, 3.0]])) == "float32 (1, 2), 1 to 3, mean 2, standard deviation 1"


def test_a_table_of_images_under_another_name_is_not_taken_for_text(tmp_path):
    """Encoded images as a structure, which has no type of its own, in a column that is named."""
    rows = [{"photo": {"bytes": b"", "path": None}, "kind": 1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    with pytest.raises(
        UsageError, match=r"its columns are photo, kind; give the column of images \(--data.image-column"
    ):
        data_named(str(tmp_path / "mine.parquet"))
