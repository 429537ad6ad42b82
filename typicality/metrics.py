"""Measures of maps against ground truth, as pure functions of arrays.

A map gives every pixel a score, the truth says which pixels are marked. Pixels of equal score stand or fall
together: where scores tie, the order of the pixels decides nothing. Any function that takes `positive` alone
takes it as bool; with `negative` beside it, both are weights: a cell of which a third is marked counts as a
third of a positive and two thirds of a negative.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

TRUNCATED_THRESHOLDS: Array = 2 * 10.0 ** -np.linspace(2, 7, 1000)
"""Siglidis et al. (2024), X-ray localization: 2e-2 down to 2e-7, in units of the loss."""


def counts(scores: Array, positive: Array, negative: Array | None = None) -> tuple[Array, Array, Array]:
    """Return, for every distinct score from the highest down, what is marked when pixels of that score or more are.

    Parameters
    ----------
    scores : any shape
    positive : of the same shape; bool, or weights of at least 0 where `negative` is given
    negative : weights of the same shape; the complement of `positive` by default

    Returns
    -------
    thresholds, true positives, false positives : float64, thresholds falling, counts rising

    Raises
    ------
    ValueError : for other shapes, or scores that are not finite.
    """
    values = np.asarray(scores).ravel()
    marked = np.asarray(positive).ravel().astype(np.float64)
    other = 1.0 - marked if negative is None else np.asarray(negative, dtype=np.float64).ravel()
    if not len(values) == len(marked) == len(other):
        raise ValueError(f"{len(values)} scores, but {len(marked)} positives and {len(other)} negatives")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    last = np.flatnonzero(np.append(np.diff(ordered) != 0, True)) if len(ordered) else np.zeros(0, dtype=int)
    return ordered[last].astype(np.float64), np.cumsum(marked[order])[last], np.cumsum(other[order])[last]


def average_precision(scores: Array, positive: Array, negative: Array | None = None) -> float:
    """Return the area under the precision-recall curve as a step function: sum of precision times gain in recall.

    Exact, without a grid of thresholds; the expected value is the prevalence for scores that say nothing.
    NaN where nothing is positive.
    """
    _, true, false = counts(scores, positive, negative)
    if not len(true) or true[-1] <= 0:
        return float("nan")
    gain = np.diff(true, prepend=0.0)
    all_marked = true + false
    precision = np.divide(true, all_marked, out=np.zeros_like(true), where=all_marked > 0)
    return float((precision * gain).sum() / true[-1])


def prevalence(positive: Array, negative: Array | None = None) -> float:
    """Return the share of what is positive: the average precision of a map that says nothing."""
    marked = float(np.sum(positive, dtype=np.float64))
    total = float(np.size(positive)) if negative is None else marked + float(np.sum(negative, dtype=np.float64))
    return marked / total if total else float("nan")


def lift(precision: float, share: float) -> float:
    """Return how many times better than chance: average precision over prevalence."""
    return precision / share if share > 0 else float("nan")


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers, 0 where one is 0, NaN of none."""
    numbers = np.asarray(list(values), dtype=np.float64)
    if not len(numbers) or np.isnan(numbers).any():
        return float("nan")
    return float(np.exp(np.log(numbers).mean())) if (numbers > 0).all() else 0.0


def clustered_error(values: Array, groups: Sequence[Hashable]) -> float:
    """Return the standard error of a mean of values (n,) of which those of one group (n names) may be related.

    That of independent clusters: the root of G / (G - 1) times the sum over G groups of their squared summed
    deviations, over n. With groups of one it is the standard deviation over the root of n. NaN of a single group.
    """
    numbers = np.asarray(values, dtype=np.float64)
    return clustered_sum_error((numbers - numbers.mean()) / len(numbers), groups)


def clustered_sum_error(influence: Array, groups: Sequence[Hashable] | Array) -> float:
    """Return the standard error of a sum of contributions (n,) that are each centred on 0, with groups as the units.

    Liang & Zeger (1986), with the factor G / (G - 1) for few groups. NaN of a single group.
    """
    names, of = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        return math.nan
    sums = np.bincount(of, influence)
    return float(np.sqrt(len(names) / (len(names) - 1) * (sums**2).sum()))


def pointing(scores: Array, truth: Array) -> float:
    """Return 1 where the highest pixel is marked and 0 where it is not (Zhang et al. 2016, the pointing game).

    Of several highest pixels, the share that is marked: a flat map points at random.
    """
    highest = scores == scores.max()
    return float(truth[highest].mean())


def iou(scores: Array, truth: Array, threshold: float) -> float:
    """Return intersection over union of the truth and the pixels of at least `threshold`; 1 where both are empty."""
    marked = scores >= threshold
    union = np.count_nonzero(marked | truth)
    return np.count_nonzero(marked & truth) / union if union else 1.0


def best_iou(scores: Array, positive: Array, negative: Array | None = None) -> tuple[float, float]:
    """Return (IoU, threshold) of the threshold that serves best, over all distinct scores.

    With weights, a threshold marks cells, and intersection and union are their weights. NaN where nothing is positive.
    """
    thresholds, true, false = counts(scores, positive, negative)
    if not len(true) or true[-1] <= 0:
        return float("nan"), float("nan")
    values = true / (true[-1] + false)
    best = int(values.argmax())
    return float(values[best]), float(thresholds[best])


def auc_pr_truncated(scores: Array, truth: Array, thresholds: Array = TRUNCATED_THRESHOLDS) -> float:
    """Return the area of precision over recall between fixed thresholds, as the paper reports it for one map.

    Only recall reached between the highest and the lowest threshold counts, so that even a map of chance stays
    below the prevalence: comparable with the paper's figures for maps in units of the loss, and with nothing else.
    """
    ordered = np.sort(scores[truth].ravel())
    others = np.sort(scores[~truth].ravel())
    if not len(ordered):
        return float("nan")
    falling = np.sort(np.asarray(thresholds, dtype=np.float64))[::-1]
    true = len(ordered) - np.searchsorted(ordered, falling, side="right")
    false = len(others) - np.searchsorted(others, falling, side="right")
    found = true + false
    precision = np.divide(true, found, out=np.zeros(len(found)), where=found > 0)
    return float(np.trapezoid(precision, true / len(ordered)))
