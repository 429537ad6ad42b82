"""Near-duplicate images, and which labels, splits, groups and values of other columns share them.

Two images are compared by the correlation of their 32 x 32 grey copies without coarse shading (`images.detail_vector`),
so that the same thing under another exposure, size or compression is found. The threshold comes from the data: a
mirrored image has all the statistics of an image but is a copy of none, so the similarities of mirrored images to their
nearest neighbours say how alike unrelated images are. Of the thresholds from 0.8 on, the smallest is taken at which
mirrored images find a neighbour at most 1% as often as real ones do (target-decoy estimate of the false discovery
rate, Elias & Gygi 2007). Images that look like their own mirror image are no decoys.

Images of one group are known relatives. Neighbours are looked for outside the own group only, decoys' as well: among
the frames of one camera a leak to another one would be crowded out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from typicality.applications.audit.findings import (
    EVIDENCE,
    NO_BASELINE,
    REPORTED,
    Baseline,
    Evidence,
    Finding,
    id_of,
    severity_of,
    show,
)
from typicality.applications.audit.groups import permute_by_group, tail_p_value
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
CROSSING = 0.1
"""Share of the pairs that must go from one value of a column to another."""
PERMUTATIONS = 199
BLOCK = 256
"""Images compared with all others at a time: 20 MB of similarities where these are 20,000."""


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of near-duplicates of different groups.

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
    """Find the near-duplicates among the 16 nearest images of other groups; 10,000 images take seconds."""
    usable = np.flatnonzero(facts.details.any(1))
    group = facts.groups[usable]
    if len(np.unique(group)) < 2:
        none = np.zeros(0, dtype=np.float32)
        return NearDuplicates(np.zeros((0, 2), dtype=np.int64), none, none.astype(bool), WITHOUT_DECOYS)
    details = facts.details[usable]
    similarity, neighbour = _nearest(details, group, details, group, NEIGHBOURS)
    threshold = _threshold(facts.mirrored[usable], details, group, similarity.max(1))
    rows, columns = np.nonzero(similarity >= threshold)
    a, b = usable[rows], usable[neighbour[rows, columns]]
    pairs = np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    found = similarity[rows, columns][first]
    order = np.argsort(-found, kind="stable")
    pairs = pairs[order]
    return NearDuplicates(pairs, found[order].astype(np.float32), _identical(facts, pairs), threshold)


def _nearest(
    queries: np.ndarray, groups: np.ndarray, details: np.ndarray, group: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k details (m, d) that are nearest to each query (n, d) among those of other groups, in no order.

    Returns
    -------
    their correlations and rows, (n, k) each; a correlation of -1 where other groups have fewer than k
    """
    k = min(k, len(details))
    similarity = np.empty((len(queries), k), dtype=np.float32)
    neighbour = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), BLOCK):
        part = slice(start, start + BLOCK)
        all_of = queries[part] @ details.T
        all_of[groups[part, None] == group] = -1
        neighbour[part] = np.argpartition(all_of, -k, axis=1)[:, -k:]
        similarity[part] = np.take_along_axis(all_of, neighbour[part], axis=1)
    return similarity, neighbour


def _identical(facts: ImageFacts, pairs: np.ndarray) -> np.ndarray:
    """(m,) bool, whether the RMS difference of the 64 x 64 copies is at most IDENTICAL."""
    same = np.zeros(len(pairs), dtype=bool)
    for start in range(0, len(pairs), 1024):
        a, b = pairs[start : start + 1024].T
        difference = facts.thumbnails[a].astype(np.float32) - facts.thumbnails[b]
        same[start : start + 1024] = np.sqrt((difference**2).mean((1, 2, 3))) <= IDENTICAL
    return same


def _threshold(mirrored: np.ndarray, details: np.ndarray, group: np.ndarray, nearest: np.ndarray) -> float:
    """The threshold from decoys; all of the usable images: mirrored and details (n, d), nearest (n,) correlation."""
    decoys = np.flatnonzero(np.einsum("nd,nd->n", details, mirrored) < SYMMETRIC)
    if len(decoys) < FEW_DECOYS:
        return WITHOUT_DECOYS
    decoy = _nearest(mirrored[decoys], group[decoys], details, group, 1)[0][:, 0]
    for threshold in np.arange(LOWEST, 0.995, 0.01):
        false = (decoy >= threshold).mean()
        if false <= FALSE_SHARE * max((nearest >= threshold).mean(), 1 / len(nearest)):
            return float(round(threshold, 2))
    return 0.99


