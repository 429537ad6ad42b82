"""Discriminative patches from HOG and colour: the classical rival, with no network at all.

After Singh, Gupta & Efros (ECCV 2012) and Doersch et al., "What Makes Paris Look like Paris?" (SIGGRAPH 2012):
random candidates, kept where their nearest neighbours carry the label; then a linear SVM for each, trained on its
best detections and detecting anew on another part of the images, a few times over; ranked by the purity of its
detections. HOG (Dalal & Triggs 2005) is a compact one of our own: unsigned orientations in cells of the latent grid,
normalised over the patch, so that boxes are those of the other methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.svm import LinearSVC

ORIENTATIONS = 8
COLOUR_WEIGHT = 0.5
"""Weight of the colour part against the gradient part, both of unit length."""
STRIDE = 2
"""Cells between the patches of a training image; detection visits every cell."""


@dataclass(frozen=True)
class PatchDetector:
    """A linear detector of a label: its score at a patch with descriptor x is weights . x.

    Attributes
    ----------
    weights : (d,) float32
    image_id, row, column : its best detection in a training image of the label, in cells
    purity : share of the label among its best detections in training images
    """

    weights: np.ndarray
    image_id: str
    row: int
    column: int
    purity: float


def cell_histograms(pixels: np.ndarray, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and colour of every cell of an image.

    Parameters
    ----------
    pixels : (3, H, W) float32 in [-1, 1], both sides multiples of `cell`
    cell : pixels

    Returns
    -------
    histograms : (h, w, ORIENTATIONS), gradient magnitude by unsigned orientation, split between neighbouring bins
    colours : (h, w, 3), mean of red - green, blue - yellow and brightness
    """
    _, height, width = pixels.shape
    dy, dx = np.gradient(pixels.astype(np.float64), axis=(1, 2))
    strongest = np.argmax(dx**2 + dy**2, axis=0)[None]
    dx, dy = (np.take_along_axis(d, strongest, axis=0)[0] for d in (dx, dy))
    magnitude, position = np.hypot(dx, dy), (np.arctan2(dy, dx) % np.pi) / np.pi * ORIENTATIONS
    low = np.floor(position).astype(int) % ORIENTATIONS
    share = position - np.floor(position)
    votes = np.zeros((height, width, ORIENTATIONS))
    rows, columns = np.indices((height, width))
    np.add.at(votes, (rows, columns, low), magnitude * (1 - share))
    np.add.at(votes, (rows, columns, (low + 1) % ORIENTATIONS), magnitude * share)
    red, green, blue = pixels.astype(np.float64)
    opponents = np.stack([red - green, blue - (red + green) / 2, (red + green + blue) / 3], axis=-1)

    def by_cell(values: np.ndarray) -> np.ndarray:
        return values.reshape(height // cell, cell, width // cell, cell, -1).mean((1, 3)).astype(np.float32)

    return by_cell(votes), by_cell(opponents)


def descriptors(pixels: np.ndarray, cell: int, side: int) -> np.ndarray:
    """Descriptors (h - side + 1, w - side + 1, d) of all patches of side x side cells: unit gradients, then colours."""
    histograms, colours = cell_histograms(pixels, cell)

    def windows(values: np.ndarray) -> np.ndarray:
        view = np.lib.stride_tricks.sliding_window_view(values, (side, side), axis=(0, 1))
        return view.reshape(*view.shape[:2], -1)

    gradients = _unit(np.minimum(_unit(windows(np.sqrt(histograms))), 0.3))
    return np.concatenate([gradients, COLOUR_WEIGHT * _unit(windows(colours))], axis=-1).astype(np.float32)


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-3)


@dataclass(frozen=True)
class PatchPool:
    """Descriptors of patches of many images, by image.

    Attributes
    ----------
    image_ids : n images
    starts : (n,) first row of each image
    owner : (m,) the image of each row
    places : (m, 2) row and column in cells
    values : (m, d) float32
    """

    image_ids: tuple[str, ...]
    starts: np.ndarray
    owner: np.ndarray
    places: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, images: Iterable[tuple[str, np.ndarray]], cell: int, side: int, stride: int = STRIDE) -> PatchPool:
        """Describe patches of `images` (image_id and pixels (3, H, W)) on a grid with `stride` cells between them."""
        ids: list[str] = []
        starts, owner, places, values = [], [], [], []
        size = 0
        for i, (image_id, pixels) in enumerate(images):
            ids.append(image_id)
            found = descriptors(pixels, cell, side)[::stride, ::stride]
            rows, columns = np.indices(found.shape[:2])
            starts.append(size)
            size += rows.size
            owner.append(np.full(rows.size, i))
            places.append(np.stack([rows.ravel(), columns.ravel()], axis=1) * stride)
            values.append(found.reshape(rows.size, -1))
        return cls(
            tuple(ids), np.array(starts), np.concatenate(owner), np.concatenate(places), np.concatenate(values)
        )  # fmt: skip

    def best(self, weights: np.ndarray) -> np.ndarray:
        """(n, k) score of the best patch of each image under each of k detectors (k, d)."""
        return np.maximum.reduceat(self.values @ weights.T, self.starts, axis=0)

    def best_rows(self, scores: np.ndarray) -> np.ndarray:
        """(n,) row of the best patch of each image, by the scores (m,) of one detector."""
        ends = [*self.starts[1:], len(scores)]
        return np.array([a + int(np.argmax(scores[a:b])) for a, b in zip(self.starts, ends, strict=True)])


