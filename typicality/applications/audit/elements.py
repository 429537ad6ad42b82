"""Shortcuts among the visual elements of a mined run: the same thing pasted, the same place, another column.

An element is a suspect when a small window of one of its members is found, pixel for pixel, in most other members,
wherever in the patch: that separates a marker from a style. The window is then searched for in images of all labels,
and an exact test over groups says whether it goes with the label. Where its finds sit at one place it is a shortcut of
the kind `same_place`, elsewhere a `repeated_object`.

Windows are compared by the correlation of their colours, on 64 x 64 copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from scipy.stats import norm

from typicality.applications.audit.findings import EVIDENCE, REPORTED, Evidence, Finding, severity_of, show
from typicality.applications.audit.images import THUMBNAIL, ImageFacts, cell_box
from typicality.applications.audit.places import association, place_name, untold_labels
from typicality.dataset.labels import text_of
from typicality.mining.significance import adjusted_p_values
from typicality.records import Box

SIDE = 8
"""Side of a window in pixels of the 64 x 64 copy."""
ALIKE = 0.85
"""Correlation from which two windows show the same thing."""
PLAIN = 12.0
"""Standard deviation in levels of 255 below which a window shows nothing."""
MEMBERS, PIVOTS, WINDOWS = 24, 6, 9
IN_CLUSTER = 0.4
"""Share of the other members that must show the thing."""
LEAST = 5
SEARCHED = 3000
"""Images searched for a thing, at most."""
BATCH = 64
SPREAD = 0.06
"""Median distance of the finds from their middle, as a share of the picture, up to which they are at one place."""
PERMUTATIONS = 499
COLUMN_VALUES = 60


@dataclass(frozen=True)
class Element:
    """A cluster of a label: rows of ImageFacts and boxes of its members, one a group, by rank in the cluster."""

    label: str
    cluster: int
    images: np.ndarray
    boxes: tuple[Box, ...]

    @property
    def name(self) -> str:
        """What findings call it; elements are counted from 1, as in the report."""
        return f"element {self.cluster + 1} of {self.label!r}"


def elements_of(facts: ImageFacts, table: pa.Table) -> list[Element]:
    """Read the elements of `elements.parquet` whose images were looked at; those of LEAST groups and more."""
    row_of = {image.image_id: i for i, image in enumerate(facts.images)}
    members: dict[tuple[str, int], dict[str, tuple[int, Box]]] = {}
    for entry in table.sort_by([("rank_in_cluster", "ascending")]).to_pylist():
        row = row_of.get(entry["image_id"])
        if row is not None and entry["cluster"] >= 0:
            box = (entry["x0"], entry["y0"], entry["x1"], entry["y1"])
            found = members.setdefault((entry["label"], entry["cluster"]), {})
            found.setdefault(facts.images[row].group, (row, box))
    return [
        Element(label, cluster, np.array([i for i, _ in found.values()]), tuple(box for _, box in found.values()))
        for (label, cluster), found in sorted(members.items())
        if len(found) >= LEAST
    ]


# ------------------------------------------------------------------------------------ the same thing, pasted


@dataclass(frozen=True)
class Suspect:
    """A window that most members of an element show: (3, SIDE, SIDE) of unit norm, and its pivot's row."""

    element: Element
    window: np.ndarray
    pivot: int
    share: float


