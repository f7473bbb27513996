"""Labels of data are compared with the classes of a model before anything is trained, and names of classes are kept and
shown.
"""

import json
import re
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from unnoise.continuous import DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.discrete import Categorical, CrossEntropy, Uniform, reciprocal
from unnoise.experiments.cli import main
from unnoise.experiments.cli.sampling import of_classes
from unnoise.experiments.image_data import Images
from unnoise.shared.data import Batches, ImageDataset, image_dataset
from unnoise.shared.data.class_labels import class_counts
from unnoise.shared.data.columns import Columns
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.guidance import ClassifierGradient, ClassifierLoss, ConditionDropout, NoisyClassifier
from unnoise.shared.networks import MLP, DiT, Encoder, ImageDiT, Transformer, UNet
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training

TABLE = Tabulated(linear_betas(50))


def unet(**more):
    return UNet((1, 8, 8), width=8, multipliers=(1,), blocks=1, attention=(), classes=3, **more)


OBJECTIVES = {
    "U-Net": lambda: DenoisingLoss.simple(Learned(unet(), TABLE)),
    "no null label": lambda: DenoisingLoss.simple(Learned(unet(null_label=False), TABLE)),
    "dropout": lambda: ConditionDropout(DenoisingLoss.simple(Learned(unet(), TABLE))),
    "transformer of images": lambda: DenoisingLoss.simple(Learned(ImageDiT((1, 8, 8), 4, 16, 1, 2, classes=3), TABLE)),
    "perceptron": lambda: DenoisingLoss.simple(Learned(MLP(5, width=8, classes=3), TABLE)),
    "classifier": lambda: ClassifierLoss(NoisyClassifier(Encoder((1, 8, 8), 3, 8, (1,), 1), TABLE)),
    "transformer of tokens": lambda: CrossEntropy(
        Categorical(Transformer(7, 5, width=16, depth=1, heads=2, classes=3), Uniform(7, reciprocal(50)))
    ),
    "DiT": lambda: CrossEntropy(
        Categorical(DiT(7, 5, width=16, depth=1, heads=2, classes=3), Uniform(7, reciprocal(50)))
    ),
}


def data(name, label, batch=3):
    """Batches of twelve examples of the objective's shape, with labels."""
    shape = {"perceptron": (5,), "transformer of tokens": (5,), "DiT": (5,)}.get(name, (1, 8, 8))
    tokens = name in ("transformer of tokens", "DiT")
    k = torch.arange(12 * int(np.prod(shape))).reshape(12, *shape) % 7
    return Batches(
        k,
        batch,
        Quantization(7),
        Quantization.quantized if tokens else Quantization.continuous,
        None if label is None else {"label": label},
    )


def weights(objective):
    return [p.detach().clone() for p in objective.parameters()]


LABELS = {
    "from 1": (
        torch.arange(12) % 3 + 1,
        "labels of the data are 1 to 3, and the network has classes 0 to 2 .3 means no class.*classes=4",
    ),
    "one too many": (torch.arange(12) % 4, "labels of the data are 0 to 3"),
    "far too many": (torch.arange(12), "are 0 to 11, and the network has classes 0 to 2: number them from 0, or.*=12"),
    "below 0": (torch.arange(12) % 3 - 1, "labels of the data are -1 to 1.*: number them from 0$"),
    "one in twelve": (torch.tensor([0] * 11 + [3]), "labels of the data are 0 to 3"),
}


@pytest.mark.parametrize("wrong", LABELS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_labels_that_are_no_classes_are_refused_before_a_step(name, wrong):
    label, said = LABELS[wrong]
    objective = OBJECTIVES[name]()
    before = weights(objective)
    with pytest.raises(UsageError, match=said) as error:
        Trainer(objective, Training(steps=2, warmup=1)).fit(data(name, label))
    assert "\n" not in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(objective), strict=True))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_labels_that_are_classes_are_trained_and_leave_the_null_one(name):
    torch.manual_seed(0)
    objective = OBJECTIVES[name]()
    tables = [m for n, m in objective.denoiser.network.named_modules() if n == "label"]
    before = [t.table.weight.detach().clone() for t in tables]
    Trainer(objective, Training(steps=4, warmup=1, learning_rate=1e-2)).fit(data(name, torch.arange(12) % 3, batch=6))
    for table, old in zip(tables, before, strict=True):
        moved = (table.table.weight != old).any(1).tolist()
        assert moved[:3] != [False] * 3 or name == "DiT"  # whose gates are closed at first
        assert not any(moved[3:]) or name == "dropout"


