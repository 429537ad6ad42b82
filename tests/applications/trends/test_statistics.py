"""Rates, tests of trend and neighbours on arrays with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from typicality.applications.trends.detection import elements_of, grid
from typicality.applications.trends.plots import similarity_svg, timelines_svg
from typicality.applications.trends.statistics import (
    label_groups,
    label_means,
    label_rates,
    life_span,
    neighbour_shares,
    trend_test,
)


def paired(n_groups: int, rates: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every group has one observation a label; detection by chance at the label's rate."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(len(rates)), n_groups)
    groups = np.repeat(np.arange(n_groups), len(rates))
    return (rng.random(len(labels)) < np.array(rates)[labels]).astype(float)[:, None], labels, groups


def test_rates_are_counts_of_what_is_known():
    """Label 0: one of two; label 1: of three, one does not count, and one of the other two is a hit."""
    values = np.array([[1.0], [0.0], [1.0], [1.0], [0.0]])
    known = np.array([[True], [True], [True], [False], [True]])
    labels = np.array([0, 0, 1, 1, 1])
    mean, low, high = label_means(values, known, labels, np.arange(5), 2)
    np.testing.assert_allclose(mean[:, 0], [0.5, 0.5])
    assert (low <= mean).all()
    assert (mean <= high).all()


def test_a_label_without_observations_is_unknown():
    values, known = np.array([[1.0], [0.0]]), np.array([[True], [False]])
    mean, low, high = label_means(values, known, np.array([0, 1]), np.arange(2), 2)
    assert np.isnan([mean[1, 0], low[1, 0], high[1, 0]]).all()


def test_relatives_count_as_one():
    """20 groups of 5 equal images give the interval of 20 images, which is wider than that of 100."""
    rng = np.random.default_rng(0)
    hits = (rng.random(20) < 0.5).astype(float)
    values, labels = np.repeat(hits, 5)[:, None], np.zeros(100, dtype=int)
    known = np.ones_like(values, dtype=bool)
    widths = []
    for groups in (np.repeat(np.arange(20), 5), np.arange(100)):
        _, low, high = label_means(values, known, labels, groups, 1)
        widths.append(float(high[0, 0] - low[0, 0]))
    assert widths[0] > 1.7 * widths[1]  # sqrt(5) = 2.2 in expectation


def test_rates_of_none_and_all_have_the_bounds_of_as_many_groups():
    """Wilson at 0 of n is z^2 / (n + z^2), z = 1.645: 0.351 for n = 5, which here are ten images of five groups; 3 of 3
    mirrors 0 of 3, 1 - 0.474. A rate in between keeps the bootstrap's interval."""
    values = np.array([0] * 10 + [1] * 3 + [0, 1] * 10, dtype=bool)[:, None]
    labels = np.repeat([0, 1, 2], [10, 3, 20])
    groups = np.concatenate([np.repeat(np.arange(5), 2), np.arange(5, 28)])
    known = np.ones_like(values)
    mean, low, high = label_rates(values, known, labels, groups, 4)
    np.testing.assert_allclose(mean[:, 0], [0, 1, 0.5, np.nan])
    np.testing.assert_allclose([low[0, 0], high[0, 0]], [0, 2.706 / 7.706], atol=1e-3)
    np.testing.assert_allclose([low[1, 0], high[1, 0]], [3 / 5.706, 1], atol=1e-3)
    _, lower, higher = label_means(values.astype(float), known, labels, groups, 4)
    assert (low[2, 0], high[2, 0]) == (lower[2, 0], higher[2, 0])
    assert np.isnan([low[3, 0], high[3, 0]]).all()


