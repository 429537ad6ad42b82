"""Rates with intervals, and tests of trend: arrays in, arrays out.

An observation is an image under one of its labels. Groups (one subject, patient, place) are what is independent, so
intervals resample groups, and tests permute labels within them, or between groups that have one label each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri

BOOTSTRAPS = 1000
SAME = 1e-9
"""Numbers that are nearer to one another differ by rounding alone."""
FEW = 8
"""Groups below which a bootstrap over them is too narrow. Simulated with twenty images a group, its 90% intervals of a
rate hold the truth in 0.6 of the cases with two groups, 0.8 with three to five, 0.83 with six and 0.87 with eight."""
PRESENT = 0.5
"""An element is present in a label where its rate is at least so much of its largest one."""


def label_means(
    values: Float[np.ndarray, "n c"],
    known: Bool[np.ndarray, "n c"],
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    count: int,
    seed: int = 0,
    level: float = 0.9,
) -> tuple[Float[np.ndarray, "labels c"], Float[np.ndarray, "labels c"], Float[np.ndarray, "labels c"]]:
    """Mean of every column in every label with bootstrap intervals over groups.

    Parameters
    ----------
    known : observations that count for a column
    labels : of each observation, in [0, count)
    groups : of each observation, from 0 without gaps

    Returns
    -------
    mean, low, high, NaN where a label has no known observation.
    """
    rng = np.random.default_rng(seed)
    n_groups = int(groups.max()) + 1
    weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=BOOTSTRAPS)[:, groups].astype(np.float64)
    masked = np.where(known, values, 0.0)
    mean, low, high = (np.full((count, values.shape[1]), np.nan) for _ in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        for label in range(count):
            here = labels == label
            mean[label] = masked[here].sum(0) / known[here].sum(0)
            resampled = (weights[:, here] @ masked[here]) / (weights[:, here] @ known[here].astype(np.float64))
            usable = np.isfinite(resampled).any(0)
            if usable.any():
                bounds = np.nanquantile(resampled[:, usable], [(1 - level) / 2, (1 + level) / 2], axis=0)
                low[label, usable], high[label, usable] = bounds
    return mean, low, high


def label_rates(
    found: Bool[np.ndarray, "n c"],
    known: Bool[np.ndarray, "n c"],
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    count: int,
    seed: int = 0,
    level: float = 0.9,
) -> tuple[Float[np.ndarray, "labels c"], Float[np.ndarray, "labels c"], Float[np.ndarray, "labels c"]]:
    """Share of the known observations that are found, with intervals; otherwise as `label_means`.

    Where all resamples agree, as at shares of 0 and 1, or a label has fewer than FEW known groups, the bootstrap says
    little of the error: an interval also holds Wilson's for as many trials as the label has known groups.
    """
    mean, low, high = label_means(found.astype(np.float64), known, labels, groups, count, seed, level)
    trials = label_groups(known, labels, groups, count)
    return mean, *_widened(low, high, wilson(mean, trials, level), trials)


def label_groups(
    known: Bool[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], count: int
) -> Int[np.ndarray, "labels c"]:
    """Number of groups with a known observation in every label; arguments as in `label_means`."""
    present = np.zeros((count, int(groups.max()) + 1, known.shape[1]), dtype=bool)
    np.logical_or.at(present, (labels, groups), known)
    return present.sum(1)


def _widened(
    low: np.ndarray, high: np.ndarray, wide: tuple[np.ndarray, np.ndarray], n_groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of a bootstrap joined with others where all resamples agree or there are few groups."""
    poor = (high - low < SAME) | (n_groups < FEW)
    return np.where(poor, np.minimum(low, wide[0]), low), np.where(poor, np.maximum(high, wide[1]), high)


