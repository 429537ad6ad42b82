"""Visual elements: k-means clusters of a label's patches, ranked by the median typicality of their members, and those
from very few images after all others.

As published (Siglidis et al., ECCV 2024, section 3.2) k-means is Euclidean, on L2-normalised features; centroids are
plain means and not projected back to the sphere. What is added: near-duplicate clusters are merged, clusters from
few images are marked, and each cluster has an error bar, a p-value and a measure of its stability. Results depend
neither on the order of the rows nor on the number of threads.

Where a search among controls was made (significance.py), clusters are found among its candidates, of the label and
of controls, and the label's patches join the nearest: the test is valid only if clusters do not know which is which.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np

from typicality.mining.significance import Candidates, adjusted_p_values, detection_p_values, sign_flip_p_value
from typicality.records import Patch

ITERATIONS = 50
BOOTSTRAPS = 500
RESAMPLES = 20


@dataclass(frozen=True)
class Cluster:
    """One visual element of a label. `cluster` equals `rank`: 0 is the most typical, those of few images come last.

    Attributes
    ----------
    median_typicality, standard_error : of its members; the error is a bootstrap over groups, NaN with one group
    p_value : one-sided (see `significance`); NaN where it is unknown
    p_value_method : "controls" (detections in images of the label against controls), "sign flip" (specificity; too
        small, because members were selected), or "none"
    adjusted_p_value : the same after Benjamini-Hochberg over all clusters of all labels that were tested alike
    stability : how much of it comes back when groups are resampled and clustered anew: the mean over resamples of
        the largest Jaccard index with a new cluster (Hennig 2007); in [0, 1], below 0.5 it dissolves
    own_rate, control_rate : shares of the label's images and of controls with a candidate of it; NaN without controls
    few_images : fewer distinct images than `min_images`
    """

    label: str
    cluster: int
    rank: int
    size: int
    n_images: int
    median_typicality: float
    standard_error: float
    p_value: float
    n_groups: int
    few_images: bool
    mean_specificity: float
    adjusted_p_value: float = float("nan")
    p_value_method: str = "none"
    stability: float = float("nan")
    own_rate: float = float("nan")
    control_rate: float = float("nan")


@dataclass(frozen=True)
class Clustering:
    """Clusters of all labels, and for each patch (n,) int32 its cluster and its rank in it, both from 0."""

    clusters: list[Cluster]
    cluster: np.ndarray
    rank_in_cluster: np.ndarray


def cluster_elements(
    patches: Sequence[Patch],
    features: np.ndarray,
    group_of: Callable[[str], str],
    *,
    clusters: int = 32,
    merge_similarity: float = 0.97,
    min_images: int = 3,
    restarts: int = 5,
    seed: int = 0,
    candidates: Candidates | None = None,
) -> Clustering:
    """Cluster the patches of every label by their features.

    Parameters
    ----------
    patches : n patches of any labels, in any order
    features : (n, d) float32, unit rows
    group_of : image_id -> group of relatives
    clusters : at most so many a label; never more than there are distinct features, or one for every 4 patches
    merge_similarity : clusters of a label are merged while two centroids have at least this cosine, measured from
        the mean feature of all patches: diffusion features share a large common part, which would make any two alike
    min_images : clusters from fewer images are marked
    restarts : runs of k-means, of which the best is kept
    seed : of k-means, of the bootstraps and of the significance tests
    candidates : what the search finds on images with and without the labels, for the test with controls
    """
    order = _order(patches)
    labels = np.array([patches[i].label for i in order], dtype=object)
    vectors = np.ascontiguousarray(features[order], dtype=np.float32)
    pool = _pool(patches, features) if candidates is None else _pool(candidates.patches, candidates.features)
    centre = pool.vectors.mean(axis=0, dtype=np.float64) if len(pool.patches) else np.zeros(features.shape[1])
    found: list[Cluster] = []
    others: list[float] = []  # p-values of clusters without a patch of the label: they were tested as well
    cluster, rank_in_cluster = (np.empty(len(patches), dtype=np.int32) for _ in range(2))
    for label in dict.fromkeys(labels):
        rows = np.flatnonzero(labels == label)
        members = [patches[order[i]] for i in rows]
        own = pool.of(label)
        partition = _partition(own.vectors, centre, clusters, restarts, merge_similarity, seed)
        assigned = partition.assigned if candidates is None else partition.nearest(vectors[rows])
        groups = np.array([group_of(p.image_id) for p in own.patches])
        again = _stability(
            own.vectors, groups, partition.assigned,
            lambda v, s: _partition(v, centre, clusters, 1, merge_similarity, s).assigned, seed,
        )  # fmt: skip
        tests = {} if candidates is None else _tests(label, own.patches, partition.assigned, candidates, group_of, seed)
        typicality = np.array([p.typicality for p in members])
        images = np.array([p.image_id for p in members], dtype=object)
        for rank, part in enumerate(_ranked(assigned, typicality, images, min_images)):
            ours = rows[part]
            at = [order[i] for i in ours]
            cluster[at] = rank
            rank_in_cluster[[at[i] for i in _by_distance(vectors[ours])]] = np.arange(len(at))
            name = int(assigned[part[0]])
            entry = _describe(rank, [members[i] for i in part], group_of, min_images, seed)
            found.append(replace(entry, stability=again[name], **tests.pop(name, {})))
        others += [test["p_value"] for test in tests.values()]
    return Clustering(_adjusted(found, others), cluster, rank_in_cluster)


def _adjusted(clusters: Sequence[Cluster], others: Sequence[float]) -> list[Cluster]:
    """Adjust p-values within each method: valid ones and ones that are too small make no common family.

    Parameters
    ----------
    others : p-values of tests against controls that belong to no cluster
    """
    result = list(clusters)
    for method in {c.p_value_method for c in clusters}:
        at = [i for i, c in enumerate(clusters) if c.p_value_method == method]
        family = [clusters[i].p_value for i in at] + list(others if method == "controls" else ())
        for i, adjusted in zip(at, adjusted_p_values(np.array(family)), strict=False):
            result[i] = replace(clusters[i], adjusted_p_value=float(adjusted))
    return result


def _order(patches: Sequence[Patch]) -> list[int]:
    """An order of the patches that depends on what they are alone."""
    return sorted(
        range(len(patches)),
        key=lambda i: (patches[i].label, patches[i].image_id, patches[i].row, patches[i].column, patches[i].side),
    )


@dataclass(frozen=True)
class _Pool:
    """Patches that are clustered, in order, and their features."""

    patches: list[Patch]
    vectors: np.ndarray

    def of(self, label: str) -> _Pool:
        rows = [i for i, patch in enumerate(self.patches) if patch.label == label]
        return _Pool([self.patches[i] for i in rows], np.ascontiguousarray(self.vectors[rows]))


def _pool(patches: Sequence[Patch], features: np.ndarray) -> _Pool:
    order = _order(patches)
    return _Pool([patches[i] for i in order], features[order].astype(np.float32))


@dataclass(frozen=True)
class _Partition:
    """Cells of feature space: centroids (k, d) with the cell that each belongs to, and the cell of each row (n,)."""

    centroids: np.ndarray
    cell_of: np.ndarray
    assigned: np.ndarray

    def nearest(self, vectors: np.ndarray) -> np.ndarray:
        """(m,) cell of the nearest centroid of each row."""
        index = faiss.IndexFlatL2(vectors.shape[1])
        index.add(self.centroids)
        with _one_thread():
            return self.cell_of[index.search(np.ascontiguousarray(vectors), 1)[1][:, 0]]


def _partition(
    vectors: np.ndarray, centre: np.ndarray, clusters: int, restarts: int, similarity: float, seed: int
) -> _Partition:
    """k-means, then merging of centroids that are alike."""
    first = _kmeans(vectors, clusters, restarts, seed)
    names, first = np.unique(first, return_inverse=True)
    assigned = _merge(vectors - centre, first, similarity)
    centroids = np.stack([vectors[first == i].mean(axis=0) for i in range(len(names))])
    cell_of = np.array([assigned[np.argmax(first == i)] for i in range(len(names))])
    return _Partition(centroids, cell_of, assigned)


def _tests(
    label: str, patches: Sequence[Patch], assigned: np.ndarray, candidates: Candidates,
    group_of: Callable[[str], str], seed: int,
) -> dict[int, dict[str, Any]]:  # fmt: skip
    """Test each cell: do images of the label contain its patches more often than controls do?"""
    images = sorted(candidates.images[label])
    place = {image_id: i for i, image_id in enumerate(images)}
    cells = np.unique(assigned)
    detected = np.zeros((len(images), len(cells)))
    detected[[place[p.image_id] for p in patches], np.searchsorted(cells, assigned)] = 1
    own = np.array([label in candidates.labels_of(i) for i in images])
    p_values = detection_p_values(
        detected, own, np.array([group_of(i) for i in images]), np.array([candidates.stratum_of(i) for i in images]),
        _own_seed(seed, label), np.array([candidates.size_of(label, i) for i in images]),
    )  # fmt: skip
    if not np.isfinite(p_values).all():
        return {}
    rates = detected[own].mean(axis=0), detected[~own].mean(axis=0)
    return {
        int(cell): {
            "p_value": float(p), "p_value_method": "controls", "own_rate": float(a), "control_rate": float(b),
        }
        for cell, p, a, b in zip(cells, p_values, *rates, strict=True)
    }  # fmt: skip


def _stability(
    vectors: np.ndarray, groups: np.ndarray, assigned: np.ndarray,
    cluster: Callable[[np.ndarray, int], np.ndarray], seed: int,
) -> dict[int, float]:  # fmt: skip
    """Mean over resamples of groups of the largest Jaccard index of each cluster with a new one (Hennig 2007).

    The index compares the cluster's drawn rows with the distinct rows of each new cluster.
    """
    names, member_of = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng([seed, 41])
    sums: dict[int, list[float]] = {int(name): [] for name in np.unique(assigned)}
    for _ in range(RESAMPLES if len(names) > 1 else 0):
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[member_of]
        rows = np.repeat(np.arange(len(vectors)), drawn)
        if not len(rows):
            continue
        new = cluster(np.ascontiguousarray(vectors[rows]), seed)
        distinct, first = np.unique(rows, return_index=True)
        table = np.zeros((max(sums) + 1, int(new.max()) + 1))
        np.add.at(table, (assigned[distinct], new[first]), 1)
        union = table.sum(axis=1, keepdims=True) + table.sum(axis=0) - table
        best = (table / np.maximum(union, 1)).max(axis=1)
        for name, values in sums.items():
            if table[name].any():
                values.append(float(best[name]))
    return {name: float(np.mean(values)) if values else float("nan") for name, values in sums.items()}


def _kmeans(vectors: np.ndarray, clusters: int, restarts: int, seed: int) -> np.ndarray:
    """(n,) cluster of each row, by the best of several seeded runs; some numbers may be missing."""
    k = max(1, min(clusters, len(vectors) // 4))
    if k > 1:
        k = min(k, len(np.unique(vectors, axis=0)))
    if k == 1:
        return np.zeros(len(vectors), dtype=np.int64)
    with _one_thread():
        kmeans = faiss.Kmeans(
            vectors.shape[1],
            k,
            niter=ITERATIONS,
            nredo=restarts,
            seed=seed,
            verbose=False,
            min_points_per_centroid=1,
            max_points_per_centroid=len(vectors),
        )
        kmeans.train(vectors)
        _, assigned = kmeans.index.search(vectors, 1)
    return assigned[:, 0]


@contextmanager
def _one_thread() -> Iterator[None]:
    """FAISS sums in an order that depends on its threads; with one the result is always the same."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _merge(vectors: np.ndarray, assigned: np.ndarray, similarity: float) -> np.ndarray:
    """Merge the two clusters whose means are most alike, while their cosine reaches `similarity`."""
    names, assigned = np.unique(assigned, return_inverse=True)
    sizes = np.bincount(assigned).astype(np.float64)
    sums = np.zeros((len(names), vectors.shape[1]))
    np.add.at(sums, assigned, vectors)
    alive = sizes > 0
    while alive.sum() > 1:
        means = sums / np.maximum(sizes, 1)[:, None]
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        cosines = np.where(np.triu(alive[:, None] & alive, 1), means @ means.T, -np.inf)
        into, gone = np.unravel_index(np.argmax(cosines), cosines.shape)
        if cosines[into, gone] < similarity:
            break
        assigned = np.where(assigned == gone, into, assigned)
        sums[into] += sums[gone]
        sizes[into] += sizes[gone]
        alive[gone] = False
    return assigned


