"""Pool the maps of independent passes over the same image and label, and count what their variances are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from typicality.errors import TypicalityError
from typicality.records import ScoreMap


def freedom(units: int | np.ndarray) -> np.ndarray:
    """Degrees of freedom of a successive-difference variance over n units: 2 (n - 1)^2 / (3 n - 4).

    Adjacent differences share a unit, so they are worth less than the n - 1 of the plain variance: 1, 1.6, 2.25 for
    2, 3, 4 units, two thirds of n - 1 in the end (von Neumann et al. 1941, the variance of delta^2 under normality).
    0 for a single unit.
    """
    n = np.asarray(units, dtype=np.float64)
    return np.where(n < 2, 0.0, 2 * (n - 1) ** 2 / np.maximum(3 * n - 4, 1))


def pooled_freedom(units: Sequence[int]) -> float:
    """Degrees of freedom of the pooled variance (Satterthwaite), where the units of all passes vary alike."""
    known = [n for n in units if n > 1]
    if not known:  # single units: the plain variance between them
        return float(len(units) - 1)
    return float(sum(known) ** 2 / sum(n * n / float(freedom(n)) for n in known))


def pooled(maps: Sequence[ScoreMap]) -> ScoreMap:
    """Pool maps of one image and label from independent passes.

    Means are weighted by the number n of units; the variance of the pooled mean is sum (n_i / n)^2 var_i, stored in
    `squares` as `moments_of` stores it. A pass of a single unit takes the variance of the others; where all passes are
    single units, they are units of one pass.

    Raises
    ------
    TypicalityError : where the maps are not of one image, label and shape.
    """
    first = maps[0]
    if len(maps) == 1:
        return first
    if len({(m.image_id, m.label, m.typicality.shape) for m in maps}) > 1:
        raise TypicalityError(f"maps of {first.image_id} for {first.label!r} and of others cannot be pooled")
    units = np.array([m.n_pairs for m in maps], dtype=np.float64)
    total = units.sum()

    def mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.tensordot(units / total, np.stack(arrays).astype(np.float64), 1)

    def pooled_part(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
        known = [a for a in arrays if a is not None]
        return mean(known).astype(np.float32) if len(known) == len(arrays) else None

    squares = {}
    for side in first.squares:
        boxes = [_box_means(m.typicality, side) for m in maps]
        known = [i for i, n in enumerate(units) if n > 1]
        if known:
            # per unit: n_i times the variance of the mean of pass i
            unit = [units[i] * np.maximum(maps[i].squares[side] - boxes[i] ** 2, 0) / (units[i] - 1) for i in known]
            spread = np.tensordot(units[known] / units[known].sum(), np.stack(unit), 1) * (total - 1) / total
        else:
            spread = np.var(boxes, axis=0)
        squares[side] = (mean(boxes) ** 2 + spread).astype(np.float32)
    return ScoreMap(
        image_id=first.image_id, label=first.label, view=first.view, n_pairs=int(total),
        typicality=mean([m.typicality for m in maps]).astype(np.float32), squares=squares,
        shrinkage=mean([m.shrinkage for m in maps]).astype(np.float32),
        null_loss=mean([m.null_loss for m in maps]).astype(np.float32),
        even=pooled_part([m.even for m in maps]), even_share=pooled_part([m.even_share for m in maps]),
    )  # fmt: skip


def _box_means(values: np.ndarray, side: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(values.astype(np.float64), (side, side))
    return windows.mean(axis=(-2, -1))
