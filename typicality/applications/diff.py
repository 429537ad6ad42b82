"""Diff: what changed between two runs, as plain data, and as one page in the style of the report.

    elements   matched one to one within a label: the same image (by content) and boxes with an IoU of at least 0.5,
               the best overlaps first
    clusters   matched one to one within a label by the share of members they have in common (Jaccard index over
               matched elements)
    findings   of `typicality audit`, by their ids; those of an audit of an earlier state of its run are unknown, and so
               is what the other audit did not look for

A score that changed is told from noise by z = (after - before) / sqrt(se_before^2 + se_after^2); runs over the same
images and seed share noise, which makes z smaller than it looks, so it is a guide and not a test.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from typicality.checks import check_current
from typicality.config import resolve
from typicality.dataset import LabelledImages, load_dataset
from typicality.errors import InputError, OutputError
from typicality.findings import concerns_of, name_of, same_things
from typicality.mining.significance import tested_p_value
from typicality.report.pictures import LEVELS, Crop, draw_crop
from typicality.report.render import page_of
from typicality.report.sections.audit import SEVERITIES
from typicality.report.text import clean
from typicality.report.view import doubts_of
from typicality.run import existing_record, run_record
from typicality.store import foundation, write_text

OVERLAP = 0.5  # IoU from which two boxes of an image are the same element
SHARED = 0.2  # Jaccard index from which two clusters are the same
MOST = 20  # elements named of each kind, and images named
SHOWN = 12  # pictures of each kind and label on the page

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """A setting, or a fact of the run, that differs; None where one run does not have it."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class ElementChange:
    """An element of one run or of both; ranks count from 0 within the label, None where a run lacks it."""

    image_id: str
    file_name: str
    box: tuple[int, int, int, int]
    rank_before: int | None
    rank_after: int | None
    typicality_before: float | None
    typicality_after: float | None
    z: float | None


@dataclass(frozen=True)
class ClusterChange:
    """A cluster of one run or of both: numbers, ranks, sizes, and the Jaccard index of their members."""

    cluster_before: int | None
    cluster_after: int | None
    rank_before: int | None
    rank_after: int | None
    median_before: float | None
    median_after: float | None
    shared: float
    # whether it holds up; None where it was not tested and nothing speaks against it
    sound_before: bool | None
    sound_after: bool | None


@dataclass(frozen=True)
class LabelChange:
    """What changed of one label.

    Attributes
    ----------
    rank_correlation : Spearman's over matched elements, None below three
    sound_before, sound_after : clusters that hold up; None where none was tested
    """

    label: str
    images_before: int
    images_after: int
    elements_before: int
    elements_after: int
    matched: int
    median_before: float | None
    median_after: float | None
    rank_correlation: float | None
    sound_before: int | None
    sound_after: int | None
    appeared: tuple[ElementChange, ...]
    vanished: tuple[ElementChange, ...]
    moved: tuple[ElementChange, ...]
    clusters: tuple[ClusterChange, ...]


@dataclass(frozen=True)
class DataChange:
    """Images by content: how many are in one run alone, and the first of their names."""

    before: int
    after: int
    added: int
    removed: int
    relabelled: int
    added_names: tuple[str, ...]
    removed_names: tuple[str, ...]
    relabelled_names: tuple[str, ...]


@dataclass(frozen=True)
class FindingChange:
    """A finding of one audit that the other does not have, or has with another severity.

    Attributes
    ----------
    state : new, graver, milder or gone
    id : in the second audit; of a finding that is gone, in the first
    severity_before : that of the first audit where both have the finding, else None
    """

    state: str
    id: str
    severity: str
    title: str
    severity_before: str | None = None


@dataclass(frozen=True)
class Diff:
    """What changed from run A to run B."""

    a: str
    b: str
    settings: tuple[Change, ...]
    model: tuple[Change, ...]
    data: DataChange
    labels: tuple[LabelChange, ...]
    findings: tuple[FindingChange, ...]
    findings_known: bool
    """Whether both runs have been audited, as they are now."""
    findings_stale: tuple[str, ...]
    """Runs of which an earlier state was audited."""
    findings_not_compared: tuple[str, ...]
    """Kinds of findings that only one of the two audits looked for."""

    @property
    def same(self) -> bool:
        """Whether nothing that a reader would notice differs."""
        quiet = all(not (c.appeared or c.vanished or c.moved) for c in self.labels)
        counts = (self.data.added, self.data.removed, self.data.relabelled)
        return quiet and not any(counts) and not (self.settings or self.model or self.findings)

    def as_dict(self) -> dict[str, Any]:
        """JSON-like content."""
        return {**asdict(self), "same": self.same}


