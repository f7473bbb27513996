"""Images in local table files: Parquet, Arrow, CSV, JSON and tar, as on the Hub and as people have them."""

import csv
import io
import json
import tarfile

import datasets
import pytest
import torch
from PIL import Image

from unnoise.experiments.cli import main
from unnoise.shared.data import image_dataset
from unnoise.shared.data.columns import Columns
from unnoise.shared.data.sources import absolute
from unnoise.shared.data.table_files import split_in, table_files
from unnoise.shared.errors import UsageError


def pictures(count, size=8, seed=0):
    """Random images in color, `(N, 3, size, size)`, and as Pillow images."""
    pixels = torch.randint(256, (count, size, size, 3), generator=torch.Generator().manual_seed(seed)).byte()
    return pixels.permute(0, 3, 1, 2), [Image.fromarray(p.numpy()) for p in pixels]


def png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def table(image, images, names=None, **columns):
    """A table of images in the types of the Hub; `names` are those of the classes of its column label."""
    rows = datasets.Dataset.from_dict({image: images, **columns}).cast_column(image, datasets.Image())
    return rows if names is None else rows.cast_column("label", datasets.ClassLabel(names=names))


def test_the_layout_of_cifar10(tmp_path):
    """`plain_text/train-00000-of-00001.parquet` with the columns img and label."""
    names = ["airplane", "automobile", "bird"]
    (tmp_path / "plain_text").mkdir()
    for split, count in (("train", 6), ("test", 3)):
        rows = table("img", pictures(count)[1], names, label=[n % 3 for n in range(count)])
        rows.to_parquet(tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("words")
    train, test = (image_dataset(tmp_path, split=split, classes=3) for split in ("train", "test"))
    assert torch.equal(train.k, pictures(6)[0])
    assert (train.label.tolist(), train.names) == ([0, 1, 2, 0, 1, 2], tuple(names))
    assert train.summary == "6 images of 3x8x8, 3 classes: airplane 2, automobile 2, bird 2"
    assert len(test.k) == 3
    part = image_dataset(tmp_path, split="train[:50%]")
    assert torch.equal(part.k, train.k[:3])


def test_the_layout_of_cifar100_and_of_several_shards(tmp_path):
    """`fine_label` is the label, and shards are read in their order."""
    (tmp_path / "data").mkdir()
    for shard in range(2):
        rows = table("img", pictures(3, seed=shard)[1], fine_label=[5, 7, shard], coarse_label=[0, 1, 1])
        rows.to_parquet(tmp_path / "data" / f"train-0000{shard}-of-00002.parquet")
    rows.to_parquet(tmp_path / "data" / "extra.parquet")
    found = image_dataset(tmp_path)
    assert torch.equal(found.k, torch.cat([pictures(3, seed=shard)[0] for shard in range(2)]))
    assert found.label.tolist() == [5, 7, 0, 5, 7, 1]
    assert found.notes == ("1 file without a split in their names left out: extra.parquet",)
    assert image_dataset(tmp_path, columns=Columns(label="coarse_label")).label.tolist() == [0, 1, 1, 0, 1, 1]
    with pytest.raises(UsageError, match="has no split test: its splits are train, by the names of its files; add a"):
        image_dataset(tmp_path, split="test")


def test_the_layout_of_imagenet(tmp_path):
    """A test split without labels, and a split called validation; images of several sizes and JPEG files."""
    for split, labels in (("train", [0, 1]), ("validation", [1, 0]), ("test", [-1, -1])):
        images = [Image.new("RGB", (20 + n, 16), (50 * n, 0, 0)) for n in range(2)]
        rows = table("image", images, ["tench", "goldfish"], label=labels)
        rows.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    assert image_dataset(tmp_path, split="validation", size=(8, 8), classes=2).label.tolist() == [1, 0]
    assert image_dataset(tmp_path, split="test", size=(8, 8)).summary.endswith("no labels: all are -1")
    with pytest.raises(UsageError, match="2 different shapes.*give size="):
        image_dataset(tmp_path)


def save(rows, path, kind):
    if kind == "arrow":
        rows.save_to_disk(str(path))
        return path
    rows.to_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_one_file_and_its_columns(tmp_path, kind):
    rows = table("photo", pictures(4)[1], kind=["b", "a", "b", "c"], words=["one", "two", "three", None])
    at = save(rows, tmp_path / "mine", kind)
    found = image_dataset(at)  # the only column of images
    assert torch.equal(found.k, pictures(4)[0])
    assert (found.label, found.captions) == (None, None)
    columns = Columns("photo", "kind", "words")
    found = image_dataset(at, columns=columns)
    assert (found.label.tolist(), found.names) == ([1, 0, 1, 2], ("a", "b", "c"))
    assert found.notes == ("no captions: 1 of 4 are missing",)
    with pytest.raises(UsageError, match="caption_column=x: .*mine.* has the columns photo, kind, words: give one of"):
        image_dataset(at, columns=Columns(caption="x"))
    other = save(rows.remove_columns("photo").add_column("photo", [1.0] * 4), tmp_path / "n", kind)
    with pytest.raises(UsageError, match="has no images in the column photo: its columns are kind, words, photo; give"):
        image_dataset(other, columns=Columns("photo"))
    with pytest.raises(UsageError, match=r"4 of 4 images of .* cannot be read: b \(No such file"):  # paths
        image_dataset(other, columns=Columns("kind"))


def test_bytes_without_a_type(tmp_path):
    """Parquet files that other programs write hold the bytes of an image, or a struct of bytes and path."""
    encoded = [png(image) for image in pictures(3)[1]]
    for n, column in enumerate([encoded, [{"bytes": e, "path": None} for e in encoded]]):
        datasets.Dataset.from_dict({"image": column}).to_parquet(tmp_path / f"{n}.parquet")
        assert torch.equal(image_dataset(tmp_path / f"{n}.parquet").k, pictures(3)[0])


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_paths_relative_to_the_file(tmp_path, monkeypatch, kind):
    (tmp_path / "files").mkdir()
    rows = []
    for n, image in enumerate(pictures(3)[1]):
        image.save(tmp_path / "files" / f"{n}.png")
        rows.append({"image": f"files/{n}.png", "label": ["NA", "b", "a"][n], "caption": f"number {n}"})
    at = tmp_path / f"list.{kind}"
    if kind == "csv":
        with at.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        at.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    monkeypatch.chdir("/")
    found = image_dataset(at)
    assert torch.equal(found.k, pictures(3)[0])
    assert (found.label.tolist(), found.names) == ([2, 1, 0], ("a", "b", "NA"))
    assert found.captions == ("number 0", "number 1", "number 2")
    (tmp_path / "files" / "1.png").unlink()
    with pytest.raises(UsageError, match=r"1 of 3 images of .* cannot be read: files/1.png \(No such file"):
        image_dataset(at)
    at.write_text("{" if kind != "csv" else "image\n")
    with pytest.raises(UsageError, match="cannot be read as json|has no rows in the split train"):
        image_dataset(at)
    at.write_bytes(b"")
    with pytest.raises(UsageError, match="is empty"):
        image_dataset(at)


def pack(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_tar_files(tmp_path):
    images = pictures(5)[1]
    for shard, rows in enumerate(((0, 1, 2), (3, 4))):
        members = {}
        for n in rows:
            members |= {f"a/{n}.png": png(images[n]), f"a/{n}.cls": f"{n % 2}\n".encode()}
            members |= {f"a/{n}.txt": f"text {n}".encode(), f"a/{n}.json": json.dumps({"kind": "xy"[n % 2]}).encode()}
            members |= {f"a/{n}.npy": b"raw"}
        pack(tmp_path / f"train-{shard:05}.tar", members)
    found = image_dataset(tmp_path)
    assert torch.equal(found.k, pictures(5)[0])
    assert found.label.tolist() == [0, 1, 0, 1, 0]
    assert found.captions == tuple(f"text {n}" for n in range(5))
    assert found.notes == ("members that are not read: .npy",)
    found = image_dataset(str(tmp_path / "train-*.tar"), columns=Columns(label="kind"))
    assert (found.label.tolist(), found.names) == ([0, 1, 0, 1, 0], ("x", "y"))
    with pytest.raises(UsageError, match="label_column=q: .* has the columns cls, txt, kind: give one"):
        image_dataset(tmp_path, columns=Columns(label="q"))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"0.pkl": b"x"}, "contains the pickle 0.pkl, which can run code when it is read"),
        ({"0.cls": b"1"}, "the example 0 of .* has no image: remove it"),
        (
            {"0.a.png": b"1", "0.b.png": b"2"},
            "has the images a.png, b.png: give one .*-column a.png",
        ),
        ({"0.png": b"1", "0.json": b"["}, "0.json in .* is not JSON"),
        ({"0.png": b"1", "0.json": b"[1]"}, "0.json in .* is not a JSON object"),
        ({"0.png": b"1", "0.txt": b"\xff"}, "cannot be read .*utf-8"),
        ({"0.png": b"1"}, r"1 of 1 images of .* cannot be read: 0.png in x.tar \(it is not an image"),
    ],
)
def test_tar_files_that_do_not_fit_are_refused(tmp_path, members, said):
    with pytest.raises(UsageError, match=said) as error:
        image_dataset(pack(tmp_path / "x.tar", members))
    assert "\n" not in str(error.value)


