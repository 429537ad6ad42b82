"""Synthetic images that `typicality augment` made and kept, beside the images that they were made of.

Reads `augment/*/rows.parquet`, `summary.json` and the kept pictures in `images/`, of the last variants and the last
negatives that were finished; `typicality.applications.augment` documents them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from typicality.report.pictures import Crop
from typicality.report.sections.base import Section, Source, number
from typicality.report.text import clean, count, milli

SOURCES, LABELS, EACH = 4, 12, 4  # sources a label, labels, and pictures of a source
COLUMNS = ("file_name", "source_image_id", "source", "label", "variant", "typicality", "kept")


@dataclass(frozen=True)
class Made:
    """A kept picture and its typicality: of its label, or of a negative the highest under any label."""

    name: str
    picture: Crop
    typicality: str


@dataclass(frozen=True)
class Family:
    """A source, and what was made of it and kept."""

    name: str
    source: Crop | None
    made: tuple[Made, ...]


@dataclass(frozen=True)
class OfLabel:
    label: str
    families: tuple[Family, ...]


@dataclass(frozen=True)
class Batch:
    """What one command made.

    Attributes
    ----------
    facts : names and texts
    refused : reasons why pictures were not kept, with their number, the commonest first
    """

    kind: str
    made: int
    kept: int
    folder: str
    refused: tuple[tuple[str, int], ...]
    facts: tuple[tuple[str, str], ...]
    labels: tuple[OfLabel, ...]


@dataclass(frozen=True)
class Synthetic(Section):
    """Variants and negatives, the last of either."""

    batches: tuple[Batch, ...]

    slug: ClassVar[str] = "synthetic"
    stage: ClassVar[str] = "augment"
    short: ClassVar[str] = "Synthetic"
    heading: ClassVar[str] = "Synthetic images"
    template: ClassVar[str] = "sections/synthetic.html"

    @classmethod
    def read(cls, source: Source) -> Synthetic | None:
        found = tuple(b for name in source.finished("augment") if (b := _batch(name, source)) is not None)
        return cls(tuple(sorted(found, key=lambda b: b.kind, reverse=True))) if found else None


def _batch(name: str, source: Source) -> Batch | None:
    summary = source.mapping("augment", name, "summary.json")
    table = source.table("augment", name, "rows.parquet", columns=COLUMNS)
    if not summary or table is None or not table.num_rows:
        return None
    rows = table.to_pylist()
    kept = [row for row in rows if row["kept"]]
    by_label: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in kept:
        by_label[str(row["label"])].append(row)
    labels = source.in_order(by_label)[:LABELS]
    why = summary.get("why")
    refused = [(clean(k), int(v)) for k, v in why.items() if k != "kept"] if isinstance(why, Mapping) else []
    return Batch(
        kind=clean(summary.get("kind") or "variants"),
        made=len(rows),
        kept=len(kept),
        folder=f"augment/{name}",
        refused=tuple(sorted(refused, key=lambda item: -item[1])),
        facts=_facts(summary),
        labels=tuple(OfLabel(clean(label), _families(by_label[label], name, source)) for label in labels),
    )


def _facts(summary: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    found = []
    for title, key in (
        ("typicality of what was kept, × 10⁻³", "mean_typicality_kept"),
        ("of their sources, × 10⁻³", "mean_typicality_sources"),
    ):
        if (value := number(summary.get(key))) is not None:
            found.append((title, milli(value)))
    if (distance := number(summary.get("mean_distance"))) is not None:
        found.append(("mean distance from the source (1: an unrelated image)", f"{distance:.2f}"))
    if (several := number(summary.get("several_labels"))) is not None and several:
        found.append(("passed over, with several labels", count(int(several))))
    return tuple(found)


def _families(rows: Sequence[Mapping[str, Any]], name: str, source: Source) -> tuple[Family, ...]:
    """Return the first sources, in the order of their ids, which is as good as chance."""
    of_source: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        of_source[str(row["source_image_id"])].append(row)
    families = []
    for image_id in sorted(of_source)[:SOURCES]:
        made = []
        for row in sorted(of_source[image_id], key=lambda row: row["variant"])[:EACH]:
            picture = source.crop_of(None, "augment", name, "images", str(row["file_name"]))
            if picture is not None:
                made.append(Made(clean(row["file_name"]), picture, milli(number(row["typicality"]))))
        if made:
            first = of_source[image_id][0]
            families.append(Family(clean(first["source"]), source.crop(image_id, None), tuple(made)))
    return tuple(families)
