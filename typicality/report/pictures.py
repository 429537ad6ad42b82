"""The pictures of the report as data URIs, coarser where the budget asks for it.

Every picture is decoded and encoded again, so no EXIF or other metadata of the originals survives.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import PIL.Image

from typicality.report.view import ElementView, FloatBox, ImageView, ReportInput, ReportView, context_window

Opener = Callable[[str], PIL.Image.Image]


@dataclass(frozen=True)
class Level:
    """How fine pictures are: longest sides in pixels, WebP qualities, and the longest side of a map in cells."""

    crop: int
    crop_quality: int
    source: int
    source_quality: int
    map: int
    lossless: int = 0  # pictures up to this side are kept without loss


LEVELS = (
    Level(160, 84, 448, 82, 64, lossless=72),
    Level(128, 80, 384, 76, 48, lossless=48),
    Level(112, 76, 320, 70, 32),
    Level(96, 70, 256, 62, 32),
    Level(80, 62, 192, 52, 16),
    Level(64, 52, 128, 42, 16),
    Level(48, 42, 96, 34, 12),
    Level(40, 30, 64, 24, 8),
)


FINE = 4  # level up to which one file is worth having; pictures that must be coarser go into files of their own
DEFERRED = 1200  # tiles beyond which a page loads pictures as they come near the screen
CRISP = 128  # images up to this side, in pixels, show their pixels when enlarged


@dataclass(frozen=True)
class Crop:
    """An element with its surroundings. `box` is the element's place in the picture, in shares of its side."""

    uri: str
    side: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Source:
    """A whole image; `uri` is empty where the budget left no room for it."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class MapData:
    """A typicality map as signed bytes: value = byte * `step`. `covers` is in pixels of the original."""

    height: int
    width: int
    step: float
    cells: str
    covers: FloatBox


@dataclass(frozen=True)
class Pictures:
    """Everything the page shows that is not text."""

    crops: dict[int, Crop] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    maps: dict[tuple[str, str], MapData] = field(default_factory=dict)
    thumbs: dict[str, str] = field(default_factory=dict)
    scale: float = 1e-3  # the map value at which colours are full
    split: bool = False  # whether pictures are files beside the page

    @property
    def deferred(self) -> bool:
        """Whether tiles get their picture from the script, when they come near the screen, as in long reports."""
        return self.split or len(self.crops) > DEFERRED

    def size(self, view: ReportView) -> int:
        """Characters that the pictures add to the page, with the markup around them."""
        if len(view.elements()) > DEFERRED:
            tiles = sum(len(c.uri) + 130 for c in self.crops.values()) + sum(len(t) + 80 for t in self.thumbs.values())
        else:
            strips = [e for label in view.labels for e in label.strip]
            shown = [e for e in [*view.elements(), *strips] if e.number in self.crops]
            whole = [i for i in view.whole_images() if i.image_id in self.thumbs]
            tiles = sum(len(self.crops[e.number].uri) + 110 for e in shown)
            tiles += sum(len(self.thumbs[i.image_id]) + 60 for i in whole)
        return (
            tiles
            + sum(len(s.uri) + 3 for s in self.sources.values())
            + sum(len(m.cells) + 70 for m in self.maps.values())
        )

    def smooth(self, image_id: str) -> bool:
        """Whether an image is large enough to be smoothed where it is enlarged; small ones keep their pixels crisp."""
        source = self.sources.get(image_id)
        return source is not None and max(source.width, source.height) > CRISP

    def without_sources(self, excess: int) -> Pictures:
        """Leave out source images, those met last first, until `excess` characters are saved."""
        kept = dict(self.sources)
        for image_id in reversed(list(kept)):
            if excess <= 0:
                break
            excess -= len(kept[image_id].uri)
            kept[image_id] = Source("", kept[image_id].width, kept[image_id].height)
        return replace(self, sources=kept)

    def apart(self, folder: str) -> tuple[Pictures, dict[str, bytes]]:
        """Return the same with addresses instead of contents, and the contents by address.

        Files are named by their content's hash, so an old page keeps its pictures while a new one is written.
        """
        files: dict[str, bytes] = {}

        def moved(uri: str) -> str:
            if not uri:
                return uri
            content = base64.b64decode(uri.partition(",")[2])
            address = f"{folder}/{hashlib.sha256(content).hexdigest()[:20]}.webp"
            files[address] = content
            return address

        return replace(
            self,
            crops={n: replace(c, uri=moved(c.uri)) for n, c in self.crops.items()},
            sources={i: replace(s, uri=moved(s.uri)) for i, s in self.sources.items()},
            thumbs={i: moved(uri) for i, uri in self.thumbs.items()},
            split=True,
        ), files


def draw_pictures(data: ReportInput, view: ReportView, level: Level, every: int = 1) -> Pictures:
    """Encode the pictures of a report; each original is opened once.

    Parameters
    ----------
    every : take one image of so many, to estimate a level's size from a sample.
    """
    elements: dict[str, list[ElementView]] = {}
    for element in view.elements():
        elements.setdefault(element.image_id, []).append(element)
    whole = {image.image_id for image in view.whole_images()}
    wanted: dict[str, dict[str, None]] = {}
    items: list[ElementView | ImageView] = [*view.elements(), *view.whole_images()]
    for item in items:
        wanted.setdefault(item.image_id, {})[item.label] = None
    drawn = Pictures()
    peaks: list[float] = []
    for image_id in [s.image_id for s in view.sources][::every]:
        original = data.open_image(image_id)
        drawn.sources[image_id] = Source(
            encode(shrink(original, level.source), level.source_quality, level.lossless),
            original.width,
            original.height,
        )
        for element in elements.get(image_id, ()):
            drawn.crops[element.number] = draw_crop(original, element.box, level)
        if image_id in whole:
            drawn.thumbs[image_id] = encode(shrink(original, level.crop), level.crop_quality, level.lossless)
        for label in wanted[image_id]:
            values, covers = data.open_map(image_id, label)
            drawn.maps[image_id, label] = quantise(values, covers, level.map)
            peaks.append(float(np.quantile(np.abs(values), 0.98)))
    scale = float(np.median(peaks)) if peaks else 0.0
    return Pictures(drawn.crops, drawn.sources, drawn.maps, drawn.thumbs, scale if scale > 0 else 1e-3)


def choose_level(data: ReportInput, view: ReportView, room: int, sample: int = 40) -> int:
    """Return the position of the finest level that, judged by a sample of the images, fits into `room` characters."""
    every = max(1, len(view.sources) // sample)
    share = len(view.sources[::every]) / max(1, len(view.sources))
    for position, level in enumerate(LEVELS):
        if draw_pictures(data, view, level, every).size(view) / max(share, 1e-9) <= 0.98 * room:
            return position
    return len(LEVELS) - 1


def cut(original: PIL.Image.Image, window: tuple[int, int, int, int]) -> PIL.Image.Image:
    """Return a square region of an image; what lies outside of the image is grey."""
    if window[0] >= 0 and window[1] >= 0 and window[2] <= original.width and window[3] <= original.height:
        return original.crop(window)
    canvas = PIL.Image.new("RGB", (window[2] - window[0], window[3] - window[1]), (128, 128, 128))
    canvas.paste(original, (-window[0], -window[1]))
    return canvas


def draw_crop(original: PIL.Image.Image, box: tuple[int, int, int, int], level: Level) -> Crop:
    """Return an element with its surroundings, never larger than in the original."""
    window = context_window(box, original.width, original.height)
    side = window[2] - window[0]
    region = shrink(cut(original, window), level.crop)
    place = (box[0] - window[0], box[1] - window[1], box[2] - box[0], box[3] - box[1])
    return Crop(
        encode(region, level.crop_quality, level.lossless),
        region.width,
        (place[0] / side, place[1] / side, place[2] / side, place[3] / side),
    )


def shrink(image: PIL.Image.Image, longest: int) -> PIL.Image.Image:
    """Return the image with no side longer than `longest`; never enlarges."""
    factor = longest / max(image.size)
    if factor >= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, PIL.Image.Resampling.LANCZOS)


def encode(image: PIL.Image.Image, quality: int, lossless: int = 0) -> str:
    """Return the pixels alone as a WebP data URI."""
    bare = PIL.Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
    buffer = io.BytesIO()
    if max(bare.size) <= lossless:
        bare.save(buffer, "WEBP", lossless=True, quality=40, method=2)
    else:
        bare.save(buffer, "WEBP", quality=quality, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def quantise(values: np.ndarray, covers: FloatBox, longest: int) -> MapData:
    """Return a map as signed bytes, averaged down to at most `longest` cells a side."""
    values = np.nan_to_num(np.asarray(values, dtype=np.float32))
    factor = longest / max(values.shape)
    if factor < 1:
        size = (max(1, round(values.shape[1] * factor)), max(1, round(values.shape[0] * factor)))
        values = np.asarray(PIL.Image.fromarray(values).resize(size, PIL.Image.Resampling.BOX))
    peak = float(np.abs(values).max())
    step = peak / 127 if peak > 0 else 1.0
    cells = np.round(values / step).astype(np.int8)
    x0, y0, x1, y1 = (float(v) for v in covers)
    text = base64.b64encode(cells.tobytes()).decode("ascii")
    return MapData(values.shape[0], values.shape[1], float(f"{step:.4g}"), text, (x0, y0, x1, y1))
