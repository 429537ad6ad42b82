"""How like one picture is to another: distances, edges, alignment, retrieval, and intervals over subjects and groups.

Arrays only. Pictures are (n, 3, H, W) float32 in [-1, 1], distances a number a picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.ndimage import correlate1d, gaussian_filter

from typicality.applications.trends.statistics import label_rates

BOOTSTRAPS = 2000
EDGE_BLUR = 1.0
"""Pixels (standard deviation) by which edges are blurred before they are aligned: a thin line drawn one pixel further
would otherwise count as missing."""
EDGE_CELL = 4
"""Pixels over which edges are averaged before pictures are looked up by them."""


def root_mean_square(a: Float[np.ndarray, "n ..."], b: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, " n"]:
    """Return the root of the mean squared difference of each pair."""
    n = len(a)
    return np.sqrt(np.square(a.astype(np.float64) - b).reshape(n, -1).mean(1))


def uncorrelated(a: Float[np.ndarray, "n ..."], b: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, " n"]:
    """Return 1 - the correlation of each pair over all its values, in [0, 2]: neither contrast nor brightness counts.

    What is flat correlates with nothing (1).
    """
    first, second = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    first, second = (x - x.mean(1, keepdims=True) for x in (first, second))
    size = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return 1 - np.divide((first * second).sum(1), size, out=np.zeros(len(a)), where=size > 1e-9)


def edges(pictures: Float[np.ndarray, "n 3 H W"]) -> Float[np.ndarray, "n H W"]:
    """Return the Sobel magnitude of the grey picture; a step from black to white has magnitude 1."""
    grey = (pictures.astype(np.float64).mean(1) + 1) / 2

    def slope(along: int, across: int) -> np.ndarray:
        step = correlate1d(grey, [-1, 0, 1], axis=along, mode="nearest")
        return correlate1d(step, [0.25, 0.5, 0.25], axis=across, mode="nearest")

    return np.hypot(slope(-1, -2), slope(-2, -1))


def edge_alignment(
    a: Float[np.ndarray, "n 3 H W"], b: Float[np.ndarray, "n 3 H W"], shift: int = 3
) -> Float[np.ndarray, " n"]:
    """Return the correlation of the edges of each pair, at the best whole shift of up to `shift` pixels.

    1 for the same outlines wherever their colours differ, about 0 for unrelated ones; a picture without edges
    gives 0.
    """
    first, second = (gaussian_filter(edges(x), (0, EDGE_BLUR, EDGE_BLUR)) for x in (a, b))
    height, width = first.shape[1:]
    best = np.zeros(len(a))
    inner = (slice(None), slice(shift, height - shift), slice(shift, width - shift))
    fixed = _standardised(first[inner])
    for dy in range(-shift, shift + 1):
        for dx in range(-shift, shift + 1):
            moved = second[:, shift + dy : height - shift + dy, shift + dx : width - shift + dx]
            best = np.maximum(best, (fixed * _standardised(moved)).mean((1, 2)))
    return best


def _standardised(maps: np.ndarray) -> np.ndarray:
    centred = maps - maps.mean((1, 2), keepdims=True)
    return centred / np.maximum(centred.std((1, 2), keepdims=True), 1e-9)


def coarse_edges(pictures: Float[np.ndarray, "n 3 H W"]) -> Float[np.ndarray, "n d"]:
    """Return edges averaged over cells of EDGE_CELL pixels: a descriptor of layout."""
    found = edges(pictures)
    n, height, width = found.shape
    h, w = height // EDGE_CELL, width // EDGE_CELL
    cells = found[:, : h * EDGE_CELL, : w * EDGE_CELL].reshape(n, h, EDGE_CELL, w, EDGE_CELL)
    return cells.mean((2, 4)).reshape(n, -1)


def own_is_nearest(
    queries: Float[np.ndarray, "n d"], gallery: Float[np.ndarray, "m d"], own: np.ndarray
) -> Float[np.ndarray, " n"]:
    """Return 1 where the nearest entry of the gallery is the query's own (row `own[i]`), else 0."""
    q, g = queries.astype(np.float64), gallery.astype(np.float64)
    squared = (q**2).sum(1)[:, None] + (g**2).sum(1) - 2 * q @ g.T
    return (squared.argmin(1) == own).astype(np.float64)


def reduction(after: np.ndarray, before: np.ndarray) -> float:
    """Return 1 - mean(after) / mean(before): the share by which a distance became smaller; negative where it grew."""
    return float(1 - after.mean() / before.mean())


def reduction_interval(
    after: np.ndarray, before: np.ndarray, seed: int = 0, level: float = 0.9
) -> tuple[float, float] | None:
    """Bootstrap interval over subjects of `reduction`, by percentiles; a subject's two distances stay together.

    None of a single subject, which says nothing of others.
    """
    if len(after) < 2:
        return None
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(after), (BOOTSTRAPS, len(after)))
    found = 1 - after[rows].mean(1) / before[rows].mean(1)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def rate_interval(
    hits: np.ndarray, groups: Sequence[str] | None = None, seed: int = 0, level: float = 0.9
) -> tuple[float, float]:
    """Bootstrap interval over groups of a share of hits (n,), 0 or 1; without groups every hit is one of its own.

    With Wilson's bounds where the bootstrap says little: shares of 0 and 1, few groups (`label_rates`).
    """
    n = len(hits)
    of = np.arange(n) if groups is None else np.unique(np.array(groups, dtype=str), return_inverse=True)[1]
    one = np.zeros(n, dtype=np.int64)
    _, low, high = label_rates(hits[:, None] > 0, np.ones((n, 1), dtype=bool), one, of, 1, seed, level)
    return float(low[0, 0]), float(high[0, 0])