def test_tar_files_that_are_cut_or_compressed_are_refused(tmp_path):
    at = pack(tmp_path / "x.tar", {f"{n}.png": png(image) for n, image in enumerate(pictures(4, 40)[1])})
    whole = at.read_bytes()
    at.write_bytes(whole[:9000])
    with pytest.raises(UsageError, match="x.tar cannot be read .unexpected end of data"):
        image_dataset(at)
    with tarfile.open(at, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    with pytest.raises(UsageError, match="x.tar cannot be read .*: give an uncompressed tar file"):
        image_dataset(at)


def test_a_run_on_a_tar_file_with_a_held_out_share(tmp_path, capsys):
    """Trained, measured and resumed: the share is a setting of the run."""
    members = {}
    for n, image in enumerate(pictures(40)[1]):
        members |= {f"{n}.png": png(image), f"{n}.json": json.dumps({"kind": "xy"[n % 2]}).encode()}
    name, run = str(pack(tmp_path / "x.tar", members)), str(tmp_path / "run")
    settings = ["--data.name", name, "--data.held-out", "10", "--data.classes", "None"]
    train = ["train", "ddpm-smoke", "--out", run, *settings, "--data.batch", "8", "--training.steps", "2"]
    assert main(train) == 0
    out = capsys.readouterr().out
    assert "30 images of 3x8x8; no labels" in out
    assert "10 of 40 examples are held out (held_out=10)" in out
    assert main([*train[:4], "--resume", "--training.steps", "3"]) == 0
    capsys.readouterr()
    assert main(["evaluate", run, "--count", "4"]) == 0
    out = capsys.readouterr().out
    assert "10 images of 3x8x8; no labels" in out
    assert "bits_per_dim" in out
    pack(tmp_path / "x.tar", {name: content for name, content in members.items() if not name.startswith("39.")})
    assert main(["evaluate", run]) == 2
    assert "training examples now, and this run was trained on 30" in capsys.readouterr().err


def test_splits_in_names():
    for path, split in (
        ("train-00000-of-00002.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "validation"),
        ("val/0.tar", "validation"),
        ("my test.csv", "test"),
        ("cats_dev_3.json", "validation"),
        ("training/test.json", "train"),  # the folder is the split
        ("latest.parquet", None),
        ("trainer.csv", None),
        ("a.parquet", None),
    ):
        assert split_in(path.split("/")) == split, path


def test_files_of_several_kinds_and_globs(tmp_path, monkeypatch):
    train = tmp_path / "train"  # the name of a folder above does not count
    train.mkdir()
    rows = table("image", pictures(2)[1])
    rows.to_parquet(train / "test.parquet")
    assert list(table_files(str(train)).splits) == ["test"]
    (train / "b.csv").write_text("image\n")
    with pytest.raises(UsageError, match=r"several kinds, csv \(b.csv\), parquet \(test.parquet\): give one kind"):
        table_files(str(train))
    pattern = str(train / "*.parquet")
    assert list(table_files(pattern).splits) == ["test"]
    with pytest.raises(UsageError, match="no file matches"):
        table_files(str(train / "*.tar"))
    monkeypatch.chdir(tmp_path)
    assert absolute("train/*.parquet", ()) == pattern
    assert absolute("train/*.tar", ()) == "train/*.tar"
    Image.new("L", (1, 1)).save(train / "a.png")
    assert table_files(str(train)) is None  # a folder of images
    with pytest.raises(UsageError, match=r"is one file, the split train, and has no split test: give a folder of"):
        image_dataset(train / "test.parquet", split="test")
