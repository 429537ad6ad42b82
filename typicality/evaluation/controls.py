"""Changes of pictures that involve no model: what a translation must come nearer to the truth than.

The root mean square distance of two pictures of one subject also falls when one of them is only made smoother or paler,
for what is not there cannot be wrong. How far that goes is measured, with amounts that are tuned as options are.

Arrays only. Pictures are (n, 3, H, W) float32 in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

BLURS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Standard deviations in pixels of a picture whose shorter side is SIDE; larger ones are blurred in proportion."""
SIDE = 64
FADES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
SHIFTS = (0.25, 0.5, 0.75, 1.0, 1.25)
NONE = (0.0,)
KINDS = {
    "control: blur": (BLURS, NONE, NONE),
    "control: fade": (NONE, FADES, NONE),
    "control: mean shift": (NONE, NONE, SHIFTS),
    "control: blur, fade, mean shift": (NONE + BLURS, NONE + FADES, NONE + SHIFTS),
}
"""Amounts of blur, fade and shift that are tried, in all combinations."""


@dataclass(frozen=True)
class Control:
    """A change of pictures, the same for all of them.

    Attributes
    ----------
    blur : standard deviation of a Gaussian, in pixels of a picture whose shorter side is SIDE
    fade : share of the way to the mean picture of the source label
    shift : multiple of the mean difference from the source label to the target label, added to every picture
    source, target : (3, H, W) mean pictures of the two labels
    """

    blur: float
    fade: float
    shift: float
    source: Float[np.ndarray, "3 H W"]
    target: Float[np.ndarray, "3 H W"]

    def __call__(self, pictures: Float[np.ndarray, "n 3 H W"]) -> Float[np.ndarray, "n 3 H W"]:
        faded = (1 - self.fade) * _blurred(pictures, self.blur) + self.fade * self.source
        return np.clip(faded + self.shift * (self.target - self.source), -1, 1).astype(np.float32)

    def amounts(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("blur", "fade", "shift")}


def tuned(
    before: Float[np.ndarray, "n 3 H W"],
    wanted: Float[np.ndarray, "n 3 H W"],
    source: Float[np.ndarray, "3 H W"],
    target: Float[np.ndarray, "3 H W"],
) -> dict[str, Control]:
    """Return the control of every kind whose pictures come nearest to those wanted, by mean root mean square distance.

    Before clipping, a changed picture is b + fade (source - b) + shift (target - source) with b the blurred one. Its
    squared distance is a quadratic form in (1, fade, shift), so that one pass a blur serves all amounts.
    """
    products = {blur: _products(_blurred(before, blur), wanted, source, target) for blur in NONE + BLURS}
    found = {}
    for name, (blurs, fades, shifts) in KINDS.items():
        best = min(product(blurs, fades, shifts), key=lambda x: _mean_distance(products[x[0]], x[1], x[2]))
        found[name] = Control(*best, source, target)
    return found


def _products(
    blurred: np.ndarray, wanted: np.ndarray, source: np.ndarray, target: np.ndarray
) -> Float[np.ndarray, "n 3 3"]:
    """Mean products over pixels of what is wrong, of the way to the mean picture, and of the mean difference."""
    found = []
    for b, t in zip(blurred, wanted, strict=True):
        parts = np.stack([b - t, source - b, target - source]).reshape(3, -1).astype(np.float64)
        found.append(parts @ parts.T / parts.shape[1])
    return np.stack(found)


def _mean_distance(products: Float[np.ndarray, "n 3 3"], fade: float, shift: float) -> float:
    amounts = np.array([1.0, fade, shift])
    return float(np.sqrt(np.maximum(amounts @ products @ amounts, 0)).mean())


def _blurred(pictures: np.ndarray, blur: float) -> np.ndarray:
    if not blur:
        return pictures
    width = blur * min(pictures.shape[-2:]) / SIDE
    return gaussian_filter(pictures, (0, 0, width, width), mode="nearest")