def duplicate_findings(
    facts: ImageFacts,
    found: NearDuplicates,
    columns: Sequence[str],
    side_of: Mapping[str, object],
    group_column: bool,
    known: Baseline = NO_BASELINE,
    copies: Collection[str] = (),
) -> tuple[list[Finding], float]:
    """Say across which boundaries near-duplicates lie.

    Other labels count where the pictures are the same to the eye: what tells two labels apart may be a small thing.

    Parameters
    ----------
    columns : metadata columns to look at
    side_of : image_id -> its fold, or its side of the split; images that are not in it are on no side
    group_column : whether the data set has groups
    known : images that a finding concerned already are shown last, and do not count in the share
    copies : ids of images of which there are several files, the same byte for byte, with different labels

    Returns
    -------
    findings, and the share of images with a near-duplicate under another label, split or group
    """
    images = facts.images
    findings: list[Finding] = []
    concerned: set[int] = set()

    def across(
        of: Callable[[LabelledImage], object], title: str, explanation: str, identity: str,
        among: np.ndarray | None = None, counts: bool = True, p_value: float | None = None,
        alone: Sequence[int] = (),
    ) -> None:  # fmt: skip
        values = [of(image) for image in images]
        crossing = [
            int(k)
            for k in (range(len(found.pairs)) if among is None else np.flatnonzero(among))
            if None not in (ends := [values[i] for i in found.pairs[k]]) and ends[0] != ends[1]
        ]
        if not alone and len(crossing) < SMALLEST and len(crossing) < 0.02 * len(images):
            return
        members = np.union1d(found.pairs[crossing], np.array(alone, dtype=int)).astype(int)
        old = known.concerned(id_of("near_duplicates", (), identity))
        fresh = {int(i) for i in members if images[i].image_id not in old}
        if counts:
            concerned.update(fresh)
        shown = sorted(crossing, key=lambda k: fresh.isdisjoint(found.pairs[k].tolist()))
        share = len(members) / len(images)
        severity = severity_of("near_duplicates", share, p_value)
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
                p_value=p_value,
                evidence=(
                    *(show(images[i]) for i in sorted(alone, key=lambda i: i not in fresh)[:EVIDENCE]),
                    *_evidence(images, found, shown, EVIDENCE - len(alone)),
                ),
                identity=identity,
                concerns=tuple(images[i].image_id for i in members),
                details={
                    "images": len(members),
                    "pairs": len(crossing),
                    "copies": len(alone),
                    "threshold": found.threshold,
                    "most frequent": _frequent(values, found.pairs[crossing]),
                },
            )
        )

    same = [i for i, image in enumerate(images) if image.image_id in copies]
    across(
        lambda i: i.labels,
        "the same picture carries different labels",
        "{images} images ({share}) are the same to the eye as an image with another label ({pairs} pairs"
        + (f", and {len(same)} files that have copies byte for byte" if same else "")
        + "): one of the labels is wrong, or what tells them apart is very small.",
        "labels",
        found.identical,
        alone=same,
    )
    across(
        lambda i: side_of.get(i.image_id),
        "near-duplicate images lie on both sides of the split",
        "{images} images ({share}) have a near-duplicate in another fold, or on the other side of the "
        "training/validation split, so held-out figures are too good. Give the column that links them as --group.",
        "split",
    )
    if group_column:
        across(
            lambda i: i.group,
            "near-duplicate images are in different groups",
            "{images} images ({share}) have a near-duplicate in another group: the groups do not keep relatives "
            "together.",
            "groups",
        )
    p_values = {column: p for column in columns if (p := _series(facts, found.pairs, column)) is not None}
    for column, p in p_values.items():
        if p * len(p_values) <= REPORTED:
            across(
                partial(_value, column),
                f"series of {column} share near-duplicate images",
                "{images} images ({share}) have a near-duplicate under another value of " + column + " ({pairs} "
                "pairs): its values are repeated pictures of the same things, so a random split leaks and the "
                f"{column} is not independent evidence.",
                f"column {column}",
                counts=False,
                p_value=p * len(p_values),
            )
    return findings, len(concerned) / max(1, len(images))


def _series(facts: ImageFacts, pairs: np.ndarray, column: str) -> float | None:
    """P-value that near-duplicates go from one value of the column to another more than by chance.

    Chance is the column permuted over the images that have near-duplicates, whole groups where groups have one value:
    of two values that say nothing, half of the pairs cross. The different exposures of one thing cross in all pairs.

    Returns
    -------
    p-value; None for a column that does not consist of series: at least two values, of five images each on average,
    which are not the label in other words, and at least a tenth of the pairs cross
    """
    values = np.array([text_of(image.metadata.get(column)) or "" for image in facts.images], dtype=str)
    known = values != ""
    present = np.unique(values[known])
    if not 2 <= len(present) <= known.sum() / 5 or not len(pairs):
        return None
    labels: dict[str, set[tuple[str, ...]]] = {value: set() for value in present}
    for value, image in zip(values[known], np.flatnonzero(known), strict=True):
        labels[value].add(facts.images[image].labels)
    if all(len(kinds) == 1 for kinds in labels.values()):
        return None  # the label in other words, which is looked at by itself
    within = pairs[known[pairs].all(1)]
    members, ends = np.unique(within, return_inverse=True)
    ends = ends.reshape(within.shape)
    code = np.unique(values[members], return_inverse=True)[1]
    if not len(within) or (code[ends[:, 0]] != code[ends[:, 1]]).sum() < CROSSING * len(pairs):
        return None
    rng = np.random.default_rng(0)

    def crossing(codes: np.ndarray) -> float:
        return float((codes[ends[:, 0]] != codes[ends[:, 1]]).mean())

    groups = facts.groups[members]
    return tail_p_value(
        crossing(code), np.array([crossing(permute_by_group(code, groups, rng)) for _ in range(PERMUTATIONS)])
    )


def _frequent(values: Sequence[object], pairs: np.ndarray) -> list[list[object]]:
    """The most frequent pairs of values, with their number."""
    seen = Counter(tuple(sorted((_text(values[a]), _text(values[b])))) for a, b in pairs)
    return [[first, second, n] for (first, second), n in seen.most_common(8)]


def _value(column: str, image: LabelledImage) -> str | None:
    return text_of(image.metadata.get(column)) or None


def _text(value: object) -> str:
    return " | ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _evidence(
    images: Sequence[LabelledImage], found: NearDuplicates, chosen: Sequence[int], most: int
) -> tuple[Evidence, ...]:
    """Pairs side by side, of images that were not shown yet."""
    shown: dict[int, None] = {}
    for k in chosen:
        if len(shown) >= most:
            break
        a, b = (int(i) for i in found.pairs[k])
        if a not in shown and b not in shown:
            shown |= {a: None, b: None}
    return tuple(show(images[i]) for i in shown)