@dataclass(frozen=True)
class _Audit:
    """A findings.json: findings by id, the fingerprint of the images audited, and what it did without."""

    findings: dict[str, dict[str, Any]]
    fingerprint: str | None
    not_examined: frozenset[str]
    images_only: bool

    def looked_for(self, row: Row) -> bool:
        """Whether this audit could have made a finding of another one; only with the model are there elements."""
        of_element = "cluster" in (row.get("details") or {})
        return row.get("kind") not in self.not_examined and not (self.images_only and of_element)


@dataclass(frozen=True)
class Side:
    """One of the two runs, read from its directory."""

    folder: Path
    record: dict[str, Any]

    def rows(self, name: str) -> list[dict[str, Any]]:
        return pq.read_table(self.folder / f"{name}.parquet").to_pylist()

    @cached_property
    def elements(self) -> dict[str, list[dict[str, Any]]]:
        return _by_label(self.rows("elements"))

    @cached_property
    def clusters(self) -> dict[str, list[dict[str, Any]]]:
        return _by_label(self.rows("clusters"))

    @cached_property
    def images(self) -> dict[str, tuple[str, frozenset[str]]]:
        """image_id -> file name and labels."""
        names: dict[str, str] = {}
        labels: dict[str, set[str]] = defaultdict(set)
        for row in self.rows("images"):
            names[row["image_id"]] = row["file_name"]
            labels[row["image_id"]].add(row["label"])
        return {image_id: (name, frozenset(labels[image_id])) for image_id, name in names.items()}

    @cached_property
    def _audit(self) -> _Audit | None:
        """None where the run was not audited."""
        path = self.folder / "findings.json"
        if not path.is_file():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            return _Audit(
                {str(row["id"]): row for row in document["findings"]},
                document.get("dataset", {}).get("fingerprint"),
                frozenset(document.get("not_examined", ())),
                bool(document.get("images_only")),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{path} cannot be read ({error!r}); run `typicality audit {self.folder}` again"
            ) from error

    @property
    def stale(self) -> bool:
        """Whether an earlier state of the run was audited: other images, another model, other elements."""
        if self._audit is None:
            return False
        present = self.record["dataset"].get("fingerprint")
        known = self.record["stages"].get("audit", {}).get("built_on") or {}
        return (self._audit.fingerprint or present) != present or known != foundation(self.record, known)

    @property
    def findings(self) -> dict[str, dict[str, Any]] | None:
        """Findings by id; None where the run was not audited, or in an earlier state."""
        return None if self._audit is None or self.stale else self._audit.findings

    def findings_beside(self, other: Side) -> dict[str, dict[str, Any]] | None:
        """Return the findings that the audit of the other run could have made as well; None where one is unknown."""
        if self.findings is None or other.findings is None or other._audit is None:
            return None
        return {i: row for i, row in self.findings.items() if other._audit.looked_for(row)}

    def not_compared(self, other: Side) -> tuple[str, ...]:
        """Return the kinds of findings that only one of the two audits looked for."""
        if self._audit is None or other._audit is None:
            return ()
        return tuple(sorted(self._audit.not_examined ^ other._audit.not_examined))


def open_side(folder: Path) -> Side:
    """Return a mined run.

    Raises
    ------
    OutputError : when it is no run directory, or has not been mined, or not as it is now.
    """
    record = existing_record(folder)
    missing = [n for n in ("elements", "clusters", "images") if not (folder / f"{n}.parquet").is_file()]
    if missing:
        raise OutputError(f"{folder} has no {missing[0]}.parquet: it has not been mined; run `typicality mine` first")
    check_current(folder, record)
    return Side(folder, record)


