"""The report as data: what a run found, in the order a reader meets it, with no picture and no markup.

    ReportInput  --build_view-->  ReportView  --render-->  index.html
                                  ├── numbers, warnings, facts
                                  └── LabelView
                                      ├── ClusterView ── ElementView (a part of an image)
                                      └── ImageView (whole images, most and least typical)

Boxes are in pixels of the original image. Typicality is in units of squared error per latent value, not in 10^-3.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa

from typicality.config import ReportSettings
from typicality.report.facts import FactGroup, Stage, fact_groups, model_name, stages
from typicality.report.text import Z90, clean, count, plural, slugs

SIGNIFICANT = 0.05
CONTEXT = 2.0  # side of the region shown around an element, in sides of the element
STRIP = 12  # elements of a label in the overview

FloatBox = tuple[float, float, float, float]


@dataclass(frozen=True)
class ReportInput:
    """What the stages hand to the report.

    Attributes
    ----------
    elements : image_id, file_name, label, x0, y0, x1, y1, typicality, standard_error, lower_bound, specificity,
        rank, cluster (-1 none), rank_in_cluster
    clusters : label, cluster, rank, size, n_images, median_typicality, standard_error, p_value;
        few_images and adjusted_p_value if known
    images : a row an image and label scored: image_id, file_name, label, width, height, group, typicality (mean over
        the map), standard_error, n_draws
    open_image : image_id -> the original in RGB
    open_map : (image_id, label) -> (h, w) float32 map, and the box (x0, y0, x1, y1) of the original it covers
    facts : settings (nested), model, seed, versions, stages, dataset fingerprint
    training : step, loss, train_typicality, held_out_typicality
    """

    title: str
    dataset_name: str
    label_name: str
    labels: tuple[str, ...]
    ordered: bool
    n_images: Mapping[str, int]
    elements: pa.Table
    clusters: pa.Table
    images: pa.Table
    open_image: Callable[[str], PIL.Image.Image]
    open_map: Callable[[str, str], tuple[np.ndarray, FloatBox]]
    facts: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    training: tuple[Mapping[str, float], ...] | list[dict[str, float]] = ()
    settings: ReportSettings = field(default_factory=ReportSettings)


@dataclass(frozen=True)
class Score:
    """A typicality and its 90% interval."""

    value: float
    standard_error: float

    @property
    def low(self) -> float:
        return self.value - Z90 * self.standard_error

    @property
    def high(self) -> float:
        return self.value + Z90 * self.standard_error


@dataclass(frozen=True)
class ElementView:
    """A part of an image. `number` counts elements and whole images through the report."""

    number: int
    image_id: str
    file_name: str
    label: str
    box: tuple[int, int, int, int]
    score: Score
    specificity: float | None
    rank: int
    rank_in_cluster: int


@dataclass(frozen=True)
class ClusterView:
    """A visual element: parts of images that look alike, nearest to the centroid first."""

    label: str
    cluster: int
    position: int
    size: int
    n_images: int
    score: Score
    p_value: float | None
    few_images: bool
    elements: tuple[ElementView, ...]

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the cluster should not be trusted, in words; nothing where it holds up."""
        found = []
        if self.few_images:
            found.append(f"from only {plural(self.n_images, 'image')}")
        if self.p_value is not None and self.p_value > SIGNIFICANT:
            found.append(f"not significant, p = {self.p_value:.2g}")
        return tuple(found)


@dataclass(frozen=True)
class ImageView:
    """A whole image, scored for a label."""

    number: int
    image_id: str
    file_name: str
    label: str
    score: Score


@dataclass(frozen=True)
class LabelView:
    """What is typical of one label."""

    name: str
    shown: str
    slug: str
    n_images: int
    n_elements: int
    median: float | None
    clusters: tuple[ClusterView, ...]
    strip: tuple[ElementView, ...]
    most: tuple[ImageView, ...]
    least: tuple[ImageView, ...]


@dataclass(frozen=True)
class SourceImage:
    """What is known of an image from which something is shown; `scores` holds (label, whole-image score)."""

    image_id: str
    file_name: str
    group: str
    scores: tuple[tuple[str, Score], ...]


@dataclass(frozen=True)
class KeyNumber:
    value: str
    name: str


@dataclass(frozen=True)
class ReportView:
    """The whole report, ready to be drawn."""

    title: str
    dataset_name: str
    label_name: str
    model: str
    ordered: bool
    numbers: tuple[KeyNumber, ...]
    certainty: str
    warnings: tuple[str, ...]
    labels: tuple[LabelView, ...]
    sources: tuple[SourceImage, ...]
    facts: tuple[FactGroup, ...]
    stages: tuple[Stage, ...]
    unreadable: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]

    def elements(self) -> list[ElementView]:
        return [e for label in self.labels for cluster in label.clusters for e in cluster.elements]

    def whole_images(self) -> list[ImageView]:
        return [image for label in self.labels for image in label.most + label.least]


