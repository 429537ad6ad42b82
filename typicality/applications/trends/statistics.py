"""Rates with intervals, and tests of trend: arrays in, arrays out.

An observation is an image under one of its labels. Groups (one subject, patient, place) are what is independent, so
intervals resample groups and tests permute labels within them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri

BOOTSTRAPS = 1000
SAME = 1e-9
"""Width below which an interval has none."""
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

    Where all resamples agree, as at shares of 0 and 1, the bootstrap says nothing of the error: the bounds are Wilson's
    for as many trials as the label has known groups.
    """
    mean, low, high = label_means(found.astype(np.float64), known, labels, groups, count, seed, level)
    for label in range(count):
        here = labels == label
        present = np.zeros((int(groups.max()) + 1, known.shape[1]), dtype=bool)
        np.logical_or.at(present, groups[here], known[here])
        bounds = wilson(mean[label], present.sum(0), level)
        fixed = high[label] - low[label] < SAME
        low[label], high[label] = (np.where(fixed, b, x[label]) for b, x in zip(bounds, (low, high), strict=True))
    return mean, low, high


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

    The statistic is that of the Cochran-Armitage test, sum of position times (value - mean value). Positions are
    permuted within groups that have several, which keeps what a group's images share. Groups of one position (a single
    image, or a camera that stands in one country) exchange theirs as wholes.

    Returns
    -------
    slope : (c,) least-squares change of the value a step of the order
    p_value : (c,) in (0, 1]; 1 where a column does not vary
    """
    x = position.astype(np.float64)
    weight = known.astype(np.float64)
    totals = np.maximum(weight.sum(0), 1)
    centred = np.where(known, values - (values * weight).sum(0) / totals, 0.0)
    mean_x = x @ weight / totals
    spread = ((x[:, None] - mean_x) ** 2 * weight).sum(0)
    slope = np.divide(x @ centred, spread, out=np.zeros(values.shape[1]), where=spread > 0)
    observed = np.abs(x @ centred)
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    of_group = x[first]
    constant = np.bincount(member, x != of_group[member]) == 0
    whole = constant[member]
    mixed = np.flatnonzero(~whole)
    mixed = mixed[np.argsort(member[mixed], kind="stable")]
    rng = np.random.default_rng(seed)
    reached = np.ones(values.shape[1])
    tolerance = 1e-9 * (1 + observed)
    for _ in range(permutations):
        exchanged = of_group.copy()
        exchanged[constant] = rng.permutation(of_group[constant])
        permuted = np.where(whole, exchanged[member], x)
        permuted[mixed] = x[mixed[np.lexsort((rng.random(len(mixed)), member[mixed]))]]
        reached += np.abs(permuted @ centred) >= observed - tolerance
    p_value = reached / (permutations + 1)
    return slope, np.where(np.abs(centred).sum(0) > 0, p_value, 1.0)


def life_span(rates: Float[np.ndarray, " labels"]) -> tuple[int, int, int | None] | None:
    """Return where an element appears, peaks, and the first label after which it is present no more (None: it stays).

    Present is a rate of at least PRESENT of the largest. An element that is never found has no life span (None).
    """
    known = np.nan_to_num(rates)
    peak = int(known.argmax())
    if known[peak] <= 0:
        return None
    present = np.flatnonzero(known >= PRESENT * known[peak])
    last = int(present[-1])
    return int(present[0]), peak, (last + 1 if last + 1 < len(known) else None)


@dataclass(frozen=True)
class Likeness:
    """How often the nearest element of another group is of which label; rows are the labels of the elements.

    Attributes
    ----------
    share : rows sum to 1 (NaN for a label without elements)
    lift : share over the share that a random element of another group would give; 1 is chance, NaN where that is 0
    low, high : bootstrap interval of `lift` over the elements' groups; an element keeps its nearest. Where all
        resamples agree, as at a lift of 0, Wilson's bounds of `share` over the same share of chance
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
            wide = wilson(share[label], np.full(count, len(np.unique(groups[own]))), level)
            fixed = high[label] - low[label] < SAME
            low[label], high[label] = (
                np.where(fixed, b / expected.mean(0), x[label]) for b, x in zip(wide, (low, high), strict=True)
            )
    return Likeness(share, lift, low, high)
