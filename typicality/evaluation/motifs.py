"""Motifs with a known place: drawn from a seed, pasted into images, boxes recorded.

A motif is a small picture that follows from its kind and its number alone: a glyph (a symmetric pattern of blocks on
a plate), a texture (stripes), a tint (a soft spot of colour) or an overlay (digits, as of a timestamp, other ones in
each image). Motifs of one set differ in hue and pattern and not in kind of salience, so that what tells a label's
motif from a distractor is only in which images they are.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from typicality.errors import InputError
from typicality.records import Box

Kind = Literal["glyph", "texture", "tint", "overlay"]
Place = Literal["free", "fixed"]
KINDS: tuple[str, ...] = get_args(Kind)
SIDE = 64
"""Sizes of motifs are pixels of an image whose short side has so many."""
JITTER = 0.2
"""Sides vary by this share to either side."""
FADING = 0.15
"""Contrast varies from the one asked for down by this share."""
WIDE = 1.5
"""Width of an overlay in heights."""
BLOCKS = 5
"""Blocks of a glyph along a side; its left half is mirrored."""
APART = 5
"""Blocks, of 15, in which two glyphs of one set differ at least."""
SMALLEST = 3
"""Pixels of a side below which nothing would be seen."""
TRIES = 100
SLOTS = ((0, 0), (1, 1), (1, 0), (0, 1), (0.5, 0.5), (0.5, 0), (0.5, 1), (0, 0.5), (1, 0.5))
"""Fixed places, as shares of the room that is left beside the motif: (right, down)."""


def generator(*parts: object) -> np.random.Generator:
    """Return a generator that depends on the text of `parts` and nothing else."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


