"""Which images of a folder are loaded: all, or what is left out is counted; and what their classes are."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unnoise.experiments.images import Data
from unnoise.shared.data import image_dataset, images
from unnoise.shared.data.class_labels import labels_of, natural_order
from unnoise.shared.data.folders import SPLITS, list_images
from unnoise.shared.data.images import missing_test_split
from unnoise.shared.errors import UsageError


def put(root, *names):
    """Images of one pixel, number n with the value n, in the order of their names here."""
    for n, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(np.full((1, 1), n, np.uint8)).save(path)
        else:
            path.write_text("words")
    return root


def read(root, split="train"):
    """Values of the images, labels and names of a split."""
    found = image_dataset(root, split=split)
    return found.k.flatten().tolist(), None if found.label is None else found.label.tolist(), found.names


WORDS = (
    "steam train.png",
    "test tubes.png",
    "ph_test.png",
    "01_val.png",
    "training day.png",
    "evaluation.png",
    "dev-1.png",
    "a.png",
)


def test_words_in_names_of_files_are_no_splits(tmp_path):
    put(tmp_path, *WORDS)
    assert sorted(read(tmp_path)[0]) == list(range(len(WORDS)))
    assert image_dataset(tmp_path).summary == "8 images of 1x1x1; no labels"


@pytest.mark.parametrize(
    "words", [("test", "urine", "blood"), ("train", "bus", "car"), ("Validation", "other"), ("eval", "test", "x")]
)
def test_words_beside_other_folders_are_classes(tmp_path, words):
    put(tmp_path, *(f"{word}/{n}.png" for word in words for n in range(2)))
    values, label, names = read(tmp_path)
    assert names == tuple(sorted(words, key=str.casefold))
    assert {value: names[n] for value, n in zip(values, label, strict=True)} == {
        i: words[i // 2] for i in range(2 * len(words))
    }


@pytest.mark.parametrize(("split", "word"), [(split, word) for split, words in SPLITS.items() for word in words])
@pytest.mark.parametrize("write", [str.lower, str.capitalize, str.upper])
def test_folders_named_after_splits_are_splits(tmp_path, split, word, write):
    other = "Test" if split == "train" else "Train"
    put(tmp_path, f"{write(word)}/a.png", f"{write(word)}/b.png", f"{other}/c.png")
    for name in {split, word}:
        assert read(tmp_path, name) == ([0, 1], None, None)
    assert read(tmp_path, other.lower())[0] == [2]


def test_the_classes_of_all_splits_are_numbered_together(tmp_path):
    put(tmp_path, "train/cat/0.png", "train/fish/0.png", "test/dog/0.png", "test/fish/0.png", "val/fish/1.png")
    names = ("cat", "dog", "fish")
    assert read(tmp_path) == ([0, 1], [0, 2], names)
    assert read(tmp_path, "test") == ([2, 3], [1, 2], names)
    assert read(tmp_path, "validation") == ([4], [2], names)
    assert (
        image_dataset(tmp_path).summary
        == "2 images of 1x1x1, 3 classes: cat 1, dog 0, fish 1; beside the splits test, validation"
    )


def test_class_folders_with_numbers_keep_their_order(tmp_path):
    put(tmp_path, *(f"{n}/a.png" for n in range(12)))
    assert read(tmp_path)[2] == tuple(map(str, range(12)))
    assert sorted(zip(*read(tmp_path)[:2], strict=True)) == [(n, n) for n in range(12)]
    assert sorted(["b10", "b2", "A1", "a", "10", "9", "ä", "01", "1"], key=natural_order) == [
        "01",
        "1",
        "9",
        "10",
        "a",
        "A1",
        "b2",
        "b10",
        "ä",
    ]


@pytest.mark.parametrize("wrapped", ["", "data/", "data/images/"])
def test_a_folder_in_a_folder_is_looked_through(tmp_path, wrapped):
    put(tmp_path, *(wrapped + name for name in ("train/cat/0.png", "train/dog/deep/er/1.png", "test/cat/2.png")))
    assert read(tmp_path) == ([0, 1], [0, 1], ("cat", "dog"))
    shutil.rmtree(next(tmp_path.iterdir()))
    put(tmp_path / "other", *(wrapped + name for name in ("cat/0.png", "dog/deep/er/1.png")))
    assert read(tmp_path / "other") == ([0, 1], [0, 1], ("cat", "dog"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("train/a.png", "test/a.png", "extra/a.png"), "has test and train beside extra: if these are splits"),
        (("train/a.png", "test/a.png", "cover.png"), "has test and train beside cover.png: if these are splits"),
        (("train/a.png", "cover.png"), "has train beside cover.png: if these are splits"),
        (("Train/a.png", "training/a.png"), "Train and training of .* are both the split train: merge them"),
        (("test/a.png", "val/a.png"), "has no split train: its splits are test, validation; add a folder train"),
        (("notes.txt",), r"has no images \(1 other file left out: notes.txt\): put PNG"),
        ((".hidden.png",), r"has no images \(1 hidden file left out\)"),
        (
            ("a/b/c.pdf", "x.heic", "y.zip", "z.h5"),
            r"has no images \(4 other files left out: a/b/c.pdf, x.heic, y.zip, ...\)",
        ),
        (("train/x.txt",), "has no images"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, names, said):
    put(tmp_path, *names)
    with pytest.raises(UsageError, match=said) as error:
        image_dataset(tmp_path)
    assert "\n" not in str(error.value)


def test_a_split_that_is_not_there_says_what_to_do(tmp_path):
    put(tmp_path, "a.png", "b.png")
    with pytest.raises(
        UsageError,
        match="no split test, its 2 images are all the split train: move those to hold out into a folder test in it",
    ):
        image_dataset(tmp_path, split="test")
    with pytest.raises(UsageError, match="is a file"):
        image_dataset(tmp_path / "a.png")


def test_images_beside_class_folders_are_loaded_without_labels_and_it_says_why(tmp_path):
    put(tmp_path, "cover.png", "cat/a.png", "dog/a.png")
    assert read(tmp_path) == ([1, 0, 2], None, None)
    assert (
        image_dataset(tmp_path).summary
        == "3 images of 1x1x1; no labels: 1 of 3 images lie outside of the folders cat, dog, such as cover.png"
    )
    with pytest.raises(
        UsageError,
        match="no labels: 1 of 3 images lie outside of the folders cat, dog, such as cover.png; use a model without",
    ):
        images(tmp_path, batch=1, conditions=("label",))


def test_what_is_left_out_is_counted(tmp_path):
    put(
        tmp_path,
        "train/a.png",
        "train/b.txt",
        "train/._a.png",
        "train/Thumbs.db",
        "test/c.png",
        "test/d.txt",
        "README",
        "x.webm",
    )
    (tmp_path / "train" / "c.HEIC").write_text("")
    (tmp_path / ".git").mkdir()
    assert image_dataset(tmp_path).summary == (
        "1 image of 1x1x1; no labels; beside the split test; 4 other files left out: README, train/b.txt, train/c.HEIC, ...; "
        "3 hidden files left out"
    )
    assert "3 other files left out: README, test/d.txt, x.webm" in image_dataset(tmp_path, split="test").summary


def test_endings_in_capitals_and_odd_paths(tmp_path):
    for name in ("with space", "[b] (c) {d} *?", "ünï-日本", "~x", "100%", "a'b\"c", "-rf"):
        root = put(tmp_path / name, "one [1].png", "zwei/ü*.png", "zwei/é?.png")
        (root / "zwei" / "é?.png").rename(root / "zwei" / "é?.PNG")
        assert sorted(read(root)[0]) == [0, 1, 2]
    odd = put(tmp_path / "bytes", "a.png")
    os.rename(os.fsencode(odd / "a.png"), os.fsencode(odd) + b"/\xff\n.png")
    assert read(odd)[0] == [0]
    (odd / "b.png").write_text("")
    os.rename(os.fsencode(odd / "b.png"), os.fsencode(odd) + b"/\xfe\n.png")
    with pytest.raises(UsageError, match="1 of 2 images .*\N{REPLACEMENT CHARACTER} .png") as error:
        image_dataset(odd)
    str(error.value).split("(it")[0].rsplit(": ", 1)[1].encode()  # can be printed


def test_links_are_followed_and_loops_are_not(tmp_path):
    put(tmp_path / "far", "a.png", "b.png")
    put(tmp_path / "near", "own/c.png")
    (tmp_path / "near" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "own" / "loop").symlink_to(tmp_path / "near")
    (tmp_path / "near" / "own" / "d.png").symlink_to(tmp_path / "far" / "b.png")
    assert read(tmp_path / "near") == ([0, 1, 0, 1], [0, 0, 1, 1], ("linked", "own"))


def test_slices_of_a_split(tmp_path):
    put(tmp_path, *(f"{n}/{m}.png" for n in range(2) for m in range(5)))
    assert read(tmp_path, "train[:70%]")[0] == list(range(7))
    assert read(tmp_path, "train[-3:]")[:2] == ([7, 8, 9], [1, 1, 1])
    for wrong in ("train[a:]", "train[5:5]", "train[:3"):
        with pytest.raises(UsageError, match="give a slice such as"):
            image_dataset(tmp_path, split=wrong)


NAMES = st.sampled_from(["a", "b2", "train", "Test", "val", "11", ".h", "x y", "[c]"])
FILES = st.sampled_from(
    ["1.png", "test.png", "train_2.PNG", "val.png", "n.txt", ".x.png", "metadata.txt", "steam train.png"]
)
TREES = st.lists(
    st.tuples(st.lists(NAMES, max_size=3), FILES).map(lambda t: "/".join([*t[0], t[1]])),
    min_size=1,
    max_size=8,
    unique=True,
)


@settings(deadline=None, max_examples=150, derandomize=True, database=None)
@given(TREES)
def test_every_file_of_any_tree_is_loaded_or_counted(tmp_path_factory, tree):
    """Over the splits that a folder says it has, each image is loaded once, and each other file is counted.

    Or one line refuses it.
    """
    root = tmp_path_factory.mktemp("tree")
    for name in tree:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    hidden = {tuple(n.split("/")[: i + 1]) for n in tree for i, p in enumerate(n.split("/")) if p.startswith(".")}
    hidden = {h for h in hidden if not any(p.startswith(".") for p in h[:-1])}
    seen = [n for n in tree if not any(p.startswith(".") for p in n.split("/"))]
    loaded, refused = [], {}
    for split in SPLITS:
        try:
            found = list_images(str(root), split)
        except UsageError as error:
            refused[split] = str(error)
            continue
        loaded += found.files
        numbers = found.labels.numbers
        assert numbers is None or len(numbers) == len(found.files)
        assert f"{len(hidden)} hidden file" in " ".join(found.notes) or not hidden
    pictures = [n for n in seen if n.lower().endswith(".png")]
    if len(refused) == 3:
        assert all("\n" not in line for line in refused.values())
        assert not pictures or all("beside" in line or "both the split" in line for line in refused.values())
    else:
        assert sorted(loaded) == sorted(pictures)
        assert all("has no split" in line for line in refused.values())


# ---- metadata


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
            tmp_path, form, [{"file_name": f, "label": v, "caption": "x"} for f, v in zip(files, labels, strict=True)]
        )
        assert read(tmp_path) == ([1, 0, 2], numbers, names)  # a, c, sub dir/b
        assert "columns of the metadata that are not read: caption" in image_dataset(tmp_path).summary


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
                UsageError, match="the split train has no image of c, but another split does: remove those images, or add"
            ):
                image_dataset(tmp_path, split=split, classes=classes)
    assert len(image_dataset(tmp_path).k) == 2


def test_a_folder_without_test_says_so_before_training(tmp_path):
    put(tmp_path / "flat", *(f"{n}.png" for n in range(3)))
    put(tmp_path / "held", "train/a.png", "train/b.png", "val/c.png")
    put(tmp_path / "one", "train/a.png", "test/b.png")
    put(tmp_path / "two", "train/a.png", "test/b.png", "test/c.png")
    assert missing_test_split("digits") == missing_test_split(str(tmp_path / "two")) == ""
    assert missing_test_split(str(tmp_path / "flat")).endswith("and all others into a folder train, and train again")
    assert missing_test_split(str(tmp_path / "held")).endswith(
        "held has no split test: its splits are train, validation; add a folder test"
    )
    assert "one has 1 image, and a standard error needs at least 2: hold more images out" in missing_test_split(
        str(tmp_path / "one")
    )
    said = Data(str(tmp_path / "held")).load().summary
    assert "; `unnoise evaluate` will have no images to measure on: the folder" in said
    assert (
        "evaluate"
        not in Data(str(tmp_path / "two")).load().summary + Data(str(tmp_path / "held")).load("validation").summary
    )
