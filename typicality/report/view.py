"""The report as data: what a run found, in the order a reader meets it, with no picture and no markup.

    ReportInput  --build_view-->  ReportView  --render-->  index.html
                                  ├── numbers, warnings, facts
                                  └── LabelView
                                      ├── ClusterView ── ElementView (a part of an image)
                                      └── ImageView (whole images, most and least typical)

Boxes are in pixels of the original image. Typicality is in units of squared error per latent value, not in 10^-3.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from statistics import fmean, median, variance
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa

from typicality.config import ReportSettings
from typicality.mining.significance import SIGNIFICANT, tested_p_value
from typicality.report.facts import FactGroup, Stage, fact_groups, model_name, stages
from typicality.report.text import Z90, beside, clean, count, plural, slugs
from typicality.scoring.adaptive import quantile
from typicality.scoring.pooling import freedom

STABLE = 0.5  # a cluster of less stability dissolves when groups are drawn anew (Hennig 2007)
CONTEXT = 2.0  # side of the region shown around an element, in sides of the element
STRIP = 12  # elements of a label in the overview
NEAREST = 6  # most alike elements named for each element
SPREAD = 12  # images of a label from which on the spread of their scores is told
LONGEST = 120  # characters of a metadata value
PLAIN = (str, int, float, bool, Decimal, datetime.date, datetime.time)  # a value of the metadata is one of these

FloatBox = tuple[float, float, float, float]


@dataclass(frozen=True)
class ReportInput:
    """What the stages hand to the report.

    Attributes
    ----------
    n_images : of each label
    n_distinct : of the data set: an image counts once, however many labels it has
    elements : image_id, file_name, label, x0, y0, x1, y1, typicality, standard_error, lower_bound, specificity,
        rank, cluster (-1 none), rank_in_cluster
    clusters : label, cluster, rank, size, n_images, median_typicality, standard_error, p_value; if known also
        few_images, adjusted_p_value, p_value_method, n_groups, stability, own_rate and control_rate
    images : a row an image and label scored: image_id, file_name, label, width, height, group, typicality (mean over
        the map), standard_error, n_draws
    open_image : image_id -> the original in RGB
    open_map : (image_id, label) -> (h, w) float32 map, and the box (x0, y0, x1, y1) of the original it covers
    facts : settings (nested), model, seed, versions, stages, dataset fingerprint
    training : step, loss, train_typicality, validation_typicality
    metadata : image_id -> other columns of the data set, for search and the lightbox
    features : (elements, d) float32, a row a row of `elements`; None where there are none
    in_sample : whether the model that scored an image may have been fine-tuned on it; with the column `held_out` of
        `images` this says so image by image
    folder : the run directory, in which the sections look for what applications left; None shows none
    """

    title: str
    dataset_name: str
    label_name: str
    labels: tuple[str, ...]
    ordered: bool
    n_images: Mapping[str, int]
    n_distinct: int
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
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    features: np.ndarray | None = None
    in_sample: bool = True
    trained_on: frozenset[str] | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Score:
    """A typicality and half the width of its 90% interval; None where there were too few draws to know it."""

    value: float
    half: float | None

    @property
    def low(self) -> float:
        return self.value - (self.half or 0.0)

    @property
    def high(self) -> float:
        return self.value + (self.half or 0.0)


@dataclass(frozen=True)
class ElementView:
    """A part of an image. `number` counts elements and whole images through the report; `row` is its table's."""

    number: int
    image_id: str
    file_name: str
    label: str
    box: tuple[int, int, int, int]
    score: Score
    specificity: float | None
    rank: int
    rank_in_cluster: int
    row: int = -1


