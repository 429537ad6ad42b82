"""Measures of maps: against answers worked out by hand, brute force over thresholds, and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from typicality import metrics


def test_average_precision_by_hand():
    """Ranked + - + -: precision 1 at recall 1/2 and 2/3 at recall 1, so (1 + 2/3) / 2 = 5/6."""
    assert metrics.average_precision(np.array([4.0, 3, 2, 1]), np.array([1, 0, 1, 0], bool)) == pytest.approx(5 / 6)


@pytest.mark.parametrize("levels", [3, 10, 10_000])
def test_average_precision_is_that_of_scikit_learn_with_and_without_ties(levels: int):
    rng = np.random.default_rng(levels)
    scores, truth = rng.integers(0, levels, 500) / levels, rng.random(500) < 0.2
    assert metrics.average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores))


def test_order_within_ties_decides_nothing():
    """All scores equal: the average precision is the prevalence, wherever the positives stand."""
    for truth in (np.array([1, 1, 0, 0, 0], bool), np.array([0, 0, 0, 1, 1], bool)):
        assert metrics.average_precision(np.zeros(5), truth) == pytest.approx(0.4)


def test_weights_are_pixels_of_equal_score():
    """A cell that is one quarter marked counts like four tied pixels of which one is marked."""
    rng = np.random.default_rng(0)
    scores, marked = rng.random(40), rng.integers(0, 5, 40)
    pixels = np.repeat(scores, 4)
    truth = (np.arange(4)[None] < marked[:, None]).ravel()
    weights = (marked / 4, 1 - marked / 4)
    assert metrics.average_precision(scores, *weights) == pytest.approx(metrics.average_precision(pixels, truth))
    assert metrics.prevalence(*weights) == pytest.approx(truth.mean())
    assert metrics.best_iou(scores, *weights) == pytest.approx(metrics.best_iou(pixels, truth))


def test_without_a_positive_there_is_no_precision():
    assert np.isnan(metrics.average_precision(np.arange(3.0), np.zeros(3, bool)))
    assert np.isnan(metrics.best_iou(np.arange(3.0), np.zeros(3, bool))[0])
    assert np.isnan(metrics.auc_pr_truncated(np.arange(3.0), np.zeros(3, bool)))


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        metrics.average_precision(np.array([1.0, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="2 scores"):
        metrics.average_precision(np.zeros(2), np.zeros(3, bool))


def test_best_iou_is_that_of_all_thresholds():
    rng = np.random.default_rng(1)
    truth = rng.random((12, 9)) < 0.3
    scores = (truth + rng.normal(0, 0.7, truth.shape)).round(1)
    best, threshold = metrics.best_iou(scores, truth)
    assert best == pytest.approx(max(metrics.iou(scores, truth, t) for t in np.unique(scores)))
    assert metrics.iou(scores, truth, threshold) == pytest.approx(best)


def test_iou_by_hand():
    """Marked: the last two; true: the middle two; one in common of three."""
    scores, truth = np.array([0.0, 1, 2, 3]), np.array([0, 1, 1, 0], bool)
    assert metrics.iou(scores, truth, 2.0) == pytest.approx(1 / 3)
    assert metrics.iou(scores, np.zeros(4, bool), 9.0) == 1.0


def test_pointing_and_lift():
    truth = np.array([[1, 0], [0, 0]], bool)
    assert metrics.pointing(np.array([[3.0, 1], [1, 1]]), truth) == 1.0
    assert metrics.pointing(np.array([[1.0, 3], [1, 1]]), truth) == 0.0
    assert metrics.pointing(np.zeros((2, 2)), truth) == 0.25
    assert metrics.lift(0.5, metrics.prevalence(truth)) == 2.0
    assert metrics.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert metrics.geometric_mean([2.0, 0.0]) == 0.0


def test_truncated_area_counts_only_between_the_papers_thresholds():
    """A map of chance in [0, 1) is above 2e-2 nearly everywhere: no recall is left to integrate over, although the
    average precision is the prevalence. A perfect map whose scores lie among the thresholds gets nearly all."""
    rng = np.random.default_rng(2)
    truth = rng.random(4000) < 0.3
    chance = rng.random(4000)
    assert metrics.auc_pr_truncated(chance, truth) < 0.1 * metrics.average_precision(chance, truth)
    perfect = np.where(truth, 10.0 ** rng.uniform(-5.5, -2, 4000), -1.0)
    assert metrics.auc_pr_truncated(perfect, truth) > 0.95


def test_truncated_area_is_that_of_a_loop_over_thresholds():
    """The published definition, literally: counts above each threshold, precision 0 where nothing is found."""
    rng = np.random.default_rng(3)
    truth = rng.random(300) < 0.2
    scores = rng.normal(0, 1e-3, 300) + 1e-3 * truth
    precision, recall = [], []
    for threshold in metrics.TRUNCATED_THRESHOLDS:
        true, found = np.sum(scores[truth] > threshold), np.sum(scores > threshold)
        precision.append(true / found if found else 0.0)
        recall.append(true / truth.sum())
    assert metrics.auc_pr_truncated(scores, truth) == pytest.approx(np.trapezoid(precision, recall))


def test_relatives_count_once_in_an_error():
    """Groups of one: the deviation over the root of n. Each value four times: the same error, not half of it. By hand:
    (0, 0) and (1, 1) sum to -1 and 1 about the mean; root of 2 / 1 times 2, over 4, is 0.5. One group tells nothing."""
    values = np.random.default_rng(0).random(30)
    alone = metrics.clustered_error(values, range(30))
    assert alone == pytest.approx(values.std(ddof=1) / np.sqrt(30))
    assert metrics.clustered_error(np.repeat(values, 4), np.repeat(range(30), 4).tolist()) == pytest.approx(alone)
    assert metrics.clustered_error(np.array([0, 0, 1, 1]), ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert np.isnan(metrics.clustered_error(np.ones(3), ["a"] * 3))
