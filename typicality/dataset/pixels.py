"""Encoded bytes to pixels: the one place where images are decoded, so that every stage sees the same ones.

Whatever a file holds becomes 8-bit RGB: the EXIF orientation is applied, transparency is composited on white,
16-bit greys are scaled by 1/257 (never stretched: brightness stays comparable between images), floats by the
range that they are of (0 to 1 or 0 to 255, and white above it), and of an animation the first frame counts. Colour
profiles are ignored.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce

import numpy as np
from PIL import Image

EXIF_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
IMAGE_FORMATS = ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif")
OTHER_FORMATS = ("jpe", "jif", "apng", "dib", "jp2", "j2k", "jpx", "tga", "ico", "heic", "heif")
IMAGE_SUFFIXES = frozenset(f".{name}" for name in (*IMAGE_FORMATS, *OTHER_FORMATS))
UNKNOWN_FORMATS = "svg dcm dicom nii psd jxl exr hdr raw dng nef cr2 arw svs mrxs".split()
UNKNOWN_SUFFIXES = frozenset(f".{name}" for name in UNKNOWN_FORMATS)
"""Of files that hold images which Pillow does not read: they are left out, and that is said."""

# What Pillow's decoders raise on damaged files, besides OSError.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

OVERSHOOT = 2
"""Of the range of a float image, that its largest value may be: resampling and calibration leave a few beyond it."""


class UnreadablePixelsError(Exception):
    """The bytes are not an image that can be decoded; the message says why. Never leaves the package."""


def content_id(data: bytes) -> str:
    """Return the image_id of encoded bytes: 32 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def measure(data: bytes) -> tuple[int, int, int | None]:
    """Return (width, height, brightest) after EXIF orientation, having decoded all of `data` as cheaply as possible.

    `brightest` is the largest value, unscaled, of a grey image of more than 8 bits; None of all others.

    Raises
    ------
    UnreadablePixelsError : where `rgb` would fail as well.
    """
    with _decoding(data) as image:
        size = image.size
        drafted = image.draft(None, (max(1, size[0] // 8), max(1, size[1] // 8)))  # JPEG: skips most of the work
        image.load()  # reads every byte; a TIFF is upright from here on, and its tag is gone
        width, height = size if drafted else image.size
        brightest = int(np.asarray(image).max()) if image.mode.startswith("I") else None
        turned = _orientation(image) >= 5
    return (height, width, brightest) if turned else (width, height, brightest)


def rgb(data: bytes) -> Image.Image:
    """Decode to an RGB image of 8 bits a channel, upright, on white.

    Raises
    ------
    UnreadablePixelsError : the bytes are damaged or not an image.
    """
    with _decoding(data) as image:
        image.load()
        turn = TURNS.get(_orientation(image))  # Pillow turns TIFF files itself when it loads them, and no others
        flat = _flat_rgb(image)
        return flat.transpose(turn) if turn is not None else flat


def binary_mask(data: bytes) -> np.ndarray:
    """Decode a mask to a bool array (height, width): brighter than half of white is marked.

    A mask that is nowhere so bright holds indices, and everything but 0 is marked. A colour is as bright as its
    brightest channel, and the less so the more transparent it is; where all is black, what is drawn on a transparent
    ground is marked. The colours of a palette stand for indices: all but 0 is marked, or all but black where that is
    another index. A palette of greys is another way to write greys.
    """
    with _decoding(data) as image:
        image.load()
        values, white = _mask_values(image)
    return values > (0 if values.max(initial=0) <= white // 2 else white // 2)


@contextmanager
def _decoding(data: bytes) -> Iterator[Image.Image]:
    """Open `data` with Pillow; whatever goes wrong inside becomes UnreadablePixelsError."""
    if not data:
        raise UnreadablePixelsError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large or slightly malformed files that decode all the same
            with Image.open(io.BytesIO(data)) as image:
                yield image
    except Image.UnidentifiedImageError as error:
        raise UnreadablePixelsError("not an image, or of a format that Pillow does not know") from error
    except DECODE_ERRORS as error:
        raise UnreadablePixelsError(f"damaged: {error or type(error).__name__}") from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; damaged EXIF data counts as upright."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def _mask_values(image: Image.Image) -> tuple[np.ndarray, int]:
    """Return the brightness of a mask, (height, width), and that of white."""
    if image.mode.startswith("I"):  # unscaled: of 65,535 values, a hundred instances are all but black
        values = np.asarray(image)
        return values, max(65535, int(values.max(initial=0)))
    if image.has_transparency_data:
        colours = np.asarray(image.convert("RGBA")).astype(np.uint16)
        opacity, brightest = colours[..., 3], _brightest(colours[..., :3])
        if image.mode == "P" and (colours[..., :3] != brightest[..., None])[opacity > 0].any():
            marked = (opacity > 127) & (brightest > 0)
            return marked if marked.any() else opacity, 255
        shown = brightest * opacity // 255
        return shown if shown.any() or opacity.all() else opacity, 255
    if image.mode in ("L", "1"):
        return np.asarray(image), 255
    colours = np.asarray(_flat_rgb(image))
    brightest = _brightest(colours)
    if image.mode == "P" and (colours != brightest[..., None]).any():
        indices, black = np.asarray(image), brightest == 0
        return ~black if black.any() and not black[indices == 0].any() else indices > 0, 255
    return brightest, 255


def _brightest(colours: np.ndarray) -> np.ndarray:
    """Return the largest channel of (h, w, channels); channel by channel is 15 times faster than over the last axis."""
    return reduce(np.maximum, np.moveaxis(colours, -1, 0))


def _flat_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        transparent = image.convert("RGBA")
        white = Image.new("RGBA", transparent.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, transparent).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Scale (h, w) values of a high-bit mode to uint8 by the range of their type, never by their own range.

    Of which range floats are, their largest value tells, which may overshoot it: by up to twice, for a picture that
    stays below two of 255 would be black. Only what goes far beyond 16 bits is scaled by its own largest value.
    """
    numbers = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    largest = numbers.max(initial=0.0)
    ranges = {OVERSHOOT * top: top for top in (1.0, 255.0, 65535.0)} if mode == "F" else {65535.0: 65535.0}
    top = next((top for limit, top in ranges.items() if largest <= limit), largest)
    return np.clip(np.round(numbers * (255.0 / top)), 0, 255).astype(np.uint8)