@dataclass(frozen=True)
class Motif:
    """One motif.

    Attributes
    ----------
    name : unique in its set
    label : whose images it is pasted into; None for a distractor, which goes into all
    hue : of its colour, in [0, 1)
    pattern : (5, 5) blocks of a glyph, mirrored; of other kinds unused
    angle : of a texture's stripes, in radians
    slot : its fixed place, an index of SLOTS
    """

    name: str
    kind: Kind
    label: str | None
    hue: float
    pattern: tuple[tuple[bool, ...], ...]
    angle: float
    slot: int

    def draw(self, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
        """Return (height, width, 4) float32 in [0, 1], red, green, blue and opacity; `rng` picks the digits."""
        colour = np.array(colorsys.hsv_to_rgb(self.hue, 1.0, 0.8), dtype=np.float32)
        if self.kind == "overlay":
            return _text(width, height, self.hue, rng)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        result = np.ones((height, width, 4), dtype=np.float32)
        if self.kind == "glyph":
            rows = (np.arange(height) * (BLOCKS + 2) // height) - 1  # a margin of one block is the plate
            columns = (np.arange(width) * (BLOCKS + 2) // width) - 1
            blocks = np.pad(np.array(self.pattern), 1)[rows[:, None] + 1, columns[None] + 1]
            result[..., :3] = np.where(blocks[..., None], 1.0, colour)
        elif self.kind == "texture":
            along = (x + 0.5) * np.cos(self.angle) + (y + 0.5) * np.sin(self.angle)
            light = np.sin(2 * np.pi * along / max(2.0, height / 3.5)) > 0
            result[..., :3] = np.where(light[..., None], 1.0, colour)
        else:
            radius = np.hypot((x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5) * 2
            result[..., :3] = colour
            result[..., 3] = 0.6 * np.clip((1.15 - radius) / 0.4, 0, 1)
        return result

    def shape(self, side: float) -> tuple[int, int]:
        """Return (width, height) in pixels for a side in pixels."""
        height = max(SMALLEST, round(side))
        return (round(WIDE * height) if self.kind == "overlay" else height), height


def _text(width: int, height: int, hue: float, rng: np.random.Generator) -> np.ndarray:
    """Three digits and a colon as of a clock, light with a dark rim: readable on any ground."""
    scale = 8
    a, b, c = rng.integers(0, 10, 3)
    text = f"{a}{b}:{c}"
    font = ImageFont.load_default(size=height * scale * 0.8)
    fill = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.5, 1.0))
    rim = max(1, height * scale // 16)
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGBA", (1, 1))).textbbox(
        (0, 0), text, font=font, stroke_width=rim
    )
    written = Image.new("RGBA", (int(right - left) + 1, int(bottom - top) + 1), (0, 0, 0, 0))
    ImageDraw.Draw(written).text((-left, -top), text, font=font, fill=fill, stroke_width=rim, stroke_fill=(0, 0, 0))
    small = written.resize((width, height), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def draw_motifs(labels: Sequence[str], kinds: Sequence[str], distractors: Sequence[str], seed: int) -> list[Motif]:
    """Make a motif of every kind for every label, then the distractors; hues are spread evenly over all of them.

    Raises
    ------
    InputError : for an unknown kind, or more in one image than there are fixed places.
    """
    for kind in (*kinds, *distractors):
        if kind not in KINDS:
            raise InputError(f"there is no motif {kind!r}: choose from {', '.join(KINDS)}")
    if len(kinds) + len(distractors) > len(SLOTS):
        raise InputError(f"at most {len(SLOTS)} motifs and distractors fit into one image")
    wanted = [(label, kind) for label in labels for kind in kinds] + [(None, kind) for kind in distractors]
    rng = generator("motifs", seed, len(labels), *kinds, "distractors", *distractors)
    start = rng.random()
    patterns: list[np.ndarray] = []
    found: list[Motif] = []
    for i, (label, kind) in enumerate(wanted):
        patterns.append(_pattern(rng, patterns))
        left = patterns[-1]
        number = i % len(kinds) if label is not None else i - len(labels) * len(kinds)
        first = len(distractors)
        free = len(SLOTS) - first
        found.append(
            Motif(
                name=f"{label or 'distractor'} {number + 1}: {kind}",
                kind=kind,  # type: ignore[arg-type]
                label=label,
                hue=(start + i / len(wanted)) % 1.0,
                pattern=tuple(tuple(bool(b) for b in row) for row in np.hstack([left, left[:, -2::-1]])),
                angle=np.pi * ((i + 0.5) / len(wanted)),
                slot=first + i % free if label is not None else number,
            )
        )
    return found


def _pattern(rng: np.random.Generator, others: Sequence[np.ndarray]) -> np.ndarray:
    """(5, 3) bool: the left half and the middle of a glyph, 6 to 10 blocks set, as unlike the others as can be had."""
    drawn: list[tuple[int, int, np.ndarray]] = []
    for _ in range(TRIES):
        left = rng.random((BLOCKS, (BLOCKS + 1) // 2)) < 0.5
        if not 6 <= left.sum() <= 10:
            continue
        nearest = min((int((left != other).sum()) for other in others), default=left.size)
        if nearest >= APART:
            return left
        drawn.append((nearest, len(drawn), left))
    return max(drawn)[2]


def plant(
    pixels: np.ndarray, motifs: Sequence[Motif], *, size: float, contrast: float, place: Place, max_aspect: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[tuple[Motif, Box]]]:  # fmt: skip
    """Paste motifs into one image, none on top of another; labels' motifs first, what finds no room is left out.

    Parameters
    ----------
    pixels : (h, w, 3) uint8
    size : side in pixels of an image whose short side has SIDE; varied by JITTER
    contrast : opacity in (0, 1]; varied by FADING
    place : free draws a place in the image, fixed gives each motif one of its own
    max_aspect : of what the model sees of an image: nothing is pasted beyond it

    Returns
    -------
    the image, and the motifs with their boxes in pixels
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    rows, columns = (min(n, int(short * max_aspect)) for n in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    result = pixels.astype(np.float32)
    placed: list[tuple[Motif, Box]] = []
    for motif in sorted(motifs, key=lambda m: m.label is None):
        side = size / SIDE * short * rng.uniform(1 - JITTER, 1 + JITTER)
        opacity = contrast * rng.uniform(1 - FADING, 1)
        w, h = motif.shape(side)
        if w > columns or h > rows:
            continue
        for _ in range(TRIES):
            right, down = SLOTS[motif.slot] if place == "fixed" else rng.random(2)
            x, y = left + round(right * (columns - w)), top + round(down * (rows - h))
            box = (x, y, x + w, y + h)
            if not any(_meet(box, other) for _, other in placed):
                patch = motif.draw(w, h, rng)
                alpha = patch[..., 3:] * opacity
                part = result[y : y + h, x : x + w]
                result[y : y + h, x : x + w] = (1 - alpha) * part + alpha * patch[..., :3] * 255
                placed.append((motif, box))
                break
    return np.clip(np.round(result), 0, 255).astype(np.uint8), placed


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
