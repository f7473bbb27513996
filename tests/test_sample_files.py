"""Samples in files: drawn in parts and continued, and read back, also those of other projects."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unnoise.experiments import sample_arrays
from unnoise.experiments.sample_files import read_samples
from unnoise.shared.errors import UsageError
from unnoise.shared.metrics.measurement import Origin
from unnoise.shared.quantization import Quantization

RGB = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
ORIGIN = {"sampler": "Ancestral()", "steps": 7, "seed": 3}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["arr_0", "samples", "images", "pictures"])
def test_images_of_other_projects(tmp_path, save, name):
    """As bytes or real numbers, with the channels last or first; rows are read without the others."""
    expected = torch.from_numpy(RGB).movedim(-1, 1)
    unit = RGB.astype(np.float32) / 255
    forms = {
        "last": (RGB, ()),
        "first": (RGB.transpose(0, 3, 1, 2), ()),
        "unit": (unit, ("real numbers in [0, 1] rounded to 256 levels",)),
        "signed": (2 * unit.transpose(0, 3, 1, 2) - 1, ("real numbers in [-1, 1] rounded to 256 levels",)),
        "whole": (RGB.astype(np.int64), ()),
    }
    for form, (array, notes) in forms.items():
        save(tmp_path / f"{form}.npz", **{name: np.ascontiguousarray(array), "arr_1": np.arange(5)})
        found = read_samples(tmp_path / f"{form}.npz")
        assert (found.kind, found.shape, len(found), found.notes) == ("images", (3, 4, 6), 5, notes), form
        assert found.k[:].dtype == torch.uint8
        assert torch.equal(found.k[:], expected), form
        assert torch.equal(found.k[torch.tensor([3, 1])], expected[[3, 1]])
        assert found.labels.tolist() == [0, 1, 2, 3, 4]
        assert (found.origin, found.quantization) == (None, Quantization())
    assert found.summary == "5 images of 3x4x6"


def test_gray_images_tokens_and_real_numbers(tmp_path):
    np.save(tmp_path / "gray.npy", RGB[..., 0])
    assert torch.equal(read_samples(tmp_path / "gray.npy").k[:], torch.from_numpy(RGB[..., 0])[:, None])
    np.savez(tmp_path / "tokens.npz", RGB[:, :, 0, 0].astype(np.uint16))
    found = read_samples(tmp_path / "tokens.npz")
    assert (found.kind, found.k[:].dtype, found.summary) == ("tokens", torch.int64, "5 samples of 4")
    latents = np.random.default_rng(0).normal(size=(3, 3, 2, 2)).astype(np.float16)
    np.savez(tmp_path / "x.npz", x=latents)
    found = read_samples(tmp_path / "x.npz")
    assert (found.kind, found.quantization) == ("arrays", None)
    assert np.array_equal(found.k[1:2].numpy(), latents[1:2])
    assert sample_arrays.channel_axis((5, 3, 3, 3)) == 3
    assert [sample_arrays.channel_axis(s) for s in ((9, 1, 4, 4), (9, 4, 4, 1), (9, 2, 8, 8))] == [1, 3, None]


def test_a_large_array_is_not_read_at_once(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", RGB)
    monkeypatch.setattr(sample_arrays.Packed, "values", lambda self: pytest.fail("read as a whole"))
    assert torch.equal(read_samples(tmp_path / "a.npz").k[2:3][0], torch.from_numpy(RGB[2]).movedim(-1, 0))


def test_a_compressed_array_without_room_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", RGB)
    monkeypatch.setattr("unnoise.shared.memory.available", lambda: 10)
    with pytest.raises(UsageError, match=r"arr_0.npy of .*a.npz.*: write it with np.savez, which does not compress"):
        read_samples(tmp_path / "a.npz")


def test_a_folder_of_images_of_any_format(tmp_path):
    for n, ending in enumerate(("png", "jpg", "webp", "bmp")):
        Image.fromarray(RGB[n]).save(tmp_path / f"{n}.{ending}", lossless=True)
    found = read_samples(tmp_path)
    assert (found.kind, found.shape, len(found), found.about) == ("images", (3, 4, 6), 4, {})
    assert torch.equal(found.k[:][[0, 2, 3]], torch.from_numpy(RGB[[0, 2, 3]]).movedim(-1, 1))
    assert found.notes == ()
    Image.fromarray(RGB[0][:2]).save(tmp_path / "4.png")
    with pytest.raises(UsageError, match=r"2 different shapes, 4x6 \(4, such as 0.png\) and 2x6|2x6 \(1, such as"):
        read_samples(tmp_path)
    assert read_samples(tmp_path, size=(2, 2)).shape == (3, 2, 2)


def test_what_was_written_beside_samples_is_read(tmp_path):
    """Levels of fewer than 8 bits are restored, and the origin is known."""
    levels = np.arange(17, dtype=np.uint8).reshape(1, 1, 17, 1)
    about = {"kind": "images", "origin": ORIGIN, "quantization": {"levels": 17, "low": 0.0, "high": 1.0, "new": 1}}
    written = np.round(levels * (255 / 16)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=written, origin=json.dumps(about))
    (tmp_path / "b.v2").mkdir()
    Image.fromarray(written[0, ..., 0]).save(tmp_path / "b.v2" / "0.png")
    (tmp_path / "b.v2" / "samples.json").write_text(json.dumps(about))
    for name in ("a.npz", "b.v2"):
        found = read_samples(tmp_path / name)
        assert (found.quantization, found.notes) == (Quantization(17, 0.0, 1.0), ())
        assert found.origin == Origin(sampler="Ancestral()", steps=7, seed=3)
        assert torch.equal(found.k[:], torch.from_numpy(levels).movedim(-1, 1))
        assert found.in_levels(Quantization(2))[:].flatten().tolist() == [0] * 9 + [1] * 8
        assert found.in_levels(Quantization(17)) is found.k


TEXTS = {
    "a b\n\nc\nd\n": (("a b", "c\nd"), False),
    "\r\n\r\na b\r\n \r\n\r\nc\r\n": (("a b", "c"), False),
    "a b\nc\n \n": (("a b", "c"), True),
    "a b\nc\n": (("a b", "c"), True),
    "a b": (("a b",), False),
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    found = read_samples(tmp_path / "a.txt")
    texts, noted = TEXTS[text]
    assert (found.kind, found.texts, len(found), found.k) == ("texts", texts, len(texts), None)
    assert bool(found.notes) == noted
    with pytest.raises(UsageError, match="contains texts: give images"):
        found.in_levels(Quantization())


def damaged_zip(path):
    np.savez_compressed(path, arr_0=RGB)
    content = bytearray(path.read_bytes())
    content[150:160] = bytes(10)
    path.write_bytes(content)


REFUSED = {
    "nothing.npz": (None, r"there is no file or folder .*nothing.npz: give"),
    "a.gif": (lambda p: p.write_text(""), "samples are read from a folder of images, or a .npz, .npy or .txt file"),
    "empty.txt": (lambda p: p.write_text(" \n"), "empty.txt has 0 samples"),
    "latin.txt": (lambda p: p.write_bytes(b"\xff\xfe"), "latin.txt cannot be read .*: write it as UTF-8"),
    "no_zip.npz": (lambda p: p.write_text("x"), r"no_zip.npz cannot be read \(File is not a zip file\)"),
    "damaged.npz": (damaged_zip, "damaged.npz cannot be read"),
    "none.npz": (
        lambda p: np.savez(p, a=np.zeros(3), b="b"),
        r"has no array of samples, it has a \(3,\), b \(\): name",
    ),
    "two.npz": (lambda p: np.savez(p, a=RGB, b=RGB), r"has no array of samples, it has a \(5, 4, 6, 3\), b"),
    "zero.npz": (lambda p: np.savez(p, RGB[:0]), "arr_0 in .*zero.npz has 0 samples: write"),
    "flat.npy": (lambda p: np.save(p, RGB.ravel()), r"has shape \(360,\): write samples"),
    "channels.npz": (lambda p: np.savez(p, np.zeros((2, 5, 6, 2), np.uint8)), r"has shape \(2, 5, 6, 2\): give images"),
    "objects.npz": (lambda p: np.savez(p, np.array([{}, None])), "arr_0 in .*objects.npz has Python objects, which"),
    "objects.npy": (lambda p: np.save(p, np.array([{}])), "objects.npy cannot be read .*Python objects"),
    "nan.npz": (
        lambda p: np.savez(p, np.where(RGB > 250, np.nan, RGB / 255)),
        rf"^{(RGB > 250).sum()} of 360 values of arr_0 in .*nan.npz are NaN or infinite: draw",
    ),
    "x.npz": (lambda p: np.savez(p, x=np.full((2, 2), np.inf)), "^4 of 4 values of x in .* are NaN or infinite"),
    "range.npz": (lambda p: np.savez(p, 2.1 * RGB / 255 - 1), r"lie between -1.0 and 1.1: give images as uint8, or"),
    "large.npz": (lambda p: np.savez(p, RGB.astype(np.int32) + 1), r"lie between \d+ and 256: give images as uint8"),
    "labels.npz": (lambda p: np.savez(p, RGB, np.arange(4)), r"arr_1 in .* has shape \(4,\): give a class label"),
    "statistics.npz": (lambda p: np.savez(p, mu=np.ones(2), sigma=np.eye(2)), "and no samples: give it with --statist"),
    "empty": (lambda p: p.mkdir(), "the folder .*empty has no images .it is empty."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_samples_that_are_refused(tmp_path, name):
    write, words = REFUSED[name]
    if write is not None:
        write(tmp_path / name)
    with pytest.raises(UsageError, match=words) as raised:
        read_samples(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_damaged_file_beside_samples_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a\n\nb\n")
    for text, words in (("{", "a.txt.json cannot be read"), ("[]", "does not contain a JSON object")):
        (tmp_path / "a.txt.json").write_text(text)
        with pytest.raises(UsageError, match=words):
            read_samples(tmp_path / "a.txt")
    (tmp_path / "a.txt.json").write_text(json.dumps({"lengths": [1, 2]}))
    with pytest.raises(UsageError, match="is not the text that .*a.txt.json describes"):
        read_samples(tmp_path / "a.txt")