def test_batches_of_any_kind_are_looked_at():
    """Batch by batch where they come one by one, so that the first wrong one is refused, and no earlier one."""
    label, seen = torch.arange(12) % 3, []

    def stream():
        for n in range(9):
            seen.append(n)
            yield {"x0": torch.zeros(12, 1, 8, 8), "label": label + (n == 4)}

    trainer = Trainer(OBJECTIVES["U-Net"](), Training(steps=9, warmup=1))
    with pytest.raises(UsageError, match="labels of the data are 1 to 3"):
        trainer.fit(stream())
    assert seen == list(range(5))
    assert trainer.step == 4


def test_arrays_are_looked_at():
    batch = {"x0": np.zeros((12, 1, 8, 8), np.float32), "label": np.arange(12) % 3 + 1}
    with pytest.raises(UsageError, match="labels of the data are 1 to 3"):
        Trainer(OBJECTIVES["U-Net"](), Training(steps=2, warmup=1)).fit([batch, batch])


def test_a_network_with_classes_is_not_trained_on_none_of_them():
    with pytest.raises(
        UsageError,
        match='only its input for no class would be trained: give conditions=."label",., or build it without',
    ):
        Trainer(OBJECTIVES["U-Net"](), Training(steps=2, warmup=1)).fit(data("U-Net", None))
    Trainer(DenoisingLoss.simple(Learned(UNet((1, 8, 8), 8, (1,), 1, ()), TABLE)), Training(steps=1, warmup=1)).fit(
        data("U-Net", None)
    )


def test_conditions_have_a_row_for_each_example():
    for count in (11, 13):
        with pytest.raises(
            UsageError, match=f"the data set has 12 examples, and label has {count} rows: give one row for each"
        ):
            data("U-Net", torch.zeros(count, dtype=torch.long))


def test_a_label_that_is_no_class_is_refused_in_sampling():
    objective = OBJECTIVES["U-Net"]()
    x, t = torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5, dtype=torch.float64)
    objective.denoiser(x, t, label=torch.tensor([0, 3]))  # 3 stands for none
    with pytest.raises(UsageError, match="label out of range: this network has classes 0 to 2, and 3 for no label"):
        objective.denoiser(x, t, label=torch.tensor([0, 4]))
    gradient = ClassifierGradient(OBJECTIVES["classifier"]().denoiser)
    for label, said in (
        (torch.tensor([0, 3]), "label is 0 to 3, but the classifier has classes 0 to 2"),
        (torch.tensor([0.0, 1.0]), "integers"),
    ):
        with pytest.raises(UsageError, match=said):
            gradient(x, t, label=label)


# ---- from the command line


def folder(path, *classes, each=3, split="train", size=8):
    """Images in class folders; the n-th class is gray about 40 n."""
    g = np.random.default_rng(0)
    for n, name in enumerate(classes):
        for i in range(each):
            at = path / split / name
            at.mkdir(parents=True, exist_ok=True)
            Image.fromarray((40 * n + g.integers(0, 40, (size, size))).astype(np.uint8)).save(at / f"{i}.png")
    return path


def labeled(path, labels):
    """A flat folder with a label for each image in metadata.csv."""
    path.mkdir(parents=True)
    for n in range(len(labels)):
        Image.new("L", (8, 8), n).save(path / f"{n:02}.png")
    (path / "metadata.csv").write_text(
        "file_name,label\n" + "".join(f"{n:02}.png,{label}\n" for n, label in enumerate(labels))
    )
    return path


def run(capsys, *arguments):
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err.strip().splitlines()[-1] if err.strip() else ""


SMALL = ("--data.batch", "2", "--training.steps", "2", "--training.device", "cpu")


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        ([1, 2, 3], "3", "classes=3: the labels of .* are 1 to 3, not 0 to 2: number them 0 to 2$"),
        ([0, 1, 2, 3], "3", "are 0 to 3, not 0 to 2: give --data.classes 4$"),
        ([2, 5, 9], "4", "are 2 to 9, not 0 to 3: number them 0 to 2 and give --data.classes 3$"),
        (
            [0, 1, 3],
            "4",
            r"has no image of 2, .*\(3 classes: 0 1, 1 1, 3 1\): number the labels 0 to 2 and give "
            r"--data.classes 3, or add images",
        ),
        (
            [1, 2, 3],
            "4",
            "has no image of 0, and samples are drawn of every class .*number the labels 0 to 2 and give --data.c",
        ),
        ([0, 1, 2], "10", "has no image of 3, 4, 5, 6, 7, ..., .*give --data.classes 3"),
        (["a", "b", "c"], "10", r"classes=10: .* has 3 classes: a 1, b 1, c 1; give --data.classes 3"),
        (
            ["a", "b", ""],
            "2",
            "no labels: 1 of 3 are missing, such as that of 02.png; use a model without classes.*--data.classes None",
        ),
        ([-1, -1, -1], "2", "no labels: all are -1"),
    ],
)
def test_a_recipe_is_refused_a_set_with_other_classes(tmp_path, capsys, labels, classes, said):
    path, out = labeled(tmp_path / "set", labels), tmp_path / "run"
    status, _, line = run(
        capsys, "train", "ddpm-smoke", "--data.name", str(path), "--data.classes", classes, "--out", str(out), *SMALL
    )
    assert status == 2
    assert re.search(said, line), line
    assert not out.exists()


