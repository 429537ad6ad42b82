"""Which elements are in which images: centroids, radii, and a search over every position of an image.

All features here are read under the null prompt: the label's own prompt would tell the search which label it looks at.
They are whitened over sampled images (mining/whitening.py): what all patches have in common says nothing about any, and
the direction in which most of them differ little about each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from typicality.mining.features import FeatureExtractor
from typicality.mining.whitening import Whitening
from typicality.progress import SILENT, Progress
from typicality.records import Patch

IMAGES_AT_ONCE = 32
RADIUS_QUANTILE = 0.25
"""Quantile, over a cluster's members, of the similarity to the centroid of the others, from which it is detected."""
NULL = ""
"""The label under which patches are given to the extractor: all share one prompt, so an image is one pass."""


@dataclass(frozen=True)
class Elements:
    """What is looked for: (c, d) unit centroids and the (c,) smallest cosine that counts."""

    centroids: Float[np.ndarray, "c d"]
    radii: Float[np.ndarray, " c"]


@dataclass(frozen=True)
class Detections:
    """The best match of every element in every image: cosine (n, c) and the latent cell it starts at (n, c, 2)."""

    similarity: Float[np.ndarray, "n c"]
    cell: np.ndarray


def patch_at(image_id: str, row: int, column: int, side: int) -> Patch:
    return Patch(image_id, NULL, row, column, side, (0, 0, 0, 0), float("nan"), float("nan"))


def grid(image_id: str, height: int, width: int, side: int) -> list[Patch]:
    """Patches at every half side of a latent map of height x width cells, the last ones flush with its edges."""

    def starts(length: int) -> list[int]:
        last = max(0, length - side)
        return sorted({*range(0, last + 1, max(1, side // 2)), last})

    return [patch_at(image_id, r, c, side) for r in starts(height) for c in starts(width)]


def elements_of(features: Float[np.ndarray, "n d"], cluster: np.ndarray, count: int) -> Elements:
    """Centroids and radii of clusters from their members' whitened unit features.

    The radius comes from each member's cosine to the centroid of the *other* members, which is what an unseen instance
    would have. A cluster with one member gets radius 1: nothing but itself.
    """
    centroids, radii = np.zeros((count, features.shape[1])), np.ones(count)
    for c in range(count):
        own = features[cluster == c].astype(np.float64)
        total = own.sum(0)
        centroids[c] = total / max(np.linalg.norm(total), 1e-12)
        if len(own) > 1:
            others = total - own
            cosines = (own * others).sum(1) / np.maximum(np.linalg.norm(others, axis=1), 1e-12)
            radii[c] = np.quantile(cosines, RADIUS_QUANTILE)
    return Elements(centroids, radii)


def search(
    extractor: FeatureExtractor,
    image_ids: Sequence[str],
    side: int,
    latent_of: Callable[[str], Tensor],
    reduce: Callable[[int, Float[np.ndarray, "p d"], list[Patch]], None],
    progress: Progress = SILENT,
) -> None:
    """Extract the features of every position of every image and hand each image's to `reduce`; none are kept."""
    progress.start("search images", len(image_ids))
    for start in range(0, len(image_ids), IMAGES_AT_ONCE):
        part = image_ids[start : start + IMAGES_AT_ONCE]
        grids = []
        for image_id in part:
            height, width = latent_of(image_id).shape[-2:]
            grids.append(grid(image_id, height, width, side))
        features = extractor([p for patches in grids for p in patches], latent_of)
        first = 0
        for i, patches in enumerate(grids):
            reduce(start + i, features[first : first + len(patches)], patches)
            first += len(patches)
        progress.advance(len(part))
    progress.finish()


def detect(
    extractor: FeatureExtractor,
    image_ids: Sequence[str],
    side: int,
    latent_of: Callable[[str], Tensor],
    elements: Elements,
    whitening: Whitening,
    progress: Progress = SILENT,
) -> Detections:
    """Find the best match of every element in every image."""
    shape = (len(image_ids), len(elements.radii))
    similarity, cell = np.zeros(shape, dtype=np.float32), np.zeros((*shape, 2), dtype=np.int64)

    def best(i: int, features: np.ndarray, patches: list[Patch]) -> None:
        cosines = whitening.unit(features) @ elements.centroids.T
        at = cosines.argmax(0)
        similarity[i] = cosines[at, np.arange(shape[1])]
        cell[i] = [(patches[p].row, patches[p].column) for p in at]

    search(extractor, image_ids, side, latent_of, best, progress)
    return Detections(similarity, cell)


def whitening_of(
    extractor: FeatureExtractor, image_ids: Sequence[str], side: int, latent_of: Callable[[str], Tensor]
) -> Whitening:
    """Learn the whitening from every position of some images."""
    found: list[np.ndarray] = []
    search(extractor, image_ids, side, latent_of, lambda _i, features, _p: found.append(features))
    return Whitening.of(np.concatenate(found))