@dataclass(frozen=True)
class ClusterView:
    """A visual element: parts of images that look alike, nearest to the centroid first.

    Attributes
    ----------
    p_value : of the test against controls; None where there was none, and the cluster is `not tested`
    stability : how much of it comes back when groups are drawn anew, in [0, 1]
    own_rate, control_rate : shares of the label's images and of others in which the test met it
    """

    label: str
    cluster: int
    position: int
    size: int
    n_images: int
    score: Score
    p_value: float | None
    few_images: bool
    elements: tuple[ElementView, ...]
    n_groups: int | None = None
    stability: float | None = None
    own_rate: float | None = None
    control_rate: float | None = None

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the cluster, in words."""
        return doubts_of(self.n_images, self.few_images, self.p_value, self.stability)

    @property
    def holds(self) -> bool:
        """Whether it was tested and nothing speaks against it."""
        return self.p_value is not None and not self.doubts


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
    """What is typical of one label. `chance` is the share of the spread of its images' scores that their draws add."""

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
    chance: float | None
    notes: tuple[str, ...] = ()

    @property
    def sound(self) -> int:
        """How many of the visual elements shown hold up."""
        return sum(c.holds for c in self.clusters)

    @property
    def doubtful(self) -> int:
        """Against how many of the visual elements shown something speaks."""
        return sum(bool(c.doubts) for c in self.clusters)

    @property
    def formed(self) -> int:
        """How many visual elements are shown."""
        return sum(c.cluster >= 0 for c in self.clusters)


@dataclass(frozen=True)
class SourceImage:
    """What is known of an image from which something is shown; `scores` holds (label, whole-image score).

    `seen` says whether the model that scored it was fine-tuned on it; None where that is not known.
    """

    image_id: str
    file_name: str
    group: str
    scores: tuple[tuple[str, Score], ...]
    metadata: tuple[tuple[str, str], ...] = ()
    seen: bool | None = None


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
    test_takes: str
    warnings: tuple[str, ...]
    labels: tuple[LabelView, ...]
    sources: tuple[SourceImage, ...]
    facts: tuple[FactGroup, ...]
    stages: tuple[Stage, ...]
    unreadable: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]
    neighbours: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def tested(self) -> bool:
        """Whether any visual element shown was tested against controls."""
        return any(c.p_value is not None for label in self.labels for c in label.clusters)

    @property
    def span(self) -> float:
        """The largest upper bound of the visual elements shown: the end of a common scale; never 0."""
        return max((c.score.high for label in self.labels for c in label.clusters), default=0.0) or 1.0

    def elements(self) -> list[ElementView]:
        return [e for label in self.labels for cluster in label.clusters for e in cluster.elements]

    def whole_images(self) -> list[ImageView]:
        return [image for label in self.labels for image in label.most + label.least]


