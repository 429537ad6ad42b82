"""Box means, their standard errors, and the greedy choice of disjoint boxes."""

from __future__ import annotations

import numpy as np
import pytest

from typicality.errors import SettingsError
from typicality.mining.boxes import best_boxes, box_means, box_standard_errors, box_variances


def naive_means(one: np.ndarray, side: int) -> np.ndarray:
    height, width = one.shape
    return np.array(
        [
            [one[r : r + side, c : c + side].mean(dtype=np.float64) for c in range(width - side + 1)]
            for r in range(height - side + 1)
        ]
    )


def naive_boxes(means: np.ndarray, side: int, count: int) -> list[tuple[int, int]]:
    """Walk down all boxes, best first, and take each that overlaps none taken so far."""
    places = sorted(np.ndindex(*means.shape), key=lambda p: (-means[p], p))
    taken: list[tuple[int, int]] = []
    for r, c in places:
        if len(taken) < count and all(abs(r - a) >= side or abs(c - b) >= side for a, b in taken):
            taken.append((r, c))
    return taken


def test_means_worked_by_hand():
    """Of 1 2 3 / 4 5 6 the two 2 x 2 boxes average (1+2+4+5)/4 = 3 and (2+3+5+6)/4 = 4."""
    np.testing.assert_array_equal(box_means(np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32), 2), [[3, 4]])


@pytest.mark.parametrize(
    ("shape", "side"), [((1, 1), 1), ((3, 7), 1), ((3, 7), 3), ((7, 3), 2), ((16, 16), 1), ((16, 16), 7), ((9, 9), 9)]
)
def test_means_equal_the_naive_ones(shape, side):
    maps = np.random.default_rng(0).normal(loc=100, size=(2, 3, *shape)).astype(np.float32)
    means = box_means(maps, side)
    assert means.dtype == np.float32
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(means[i], naive_means(maps[i], side), rtol=1e-7)


def test_means_keep_small_scores_beside_large_ones():
    """Typicality is about 1e-4; a cell of 1e3 elsewhere in the map must not drown it (float64 sums)."""
    one = np.full((64, 64), 1e-4, dtype=np.float32)
    one[0, 0] = 1e3
    np.testing.assert_allclose(box_means(one, 4)[10:, 10:], 1e-4, rtol=1e-6)


def test_equal_boxes_tie_exactly():
    assert len(np.unique(box_means(np.full((64, 64), 0.1, dtype=np.float32), 5))) == 1


@pytest.mark.parametrize("side", [0, 4])
def test_a_side_that_does_not_fit_is_the_users_error(side):
    with pytest.raises(SettingsError, match="does not fit"):
        box_means(np.zeros((3, 9), dtype=np.float32), side)


def test_standard_error_worked_by_hand(make_map):
    """Draws 1 and 3 of one cell: mean 2, E[b^2] = 5, variance of the mean (5 - 4) / (2 - 1) = 1; nothing to pool."""
    np.testing.assert_allclose(box_standard_errors(make_map([[[1]], [[3]]]), 1), [[1]])


