"""What both benchmarks share: means over repeats with standard errors, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

Repeats = Mapping[str, Sequence[Mapping[str, float]]]
"""Method -> one record of measures a repeat."""


def standard_error(values: Sequence[float], overlap: float = 0.0) -> float:
    """Standard error of a mean over repeats; NaN for one repeat.

    Repeated splits share most of their training rows. With `overlap` = test rows / training rows the variance is
    multiplied by 1 / repeats + overlap instead of 1 / repeats (Nadeau & Bengio 2003).
    """
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) * math.sqrt(1 / len(values) + overlap))


def averaged(repeats: Repeats, overlap: float = 0.0) -> dict[str, dict[str, float]]:
    """Return method -> measure, and the measure's standard error as `<measure>_se`."""
    found = {}
    for method, records in repeats.items():
        row = {}
        for name in records[0]:
            values = [record[name] for record in records]
            row[name] = round(float(np.mean(values)), 4)
            row[f"{name}_se"] = round(standard_error(values, overlap), 4)
        found[method] = row
    return found


def differences(repeats: Repeats, overlap: float = 0.0) -> dict[str, dict[str, float]]:
    """Return, for every rival and its measures, ours minus the rival's in the same repeats, with standard errors."""
    paired = {}
    for method, records in repeats.items():
        if method != "ours":
            pairs = zip(repeats["ours"], records, strict=True)
            paired[method] = [{name: ours[name] - theirs[name] for name in theirs} for ours, theirs in pairs]
    return averaged(paired, overlap)
