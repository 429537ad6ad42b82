"""The sheet of sources and what became of them. Arrays in, a PIL image out; nothing is written here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

GAP = 4
"""Pixels between pictures."""
CROSSED = (208, 32, 32)

Strip = tuple[np.ndarray, np.ndarray, Sequence[bool]]
"""A source (H, W, 3), pictures made of it (k, H, W, 3), all uint8, and whether each is kept."""


def sheet(strips: Sequence[Strip], columns: int = 2) -> Image.Image:
    """Return a row a source on a white page, in several columns: source | what was made; not kept is crossed out."""
    pictures = [strip_of(*strip) for strip in strips]
    width, height = max(p.width for p in pictures) + 4 * GAP, max(p.height for p in pictures) + GAP
    columns = min(columns, len(pictures))
    lines = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * width, lines * height), "white")
    for i, picture in enumerate(pictures):
        page.paste(picture, (i // lines * width, i % lines * height))
    return page


def strip_of(source: np.ndarray, made: np.ndarray, kept: Sequence[bool]) -> Image.Image:
    """Return one source and what was made of it, side by side."""
    height, width = source.shape[:2]
    strip = Image.new("RGB", ((1 + len(made)) * (width + GAP) + GAP, height), "white")
    strip.paste(Image.fromarray(source), (0, 0))
    pen = ImageDraw.Draw(strip)
    for k, picture in enumerate(made):
        x = (k + 1) * (width + GAP) + GAP
        strip.paste(Image.fromarray(picture), (x, 0))
        if not kept[k]:
            pen.line((x, 0, x + width - 1, height - 1), CROSSED)
            pen.line((x, height - 1, x + width - 1, 0), CROSSED)
    return strip
