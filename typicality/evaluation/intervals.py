"""Average precision on bootstrap resamples of groups: what a measure over pooled pixels may be worth elsewhere.

Pixels of an image are no independent trials, nor are images of one group (a patient, a piece of metal). Resamples draw
whole groups, so that a pixel counts as often as its group was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

PIXELS = 250_000
"""Pooled pixels beyond which every second, third, ... row and column is measured: resamples sort them once."""


def group_draws(groups: int, times: int, seed: int = 0) -> Int[np.ndarray, "times groups"]:
    """How often each of some groups is drawn in each of `times` resamples."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=times)


def resampled_precision(
    maps: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    groups: Int[np.ndarray, " n"],
    draws: Int[np.ndarray, "times groups"],
) -> Float[np.ndarray, " times"]:
    """Return the average precision, pooled over pixels, of every resample; NaN where nothing is marked in it.

    Parameters
    ----------
    maps, truths : n arrays (height, width), float and bool
    groups : column of `draws` of every map
    draws : how often a group counts
    """
    step = max(1, int(np.ceil(np.sqrt(sum(m.size for m in maps) / PIXELS))))
    maps, truths = [m[::step, ::step] for m in maps], [t[::step, ::step] for t in truths]
    scores, truth = (np.concatenate([x.ravel() for x in arrays]) for arrays in (maps, truths))
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    of, truth = np.repeat(groups, [m.size for m in maps])[order], truth[order]
    found = np.full(len(draws), np.nan)
    for i, weight in enumerate(draws.astype(np.float64)):
        counted = weight[of]
        marked, everything = np.cumsum(counted * truth)[last], np.cumsum(counted)[last]
        if marked[-1] > 0:
            precision = np.divide(marked, everything, out=np.zeros_like(marked), where=everything > 0)
            found[i] = (precision * np.diff(marked, prepend=0.0)).sum() / marked[-1]
    return found


def bounds(values: Float[np.ndarray, " times"], level: float = 0.9) -> tuple[float, float] | None:
    """Percentile interval of resampled values that are numbers; None where fewer than half of them are."""
    known = values[np.isfinite(values)]
    if not len(known) or 2 * len(known) < len(values):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