def object_findings(facts: ImageFacts, elements: Sequence[Element]) -> list[Finding]:
    """Things pasted into images, as `repeated_object` or, where they sit at one place, `same_place`."""
    suspects = [suspect for element in elements if (suspect := _suspect(facts, element)) is not None]
    if not suspects:
        return []
    tests = len(elements) * PIVOTS * WINDOWS
    searched = _searched(facts, suspects)
    best, at = _search(facts, searched, np.stack([s.window for s in suspects]))
    findings = []
    for k, suspect in enumerate(suspects):
        element = suspect.element
        shown = best[:, k] >= ALIKE
        others = shown & (facts.groups[searched] != facts.groups[suspect.pivot])
        carries = facts.carries(element.label)[searched]
        groups = facts.groups[searched]
        if len(np.unique(groups[others & carries])) < LEAST - 1:
            continue
        precision, score, error, p_value = association(others, carries, groups)
        p_value = min(1.0, p_value * tests)
        if p_value > REPORTED or not _surroundings_differ(facts, searched, at[:, k], others & carries):
            continue
        rows = np.flatnonzero(shown & carries)
        places = at[rows, k]
        fixed = bool(np.median(np.abs(places - np.median(places, axis=0)).max(1)) <= SPREAD * THUMBNAIL)
        kind = "same_place" if fixed else "repeated_object"
        middle = np.median(places, axis=0).astype(int)
        place = place_name((int(middle[0]), int(middle[0]) + SIDE), (int(middle[1]), int(middle[1]) + SIDE), THUMBNAIL)
        order = rows[np.argsort(-best[rows, k], kind="stable")][:EVIDENCE]
        share = len(rows) / max(1, int(carries.sum()))
        findings.append(
            Finding(
                kind=kind,
                severity=severity_of(kind, score, p_value),
                title=f"the same thing {place if fixed else 'at many places'} in {share:.0%} of the images of "
                f"{element.label!r}",
                explanation=f"A detail of {element.name} is the same pixel for "
                f"pixel in {int(shown.sum())} of {len(searched)} images, in different surroundings: something was "
                f"pasted, printed or placed there. {precision:.0%} of the images that show it are labelled "
                f"{element.label!r}. A model can learn it instead of the content: remove it, or balance it over "
                "labels.",
                labels=(element.label,),
                score=score,
                standard_error=error,
                p_value=p_value,
                evidence=tuple(_evidence(facts, int(searched[i]), at[i, k], element.label) for i in order),
                identity=f"thing {place}" if fixed else "thing",
                concerns=tuple(facts.images[int(searched[i])].image_id for i in rows),
                basis="images",
                details={
                    "method": "elements",
                    "cluster": element.cluster,
                    "images": int(shown.sum()),
                    "share": round(share, 4),
                    "share_of_members": round(suspect.share, 4),
                    "precision": round(precision, 4),
                    "correlation": ALIKE,
                    "text_like": False,
                },
            )
        )
    return _distinct(findings)


def untold_objects(facts: ImageFacts, elements: Sequence[Element], labels: Sequence[str]) -> list[str]:
    """Labels of which `object_findings` can find nothing, whatever the images show: they have too few groups."""
    return untold_labels(facts, labels, max(1, len(elements)) * PIVOTS * WINDOWS, LEAST - 1)


def _suspect(facts: ImageFacts, element: Element) -> Suspect | None:
    """The window that most other members show; None where fewer than IN_CLUSTER do."""
    members = element.images[:MEMBERS]
    windows = [_windows(facts, int(i), box) for i, box in zip(members, element.boxes[:MEMBERS], strict=True)]
    best: Suspect | None = None
    for pivot, own in list(zip(members, windows, strict=True))[:PIVOTS]:
        if not len(own):
            continue
        chosen = own[np.linspace(0, len(own) - 1, min(WINDOWS, len(own))).astype(int)]
        found = np.array(
            [(chosen @ w.T).max(1) >= ALIKE if len(w) else np.zeros(len(chosen), dtype=bool) for w in windows]
        )
        share = (found.sum(0) - 1) / (len(members) - 1)
        top = int(share.argmax())
        if share[top] >= IN_CLUSTER and (best is None or share[top] > best.share):
            best = Suspect(element, chosen[top].reshape(3, SIDE, SIDE), int(pivot), float(share[top]))
    return best


def _windows(facts: ImageFacts, row: int, box: Box) -> np.ndarray:
    """(m, 3 * SIDE * SIDE) unit vectors of the windows in and just around a box that are not plain."""
    image = facts.images[row]
    x0, x1 = _span(box[0] / image.width, box[2] / image.width)
    y0, y1 = _span(box[1] / image.height, box[3] / image.height)
    region = facts.thumbnails[row, y0:y1, x0:x1].astype(np.float32)
    flat = F.unfold(torch.from_numpy(region).permute(2, 0, 1)[None], SIDE)[0].T.numpy()
    centred = flat - flat.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    busy = norms >= PLAIN * np.sqrt(flat.shape[1])
    return centred[busy] / norms[busy, None]


