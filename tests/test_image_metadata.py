"""Class labels in the metadata of a folder of images."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from image_folders import put, read

from unnoise.shared.data import image_dataset
from unnoise.shared.data.class_labels import labels_of
from unnoise.shared.data.columns import Columns, captions_of
from unnoise.shared.errors import UsageError


def table(root, form, rows):
    """A metadata file of a form."""
    if form == "csv":
        columns = list(dict.fromkeys(c for row in rows for c in row))
        lines = [", ".join(columns), *(",".join(str(row.get(c, "")) for c in columns) for row in rows)]
        (root / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    elif form == "jsonl":
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), root / "metadata.parquet")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_metadata_give_labels_and_names(tmp_path, form):
    put(tmp_path, "c.png", "a.png", "sub dir/b.png")
    files = ("sub dir/b.png", "c.png", "./a.png")
    for labels, numbers, names in (
        ((3, 1, 2), [2, 1, 3], None),
        (("dog", "cat", "dog"), [1, 0, 1], ("cat", "dog")),
        (("class10", "class2", "class2"), [0, 0, 1], ("class2", "class10")),
    ):
        table(
            tmp_path,
            form,
            [{"file_name": f, "label": v, "caption": f"a {f}", "by": "x"} for f, v in zip(files, labels, strict=True)],
        )
        assert read(tmp_path) == ([1, 0, 2], numbers, names)  # a, c, sub dir/b
        found = image_dataset(tmp_path)
        assert found.captions == ("a ./a.png", "a c.png", "a sub dir/b.png")
        assert "columns of the metadata that are not read: by" in found.summary
        assert image_dataset(tmp_path, columns=Columns(caption="by")).captions == ("x", "x", "x")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a.png", 1)], "1 of 2 are missing, such as that of b.png"),
        ([("a.png", 1), ("b.png", "")], "1 of 2 are missing, such as that of b.png"),
        ([("a.png", 1), ("b.png", 0.5)], "0.5 is not a class label"),
        ([("a.png", -1), ("b.png", -1)], "all are -1"),
        ([("a.png", 1), ("b.png", -1)], "1 are below 0, such as -1"),
        ([("a.png", 1), ("b.png", 3_000_000_000)], "3000000000 is not a class label"),
        ([("a.png", ""), ("b.png", "")], "the metadata have none"),
    ],
)
def test_labels_that_are_none_are_said(tmp_path, form, rows, said):
    put(tmp_path, "a.png", "b.png")
    table(tmp_path, form, [{"file_name": f, "label": v} for f, v in rows])
    assert read(tmp_path) == ([0, 1], None, None)
    assert f"no labels: {said}" in image_dataset(tmp_path).summary


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"file_name": "a.png", "label": 0}, {"file_name": "gone.png", "label": 1}],
            "names 1 of 2 images that do not exist, such as gone",
        ),
        ([{"file_name": "a.png", "label": 0}, {"file_name": "a.png", "label": 1}], "gives a.png two labels"),
        (
            [{"image": "a.png", "label": 0}],
            "has no column file_name, its columns are image, label: rename the column with the names of the images",
        ),
        (
            [{"file_name;label": "a.png;0"}],
            "has no column file_name, its columns are file_name;label: separate them by commas, and",
        ),
        (
            [{"file_name": "a.png", "label": 0}, {"file_name": "", "label": 1}],
            "has no file_name in row 2: give the name of an image in each row",
        ),
    ],
)
def test_metadata_that_do_not_fit_are_refused(tmp_path, rows, said):
    put(tmp_path, "a.png", "b.png")
    for form in ("csv", "jsonl", "parquet"):
        table(tmp_path, form, rows)
        with pytest.raises(UsageError, match=rf"metadata.{form} of .* {said}"):
            image_dataset(tmp_path)
        (tmp_path / f"metadata.{form}").unlink()


def test_metadata_lie_beside_or_above_the_images(tmp_path):
    put(tmp_path, "train/a.png", "train/b.png", "test/a.png")
    table(
        tmp_path,
        "csv",
        [{"file_name": f, "label": v} for f, v in (("train/a.png", "x"), ("train/b.png", "z"), ("test/a.png", "y"))],
    )
    assert read(tmp_path)[1:] == ([0, 2], ("x", "y", "z"))
    assert read(tmp_path, "test")[1:] == ([1], ("x", "y", "z"))
    table(tmp_path / "test", "jsonl", [{"file_name": "a.png", "label": "z"}])  # the nearer one
    assert read(tmp_path, "test")[1:] == ([1], ("x", "z"))
    table(tmp_path, "jsonl", [])
    with pytest.raises(UsageError, match="describe one folder: remove one of them"):
        image_dataset(tmp_path)
    (tmp_path / "metadata.csv").rename(tmp_path / "metadata.txt")
    (tmp_path / "metadata.jsonl").write_text("{")
    with pytest.raises(UsageError, match="metadata.jsonl cannot be read"):
        image_dataset(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_bytes("file_name,label\nä.png,1".encode("latin-1"))
    with pytest.raises(UsageError, match="metadata.csv cannot be read.*utf-8"):
        image_dataset(tmp_path)


def test_columns_of_labels():
    for values, numbers, names in (
        (["1", " 2 ", "3.0"], [1, 2, 3], None),
        ([True, False], [1, 0], None),
        ([1.0, 2.0], [1, 2], None),
        (["b", "1"], [1, 0], ("1", "b")),
    ):
        assert labels_of(values)[:2] == (numbers, names)
    for values, reason in (([[1], [2]], "[1]"), ([0.5, 1], "0.5"), (["a", 1], "a"), (["x", "1.5"], "1.5")):
        assert labels_of(values)[:3] == (None, None, f"{reason} is not a class label")
    assert labels_of([None, None])[:3] == (None, None, "")
    assert labels_of(["b"], ["a", "b", "c"])[:3] == ([1], ("a", "b", "c"), "")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_labels_in_a_column_of_another_name_are_asked_for(tmp_path, form):
    put(tmp_path, "a.png", "b.png")
    table(tmp_path, form, [{"file_name": f"{name}.png", "class": name, "size": 1} for name in "ab"])
    said = "no labels: the metadata have no column label, their columns are class, size"
    assert image_dataset(tmp_path).summary == f"2 images of 1x1x1; {said}"
    with pytest.raises(UsageError, match=rf"classes=2: .* has {said}; use a model without"):
        image_dataset(tmp_path, classes=2)
    put(tmp_path, "a/a.png", "b/b.png")  # now folders are classes
    for name in "ab":
        (tmp_path / f"{name}.png").unlink()
    (tmp_path / f"metadata.{form}").unlink()
    table(tmp_path, form, [{"file_name": f"{name}/{name}.png", "class": name} for name in "ab"])
    assert read(tmp_path) == ([0, 1], [0, 1], ("a", "b"))
    assert "columns of the metadata that are not read: class" in image_dataset(tmp_path).summary


@pytest.mark.parametrize("where", ["folders", "metadata"])
def test_a_class_outside_of_train_alone_is_named(tmp_path, where):
    """No number of classes would do, and so none is asked for; without classes the images are taken."""
    files = {"train/a/0.png": "a", "train/b/0.png": "b", "test/a/0.png": "a", "test/c/0.png": "c"}
    flat = {name.replace("/a/", "/a").replace("/b/", "/b").replace("/c/", "/c"): v for name, v in files.items()}
    put(tmp_path, *(files if where == "folders" else flat))
    if where == "metadata":
        table(tmp_path, "csv", [{"file_name": name, "label": v} for name, v in flat.items()])
    for classes in (2, 3):
        for split in ("train", "test"):
            with pytest.raises(
                UsageError,
                match="the split train has no image of c, but another split does: remove those images, or add",
            ):
                image_dataset(tmp_path, split=split, classes=classes)
    assert len(image_dataset(tmp_path).k) == 2


def test_columns_of_captions():
    assert captions_of(["a", "b"]) == (("a", "b"), "")
    assert captions_of([["a", "b"], ["c"]]) == (("a", "c"), "")  # several captions of each image
    assert captions_of([None, ""]) == captions_of([[], []]) == (None, "")
    assert captions_of(["a", None, ""]) == (None, "2 of 3 are missing")
    assert captions_of(["a", 3]) == (None, "3 is not a text")


def test_bundled_captions():
    train, test = (image_dataset("openmoji32", split=split) for split in ("train", "test"))
    assert (len(train.k), len(test.k), train.shape, len(train.names)) == (2176, 280, (3, 32, 32), 11)
    assert train.captions[5] == "grinning face with sweat"
    assert train.names[train.label[5]] == "smileys-emotion"
    part = train.subset(4)
    assert part.captions == tuple(train.captions[row] for row in (0, 544, 1088, 1632))
    assert torch.equal(part.k, train.k[::544])
    assert train.summary.startswith("2,176 images of 3x32x32, with captions, 11 classes: activities 73, ")