def wilson(
    share: Float[np.ndarray, "..."], trials: Int[np.ndarray, "..."], level: float = 0.9
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Bounds of a share of independent trials (Wilson 1927); NaN without trials."""
    z = float(ndtri((1 + level) / 2))
    n = np.where(trials > 0, trials, np.nan)
    centre, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return np.clip(low, 0, share), np.clip(high, share, 1)


def trend_test(
    values: Float[np.ndarray, "n c"],
    known: Bool[np.ndarray, "n c"],
    position: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    permutations: int = 4999,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Slope over ordered labels and its two-sided permutation p-value.

    Groups of one position (a single image, or a camera that stands in one country) give one observation each, their
    mean value, and exchange positions with one another. Images of other groups exchange theirs within the group, which
    keeps what they share. With the deviations x of positions and v of values from the means of those that may be
    exchanged, the slope is sum xv / sum xx and the statistic |sum xv| / sqrt(V). V is the variance of that sum: sum
    xxvv over the groups of one position, which holds where these differ in size and thus in precision, too (DiCiccio &
    Romano 2017, Robust permutation tests for correlation and regression coefficients), and that of the permutations
    within the others.

    Returns
    -------
    slope : (c,) least-squares change of the value a step of the order
    p_value : (c,) in (0, 1]; 1 where a column does not vary
    """
    values, known, x, among = _exchangeable(values, known, position.astype(np.float64), groups)
    lone = int((among == 0).sum())
    change = _deviations(values, known, among)
    step = _deviations(np.broadcast_to(x[:, None], values.shape), known, among)
    spread = (step**2).sum(0)
    slope = np.divide((step * change).sum(0), spread, out=np.zeros(values.shape[1]), where=spread > 0)
    x = _deviations(x[:, None], np.ones((len(x), 1), dtype=bool), among)[:, 0]
    each = np.bincount(among, x**2) / np.maximum(np.bincount(among) - 1, 1)
    squared = change**2
    within = each[among[lone:]] @ squared[lone:]

    def statistic(x: np.ndarray) -> np.ndarray:
        variance = x[:lone] ** 2 @ squared[:lone] + within
        return np.divide(np.abs(x @ change), np.sqrt(variance), out=np.zeros(len(within)), where=variance > SAME)

    observed = statistic(x)
    rng = np.random.default_rng(seed)
    reached = np.ones(len(observed))
    for _ in range(permutations):
        reached += statistic(x[np.lexsort((rng.random(len(x)), among))]) >= observed - SAME
    return slope, reached / (permutations + 1)


def _exchangeable(
    values: np.ndarray, known: np.ndarray, position: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (values, known, position, among): those of one number in `among`, which ascends, may exchange positions.

    Groups of one position come first, as one observation each: all of these have number 0.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    lone = np.bincount(member, position != position[first][member]) == 0
    mean, count = _means(values, known, member)
    mixed = np.flatnonzero(~lone[member])
    mixed = mixed[np.argsort(member[mixed], kind="stable")]
    return (
        np.concatenate([mean[lone], values[mixed]]),
        np.concatenate([count[lone] > 0, known[mixed]]),
        np.concatenate([position[first][lone], position[mixed]]),
        np.concatenate([np.zeros(lone.sum(), dtype=np.int64), 1 + member[mixed]]),
    )


def _means(values: np.ndarray, known: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the known values of every set in every column (0 without any), and their number: (sets, c)."""
    total, count = (np.zeros((int(of.max()) + 1, values.shape[1])) for _ in range(2))
    np.add.at(total, of, np.where(known, values, 0.0))
    np.add.at(count, of, known)
    return total / np.maximum(count, 1), count


def _deviations(values: np.ndarray, known: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Known values minus the mean of their set; 0 where unknown."""
    return np.where(known, values - _means(values, known, of)[0][of], 0.0)


def life_span(rates: Float[np.ndarray, " labels"]) -> tuple[int | None, int, int | None] | None:
    """Return where an element appears, peaks, and the first label of a known rate after which it is present no more.

    Present is a rate of at least PRESENT of the largest. An element that is never found has no life span (None). The
    first of the three is None where the rate of the label before is not known, the last one where the element stays, or
    no later rate is known.
    """
    known = np.isfinite(rates)
    rates = np.where(known, rates, 0.0)
    peak = int(rates.argmax())
    if rates[peak] <= 0:
        return None
    present = np.flatnonzero(rates >= PRESENT * rates[peak])
    first, last = int(present[0]), int(present[-1])
    later = last + 1 + np.flatnonzero(known[last + 1 :])
    return first if first == 0 or known[first - 1] else None, peak, int(later[0]) if len(later) else None


@dataclass(frozen=True)
class Likeness:
    """How often the nearest element of another group is of which label; rows are the labels of the elements.

    Attributes
    ----------
    share : rows sum to 1 (NaN for a label without elements)
    lift : share over the share that a random element of another group would give; 1 is chance, NaN where that is 0
    low, high : bootstrap interval of `lift` over the elements' groups; an element keeps its nearest. Where all
        resamples agree, as at a lift of 0, or a label has fewer than FEW groups, joined with Wilson's bounds of `share`
        over the same share of chance
    """

    share: Float[np.ndarray, "labels labels"]
    lift: Float[np.ndarray, "labels labels"]
    low: Float[np.ndarray, "labels labels"]
    high: Float[np.ndarray, "labels labels"]


def neighbour_shares(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    count: int,
    seed: int = 0,
    level: float = 0.9,
) -> Likeness:
    """Compare which labels the nearest elements of other groups are of with what chance would give."""
    nearest, chance = np.full(len(features), -1), np.zeros((len(features), count))
    for start in range(0, len(features), 1024):
        rows = slice(start, start + 1024)
        similar = features[rows] @ features.T
        other = groups[rows, None] != groups
        usable = other.any(1)
        nearest[rows] = np.where(usable, labels[np.where(other, similar, -np.inf).argmax(1)], -1)
        for label in range(count):
            chance[rows, label] = (other & (labels == label)).sum(1) / np.maximum(other.sum(1), 1)
    rng = np.random.default_rng(seed)
    n_groups = int(groups.max()) + 1
    weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=BOOTSTRAPS)
    share, lift, low, high = (np.full((count, count), np.nan) for _ in range(4))
    for label in range(count):
        own = np.flatnonzero((labels == label) & (nearest >= 0))
        if not len(own):
            continue
        hits, expected = np.eye(count)[nearest[own]], chance[own]
        share[label] = hits.mean(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            lift[label] = hits.sum(0) / expected.sum(0)
            drawn = weights[:, groups[own]].astype(np.float64)
            resampled = (drawn @ hits) / (drawn @ expected)
            known = np.isfinite(resampled).any(0)
            bounds = np.nanquantile(resampled[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
            low[label, known], high[label, known] = bounds
            trials = np.full(count, len(np.unique(groups[own])))
            least, most = wilson(share[label], trials, level)
            wide = least / expected.mean(0), most / expected.mean(0)
            low[label], high[label] = _widened(low[label], high[label], wide, trials)
    return Likeness(share, lift, low, high)