@pytest.mark.parametrize("recipe", ["ddpm-smoke", "d3pm-smoke", "score-sde-smoke", "classifier-free-smoke"])
def test_a_folder_of_one_class_too_many_is_refused_in_every_family(tmp_path, capsys, recipe):
    path = folder(tmp_path / "set", "a", "b", "c")
    status, _, line = run(
        capsys, "train", recipe, "--data.name", str(path), "--data.classes", "2", "--out", str(tmp_path / "run"), *SMALL
    )
    assert status == 2
    assert re.search("classes=2: .* has 3 classes: a 3, b 3, c 3; give --data.classes 3", line), line


def test_counts_are_printed_and_names_are_kept_and_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "unnoise.experiments.evaluation.judge_of.__defaults__", (*[lambda items, total, label: items], 2)
    )
    path, home = (
        folder(folder(tmp_path / "set", "10", "9", "urine"), "9", "urine", each=2, split="Test"),
        str(tmp_path / "run"),
    )
    (path / "train" / "notes.txt").write_text("")
    status, out, line = run(
        capsys, "train", "ddpm-smoke", "--data.name", str(path), "--data.classes", "3", "--out", home, *SMALL
    )
    assert (status, line) == (0, line)
    said = "9 images of 1x8x8, 3 classes: 9 3, 10 3, urine 3; beside the split test; 1 other file left out: "
    said += "train/notes.txt"
    assert f"data: {said}\n" in out
    status, out, _ = run(capsys, "sample", home, "--count", "9", "--out", str(tmp_path / "s.png"))
    assert status == 0
    assert "of the classes 9, 10, urine in turn:" in out
    status, out, line = run(capsys, "evaluate", home)
    assert status == 0, line
    held_out = "4 images of 1x8x8, 3 classes: 9 2, 10 0, urine 2; beside the split train"
    assert re.search(rf"train +{re.escape(said)}\n", out)
    assert re.search(rf"held_out +{re.escape(held_out)}\n", out)
    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (results["train"], results["held_out"]) == (said, held_out)
    (path / "train" / "10").rename(path / "train" / "zebra")
    again = ("--training.steps", "3", "--resume")
    status, _, line = run(
        capsys, "train", "ddpm-smoke", "--data.name", str(path), "--data.classes", "3", "--out", home, *SMALL, *again
    )
    assert status == 2
    assert "names: was ['9', '10', 'urine'], now ['9', 'urine', 'zebra']" in line
    status, _, line = run(capsys, "evaluate", home)
    assert status == 2
    assert "the classes are 9, urine, zebra now, and were 9, 10, urine in training: give the data as they were" in line


def test_a_flat_folder_says_at_once_how_to_evaluate(tmp_path, capsys):
    home = str(tmp_path / "run")
    path = labeled(tmp_path / "set", [0, 1])
    assert (
        run(capsys, "train", "ddpm-smoke", "--data.name", str(path), "--data.classes", "2", "--out", home, *SMALL)[0]
        == 0
    )
    status, _, line = run(capsys, "evaluate", home)
    assert status == 2
    assert (
        "has no split test, its 2 images are all the split train: move those to hold out into a folder test in it"
        in line
    )


def test_a_held_out_set_with_other_labels_is_refused(tmp_path):
    path = folder(folder(tmp_path / "a", "x", "y"), "x", "z", split="test")
    with pytest.raises(UsageError, match=r"\(test\): the split train has no image of z, but another split does"):
        Images(str(path), classes=2).load("test")
    later = folder(folder(tmp_path / "later", "x", "y", "z"), "x", "z", split="test")
    with pytest.raises(
        UsageError,
        match=r"\(test\) has 3 classes: x 3, y 0, z 3; give the data as they were in training, or train again",
    ):
        Images(str(later), classes=2).load("test")
    flat = folder(tmp_path / "b", "x", "y")
    (flat / "test").mkdir()
    Image.new("L", (8, 8)).save(flat / "test" / "a.png")
    with pytest.raises(UsageError, match=r"classes=2: .* \(test\) has no labels"):
        Images(str(flat), classes=2).load("test")
    assert len(Images(str(flat)).load("test").k) == 1


