"""What was measured of a run, as plots: label confusion and purity-coverage, each where it was evaluated.

Reads every `evaluation/*.json` of the run directory, as `typicality evaluate ... --write` leaves them there: a
document with `confusion` (true label -> predicted label -> images), or with `rows` that each name a `method`, perhaps a
`space` that it is measured in, and hold a `purity` and a `coverage` list. A document with `built_on` is of an earlier
state of the run where that has changed since; of others this is not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from typicality.report.plots import PlotView, confusion_plot, purity_plot
from typicality.report.sections.base import Section, Source, mappings, number
from typicality.report.text import clean
from typicality.store import foundation

EARLIER = " This is of an earlier state of the run, which has been trained or mined anew since."


@dataclass(frozen=True)
class Evaluation(Section):
    """Plots of measured quality."""

    plots: tuple[PlotView, ...]

    slug: ClassVar[str] = "quality"
    short: ClassVar[str] = "Quality"
    heading: ClassVar[str] = "How good the model is, measured"
    template: ClassVar[str] = "sections/evaluation.html"

    @classmethod
    def read(cls, source: Source) -> Evaluation | None:
        found: list[tuple[str, PlotView]] = []
        folder = source.folder / "evaluation"
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            document = source.json("evaluation", path.name)
            if not isinstance(document, Mapping):
                continue
            earlier = EARLIER if _is_stale(document, source.data.facts) else ""
            for plot in (_confusion(document, f"confusion-{len(found)}"), _purity(document, f"purity-{len(found)}")):
                if plot is not None:
                    found.append((clean(path.name), replace(plot, reading=plot.reading + earlier)))
        times = Counter(plot.title for _, plot in found)
        plots = (replace(p, title=f"{p.title} ({name})") if times[p.title] > 1 else p for name, p in found)
        return cls(tuple(plots)) if found else None


def _is_stale(document: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    known = document.get("built_on")
    return isinstance(known, Mapping) and known != foundation(facts, known)


def _confusion(document: Mapping[str, Any], name: str) -> PlotView | None:
    table = document.get("confusion")
    if not isinstance(table, Mapping) or not all(isinstance(row, Mapping) for row in table.values()):
        return None
    labels = [str(label) for label in table]
    counts = [[number(table[a].get(b)) or 0.0 for b in labels] for a in labels]
    if len(labels) < 2 or not any(map(any, counts)):
        return None
    accuracy, chance = number(document.get("accuracy")), number(document.get("chance"))
    return confusion_plot(labels, counts, accuracy, chance, name=name)


def _purity(document: Mapping[str, Any], plot: str) -> PlotView | None:
    """A curve a method, by the search that serves it best; fourteen curves would be a thicket."""
    curves: dict[str, tuple[str, list[tuple[float, float]]]] = {}
    for row in mappings(document.get("rows")):
        method = clean(str(row.get("method") or ""))
        name = f"{method}{f' ({clean(str(space))})' if (space := row.get('space')) else ''}"
        coverage, purity = row.get("coverage"), row.get("purity")
        if not name or not isinstance(coverage, list) or not isinstance(purity, list) or len(coverage) != len(purity):
            continue
        points = [(number(c), number(p)) for c, p in zip(coverage, purity, strict=True)]
        whole = [(c, p) for c, p in points if c is not None and p is not None]
        if len(whole) > 1 and (method not in curves or _height(whole) > _height(curves[method][1])):
            curves[method] = name, whole
    return purity_plot(dict(curves.values()), plot) if curves else None


def _height(points: list[tuple[float, float]]) -> float:
    return sum(p for _, p in points) / len(points)
