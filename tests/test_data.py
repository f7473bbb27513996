"""Data sets, batches, figures and reports."""

import numpy as np
import pytest
import torch
from PIL import Image

from unnoise.shared.data import Batches, character_batches, image_dataset, images
from unnoise.shared.errors import UsageError
from unnoise.shared.figures import save_curves, save_grid, save_panels, save_strip
from unnoise.shared.figures.grids import tile
from unnoise.shared.quantization import Quantization


def test_bundled_sets():
    digits, held_out, mnist = (
        image_dataset("digits"),
        image_dataset("digits", split="test"),
        image_dataset("mnist5k", split="test"),
    )
    assert (digits.shape, len(digits.k), len(held_out.k), digits.quantization.levels) == ((1, 8, 8), 1500, 297, 17)
    assert (int(digits.k.min()), int(digits.k.max())) == (0, 16)
    assert (mnist.shape, len(mnist.k), mnist.quantization.levels) == ((1, 28, 28), 500, 256)
    assert digits.label.unique().tolist() == list(range(10))
    batch = next(iter(images("digits", batch=4, conditions=("label",))))
    assert batch["x0"].shape == (4, 1, 8, 8)
    assert batch["label"].shape == (4,)
    assert -1 <= batch["x0"].min() <= batch["x0"].max() <= 1
    x = next(iter(digits.batches(4, Quantization.quantized)))["x0"]
    assert x.dtype == torch.int64
    text = next(iter(character_batches(length=64, batch=3, split="validation")))["x0"]
    assert text.shape == (3, 64)
    assert 0 <= text.min() <= text.max() == 26


def test_a_folder_of_images(tmp_path, generator):
    for kind in ("cat", "dog"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        for i in range(3):
            pixels = torch.randint(0, 256, (10, 14, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "train" / kind / f"{i}.png")
    colors = image_dataset(str(tmp_path))
    assert (colors.shape, len(colors.k), colors.quantization.levels) == ((3, 10, 14), 6, 256)
    assert colors.label.tolist() == [0, 0, 0, 1, 1, 1]
    assert image_dataset(str(tmp_path), size=(4, 8)).shape == (3, 4, 8)
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "train" / "cat" / "0.png")), colors.k[0].permute(1, 2, 0).numpy()
    )
    Image.new("RGB", (5, 5)).save(tmp_path / "train" / "cat" / "odd.png")
    with pytest.raises(UsageError, match="2 different shapes.*give size="):
        image_dataset(str(tmp_path))


def test_bad_sets_are_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("words")
    for name, words in (
        (str(tmp_path / "empty"), "has no images"),
        (str(tmp_path / "text"), "has no images"),
        (str(tmp_path / "absent"), "there is no folder"),
        ("digit", "did you mean digits"),
        ("somebody/something", "others need the network"),
        ("shakespeare", "has no images: its columns are title, text"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            image_dataset(name)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="has no split valid: choose from test, train"):
        image_dataset("digits", split="valid")
    with pytest.raises(UsageError, match="batch=41"):
        Batches(torch.zeros(40, 1), 41, Quantization(2))
    with pytest.raises(UsageError, match=r"conditions=\('color',\)"):
        image_dataset("digits").batches(4, conditions=("color",))


def test_batches_cover_an_epoch_and_continue():
    k = torch.arange(20)[:, None]
    batches = Batches(k, 4, Quantization(20), Quantization.dequantized, seed=3)
    stream = iter(batches)
    epochs = [torch.cat([Quantization(20).cell_of(next(stream)["x0"]) for _ in range(5)]).flatten() for _ in range(2)]
    assert all(torch.equal(e.sort().values, torch.arange(20)) for e in epochs)
    assert not torch.equal(*epochs)
    state = batches.state_dict()
    following = [next(stream)["x0"] for _ in range(7)]
    again = Batches(k, 4, Quantization(20), Quantization.dequantized, seed=3)
    again.load_state_dict(state)
    other = iter(again)
    assert all(torch.equal(next(other)["x0"], f) for f in following)
    with pytest.raises(UsageError, match="batch: was 4, now 5"):
        Batches(k, 5, Quantization(20), seed=3).load_state_dict(state)


def test_a_data_set_of_more_examples_than_float32_can_count_has_a_fingerprint():
    many = torch.zeros(1, 1, dtype=torch.uint8).expand(2**24 + 4, 1)
    assert len(Batches(many, 4, Quantization(20)).state_dict()["content"]) == 16


def test_pictures(tmp_path, generator):
    gray, color, odd = (torch.rand(7, c, 5, 4, generator=generator) for c in (1, 3, 2))
    assert tile(gray, columns=3).shape == (3 * 6 - 1, 3 * 5 - 1, 3)
    torch.testing.assert_close(torch.from_numpy(tile(color, 3)[6:11, 5:9]), color[4].permute(1, 2, 0))
    assert tile(odd, 7).shape == (5, 34, 3)
    with pytest.raises(UsageError, match=r"images of shape \(1, 5, 4\): give a tensor \(N, C, H, W\)"):
        tile(gray[0], 2)
    save_grid(tmp_path / "grid.png", gray)
    save_panels(tmp_path / "panels.png", {"a": gray, "b": gray}, columns=4)
    save_strip(tmp_path / "strip.png", {"made": ([1.0, 0.0], [gray[:2], gray[:2]])}, "title")
    save_curves(tmp_path / "curves.png", {"loss": ([1, 2], [1.0, 0.1], "nats")})
    for path in tmp_path.glob("*.png"):
        page = np.asarray(Image.open(path).convert("L"))
        assert page.std() > 1, path  # not blank
    assert len(list(tmp_path.glob("*.png"))) == 4
