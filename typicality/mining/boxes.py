"""Boxes on score maps: their means, the errors of those means, and the best ones that do not overlap.

Arrays only, everything batched over leading axes. The box at (r, c) with side k covers the cells
[r, r + k) x [c, c + k), so an (h, w) map has (h - k + 1, w - k + 1) boxes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from typicality.errors import SettingsError
from typicality.records import ScoreMap

PRIOR_DRAWS = 4.0
"""Weight of the pooled variance in a box's own, in degrees of freedom (d0 in Smyth 2004, eq. for s-tilde)."""


def box_means(maps: np.ndarray, side: int) -> np.ndarray:
    """Mean over every side x side box, by float64 integral images.

    Parameters
    ----------
    maps : (..., h, w)
    side : cells, 1 <= side <= min(h, w)

    Returns
    -------
    (..., h - side + 1, w - side + 1) float32. Sums are float64, so equal boxes tie after rounding.

    Raises
    ------
    SettingsError : where no box of that side fits into the map.
    """
    height, width = maps.shape[-2:]
    if not 1 <= side <= min(height, width):
        raise SettingsError(
            f"a patch of {side} cells does not fit into a score map of {height} x {width} cells: set mine.patch smaller"
        )
    integral = np.zeros((*maps.shape[:-2], height + 1, width + 1))
    inner = integral[..., 1:, 1:]
    np.cumsum(maps, axis=-2, dtype=np.float64, out=inner)
    np.cumsum(inner, axis=-1, out=inner)
    columns = integral[..., side:] - integral[..., :-side]
    means = columns[..., side:, :] - columns[..., :-side, :]
    means /= side * side
    return means.astype(np.float32)


def box_variances(
    maps: np.ndarray,
    squares: Mapping[int, np.ndarray],
    draws: np.ndarray,
    side: int,
    prior: float = PRIOR_DRAWS,
    means: np.ndarray | None = None,
) -> np.ndarray:
    """Variance of the mean score of every box, for a batch of maps of one shape.

    For a side k with recorded squares the variance of a mean of n independent draws is estimated without bias by
    (E[b^2] - E[b]^2) / (n - 1), b being the box mean of a draw. Few draws make that noisy, so it is shrunk towards
    its average over the boxes of the same image (Smyth 2004, "Linear models and empirical Bayes methods"):

        v = (prior * pooled + (n - 1) * own) / (prior + n - 1)

    For other sides log v is interpolated linearly in log side between the two recorded neighbours, at boxes with
    the same centre; above the largest one it continues with the slope that the pooled variances of the two largest
    have. This is an approximation: exact where the noise has a power-law spectrum over that range.

    Parameters
    ----------
    maps : (b, h, w) mean of T over draws
    squares : side -> (b, h - side + 1, w - side + 1) mean over draws of the squared box mean
    draws : (b,) number n of independent draws behind each map
    side : cells
    prior : weight of the pooled variance, in draws
    means : `box_means(maps, side)` where the caller has them already

    Returns
    -------
    (b, h - side + 1, w - side + 1) float64; inf where n < 2, or where nothing can be interpolated from.
    """
    height, width = maps.shape[-2:]
    rows, columns = height - side + 1, width - side + 1
    if side in squares:
        return _moderated(maps, squares[side], draws, side, prior, means)[0]
    known = sorted(k for k in squares if k <= min(height, width))
    if len(known) < 2:
        return np.full((len(maps), rows, columns), np.inf)
    above = next((i for i, k in enumerate(known) if k > side), len(known) - 1)
    low, high = known[max(above, 1) - 1], known[max(above, 1)]
    share = np.log(side / low) / np.log(high / low)
    low_variance, low_pooled = _moderated(maps, squares[low], draws, low, prior)
    high_variance, high_pooled = _moderated(maps, squares[high], draws, high, prior)
    upper = _at_centres(high_variance, high, side, rows, columns)
    if share > 1:
        with np.errstate(invalid="ignore"):
            result = upper * (_positive(high_pooled) / _positive(low_pooled)) ** (share - 1)
    else:
        lower = _at_centres(low_variance, low, side, rows, columns)
        result = _positive(lower) ** (1 - share) * _positive(upper) ** share
    return np.where(np.asarray(draws)[:, None, None] < 2, np.inf, result)


def _moderated(
    maps: np.ndarray,
    squares: np.ndarray,
    draws: np.ndarray,
    side: int,
    prior: float,
    means: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The variance of every box's mean, shrunk towards the image's, and that pooled variance (b, 1, 1)."""
    freedom = (np.asarray(draws, dtype=np.float64) - 1)[:, None, None]
    means = (box_means(maps, side) if means is None else means).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.maximum(squares - means * means, 0) / freedom
        pooled = own.mean(axis=(-2, -1), keepdims=True)
        result = (prior * pooled + freedom * own) / (prior + freedom)
    unknown = freedom < 1
    return np.where(unknown, np.inf, result), np.where(unknown, np.inf, pooled)


def _at_centres(values: np.ndarray, known: int, side: int, rows: int, columns: int) -> np.ndarray:
    """Read values of boxes of side `known` at the centres of rows x columns boxes of another side."""
    shift = (side - known) // 2
    r = np.clip(np.arange(rows) + shift, 0, values.shape[-2] - 1)
    c = np.clip(np.arange(columns) + shift, 0, values.shape[-1] - 1)
    return values[..., r[:, None], c]


def _positive(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, np.finfo(np.float64).tiny)


def box_standard_errors(score: ScoreMap, side: int, prior: float = PRIOR_DRAWS) -> np.ndarray:
    """Standard error of every box's mean score; see `box_variances`.

    Returns
    -------
    (h - side + 1, w - side + 1) float32 in units of T; inf with a single draw.
    """
    squares = {k: np.asarray(s)[None] for k, s in score.squares.items()}
    variances = box_variances(score.typicality[None], squares, np.array([score.n_pairs]), side, prior)
    return np.sqrt(variances[0]).astype(np.float32)


def best_boxes(means: np.ndarray, side: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take the best boxes of every map greedily, each disjoint from those taken before.

    Equal scores: the smaller row goes first, then the smaller column.

    Parameters
    ----------
    means : (b, H, W) score of the box at each position, finite
    side : cells; boxes overlap where both their rows and their columns differ by less
    count : boxes a map

    Returns
    -------
    rows, columns : (b, count) int64
    scores : (b, count) float32, best first; -inf where no further box fits
    """
    batch, height, width = means.shape
    margin = side - 1
    left = np.full((batch, height + 2 * margin, width + 2 * margin), -np.inf, dtype=np.float32)
    left[:, margin : margin + height, margin : margin + width] = means
    flat = left.reshape(batch, -1)
    one = np.arange(batch)
    window = np.arange(2 * side - 1)
    places = np.empty((batch, count), dtype=np.int64)
    scores = np.empty((batch, count), dtype=np.float32)
    for i in range(count):
        places[:, i] = flat.argmax(axis=1)
        scores[:, i] = flat[one, places[:, i]]
        rows, columns = np.divmod(places[:, i], left.shape[2])
        top, start = np.maximum(rows - margin, 0), np.maximum(columns - margin, 0)
        left[one[:, None, None], (top[:, None] + window)[:, :, None], (start[:, None] + window)[:, None]] = -np.inf
    rows, columns = np.divmod(places, left.shape[2])
    return rows - margin, columns - margin, scores
