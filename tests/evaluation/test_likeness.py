"""Distances, alignment, retrieval and intervals with answers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from typicality.evaluation.likeness import (
    coarse_edges,
    edge_alignment,
    edges,
    own_is_nearest,
    rate_interval,
    reduction,
    reduction_interval,
    root_mean_square,
    uncorrelated,
)


def square(y: int, x: int, inside: float = 1.0, outside: float = -1.0) -> np.ndarray:
    """(1, 3, 32, 32) with a square of 10 pixels."""
    picture = np.full((1, 3, 32, 32), outside, dtype=np.float32)
    picture[..., y : y + 10, x : x + 10] = inside
    return picture


def test_root_mean_square_is_one_number_a_picture():
    a, b = np.zeros((2, 3, 4, 4)), np.stack([np.full((3, 4, 4), 2.0), np.zeros((3, 4, 4))])
    np.testing.assert_allclose(root_mean_square(a, b), [2, 0])


def test_contrast_does_not_change_a_correlation():
    """0.3 x + 0.2 is x to a correlation; its negative is as far as can be; a flat picture is like nothing."""
    picture = square(4, 4)
    for other, distance in ((0.3 * picture + 0.2, 0), (-picture, 2), (np.zeros_like(picture), 1)):
        assert uncorrelated(picture, other)[0] == pytest.approx(distance, abs=1e-6)


def test_a_step_from_black_to_white_has_edge_one():
    """Sobel's kernel sums to 4 on either side of a vertical step of height 1."""
    picture = np.full((1, 3, 8, 8), -1.0)
    picture[..., 4:] = 1
    found = edges(picture)
    assert found.max() == pytest.approx(1)
    assert found[0, 4, 0] == 0


def test_a_restyled_square_aligns_and_another_picture_does_not():
    """Colours turned round and moved by two pixels: the same outline. A square elsewhere: another one."""
    assert edge_alignment(square(8, 8), square(10, 9, -1.0, 1.0))[0] == pytest.approx(1, abs=0.01)
    assert edge_alignment(square(2, 2), square(18, 18))[0] < 0.2
    assert edge_alignment(square(8, 8), square(8, 8, 0, 0))[0] == 0


def test_the_own_subject_is_found_by_its_layout():
    gallery = np.concatenate([square(2, 2), square(2, 18), square(18, 2), square(18, 18)])
    queries = np.concatenate([square(2, 2, 0.2, -0.5), square(18, 2, -1.0, 0.5)])
    found = own_is_nearest(coarse_edges(queries), coarse_edges(gallery), np.array([0, 1]))
    np.testing.assert_array_equal(found, [1, 0])


def test_a_distance_halved_is_a_reduction_of_a_half():
    before = np.array([1.0, 3.0, 2.0])
    assert reduction(before / 2, before) == pytest.approx(0.5)
    assert reduction(before * 1.2, before) == pytest.approx(-0.2)
    low, high = reduction_interval(before / 2, before)
    assert low == pytest.approx(high) == pytest.approx(0.5)  # every subject by the same share: nothing to vary


def test_intervals_hold_the_truth_nine_times_in_ten():
    """Shares of 40 draws at 0.45, or of 40 subjects with four images that are all hits or none: about 90% of 200 do."""
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for i in range(200):
        hits = (rng.random(40) < 0.45).astype(float)
        related = rate_interval(np.repeat(hits, 4), [str(k // 4) for k in range(160)], seed=i)
        for at, (low, high) in enumerate((rate_interval(hits, seed=i), related)):
            held[at] += low <= 0.45 <= high
    assert (held / 200 >= 0.82).all()
    assert (held / 200 <= 0.96).all()


def test_a_share_of_all_has_an_interval():
    """Wilson at n of n: n / (n + 2.706), 0.816 for twelve subjects and 0.27 for one; none of twelve mirrors it."""
    assert rate_interval(np.ones(12)) == pytest.approx((0.816, 1), abs=1e-3)
    assert rate_interval(np.zeros(12)) == pytest.approx((0, 0.184), abs=1e-3)
    assert rate_interval(np.ones(1)) == pytest.approx((0.27, 1), abs=1e-3)
    assert rate_interval(np.ones(24), ["a", "b", "c"] * 8) == pytest.approx((0.526, 1), abs=1e-3)  # three subjects


def test_one_subject_has_no_interval_of_a_reduction():
    assert reduction_interval(np.array([0.5]), np.array([1.0])) is None