def build_view(data: ReportInput) -> ReportView:
    """Choose and order what the report shows; opens no image."""
    builder = _Builder(data)
    labels = tuple(builder.label(name) for name in data.labels)
    shown = [c for label in labels for c in label.clusters if c.cluster >= 0]
    return ReportView(
        title=clean(data.title),
        dataset_name=clean(data.dataset_name),
        label_name=clean(data.label_name),
        model=model_name(data.facts),
        ordered=data.ordered,
        numbers=(
            KeyNumber(count(sum(data.n_images.get(name, 0) for name in data.labels)), "images"),
            KeyNumber(count(len(data.labels)), "labels"),
            KeyNumber(count(data.clusters.num_rows), "visual elements"),
            KeyNumber(count(data.elements.num_rows), "places found"),
        ),
        certainty=_certainty(shown, "adjusted_p_value" in data.clusters.column_names),
        warnings=tuple(map(clean, data.warnings)),
        labels=labels,
        sources=builder.sources(labels),
        facts=fact_groups(data.facts),
        stages=stages(data.facts),
        unreadable=tuple((clean(name), clean(reason)) for name, reason in data.unreadable),
        duplicates=tuple(tuple(map(clean, names)) for names in data.duplicates),
    )


class _Builder:
    """Groups the rows of the tables by label once, and numbers what is shown."""

    def __init__(self, data: ReportInput) -> None:
        self.data = data
        self.settings = data.settings
        self.slugs = slugs(data.labels)
        self.numbered = 0
        self.elements = _by_label(data.elements)
        self.clusters = _by_label(data.clusters)
        self.images = _by_label(data.images)
        mine = data.facts.get("settings", {})
        mine = mine.get("mine", {}) if isinstance(mine, Mapping) else {}
        self.min_images = int(mine.get("min_images", 3)) if isinstance(mine, Mapping) else 3

    def number(self) -> int:
        self.numbered += 1
        return self.numbered - 1

    def label(self, name: str) -> LabelView:
        rows = self.elements[name]
        clusters = tuple(self._clusters(name, rows))
        scored = sorted(self.images[name], key=lambda r: (-r["typicality"], r["image_id"]))
        shown = min(self.settings.images, (len(scored) + 1) // 2)
        return LabelView(
            name=name,
            shown=clean(name),
            slug=self.slugs[name],
            n_images=self.data.n_images.get(name, 0),
            n_elements=len(rows),
            median=median(r["typicality"] for r in rows) if rows else None,
            clusters=clusters,
            strip=_strip(clusters),
            most=tuple(self._image(r) for r in scored[:shown]),
            least=tuple(self._image(r) for r in scored[::-1][: min(shown, len(scored) - shown)]),
        )

    def _clusters(self, name: str, rows: list[dict[str, Any]]) -> list[ClusterView]:
        members: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            members[row["cluster"]].append(row)
        known = sorted(self.clusters[name], key=lambda r: (r["rank"], r["cluster"]))
        if not known and rows:
            return [self._unclustered(name, rows)]
        return [
            self._cluster(row, position, members[row["cluster"]])
            for position, row in enumerate(known[: self.settings.clusters], start=1)
        ]

    def _cluster(self, row: Mapping[str, Any], position: int, members: list[dict[str, Any]]) -> ClusterView:
        few = row.get("few_images")
        members = sorted(members, key=lambda r: (r["rank_in_cluster"], r["rank"]))
        return ClusterView(
            label=row["label"],
            cluster=row["cluster"],
            position=position,
            size=row["size"],
            n_images=row["n_images"],
            score=_score(row["median_typicality"], row["standard_error"]),
            p_value=_p_value(row),
            few_images=row["n_images"] < self.min_images if few is None else bool(few),
            elements=tuple(self._element(r) for r in members[: self.settings.columns]),
        )

    def _unclustered(self, name: str, rows: list[dict[str, Any]]) -> ClusterView:
        """The best elements of a label that was not clustered, as one row."""
        best = sorted(rows, key=lambda r: r["rank"])
        errors = [r["standard_error"] for r in best]
        return ClusterView(
            label=name,
            cluster=-1,
            position=1,
            size=len(rows),
            n_images=len({r["image_id"] for r in rows}),
            score=_score(median(r["typicality"] for r in best), median(errors)),
            p_value=None,
            few_images=False,
            elements=tuple(self._element(r) for r in best[: self.settings.columns * 3]),
        )

    def _element(self, row: Mapping[str, Any]) -> ElementView:
        return ElementView(
            number=self.number(),
            image_id=row["image_id"],
            file_name=clean(row["file_name"]),
            label=row["label"],
            box=(int(row["x0"]), int(row["y0"]), int(row["x1"]), int(row["y1"])),
            score=_score(row["typicality"], row["standard_error"]),
            specificity=_finite(row["specificity"]),
            rank=int(row["rank"]),
            rank_in_cluster=int(row["rank_in_cluster"]),
        )

    def _image(self, row: Mapping[str, Any]) -> ImageView:
        return ImageView(
            number=self.number(),
            image_id=row["image_id"],
            file_name=clean(row["file_name"]),
            label=row["label"],
            score=_score(row["typicality"], row["standard_error"]),
        )

    def sources(self, labels: tuple[LabelView, ...]) -> tuple[SourceImage, ...]:
        """The images behind everything shown, each once, in the order of their first appearance."""
        wanted: dict[str, str] = {}
        for label in labels:
            for cluster in label.clusters:
                wanted.update({e.image_id: e.file_name for e in cluster.elements if e.image_id not in wanted})
            wanted.update({i.image_id: i.file_name for i in label.most + label.least if i.image_id not in wanted})
        order = {name: position for position, name in enumerate(self.data.labels)}
        scores: dict[str, list[tuple[str, Score]]] = defaultdict(list)
        groups: dict[str, str] = {}
        for rows in self.images.values():
            for row in rows:
                if row["image_id"] in wanted:
                    scores[row["image_id"]].append((row["label"], _score(row["typicality"], row["standard_error"])))
                    groups[row["image_id"]] = clean(row["group"])
        return tuple(
            SourceImage(
                image_id,
                file_name,
                "" if groups.get(image_id) == image_id else groups.get(image_id, ""),
                tuple(sorted(scores[image_id], key=lambda pair: order.get(pair[0], len(order)))),
            )
            for image_id, file_name in wanted.items()
        )


def _strip(clusters: tuple[ClusterView, ...]) -> tuple[ElementView, ...]:
    """The first member of each cluster, those that hold up first; then second members, until the strip is full.

    An image appears once where there is a choice, so that the strip is as varied as the clusters allow.
    """
    ordered = sorted(clusters, key=lambda c: (bool(c.doubts), c.position))
    chosen: list[ElementView] = []
    used: Counter[str] = Counter()
    for cluster in ordered:
        fresh = next((e for e in cluster.elements if not used[e.image_id]), None)
        if fresh is not None and len(chosen) < STRIP:
            chosen.append(fresh)
            used[fresh.image_id] += 1
    for depth in range(1, max((len(c.elements) for c in ordered), default=0)):
        for cluster in ordered:
            if len(chosen) >= STRIP:
                return tuple(chosen)
            element = cluster.elements[depth] if depth < len(cluster.elements) else None
            if element is not None and not used[element.image_id]:
                chosen.append(element)
                used[element.image_id] += 1
    return tuple(chosen)


def _certainty(clusters: list[ClusterView], adjusted: bool) -> str:
    """One sentence that says how many of the clusters shown hold up, and by which test."""
    if not clusters:
        return "No visual elements were formed, so the best-scoring places are shown as they are."
    sound = sum(not c.doubts for c in clusters)
    tested = any(c.p_value is not None for c in clusters)
    level = f"several images, p ≤ {SIGNIFICANT}{' corrected for many tests' if adjusted else ''}"
    test = level if tested else "several images; no significance test was run"
    return f"{sound} of the {plural(len(clusters), 'visual element')} shown hold up ({test}); the others are marked."


def _p_value(row: Mapping[str, Any]) -> float | None:
    """The cluster's p-value, corrected for the number of clusters tested where the run says so."""
    adjusted = _finite(row.get("adjusted_p_value"))
    return _finite(row["p_value"]) if adjusted is None else adjusted


def _score(value: float | None, standard_error: float | None) -> Score:
    return Score(_finite(value) or 0.0, _finite(standard_error) or 0.0)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _by_label(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.to_pylist():
        rows[row["label"]].append(row)
    return rows


def context_window(box: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """Return the square region shown around a box: twice its side, moved inside the image where it can be.

    The square is never larger than the image's short side, unless the box itself is.
    """
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0, 1)
    side = max(side, min(round(CONTEXT * side), width, height))
    left = min(max(round((x0 + x1 - side) / 2), 0), max(width - side, 0))
    top = min(max(round((y0 + y1 - side) / 2), 0), max(height - side, 0))
    return left, top, left + side, top + side
