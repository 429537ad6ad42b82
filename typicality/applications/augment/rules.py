"""What is kept, and why not: pure decisions on numbers.

A variant is kept where
1. its own label is still the best by the diffusion classifier: argmax over labels of T(x | label), shared noise (of
   more than `rescoring.MOST_LABELS` labels over its own and some others);
2. it is no near copy: its distance from its source is at least `near`;
3. its source still shows: the distance is less than `far`.

A negative is kept where no label claims it: T(x | label) is not above 0 under any of these labels. Nor may it be a near
copy.

Distances are root mean squares of latents, in units of the median distance between training images of different groups
(`unit_distance`): 0 is the source itself, 1 is as far from it as an unrelated image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from typicality.applications.augment.options import AugmentOptions

Why = Literal["kept", "near copy", "too far from its source", "another label is better", "a label claims it"]
PAIRS = 512
"""Pairs of images behind the unit of distance."""


def distance(a: Tensor, b: Tensor) -> float:
    """Return the root mean squared difference of two latents (c, h, w), over what both cover where shapes differ."""
    height, width = min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1])
    return float((a[..., :height, :width] - b[..., :height, :width]).square().mean().sqrt())


def unit_distance(latents: Sequence[Tensor], groups: Sequence[str]) -> float:
    """Return the median distance over up to PAIRS pairs of images of different groups; 1 where there is no such pair.

    Pairs are neighbours in the order given, then next but one, and so on.
    """
    found: list[float] = []
    for apart in range(1, len(latents)):
        for i in range(len(latents) - apart):
            if groups[i] != groups[i + apart] and len(found) < PAIRS:
                found.append(distance(latents[i], latents[i + apart]))
        if len(found) >= PAIRS:
            break
    return float(np.median(found)) or 1.0 if found else 1.0


def verdict(options: AugmentOptions, label: str, typicality: Mapping[str, float], distance: float) -> Why:
    """Return `kept`, or why a synthetic image is not.

    Parameters
    ----------
    options : resolved
    label : of the source
    typicality : label -> T(x | label)
    distance : from the source, in units of `unit_distance`
    """
    if distance < options.near:
        return "near copy"
    if options.kind == "negatives":
        return "kept" if max(typicality.values()) <= 0 else "a label claims it"
    assert options.far is not None  # resolved
    if distance >= options.far:
        return "too far from its source"
    return "kept" if max(typicality, key=lambda name: typicality[name]) == label else "another label is better"
