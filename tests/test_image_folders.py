"""Which images of a folder are loaded: all, or what is left out is counted; and what their classes are."""

import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import put, read

from unnoise.experiments.image_data import Images
from unnoise.shared.data import image_dataset, images
from unnoise.shared.data.class_labels import natural_order
from unnoise.shared.data.folders import SPLITS, list_images
from unnoise.shared.data.images import measured_split
from unnoise.shared.errors import UsageError

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
        "1 image of 1x1x1; no labels; beside the split test; 4 other files left out: README, train/b.txt, "
        "train/c.HEIC, ...; 3 hidden files left out"
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


def test_a_folder_without_test_says_so_before_training(tmp_path):
    put(tmp_path / "flat", *(f"{n}.png" for n in range(3)))
    put(tmp_path / "held", "train/a.png", "train/b.png", "val/c.png")
    put(tmp_path / "one", "train/a.png", "test/b.png")
    put(tmp_path / "two", "train/a.png", "test/b.png", "test/c.png")
    put(tmp_path / "validation", "train/a.png", "val/c.png", "val/d.png")
    assert measured_split("digits") == measured_split(str(tmp_path / "two")) == ("test", "")
    assert measured_split(str(tmp_path / "validation")) == ("validation", "")
    assert measured_split(str(tmp_path / "flat"))[1].endswith("or hold out a share (--data.held-out 0.1)")
    assert measured_split(str(tmp_path / "held"))[1].endswith(
        "held has no split test: its splits are train, validation; add a folder test"
    )
    assert (
        "one has 1 image, and a standard error needs at least 2: hold more images out"
        in measured_split(str(tmp_path / "one"))[1]
    )
    said = Images(str(tmp_path / "held")).load().summary
    assert "; `unnoise evaluate` will have no images to measure on: the folder" in said
    assert (
        "evaluate"
        not in Images(str(tmp_path / "two")).load().summary + Images(str(tmp_path / "held")).load("validation").summary
    )
    validation = Images(str(tmp_path / "validation"))
    assert "evaluate" not in validation.load().summary
    assert validation.load("test").notes[-1] == "the split validation, since no split test can be measured on"
    assert validation.load("test").k.flatten().tolist() == [1, 2]
