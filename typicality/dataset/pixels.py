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


def measure(data: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels after EXIF orientation, having decoded all of `data` as cheaply as possible.

    Raises
    ------
    UnreadablePixelsError : where `rgb` would fail as well.
    """
    with _decoding(data) as image:
        size = image.size
        drafted = image.draft(None, (max(1, size[0] // 8), max(1, size[1] // 8)))  # JPEG: skips most of the work
        image.load()  # reads every byte; a TIFF is upright from here on, and its tag is gone
        width, height = size if drafted else image.size
        turned = _orientation(image) >= 5
    return (height, width) if turned else (width, height)


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

    A mask whose largest value is 15 or less holds indices, and everything but 0 is marked.
    """
    with _decoding(data) as image:
        image.load()
        if image.mode == "P":  # indices matter, not the palette's colours
            values = np.asarray(image)
            return values > (0 if values.max(initial=0) <= 15 else 127)
        if image.mode.startswith("I"):  # 16 or 32 bits: indices, unless they are too large
            values = np.asarray(image)
            if 0 < values.max(initial=0) <= 15:
                return values > 0
        values = np.asarray(_flat_rgb(image).convert("L")) if image.mode not in ("L", "1") else np.asarray(image)
    if values.dtype == bool:
        return values
    return values > (0 if values.max(initial=0) <= 15 else 127)


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
