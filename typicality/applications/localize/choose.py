"""Which recipe and which threshold: by the validation part; where nothing is marked, see thresholds.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from typicality import metrics
from typicality.applications.localize.maps import Kitchen, Recipe
from typicality.applications.localize.passes import Evidence
from typicality.progress import SILENT, Progress

SharesOf = Callable[[Evidence], np.ndarray]
PRIOR_GROUPS = 10.0
"""A label listens to its own validation part as much as to the others' once it has so many groups there."""
BINS = 256


def choose(
    kitchen: Kitchen,
    by_label: Mapping[str, Sequence[Evidence]],
    shares_of: SharesOf,
    groups_of: Callable[[Evidence], str],
    recipes: Sequence[Recipe],
    progress: Progress = SILENT,
) -> dict[str, Recipe]:
    """Return the best recipe for every label of `by_label`, as `best` says, by its evidence here.

    Parameters
    ----------
    by_label : evidence of the validation part; a label may have none, and then follows the others
    shares_of : marked share of every cell

    Raises
    ------
    ValueError : when nothing is marked.
    """
    progress.start("choose", len(recipes))
    logs = log_precisions(kitchen, by_label, shares_of, recipes, progress)
    progress.finish()
    groups = [len({groups_of(e) for e in found}) for found in by_label.values()]
    return dict(zip(by_label, best(logs, groups, recipes), strict=True))


def log_precisions(
    kitchen: Kitchen,
    by_label: Mapping[str, Sequence[Evidence]],
    shares_of: SharesOf,
    recipes: Sequence[Recipe],
    progress: Progress = SILENT,
) -> Float[np.ndarray, "recipes labels"]:
    """Return log average precision, pooled over a label's cells; NaN where nothing of the label is marked."""
    logs = np.full((len(recipes), len(by_label)), np.nan)
    truth = {label: _truth(found, shares_of) for label, found in by_label.items()}
    for i, recipe in enumerate(recipes):
        for j, (label, found) in enumerate(by_label.items()):
            shares = truth[label]
            if shares is None:
                continue
            scores = np.concatenate([kitchen(e, recipe).ravel() for e in found])
            logs[i, j] = np.log(max(metrics.average_precision(scores, shares, 1 - shares), 1e-6))
        progress.advance()
    return logs


def best(logs: Float[np.ndarray, "recipes labels"], groups: Sequence[int], recipes: Sequence[Recipe]) -> list[Recipe]:
    """Return the best recipe for every label, where few images decide little.

    A recipe's worth for a label is its log average precision there, drawn towards its mean over all labels: with n
    groups of its own the label's weight is n / (n + PRIOR_GROUPS), and none where nothing of it is marked.

    Parameters
    ----------
    logs : of `log_precisions`
    groups : of every label's evidence

    Raises
    ------
    ValueError : when no label has anything marked.
    """
    known = ~np.isnan(logs[0]) if len(recipes) else np.zeros(0, bool)
    if not known.any():
        raise ValueError("no label has marked cells in the validation part")
    common = logs[:, known].mean(1)
    found = []
    for j, n in enumerate(groups):
        own = n / (n + PRIOR_GROUPS)
        worth = own * logs[:, j] + (1 - own) * common if known[j] else common
        found.append(recipes[int(worth.argmax())])
    return found


def _truth(found: Sequence[Evidence], shares_of: SharesOf) -> np.ndarray | None:
    """Return the marked shares of all cells of a label, or None where nothing is marked."""
    if not found:
        return None
    shares = np.concatenate([shares_of(e).ravel() for e in found])
    return shares if shares.any() else None


def best_threshold(maps: Sequence[np.ndarray], shares: Sequence[np.ndarray]) -> float | None:
    """Return the threshold of the best IoU pooled over cells; None where nothing is marked."""
    if not maps or not any(s.any() for s in shares):
        return None
    truth = np.concatenate([s.ravel() for s in shares])
    return metrics.best_iou(np.concatenate([m.ravel() for m in maps]), truth, 1 - truth)[1]


def otsu(values: np.ndarray) -> float:
    """Return the threshold that best splits values into two classes: most variance between them (Otsu 1979)."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return high
    count, edges = np.histogram(values, BINS, (low, high))
    centre = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(count)[:-1].astype(float), float(count.sum())
    mass = np.cumsum(count * centre)
    above = total - below
    inside = (below > 0) & (above > 0)
    gap = mass[:-1] / np.maximum(below, 1) - (mass[-1] - mass[:-1]) / np.maximum(above, 1)
    between = np.where(inside, below * above * gap**2, -1.0)
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))  # a gap between two peaks: its middle
    return float(edges[1:-1][best].mean())


def separability(values: np.ndarray, threshold: float) -> float:
    """Return the share of the variance that lies between the values below a threshold and the others, 0 to 1."""
    above = values >= threshold
    share, total = float(above.mean()), float(values.var())
    if share in (0.0, 1.0) or total == 0:
        return 0.0
    gap = float(values[above].mean() - values[~above].mean())
    return share * (1 - share) * gap**2 / total
