"""From maps to boxes: what lies above the threshold falls into connected places, each with a score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import find_objects, label, maximum

from typicality.records import Box

NEIGHBOURS = np.ones((3, 3), bool)  # diagonal ones too
PER_IMAGE = 20


@dataclass(frozen=True)
class Place:
    """One connected place. `score` is the highest value of the map in it, `area` its pixels of the original."""

    box: Box
    score: float
    area: int


def places(scores: np.ndarray, threshold: float, smallest: float, most: int = PER_IMAGE) -> list[Place]:
    """Return the places of a map at or above a threshold, highest score first.

    Parameters
    ----------
    scores : (height, width), in pixels of the original
    smallest : area in pixels below which a place is left out
    most : places at most
    """
    numbered, n = label(scores >= threshold, NEIGHBOURS)
    if n == 0:
        return []
    areas = np.bincount(numbered.ravel(), minlength=n + 1)[1:]
    highest = np.atleast_1d(maximum(scores, numbered, np.arange(1, n + 1)))
    found = [
        Place((x.start, y.start, x.stop, y.stop), float(high), int(area))
        for (y, x), area, high in zip(find_objects(numbered), areas, highest, strict=True)
        if area >= smallest
    ]
    return sorted(found, key=lambda place: (-place.score, place.box))[:most]
