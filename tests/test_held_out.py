"""Examples that are held out of a set without a split for tests."""

import pytest
import torch
from image_folders import put

from unnoise.experiments.image_data import Images
from unnoise.shared.data import image_dataset
from unnoise.shared.data.held_out import held_out_rows
from unnoise.shared.errors import UsageError


@pytest.mark.parametrize("held_out", [0.1, 0.5, 7, 40])
def test_the_splits_are_disjoint_and_complete(held_out):
    train, test = (held_out_rows(100, held_out, split) for split in ("train", "test"))
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(100))
    assert torch.equal(test, test.sort().values)
    assert held_out < 1 or len(test) == held_out
    assert not torch.equal(test, held_out_rows(100, held_out, "test", seed=1))


def test_whether_an_example_is_held_out_depends_on_its_number_alone():
    few, many = held_out_rows(200, 0.1, "test"), held_out_rows(100_000, 0.1, "test")
    assert torch.equal(few, many[many < 200])
    share = len(many) / 100_000
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / 100_000) ** 0.5
    bits = torch.zeros(100_000).index_fill(0, many, 1.0)
    halves = bits.reshape(2, -1).mean(1)  # not the beginning or the end
    assert (halves - 0.1).abs().max() < 4 * (0.1 * 0.9 / 50_000) ** 0.5
    pairs = float(bits[:-1] @ bits[1:]) / 100_000  # neighbors are independent
    assert abs(pairs - 0.01) < 4 * (0.01 / 100_000) ** 0.5


@pytest.mark.parametrize(
    ("held_out", "said"),
    [
        (0.0, "held_out=0: give a share between 0 and 1, such as 0.1, or a number of examples of 2 or more"),
        (1.0, "held_out=1: give a share"),
        (1.5, "held_out=1.5: give a share"),
        (-3, "held_out=-3: give a share"),
        (20, "held_out=20 holds out 20 of 20 examples: hold out 2 or more, and leave some to train on"),
        (0.001, "held_out=0.001 holds out 0 of 20 examples"),
    ],
)
def test_shares_that_do_not_fit_are_refused(held_out, said):
    with pytest.raises(UsageError, match=said):
        held_out_rows(20, held_out, "train")


def test_images_with_their_labels_and_captions(tmp_path):
    put(tmp_path, *(f"{'ab'[n % 2]}/{n:02}.png" for n in range(30)))
    (tmp_path / "metadata.csv").write_text(
        "file_name,caption\n" + "\n".join(f"{'ab'[n % 2]}/{n:02}.png,number {n}" for n in range(30))
    )
    whole = image_dataset(tmp_path)
    train, test = (image_dataset(tmp_path, split=split, held_out=8, classes=2) for split in ("train", "test"))
    assert (len(train.k), len(test.k)) == (22, 8)
    assert sorted(torch.cat([train.k, test.k]).flatten().tolist()) == sorted(whole.k.flatten().tolist())
    for part in (train, test):
        values = part.k.flatten().tolist()
        assert part.label.tolist() == [value % 2 for value in values]
        assert part.captions == tuple(f"number {value}" for value in values)
        assert part.notes[-1] == "8 of 30 examples are held out (held_out=8)"
    assert len(image_dataset(tmp_path, split="train[:50%]", held_out=None).k) == 15
    with pytest.raises(UsageError, match="has no split validation"):
        image_dataset(tmp_path, split="validation", held_out=8)


def test_a_recipe_holds_out_the_same_examples_for_every_seed(tmp_path):
    put(tmp_path, *(f"{n:02}.png" for n in range(30)))
    data = [Images(str(tmp_path), held_out=0.2, seed=seed) for seed in (0, 1)]
    assert torch.equal(data[0].load("test").k, data[1].load("test").k)
    assert "evaluate" not in data[0].load().summary
    assert "will have no images to measure on" in Images(str(tmp_path)).load().summary
    digits = Images("digits", held_out=100)  # in place of the set's own
    assert len(digits.load("test").k) == 100
    assert len(digits.load("train").k) == 1400
