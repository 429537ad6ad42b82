"""Clusters: what belongs together, which comes first, and how sure that is."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import pytest

from typicality.mining.clusters import _adjusted, cluster_elements, median_standard_error
from typicality.mining.significance import Candidates


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def blobs(make_patch):
    """Three blobs of ten patches each for labels x and y, on the axes of R^5; blob 2 is the most typical."""
    rng = np.random.default_rng(0)
    patches, features = [], []
    for label in "xy":
        for i in range(30):
            blob = i % 3
            patches.append(make_patch(f"{i:02d}", label, row=i, typicality=blob + 0.01 * i, specificity=blob - 1.0))
            features.append(np.eye(5)[blob + (label == "y")] + 0.05 * rng.normal(size=5))
    return patches, unit(np.array(features))


def test_blobs_are_found_and_ranked_by_median_typicality(blobs):
    patches, features = blobs
    found = cluster_elements(patches, features, str, clusters=3)
    assert [(c.label, c.cluster, c.rank, c.size) for c in found.clusters] == [
        (label, i, i, 10) for label in "xy" for i in range(3)
    ]
    for i, name in enumerate(found.cluster):
        assert name == 2 - (i % 30) % 3
    medians = [c.median_typicality for c in found.clusters if c.label == "x"]
    np.testing.assert_allclose(medians, [2.155, 1.145, 0.135])


def test_clusters_of_few_images_come_last(make_patch):
    """One flattered patch, and five of one image, are no visual elements, however typical they are."""
    at = [(0, f"a{i}", 1.0) for i in range(6)] + [(1, "b", 9.0)] + [(2, "c", 5.0)] * 5
    at += [(3, f"d{i}", 2.0) for i in range(4)]
    patches = [make_patch(name, "x", row=i, typicality=value) for i, (_, name, value) in enumerate(at)]
    found = cluster_elements(patches, np.eye(5, dtype=np.float32)[[axis for axis, _, _ in at]], str, clusters=4)
    assert [(c.size, c.n_images, c.few_images) for c in found.clusters] == [
        (4, 4, False),
        (6, 6, False),
        (1, 1, True),
        (5, 1, True),
    ]


def test_members_are_ranked_by_distance_to_their_centroid(blobs):
    patches, features = blobs
    found = cluster_elements(patches, features, str, clusters=3)
    for name in range(3):
        rows = np.flatnonzero((found.cluster == name) & (np.arange(60) < 30))
        rows = rows[np.argsort(found.rank_in_cluster[rows])]
        np.testing.assert_array_equal(found.rank_in_cluster[rows], np.arange(10))
        distance = np.linalg.norm(features[rows] - features[rows].mean(axis=0), axis=1)
        assert (np.diff(distance) > -1e-6).all()


@pytest.mark.parametrize("clusters", [3, 7])
def test_neither_row_order_nor_threads_change_anything(blobs, clusters):
    patches, features = blobs
    expected = cluster_elements(patches, features, str, clusters=clusters)
    threads = faiss.omp_get_max_threads()
    try:
        for seed in range(3):
            faiss.omp_set_num_threads(1 + seed % 2)
            order = np.random.default_rng(seed).permutation(60)
            found = cluster_elements([patches[i] for i in order], features[order], str, clusters=clusters)
            np.testing.assert_array_equal(found.cluster, expected.cluster[order])
            np.testing.assert_array_equal(found.rank_in_cluster, expected.rank_in_cluster[order])
            assert repr(found.clusters) == repr(expected.clusters)
            assert faiss.omp_get_max_threads() == 1 + seed % 2
    finally:
        faiss.omp_set_num_threads(threads)


def test_a_blob_cut_in_pieces_is_put_together(blobs):
    """Seven clusters for three blobs: without merging seven, with merging at cosine 0.9 three again."""
    patches, features = blobs
    cut = cluster_elements(patches[:30], features[:30], str, clusters=7, merge_similarity=1.0)
    whole = cluster_elements(patches[:30], features[:30], str, clusters=7, merge_similarity=0.9)
    assert len(cut.clusters) == 7
    assert [c.size for c in whole.clusters] == [10, 10, 10]


def test_a_common_part_of_all_features_merges_nothing(blobs):
    """Diffusion features point nearly the same way; only what differs from their mean says which are alike."""
    patches, features = blobs
    alike = unit(np.hstack([features, np.full((60, 1), 20.0)]))
    assert (alike @ alike.T).min() > 0.99
    assert len(cluster_elements(patches, alike, str, clusters=3).clusters) == 6


@pytest.mark.parametrize(("n", "distinct", "expected"), [(1, 1, 1), (3, 3, 1), (8, 8, 2), (16, 2, 2), (16, 1, 1)])
def test_no_more_clusters_than_the_data_can_fill(make_patch, capfd, n, distinct, expected):
    """At least four patches a cluster, and no two clusters of equal features; FAISS must not complain about it."""
    features = unit(np.random.default_rng(1).normal(size=(distinct, 8)))[np.arange(n) % distinct]
    patches = [make_patch(f"{i:02d}") for i in range(n)]
    found = cluster_elements(patches, features, str, merge_similarity=1.0)
    assert len(found.clusters) == expected
    assert sum(c.size for c in found.clusters) == n
    assert capfd.readouterr() == ("", "")


def test_nothing_to_cluster():
    found = cluster_elements([], np.zeros((0, 4), dtype=np.float32), str)
    assert found.clusters == []
    assert found.cluster.shape == found.rank_in_cluster.shape == (0,)


def test_images_and_groups_are_counted(make_patch):
    """Four patches from two images of one group: marked, and without an error bar."""
    patches = [make_patch("ab"[i % 2], row=i) for i in range(4)]
    (only,) = cluster_elements(patches, np.ones((4, 2), dtype=np.float32), lambda image_id: "g").clusters
    assert (only.size, only.n_images, only.n_groups, only.few_images) == (4, 2, 1, True)
    assert np.isnan([only.standard_error, only.p_value, only.adjusted_p_value, only.mean_specificity]).all()


def test_specific_clusters_have_small_p_values(blobs):
    """Specificity is 1, 0 and -1 in the three blobs: ten signs all positive have probability 2^-10 by chance."""
    patches, features = blobs
    best, middle, worst = cluster_elements(patches, features, str, clusters=3).clusters[:3]
    assert best.p_value == 2**-10
    assert middle.p_value == worst.p_value == 1
    assert best.adjusted_p_value == 3 * 2**-10  # 2 of 6 clusters reach it
    assert [c.mean_specificity for c in (best, middle, worst)] == [1, 0, -1]


def test_error_of_a_median_of_independent_values():
    """The median of n normal values has a standard error of about sqrt(pi / 2) / sqrt(n) = 0.125 for n = 100."""
    rng = np.random.default_rng(3)
    errors = [median_standard_error(rng.normal(size=100), np.arange(100), seed) for seed in range(20)]
    assert np.mean(errors) == pytest.approx(0.125, rel=0.15)


def test_relatives_count_once():
    """Twenty values in five groups of equal ones know no more than five values."""
    values, groups = np.repeat(np.arange(5.0), 4), np.repeat(np.arange(5), 4)
    together = median_standard_error(values, groups, 0)
    assert together == pytest.approx(median_standard_error(np.arange(5.0), np.arange(5), 0))
    assert together > 1.5 * median_standard_error(values, np.arange(20), 0)


def test_clear_clusters_are_stable_and_cut_ones_are_not(blobs):
    """Three blobs come back in every resample; one blob cut in three comes back cut differently."""
    patches, features = blobs
    clear = cluster_elements(patches[:30], features[:30], str, clusters=3).clusters
    assert all(c.stability > 0.95 for c in clear)
    noise = unit(np.random.default_rng(0).normal(size=(30, 5)) * 0.05 + np.eye(5)[0])
    cut = cluster_elements(patches[:30], noise, str, clusters=5, merge_similarity=1.0).clusters
    assert np.mean([c.stability for c in cut]) < 0.8


def test_clusters_are_tested_against_controls(make_patch):
    """Element A is in all 20 images of label x and in no control, element B in all images of both sorts.

    Both have high specificity (by selection), so the sign-flip test finds both; controls unmask B.
    """
    rng = np.random.default_rng(0)
    a, b = np.eye(6)[0], np.eye(6)[1]
    own = [f"own-{i:02d}" for i in range(20)]
    controls = [f"control-{i:02d}" for i in range(20)]
    patches = [make_patch(i, "x", row=r, typicality=2.0 - r, specificity=1.0) for i in own for r in (0, 1)]
    found = [*patches, *(make_patch(i, "x", row=1, typicality=1.0) for i in controls)]

    def near(some):
        return unit(np.array([(a, b)[p.row] for p in some]) + 0.02 * rng.normal(size=(len(some), 6)))

    def labels_of(image_id):
        return ("x",) if image_id in own else ("y",)

    candidates = Candidates(found, near(found), {"x": own + controls}, labels_of, lambda label, image_id: 1, len)
    before = cluster_elements(patches, near(patches), str, clusters=2).clusters
    after = cluster_elements(patches, near(patches), str, clusters=2, candidates=candidates).clusters
    assert [c.p_value_method for c in before] == ["sign flip"] * 2
    assert all(c.adjusted_p_value < 0.01 for c in before)
    one_fold = replace(candidates, stratum_of=lambda image_id: 0)
    tested = cluster_elements(patches, near(patches), str, clusters=2, candidates=one_fold).clusters
    assert [c.p_value_method for c in tested] == ["controls"] * 2
    assert [c.size for c in tested] == [20, 20]
    assert tested[0].adjusted_p_value < 0.01
    assert tested[1].adjusted_p_value > 0.5
    assert [(c.own_rate, c.control_rate) for c in tested] == [(1, 0), (1, 1)]
    in_part = replace(one_fold, size_of=lambda label, image_id: 2 if image_id in controls else 1)
    small = replace(in_part, images={"x": [*own, *controls[:2]]}, patches=found[:42], features=near(found[:42]))
    parts = cluster_elements(patches, near(patches), str, clusters=2, candidates=small).clusters
    assert 0 < parts[0].p_value < 0.01  # of 22 groups 2 are without: 1 of 231 ways, though no group of theirs is whole
    assert all(c.p_value == 1 for c in after)  # each fold (here: the length of the name) has one sort of images only


def test_p_values_of_two_methods_are_no_common_family(blobs):
    """Label x is tested against controls, y by sign flips: p = 0.02 of 2 tests and 0.01 of 1 become 0.04 and 0.01."""
    patches, features = blobs
    some = cluster_elements(patches, features, str, clusters=1).clusters[0]
    controls = replace(some, p_value=0.02, p_value_method="controls")
    flips = replace(some, p_value=0.01, p_value_method="sign flip")
    none = replace(some, p_value=float("nan"), p_value_method="none")
    found = _adjusted([flips, controls, none], [0.9])
    assert [c.adjusted_p_value for c in found[:2]] == [0.01, 0.04]
    assert np.isnan(found[2].adjusted_p_value)
