"""Visual elements over the labels in order, by `typicality trends`: how often each is found in every label, and which
changes many translations have in common.

Reads `trends/trends.json`, which `typicality.applications.trends` documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from typicality.report.pictures import Crop
from typicality.report.plots import PlotView, lift_plot
from typicality.report.sections.audit import box_of
from typicality.report.sections.base import Section, Source, mappings, number, words
from typicality.report.text import clean, milli, p_text

TIMELINES, MEMBERS = 10, 5
LABELS, MATCHES = 12, 2  # labels in the table of an element, and matches shown of each
CHANGES = 8  # elements that change together
EARLIER = (
    "An earlier version measured these rates without the images that an element comes from: too low in the element's "
    "own label. Run `typicality trends` again."
)
SAID = {"rise": "rises", "fall": "falls", "none": "neither rises nor falls"}


@dataclass(frozen=True)
class Rate:
    """The share of a label's images in which an element was found, with its interval; all in [0, 1]."""

    label: str
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class AtLabel:
    """What is known of an element at one label: a line of its table, with the best matches among that label's images.

    `n_groups` of the images, 0 if unknown; images of one group may be related, so that few groups say little.
    Matches are shown for the eye, also where none is near enough to count as found.
    """

    label: str
    found: str
    n_images: int
    n_groups: int
    typicality: str
    matches: tuple[Crop, ...]


@dataclass(frozen=True)
class Change:
    """A change that many translations from one label to another have in common: its boxes in the images as they were.

    `members` are crops with the change of typicality under the other label.
    """

    source: str
    target: str
    size: int
    n_images: int
    change: str
    members: tuple[tuple[Crop, str], ...]


@dataclass(frozen=True)
class Timeline:
    """An element, some of its members, how often it is found in every label, and a table of some labels in detail."""

    label: str
    position: int
    cluster: int
    said: str
    significant: bool
    rates: tuple[Rate, ...]
    members: tuple[Crop, ...]
    labels: tuple[AtLabel, ...]
    omitted: int


@dataclass(frozen=True)
class Trends(Section):
    """Timelines, the strongest first, elements that change together, and how alike labels are.

    `top` is the largest rate: the end of the scale. `images` is how many were searched in every label, 0 if unknown.
    `halves` says that elements were defined on other groups than they were searched in.
    """

    ordered: bool
    timelines: tuple[Timeline, ...]
    n_rising: int
    n_falling: int
    top: float
    images: int
    changes: tuple[Change, ...]
    more_changes: int
    similarity: PlotView | None
    halves: bool
    warnings: tuple[str, ...]

    slug: ClassVar[str] = "trends"
    stage: ClassVar[str] = "trends"
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
        records = sorted(mappings(document.get("changes")), key=lambda r: -abs(number(r.get("median_change")) or 0.0))
        changes = tuple(c for r in records[:CHANGES] if (c := _change(r, source)) is not None)
        if not timelines and not changes and similarity is None:
            return None
        halves = "n_unmeasured" in document
        warnings = [*words(document.get("warnings")), *(() if halves else (EARLIER,))]
        return cls(
            ordered=document.get("ordered") is True,
            timelines=timelines,
            n_rising=int(number(document.get("n_rising")) or 0),
            n_falling=int(number(document.get("n_falling")) or 0),
            top=max((r.high for t in timelines for r in t.rates), default=0.0) or 1.0,
            images=int(number(document.get("images_a_label")) or 0),
            changes=changes,
            more_changes=max(0, len(records) - CHANGES),
            similarity=similarity,
            halves=halves,
            warnings=tuple(map(clean, warnings)),
        )


