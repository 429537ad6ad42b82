"""One look at every image, without any model: what its file is like, small copies of it, and where text may be printed.

Everything that the model-free parts of the audit need is measured while an image is decoded once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from typicality.dataset import LabelledImages
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage

FILE_MEASURES = ("width", "height", "aspect", "bytes", "bytes_per_pixel", "format", "quality")
"""What is known of an image without looking at it. format and quality: codes with an order that means nothing."""
TONE_MEASURES = ("brightness", "contrast", "saturation", "sharpness")
"""What is known from its pixels as a whole."""
THUMBNAIL = 64
"""Side of the stretched RGB copy, pixels."""
HASH_SIDE = 32
STROKE_CELLS = 16
STROKE_WIDTH = 5
"""Strokes of printed text are narrower than this, in pixels at a long side of STROKE_LONGEST at most."""
STROKE_LONGEST = 480
STROKE_CONTRAST = 60
MOST_IMAGES = 20_000
"""Larger data sets are judged by a sample; 20,000 small copies take 250 MB."""

FORMATS = {b"\xff\xd8": 1.0, b"\x89PNG": 2.0, b"RIFF": 3.0, b"GIF8": 4.0, b"BM": 5.0, b"II*": 6.0, b"MM": 7.0}


@dataclass(frozen=True)
class ImageFacts:
    """What was measured of n images.

    Attributes
    ----------
    images : (n,)
    measures : name -> (n,) float64, of FILE_MEASURES and TONE_MEASURES
    thumbnails : (n, 64, 64, 3) uint8, the whole image stretched to a square
    details : (n, 1024) float32 unit rows: the 32 x 32 grey copy without its coarse shading, so that exposure and
        lighting hardly matter; all 0 where an image is plain
    mirrored : the same of the mirrored images
    strokes : (n, 16, 16) float32, share of the pixels of each cell that belong to thin strokes of high contrast
    """

    images: tuple[LabelledImage, ...]
    measures: dict[str, np.ndarray]
    thumbnails: np.ndarray
    details: np.ndarray
    mirrored: np.ndarray
    strokes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def groups(self) -> np.ndarray:
        """(n,) number of the group of each image."""
        return np.unique(np.array([i.group for i in self.images], dtype=str), return_inverse=True)[1]

    def carries(self, label: str) -> np.ndarray:
        """(n,) bool, whether each image carries `label`."""
        return np.array([label in i.labels for i in self.images], dtype=bool)

    def subset(self, rows: Sequence[int]) -> ImageFacts:
        """The same facts of some of the images."""
        at = np.asarray(rows, dtype=np.int64)
        return ImageFacts(
            tuple(self.images[i] for i in at),
            {name: values[at] for name, values in self.measures.items()},
            *(array[at] for array in (self.thumbnails, self.details, self.mirrored, self.strokes)),
        )


def sample_of(dataset: LabelledImages, most: int = MOST_IMAGES) -> list[LabelledImage]:
    """Return all images, or `most` of them chosen by their content: no order, no seed."""
    return sorted(dataset, key=lambda i: hashlib.sha256(i.image_id.encode()).digest())[:most]


def examine(dataset: LabelledImages, images: Sequence[LabelledImage], progress: Progress = SILENT) -> ImageFacts:
    """Decode every image once and measure it.

    Raises
    ------
    DatasetError : an image changed or went away since the data set was loaded.
    """
    ordered = sorted(images, key=lambda i: i.image_id)
    n = len(ordered)
    measures = {name: np.zeros(n) for name in (*FILE_MEASURES, *TONE_MEASURES)}
    thumbnails = np.zeros((n, THUMBNAIL, THUMBNAIL, 3), dtype=np.uint8)
    details, mirrored = (np.zeros((n, HASH_SIDE**2), dtype=np.float32) for _ in range(2))
    strokes = np.zeros((n, STROKE_CELLS, STROKE_CELLS), dtype=np.float32)

    def look(i: int) -> None:
        image = ordered[i]
        picture = dataset.open(image)
        for name, value in (_of_file(image) | _of_tone(picture)).items():
            measures[name][i] = value
        small = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        thumbnails[i] = np.asarray(small)
        details[i] = detail_vector(picture)
        mirrored[i] = np.ascontiguousarray(details[i].reshape(HASH_SIDE, HASH_SIDE)[:, ::-1]).ravel()
        strokes[i] = stroke_density(picture)

    progress.start("look at the images", n)
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(look, range(n)):
            progress.advance()
    progress.finish()
    return ImageFacts(tuple(ordered), measures, thumbnails, details, mirrored, strokes)


def detail_vector(picture: Image.Image) -> np.ndarray:
    """(1024,) float32 unit vector of a 32 x 32 grey copy minus its blurred self; its dot products are correlations."""
    small = picture.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX)
    shading = np.asarray(small.filter(ImageFilter.GaussianBlur(HASH_SIDE / 8)), dtype=np.float32)
    detail = np.asarray(small, dtype=np.float32) - shading
    detail -= detail.mean()
    norm = float(np.linalg.norm(detail))
    # below half a grey level of detail only rounding is compared
    return (detail / norm).ravel() if norm > 0.5 * HASH_SIDE else np.zeros(HASH_SIDE**2, dtype=np.float32)


def stroke_density(picture: Image.Image) -> np.ndarray:
    """(16, 16) share of each cell's pixels in thin strokes, bright on dark or dark on bright.

    A white top-hat and a black one: what a 5 x 5 opening (closing) removes is narrower than five pixels.
    """
    small = picture.convert("L")
    small.thumbnail((STROKE_LONGEST, STROKE_LONGEST), Image.Resampling.BOX)
    grey = np.asarray(small)
    bright = grey - _over_squares(_over_squares(grey, np.minimum), np.maximum)
    dark = _over_squares(_over_squares(grey, np.maximum), np.minimum) - grey
    thin = Image.fromarray(np.where(np.maximum(bright, dark) >= STROKE_CONTRAST, 255, 0).astype(np.uint8))
    cells = thin.resize((STROKE_CELLS, STROKE_CELLS), Image.Resampling.BOX)
    return np.asarray(cells, dtype=np.float32) / 255


def _over_squares(grey: np.ndarray, choose: np.ufunc) -> np.ndarray:
    """(h, w) smallest or largest value over the square of STROKE_WIDTH around each pixel, one axis after the other."""
    margin = STROKE_WIDTH // 2
    for axis in (0, 1):
        turned = np.moveaxis(grey, axis, 0)
        padded = np.pad(turned, [(margin, margin), (0, 0)], mode="edge")
        result = padded[: len(turned)]
        for shift in range(1, STROKE_WIDTH):
            result = choose(result, padded[shift : shift + len(turned)])
        grey = np.moveaxis(result, 0, axis)
    return grey


def cell_box(image: LabelledImage, rows: tuple[int, int], columns: tuple[int, int], cells: int) -> tuple:
    """Box in pixels of the original of rows [r0, r1) and columns [c0, c1) of a grid of cells x cells."""
    (r0, r1), (c0, c1) = rows, columns
    x0, x1 = c0 * image.width // cells, -(-c1 * image.width // cells)
    y0, y1 = r0 * image.height // cells, -(-r1 * image.height // cells)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def _of_file(image: LabelledImage) -> dict[str, float]:
    data = image.source.read()
    kind = next((code for head, code in FORMATS.items() if data.startswith(head)), 0.0)
    pixels = image.width * image.height
    return {
        "width": image.width,
        "height": image.height,
        "aspect": image.width / image.height,
        "bytes": len(data),
        "bytes_per_pixel": len(data) / pixels,
        "format": kind,
        "quality": _quantisation(data) if kind == 1.0 else 0.0,
    }


def _quantisation(data: bytes) -> float:
    """Mean of the first JPEG quantisation table: small is fine, large is coarse; 0 where there is none."""
    start = data.find(b"\xff\xdb")
    table = data[start + 5 : start + 69] if start >= 0 else b""
    return float(np.frombuffer(table, dtype=np.uint8).mean()) if len(table) == 64 else 0.0


def _of_tone(picture: Image.Image) -> dict[str, float]:
    small = picture.copy()
    small.thumbnail((256, 256), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), dtype=np.float32)
    red, green, blue = (np.asarray(channel) for channel in small.split())
    colour = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    steps = [np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1) if grey.shape[axis] > 1]
    return {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "saturation": float(colour.mean()),
        "sharpness": float(np.mean(steps)) if steps else 0.0,
    }
