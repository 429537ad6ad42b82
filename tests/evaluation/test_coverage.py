"""Purity and coverage by hand, on rankings of a few images."""

from __future__ import annotations

import numpy as np
import pytest

from typicality.evaluation.coverage import (
    area,
    chance_area,
    group_weights,
    interval,
    purity_curve,
    purity_when_reached,
)


def one_label(ranking: list[bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One element that ranks images in the given order; True carries its label, the others a second one."""
    carries = np.array(ranking)
    scores = np.arange(len(ranking), 0, -1.0)[:, None]
    return scores, np.array([0]), np.stack([carries, ~carries], axis=1)


def test_area_by_hand():
    """Right, wrong, right, wrong: purity is 1 where the first image is reached and 2/3 at the second."""
    scores, of, truth = one_label([True, False, True, False])
    reached = purity_when_reached(scores, of, truth)
    assert reached[:, 0] == pytest.approx([1, np.nan, 2 / 3, np.nan], nan_ok=True)
    assert area(reached[:, :1]) == pytest.approx(5 / 6)


def test_a_label_without_elements_reaches_nothing():
    """The second label has two images and no element: its area is 0, and the mean over labels is halved."""
    scores, of, truth = one_label([True, False, True, False])
    reached = purity_when_reached(scores, of, truth)
    assert reached[:, 1] == pytest.approx([np.nan, 0, np.nan, 0], nan_ok=True)
    assert area(reached) == pytest.approx(5 / 12)


def test_elements_share_what_they_reach():
    """Two elements, each of which finds one of two images first, reach both at depth 1 with purity 1."""
    scores = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    truth = np.array([[True, False], [True, False], [False, True]])
    together = purity_when_reached(scores, np.array([0, 0]), truth)
    alone = purity_when_reached(scores[:, :1], np.array([0]), truth)
    assert area(together[:, :1]) == pytest.approx(1)
    assert area(alone[:, :1]) == pytest.approx((1 + 2 / 3) / 2)


def test_only_order_matters():
    """A monotone change of an element's scores changes nothing."""
    rng = np.random.default_rng(0)
    scores, of = rng.normal(size=(40, 6)), np.array([0, 0, 0, 1, 1, 1])
    truth = np.eye(2, dtype=bool)[rng.integers(0, 2, 40)]
    assert np.array_equal(
        purity_when_reached(scores, of, truth), purity_when_reached(np.exp(3 * scores), of, truth), equal_nan=True
    )


def test_elements_that_know_nothing_have_the_prevalence():
    """Random scores for four labels of equal frequency: area 0.25, as with permuted labels."""
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(4), 20)
    truth = np.eye(4, dtype=bool)[np.arange(400) % 4]
    found = [area(purity_when_reached(rng.normal(size=(400, 80)), of, truth)) for _ in range(10)]
    assert np.mean(found) == pytest.approx(0.25, abs=0.02)
    assert chance_area(rng.normal(size=(400, 80)), of, truth, rng, 10) == pytest.approx(0.25, abs=0.02)


def test_curve_is_the_walk():
    """Right, wrong, right, wrong: half of the images are covered at purity 1, all at 2/3."""
    scores, of, truth = one_label([True, False, True, False])
    curve = purity_curve(scores, of, truth)
    assert curve[49] == pytest.approx(1)
    assert curve[50] == pytest.approx(2 / 3)
    assert curve.mean() == pytest.approx(area(purity_when_reached(scores, of, truth)[:, :1]))


def test_groups_are_resampled_whole():
    weights = group_weights(["a", "a", "b", "c"], np.random.default_rng(0), 50)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_interval_adds_both_errors():
    """Seeds 1 and 3 (variance of their mean 1), images without spread: 2 +- 1.645; with spread it is wider."""
    values = np.array([1.0, 3.0])
    assert interval(values, np.zeros((5, 2))) == pytest.approx((2, 0.355, 3.645))
    mean, low, high = interval(values, np.arange(10.0).reshape(5, 2))
    assert mean == 2
    assert high - low > 2 * 1.645
