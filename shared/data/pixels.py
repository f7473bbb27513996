"""One image of any file format and mode as 8-bit gray or RGB."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

WHITE = 255
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF, and its value for inverted gray
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
UNSUPPORTED = ("EPS", "MPEG", "HDF5", "GRIB", "BUFR", "WMF", "IPTC")  # Pillow needs other programs to read them


class Pixels(NamedTuple):
    """An image as it is trained on, and how it was converted.

    Attributes:
        values: uint8 `(H, W)` for gray, `(H, W, 3)` for RGB.
        kind: `16 bits` or `floats` where its values were scaled to 8 bits, else "".
        held: smallest and largest value before scaling; (0, 0) for an image that was not scaled.
        transparent: whether it has transparent parts and was laid over white.
        further: number of frames after the first, which are not read.
    """

    values: np.ndarray
    kind: str = ""
    held: tuple[float, float] = (0, 0)
    transparent: bool = False
    further: int = 0


def endings() -> frozenset[str]:
    """Returns the endings of the files that are read as images, in lower case."""
    from PIL import Image

    Image.init()
    return frozenset(
        e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in UNSUPPORTED
    ) | {".mpo"}


@contextmanager
def opened(source: Path | bytes) -> Iterator[Image]:
    """Opens an image in a file (a path) or in memory (bytes), without reading its pixels, and closes it at the end."""
    from PIL import Image

    # Given a name, Pillow maps plain TIFFs into memory and misreads those that lie on their side.
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file, Image.open(file) as image:
        yield image


def pixels(source: Path | bytes) -> Pixels:
    """Returns an image as 8-bit gray or RGB, turned upright by its EXIF orientation.

    - 1-bit, L, LA and palettes of one bit stay gray; palettes, CMYK, YCbCr, LAB and HSV become RGB by Pillow's
      conversion.
    - 16-bit gray is scaled from 0..65535, float gray from 0..1, to the nearest of 0..255.
    - What is transparent is laid over white.
    - Of several frames or pages the first is read.

    Raises:
        UsageError: with the reason, for a broken image, a decompression bomb, 32-bit gray, or floats outside of 0..1.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on broken metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with opened(source) as image:
                image.load()
                wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
                ImageOps.exif_transpose(image, in_place=True)
                found = converted(image, wide)
                tags = getattr(image, "tag_v2", {})
                if found.kind and image.format == "TIFF" and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
                    found = found._replace(values=255 - found.values)  # Pillow inverts 8-bit images itself
                frames = 1 if image.format == "PSD" else getattr(image, "n_frames", 1)  # frames of a PSD are its layers
                return found._replace(further=frames - 1)  # counted last: Pillow goes to the last frame and back
    except UsageError:
        raise
    except UnidentifiedImageError:
        raise UsageError("it is not an image that Pillow can read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UsageError(f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller") from None
    except Exception as error:  # Pillow's readers raise errors of many types on a broken file
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise UsageError(reason.splitlines()[0]) from error


def converted(image: Image, wide: bool = False) -> Pixels:
    """Converts an opened image to 8-bit gray or RGB; `wide` marks integers of 16 bits.

    Raises:
        UsageError: for gray of 32 bits.
    """
    key, palette = image.info.get("transparency"), image.palette if image.mode == "P" else None
    if wide or image.mode == "F":
        return scaled(np.asarray(image), 65535 if wide else 1, key)
    if image.mode == "I":
        raise UsageError("its gray values have 32 bits, whose range is unknown: save it with 8 or 16 bits")
    if image.mode in ("1", "L"):
        gray = np.asarray(image if image.mode == "L" else image.convert("L"))
        return over_white(gray, np.where(gray == key, 0, 255) if isinstance(key, int) else None)
    if image.mode in ("LA", "La"):
        gray, alpha = np.moveaxis(np.asarray(image), -1, 0)
        return over_white(gray, alpha, premultiplied=image.mode == "La")
    if image.mode in ALPHA or key is not None or (palette is not None and palette.mode.endswith("A")):
        bands = np.asarray(image.convert("RGBA"))
        return over_white(bands[..., :3], bands[..., 3:])
    return Pixels(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))


def scaled(raw: np.ndarray, top: int, key: object) -> Pixels:
    """Scales gray values `(H, W)` from 0..top to 0..255; the value `key`, if it is an integer, is transparent.

    Raises:
        UsageError: for values outside of 0..top.
    """
    held, kind = (float(raw.min()), float(raw.max())), "floats" if top == 1 else "16 bits"
    if not 0 <= held[0] <= held[1] <= top:  # NaN fails as well
        raise UsageError(
            f"its values are {held[0]:g} to {held[1]:g}, and {kind} must lie in 0 to {top}: scale them to that range"
        )
    alpha = np.where(raw == key, 0, 255) if isinstance(key, int) else None
    return over_white(raw.astype(np.float64) * (255 / top), alpha)._replace(kind=kind, held=held)


def over_white(values: np.ndarray, alpha: np.ndarray | None, premultiplied: bool = False) -> Pixels:
    """Lays an image over white by its alpha, 0..255, None for an opaque one.

    Args:
        values: `(H, W)` or `(H, W, 3)`, 0..255.
        alpha: `(H, W)` or `(H, W, 1)`.
        premultiplied: whether the values are already multiplied by alpha / 255.
    """
    transparent = alpha is not None and bool((alpha < 255).any())
    if alpha is not None and transparent:
        share = alpha / 255
        values = values * (1 if premultiplied else share) + WHITE * (1 - share)
    return Pixels(np.rint(values).astype(np.uint8) if values.dtype != np.uint8 else values, transparent=transparent)