@pytest.mark.parametrize("n_groups", [1, 2, 3, 5, 7, 8])
def test_intervals_of_few_groups_hold_the_truth(n_groups: int):
    """Cameras of twenty images see an element in shares of their own, 0.4 in the mean; twelve more stand elsewhere. 300
    intervals of 90%: the bootstrap alone holds 0.4 in 0.6 of them with two cameras."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(n_groups + 12), 20)
    labels = (groups >= n_groups).astype(int)
    values = rng.random((len(groups), 300)) < rng.beta(2, 3, (n_groups + 12, 300))[groups]
    mean, low, high = label_rates(values, np.ones_like(values), labels, groups, 2)
    assert ((low[0] <= 0.4) & (high[0] >= 0.4)).mean() >= 0.85
    assert ((low <= mean) & (mean <= high)).all()


def test_the_interval_of_two_groups_is_at_least_that_of_two_trials():
    """Wilson at 1 of 2, z^2 = 2.706: centre 0.5, half width 1.645 x sqrt(1/8 + 2.706/16) / (1 + 1.353) = 0.379.

    Resamples of groups with 0.4 and 0.6 lie between these.
    """
    values = np.array([1, 1, 0, 0, 0, 1, 1, 1, 0, 0], dtype=bool)[:, None]
    labels, groups = np.zeros(10, dtype=int), np.repeat([0, 1], 5)
    _, low, high = label_rates(values, np.ones_like(values), labels, groups, 1)
    np.testing.assert_allclose([low[0, 0], high[0, 0]], [0.121, 0.879], atol=1e-3)


def test_groups_are_counted_where_they_are_known():
    """Group 0 has two images of label 0; group 1 one of 0 and one of 1, which does not count. Label 2 is empty."""
    known = np.array([[True], [True], [True], [False]])
    found = label_groups(known, np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 3)
    np.testing.assert_array_equal(found, [[2], [0], [0]])


def test_a_rise_is_found_and_its_slope_is_right():
    """10%, 30%, 50%, 70%: 20 points a label."""
    values, labels, groups = paired(150, [0.1, 0.3, 0.5, 0.7])
    slope, p_value = trend_test(values, np.ones_like(values, dtype=bool), labels, groups, permutations=499)
    assert slope[0] == pytest.approx(0.2, abs=0.03)
    assert p_value[0] == pytest.approx(1 / 500)


def test_without_a_trend_p_values_are_uniform():
    """Under the null, 5% of the p-values are at most 5%, with groups of four and with lone observations."""
    rng = np.random.default_rng(1)
    base = rng.random((60, 1, 200)) < rng.random((60, 1, 1))  # what a group has, it has in all labels
    flip = rng.random((60, 4, 200)) < 0.2
    values = np.where(flip, ~base, base).reshape(240, 200).astype(float)
    labels = np.tile(np.arange(4), 60)
    known = np.ones_like(values, dtype=bool)
    related, alone = np.repeat(np.arange(60), 4), np.arange(240)
    for data, groups in ((values, related), (rng.permuted(values, axis=0), alone)):
        _, p_value = trend_test(data, known, labels, groups, permutations=199)
        assert 0.01 <= (p_value <= 0.05).mean() <= 0.1


@pytest.mark.parametrize("followed", [0, 15])
def test_groups_of_unequal_sizes_keep_the_level(followed: int):
    """Cameras of one label have 20 images where the order begins and ends and 2 between, where rates thus vary more.
    Without a trend 5% of 400 p-values are at most 5%, also beside cameras that see two labels."""
    rng = np.random.default_rng(0)
    of_camera = np.repeat(np.arange(4), 20)
    sizes = np.array([20, 2, 2, 20])[of_camera]
    labels = np.concatenate([np.repeat(of_camera, sizes), np.tile([1, 1, 1, 1, 2, 2], followed)])
    groups = np.concatenate([np.repeat(np.arange(80), sizes), np.repeat(np.arange(80, 80 + followed), 6)])
    values = (rng.random((len(groups), 400)) < rng.beta(0.6, 0.9, (80 + followed, 400))[groups]).astype(float)
    _, p_value = trend_test(values, np.ones_like(values, dtype=bool), labels, groups, permutations=199)
    assert 0.01 <= (p_value <= 0.05).mean() <= 0.1


def test_a_fall_within_subjects_is_found_though_later_subjects_have_more():
    """84 subjects have two labels each that follow one another. Subjects of early labels never show it, those of late
    ones always, but 14 show it first and then not. Of 84 changes these are -1 and 70 are 0: 1/6 less a label."""
    start = np.arange(84) % 6
    pair = np.where(start[:, None] < 3, [0.0, 0.0], [1.0, 1.0])
    pair[np.arange(84) < 14] = [1.0, 0.0]
    labels, groups = (start[:, None] + [0, 1]).ravel(), np.repeat(np.arange(84), 2)
    slope, p_value = trend_test(pair.reshape(-1, 1), np.ones((168, 1), dtype=bool), labels, groups, permutations=999)
    assert slope[0] == pytest.approx(-1 / 6)
    assert p_value[0] < 0.01


def test_a_camera_counts_once_in_the_slope():
    """Label 0: in all hundred images of one camera, not in the one of another, so 1/2 in the mean; label 1: in none."""
    groups = np.array([0] * 100 + [1, 2, 3])
    labels, values = (groups > 1).astype(int), (groups == 0).astype(float)[:, None]
    slope, _ = trend_test(values, np.ones_like(values, dtype=bool), labels, groups, 9)
    assert slope[0] == pytest.approx(-0.5)


def test_constant_detections_are_no_trend():
    slope, p_value = trend_test(np.ones((8, 1)), np.ones((8, 1), dtype=bool), np.arange(8) % 4, np.arange(8), 99)
    assert slope[0] == 0
    assert p_value[0] == 1


def test_unknown_observations_take_no_part():
    """The second half would reverse the trend, if it counted."""
    labels = np.tile([0, 1], 40)
    values = np.concatenate([np.tile([0.0, 1.0], 20), np.tile([1.0, 0.0], 20)])[:, None]
    known = (np.arange(80) < 40)[:, None]
    slope, _ = trend_test(values, known, labels, np.repeat(np.arange(40), 2), 49)
    assert slope[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([0.5, 0.4, 0.1, 0.0], (0, 0, 2)),
        ([0.0, 0.1, 0.4, 0.5], (2, 3, None)),
        ([0.0, 0.4, 0.1, 0.0], (1, 1, 2)),
        ([0.3, 0.3, 0.3, 0.3], (0, 0, None)),
        ([0.0, 0.0, 0.0, 0.0], None),
        ([np.nan, np.nan, np.nan, np.nan], None),
        ([0.5, 0.5, np.nan, np.nan], (0, 0, None)),
        ([0.5, 0.5, np.nan, 0.1], (0, 0, 3)),
        ([np.nan, 0.5, 0.4, 0.1], (None, 1, 3)),
        ([0.0, np.nan, 0.5, 0.1], (None, 2, 3)),
        ([np.nan, 0.1, 0.5, np.nan], (2, 2, None)),
    ],
)
def test_when_an_element_appears_peaks_and_vanishes(rates: list[float], expected: tuple | None):
    """Present is half of the peak or more; vanished is the first label after the last presence; never found is None.

    Of labels that were not searched (NaN) nothing is said: neither that it is gone there, nor that it came after them.
    """
    assert life_span(np.array(rates)) == expected


def test_neighbours_of_two_pairs_of_labels():
    """Labels 0 and 1 lie together, 2 is apart with its own: rows sum to 1, and a group's own elements do not count."""
    rng = np.random.default_rng(0)
    means = np.array([[1.0, 0, 0], [0.98, 0.2, 0], [0, 0, 1.0]])
    labels = np.repeat(np.arange(3), 30)
    features = means[labels] + rng.normal(0, 0.1, (90, 3))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    found = neighbour_shares(features, labels, np.arange(90), 3)
    np.testing.assert_allclose(found.share.sum(1), 1)
    assert found.share[2, 2] > 0.95
    assert found.share[0, 1] > found.share[0, 2]
    assert found.lift[2, 2] > 2
    own = neighbour_shares(features, labels, labels, 3)
    assert (np.diag(own.share) == 0).all()