def test_a_part_of_a_set_is_of_all_classes():
    found = ImageDataset(
        torch.arange(12)[:, None, None, None].to(torch.uint8), torch.arange(12) // 4, Quantization(), ("a", "b", "c")
    )
    assert found.subset(3).label.tolist() == [0, 1, 2]
    assert found.subset(5).k.flatten().tolist() == [0, 2, 4, 7, 9]
    assert found.subset(12) is found
    assert found.subset(99) is found
    assert found.subset(3).summary == "3 images of 1x1x1, 3 classes: a 1, b 1, c 1"


@pytest.mark.parametrize(
    ("classes", "count", "said"),
    [
        (None, 9, ""),
        (1, 9, " of the class a in turn"),
        (2, 9, " of the classes a, b in turn"),
        (3, 9, " of the classes a, b, c in turn"),
        (4, 9, " of the classes a, b, c, ... in turn"),
        (3, 3, " of the classes a, b, c"),
        (9, 2, " of the classes a, b"),
        (9, 1, " of the class a"),
    ],
)
def test_dots_stand_for_more_classes_alone(classes, count, said):
    label = None if classes is None else torch.arange(count) % classes
    assert of_classes(label, "abcdefghi") == said


def test_classes_that_are_not_written_out():
    assert class_counts(torch.arange(12).repeat(5)).endswith("9 5, and 2 more of 5 each")
    assert class_counts(torch.cat([torch.arange(12), torch.tensor([11])])).endswith("9 1, and 2 more of 1 to 2 each")
    assert class_counts(torch.arange(10)).endswith("8 1, 9 1")


# ---- sets on the hub


def hub(monkeypatch, **splits):
    """Sets by split, each (labels, feature or None)."""

    def load(name, split):
        labels, feature = splits[split]
        columns = {"image": [Image.new("L", (2, 2), n) for n in range(len(labels))], "label": labels}
        rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        return rows if feature is None else rows.cast_column("label", feature)

    monkeypatch.setattr(sys.modules["unnoise.shared.data.tables"], "load", load)


def test_labels_of_sets_on_the_hub(monkeypatch):
    hub(
        monkeypatch,
        train=([1, 0, 1], datasets.ClassLabel(names=["cat", "dog"])),
        test=([-1, -1], datasets.ClassLabel(names=["cat", "dog"])),
    )
    train, test = image_dataset("someone/pets"), image_dataset("someone/pets", split="test")
    assert (train.label.tolist(), train.names, train.k[:, 0, 0, 0].tolist()) == ([1, 0, 1], ("cat", "dog"), [0, 1, 2])
    assert train.summary == "3 images of 1x2x2, 2 classes: cat 1, dog 2"
    assert test.label is None
    assert test.summary == "2 images of 1x2x2; no labels: all are -1"


def test_names_on_the_hub_are_numbered_as_in_training(monkeypatch):
    hub(monkeypatch, train=(["b10", "b2", "a"], None), test=(["b10", "a"], None), validation=(["c"], None))
    assert (image_dataset("x/y").label.tolist(), image_dataset("x/y").names) == ([2, 1, 0], ("a", "b2", "b10"))
    assert image_dataset("x/y", split="test").label.tolist() == [2, 0]
    assert image_dataset("x/y", split="validation").summary.endswith("no labels: c is not a label of the train split")


def test_other_columns_on_the_hub(monkeypatch):
    def load(name, split):
        held = {"img": [Image.new("RGB", (2, 2))], "fine_label": [3], "coarse_label": [1]}
        held |= {"other_label": held.pop("fine_label")} if name == "other" else {}
        return datasets.Dataset.from_dict({"image": [[0, 1]]} if name == "numbers" else held)

    monkeypatch.setattr(sys.modules["unnoise.shared.data.tables"], "load", load)
    assert image_dataset("cifar").summary == "1 image of 3x2x2, 1 class: 3 1"
    assert image_dataset("cifar", columns=Columns(label="coarse_label")).label.tolist() == [1]
    said = "there is no column label, and the columns coarse_label, other_label are not read"
    assert image_dataset("other").summary == f"1 image of 3x2x2; no labels: {said}"
    with pytest.raises(
        UsageError, match="the data set numbers has no images in the column image: its columns are image; give"
    ):
        image_dataset("numbers")
    with pytest.raises(UsageError, match=r"label_column=x: cifar has the columns img, fine_label, coarse_label: give"):
        image_dataset("cifar", columns=Columns(label="x"))