def _span(low: float, high: float) -> tuple[int, int]:
    """Pixels of the copy that a span of the picture covers, two more on each side, and SIDE at least."""
    start, end = int(low * THUMBNAIL) - 2, int(np.ceil(high * THUMBNAIL)) + 2
    missing = max(0, SIDE - (end - start))
    start = min(max(0, start - missing // 2), THUMBNAIL - SIDE)
    return start, min(THUMBNAIL, max(end, start + SIDE))


def _searched(facts: ImageFacts, suspects: Sequence[Suspect]) -> np.ndarray:
    """Rows of the images to search: one of each group and label, SEARCHED at most, pivots included."""
    first: dict[tuple[str, tuple[str, ...]], int] = {}
    for i, image in enumerate(facts.images):
        first.setdefault((image.group, image.labels), i)
    return np.array(sorted({*list(first.values())[:SEARCHED], *(s.pivot for s in suspects)}))


def _search(facts: ImageFacts, rows: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best correlation (n, s) of every window in every image, and its row and column (n, s, 2) in the copy."""
    kernels = torch.from_numpy(windows.astype(np.float32))
    size = kernels[0].numel()
    best = np.zeros((len(rows), len(windows)), dtype=np.float32)
    at = np.zeros((len(rows), len(windows), 2), dtype=np.int64)
    for start in range(0, len(rows), BATCH):
        here = rows[start : start + BATCH]
        copies = torch.from_numpy(facts.thumbnails[here].astype(np.float32)).permute(0, 3, 1, 2)
        products = F.conv2d(copies, kernels)  # kernels have mean 0, so the windows' means fall out
        means = F.avg_pool2d(copies.mean(1, keepdim=True), SIDE, stride=1)
        squares = F.avg_pool2d(copies.square().mean(1, keepdim=True), SIDE, stride=1)
        norms = ((squares - means.square()).clamp_min(0) * size).sqrt()
        correlation = torch.where(norms >= PLAIN * size**0.5, products / norms.clamp_min(1e-6), 0.0)
        value, place = correlation.flatten(2).max(2)
        best[start : start + BATCH] = value.numpy()
        width = correlation.shape[3]
        at[start : start + BATCH] = torch.stack([place // width, place % width], dim=2).numpy()
    return best, at


def _surroundings_differ(facts: ImageFacts, rows: np.ndarray, at: np.ndarray, shown: np.ndarray) -> bool:
    """Whether over the finds the pixels around the thing vary at least twice as much as the thing itself."""
    ring = 4
    cuts = []
    for i in np.flatnonzero(shown):
        r, c = at[i]
        padded = np.pad(facts.thumbnails[rows[i]].astype(np.float32), [(ring, ring), (ring, ring), (0, 0)], "edge")
        cuts.append(padded[r : r + SIDE + 2 * ring, c : c + SIDE + 2 * ring])
    spread = np.stack(cuts).std(0).mean(2)
    inside = float(spread[ring:-ring, ring:-ring].mean())
    # the thing may be larger than the window: the side that varies most is outside
    sides = [spread[:ring], spread[-ring:], spread[:, :ring], spread[:, -ring:]]
    return max(float(side.mean()) for side in sides) >= max(2 * inside, PLAIN)


def _evidence(facts: ImageFacts, row: int, at: np.ndarray, label: str) -> Evidence:
    r, c = (int(v) for v in at)
    image = facts.images[row]
    return show(image, cell_box(image, (r, r + SIDE), (c, c + SIDE), THUMBNAIL), label)


def _distinct(findings: Sequence[Finding]) -> list[Finding]:
    """Findings of one label that the same images show are one: the one with the smallest p-value stays."""
    kept: list[Finding] = []
    for finding in sorted(findings, key=lambda f: (f.p_value or 0.0, -f.score, f.id)):
        ids = {e.image_id for e in finding.evidence}
        for other in kept:
            shared = ids & {e.image_id for e in other.evidence}
            if other.labels == finding.labels and len(shared) >= 0.3 * min(len(ids), len(other.evidence)):
                break
        else:
            kept.append(finding)
    return kept


# ------------------------------------------------------------------------------------------ at the same place


def place_findings(facts: ImageFacts, elements: Sequence[Element], seed: int = 0) -> list[Finding]:
    """Elements whose members sit at the same place, by their mean nearest distance against uniform places.

    As in Clark & Evans (1954), but by simulation in the room that a box of each member's size has. A common framing
    does that too (faces have their eyes at one place), so it is of low severity by itself: what is pasted there is
    found by `object_findings` and `places`.
    """
    if not elements:
        return []
    rng = np.random.default_rng(seed)
    results = []
    for element in elements:
        sizes = np.array([[facts.images[i].width, facts.images[i].height] for i in element.images], dtype=float)
        boxes = np.array(element.boxes, dtype=float)
        room = np.maximum(1 - (boxes[:, 2:] - boxes[:, :2]) / sizes, 0)
        places = boxes[:, :2] / sizes
        observed = nearest_distance(places)
        null = np.array([nearest_distance(rng.random(places.shape) * room) for _ in range(PERMUTATIONS)])
        exact = (1 + (null <= observed).sum()) / (1 + PERMUTATIONS)
        tail = norm.cdf((observed - null.mean()) / max(null.std(ddof=1), 1e-9)) * 3
        p_value = exact if exact > 1 / (1 + PERMUTATIONS) else min(exact, max(tail, 1e-12))
        x, y = (int(v) for v in np.median(100 * (boxes[:, :2] + boxes[:, 2:]) / 2 / sizes, axis=0))
        place = place_name((y, y), (x, x), 100)
        results.append((element, place, p_value, 1 - observed / max(null.mean(), 1e-9)))
    adjusted = adjusted_p_values(np.array([p for _, _, p, _ in results]))
    findings = []
    for (element, place, _, effect), p_value in zip(results, adjusted, strict=True):
        if p_value > REPORTED or effect < 0.5:
            continue
        findings.append(
            Finding(
                kind="same_place",
                severity="low",
                title=f"{element.name} always sits at the same place",
                explanation=f"Its {len(element.images)} members are {effect:.0%} closer to one another than elements "
                "at random places. Things that are framed alike do that too; look whether it is the content.",
                labels=(element.label,),
                score=float(effect),
                standard_error=None,
                p_value=float(p_value),
                evidence=tuple(
                    show(facts.images[i], box, element.label)
                    for i, box in list(zip(element.images, element.boxes, strict=True))[:EVIDENCE]
                ),
                identity=f"element {place}",
                concerns=tuple(facts.images[i].image_id for i in element.images),
                basis="element",
                details={
                    "method": "positions",
                    "cluster": element.cluster,
                    "images": len(element.images),
                    "text_like": False,
                },
            )
        )
    return sorted(findings, key=lambda f: -f.score)[:10]


def nearest_distance(places: np.ndarray) -> float:
    """Mean distance of the points (n, 2) to their nearest neighbour."""
    difference = places[:, None] - places
    distance = np.sqrt((difference**2).sum(2))
    np.fill_diagonal(distance, np.inf)
    return float(distance.min(1).mean())


# ------------------------------------------------------------------------------------------- another column


def column_findings(
    facts: ImageFacts, elements: Sequence[Element], columns: Sequence[str], label: str
) -> list[Finding]:
    """Elements that one value of another column explains, and columns that go with the label as a whole.

    For every element and value Fisher's exact test among the images of the element's label; Benjamini-Hochberg over
    all, and over the columns apart from these. Columns in which nearly every image has a value of its own, and the
    label in other words, are left out.
    """
    tested = []
    told: dict[str, tuple[float, float, float, int]] = {}
    for column in columns:
        values = np.array([text_of(image.metadata.get(column)) for image in facts.images], dtype=str)
        if column == label or not _usable(values, facts):
            continue
        if (found := _told_by_label(facts, values)) is not None:
            told[column] = found
        for element in elements:
            own = facts.carries(element.label)
            members = np.zeros(len(facts), dtype=bool)
            members[element.images] = True
            for value in np.unique(values[element.images]):
                has = values == value
                if not value or not has[own].any() or has[own].all():
                    continue
                precision, score, error, p_value = association(members[own], has[own], facts.groups[own])
                tested.append((element, column, str(value), precision, score, error, p_value))
    findings = _told(told)
    adjusted = adjusted_p_values(np.array([row[-1] for row in tested])) if tested else np.zeros(0)
    best: dict[tuple[str, int], Finding] = {}
    for (element, column, value, precision, score, error, _), p_value in zip(tested, adjusted, strict=True):
        if p_value > REPORTED or precision < 0.5 or score < 0.3:
            continue
        severity = severity_of("other_column", score, float(p_value))
        finding = Finding(
            kind="other_column", severity="medium" if severity == "high" else severity,
            title=f"{element.name} is typical of {column} = {value!r}",
            explanation=f"{precision:.0%} of its images have {column} = {value!r}, far more than the images of "
            f"{element.label!r} have otherwise: the element may show the {column} rather than the label.",
            labels=(element.label,), score=score, standard_error=error, p_value=float(p_value),
            evidence=tuple(show(facts.images[i], box, element.label)
                           for i, box in list(zip(element.images, element.boxes, strict=True))[:EVIDENCE]),
            identity=f"{column}={value}", basis="element",
            concerns=tuple(facts.images[i].image_id for i in element.images),
            details={"column": column, "value": value, "cluster": element.cluster, "precision": round(precision, 4)},
        )  # fmt: skip
        key = (element.label, element.cluster)
        if key not in best or best[key].score < finding.score:
            best[key] = finding
    return findings + sorted(best.values(), key=lambda f: -f.score)[:10]


def _usable(values: np.ndarray, facts: ImageFacts) -> bool:
    """Few values, several images each, and not the label in other words."""
    known = values[values != ""]
    distinct = np.unique(known)
    if not 2 <= len(distinct) <= min(COLUMN_VALUES, len(known) / 5):
        return False
    labels = np.array(["|".join(image.labels) for image in facts.images], dtype=str)
    return bool(any(len(np.unique(labels[values == value])) > 1 for value in distinct))


def _told_by_label(facts: ImageFacts, values: np.ndarray) -> tuple[float, float, float, int] | None:
    """How much of a column's value the label tells: mutual information over entropy, by permutation over images.

    Returns
    -------
    the share, chance taken off, its error, the p-value, and the number of values; None where nothing could be told
    """
    labels = np.array(["|".join(image.labels) for image in facts.images], dtype=str)
    _, first = np.unique(np.stack([facts.groups.astype(str), labels, values]), axis=1, return_index=True)
    known = first[values[first] != ""]
    a = np.unique(labels[known], return_inverse=True)[1]
    b = np.unique(values[known], return_inverse=True)[1]
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return None
    rng = np.random.default_rng(0)
    observed = shared_information(a, b)
    null = np.array([shared_information(rng.permutation(a), b) for _ in range(199)])
    chance = float(null.mean())
    score = max(0.0, (observed - chance) / (1 - chance)) if chance < 1 else 0.0
    z = (observed - chance) / max(float(null.std(ddof=1)), 1e-9)
    p_value = (
        float(max(norm.sf(z) * 3, 1e-12)) if observed > null.max() else float((1 + (null >= observed).sum()) / 200)
    )
    return score, float(null.std(ddof=1)), p_value, len(np.unique(b))


def _told(columns: Mapping[str, tuple[float, float, float, int]]) -> list[Finding]:
    """Findings of columns that go with the label, of those that `_told_by_label` has tested."""
    adjusted = adjusted_p_values(np.array([row[2] for row in columns.values()])) if columns else np.zeros(0)
    return [
        Finding(
            kind="other_column", severity=severity_of("other_column", score, p_value),
            title=f"{column} goes with the label",
            explanation=f"The label tells {score:.0%} of what there is to know about {column}, chance taken off. What "
            f"is typical of a label may be what is typical of its {column}: balance the two, give the column as "
            "--group, or audit within one value with --where.",
            labels=(), score=score, standard_error=error, p_value=p_value, evidence=(),
            identity=f"column {column}", details={"column": column, "values": values},
        )
        for (column, (score, error, _, values)), p_value in zip(columns.items(), map(float, adjusted), strict=True)
        if p_value <= REPORTED and score >= 0.1
    ]  # fmt: skip


def shared_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information of two codings over the entropy of the second: 1 where a determines b."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    joint = table / table.sum()
    rows, columns = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.nansum(joint * np.log(joint / (rows * columns)))
        entropy = -np.nansum(columns * np.log(columns))
    return float(information / entropy) if entropy > 0 else 0.0
