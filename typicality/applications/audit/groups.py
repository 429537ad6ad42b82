"""Statistics whose units are groups of relatives: weights, permutations, p-values and errors.

A label is given to a group (a camera, a patient) as a rule, so that ten images of one group are no ten observations.
"""

from __future__ import annotations

import numpy as np

from typicality.metrics import clustered_sum_error


def even_weights(y: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n,) weights of rows with labels y (n,) int: they sum to 1 over each label, evenly over its groups."""
    _, unit, size = np.unique(np.stack([y, group]), axis=1, return_inverse=True, return_counts=True)
    unit = unit.ravel()
    _, first = np.unique(unit, return_index=True)
    units_of = np.bincount(y[first], minlength=int(y.max()) + 1)
    return 1 / (size[unit] * units_of[y])


def permute_by_group(y: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute labels y (n,) so that those of a group (n,) stay together.

    A group of one label gets that of any other such group, however large the two are. A group of several labels gets
    those of another one of several whose size lies between the same powers of two, repeated or cut to its own size.
    """
    _, first, member = np.unique(group, return_index=True, return_inverse=True)
    one = np.bincount(member, y != y[first[member]]) == 0
    of_group = y[first]
    of_group[one] = rng.permutation(of_group[one])
    result = np.where(one[member], of_group[member], y)
    alike: dict[int, list[np.ndarray]] = {}
    order = np.flatnonzero(~one[member])
    order = order[np.argsort(member[order], kind="stable")]
    for rows in np.split(order, np.flatnonzero(np.diff(member[order])) + 1):
        alike.setdefault(len(rows).bit_length(), []).append(rows)
    for members in alike.values():
        for into, source in zip(members, rng.permutation(len(members)), strict=True):
            result[into] = np.resize(y[members[source]], len(into))
    return result


def tail_p_value(observed: float, permuted: np.ndarray) -> float:
    """One-sided permutation p-value; beyond the last permutation a normal tail, never above 1 / (permutations + 1)."""
    from scipy.stats import norm

    exact = (1 + (permuted >= observed).sum()) / (1 + len(permuted))
    if exact > 1 / (1 + len(permuted)):
        return float(exact)
    z = (observed - permuted.mean()) / max(float(permuted.std(ddof=1)), 1e-9)
    return float(min(exact, max(norm.sf(z) * 3, 1e-12)))  # three: the tail is only roughly normal


def clustered_error(influence: np.ndarray, group: np.ndarray) -> float:
    """Standard error of a sum of contributions (n,), as `clustered_sum_error`, but 0 where there is one group only."""
    error = clustered_sum_error(influence, group)
    return 0.0 if np.isnan(error) else error
