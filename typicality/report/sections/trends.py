"""Visual elements over the labels in order, by `typicality trends`: how often each is found in every label.

Reads `trends/trends.json`, which `typicality.applications.trends` documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from typicality.report.pictures import Crop
from typicality.report.plots import PlotView, confusion_plot
from typicality.report.sections.audit import box_of
from typicality.report.sections.base import Section, Source, mappings, number, words
from typicality.report.text import clean, p_text

TIMELINES, MEMBERS = 10, 5
SAID = {"rise": "rises", "fall": "falls", "none": "neither rises nor falls"}


@dataclass(frozen=True)
class Rate:
    """The share of a label's images in which an element was found, with its interval; all in [0, 1]."""

    label: str
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Timeline:
    """An element, some of its members, and how often it is found in every label."""

    label: str
    position: int
    cluster: int
    said: str
    significant: bool
    rates: tuple[Rate, ...]
    members: tuple[Crop, ...]


@dataclass(frozen=True)
class Trends(Section):
    """Timelines, the strongest first, and how alike labels are. `top` is the largest rate: the end of the scale."""

    ordered: bool
    timelines: tuple[Timeline, ...]
    n_rising: int
    n_falling: int
    top: float
    similarity: PlotView | None
    warnings: tuple[str, ...]

    slug: ClassVar[str] = "trends"
    short: ClassVar[str] = "Trends"
    heading: ClassVar[str] = "What comes and goes"
    template: ClassVar[str] = "sections/trends.html"

    @classmethod
    def read(cls, source: Source) -> Trends | None:
        document = source.json("trends", "trends.json")
        if not isinstance(document, Mapping):
            return None
        level = number(document.get("significant_at")) or 0.05
        rows = mappings(document.get("timelines"))[:TIMELINES]
        timelines = tuple(t for row in rows if (t := _timeline(row, level, source)) is not None)
        similarity = _similarity(document.get("similarity"))
        if not timelines and similarity is None:
            return None
        return cls(
            ordered=document.get("ordered") is True,
            timelines=timelines,
            n_rising=int(number(document.get("n_rising")) or 0),
            n_falling=int(number(document.get("n_falling")) or 0),
            top=max((r.high for t in timelines for r in t.rates), default=0.0) or 1.0,
            similarity=similarity,
            warnings=tuple(map(clean, words(document.get("warnings")))),
        )


def _timeline(row: Mapping[str, Any], level: float, source: Source) -> Timeline | None:
    rates = []
    for at in mappings(row.get("at")):
        rate, low, high = (number(at.get(name)) for name in ("rate", "low", "high"))
        if rate is not None:
            rates.append(Rate(clean(at.get("label", "")), rate, rate if low is None else low, max(rate, high or rate)))
    if not rates:
        return None
    crops = []
    for member in mappings(row.get("members"))[:MEMBERS]:
        crop = source.crop(str(member.get("image_id")), box_of(member.get("box")))
        if crop is not None:
            crops.append(crop)
    p_value = number(row.get("adjusted_p_value"))
    significant = p_value is not None and p_value <= level and row.get("direction") in ("rise", "fall")
    said = [SAID.get(str(row.get("direction")), "")]
    if p_value is not None:
        said.append(p_text(p_value))
    if row.get("peaks") is not None:
        said.append(f"peaks at {clean(row['peaks'])}")
    if row.get("vanishes") is not None:
        said.append(f"gone by {clean(row['vanishes'])}")
    return Timeline(
        label=clean(row.get("label", "")),
        position=int(number(row.get("rank")) or 0) + 1,
        cluster=int(number(row.get("cluster")) or 0),
        said=", ".join(filter(None, said)),
        significant=significant,
        rates=tuple(rates),
        members=tuple(crops),
    )


def _similarity(value: Any) -> PlotView | None:
    """The share of each label's elements whose nearest element of another group is of each label."""
    if not isinstance(value, Mapping) or not isinstance(value.get("share"), list):
        return None
    labels = words(value.get("labels"))
    rows = [[number(v) or 0.0 for v in row] for row in value["share"] if isinstance(row, list)]
    if len(labels) < 2 or [len(row) for row in rows] != [len(labels)] * len(labels) or not any(map(any, rows)):
        return None
    return confusion_plot(
        labels, rows, None, None, "Which labels look alike", "plot-alike",
        axes_named=("nearest element is of (% of the row)", "element of"),
        worst_said="elements of {true} most often have their nearest look-alike in {taken} ({share:.0f}%)",
    )  # fmt: skip
