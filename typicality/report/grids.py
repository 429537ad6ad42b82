"""Ranked grids as PNG files: one a label (rows are clusters, columns members), and one overview of all labels."""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

from typicality.report.pictures import Opener, cut
from typicality.report.text import milli, p_text, plural
from typicality.report.view import ElementView, LabelView, ReportView, context_window

TILE, GAP, MARGIN, CAPTION = 112, 8, 56, 210
PAPER, INK, MUTED, ACCENT, LINE = "#ffffff", "#1b1a17", "#6d6a63", "#b3401a", "#e4e0d8"
MOST_STRIPS = 24  # labels in the overview


def write_grids(view: ReportView, open_image: Opener, folder: Path) -> list[Path]:
    """Write `<label-slug>.png` for every label with elements, and `overview.png`; return their paths.

    Grids of labels that are gone are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for label in view.labels:
        if label.clusters:
            written.append(_save(draw_grid(view, label, open_image), folder / f"{label.slug}.png"))
    if any(label.strip for label in view.labels):
        written.append(_save(draw_overview(view, open_image), folder / "overview.png"))
    for path in set(folder.glob("*.png")) - set(written):
        path.unlink()
    return written


def draw_grid(view: ReportView, label: LabelView, open_image: Opener) -> PIL.Image.Image:
    """One label: a row a cluster, captioned with its median typicality, members by distance to the centroid."""
    columns = max(len(c.elements) for c in label.clusters)
    top = MARGIN + 104
    width = 2 * MARGIN + CAPTION + columns * (TILE + GAP) - GAP
    height = top + len(label.clusters) * (TILE + GAP) - GAP + MARGIN + 24
    canvas = PIL.Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    _write(pen, (MARGIN, MARGIN - 8), label.shown, 40, INK, bold=True, room=width - 2 * MARGIN)
    under = f"{view.label_name} in {view.dataset_name}  ·  {plural(label.n_images, 'image')}  ·  rows: visual elements"
    under += " by median typicality, those of few images last"
    _write(pen, (MARGIN, MARGIN + 48), under, 17, MUTED, room=width - 2 * MARGIN)
    for row, cluster in enumerate(label.clusters):
        y = top + row * (TILE + GAP)
        colour = MUTED if cluster.doubts else ACCENT
        _write(pen, (MARGIN, y + 14), milli(cluster.score.value), 27, colour, bold=True, room=CAPTION - 20)
        counted = f"{cluster.size} in {plural(cluster.n_images, 'image')}"
        _write(pen, (MARGIN, y + 52), counted, 15, MUTED, room=CAPTION - 20)
        note = cluster.doubts[0] if cluster.doubts else p_text(cluster.p_value) or "not tested"
        _write(pen, (MARGIN, y + 74), note, 15, MUTED, room=CAPTION - 20)
        for column, element in enumerate(cluster.elements):
            _paste(canvas, open_image, element, (MARGIN + CAPTION + column * (TILE + GAP), y), outlined=True)
    _write(pen, (MARGIN, height - MARGIN + 8), FOOT, 14, MUTED, room=width - 2 * MARGIN)
    return canvas


FOOT = (
    "Each tile is a part of an image with its surroundings. Typicality (× 10⁻³): how much better a diffusion model "
    "predicts the part when told its label."
)


def draw_overview(view: ReportView, open_image: Opener) -> PIL.Image.Image:
    """One strip a label with its best elements, in the labels' order."""
    labels = [label for label in view.labels if label.strip][:MOST_STRIPS]
    columns = max(len(label.strip) for label in labels)
    step = TILE + GAP + 14
    top = MARGIN + 80
    width = 2 * MARGIN + CAPTION + columns * (TILE + GAP) - GAP
    height = top + len(labels) * step - 14 - GAP + MARGIN
    canvas = PIL.Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    _write(pen, (MARGIN, MARGIN - 12), view.title, 36, INK, bold=True, room=width - 2 * MARGIN)
    if view.ordered and len(labels) > 1:
        x = MARGIN + CAPTION - 24
        pen.line((x, top + TILE // 2, x, top + (len(labels) - 1) * step + TILE // 2), fill=LINE, width=3)
    for row, label in enumerate(labels):
        y = top + row * step
        _write(pen, (MARGIN, y + TILE // 2 - 30), label.shown, 32, INK, bold=True, room=CAPTION - 52)
        _write(pen, (MARGIN, y + TILE // 2 + 12), plural(label.n_images, "image"), 15, MUTED, room=CAPTION - 52)
        if view.ordered:
            x, middle = MARGIN + CAPTION - 24, y + TILE // 2
            pen.ellipse((x - 6, middle - 6, x + 6, middle + 6), fill=ACCENT)
        for column, element in enumerate(label.strip):
            _paste(canvas, open_image, element, (MARGIN + CAPTION + column * (TILE + GAP), y))
    return canvas


def _paste(
    canvas: PIL.Image.Image, open_image: Opener, element: ElementView, place: tuple[int, int], outlined: bool = False
) -> None:
    """Put an element and its surroundings at a place; `outlined` marks where the element itself lies."""
    original = open_image(element.image_id)
    window = context_window(element.box, original.width, original.height)
    tile = enlarge(cut(original, window), TILE)
    if outlined:
        scale = TILE / (window[2] - window[0])
        x0, y0 = (round((element.box[i] - window[i]) * scale) for i in (0, 1))
        x1, y1 = (round((element.box[i + 2] - window[i]) * scale) - 1 for i in (0, 1))
        pen = ImageDraw.Draw(tile, "RGBA")
        pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0, 70))
        pen.rectangle((x0, y0, x1, y1), outline=(255, 255, 255, 210))
    canvas.paste(tile, place, _mask(TILE, 8))
    outline = ImageDraw.Draw(canvas)
    outline.rounded_rectangle((*place, place[0] + TILE - 1, place[1] + TILE - 1), 8, outline=LINE, width=1)


def enlarge(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """Return the image at `side` x `side`: crisp where it is enlarged, smooth where it is reduced."""
    if max(image.size) < side:
        factor = -(-side // max(image.size))
        image = image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)
    return image.resize((side, side), PIL.Image.Resampling.LANCZOS)


@lru_cache(maxsize=4)
def _mask(side: int, radius: int) -> PIL.Image.Image:
    large = PIL.Image.new("L", (side * 4, side * 4), 0)
    ImageDraw.Draw(large).rounded_rectangle((0, 0, side * 4 - 1, side * 4 - 1), radius * 4, fill=255)
    return large.resize((side, side), PIL.Image.Resampling.LANCZOS)


@lru_cache(maxsize=32)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@lru_cache(maxsize=1024)
def _face(text: str, bold: bool) -> str:
    """Return the file of DejaVu Sans, or of the installed font that lacks the fewest characters of a text."""
    usual = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf")
    wanted = np.unique([ord(c) for c in text])

    def lacks(path: str) -> int:
        return int(np.isin(wanted, _characters(path), invert=True).sum())

    if not lacks(usual):
        return usual
    upright = [f for f in fontManager.ttflist if f.style == "normal" and not f.name.startswith("Last Resort")]
    upright.sort(key=lambda f: (fontManager.score_weight(f.weight, 700 if bold else 400), f.fname))
    return min((usual, *(f.fname for f in upright)), key=lacks)


@cache
def _characters(path: str) -> np.ndarray:
    """Return the characters (n,) for which a font has a glyph; none where the font is gone."""
    try:
        return np.fromiter(FT2Font(path).get_charmap(), np.int64)
    except (OSError, RuntimeError):
        return np.zeros(0, np.int64)


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    *,
    room: int,
    bold: bool = False,
) -> None:
    """Write one line, smaller or cut short where it is longer than `room` pixels, without bidirectional controls."""
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    face = _face(text, bold)
    while size > 14 and pen.textlength(text, font=_font(face, size)) > room:
        size -= 2
    font = _font(face, size)
    if pen.textlength(text, font=font) > room:
        while text and pen.textlength(text + "…", font=font) > room:
            text = text[:-1]
        text += "…"
    pen.text(place, text, font=font, fill=colour)


def _save(image: PIL.Image.Image, path: Path) -> Path:
    part = path.with_suffix(".png.part")
    image.save(part, "PNG", compress_level=7)
    part.replace(path)
    return path
