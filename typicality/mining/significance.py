"""Is a cluster typical of its label alone, or would its members be as typical of the other labels?

The evidence is each member's specificity: its typicality under its own label minus the mean under labels that its
image does not carry, from the same draws.

What is tested: the null that specificity, averaged over the members of one group (an image, a patient, a webcam),
is as likely to be +s as -s, independently for each group. A small p-value says that the members' advantage for
their own label is consistent over groups and is not the work of one or two of them.

What is not tested: members were selected for a high score under their own label, and a model that was fine-tuned on
these very images has partly memorised which label they carry. Both push specificity above zero without any visual
meaning, so these p-values are too small unless scores come from held-out folds and from draws that did not take
part in the selection. They also say nothing about whether the cluster looks coherent.
"""

from __future__ import annotations

import numpy as np

EXACT_GROUPS = 12
"""Up to so many groups all 2^n sign patterns are listed."""
PATTERNS = 9999
"""Random sign patterns beyond that; the smallest p-value is 1 / (PATTERNS + 1)."""


def sign_flip_p_value(specificity: np.ndarray, groups: np.ndarray, seed: int = 0) -> float:
    """One-sided sign-flip test that the mean over groups is above zero (Fisher 1935, section 21).

    The p-value is the share of sign patterns, the observed one included, whose mean is at least the observed one;
    with g <= 12 groups it is exact and never below 2^-g.

    Parameters
    ----------
    specificity : (n,) of the members; members with NaN are left out
    groups : (n,) group of each member; members of one group count as one observation, their mean
    seed : of the random patterns, used beyond EXACT_GROUPS groups

    Returns
    -------
    p-value in (0, 1], or NaN where no specificity is known.
    """
    known = np.isfinite(specificity)
    if not known.any():
        return float("nan")
    _, member_of = np.unique(np.asarray(groups)[known], return_inverse=True)
    means = np.bincount(member_of, np.asarray(specificity, dtype=np.float64)[known]) / np.bincount(member_of)
    threshold = means.sum() - 1e-9 * np.abs(means).sum()
    if len(means) <= EXACT_GROUPS:
        patterns = np.arange(2 ** len(means))[:, None] >> np.arange(len(means)) & 1
        return float(np.mean((1 - 2 * patterns) @ means >= threshold))
    rng = np.random.default_rng(seed)
    reached = 1
    for start in range(0, PATTERNS, 1000):
        flips = rng.integers(0, 2, size=(min(1000, PATTERNS - start), len(means)), dtype=np.int8)
        reached += int(np.count_nonzero((1 - 2 * flips) @ means >= threshold))
    return reached / (PATTERNS + 1)


def adjusted_p_values(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjustment: rejecting where the result is <= q keeps the false discovery rate at q.

    Parameters
    ----------
    p : (m,) p-values; NaN is no test: it stays NaN and does not count

    Returns
    -------
    (m,) float64, at least p and at most 1 (Benjamini & Hochberg 1995, in Yekutieli's adjusted form)
    """
    values = np.asarray(p, dtype=np.float64)
    result = np.full(values.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(-values[tested], kind="stable")]
    scaled = values[order] * len(order) / np.arange(len(order), 0, -1)
    result[order] = np.minimum(np.minimum.accumulate(scaled), 1) if len(order) else scaled
    return result
