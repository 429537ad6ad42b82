"""Where in the images a label shows, by `typicality localize`: boxes with their scores over the images.

Reads `localization.parquet` (a row a box) and, where they are there, `localize/summary.json` (recipes, measures and the
names of overlays by label) and the overlays `localize/overlays/*.png`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from typicality.report.pictures import Crop
from typicality.report.sections.base import Picture, Section, Source, mappings, number
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
class Overlay:
    name: str
    picture: Picture


@dataclass(frozen=True)
class Measures:
    """How well the maps of a label find what is marked; None where a number is missing."""

    images: int
    average_precision: float | None
    prevalence: float | None
    lift: float | None
    pointing: float | None


@dataclass(frozen=True)
class Located:
    """What was found of one label: its best boxes, in different images.

    Attributes
    ----------
    meaning : what a high value of its map says, after "where"; '' where that is not known
    recipe : how the map is made
    """

    label: str
    n_boxes: int
    n_images: int
    places: tuple[Place, ...]
    overlays: tuple[Overlay, ...] = ()
    meaning: str = ""
    recipe: str = ""
    threshold_by: str = ""
    measures: Measures | None = None


@dataclass(frozen=True)
class Localization(Section):
    """Label by label: what its map says, how well that was measured to be true, boxes and overlays.

    Attributes
    ----------
    overlays : those of which no label is known
    chosen : whether recipes were chosen on images with ground truth
    """

    labels: tuple[Located, ...]
    overlays: tuple[Overlay, ...]
    chosen: bool = False

    slug: ClassVar[str] = "places"
    stage: ClassVar[str] = "localize"
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
        summary = source.mapping("localize", "summary.json")
        facts = _mapping(summary, "labels")
        labels = source.in_order({*by_label, *facts})
        named = {label: mappings(_mapping(facts, label).get("overlays")) for label in labels}
        shown = _in_turn(named, OVERLAYS)
        measures = _mapping(summary, "measures")
        located = tuple(
            _located(
                label, by_label.get(label, []), source, _mapping(facts, label), _mapping(measures, label),
                _overlays([(str(o.get("file")), str(o.get("file_name"))) for o in shown[label]], source),
            )
            for label in labels
        )  # fmt: skip
        rest = () if any(named.values()) else _overlays(_all_overlays(source), source)
        chosen = any(_mapping(facts, label).get("chosen_by") == "validation part" for label in labels)
        return cls(located, rest, chosen) if located or rest else None


def _mapping(document: Any, name: str) -> Mapping[str, Any]:
    """Return a mapping inside another; an empty one where either is something else."""
    inner = document.get(name) if isinstance(document, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _in_turn(items: Mapping[str, Sequence[Mapping[str, Any]]], most: int) -> dict[str, list[Mapping[str, Any]]]:
    """Take one of each label, then a second, and so on, until `most` are taken."""
    longest = max(map(len, items.values()), default=0)
    turns = [(label, found[n]) for n in range(longest) for label, found in items.items() if n < len(found)]
    taken: dict[str, list[Mapping[str, Any]]] = {label: [] for label in items}
    for label, item in turns[:most]:
        taken[label].append(item)
    return taken


def _all_overlays(source: Source) -> list[tuple[str, str]]:
    """Return (file, name) of overlays that no summary names, evenly over their names, which begin with the label."""
    folder = source.folder / "localize" / "overlays"
    names = sorted(p.name for p in folder.rglob("*.png")) if folder.is_dir() else []
    few = names if len(names) <= OVERLAYS else [names[n * len(names) // OVERLAYS] for n in range(OVERLAYS)]
    return [(name, name.removesuffix(".png")) for name in few]


def _overlays(files: Sequence[tuple[str, str]], source: Source) -> tuple[Overlay, ...]:
    pictures = [(name, source.picture("localize", "overlays", file)) for file, name in files]
    return tuple(Overlay(clean(name), picture) for name, picture in pictures if picture is not None)


def _text(value: Any) -> str:
    return clean(value) if value else ""


def _measures(row: Mapping[str, Any]) -> Measures | None:
    if not row:
        return None
    names = ("average_precision", "prevalence", "lift", "pointing")
    return Measures(int(number(row.get("images")) or 0), *(number(row.get(name)) for name in names))


def _located(
    label: str, rows: Sequence[dict[str, Any]], source: Source, facts: Mapping[str, Any], measured: Mapping[str, Any],
    overlays: tuple[Overlay, ...],
) -> Located:  # fmt: skip
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -(number(row["score"]) or 0.0)):
        best.setdefault(row["image_id"], row)
    places = []
    for row in list(best.values())[:IMAGES]:
        crop = source.crop(row["image_id"], [float(row[side]) for side in ("x0", "y0", "x1", "y1")])
        if crop is not None:
            score = number(row["score"])
            places.append(Place(clean(row["file_name"]), crop, "n/a" if score is None else f"{score:.3g}"))
    meaning, recipe, threshold_by = (_text(facts.get(name)) for name in ("meaning", "recipe", "threshold_by"))
    return Located(
        clean(label), len(rows), len(best), tuple(places), overlays, meaning, recipe, threshold_by, _measures(measured)
    )