def diff(run_a: Path, run_b: Path) -> Diff:
    """Compare two mined runs; nothing is written.

    Raises
    ------
    OutputError : when one of them is no mined run, or was not mined as it is now.
    """
    a, b = open_side(Path(run_a)), open_side(Path(run_b))
    labels = list(dict.fromkeys([*a.record["dataset"]["labels"], *b.record["dataset"]["labels"]]))
    counted = [{label: int(n) for label, n in side.record["dataset"]["labels"].items()} for side in (a, b)]
    return Diff(
        a=str(run_a),
        b=str(run_b),
        settings=changes(a.record.get("settings", {}), b.record.get("settings", {})),
        model=changes(_model(a.record), _model(b.record)),
        data=data_change(a.images, b.images),
        labels=tuple(
            label_change(
                label, (counted[0].get(label, 0), counted[1].get(label, 0)),
                (a.elements.get(label, []), b.elements.get(label, [])),
                (a.clusters.get(label, []), b.clusters.get(label, [])),
            )
            for label in labels
        ),
        findings=finding_changes(a.findings_beside(b), b.findings_beside(a)),
        findings_known=a.findings is not None and b.findings is not None,
        findings_stale=tuple(str(side.folder) for side in (a, b) if side.stale),
        findings_not_compared=a.not_compared(b),
    )  # fmt: skip


def _model(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record.get("model", {}), "versions": record.get("versions", {})}


def changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> tuple[Change, ...]:
    """Return what differs between nested settings, under dotted names."""
    found: list[Change] = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) or isinstance(new, Mapping):
            inner = [x if isinstance(x, Mapping) else {} for x in (old, new)]
            found += changes(inner[0], inner[1], f"{prefix}{name}.")
        elif old != new:
            found.append(Change(f"{prefix}{name}", old, new))
    return tuple(found)


def data_change(
    before: Mapping[str, tuple[str, frozenset[str]]], after: Mapping[str, tuple[str, frozenset[str]]]
) -> DataChange:
    """Compare image_id -> (file name, labels)."""
    added = sorted(after[i][0] for i in after.keys() - before.keys())
    removed = sorted(before[i][0] for i in before.keys() - after.keys())
    relabelled = sorted(after[i][0] for i in before.keys() & after.keys() if before[i][1] != after[i][1])
    lists = (tuple(names[:MOST]) for names in (added, removed, relabelled))
    return DataChange(len(before), len(after), len(added), len(removed), len(relabelled), *lists)


def label_change(
    label: str,
    images: tuple[int, int],
    elements: tuple[Sequence[Row], Sequence[Row]],
    clusters: tuple[Sequence[Row], Sequence[Row]],
) -> LabelChange:
    """Compare the elements and clusters of one label; each pair is (before, after)."""
    before, after = elements
    pairs = match_elements(before, after)
    partner = dict(pairs)
    taken = set(partner.values())
    vanished = [_element(row, None) for i, row in enumerate(before) if i not in partner]
    appeared = [_element(None, row) for j, row in enumerate(after) if j not in taken]
    both = [_element(before[i], after[j]) for i, j in pairs]
    moved = sorted((e for e in both if e.rank_before != e.rank_after), key=_leap, reverse=True)
    ranks = np.array([[before[i]["rank"], after[j]["rank"]] for i, j in pairs], dtype=float)
    return LabelChange(
        label=label, images_before=images[0], images_after=images[1],
        elements_before=len(before), elements_after=len(after), matched=len(pairs),
        median_before=_median(before), median_after=_median(after), rank_correlation=spearman(ranks),
        sound_before=_how_many(clusters[0]), sound_after=_how_many(clusters[1]),
        appeared=tuple(sorted(appeared, key=lambda e: e.rank_after or 0)[:MOST]),
        vanished=tuple(sorted(vanished, key=lambda e: e.rank_before or 0)[:MOST]),
        moved=tuple(moved[:MOST]),
        clusters=match_clusters(elements, pairs, clusters),
    )  # fmt: skip


def match_elements(before: Sequence[Row], after: Sequence[Row]) -> list[tuple[int, int]]:
    """Return pairs of positions: the same image and IoU >= OVERLAP, greedily by overlap, each element once."""
    by_image: dict[str, list[int]] = defaultdict(list)
    for j, row in enumerate(after):
        by_image[row["image_id"]].append(j)
    overlaps = [(iou(row, after[j]), i, j) for i, row in enumerate(before) for j in by_image.get(row["image_id"], ())]
    used_before: set[int] = set()
    used_after: set[int] = set()
    pairs = []
    for overlap, i, j in sorted(overlaps, key=lambda o: (-o[0], o[1], o[2])):
        if overlap < OVERLAP:
            break
        if i not in used_before and j not in used_after:
            used_before.add(i)
            used_after.add(j)
            pairs.append((i, j))
    return sorted(pairs)


