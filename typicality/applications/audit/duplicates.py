"""Near-duplicate images, and which labels, splits, groups and values of other columns share them.

Two images are compared by the correlation of their 32 x 32 grey copies without coarse shading (`images.detail_vector`),
so that the same thing under another exposure, size or compression is found. The threshold comes from the data: a
mirrored image has all the statistics of an image but is a copy of none, so the similarities of mirrored images to their
nearest neighbours say how alike unrelated images are. Of the thresholds from 0.8 on, the smallest is taken at which
mirrored images find a neighbour at most 1% as often as real ones do (target-decoy estimate of the false discovery
rate, Elias & Gygi 2007). Images that look like their own mirror image are no decoys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import faiss
import numpy as np

from typicality.applications.audit.findings import (
    EVIDENCE,
    NO_BASELINE,
    Baseline,
    Evidence,
    Finding,
    id_of,
    severity_of,
    show,
)
from typicality.applications.audit.images import ImageFacts
from typicality.dataset.labels import text_of
from typicality.records import LabelledImage

LOWEST = 0.8
"""Correlation below which two images are not called near-duplicates, whatever the decoys say."""
FALSE_SHARE = 0.01
NEIGHBOURS = 16
SYMMETRIC = 0.5
"""Correlation with its own mirror image from which an image is no decoy."""
FEW_DECOYS = 20
WITHOUT_DECOYS = 0.95
"""Threshold where there are too few decoys to estimate one."""
IDENTICAL = 8.0
"""RMS difference in levels of 255 up to which two images are the same picture to the eye."""
SMALLEST = 3
"""Pairs below which nothing is reported."""


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of near-duplicates.

    Attributes
    ----------
    pairs : (m, 2) int64 indices a < b, the most similar first
    similarity : (m,) float32 correlation
    identical : (m,) bool, whether the small copies differ by less than IDENTICAL grey levels, colour and light included
    threshold : that was used
    """

    pairs: np.ndarray
    similarity: np.ndarray
    identical: np.ndarray
    threshold: float


def near_duplicates(facts: ImageFacts) -> NearDuplicates:
    """Find the near-duplicates among the nearest 16 neighbours of every image; 10,000 images take seconds."""
    details = np.ascontiguousarray(facts.details)
    usable = np.flatnonzero(details.any(1))
    if len(usable) < 2:
        none = np.zeros(0, dtype=np.float32)
        return NearDuplicates(np.zeros((0, 2), dtype=np.int64), none, none.astype(bool), WITHOUT_DECOYS)
    index = faiss.IndexFlatIP(details.shape[1])
    index.add(details[usable])
    k = min(NEIGHBOURS + 1, len(usable))
    similarity, neighbour = index.search(details[usable], k)
    neighbour = usable[neighbour]
    itself = neighbour == usable[:, None]
    nearest = np.where(itself, -1, similarity).max(1)
    threshold = _threshold(facts, index, usable, nearest)
    rows, columns = np.nonzero((similarity >= threshold) & ~itself)
    a, b = usable[rows], neighbour[rows, columns]
    pairs = np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    found = similarity[rows, columns][first]
    order = np.argsort(-found, kind="stable")
    pairs = pairs[order]
    return NearDuplicates(pairs, found[order].astype(np.float32), _identical(facts, pairs), threshold)


def _identical(facts: ImageFacts, pairs: np.ndarray) -> np.ndarray:
    """(m,) bool, whether the RMS difference of the 64 x 64 copies is at most IDENTICAL."""
    same = np.zeros(len(pairs), dtype=bool)
    for start in range(0, len(pairs), 1024):
        a, b = pairs[start : start + 1024].T
        difference = facts.thumbnails[a].astype(np.float32) - facts.thumbnails[b]
        same[start : start + 1024] = np.sqrt((difference**2).mean((1, 2, 3))) <= IDENTICAL
    return same


def _threshold(facts: ImageFacts, index: faiss.Index, usable: np.ndarray, nearest: np.ndarray) -> float:
    own = np.einsum("nd,nd->n", facts.details[usable], facts.mirrored[usable])
    decoys = np.flatnonzero(own < SYMMETRIC)
    if len(decoys) < FEW_DECOYS:
        return WITHOUT_DECOYS
    similarity, neighbour = index.search(np.ascontiguousarray(facts.mirrored[usable[decoys]]), 2)
    decoy = np.where(neighbour == decoys[:, None], -1, similarity).max(1)
    for threshold in np.arange(LOWEST, 0.995, 0.01):
        false = (decoy >= threshold).mean()
        if false <= FALSE_SHARE * max((nearest >= threshold).mean(), 1 / len(nearest)):
            return float(round(threshold, 2))
    return 0.99


