"""Where in the images a label shows, by `typicality localize`: boxes with their scores over the images.

Reads `localization.parquet` (a row a box) and, where there are any, the overlays `localize/overlays/*.png`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

from typicality.report.pictures import Crop
from typicality.report.sections.base import Picture, Section, Source, number
from typicality.report.text import clean

COLUMNS = ("image_id", "file_name", "label", "x0", "y0", "x1", "y1", "score")
IMAGES, OVERLAYS = 8, 16  # images shown a label, overlays in all


@dataclass(frozen=True)
class Place:
    """A box that was found, with its surroundings."""

    name: str
    crop: Crop
    score: str


@dataclass(frozen=True)
class Located:
    """What was found of one label: its best boxes, in different images."""

    label: str
    n_boxes: int
    n_images: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Overlay:
    name: str
    picture: Picture


@dataclass(frozen=True)
class Localization(Section):
    """Boxes by label, then overlays."""

    labels: tuple[Located, ...]
    overlays: tuple[Overlay, ...]

    slug: ClassVar[str] = "places"
    short: ClassVar[str] = "Places"
    heading: ClassVar[str] = "Where it shows"
    template: ClassVar[str] = "sections/localize.html"

    @classmethod
    def read(cls, source: Source) -> Localization | None:
        table = source.table("localization.parquet", columns=COLUMNS)
        if table is None:
            return None
        by_label: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in table.to_pylist():
            by_label[str(row["label"])].append(row)
        order = {label: n for n, label in enumerate(source.data.labels)}
        labels = sorted(by_label, key=lambda label: (order.get(label, len(order)), label))
        folder = source.folder / "localize" / "overlays"
        names = sorted(p.name for p in folder.rglob("*.png"))[:OVERLAYS] if folder.is_dir() else []
        pictures = [(name, source.picture("localize", "overlays", name)) for name in names]
        overlays = tuple(Overlay(clean(name.removesuffix(".png")), p) for name, p in pictures if p is not None)
        located = tuple(_located(label, by_label[label], source) for label in labels)
        return cls(located, overlays) if located or overlays else None


def _located(label: str, rows: list[dict[str, Any]], source: Source) -> Located:
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -(number(row["score"]) or 0.0)):
        best.setdefault(row["image_id"], row)
    places = []
    for row in list(best.values())[:IMAGES]:
        crop = source.crop(row["image_id"], [float(row[side]) for side in ("x0", "y0", "x1", "y1")])
        if crop is not None:
            score = number(row["score"])
            places.append(Place(clean(row["file_name"]), crop, "n/a" if score is None else f"{score:.3g}"))
    return Located(clean(label), len(rows), len(best), tuple(places))
