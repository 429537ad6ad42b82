"""Is a cluster typical of its label, or is it what the same search finds anyway?

Two tests, both one-sided, with groups of relatives (an image, a patient, a webcam) as the units.

`detection_p_values`, where scores are cross-fitted (`--folds`). Patches are selected because they score high, so under
any label the best look typical of it. The search is therefore made on images without the label as well (controls): the
same prompt, the same draws and the same rule pick the best patches of both sorts of images together, and these are
clustered without regard to their sort. A cluster is typical of its label if images that carry it contain its patches
more often than controls do. Under the null that labels are assigned to groups at random, and with models that were
shown neither's label, the two sorts are exchangeable: patches, features, clusters and counts follow from images
alone, so that permuting the sorts gives the null distribution, with the selection and the search for clusters in it.
Permutations stay within folds, since each fold has a model of its own. Several images of one group count as one, by
their mean, and are exchanged with groups of as many images: the mean of many varies less than that of few, and what
large groups show may differ from what small ones do. Groups of sizes that only one sort has, and those that were
searched in part, count by one of their images alone, and are exchanged with one another. A group that has images of
both sorts counts once in each; its relatives resemble one another, which makes the test conservative.

The level is not exact but approximate: the model of a fold was shown the labels of the other folds, so that images of
different folds are not quite independent, and images of large groups have a larger part in forming the clusters. How
often it raises a false alarm is measured, by `evaluate planted --control`.

`sign_flip_p_value`, elsewhere: the null that a member's specificity, its typicality under its own label minus the mean
under labels that its image does not carry, from the same draws, is as likely to be +s as -s. A small value says that
the advantage is consistent over groups and not the work of one or two. But members were selected for a high score
under their own label, and a model that was fine-tuned on these very images has partly memorised which label they
carry. Both push specificity above zero without any visual meaning: these p-values are too small.

Only p-values of the first test are called significant, here and in the report (`tested_p_value`).

Neither says whether a cluster looks coherent; its `stability` (clusters.py) does, in part.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

import numpy as np

from typicality.dataset import LabelledImages
from typicality.dataset.split import unit_hash
from typicality.records import Patch

SIGNIFICANT = 0.05
"""Level of an adjusted p-value."""

CONTROLS = 500
"""Controls a label at most, unless `score.controls` says otherwise."""

EXACT_GROUPS = 12
"""Up to so many groups all 2^n sign patterns are listed."""
PATTERNS = 9999
"""Random sign patterns beyond that, and permutations of labels; the smallest p-value is 1 / (PATTERNS + 1)."""
AT_ONCE = 2**18
"""Images times permutations in memory, which do not grow with the number of images."""


@dataclass(frozen=True)
class Candidates:
    """What the search finds on images with and without each label; input of the test with controls.

    Attributes
    ----------
    patches : n patches, `label` being the one they were scored for; by one rule from both sorts of images
    features : (n, d) float32, unit rows
    images : label -> image_ids of all images that took part, whether or not a patch of theirs was selected
    labels_of : image_id -> the labels that the image carries
    size_of : label, image_id -> how many images of the image's group carry the label, or do not, as it does itself
    stratum_of : image_id -> the fold within which images are exchangeable
    """

    patches: Sequence[Patch]
    features: np.ndarray
    images: Mapping[str, Sequence[str]]
    labels_of: Callable[[str], Sequence[str]]
    size_of: Callable[[str, str], int]
    stratum_of: Callable[[str], int]


def choose_controls(dataset: LabelledImages, number: int | None) -> dict[str, list[str]]:
    """Choose images of other labels for every label, by a hash: for each group of the label a whole one of its size.

    What is still wanted when other labels have no more groups of these sizes comes from all that are left, in turn.

    Parameters
    ----------
    number : of controls a label; by default as many as the label has images, and at most CONTROLS

    Returns
    -------
    label -> image_ids; fewer where fewer images are of other labels.
    """
    images = sorted(dataset, key=lambda image: unit_hash(image.image_id, "control"))
    groups = sorted({image.group for image in images}, key=lambda group: unit_hash(group, "control"))
    chosen = {}
    for label in dataset.labels:
        wanted = min(dataset.number_of(label), CONTROLS) if number is None else number
        own: Counter[str] = Counter()
        others: dict[str, list[str]] = {}
        for image in images:
            if label in image.labels:
                own[image.group] += 1
            else:
                others.setdefault(image.group, []).append(image.image_id)
        start = int(unit_hash(label, "control") * len(groups))
        order = [group for group in (*groups[start:], *groups[:start]) if group in others]
        of_size: dict[int, list[str]] = {}
        for group in reversed(order):
            of_size.setdefault(len(others[group]), []).append(group)
        found: dict[str, None] = {}
        for size in (own[group] for group in groups if group in own):
            if of_size.get(size) and len(found) + size <= wanted:
                found |= dict.fromkeys(others[of_size[size].pop()])
        left = [others[group] for group in order if others[group][0] not in found]
        in_turn = (image_id for turn in zip_longest(*left) for image_id in turn if image_id is not None)
        chosen[label] = list(found | dict.fromkeys(islice(in_turn, wanted - len(found))))
    return chosen


def group_sizes(dataset: LabelledImages) -> Callable[[str, str], int]:
    """Return a function of label and image_id: how many of the image's group carry the label, or do not, as it does."""
    image_of = {image.image_id: image for image in dataset}
    all_of = Counter(image.group for image in dataset)
    carrying = Counter((image.group, label) for image in dataset for label in image.labels)

    def size_of(label: str, image_id: str) -> int:
        image = image_of[image_id]
        own = carrying[image.group, label]
        return own if label in image.labels else all_of[image.group] - own

    return size_of