def test_a_lift_has_an_interval_over_groups():
    """Without structure it holds chance; a lift of 0 has a lower bound of 0 and an upper one that ten groups allow."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 100)
    features = rng.normal(size=(200, 16))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    found = neighbour_shares(features, labels, np.arange(200), 2)
    assert (found.low < 1).all()
    assert (found.high > 1).all()
    assert ((found.low < found.lift) & (found.lift < found.high)).all()
    apart = neighbour_shares(np.eye(2)[np.repeat([0, 1], 10)], np.repeat([0, 1], 10), np.arange(20), 2)
    assert apart.lift[0, 1] == apart.low[0, 1] == 0
    assert 0.2 < apart.high[0, 1] < 1  # Wilson: 0.21 of ten, over 10 / 19 by chance


# --------------------------------------------------------------------------------------------------- detection


def test_the_grid_covers_an_image_to_its_edges():
    """Side 4, step 2 over 8 x 10 cells: rows 0, 2, 4; columns 0, 2, 4, 6."""
    places = [(p.row, p.column) for p in grid("a", 8, 10, 4)]
    assert places == [(r, c) for r in (0, 2, 4) for c in (0, 2, 4, 6)]
    assert [(p.row, p.column) for p in grid("a", 5, 4, 4)] == [(0, 0), (1, 0)]


def test_the_radius_is_that_of_members_left_out():
    """Three equal members have radius 1; two opposite ones are unlike each other."""
    same = elements_of(np.tile([1.0, 0.0], (3, 1)), np.zeros(3, dtype=int), 1)
    assert same.radii[0] == pytest.approx(1)
    np.testing.assert_allclose(same.centroids, [[1, 0]])
    apart = elements_of(np.array([[1.0, 0.0], [0.0, 1.0]]), np.zeros(2, dtype=int), 1)
    assert apart.radii[0] == pytest.approx(0)


# ------------------------------------------------------------------------------------------------------- plots


def test_plots_are_the_same_every_time():
    at = [{"label": x, "rate": r, "low": r, "high": r} for x, r in (("2016", 0.1), ("2024", None))]
    line = {"label": "2016", "cluster": 3, "direction": "rise", "at": at}
    first, second = (timelines_svg([line] * 5, ["2016", "2024"], "year") for _ in range(2))
    assert first == second
    assert first.lstrip().startswith("<?xml")
    assert "<svg" in similarity_svg(np.eye(3), ["a", "b", "c"])


@pytest.mark.parametrize("label", ["$5_$10", "$50-$100"])
def test_labels_with_dollars_are_drawn_as_they_are(label: str):
    """Matplotlib would read what lies between two of them as a formula: the first is none, of the second they vanish.

    Text is drawn as outlines of letters: as many as of a word of that length.
    """

    def letters(label: str) -> list[int]:
        at = [{"label": x, "rate": 0.1, "low": 0.0, "high": 0.2} for x in (label, "more")]
        line = {"label": label, "cluster": 0, "direction": "none", "at": at}
        drawn = (timelines_svg([line], [label, "more"], label), similarity_svg(np.eye(2), [label, "more"]))
        return [picture.count("<use xlink:href") for picture in drawn]

    assert letters(label) == letters("a" * len(label))


def test_a_trend_over_labels_that_whole_groups_carry_is_found():
    """Five images of each of 60 cameras, of which each stands in one place: cameras exchange their places."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    labels = np.repeat(np.arange(60) % 4, 5)
    rising = rng.random((300, 1)) < 0.2 + 0.15 * labels[:, None]
    same = np.repeat(rng.random((60, 1)) < 0.5, 5, axis=0)  # a camera sees it always or never
    values, known = np.hstack([rising, same]).astype(float), np.ones((300, 2), dtype=bool)
    _, p_value = trend_test(values, known, labels, groups, permutations=999)
    assert p_value[0] < 0.01
    assert p_value[1] > 0.05