def discriminative_patches(
    pool: PatchPool,
    carries: np.ndarray,
    count: int,
    seed: int = 0,
    candidates: int = 400,
    neighbours: int = 20,
    members: int = 5,
    rounds: int = 3,
    negatives: int = 2000,
) -> list[PatchDetector]:
    """Find detectors of one label, the purest first.

    Parameters
    ----------
    pool : patches of the training images
    carries : (n,) bool, whether each image carries the label
    count : detectors wanted; fewer where the label has fewer patches
    candidates : random patches to begin with; the best 1.5 * count of them are trained
    neighbours : best images of a candidate or detector over which its purity is taken
    members : detections that a detector is trained on
    rounds : of training, each on another part of the label's images than it was found in
    negatives : patches of images without the label, half the hardest, half at random

    Returns
    -------
    Detectors whose best detections differ; empty where no image or every image carries the label.
    """
    rng = np.random.default_rng(seed)
    inside = np.flatnonzero(carries[pool.owner])
    outside = np.flatnonzero(~carries[pool.owner])
    if not len(inside) or not len(outside):
        return []
    start = rng.choice(inside, min(candidates, len(inside)), replace=False)
    seeds = pool.values[start]
    seeds = seeds[np.linalg.norm(seeds - seeds.mean(0), axis=1) > 1e-6]
    purities = _purity(pool.best(seeds), carries, neighbours)
    chosen = np.argsort(-purities, kind="stable")[: count + count // 2]
    parts = rng.integers(0, 2, len(pool.image_ids))
    found = [
        _trained(pool, carries, outside, seeds[i], parts, members, rounds, negatives, neighbours, rng) for i in chosen
    ]
    found.sort(key=lambda detector: (-detector.purity, detector.image_id, detector.row, detector.column))
    return _different(found, count)


def _purity(scores: np.ndarray, carries: np.ndarray, neighbours: int) -> np.ndarray:
    """(k,) share of the label among the best `neighbours` images of each detector; `scores` is (n, k).

    An image counts once. Ties in the share are broken by how far the label's images stand above the others.
    """
    order = np.argsort(-scores, axis=0, kind="stable")[: min(neighbours, len(scores))]
    gap = scores[carries].mean(0) - scores[~carries].mean(0)
    return carries[order].mean(0) + 1e-3 * np.tanh(gap)


def _trained(
    pool: PatchPool, carries: np.ndarray, outside: np.ndarray, weights: np.ndarray, parts: np.ndarray, members: int,
    rounds: int, negatives: int, neighbours: int, rng: np.random.Generator,
) -> PatchDetector:  # fmt: skip
    """Train one detector from a candidate, in turns on the two parts of the label's images."""
    for turn in range(rounds):
        here = np.flatnonzero(carries & (parts == turn % 2))
        if not len(here):
            here = np.flatnonzero(carries)
        scores = pool.values @ weights
        best = pool.best_rows(scores)[here]
        positive = best[np.argsort(-scores[best], kind="stable")[:members]]
        hardest = min(negatives // 2, len(outside)) - 1
        hard = outside[np.argpartition(-scores[outside], hardest)[: hardest + 1]]
        negative = np.union1d(hard, rng.choice(outside, min(negatives // 2, len(outside)), replace=False))
        examples = np.concatenate([pool.values[positive], pool.values[negative]])
        truth = np.repeat([1, 0], [len(positive), len(negative)])
        svm = LinearSVC(C=0.1, class_weight="balanced", dual="auto", max_iter=2000, random_state=0)
        weights = svm.fit(examples, truth).coef_[0].astype(np.float32)
    scores = pool.values @ weights
    rows = pool.best_rows(scores)
    scores = scores[rows]
    purity = float(_purity(scores[:, None], carries, neighbours)[0])
    labelled = np.flatnonzero(carries)
    found = int(labelled[np.argmax(scores[labelled])])
    row, column = pool.places[rows[found]]
    return PatchDetector(weights, pool.image_ids[found], int(row), int(column), purity)


def _different(detectors: Sequence[PatchDetector], count: int, limit: float = 0.7) -> list[PatchDetector]:
    """The first `count` whose weights are not nearly those of an earlier one; filled up with the rest if need be."""
    kept: list[PatchDetector] = []
    rest: list[PatchDetector] = []
    for detector in detectors:
        unit = detector.weights / np.linalg.norm(detector.weights)
        alike = any(unit @ (other.weights / np.linalg.norm(other.weights)) > limit for other in kept)
        (rest if alike else kept).append(detector)
    return (kept + rest)[:count]