def build_view(data: ReportInput) -> ReportView:
    """Choose and order what the report shows; opens no image."""
    builder = _Builder(data)
    labels = tuple(builder.label(name) for name in data.labels)
    shown = [c for label in labels for c in label.clusters if c.cluster >= 0]
    elements = [e for label in labels for c in label.clusters for e in c.elements]
    return ReportView(
        title=clean(data.title),
        dataset_name=clean(data.dataset_name),
        label_name=clean(data.label_name),
        model=model_name(data.facts),
        ordered=data.ordered,
        numbers=(
            KeyNumber(count(data.n_distinct), "images"),
            KeyNumber(count(len(data.labels)), "labels"),
            _number_of_clusters(len(shown), data.clusters.num_rows),
            _number_that_hold(shown) if shown else KeyNumber(count(data.elements.num_rows), "places found"),
        ),
        certainty=_certainty(shown, data),
        test_takes=_test_takes(data),
        warnings=tuple(map(clean, data.warnings)),
        labels=labels,
        sources=builder.sources(labels),
        facts=fact_groups(data.facts),
        stages=stages(data.facts),
        unreadable=tuple((clean(name), clean(reason)) for name, reason in data.unreadable),
        duplicates=tuple(tuple(map(clean, names)) for names in data.duplicates),
        neighbours=nearest(elements, data.features) if data.features is not None else {},
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
        settings = data.facts.get("settings", {})
        settings = settings if isinstance(settings, Mapping) else {}
        mine = settings.get("mine", {})
        self.min_images = int(mine.get("min_images", 3)) if isinstance(mine, Mapping) else 3
        source = settings.get("dataset", {})
        self.min_per_label = int(source.get("min_per_label", 12)) if isinstance(source, Mapping) else 12
        score = settings.get("score", {})
        self.paired = not isinstance(score, Mapping) or score.get("protocol") != "paper"

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
            chance=_chance(scored),
            notes=tuple(self._notes(name, clusters)),
        )

    def _notes(self, name: str, clusters: tuple[ClusterView, ...]) -> list[str]:
        """What must be known before this label's rows are believed."""
        n = self.data.n_images.get(name, 0)
        notes = []
        if n < self.min_per_label:
            notes.append(f"Only {plural(n, 'image')}: too few to tell what is typical from what is accidental.")
        formed = [c for c in clusters if c.cluster >= 0]
        if formed and all(c.doubts for c in formed):
            said = (
                "None of the visual elements below holds up" if any(c.p_value is not None for c in formed)
                else "Something speaks against every visual element below"
            )  # fmt: skip
            notes.append(f"{said}; take them as candidates, not as findings.")
        return notes

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
            score=_score(row["median_typicality"], row["standard_error"], Z90),
            p_value=tested_p_value(row),
            few_images=row["n_images"] < self.min_images if few is None else bool(few),
            elements=tuple(self._element(r) for r in members[: self.settings.columns]),
            n_groups=row.get("n_groups"),
            stability=_finite(row.get("stability")),
            own_rate=_finite(row.get("own_rate")),
            control_rate=_finite(row.get("control_rate")),
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
            score=_score(median(r["typicality"] for r in best), median(errors), Z90),
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
            score=_score(row["typicality"], row["typicality"] - row["lower_bound"]),
            specificity=_finite(row["specificity"]),
            rank=int(row["rank"]),
            rank_in_cluster=int(row["rank_in_cluster"]),
            row=row["row_of_table"],
        )

    def _image(self, row: Mapping[str, Any]) -> ImageView:
        return ImageView(
            number=self.number(),
            image_id=row["image_id"],
            file_name=clean(row["file_name"]),
            label=row["label"],
            score=self._of_image(row),
        )

    def _of_image(self, row: Mapping[str, Any]) -> Score:
        """A whole image's score, by Student's t with the freedom of its draws: few draws make a wide interval."""
        degrees = float(freedom(int(row["n_draws"]) // (2 if self.paired else 1)))
        known = degrees > 0
        return _score(row["typicality"], row["standard_error"] if known else None, float(quantile(degrees, 0.95)))

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
        seen: dict[str, bool] = {}
        told: dict[str, set[str]] = defaultdict(set)
        for rows in self.images.values():
            for row in rows:
                if row["image_id"] in wanted:
                    scores[row["image_id"]].append((row["label"], self._of_image(row)))
                    groups[row["image_id"]] = clean(row["group"])
                    told[row["image_id"]].add(clean(row["label"]))
                    if row.get("held_out") is not None:
                        learned = self.data.trained_on
                        known = not row["held_out"] if learned is None else row["image_id"] in learned
                        seen[row["image_id"]] = self.data.in_sample and known
        return tuple(
            SourceImage(
                image_id,
                file_name,
                "" if groups.get(image_id) == image_id else groups.get(image_id, ""),
                tuple(sorted(scores[image_id], key=lambda pair: order.get(pair[0], len(order)))),
                _metadata(
                    self.data.metadata.get(image_id, {}), {file_name, groups.get(image_id, ""), *told.get(image_id, ())}
                ),
                seen.get(image_id),
            )
            for image_id, file_name in wanted.items()
        )


def _strip(clusters: tuple[ClusterView, ...]) -> tuple[ElementView, ...]:
    """The first member of each cluster, doubtful ones last; then second members, until the strip is full.

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


def _number_of_clusters(shown: int, formed: int) -> KeyNumber:
    if shown in (0, formed):
        return KeyNumber(count(formed), "visual elements")
    return KeyNumber(f"{count(shown)} of {count(formed)}", "visual elements shown")


def _number_that_hold(clusters: list[ClusterView]) -> KeyNumber:
    if any(c.p_value is not None for c in clusters):
        return KeyNumber(f"{sum(c.holds for c in clusters)} of {len(clusters)}", "hold up")
    return KeyNumber(f"0 of {len(clusters)}", "tested")


def doubts_of(n_images: int, few_images: bool, p_value: float | None, stability: float | None) -> tuple[str, ...]:
    """Return what speaks against a cluster, in words; nothing where it holds up, or was not tested.

    Parameters
    ----------
    p_value : of the test against controls, None without one
    stability : None where it is unknown
    """
    found = []
    if few_images:
        found.append(f"from only {plural(n_images, 'image')}")
    if p_value is not None and p_value > SIGNIFICANT:
        found.append(f"not significant, p = {beside(p_value, SIGNIFICANT, 'g')}")
    if stability is not None and stability < STABLE:
        found.append(f"unstable, {beside(stability, STABLE, 'f')}")
    return tuple(found)


def _test_takes(data: ReportInput) -> str:
    """What visual elements would have to be tested by, and why there is no such thing."""
    if not data.in_sample:
        return (
            "A test takes images without the label that were scored for it as well, and there are none: "
            "score.controls is 0, or every image has the label"
        )
    # where it is not known what the model learned from, the base may have learned labels before: folds do not undo that
    base = "" if data.trained_on is not None else " and a base that was not fine-tuned on labelled images before"
    return (
        "A test takes images with and without the label, all scored by models that have not seen them: mine with "
        f"--folds 2{base}"
    )


def _certainty(clusters: list[ClusterView], data: ReportInput) -> str:
    """How many of the clusters shown hold up, by which test, and what it takes to test them where none was."""
    if not clusters:
        return "No visual elements were formed, so the best-scoring places are shown as they are."
    formed, tested = plural(len(clusters), "visual element"), sum(c.p_value is not None for c in clusters)
    if not tested:
        doubtful = sum(bool(c.doubts) for c in clusters)
        memorised = (
            " A model that was fine-tuned on the images it scores gives high scores to what it has memorised as well."
            if data.in_sample else ""
        )  # fmt: skip
        return (
            f"None of the {formed} shown was tested, so none is said to hold up.{memorised} {_test_takes(data)}. "
            f"Marked as doubtful, being from too few images or of a stability below {STABLE}: {doubtful}."
        )
    left = "" if tested == len(clusters) else f" {count(len(clusters) - tested)} could not be tested."
    rules = f"several images, stability of at least {STABLE}"
    return (
        f"{sum(c.holds for c in clusters)} of the {formed} shown hold up ({rules}, p ≤ {SIGNIFICANT} corrected for "
        "many tests); the others are marked. The test asks whether images of the label have the visual element more "
        f"often than the same search finds it in images without, all scored by models that have not seen them.{left}"
    )


def _score(value: float | None, error: float | None, factor: float = 1.0) -> Score:
    """A score whose interval reaches `factor` times `error` to both sides."""
    known = _finite(error)
    return Score(_finite(value) or 0.0, None if known is None else factor * known)


def _chance(images: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean squared error of these images' scores over the variance of the scores; at most 1."""
    known = [r for r in images if _finite(r["standard_error"]) is not None]
    if len(known) < SPREAD or not (spread := variance(r["typicality"] for r in known)):
        return None
    return min(1.0, fmean(r["standard_error"] ** 2 for r in known) / spread)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _by_label(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, row in enumerate(table.to_pylist()):
        rows[row["label"]].append({**row, "row_of_table": number})
    return rows


def _metadata(columns: Mapping[str, Any], known: set[str]) -> tuple[tuple[str, str], ...]:
    """The other columns of an image as short texts; empty, structured and already known values are left out."""
    plain = ((n, v) for n, v in columns.items() if isinstance(v, PLAIN) and str(v).strip())
    texts = ((clean(name), clean(value)) for name, value in plain)
    fresh = ((name, text) for name, text in texts if text not in known)
    return tuple((name, text if len(text) <= LONGEST else text[: LONGEST - 1] + "…") for name, text in fresh)


def nearest(elements: Sequence[ElementView], features: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Return, for the number of each element, the numbers of the most alike elements of other images, best first.

    Parameters
    ----------
    features : (rows of the elements table, d); compared by cosine. Only elements that are shown are candidates.
    """
    if len(elements) < 2:
        return {}
    shown = np.asarray(features, dtype=np.float32)[[e.row for e in elements]]
    shown = shown / np.maximum(np.linalg.norm(shown, axis=1, keepdims=True), 1e-12)
    images = np.unique([e.image_id for e in elements], return_inverse=True)[1]
    found: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(elements), 512):
        part = slice(start, start + 512)
        likeness = shown[part] @ shown.T
        likeness[images[part, None] == images[None]] = -np.inf
        count_of = min(4 * NEAREST, likeness.shape[1] - 1)
        best = np.argpartition(-likeness, count_of, axis=1)[:, : count_of + 1]
        for offset, candidates in enumerate(best):
            ordered = candidates[np.argsort(-likeness[offset, candidates], kind="stable")]
            taken: dict[int, int] = {}
            for n in ordered:
                if np.isfinite(likeness[offset, n]):
                    taken.setdefault(int(images[n]), elements[n].number)
            found[elements[start + offset].number] = tuple(taken.values())[:NEAREST]
    return found


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
