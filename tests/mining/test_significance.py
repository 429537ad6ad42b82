"""p-values: exact where that is cheap, honest where nothing is known."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from typicality.config import DatasetSettings
from typicality.dataset import load_dataset
from typicality.mining.significance import (
    adjusted_p_values,
    choose_controls,
    detection_p_values,
    group_sizes,
    sign_flip_p_value,
)


def test_sign_flips_worked_by_hand():
    """Groups 1, 2, 3: of the 8 sign patterns only the observed one sums to 6, so p = 1/8.

    For -1, 2, 3 (sum 4) the patterns 6 and 4 reach it: p = 2/8. For 0, 0 every pattern does: p = 1.
    """
    assert sign_flip_p_value(np.array([1, 2, 3]), np.arange(3)) == 1 / 8
    assert sign_flip_p_value(np.array([-1, 2, 3]), np.arange(3)) == 2 / 8
    assert sign_flip_p_value(np.zeros(2), np.arange(2)) == 1


def test_one_image_is_one_observation():
    """A hundred patches of one image prove no more than one: p = 1/2."""
    assert sign_flip_p_value(np.ones(100), np.zeros(100)) == 0.5
    assert sign_flip_p_value(np.array([5.0, -1.0, 1.0]), np.array(["a", "a", "b"])) == 0.25


def test_unknown_specificity():
    assert np.isnan(sign_flip_p_value(np.full(3, np.nan), np.arange(3)))
    assert sign_flip_p_value(np.array([1.0, np.nan]), np.arange(2)) == 0.5


def test_random_patterns_agree_with_all_of_them(monkeypatch):
    values = np.random.default_rng(0).normal(0.3, size=12)
    exact = sign_flip_p_value(values, np.arange(12))
    monkeypatch.setattr("typicality.mining.significance.EXACT_GROUPS", 0)
    drawn = sign_flip_p_value(values, np.arange(12), seed=1)
    assert drawn == pytest.approx(exact, abs=0.01)
    assert drawn == sign_flip_p_value(values, np.arange(12), seed=1)


@pytest.mark.parametrize("groups", [8, 30])
def test_level_under_the_null(groups):
    """Symmetric noise falls below the 10% level in about 10% of cases, whatever its spread."""
    rng = np.random.default_rng(groups)
    p = [sign_flip_p_value(rng.normal(size=groups) * rng.exponential(), np.arange(groups)) for _ in range(400)]
    assert 0.06 < np.mean(np.array(p) <= 0.1) < 0.14


def test_adjustment_worked_by_hand():
    """p = 0.01, 0.04, 0.03 of m = 3: sorted p * 3 / rank = 0.03, 0.045, 0.04; the running minimum from the end is
    0.03, 0.04, 0.04. A cluster without a test is not counted."""
    np.testing.assert_allclose(adjusted_p_values(np.array([0.01, 0.04, 0.03])), [0.03, 0.04, 0.04])
    got = adjusted_p_values(np.array([0.01, np.nan, 0.04, 0.03]))
    np.testing.assert_allclose(got, [0.03, np.nan, 0.04, 0.04])


def test_adjusted_values_are_probabilities():
    p = np.random.default_rng(1).uniform(size=50)
    adjusted = adjusted_p_values(p)
    assert (adjusted >= p).all()
    assert adjusted.max() <= 1
    np.testing.assert_array_equal(np.argsort(adjusted[np.argsort(p)], kind="stable"), np.arange(50))
    assert adjusted_p_values(np.array([])).shape == (0,)
    assert adjusted_p_values(np.array([0.3])) == 0.3


def test_detections_worked_by_hand():
    """Two own images and two controls: of the 6 ways to call two of them own, one has both detections, so p is 1/6.

    A cluster that every image contains tells nothing: p = 1.
    """
    detected = np.array([[1, 1], [1, 1], [0, 1], [0, 1]])
    p = detection_p_values(detected, np.array([True, True, False, False]), np.arange(4), np.zeros(4))
    assert p == pytest.approx([1 / 6, 1], abs=0.01)
    assert np.isnan(detection_p_values(detected, np.ones(4, dtype=bool), np.arange(4), np.zeros(4))).all()


def test_relatives_are_one_observation_and_folds_are_not_mixed():
    """Twenty own images of one group with the cluster, against three groups without: p = 1/4, not 1e-6.

    And where each fold has only one sort of images, nothing can be permuted: p = 1.
    """
    detected = np.r_[np.ones(20), np.zeros(3)][:, None]
    groups = np.r_[np.zeros(20), 1, 2, 3]
    own = groups == 0
    assert detection_p_values(detected, own, groups, np.zeros(23)) == pytest.approx([0.25], abs=0.02)
    assert detection_p_values(detected, own, groups, own) == [1]


@pytest.mark.parametrize("relatives", [1, 3])
def test_detection_level_and_power(relatives, monkeypatch):
    """Random labels, groups alike, images of very different richness: p is uniform or larger. Then an effect."""
    monkeypatch.setattr("typicality.mining.significance.PATTERNS", 999)
    rng = np.random.default_rng(relatives)
    groups = np.repeat(np.arange(60), relatives)
    rich = rng.beta(0.5, 2, 60)[groups][:, None]
    null, real = [], []
    for seed in range(60):
        own = (rng.permutation(60) < 40)[groups]
        detected = rng.random((len(groups), 5)) < rich
        null += detection_p_values(detected, own, groups, groups % 2, seed).tolist()
        planted = detected[:, :1] | (own[:, None] & (rng.random((len(groups), 1)) < 0.5))
        real += detection_p_values(planted, own, groups, groups % 2, seed).tolist()
    assert np.mean(np.array(null) <= 0.05) < 0.08
    assert 0.25 < np.mean(np.array(null) <= 0.5) < 0.6  # not conservative beyond use; ties of small counts make it so
    assert np.mean(np.array(real) <= 0.05) > 0.7


@pytest.mark.parametrize(("own_images", "control_images"), [(1, 10), (10, 1)])
def test_level_where_groups_differ_in_size(own_images: int, control_images: int, monkeypatch):
    """10 groups with the label and 40 without, images alike; those of one sort have ten times as many images a group.

    Means of ten images vary a tenth as much as single ones. Permuted together, they would put 15% of p-values below
    0.05 where own groups have one image, and next to none where they have ten.
    """
    monkeypatch.setattr("typicality.mining.significance.PATTERNS", 999)
    rng = np.random.default_rng(own_images)
    sizes = np.r_[np.full(10, own_images), np.full(40, control_images)]
    groups = np.repeat(np.arange(50), sizes)
    own = groups < 10
    found = []
    for seed in range(40):
        detected = rng.random((len(groups), 10)) < 0.5
        found += detection_p_values(detected, own, groups, np.zeros(len(groups)), seed).tolist()
    assert 0.01 < np.mean(np.array(found) <= 0.05) < 0.07
    assert 0.12 < np.mean(np.array(found) <= 0.25) < 0.3


def test_groups_of_odd_size_do_not_waste_the_others(monkeypatch):
    """80 groups of four images but for a few of three: the test keeps the power that it has without those few."""
    monkeypatch.setattr("typicality.mining.significance.PATTERNS", 999)
    with_odd, without = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sizes = np.where(rng.random(80) < 0.15, 3, 4)
        groups = np.repeat(np.arange(80), sizes)
        own = (rng.random(80) < 0.5)[groups]
        detected = (rng.random((len(groups), 1)) < np.where(own, 0.16, 0.05)[:, None]).astype(float)
        four = sizes[groups] == 4
        with_odd += detection_p_values(detected, own, groups, groups % 2, seed).tolist()
        without += detection_p_values(detected[four], own[four], groups[four], (groups % 2)[four], seed).tolist()
    assert np.mean(np.array(with_odd) <= 0.05) > np.mean(np.array(without) <= 0.05) - 0.1 > 0.6


def test_level_with_groups_of_two_sizes(monkeypatch):
    """Labels at random, groups of three and of four images whose relatives are alike: p is uniform or larger."""
    monkeypatch.setattr("typicality.mining.significance.PATTERNS", 999)
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), np.where(np.arange(60) % 7 == 0, 3, 4))
    rich = rng.beta(0.5, 1, 60)[groups][:, None]
    found = []
    for seed in range(60):
        own = (rng.permutation(60) < 30)[groups]
        found += detection_p_values(rng.random((len(groups), 8)) < rich, own, groups, groups % 2, seed).tolist()
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.08


def labelled(loaded, sizes: dict[str, int], own):
    """Images of groups of these sizes, with the label red where `own(group)`, else blue."""
    return replace(
        loaded,
        images=tuple(
            replace(loaded.images[0], image_id=f"{g}/{i}", group=g, labels=("red" if own(g) else "blue",))
            for g, size in sizes.items()
            for i in range(size)
        ),
    )


@pytest.fixture
def loaded(tiny_folder):
    return load_dataset(DatasetSettings(source=str(tiny_folder), label="folder"))


def test_controls_come_in_whole_groups_of_the_sizes_that_the_label_has(loaded):
    """Groups of four, four and two with the label: the group of four and that of two, and the rest in turn."""
    sizes = {"own 0": 4, "own 1": 4, "own 2": 2, "a": 4, "b": 30, "c": 50, "d": 2}
    data = labelled(loaded, sizes, lambda group: group.startswith("own"))
    found = Counter(i.split("/")[0] for i in choose_controls(data, 13)["red"])
    assert found == {"a": 4, "d": 2} | {g: found[g] for g in "bc"}
    assert sorted((found["b"], found["c"])) == [3, 4]


def test_sizes_of_groups(loaded):
    data = labelled(loaded, {"own": 3, "a": 2}, "own".__eq__)
    both = replace(data, images=(*data, replace(data.images[0], image_id="own/blue", labels=("blue",))))
    size_of = group_sizes(both)
    assert [size_of("red", i) for i in ("own/0", "own/blue", "a/0")] == [3, 1, 2]
    assert [size_of("blue", i) for i in ("own/0", "own/blue", "a/0")] == [3, 1, 2]


@pytest.mark.parametrize("labels", [4, 10])
def test_level_where_what_groups_show_goes_with_their_size(labels, loaded, monkeypatch):
    """Groups of three and nine images dealt to labels at random; elements common in large, in small, in all groups.

    Controls that come from large groups first would put 40 to 50% of the second's p-values below 0.05.
    """
    monkeypatch.setattr("typicality.mining.significance.PATTERNS", 499)
    p = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n_groups = 40 * labels
        sizes = {f"{seed}-{g}": 3 if rng.random() < 0.5 else 9 for g in range(n_groups)}
        own = {f"{seed}-{g}" for g in rng.permutation(n_groups)[:40]}
        data = labelled(loaded, sizes, own.__contains__)
        controls = set(choose_controls(data, None)["red"])
        part = [i for i in data if "red" in i.labels or i.image_id in controls]
        large = np.array([sizes[i.group] == 9 for i in part])[:, None]
        rates = np.where(large, [[0.6, 0.2, 0.4]], [[0.2, 0.6, 0.4]])
        detected = rng.random((len(part), 3)) < rates
        groups = np.array([i.group for i in part])
        folds = np.array([int(i.group.split("-")[1]) % 2 for i in part])
        size_of = group_sizes(data)
        wholes = np.array([size_of("red", i.image_id) for i in part])
        p.append(detection_p_values(detected, np.array(["red" in i.labels for i in part]), groups, folds, seed, wholes))
    assert (np.mean(np.array(p) <= 0.05, axis=0) < 0.13).all()
    assert (np.mean(np.array(p) <= 0.5, axis=0) > 0.25).all()


def test_controls_are_of_other_labels_and_do_not_depend_on_order(loaded):
    images = tuple(replace(i, group=str(int(i.file_name.split("/")[-1].split(".")[0]) // 4)) for i in loaded)
    data = replace(loaded, images=images)
    by_id = {i.image_id: i for i in data}
    for label, found in choose_controls(loaded, 4).items():
        assert len(set(found)) == 4
        assert all(label not in by_id[i].labels for i in found)
    assert {len({by_id[i].group for i in found}) for found in choose_controls(data, 4).values()} == {1}
    assert {len(found) for found in choose_controls(data, None).values()} == {16}
    assert choose_controls(data, 0) == {"blue": [], "red": []}
    assert choose_controls(data, 9) == choose_controls(replace(data, images=images[::-1]), 9)