def detection_p_values(
    detected: np.ndarray, own: np.ndarray, groups: np.ndarray, strata: np.ndarray, seed: int = 0,
    sizes: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """One-sided permutation test, for each of c clusters, that images of the label contain it more often than controls.

    Parameters
    ----------
    detected : (n, c) 1 where an image contains a patch of the cluster, else 0; rows in an order that does not depend on
        labels, such as that of content hashes: where the first image stands for a group, it must be any of them
    own : (n,) bool, whether the image carries the label
    groups, strata : (n,) group of each image, and stratum of each group, within which groups are permuted
    seed : of the permutations
    sizes : (n,) how many images of its sort each image's group has; those that are among the n, unless told

    Returns
    -------
    (c,) float64 shares of permutations, the observed one included, with at least as many detections among own
    images; NaN where there are no images of both sorts.
    """
    own = np.asarray(own, dtype=bool)
    if own.all() or not own.any():
        return np.full(np.shape(detected)[1], np.nan)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    units, first, unit_of = np.unique(2 * group + own, return_index=True, return_inverse=True)
    here = np.bincount(unit_of)
    whole = here if sizes is None else np.asarray(sizes)[first]
    values = np.asarray(detected, dtype=np.float64)
    means = np.stack([np.bincount(unit_of, column) for column in values.T], axis=1) / here[:, None]
    is_own = units % 2 == 1
    fold = np.empty(len(units), dtype=np.int64)
    fold[unit_of] = np.unique(np.asarray(strata), return_inverse=True)[1]
    complete = here == whole
    stratum = np.unique(np.stack([fold, whole, complete]), axis=1, return_inverse=True)[1].ravel()
    of_both = np.bincount(stratum, is_own) % np.bincount(stratum) > 0
    alone = ~(of_both[stratum] & complete)
    means[alone] = values[first[alone]]
    stratum[alone] = stratum.max() + 1 + fold[alone]
    observed = means[is_own].sum(axis=0)
    threshold = observed - 1e-9 * np.maximum(1, np.abs(observed))
    rng = np.random.default_rng(seed)
    reached = np.ones(means.shape[1])
    for start in range(0, PATTERNS, 1000):
        totals = np.zeros((min(1000, PATTERNS - start), means.shape[1]))
        for part in np.unique(stratum):
            members = np.flatnonzero(stratum == part)
            k = int(is_own[members].sum())
            if k == 0:
                continue
            rows = max(1, AT_ONCE // len(members))
            for first_row in range(0, len(totals), rows):
                some = totals[first_row : first_row + rows]
                some += _sums_of_chosen(means[members], k, len(some), rng)
        reached += (totals >= threshold).sum(axis=0)
    return reached / (PATTERNS + 1)


def _sums_of_chosen(values: np.ndarray, k: int, times: int, rng: np.random.Generator) -> np.ndarray:
    """Choose k of n rows at random, so many times: (times, c) sums of (n, c)."""
    keys = rng.random((times, len(values)), dtype=np.float32)
    drawn = np.zeros(keys.shape)
    np.put_along_axis(drawn, np.argpartition(keys, k - 1, axis=1)[:, :k], 1, axis=1)
    return drawn @ values


def sign_flip_p_value(specificity: np.ndarray, groups: np.ndarray, seed: int = 0) -> float:
    """One-sided sign-flip test that the mean over groups is above zero (Fisher 1935, section 21).

    The p-value is the share of sign patterns, the observed one included, whose mean is at least the observed one;
    with g <= 12 groups it is exact and never below 2^-g.

    Parameters
    ----------
    specificity : (n,) of the members; members with NaN are left out
    groups : (n,) group of each member; members of one group count as one observation, their mean
    seed : of the random patterns, used beyond EXACT_GROUPS groups

    Returns
    -------
    p-value in (0, 1], or NaN where no specificity is known.
    """
    known = np.isfinite(specificity)
    if not known.any():
        return float("nan")
    _, member_of = np.unique(np.asarray(groups)[known], return_inverse=True)
    means = np.bincount(member_of, np.asarray(specificity, dtype=np.float64)[known]) / np.bincount(member_of)
    threshold = means.sum() - 1e-9 * np.abs(means).sum()
    if len(means) <= EXACT_GROUPS:
        patterns = np.arange(2 ** len(means))[:, None] >> np.arange(len(means)) & 1
        return float(np.mean((1 - 2 * patterns) @ means >= threshold))
    rng = np.random.default_rng(seed)
    reached = 1
    for start in range(0, PATTERNS, 1000):
        flips = rng.integers(0, 2, size=(min(1000, PATTERNS - start), len(means)), dtype=np.int8)
        reached += int(np.count_nonzero((1 - 2 * flips) @ means >= threshold))
    return reached / (PATTERNS + 1)


def adjusted_p_values(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjustment: rejecting where the result is <= q keeps the false discovery rate at q.

    Parameters
    ----------
    p : (m,) p-values; NaN is no test: it stays NaN and does not count

    Returns
    -------
    (m,) float64, at least p and at most 1 (Benjamini & Hochberg 1995, in Yekutieli's adjusted form)
    """
    values = np.asarray(p, dtype=np.float64)
    result = np.full(values.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(-values[tested], kind="stable")]
    scaled = values[order] * len(order) / np.arange(len(order), 0, -1)
    result[order] = np.minimum(np.minimum.accumulate(scaled), 1) if len(order) else scaled
    return result


def tested_p_value(cluster: Mapping[str, Any]) -> float | None:
    """Return the p-value by which a cluster may be called significant, corrected for many tests where that is known.

    Parameters
    ----------
    cluster : a row of `clusters.parquet`

    Returns
    -------
    None where the cluster was not tested against controls: sign-flip p-values are too small to claim anything.
    """
    if cluster.get("p_value_method") != "controls":
        return None
    known = (cluster.get(name) for name in ("adjusted_p_value", "p_value"))
    return next((float(p) for p in known if p is not None and math.isfinite(p)), None)
