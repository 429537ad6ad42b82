"""Images re-synthesised as another label by `typicality translate`, beside what they were.

Reads `translate/*/translations.parquet` and `summary.json`, and the strips (source, result, change) that the table
names; `typicality.applications.translate` documents them. Which folders count is what run.json says of its stages: the
last translation of every pair of labels that was finished. Others may lie there from before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from typicality.report.pictures import Crop
from typicality.report.sections.audit import box_of
from typicality.report.sections.base import Picture, Section, Source, mappings, number
from typicality.report.text import clean, milli

PAIRS, STRIPS, PLACES = 12, 6, 8  # pairs of labels shown with pictures, and images and places of each
ROWS = 60  # pairs in the table
COLUMNS = ("image_id", "file_name", "from", "to", "change", "flipped", "label_after", "picture")


@dataclass(frozen=True)
class Strip:
    """One image: source, result and map of the change side by side."""

    name: str
    picture: Picture
    change: str
    after: str
    flipped: bool


@dataclass(frozen=True)
class Place:
    """A box of the source image in which the translation changed typicality most."""

    name: str
    crop: Crop
    change: str


@dataclass(frozen=True)
class Pair:
    """The translations from one label to another."""

    source: str
    target: str
    method: str
    n: int
    flipped: int
    change: str
    strips: tuple[Strip, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Row:
    """A pair of labels in numbers: shares of images taken for the target before and after, and the mean change."""

    source: str
    target: str
    method: str
    n: int
    already: str
    flipped: str
    change: str
    error: str


@dataclass(frozen=True)
class Translations(Section):
    """Pairs of labels that were translated: `table` in numbers, where there are several, `pairs` in pictures.

    `more` pairs have no pictures here: those whose typicality changed least. `omitted` ones are not in the table.
    """

    pairs: tuple[Pair, ...]
    more: int
    table: tuple[Row, ...]
    omitted: int

    slug: ClassVar[str] = "translations"
    stage: ClassVar[str] = "translate"
    short: ClassVar[str] = "Translations"
    heading: ClassVar[str] = "The same images, as another label"
    template: ClassVar[str] = "sections/translate.html"

    @classmethod
    def read(cls, source: Source) -> Translations | None:
        found = [(name, source.mapping("translate", name, "summary.json")) for name in source.finished("translate")]
        found.sort(key=lambda item: -(number(item[1].get("mean_change")) or 0.0))
        pairs = [pair for name, summary in found[:PAIRS] if (pair := _pair(name, summary, source)) is not None]
        if not pairs:
            return None
        place = {clean(label): at for at, label in enumerate(source.data.labels)}
        pairs.sort(key=lambda pair: (place.get(pair.source, len(place)), place.get(pair.target, len(place))))
        rows = [row for _, summary in found if (row := _row(summary)) is not None] if len(found) > 1 else []
        return cls(tuple(pairs), max(0, len(found) - PAIRS), tuple(rows[:ROWS]), max(0, len(rows) - ROWS))


def _row(summary: Mapping[str, Any]) -> Row | None:
    flipped, already, change, n = (number(summary.get(k)) for k in ("flip_rate", "already", "mean_change", "n"))
    if flipped is None or already is None or change is None or n is None:
        return None
    error = number(summary.get("mean_change_se"))
    return Row(
        source=clean(summary.get("from", "")),
        target=clean(summary.get("to", "")),
        method=clean(summary.get("method") or "unnamed"),
        n=int(n),
        already=f"{already:.0%}",
        flipped=f"{flipped:.0%}",
        change=milli(change),
        error="" if error is None else f"{1000 * error:.2g}",
    )


def _pair(name: str, summary: Mapping[str, Any], source: Source) -> Pair | None:
    table = source.table("translate", name, "translations.parquet", columns=COLUMNS)
    if table is None or not table.num_rows:
        return None
    rows: list[dict[str, Any]] = sorted(table.to_pylist(), key=lambda row: -(number(row["change"]) or 0.0))
    changes = [c for row in rows if (c := number(row["change"])) is not None]
    strips = []
    for row in rows[:STRIPS]:
        picture = source.picture("translate", name, str(row["picture"]))
        if picture is not None:
            strips.append(
                Strip(
                    clean(row["file_name"]), picture, milli(number(row["change"])), clean(row["label_after"]),
                    bool(row["flipped"]),
                )
            )  # fmt: skip
    return Pair(
        source=clean(rows[0]["from"]),
        target=clean(rows[0]["to"]),
        method=clean(summary.get("method") or rows[0].get("method") or "unnamed"),
        n=len(rows),
        flipped=sum(bool(row["flipped"]) for row in rows),
        change=milli(sum(changes) / len(changes) if changes else None),
        strips=tuple(strips),
        places=_places(rows, source),
    )


def _places(rows: list[dict[str, Any]], source: Source) -> tuple[Place, ...]:
    """The boxes that changed most, either way, one an image."""
    best = []
    for row in rows:
        boxes = [(c, box) for box in mappings(row.get("changes")) if (c := number(box.get("change"))) is not None]
        if boxes:
            change, box = max(boxes, key=lambda item: abs(item[0]))
            best.append((change, row, box_of([box.get(side) for side in ("x0", "y0", "x1", "y1")])))
    best.sort(key=lambda item: -abs(item[0]))
    places = []
    for change, row, corners in best[:PLACES]:
        crop = source.crop(str(row["image_id"]), corners) if corners is not None else None
        if crop is not None:
            places.append(Place(clean(row["file_name"]), crop, milli(change)))
    return tuple(places)
