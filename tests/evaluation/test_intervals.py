"""Resamples of groups against measures of the images that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from typicality import metrics
from typicality.evaluation.intervals import bounds, group_draws, resampled_precision


def test_a_group_drawn_twice_counts_like_two_of_it():
    """Three groups of two images, scores tie; drawn (2, 0, 1) times the first is there twice, the second never."""
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 6, (5, 7)).astype(float) for _ in range(6)]
    truths = [rng.random((5, 7)) < 0.2 for _ in range(6)]
    found = resampled_precision(maps, truths, np.repeat(np.arange(3), 2), np.array([[1, 1, 1], [2, 0, 1]]))
    for value, rows in zip(found, ([0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 4, 5]), strict=True):
        scores, truth = (np.stack([x[i] for i in rows]) for x in (maps, truths))
        assert value == pytest.approx(metrics.average_precision(scores, truth))


def test_a_resample_in_which_nothing_is_marked_has_no_precision():
    maps, truths = [np.ones((2, 2)), np.ones((2, 2))], [np.ones((2, 2), bool), np.zeros((2, 2), bool)]
    found = resampled_precision(maps, truths, np.arange(2), np.array([[0, 2], [2, 0]]))
    assert np.isnan(found[0])
    assert found[1] == 1
    assert bounds(np.full(4, np.nan)) is None
    assert bounds(np.array([np.nan, 0.2, 0.4])) == pytest.approx((0.21, 0.39))


def test_related_images_make_the_interval_wider():
    """Ten groups of ten images that are all good or all bad, against a hundred images of their own."""
    rng = np.random.default_rng(0)
    truths = [np.eye(4, dtype=bool)] * 100
    good = np.repeat(rng.random(10) < 0.5, 10)
    maps = [truth * float(g) + rng.random((4, 4)) for truth, g in zip(truths, good, strict=True)]
    widths = []
    for groups in (np.repeat(np.arange(10), 10), np.arange(100)):
        found = bounds(resampled_precision(maps, truths, groups, group_draws(groups.max() + 1, 200)))
        assert found is not None
        widths.append(found[1] - found[0])
    assert widths[0] > 1.7 * widths[1]


def test_large_images_are_thinned_alike(monkeypatch: pytest.MonkeyPatch):
    """Every second row and column of blocks of two: the same value from a quarter of the pixels."""
    rng = np.random.default_rng(0)
    cells, marked = rng.random((8, 8)), rng.random((8, 8)) < 0.3
    whole = [np.kron(x, np.ones((2, 2), x.dtype)) for x in (cells, marked)]
    draws = np.array([[1]])
    expected = resampled_precision([whole[0]], [whole[1]], np.zeros(1, int), draws)
    monkeypatch.setattr("typicality.evaluation.intervals.PIXELS", 64)
    assert resampled_precision([whole[0]], [whole[1]], np.zeros(1, int), draws) == pytest.approx(expected)
