"""Findings of `typicality audit`: what is wrong or suspicious in the data, with the images that show it.

Reads `findings.json`, which `typicality.applications.audit.findings` documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from typicality.report.pictures import Crop
from typicality.report.plots import PlotView, confusion_plot
from typicality.report.sections.base import Section, Source, mappings, number, words
from typicality.report.text import clean, p_text

SEVERITIES = ("high", "medium", "low")
MOST, EXHIBITS = 40, 10  # findings shown, and images of each


@dataclass(frozen=True)
class Exhibit:
    """An image, or a part of one, that shows a finding."""

    name: str
    crop: Crop | None


@dataclass(frozen=True)
class Finding:
    """One finding, in words."""

    id: str
    kind: str
    severity: str
    title: str
    explanation: str
    labels: tuple[str, ...]
    measure: str
    exhibits: tuple[Exhibit, ...]
    n_images: int


@dataclass(frozen=True)
class Findings(Section):
    """New findings, the most severe first; `counts` holds (severity, how many), `more` those that are not shown.

    `known` is the number of findings that the baseline of the audit had already.
    """

    findings: tuple[Finding, ...]
    counts: tuple[tuple[str, int], ...]
    more: int
    known: int
    notes: tuple[str, ...]
    matrix: PlotView | None

    slug: ClassVar[str] = "findings"
    short: ClassVar[str] = "Data check"
    heading: ClassVar[str] = "What to check in the data"
    template: ClassVar[str] = "sections/audit.html"
    place: ClassVar[Literal["before", "after"]] = "before"
    stage: ClassVar[str] = "audit"

    @classmethod
    def read(cls, source: Source) -> Findings | None:
        document = source.json("findings.json")
        if not isinstance(document, Mapping):
            return None
        rows = [row for row in mappings(document.get("findings")) if row.get("title")]
        if not rows:
            return None
        n_all = len(rows)
        rows = [row for row in rows if row.get("new") is not False]
        order = {name: position for position, name in enumerate(SEVERITIES)}
        rows.sort(key=lambda row: order.get(str(row.get("severity")), len(order)))  # stable: their own order within
        counts = tuple((name, sum(row.get("severity") == name for row in rows)) for name in SEVERITIES)
        return cls(
            findings=tuple(_finding(row, source) for row in rows[:MOST]),
            counts=tuple((name, n) for name, n in counts if n),
            more=max(0, len(rows) - MOST),
            known=n_all - len(rows),
            notes=tuple(map(clean, words(document.get("notes")))),
            matrix=_matrix(document.get("label_matrix")),
        )


def _finding(row: Mapping[str, Any], source: Source) -> Finding:
    shown = _exhibited(row)
    labels = words(row.get("labels")) or words(row.get("label"))
    return Finding(
        id=clean(row.get("id", "")),
        kind=clean(row.get("kind", "finding")).replace("_", " "),
        severity=str(row.get("severity")) if row.get("severity") in SEVERITIES else "low",
        title=clean(row["title"]),
        explanation=clean(row["explanation"]) if row.get("explanation") else "",
        labels=tuple(map(clean, labels)),
        measure=_measure(row),
        exhibits=tuple(
            Exhibit(clean(name or source.files.get(image_id, image_id)), source.crop(image_id, box))
            for image_id, box, name in shown[:EXHIBITS]
        ),
        n_images=len({image_id for image_id, _, _ in shown}),
    )


def _matrix(value: Any) -> PlotView | None:
    """The shares of each label's images that fit each label best."""
    if not isinstance(value, Mapping) or not isinstance(value.get("confusion"), list):
        return None
    labels, rows = words(value.get("labels")), value["confusion"]
    if len(labels) < 2 or len(rows) != len(labels):
        return None
    shares = [[number(v) or 0.0 for v in row] for row in rows if isinstance(row, list) and len(row) == len(labels)]
    if len(shares) != len(labels) or not any(map(any, shares)):
        return None
    return confusion_plot(labels, shares, None, None, "Which label each image fits best", "audit-matrix")


def _exhibited(row: Mapping[str, Any]) -> list[tuple[str, tuple[float, ...] | None, str]]:
    """What shows a finding: (image_id, box or None, file name), in its own order."""
    return [
        (item["image_id"], box_of(item.get("box")), str(item.get("file_name") or ""))
        for item in mappings(row.get("evidence"))
        if isinstance(item.get("image_id"), str)
    ]


def box_of(value: Any) -> tuple[float, ...] | None:
    """A box from [x0, y0, x1, y1]; None for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    corners = [number(v) for v in value]
    return tuple(c for c in corners if c is not None) if None not in corners else None


def _measure(row: Mapping[str, Any]) -> str:
    """The score with its uncertainty, as far as they are known."""
    parts = []
    score, error, p_value = (number(row.get(name)) for name in ("score", "standard_error", "p_value"))
    if score is not None:
        parts.append(f"score {score:.3g}" + (f" ± {error:.2g}" if error else ""))
    if p_value is not None:
        parts.append(p_text(p_value))
    return ", ".join(parts)