def iou(a: Row, b: Row) -> float:
    """Intersection over union of two boxes with x0, y0, x1, y1."""
    width = min(a["x1"], b["x1"]) - max(a["x0"], b["x0"])
    height = min(a["y1"], b["y1"]) - max(a["y0"], b["y0"])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(r["x1"] - r["x0"]) * (r["y1"] - r["y0"]) for r in (a, b)]
    return float(width * height / (sum(areas) - width * height))


def match_clusters(
    elements: tuple[Sequence[Row], Sequence[Row]],
    pairs: Sequence[tuple[int, int]],
    clusters: tuple[Sequence[Row], Sequence[Row]],
) -> tuple[ClusterChange, ...]:
    """Match clusters greedily by their Jaccard index over elements; in the order of their rank in the second run."""
    sizes = [defaultdict(int) for _ in range(2)]  # type: list[dict[int, int]]
    for side, rows in enumerate(elements):
        for row in rows:
            sizes[side][row["cluster"]] += 1
    common: dict[tuple[int, int], int] = defaultdict(int)
    for i, j in pairs:
        common[elements[0][i]["cluster"], elements[1][j]["cluster"]] += 1
    shares = {(p, q): n / (sizes[0][p] + sizes[1][q] - n) for (p, q), n in common.items() if p >= 0 and q >= 0}
    first, second = ({row["cluster"]: row for row in rows} for rows in clusters)
    left, right = dict(first), dict(second)
    found = []
    for (p, q), share in sorted(shares.items(), key=lambda item: (-item[1], item[0])):
        if share >= SHARED and p in left and q in right:
            found.append(_cluster(left.pop(p), right.pop(q), share))
    found += [_cluster(row, None, 0.0) for row in left.values()] + [_cluster(None, row, 0.0) for row in right.values()]
    return tuple(sorted(found, key=lambda c: (c.rank_after is None, c.rank_after or 0, c.rank_before or 0)))


def sound(cluster: Row) -> bool | None:
    """Whether a cluster holds up, as the report says it; None where it was not tested and nothing speaks against it."""
    p_value, stability = tested_p_value(cluster), cluster.get("stability")
    known = stability if stability is not None and math.isfinite(stability) else None
    if doubts_of(cluster.get("n_images", 0), bool(cluster.get("few_images")), p_value, known):
        return False
    return None if p_value is None else True


def _how_many(clusters: Sequence[Row]) -> int | None:
    """How many clusters hold up; None where none was tested."""
    if all(tested_p_value(cluster) is None for cluster in clusters):
        return None
    return sum(sound(cluster) is True for cluster in clusters)


def finding_changes(before: Mapping[str, Row] | None, after: Mapping[str, Row] | None) -> tuple[FindingChange, ...]:
    """Findings that only one of two audits has, or both with another severity; none where one audit is unknown."""
    if before is None or after is None:
        return ()
    only = [row for i, row in after.items() if i not in before]
    left = {i: row for i, row in before.items() if i not in after}
    # ids of marks and elements hash the images that they concern: the same thing on one image more has another id
    unnamed = {i: (row["id"], name_of(row), sorted(concerns_of(row))) for i, row in enumerate(only)}
    unnamed = {i: found for i, found in unnamed.items() if found[0] != found[1]}
    names = {i: name_of(row) for i, row in left.items()}
    same = same_things(unnamed, names, {i: concerns_of(row) for i, row in left.items()})
    both = [(before[i], row) for i, row in after.items() if i in before]
    both += [(left[there], only[i]) for i, there in same.items()]
    rank = {severity: place for place, severity in enumerate(SEVERITIES)}
    judged = [(a, b) for a, b in both if a.get("severity") in rank and b.get("severity") in rank]
    apart = [(rank[b["severity"]] - rank[a["severity"]], a, b) for a, b in judged]
    return (
        *(_finding("new", row) for i, row in enumerate(only) if i not in same),
        *(_finding("graver", b, a) for step, a, b in apart if step < 0),
        *(_finding("milder", b, a) for step, a, b in apart if step > 0),
        *(_finding("gone", row) for i, row in left.items() if i not in same.values()),
    )


