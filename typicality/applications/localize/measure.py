"""How well the maps of one label find what is marked, on images that chose nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from typicality import metrics

PIXELS = 40_000_000
"""Pooled pixels a label beyond which every second, third, ... row and column is measured."""


def measure(maps: Sequence[np.ndarray], truths: Sequence[np.ndarray], threshold: float | None) -> dict[str, Any]:
    """Return the measures of a label's maps, in pixels of the originals.

    Parameters
    ----------
    maps, truths : (height, width) each, float and bool; at least one pixel must be marked
    threshold : the one chosen elsewhere

    Returns
    -------
    average_precision : pooled over all pixels of all images, and so are prevalence and the two IoUs
    mean_image_average_precision, pointing : means over images in which anything is marked
    """
    step = max(1, int(np.ceil(np.sqrt(sum(m.size for m in maps) / PIXELS))))
    maps, truths = [m[::step, ::step] for m in maps], [t[::step, ::step] for t in truths]
    scores, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([t.ravel() for t in truths])
    marked = [(m, t) for m, t in zip(maps, truths, strict=True) if t.any()]
    precision, share = metrics.average_precision(scores, truth), metrics.prevalence(truth)
    return {
        "images": len(maps),
        "prevalence": share,
        "average_precision": precision,
        "lift": metrics.lift(precision, share),
        "mean_image_average_precision": float(np.mean([metrics.average_precision(m, t) for m, t in marked])),
        "pointing": float(np.mean([metrics.pointing(m, t) for m, t in marked])),
        "iou_best": metrics.best_iou(scores, truth)[0],
        "iou_chosen": None if threshold is None else metrics.iou(scores, truth, threshold),
    }


def truncated(maps: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """Return the mean over images of `metrics.auc_pr_truncated`; the maps must be in units of the loss."""
    return float(np.mean([metrics.auc_pr_truncated(m, t) for m, t in zip(maps, truths, strict=True) if t.any()]))


def rounded(row: dict[str, Any], digits: int = 4) -> dict[str, Any]:
    """Round the numbers of a row to significant digits."""
    return {n: float(f"{v:.{digits}g}") if isinstance(v, float) and np.isfinite(v) else v for n, v in row.items()}