def _timeline(row: Mapping[str, Any], level: float, source: Source) -> Timeline | None:
    rates = []
    for at in mappings(row.get("at")):
        rate, low, high = (number(at.get(name)) for name in ("rate", "low", "high"))
        if rate is not None:
            rates.append(Rate(clean(at.get("label", "")), rate, rate if low is None else low, max(rate, high or rate)))
    if not rates and row.get("measured") is not False:
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
    if row.get("measured") is False:
        said = ["not measured: too few members define it"]
    elif not any(r.rate for r in rates):
        said.append("never found")
    elif row.get("appears") is not None:
        said.append(f"appears at {clean(row['appears'])}")
    if row.get("peaks") is not None and any(r.rate for r in rates):
        said.append(f"peaks at {clean(row['peaks'])}")
    if row.get("vanishes") is not None:
        said.append(f"gone by {clean(row['vanishes'])}")
    shown = _spread(mappings(row.get("at")), LABELS)
    return Timeline(
        label=clean(row.get("label", "")),
        position=int(number(row.get("rank")) or 0) + 1,
        cluster=int(number(row.get("cluster")) or 0),
        said=", ".join(filter(None, said)),
        significant=significant,
        rates=tuple(rates),
        members=tuple(crops),
        labels=tuple(_at_label(at, row.get("found"), source) for at in shown),
        omitted=len(mappings(row.get("at"))) - len(shown),
    )


def _spread(items: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """At most so many of the items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(at * (len(items) - 1) / (most - 1))] for at in range(most)]


def _at_label(at: Mapping[str, Any], found: Any, source: Source) -> AtLabel:
    places = mappings(found.get(at.get("label"))) if isinstance(found, Mapping) else []
    crops = (source.crop(str(place.get("image_id")), box_of(place.get("box"))) for place in places[:MATCHES])
    rate, low, high = (number(at.get(name)) for name in ("rate", "low", "high"))
    typicality, lowest, highest = (number(at.get(f"typicality{end}")) for end in ("", "_low", "_high"))
    return AtLabel(
        label=clean(at.get("label", "")),
        found="n/a" if rate is None else f"{rate:.0%}{_between(low, high, '{:.0%}'.format)}",
        n_images=int(number(at.get("n_images")) or 0),
        n_groups=int(number(at.get("n_groups")) or 0),
        typicality="n/a" if typicality is None else milli(typicality) + _between(lowest, highest, milli),
        matches=tuple(crop for crop in crops if crop is not None),
    )


def _between(low: float | None, high: float | None, said: Callable[[float], str]) -> str:
    return "" if low is None or high is None else f" ({said(low)} to {said(high)})"


def _change(record: Mapping[str, Any], source: Source) -> Change | None:
    members = []
    for member in mappings(record.get("members"))[:MEMBERS]:
        crop = source.crop(str(member.get("image_id")), box_of(member.get("box")))
        if crop is not None:
            members.append((crop, milli(number(member.get("change")))))
    if not members:
        return None
    return Change(
        source=clean(record.get("from", "")),
        target=clean(record.get("to", "")),
        size=int(number(record.get("size")) or 0),
        n_images=int(number(record.get("n_images")) or 0),
        change=milli(number(record.get("median_change"))),
        members=tuple(members),
    )


def _similarity(value: Any) -> PlotView | None:
    """How many times as often as by chance each label's elements have their nearest look-alike in each label."""
    if not isinstance(value, Mapping):
        return None
    labels = words(value.get("labels"))
    lift = _square(value.get("lift"), len(labels))
    if len(labels) < 2 or lift is None or not np.isfinite(lift).any():
        return None
    return lift_plot(labels, lift, _square(value.get("low"), len(labels)), _square(value.get("high"), len(labels)))


def _square(value: Any, side: int) -> np.ndarray | None:
    """(side, side) floats of nested lists, NaN for what is no number; None for another shape."""
    rows = [row for row in value if isinstance(row, list)] if isinstance(value, list) else []
    if [len(row) for row in rows] != [side] * side:
        return None
    known = [[number(v) for v in row] for row in rows]
    return np.array([[np.nan if v is None else v for v in row] for row in known])