def test_standard_errors_are_moderated_by_hand(make_map):
    """Two cells with draws (1, 3) and (5, 5): own variances 1 and 0, pooled 1/2.

    With d0 = 4 and d = 1 they become (4/2 + 1)/5 = 0.6 and (4/2 + 0)/5 = 0.4.
    """
    score = make_map([[[1, 5]], [[3, 5]]])
    np.testing.assert_allclose(box_standard_errors(score, 1) ** 2, [[0.6, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(box_standard_errors(score, 1, prior=0) ** 2, [[1, 0]], rtol=1e-6)


def test_one_draw_has_no_error_estimate(make_map):
    score = make_map(np.ones((1, 5, 5)))
    for side in (1, 3, 4, 5):
        assert np.isinf(box_standard_errors(score, side)).all()


def test_equal_draws_have_no_error(make_map):
    score = make_map(np.ones((3, 5, 5)))
    for side in (1, 3, 4, 5):
        np.testing.assert_allclose(box_standard_errors(score, side), 0, atol=1e-10)


def test_unmoderated_dyadic_errors_are_those_of_the_draws(make_map):
    """s / sqrt(n) with the unbiased s, computed directly from the draws' box means."""
    draws = np.random.default_rng(1).normal(size=(6, 9, 12)).astype(np.float32)
    score = make_map(draws)
    for side in (1, 2, 4, 8):
        direct = box_means(draws, side).std(axis=0, ddof=1) / np.sqrt(6)
        np.testing.assert_allclose(box_standard_errors(score, side, prior=0), direct, rtol=1e-4)


@pytest.mark.parametrize(("side", "size"), [(3, 16), (5, 16), (6, 16), (12, 16), (7, 7), (6, 7), (3, 3)])
def test_other_sides_of_white_noise(make_map, side, size):
    """For independent cells the error of a mean of k x k of them is 1 / (k sqrt(n)): linear in log k, so exact."""
    draws = np.random.default_rng(2).normal(size=(400, size, size))
    errors = box_standard_errors(make_map(draws), side)
    assert errors.shape == (size - side + 1, size - side + 1)
    np.testing.assert_allclose(errors.mean(), 1 / (side * np.sqrt(400)), rtol=0.1)


def test_interpolation_reads_boxes_with_the_same_centre(make_map):
    """Noise in the upper left corner only: errors of 3 x 3 boxes are large there and zero far from it."""
    draws = np.zeros((50, 16, 16))
    draws[:, :4, :4] = np.random.default_rng(3).normal(size=(50, 4, 4))
    errors = box_standard_errors(make_map(draws), 3, prior=0)
    assert errors[:2, :2].min() > 0.02
    np.testing.assert_allclose(errors[5:, 5:], 0, atol=1e-10)


def correlated(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Noise (n, size, size) with neighbours alike and a spread that differs over the map by a factor 1.5."""
    white = rng.normal(size=(n, size + 2, size + 2))
    return box_means(white, 3) * np.linspace(1, 1.5, size)[:, None]


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("side", [4, 6])
def test_ninety_percent_intervals_cover_ninety_percent(make_map, n, side):
    """Truth is 0; |score| < 1.645 standard errors must hold for about 90% of boxes, even with two draws."""
    rng = np.random.default_rng(100 * n + side)
    inside = []
    for _ in range(120):
        score = make_map(correlated(rng, n, 16))
        inside.append(np.abs(box_means(score.typicality, side)) < 1.645 * box_standard_errors(score, side))
    assert 0.85 < np.mean(inside) < 0.95


def test_moderation_is_what_makes_few_draws_usable(make_map):
    """Two draws alone give a variance with one degree of freedom, whose intervals cover far too little."""
    rng = np.random.default_rng(7)
    inside = []
    for _ in range(120):
        score = make_map(correlated(rng, 2, 16))
        inside.append(np.abs(box_means(score.typicality, 4)) < 1.645 * box_standard_errors(score, 4, prior=0))
    assert np.mean(inside) < 0.75


def test_variances_do_not_depend_on_the_batch(make_map):
    rng = np.random.default_rng(4)
    scores = [make_map(rng.normal(size=(n, 6, 9))) for n in (1, 2, 5)]
    maps = np.stack([s.typicality for s in scores])
    squares = {k: np.stack([s.squares[k] for s in scores]) for k in scores[0].squares}
    for side in (1, 2, 3, 5, 6):
        batched = box_variances(maps, squares, np.array([1, 2, 5]), side)
        for one, score in zip(batched, scores, strict=True):
            np.testing.assert_array_equal(np.sqrt(one).astype(np.float32), box_standard_errors(score, side))


def test_greedy_worked_by_hand():
    """One row 1 5 4 3 of boxes of side 2: 5 is taken, 1 and 4 overlap it, 3 is left; a third does not fit."""
    rows, columns, scores = best_boxes(np.array([[[1, 5, 4, 3]]], dtype=np.float32), 2, 3)
    np.testing.assert_array_equal(columns[0, :2], [1, 3])
    np.testing.assert_array_equal(rows[0, :2], [0, 0])
    np.testing.assert_array_equal(scores, [[5, 3, -np.inf]])


@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_greedy_equals_the_naive_walk_and_overlaps_nowhere(side, levels):
    """With three levels of scores nearly all boxes tie, and rows and columns decide."""
    means = np.random.default_rng(side).integers(0, levels, size=(20, 9, 13)).astype(np.float32)
    rows, columns, scores = best_boxes(means, side, 6)
    for one, r, c, s in zip(means, rows, columns, scores, strict=True):
        taken = [(int(a), int(b)) for a, b, score in zip(r, c, s, strict=True) if np.isfinite(score)]
        assert taken == naive_boxes(one, side, 6)
        covered = np.zeros((20, 20), dtype=int)
        for a, b in taken:
            covered[a : a + side, b : b + side] += 1
        assert covered.max() == 1


def test_greedy_on_one_cell():
    rows, columns, scores = best_boxes(np.full((2, 1, 1), -3, dtype=np.float32), 1, 2)
    np.testing.assert_array_equal(scores, [[-3, -np.inf]] * 2)
    assert rows[0, 0] == columns[0, 0] == 0
