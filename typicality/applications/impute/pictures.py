"""The sheet to look at: original, hole, fill and spread of some images. Arrays in, PIL images out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib import colormaps
from PIL import Image, ImageDraw

GAP = 6
SIDE = 128
"""Pixels of the long side of a picture on the sheet."""
HEADINGS = ("original", "hole", "fill", "spread")
DARK, LIGHT = 96, 160
"""Greys of the hatching of a hole, which no image's own colour looks like."""


def hatched(pixels: UInt8[np.ndarray, "H W 3"], missing: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return an image whose missing pixels are hatched."""
    width = max(1, min(missing.shape) // 24)
    ys, xs = np.nonzero(missing)
    result = pixels.copy()
    result[missing] = np.where(((ys + xs) // width) % 2, DARK, LIGHT)[:, None]
    return result


def heat(spread: UInt8[np.ndarray, "H W"], largest: int) -> UInt8[np.ndarray, "H W 3"]:
    """Return a spread in colours, of which the brightest is `largest`."""
    return (colormaps["inferno"](spread.astype(np.float32) / max(largest, 1))[..., :3] * 255).astype(np.uint8)


def strip(pictures: Sequence[UInt8[np.ndarray, "H W 3"]]) -> Image.Image:
    """Set pictures of one image side by side, enlarged or reduced to the sheet's size."""
    height, width = pictures[0].shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    page = Image.new("RGB", (len(pictures) * (SIDE + GAP) - GAP, SIDE), "white")
    for i, picture in enumerate(pictures):
        page.paste(Image.fromarray(picture).resize(size, kind), (i * (SIDE + GAP), 0))
    return page


def sheet(strips: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Return strips on one white sheet below headings."""
    top, columns = 16, min(columns, len(strips))
    width, height = strips[0].width + 4 * GAP, strips[0].height + GAP
    page = Image.new("RGB", (columns * width, top + -(-len(strips) // columns) * height), "white")
    draw = ImageDraw.Draw(page)
    for column in range(columns):
        for i, text in enumerate(HEADINGS):
            draw.text((column * width + i * (SIDE + GAP), 2), text, fill="black")
    for i, picture in enumerate(strips):
        page.paste(picture, (i % columns * width, top + i // columns * height))
    return page