def _ranked(assigned: np.ndarray, typicality: np.ndarray, images: np.ndarray, min_images: int) -> list[np.ndarray]:
    """Members of each cluster, most typical median first; then the larger, then the one with the first member.

    Clusters from fewer than `min_images` images come after all others: what one picture has is no visual element, and
    the median of one or two scores, chosen because they are high, is higher than that of many.
    """

    def place(part: np.ndarray) -> tuple:
        return len(set(images[part])) < min_images, -np.median(typicality[part]), -len(part), part[0]

    return sorted((np.flatnonzero(assigned == name) for name in np.unique(assigned)), key=place)


def _by_distance(vectors: np.ndarray) -> np.ndarray:
    """Order of the rows by Euclidean distance to their mean."""
    exact = vectors.astype(np.float64)
    return np.argsort(np.linalg.norm(exact - exact.mean(axis=0), axis=1), kind="stable")


def _describe(rank: int, members: list[Patch], group_of: Callable[[str], str], min_images: int, seed: int) -> Cluster:
    label = members[0].label
    images = {p.image_id for p in members}
    groups = np.array([group_of(p.image_id) for p in members])
    typicality = np.array([p.typicality for p in members])
    specificity = np.array([p.specificity for p in members])
    known = specificity[np.isfinite(specificity)]
    own_seed = _own_seed(seed, f"{label}/{rank}")
    p_value = sign_flip_p_value(specificity, groups, own_seed)
    return Cluster(
        label=label,
        cluster=rank,
        rank=rank,
        size=len(members),
        n_images=len(images),
        median_typicality=float(np.median(typicality)),
        standard_error=median_standard_error(typicality, groups, own_seed),
        p_value=p_value,
        p_value_method="sign flip" if np.isfinite(p_value) else "none",
        n_groups=len(set(groups)),
        few_images=len(images) < min_images,
        mean_specificity=float(known.mean()) if len(known) else float("nan"),
    )


def _own_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


def median_standard_error(values: np.ndarray, groups: np.ndarray, seed: int) -> float:
    """Standard error of the median by a bootstrap over groups: relatives are drawn together (Efron 1979).

    Parameters
    ----------
    values : (n,)
    groups : (n,) group of each value

    Returns
    -------
    Standard deviation of the medians of BOOTSTRAPS resamples; NaN with a single group.
    """
    names, member_of = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=BOOTSTRAPS)
    order = np.argsort(values, kind="stable")
    weights = np.cumsum(drawn[:, member_of[order]], axis=1)
    twice, total = 2 * weights, weights[:, -1:]
    lower, upper = np.argmax(twice >= total, axis=1), np.argmax(twice > total, axis=1)
    medians = (values[order][lower] + values[order][upper]) / 2
    return float(medians.std(ddof=1))
