"""Images re-synthesised as another label by `typicality translate`, beside what they were.

Reads `translate/*/translations.parquet` and `summary.json`, and the strips (source, result, change) that the table
names; `typicality.applications.translate` documents them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from typicality.report.sections.base import Picture, Section, Source, number
from typicality.report.text import clean, milli

PAIRS, STRIPS = 12, 6  # pairs of labels shown, and images of each
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
class Pair:
    """The translations from one label to another."""

    source: str
    target: str
    method: str
    n: int
    flipped: int
    change: str
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class Translations(Section):
    """All pairs of labels that were translated."""

    pairs: tuple[Pair, ...]
    more: int

    slug: ClassVar[str] = "translations"
    short: ClassVar[str] = "Translations"
    heading: ClassVar[str] = "The same images, as another label"
    template: ClassVar[str] = "sections/translate.html"

    @classmethod
    def read(cls, source: Source) -> Translations | None:
        folder = source.folder / "translate"
        names = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        found = [pair for name in names[:PAIRS] if (pair := _pair(name, source)) is not None]
        return cls(tuple(found), max(0, len(names) - PAIRS)) if found else None


def _pair(name: str, source: Source) -> Pair | None:
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
    summary = source.json("translate", name, "summary.json")
    method = summary.get("method") if isinstance(summary, Mapping) else rows[0].get("method")
    return Pair(
        source=clean(rows[0]["from"]),
        target=clean(rows[0]["to"]),
        method=clean(method or "unnamed"),
        n=len(rows),
        flipped=sum(bool(row["flipped"]) for row in rows),
        change=milli(sum(changes) / len(changes) if changes else None),
        strips=tuple(strips),
    )
