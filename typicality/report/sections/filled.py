"""Regions that `typicality impute` filled in, beside the images as they were, with errors where the truth is known.

Reads `impute/*/imputed.parquet`, `summary.json` and pictures of the last imputation that was finished;
`typicality.applications.impute` documents them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from typicality.report.pictures import Crop
from typicality.report.sections.audit import box_of
from typicality.report.sections.base import Section, Source, number, words
from typicality.report.text import clean, milli

IMAGES = 12
COLUMNS = ("image_id", "file_name", "label", "x0", "y0", "x1", "y1", "typicality", "picture", "spread_picture")


@dataclass(frozen=True)
class Filling:
    """The surroundings of what was filled, in one frame: as they were, as they are then, and where samples disagree."""

    name: str
    label: str
    before: Crop | None
    after: Crop
    spread: Crop | None
    typicality: str
    error: str


@dataclass(frozen=True)
class Method:
    """How far a method is from what was hidden: root mean squared error, 0 to 1, and its standard error."""

    name: str
    error: str
    kept_better: str


@dataclass(frozen=True)
class Filled(Section):
    """What was filled: images in the order of their ids, errors of all methods where regions were hidden."""

    n: int
    folder: str
    hidden: bool
    label_found: str
    notes: tuple[str, ...]
    methods: tuple[Method, ...]
    fillings: tuple[Filling, ...]

    slug: ClassVar[str] = "filled"
    stage: ClassVar[str] = "impute"
    short: ClassVar[str] = "Filled in"
    heading: ClassVar[str] = "Regions filled in"
    template: ClassVar[str] = "sections/filled.html"

    @classmethod
    def read(cls, source: Source) -> Filled | None:
        for name in source.finished("impute"):
            summary = source.mapping("impute", name, "summary.json")
            table = source.table("impute", name, "imputed.parquet", columns=COLUMNS)
            if not summary or table is None or not table.num_rows:
                continue
            rows = sorted(table.to_pylist(), key=lambda row: str(row["image_id"]))
            fillings = [f for row in rows[:IMAGES] if (f := _filling(row, name, summary, source)) is not None]
            methods = _methods(summary)
            return cls(
                table.num_rows, f"impute/{name}", bool(methods), _found(rows),
                tuple(clean(note) for note in words(summary.get("notes"))), methods, tuple(fillings),
            )  # fmt: skip
        return None


def _found(rows: list[dict[str, Any]]) -> str:
    """How often the label that a region was filled under is the one that its filling is most typical of."""
    known = [row for row in rows if row.get("label_found") is not None]
    won = sum(row["label_found"] == row["label"] for row in known)
    return f"{won} of {len(known)}" if known else ""


def _methods(summary: Mapping[str, Any]) -> tuple[Method, ...]:
    errors = summary.get("errors")
    found = []
    for name, entry in errors.items() if isinstance(errors, Mapping) else ():
        value = number(entry.get("rmse")) if isinstance(entry, Mapping) else None
        if value is None:
            continue
        error, better = number(entry.get("rmse_se")), number(entry.get("kept_better"))
        text = f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"
        found.append(
            (value, Method(clean(entry.get("method") or name), text, "" if better is None else f"{better:.0%}"))
        )
    return tuple(method for _, method in sorted(found, key=lambda item: item[0]))


def _filling(row: Mapping[str, Any], name: str, summary: Mapping[str, Any], source: Source) -> Filling | None:
    box = box_of([row[side] for side in ("x0", "y0", "x1", "y1")])
    after = source.crop_of(box, "impute", name, str(row["picture"]))
    if after is None:
        return None
    spread = source.crop_of(box, "impute", name, str(row["spread_picture"])) if row["spread_picture"] else None
    error = number(row.get("rmse_best")) if summary.get("keep") == "best" else None
    error = number(row.get("rmse_mean")) if error is None else error  # a single sample is the mean
    return Filling(
        clean(row["file_name"]), clean(row["label"]), source.crop(str(row["image_id"]), box), after, spread,
        milli(number(row["typicality"])), "" if error is None else f"{error:.3f}",
    )  # fmt: skip