def _finding(state: str, row: Row, before: Row | None = None) -> FindingChange:
    severity_before = None if before is None else str(before["severity"])
    severity, title = str(row.get("severity", "")), clean(row.get("title", ""))
    return FindingChange(state, str(row["id"]), severity, title, severity_before)


def spearman(ranks: np.ndarray) -> float | None:
    """Spearman's correlation of two columns of distinct ranks, shape (n, 2); None where n < 3."""
    if len(ranks) < 3:
        return None
    places = ranks.argsort(0).argsort(0).astype(float)
    return round(float(np.corrcoef(places.T)[0, 1]), 4)


def _by_label(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["label"]].append(row)
    return found


def _median(rows: Sequence[Row]) -> float | None:
    return float(median(row["typicality"] for row in rows)) if rows else None


def _leap(change: ElementChange) -> tuple[int, int]:
    before, after = change.rank_before or 0, change.rank_after or 0
    return abs(before - after), -min(before, after)


def _element(before: Row | None, after: Row | None) -> ElementChange:
    shown = after if after is not None else before
    assert shown is not None
    z = None
    if before is not None and after is not None:
        spread = math.hypot(before["standard_error"], after["standard_error"])
        z = round((after["typicality"] - before["typicality"]) / spread, 3) if spread > 0 else None
    return ElementChange(
        image_id=shown["image_id"], file_name=shown["file_name"],
        box=(shown["x0"], shown["y0"], shown["x1"], shown["y1"]),
        rank_before=before["rank"] if before is not None else None,
        rank_after=after["rank"] if after is not None else None,
        typicality_before=before["typicality"] if before is not None else None,
        typicality_after=after["typicality"] if after is not None else None,
        z=z if z is None or math.isfinite(z) else None,
    )  # fmt: skip


def _cluster(before: Row | None, after: Row | None, share: float) -> ClusterChange:
    def of(row: Row | None, name: str) -> Any:
        return row[name] if row is not None else None

    return ClusterChange(
        of(before, "cluster"), of(after, "cluster"), of(before, "rank"), of(after, "rank"),
        of(before, "median_typicality"), of(after, "median_typicality"), round(share, 4),
        sound(before) if before is not None else None, sound(after) if after is not None else None,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------- the page


@dataclass(frozen=True)
class Pictured:
    """An element on the page; `crop` is None where its data set could not be opened."""

    change: ElementChange
    crop: Crop | None


def write_page(found: Diff, path: Path) -> Path:
    """Write a diff as one HTML file that opens offline; elements are shown where their data sets can be opened."""
    sources = {"before": _opener(Path(found.a)), "after": _opener(Path(found.b))}
    pictures = {
        change.label: {
            "appeared": [_pictured(e, sources["after"]) for e in change.appeared[:SHOWN]],
            "vanished": [_pictured(e, sources["before"]) for e in change.vanished[:SHOWN]],
            "moved": [_pictured(e, sources["after"]) for e in change.moved[:SHOWN]],
        }
        for change in found.labels
    }
    write_text(path, page_of("diff.html", diff=found, pictures=pictures))
    return path


def _opener(folder: Path) -> Any:
    """Return image_id -> pixels or None, for a run whose data set may be gone."""
    record = run_record(str(folder)) or {}
    try:
        dataset: LabelledImages | None = load_dataset(resolve({"dataset": record["settings"]["dataset"]}).dataset)
    except InputError:
        dataset = None
    images = {image.image_id: image for image in dataset} if dataset is not None else {}

    @lru_cache(maxsize=64)
    def open_image(image_id: str) -> Any:
        image = images.get(image_id)
        try:
            return dataset.open(image) if dataset is not None and image is not None else None
        except InputError:
            return None

    return open_image


def _pictured(change: ElementChange, open_image: Any) -> Pictured:
    pixels = open_image(change.image_id)
    return Pictured(change, draw_crop(pixels, change.box, LEVELS[1]) if pixels is not None else None)
