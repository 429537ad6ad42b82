"""Thresholds of maps where nothing is marked: what the reference label's own images hardly ever reach, or outliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from typicality.applications.localize.choose import otsu, separability
from typicality.applications.localize.distance import reference_images
from typicality.applications.localize.maps import Kitchen, Recipe
from typicality.applications.localize.passes import Evidence
from typicality.dataset.split import unit_hash
from typicality.run import Run

REFERENCES = 32
"""Images of the reference label whose maps give a threshold, at most."""
FEWEST = 4
QUANTILE = 0.99
"""Of the cells of the reference label's images: so many lie below the threshold."""
PLAUSIBLE = 0.25
"""Share of the cells that Otsu's upper class may have without the two classes being apart."""
APART = 0.75
"""Separability of two classes: that of a uniform distribution cut in half. Of a Gaussian it is 2 / pi = 0.64."""
OUTLIER = 4.0
"""Robust standard deviations above the median."""


@dataclass(frozen=True)
class Threshold:
    """A threshold, and in words where it comes from."""

    value: float
    by: str


def references_of(run: Run, against: str) -> list[str]:
    """Return at most REFERENCES images of the reference label alone that neither their model nor their memory has seen.

    None where there are fewer than FEWEST: a quantile of so few says nothing.
    """
    memories = {fold: {i.image_id for i in images} for fold, images in reference_images(run, against)}
    known = run.held_out
    alone = sorted((i.image_id for i in run.dataset if i.labels == (against,)), key=lambda i: unit_hash(i, "threshold"))
    apart = [i for i in alone if i in known and i not in memories.get(run.fold_of(i), ())]
    return apart[:REFERENCES] if len(apart) >= FEWEST else []


def of_references(
    evidence: Sequence[Evidence], recipes: Mapping[str, Recipe], kitchen: Kitchen, against: str
) -> dict[str, Threshold]:
    """Return, for every label, the QUANTILE of its maps of images that have the reference label instead.

    Parameters
    ----------
    evidence : of `references_of`, for every label
    kitchen : that of the maps which the thresholds are for
    """
    by = f"the {QUANTILE:.0%} quantile of {len({e.image_id for e in evidence})} images of {against}"
    found = {}
    for label, recipe in recipes.items():
        cells = [kitchen(e, recipe).ravel() for e in evidence if e.label == label]
        if cells:
            found[label] = Threshold(float(np.quantile(np.concatenate(cells), QUANTILE)), by)
    return found


def unsupervised(values: np.ndarray) -> Threshold:
    """Return the threshold of cells of which nothing is known.

    Otsu's method splits any values into two classes, also where there is but one: a rare defect among normal cells then
    leaves half of everything above. Where its upper class has more than PLAUSIBLE of the cells and the classes are not
    APART, what counts is what lies OUTLIER robust standard deviations (1.4826 times the median absolute deviation)
    above the median, which may be nothing.
    """
    split = otsu(values)
    if float((values >= split).mean()) <= PLAUSIBLE or separability(values, split) >= APART:
        return Threshold(split, "Otsu")
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    if spread == 0:
        return Threshold(split, "Otsu")
    return Threshold(middle + OUTLIER * spread, f"outliers: the median + {OUTLIER:g} robust standard deviations")
