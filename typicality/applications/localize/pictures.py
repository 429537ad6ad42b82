"""Overlays for looking at: the image, and the same under its map, with what was found and what is true."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from typicality.records import Box
from typicality.store import write_whole

OPACITY = 0.55
FOUND, TRUE = (255, 255, 255), (0, 220, 90)
LOW, HIGH = 2.0, 99.8  # percentiles of a map that span the colours


def heat(image: Image.Image, scores: np.ndarray, span: tuple[float, float] | None = None) -> Image.Image:
    """Lay a map (height, width) over an image of the same size; colours span its percentiles unless given."""
    low, high = span or tuple(np.percentile(scores, (LOW, HIGH)))
    share = np.clip((scores - low) / max(high - low, 1e-12), 0, 1)
    colours = np.asarray(colormaps["inferno"](share))[..., :3] * 255
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    return Image.fromarray(((1 - OPACITY) * grey + OPACITY * colours).round().astype(np.uint8))


def outlined(image: Image.Image, truth: np.ndarray | None, boxes: Iterable[Box] = ()) -> Image.Image:
    """Draw the border of what is true, and boxes of what was found."""
    pixels = np.asarray(image.convert("RGB")).copy()
    if truth is not None and truth.any():
        thickness = max(1, round(min(truth.shape) / 150))
        pixels[truth & ~binary_erosion(truth, iterations=thickness)] = TRUE
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in boxes:
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=FOUND)
    return picture


def strip(pictures: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Set pictures of one height side by side on white."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(p.height for p in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def overlay(image: Image.Image, scores: np.ndarray, boxes: Iterable[Box], truth: np.ndarray | None) -> Image.Image:
    """The image with the truth beside the image under its map with the boxes."""
    return strip([outlined(image, truth), outlined(heat(image, scores), None, boxes)])


def save(picture: Image.Image, path: Path) -> None:
    write_whole(path, lambda p: picture.save(p, format="PNG", optimize=True))
