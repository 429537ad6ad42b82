"""Purity and coverage of ranked detections: what elements are worth on images that they were not found in.

After Doersch et al., "Mid-level Visual Element Discovery as Discriminative Mode Seeking" (NIPS 2013), section 4: walk
down the detections of all elements of a label together, best first. After n detections of each, purity is the share
of these detections whose image carries the label, and coverage the share of the label's images that are among them.
Nothing is chosen by what it scores here, so elements that know nothing have the label's prevalence as their purity,
and as their area.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

LEVELS = np.linspace(0.01, 1, 100)
"""Coverage at which curves are read."""
NORMAL_90 = 1.645
"""Half the width of a two-sided 90% interval, in standard errors."""


def purity_when_reached(
    scores: Float[np.ndarray, "images elements"],
    element_labels: Int[np.ndarray, " elements"],
    truth: Bool[np.ndarray, "images labels"],
) -> Float[np.ndarray, "images labels"]:
    """The purity of a label's elements at the depth at which they first reach each of its images.

    Parameters
    ----------
    scores : best detection of each element in each image; only their order within an element matters
    element_labels : the column of `truth` that each element is of

    Returns
    -------
    NaN where an image does not carry the label; 0 for labels without elements, which reach nothing
    """
    result = np.where(truth, 0.0, np.nan)
    for label in range(truth.shape[1]):
        own, carries = scores[:, element_labels == label], truth[:, label]
        if own.shape[1]:
            depth, purity = _walk(own, carries)
            result[carries, label] = purity[depth[carries]]
    return result


def _walk(
    scores: Float[np.ndarray, "images elements"], carries: Bool[np.ndarray, " images"]
) -> tuple[Int[np.ndarray, " images"], Float[np.ndarray, " images"]]:
    """The depth, from 0, at which any element reaches each image, and the purity of all detections at each depth."""
    order = np.argsort(-scores, axis=0, kind="stable")
    depths = np.arange(len(scores))
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, depths[:, None], axis=0)
    return rank.min(1), carries[order].mean(1).cumsum() / (depths + 1)


def area(reached: Float[np.ndarray, "images labels"]) -> float:
    """Area under purity against coverage, averaged over labels: the mean of `purity_when_reached` over their images.

    Each image of a label adds 1 / (their number) to its coverage at the purity of that depth.
    """
    areas = [own.mean() for column in reached.T if len(own := column[~np.isnan(column)])]
    return float(np.mean(areas)) if areas else float("nan")


def purity_curve(
    scores: Float[np.ndarray, "images elements"],
    element_labels: Int[np.ndarray, " elements"],
    truth: Bool[np.ndarray, "images labels"],
) -> Float[np.ndarray, " levels"]:
    """Purity at the depth at which each coverage of LEVELS is reached, averaged over the labels that have elements."""
    curves = []
    for label in range(truth.shape[1]):
        own, carries = scores[:, element_labels == label], truth[:, label]
        if own.shape[1] and carries.any():
            depth, purity = _walk(own, carries)
            reached = np.sort(depth[carries])
            curves.append(purity[reached[np.ceil(LEVELS * len(reached) - 1e-9).astype(int) - 1]])
    return np.mean(curves, axis=0)


def chance_area(
    scores: Float[np.ndarray, "images elements"],
    element_labels: Int[np.ndarray, " elements"],
    truth: Bool[np.ndarray, "images labels"],
    rng: np.random.Generator,
    times: int = 20,
) -> float:
    """Mean area where the labels of the images are permuted: what so many elements have by luck."""
    found = [
        area(purity_when_reached(scores, element_labels, truth[rng.permutation(len(truth))])) for _ in range(times)
    ]
    return float(np.mean(found))


def group_weights(groups: Sequence[str], rng: np.random.Generator, times: int) -> Int[np.ndarray, "times images"]:
    """How often each image occurs in `times` bootstrap samples of whole groups."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=times)
    return counts[:, member]


def interval(
    values: Float[np.ndarray, " seeds"], resampled: Float[np.ndarray, "times seeds"]
) -> tuple[float, float, float]:
    """Mean over seeds and its 90% interval: the error from the images (bootstrap) and from the seeds, added up.

    Parameters
    ----------
    values : a measure for each seed
    resampled : the same on bootstrap samples of the images, the same samples for all seeds
    """
    mean = float(values.mean())
    variance = float(resampled.mean(1).var(ddof=1)) if len(resampled) > 1 else 0.0
    if len(values) > 1:
        variance += float(values.var(ddof=1)) / len(values)
    half = NORMAL_90 * variance**0.5
    return mean, mean - half, mean + half
