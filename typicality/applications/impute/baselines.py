"""Simple ways to fill a hole, which know no model: what an imputation has to beat. Pixels in, pixels out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import sparse
from scipy.sparse.linalg import cg, splu

from typicality.dataset import LabelledImages
from typicality.dataset.split import unit_hash
from typicality.records import LabelledImage

NEIGHBOURS = 5
THUMBNAIL = 64
"""Pixels of a side at which images are compared: all of them stretched to squares."""
REFERENCES = 2000
"""Images of a label that are compared at most, chosen by a hash."""
DIRECT = 20_000
"""Unknown pixels up to which Laplace's equation is solved directly."""


def mean_colour(
    pixels: UInt8[np.ndarray, "H W 3"], missing: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "m 3"]:  # fmt: skip
    """Return the mean of the visible pixels for each of the m missing ones."""
    return np.broadcast_to(pixels[~missing].astype(np.float64).mean(0), (int(missing.sum()), 3))


def harmonic(
    pixels: UInt8[np.ndarray, "H W 3"] | Float[np.ndarray, "H W 3"], missing: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "m 3"]:
    """Return the membrane over a hole: each missing pixel is the mean of its neighbours (Laplace's equation).

    Visible pixels beside the hole are its rim; beyond the image's border there is none. Large holes are solved by
    conjugate gradients, from a solution at half the size.

    Returns
    -------
    values of the missing pixels, row by row
    """
    height, width = missing.shape
    number = np.full((height, width), -1)
    n = int(missing.sum())
    number[missing] = np.arange(n)
    ys, xs = np.nonzero(missing)
    degree, known = np.zeros(n), np.zeros((n, 3))
    rows, columns = [], []
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        y, x = ys + dy, xs + dx
        inside = np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
        other = number[y[inside], x[inside]]
        degree[inside] += 1
        rows.append(inside[other >= 0])
        columns.append(other[other >= 0])
        rim = inside[other < 0]
        known[rim] += pixels[y[rim], x[rim]]
    i, j = np.concatenate(rows), np.concatenate(columns)
    matrix = sparse.diags(degree) - sparse.coo_matrix((np.ones(len(i)), (i, j)), (n, n))
    if n <= DIRECT:
        return splu(matrix.tocsc()).solve(known)
    start = _from_half_the_size(np.asarray(pixels, dtype=np.float64), missing)
    return np.stack(
        [cg(matrix.tocsr(), known[:, c], x0=start[:, c], rtol=1e-4, maxiter=300)[0] for c in range(3)], axis=1
    )


def _from_half_the_size(
    pixels: Float[np.ndarray, "H W 3"], missing: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "m 3"]:
    """The same membrane over an image of half the size, whose pixels are means of what is visible, read off between."""
    height, width = missing.shape
    odd = ((0, height % 2), (0, width % 2))
    weight = np.pad(~missing, odd).astype(np.float64)[..., None]
    total = np.pad(np.where(missing[..., None], 0.0, pixels), (*odd, (0, 0)))

    def pooled(x: np.ndarray) -> np.ndarray:
        return x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]

    weights = pooled(weight)
    small = pooled(total) / np.maximum(weights, 1)
    gone = weights[..., 0] == 0
    if gone.any():
        small[gone] = harmonic(small, gone)
    return small.repeat(2, 0).repeat(2, 1)[:height, :width][missing]


@dataclass
class References:
    """Images that holes may be compared with, and their thumbnails, read once.

    Parameters
    ----------
    pool : label -> its images, see `reference_pool`
    """

    dataset: LabelledImages
    pool: Mapping[str, Sequence[LabelledImage]]
    _thumbnails: dict[str, UInt8[np.ndarray, "n t t 3"]] = field(default_factory=dict)

    def of(self, label: str, group: str, allowed: frozenset[str]) -> tuple[list[LabelledImage], np.ndarray]:
        """Return the images of a label, of other groups than `group` and among `allowed`, and their thumbnails."""
        images = self.pool.get(label, ())
        if not images:  # all of the label's are held out
            return [], np.zeros((0, THUMBNAIL, THUMBNAIL, 3), np.uint8)
        if label not in self._thumbnails:
            self._thumbnails[label] = np.stack([thumbnail(self.dataset.open(i)) for i in images])
        index = [k for k, i in enumerate(images) if i.group != group and i.image_id in allowed]
        return [images[k] for k in index], self._thumbnails[label][index]


def reference_pool(dataset: LabelledImages, allowed: frozenset[str]) -> dict[str, list[LabelledImage]]:
    """Return label -> its images among `allowed`, at most `REFERENCES`, by a hash."""
    pool: dict[str, list[LabelledImage]] = {}
    for label in dataset.labels:
        own = [i for i in dataset if label in i.labels and i.image_id in allowed]
        pool[label] = sorted(own, key=lambda i: unit_hash(i.image_id, "impute reference"))[:REFERENCES]
    return pool


def thumbnail(picture: Image.Image) -> UInt8[np.ndarray, "t t 3"]:
    return np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def nearest(
    pixels: UInt8[np.ndarray, "H W 3"], missing: Bool[np.ndarray, "H W"], thumbnails: UInt8[np.ndarray, "n t t 3"],
    k: int = NEIGHBOURS,
) -> list[int]:  # fmt: skip
    """Return the k thumbnails nearest to an image in the mean squared distance of its visible pixels, nearest first.

    `pixels` holds any fill where it is missing; thumbnail pixels with a missing pixel in them do not count.
    """
    own = thumbnail(Image.fromarray(pixels)).astype(np.float32)
    share = Image.fromarray(missing.astype(np.float32)).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    visible = np.asarray(share) <= 0
    if not visible.any():
        visible = np.asarray(share) <= np.asarray(share).min()
    distance = ((thumbnails[:, visible].astype(np.float32) - own[visible]) ** 2).mean((1, 2))
    return np.argsort(distance, kind="stable")[:k].tolist()


def mean_of(
    pictures: Sequence[Image.Image], missing: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "m 3"]:  # fmt: skip
    """Return the mean of pictures, resized to the hole's image, at its missing pixels."""
    height, width = missing.shape
    resized = [np.asarray(p.resize((width, height), Image.Resampling.BILINEAR)) for p in pictures]
    return np.mean([r[missing] for r in resized], axis=0)