def clusters_of(pairs: np.ndarray, n: int) -> np.ndarray:
    """(n,) number of the connected component of each image; images without near-duplicates are alone."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def duplicate_findings(
    facts: ImageFacts,
    found: NearDuplicates,
    columns: Sequence[str],
    side_of: Mapping[str, object],
    group_column: bool,
    known: Baseline = NO_BASELINE,
) -> tuple[list[Finding], float]:
    """Say across which boundaries near-duplicates lie. Images of one group are known relatives and do not count.

    Other labels count where the pictures are the same to the eye: what tells two labels apart may be a small thing.

    Parameters
    ----------
    columns : metadata columns to look at
    side_of : image_id -> its fold, or its side of the split; images that are not in it are on no side
    group_column : whether the data set has groups
    known : images that a finding concerned already are shown last, and do not count in the share

    Returns
    -------
    findings, and the share of images with a near-duplicate under another label, split or group
    """
    images = facts.images
    findings: list[Finding] = []
    concerned: set[int] = set()
    unknown = np.array([images[a].group != images[b].group for a, b in found.pairs], dtype=bool)

    def across(
        of: Callable[[LabelledImage], object], title: str, explanation: str, identity: str, chosen: np.ndarray,
        counts: bool = True,
    ) -> None:  # fmt: skip
        values = [of(image) for image in images]
        crossing = [
            int(k)
            for k in np.flatnonzero(chosen)
            if None not in (ends := [values[i] for i in found.pairs[k]]) and ends[0] != ends[1]
        ]
        if len(crossing) < SMALLEST and len(crossing) < 0.02 * len(images):
            return
        members = np.unique(found.pairs[crossing])
        old = known.concerned(id_of("near_duplicates", (), identity))
        fresh = {int(i) for i in members if images[i].image_id not in old}
        if counts:
            concerned.update(fresh)
        shown = sorted(crossing, key=lambda k: fresh.isdisjoint(found.pairs[k].tolist()))
        share = len(members) / len(images)
        severity = severity_of("near_duplicates", share, None)
        if group_column and severity == "high":
            severity = "medium"  # relatives are kept together; what is left is look-alikes
        text = explanation.format(images=len(members), share=f"{share:.0%}", pairs=len(crossing))
        findings.append(
            Finding(
                kind="near_duplicates",
                severity=severity,
                title=title,
                explanation=f"{text} Similarity is a correlation of at least {found.threshold:.2f} of grey copies "
                "without coarse shading.",
                labels=(),
                score=share,
                standard_error=None,
                p_value=None,
                evidence=_evidence(images, found, shown),
                identity=identity,
                concerns=tuple(images[i].image_id for i in members),
                details={
                    "images": len(members),
                    "pairs": len(crossing),
                    "threshold": found.threshold,
                    "most frequent": _frequent(values, found.pairs[crossing]),
                },
            )
        )

    across(
        lambda i: i.labels,
        "the same picture carries different labels",
        "{images} images ({share}) are the same to the eye as an image with another label ({pairs} pairs): one of the "
        "labels is wrong, or what tells them apart is very small.",
        "labels",
        unknown & found.identical,
    )
    across(
        lambda i: side_of.get(i.image_id),
        "near-duplicate images lie on both sides of the split",
        "{images} images ({share}) have a near-duplicate in another fold, or on the other side of the "
        "training/validation split, so held-out figures are too good. Give the column that links them as --group.",
        "split",
        unknown,
    )
    if group_column:
        across(
            lambda i: i.group,
            "near-duplicate images are in different groups",
            "{images} images ({share}) have a near-duplicate in another group: the groups do not keep relatives "
            "together.",
            "groups",
            unknown,
        )
    for column in columns:
        if _series(facts, found.pairs[unknown], column):
            across(
                partial(_value, column),
                f"series of {column} share near-duplicate images",
                "{images} images ({share}) have a near-duplicate under another value of " + column + " ({pairs} "
                "pairs): its values are repeated pictures of the same things, so a random split leaks and the "
                f"{column} is not independent evidence.",
                f"column {column}",
                unknown,
                counts=False,
            )
    return findings, len(concerned) / max(1, len(images))


def _series(facts: ImageFacts, pairs: np.ndarray, column: str) -> bool:
    """Whether near-duplicates go from one series of the column to another more than within them by chance.

    A column with few values, of at least five images each on average, in which at least a tenth of the pairs cross.
    """
    values = [text_of(image.metadata.get(column)) for image in facts.images]
    present = Counter(v for v in values if v)
    if not 2 <= len(present) <= sum(present.values()) / 5 or not len(pairs):
        return False
    labels: dict[str, set[tuple[str, ...]]] = {value: set() for value in present}
    for value, image in zip(values, facts.images, strict=True):
        if value:
            labels[value].add(image.labels)
    if all(len(kinds) == 1 for kinds in labels.values()):
        return False  # the label in other words, which is looked at by itself
    crossing = np.mean([bool(values[a] and values[b] and values[a] != values[b]) for a, b in pairs])
    return bool(crossing >= 0.1)


def _frequent(values: Sequence[object], pairs: np.ndarray) -> list[list[object]]:
    """The most frequent pairs of values, with their number."""
    seen = Counter(tuple(sorted((_text(values[a]), _text(values[b])))) for a, b in pairs)
    return [[first, second, n] for (first, second), n in seen.most_common(8)]


def _value(column: str, image: LabelledImage) -> str | None:
    return text_of(image.metadata.get(column)) or None


def _text(value: object) -> str:
    return " | ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _evidence(images: Sequence[LabelledImage], found: NearDuplicates, chosen: Sequence[int]) -> tuple[Evidence, ...]:
    """Pairs side by side, of images that were not shown yet."""
    shown: dict[int, None] = {}
    for k in chosen:
        a, b = (int(i) for i in found.pairs[k])
        if a not in shown and b not in shown:
            shown |= {a: None, b: None}
        if len(shown) >= EVIDENCE:
            break
    return tuple(show(images[i]) for i in shown)
