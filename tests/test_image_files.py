"""Every kind of picture in every layout of a folder: right values, or one line."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from unnoise.shared import memory
from unnoise.shared.data import image_dataset
from unnoise.shared.data.pixels import converted
from unnoise.shared.errors import UsageError

SHAPE = (6, 5)


def drawn(row, *shape, top=256):
    return np.random.default_rng(row).integers(0, top, (*SHAPE, *shape))


def eight(row, *shape):
    return drawn(row, *shape).astype(np.uint8)


def white(values, alpha):
    return np.rint(values * (alpha / 255) + 255 * (1 - alpha / 255))


def palette(row):
    return np.random.default_rng(row + 100).integers(0, 256, (16, 3)).astype(np.uint8)


def indexed(row):
    image = Image.fromarray(eight(row) % 16)
    image.putpalette(palette(row).tobytes())
    return image


def of_bands(mode, bands):
    """A picture of a mode that numpy arrays do not make: its bands are given."""
    return Image.frombytes(mode, SHAPE[::-1], np.ascontiguousarray(bands).tobytes())


def wide(row, kind):
    return Image.fromarray(drawn(row, top=65536).astype(kind))


def gray_lab(row):
    """L* alone, and the sRGB value that CIE's formula gives it."""
    light = eight(row) // 16 * 16
    lab = np.stack([light, np.full(SHAPE, 0), np.full(SHAPE, 0)], -1).astype(np.uint8)
    star = light / 255 * 100
    linear = np.where(star > 8, ((star + 16) / 116) ** 3, star / 903.3)
    return lab, 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def full_range_ycc(row):
    """JPEG's YCbCr of dull colors, which has no rounding beyond 1, and the RGB it was made of."""
    y, cb, cr = (eight(row, 3) // 4 + 96).transpose(2, 0, 1).astype(float)
    rgb = np.stack(
        [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], -1
    )
    return np.stack([y, cb, cr], -1).astype(np.uint8), np.clip(rgb, 0, 255)


# name: (ending, row -> picture, row -> expected (H, W) or (H, W, 3) or words of the refusal, tolerance, options of
# save)
KINDS = {
    "1": ("png", lambda r: Image.fromarray(eight(r) > 127), lambda r: 255 * (eight(r) > 127), 0, {}),
    "1 in TIFF": ("tiff", lambda r: Image.fromarray(eight(r) > 127), lambda r: 255 * (eight(r) > 127), 0, {}),
    "L": ("png", lambda r: Image.fromarray(eight(r)), eight, 0, {}),
    "L in BMP": ("bmp", lambda r: Image.fromarray(eight(r)), eight, 0, {}),
    "L with a transparent value": (
        "png",
        lambda r: Image.fromarray(eight(r) // 64),
        lambda r: np.where(eight(r) // 64 == 2, 255, eight(r) // 64),
        0,
        {"transparency": 2},
    ),
    "LA": (
        "png",
        lambda r: of_bands("LA", eight(r, 2)),
        lambda r: white(*np.moveaxis(eight(r, 2).astype(float), -1, 0)),
        0,
        {},
    ),
    "P": ("png", indexed, lambda r: palette(r)[eight(r) % 16], 0, {}),
    "P in GIF": ("gif", indexed, lambda r: palette(r)[eight(r) % 16], 0, {}),
    "P with a transparent color": (
        "png",
        indexed,
        lambda r: np.where((eight(r) % 16 == 3)[..., None], 255, palette(r)[eight(r) % 16]),
        0,
        {"transparency": 3},
    ),
    "P with a transparent color in GIF": (
        "gif",
        indexed,
        lambda r: np.where((eight(r) % 16 == 3)[..., None], 255, palette(r)[eight(r) % 16]),
        0,
        {"transparency": 3},
    ),
    "P with shares": (
        "png",
        indexed,
        lambda r: white(palette(r)[eight(r) % 16], (eight(r) % 16 * 17)[..., None]),
        0,
        {"transparency": bytes(range(0, 256, 17))},
    ),
    "PA": ("tiff", lambda r: indexed(r).convert("PA"), lambda r: palette(r)[eight(r) % 16], 0, {}),
    "RGB": ("png", lambda r: Image.fromarray(eight(r, 3)), lambda r: eight(r, 3), 0, {}),
    "RGB in WebP": ("webp", lambda r: Image.fromarray(eight(r, 3)), lambda r: eight(r, 3), 0, {"lossless": True}),
    "RGB with a transparent color": (
        "png",
        lambda r: Image.fromarray(eight(r, 3) // 128),
        lambda r: np.where((eight(r, 3) // 128 == [1, 0, 1]).all(-1, keepdims=True), 255, eight(r, 3) // 128),
        0,
        {"transparency": (1, 0, 1)},
    ),
    "RGBA": (
        "png",
        lambda r: Image.fromarray(eight(r, 4)),
        lambda r: white(eight(r, 4)[..., :3], eight(r, 4)[..., 3:]),
        0,
        {},
    ),
    "RGBA in TIFF": (
        "tiff",
        lambda r: Image.fromarray(eight(r, 4)),
        lambda r: white(eight(r, 4)[..., :3], eight(r, 4)[..., 3:]),
        0,
        {},
    ),
    "RGBX": ("tiff", lambda r: of_bands("RGBX", eight(r, 4)), lambda r: eight(r, 4)[..., :3], 0, {}),
    "CMYK": (
        "tiff",
        lambda r: of_bands("CMYK", eight(r, 4)),
        lambda r: (255.0 - eight(r, 4)[..., :3]) * (255 - eight(r, 4)[..., 3:]) / 255,
        1,
        {},
    ),
    "YCbCr": ("tiff", lambda r: of_bands("YCbCr", full_range_ycc(r)[0]), lambda r: full_range_ycc(r)[1], 2, {}),
    "LAB": (
        "tiff",
        lambda r: of_bands("LAB", gray_lab(r)[0]),
        lambda r: np.repeat(gray_lab(r)[1][..., None], 3, -1),
        3,
        {},
    ),
    "I;16": ("png", lambda r: wide(r, np.uint16), lambda r: drawn(r, top=65536) / 257, 0.5, {}),
    "I;16 in TIFF": ("tiff", lambda r: wide(r, np.uint16), lambda r: drawn(r, top=65536) / 257, 0.5, {}),
    "I;16 from white": (
        "tiff",
        lambda r: wide(r, np.uint16),
        lambda r: 255 - drawn(r, top=65536) / 257,
        0.5,
        {"tiffinfo": {262: 0}},
    ),
    "F from white": (
        "tiff",
        lambda r: Image.fromarray((drawn(r) / 255).astype(np.float32)),
        lambda r: 255 - drawn(r),
        0,
        {"tiffinfo": {262: 0}},
    ),
    "I;16B": (
        "tiff",
        lambda r: of_bands("I;16B", drawn(r, top=65536).astype(">u2")),
        lambda r: drawn(r, top=65536) / 257,
        0.5,
        {},
    ),
    "I of 16 bits": ("pgm", lambda r: wide(r, np.int32), lambda r: drawn(r, top=65536) / 257, 0.5, {}),
    "I": ("tiff", lambda r: wide(r, np.int32), "32 bits.*8 or 16", 0, {}),
    "F": ("tiff", lambda r: Image.fromarray((drawn(r) / 255).astype(np.float32)), drawn, 0, {}),
    "F in PFM": ("pfm", lambda r: Image.fromarray((drawn(r) / 255).astype(np.float32)), drawn, 0, {}),
    "F beyond 1": ("tiff", lambda r: Image.fromarray(drawn(r).astype(np.float32)), "floats must lie in 0 to 1", 0, {}),
    "F below 0": (
        "tiff",
        lambda r: Image.fromarray(-(drawn(r) / 255).astype(np.float32)),
        "floats must lie in 0 to 1",
        0,
        {},
    ),
    "F that is no number": (
        "tiff",
        lambda r: Image.fromarray(np.full(SHAPE, np.nan, np.float32)),
        "floats must lie in 0 to 1",
        0,
        {},
    ),
}
LAYOUTS = {
    "folder": ("{}.{}", {"train": (0, 1, 2)}, None),
    "class folders": ("class {0}/{0}.{1}", {"train": (0, 1, 2)}, {"train": [0, 1, 2]}),
    "train and test": ("{}.{}", {"Train": (0, 2), "TEST": (1,)}, None),
    "train and test of classes": (
        "c{0}/{0}.{1}",
        {"train": (0, 1, 2), "test": (1,)},
        {"train": [0, 1, 2], "test": [1]},
    ),
    "metadata": ("{}.{}", {"train": (0, 1, 2)}, {"train": [7, 6, 5]}),
}


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_mode_in_every_layout(tmp_path, kind, layout):
    ending, make, expected, off, options = KINDS[kind]
    pattern, splits, labels = LAYOUTS[layout]
    for split, rows in splits.items():
        for row in rows:
            folder = tmp_path / split if len(splits) > 1 else tmp_path
            save(make(row), folder / pattern.format(row, ending), **options)
    if layout == "metadata":
        lines = [f"{pattern.format(row, ending)},{7 - row}" for row in (2, 0, 1)]
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected) as error:
            image_dataset(tmp_path)
        assert "\n" not in str(error.value)
        assert "3 of 3" in str(error.value) or "2 of 2" in str(error.value)
        return
    for split, rows in splits.items():
        found = image_dataset(tmp_path, split=split.lower())
        right = np.stack([np.asarray(expected(row)) for row in rows])
        right = right[:, None] if right.ndim == 3 else right.transpose(0, 3, 1, 2)
        assert found.k.dtype == torch.uint8
        assert found.shape == right.shape[1:]
        assert np.abs(found.k.numpy() - right).max() <= off + 1e-9
        assert (None if found.label is None else found.label.tolist()) == (labels and labels[split])


@pytest.mark.parametrize(
    ("mode", "bands", "right"),
    [
        ("La", (100, 128), (100 + 127,)),  # premultiplied
        ("RGBa", (10, 20, 30, 51), (10 + 204, 20 + 204, 30 + 204)),
        ("HSV", (0, 255, 200), (200, 0, 0)),
        ("HSV", (85, 0, 77), (77, 77, 77)),
        ("PA", None, (10, 20, 30)),
    ],
)
def test_modes_that_no_file_has(mode, bands, right):
    image = Image.new("P", (2, 2)) if bands is None else Image.new(mode, (2, 2), bands)
    if bands is None:
        image.putpalette([10, 20, 30])
        image = image.convert("PA")
    assert np.abs(converted(image).values.reshape(4, -1)[0].astype(int) - right).max() <= 1


def test_a_gray_image_among_colors_is_read_as_rgb_wherever_it_lies(tmp_path):
    for gray in range(3):
        folder = tmp_path / str(gray)
        for row in range(3):
            save(Image.fromarray(eight(row) if row == gray else eight(row, 3)), folder / f"{row}.png")
        found = image_dataset(folder)
        assert torch.equal(found.k[gray], torch.from_numpy(eight(gray)).expand(3, *SHAPE))
        assert torch.equal(found.k[(gray + 1) % 3], torch.from_numpy(eight((gray + 1) % 3, 3)).permute(2, 0, 1))
        assert "1 gray image read as RGB" in found.summary
        assert image_dataset(folder, size=(4, 4)).shape == (3, 4, 4)


def test_what_was_done_is_counted(tmp_path):
    save(Image.fromarray(np.array([[300, 4000]], np.uint16)), tmp_path / "a.png")
    save(Image.fromarray(np.array([[25, 700]], np.uint16)), tmp_path / "b.png")
    save(Image.fromarray(np.array([[0.25, 0.5]], np.float32)), tmp_path / "c.tiff")
    save(Image.new("LA", (2, 1), (9, 255)), tmp_path / "d.png")
    save(Image.new("LA", (2, 1), (9, 254)), tmp_path / "e.png")
    save(
        Image.new("L", (2, 1)),
        tmp_path / "f.gif",
        save_all=True,
        append_images=[Image.new("L", (2, 1), n) for n in (50, 90)],
    )
    said = image_dataset(tmp_path).summary
    assert said.startswith("6 images of ")
    assert "x1x2; no labels; " in said
    for words in (
        "2 of 16 bits scaled from 0..65535 to 0..255, with values 25 to 4000",
        "1 of floats scaled from 0..1 to 0..255, with values 0.25 to 0.5",
        "1 with transparency laid over white",
        "1 of several frames: the first of each is read, and 2 further ones are not",
    ):
        assert words in said


@pytest.mark.parametrize("ending", ["gif", "png", "tiff", "webp"])
def test_the_first_of_several_frames_is_read(tmp_path, ending):
    frames = [Image.fromarray(np.full((8, 8, 3), n, np.uint8)) for n in (40, 120, 200)]
    frames[0].save(
        tmp_path / f"a.{ending}",
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if ending == "webp" else {}),
    )
    found = image_dataset(tmp_path)
    assert (found.k == 40).all()
    assert "the first of each is read, and 2 further ones are not" in found.summary


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tiff", "webp"])
def test_pictures_are_upright(tmp_path, ending, turn):
    upright = np.kron(np.array([[0, 80, 160], [240, 40, 120]], np.uint8), np.ones((16, 16), np.uint8))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(ending, {})
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{ending}", exif=exif, **options)
    found = image_dataset(tmp_path)
    assert found.shape[1:] == upright.shape
    assert np.abs(found.k[0, 0].numpy().astype(int) - upright).max() <= 3


def broken(kind, path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        whole, "jpeg" if kind == "jpg" else kind
    )
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "tiff", "webp", "bmp"])
def test_a_truncated_file_is_named(tmp_path, kind):
    save(Image.new("RGB", (64, 64)), tmp_path / "0.png")
    broken(kind, tmp_path / f"cut.{kind}")
    with pytest.raises(
        UsageError, match=rf"1 of 2 images of .* cannot be read: cut.{kind} \(.*repair or remove"
    ) as error:
        image_dataset(tmp_path)
    assert "\n" not in str(error.value)


def test_all_broken_files_are_counted(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "words.jpg").write_text("words")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    for n in range(2):
        broken("png", tmp_path / f"{n}.png")
    save(Image.new("RGB", (64, 64)), tmp_path / "whole.png")
    with pytest.raises(
        UsageError, match=r"5 of 6 images .*0.png \(.*\), 1.png \(.*\), empty.png \(it is not an image.*\) and 2 more"
    ):
        image_dataset(tmp_path)


def test_a_decompression_bomb_is_one_line(tmp_path, monkeypatch):
    save(Image.new("L", (40, 40)), tmp_path / "a.png")
    for limit in (1000, 400):  # a warning of Pillow's, and an error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UsageError, match=f"a.png .it has more than {limit:,} pixels: make it smaller"):
            image_dataset(tmp_path)


def test_several_shapes_are_named_with_an_example_each(tmp_path):
    for n, size in enumerate([(5, 6), (5, 6), (7, 6), (5, 6), (9, 9)]):
        save(Image.new("L" if n else "RGB", size), tmp_path / f"{n}.png")
    with pytest.raises(
        UsageError, match=r"3 different shapes, 6x5 \(3, such as 0.png\), 6x7 \(1, .*2.png\), 9x9 \(1, .*give size="
    ):
        image_dataset(tmp_path)
    assert image_dataset(tmp_path, size=(4, 4)).k.shape == (5, 3, 4, 4)


def test_a_set_that_does_not_fit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    for n in range(50):
        save(Image.new("L" if n < 49 else "RGB", (20, 10)), tmp_path / f"{n:02}.png")
    assert image_dataset(tmp_path).k.shape == (50, 3, 10, 20)
    for have, shape in ((50 * 200 - 1, "1x10x20"), (50 * 200 * 3 - 1, "3x10x20")):
        monkeypatch.setattr(memory, "available", lambda have=have: have)
        monkeypatch.setenv("UNNOISE_CACHE", "none")  # else the images are read from there when needed
        with pytest.raises(
            UsageError, match=f"50 images of {shape} need .* GB of memory, and .* GB are free: give a smaller size"
        ):
            image_dataset(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: None)  # a system that does not say
    assert len(image_dataset(tmp_path).k) == 50


def test_the_free_memory_is_that_of_the_system():
    assert 2**28 < memory.available() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
