"""Errors of fills where the truth is known, and the summary of an imputation. Rows in, plain data out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from typicality.metrics import clustered_error

METHODS = {
    "mean": "the model: mean of the samples",
    "best": "the model: the sample of highest typicality",
    "one": "the model: one sample",
    "null": "the model without a label (null prompt): mean of the samples",
    "mean_colour": "mean colour of the visible part",
    "harmonic": "harmonic (Laplace) fill",
    "neighbours": "mean of the 5 nearest images of the label, by visible pixels",
    "average": "average image of the label",
    "autoencoder": "the truth through the model's autoencoder: a bound, not a method",
}
"""Methods whose errors are measured, by the name of their column `rmse_<name>`."""
BOUND = "autoencoder"


def rmse(values: Float[np.ndarray, "m 3"], truth: UInt8[np.ndarray, "m 3"]) -> float:
    """Return the root mean squared error over missing pixels and colours; 1 is from black to white."""
    return float(np.sqrt(np.mean((values - truth.astype(np.float64)) ** 2)) / 255)


def rmse_of_one(fills: Float[np.ndarray, "samples m 3"], truth: UInt8[np.ndarray, "m 3"]) -> float:
    """Return the error that is to be expected of any one sample: the root of the mean of their squared errors."""
    return float(np.sqrt(np.mean([rmse(f, truth) ** 2 for f in fills])))


def mean_and_error(values: Sequence[float], groups: Sequence[str]) -> tuple[float, float | None]:
    """Return a mean and its standard error, with groups as what is independent; None of a single group."""
    error = clustered_error(np.asarray(values), groups)
    return _short(float(np.mean(values))), None if np.isnan(error) else _short(error)


def compare(rows: Sequence[dict[str, Any]], kept: str) -> dict[str, dict[str, Any]]:
    """Return for every method its errors, and how it fares beside the one that is kept.

    `rmse` is the mean over holes; `psnr`, in dB, is of the mean squared error of all (a flat hole that a method fills
    exactly has no PSNR of its own). `kept_better` is the share of holes in which what is kept has the smaller error
    (ties count half), `kept_gain` the mean of the method's error minus the kept one's, and `share_best` the share of
    holes in which no rival has a smaller error.
    """
    groups = [row["group"] for row in rows]
    own = np.array([row[f"rmse_{kept}"] for row in rows], dtype=np.float64)
    found: dict[str, dict[str, Any]] = {}
    for name in METHODS:
        if any(row[f"rmse_{name}"] is None for row in rows):
            continue
        errors = np.array([row[f"rmse_{name}"] for row in rows], dtype=np.float64)
        mean, error = mean_and_error(errors.tolist(), groups)
        squared = float(np.mean(errors**2))
        entry: dict[str, Any] = {
            "method": METHODS[name], "rmse": mean, "rmse_se": error,
            "psnr": None if squared == 0 else round(-10 * float(np.log10(squared)), 2),
        }  # fmt: skip
        if name not in (kept, BOUND):
            wins = (own < errors) + 0.5 * (own == errors)
            entry["kept_better"], entry["kept_better_se"] = mean_and_error(wins.tolist(), groups)
            entry["kept_gain"], entry["kept_gain_se"] = mean_and_error((errors - own).tolist(), groups)
        found[name] = entry
    rivals = [kept, *(name for name in found if name not in (BOUND, "best", "one", "mean"))]
    least = np.min([[row[f"rmse_{name}"] for name in rivals] for row in rows], axis=1)
    for name in rivals:
        found[name]["share_best"] = _short(float(np.mean([row[f"rmse_{name}"] for row in rows] == least)))
    return found


def label_shows(rows: Sequence[dict[str, Any]], side: str) -> dict[str, Any]:
    """Return how typical regions are of their label and of others, and how often their label wins.

    Regions of which the model sees nothing are left out; {} where there are no others.

    Parameters
    ----------
    side : suffix of the columns: '' for the fill, `_original` and `_null`
    """
    rows = [row for row in rows if row["typicality" + side] is not None]
    groups = [row["group"] for row in rows]
    names = {"typicality": "typicality", "of_other_labels": "others"}
    found: dict[str, Any] = {}
    if not rows:
        return found
    for name, column in names.items():
        values = [row[column + side] for row in rows]
        if all(value is not None for value in values):
            found[name], found[f"{name}_se"] = mean_and_error(values, groups)
    if "of_other_labels" in found:
        margin = [row["typicality" + side] - row["others" + side] for row in rows]
        found["difference"], found["difference_se"] = mean_and_error(margin, groups)
    wins = [float(row["label_found" + side] == row["label"]) for row in rows]
    found["label_found"], found["label_found_se"] = mean_and_error(wins, groups)
    return found


def spread_quality(rows: Sequence[dict[str, Any]], samples: int) -> dict[str, Any]:
    """Return whether the spread between samples tells the error of their mean.

    Where samples are drawn from what the truth is drawn from, the squared error of the mean of K is (1 + 1 / K) times
    the variance: `error_over_spread`, the root of the ratio of both over that, is then 1; above 1 the spread is too
    small. `rank_correlation` is Spearman's over holes.
    """
    spread = np.array([row["spread"] for row in rows], dtype=np.float64)
    error = np.array([row["rmse_mean"] for row in rows], dtype=np.float64)
    ratio = float(np.sqrt(np.mean(error**2) / (np.mean(spread**2) * (1 + 1 / samples) + 1e-12)))
    ranks = [_ranks(values) for values in (spread, error)]
    flat = len(rows) < 3 or any(r.std() == 0 for r in ranks)
    return {
        "error_over_spread": _short(ratio),
        "rank_correlation": None if flat else _short(float(np.corrcoef(ranks)[0, 1])),
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equal values sharing the mean of theirs."""
    _, of, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[of]


def _short(value: float) -> float:
    return float(f"{value:.4g}")
