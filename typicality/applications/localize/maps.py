"""From evidence to a map: which parts, smoothed how much, combined how.

A recipe names one map that uses the label (what is typical of it here), or one of denoising error (what is hard to
explain at all), or one of each. Errors enter as logarithms, since they multiply: an edge is hard everywhere.
Parts that are combined are first divided by their usual spread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from typicality.applications.localize.passes import Evidence
from typicality.records import ModelView

Part = Callable[[dict[str, np.ndarray]], np.ndarray]
SMOOTHINGS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
BETAS = (0.25, 0.5, 1.0)
WEIGHTS = (0.5, 1.0, 2.0)
FLOOR = 1e-8
PUBLISHED = "typicality as published"
"""T at the label scale 1, whatever the model's; to be compared with, and no part of what is combined."""


def _shrunk(beta: float, typicality: str, shift: str) -> Part:
    """T_beta = D^2 + beta (T - D^2): with beta < 1 the noisy cross term of T counts less."""
    return lambda maps: (1 - beta) * maps[shift] + beta * maps[typicality]


PARTS: dict[str, Part] = {f"typicality beta={b:g}": _shrunk(b, "typicality", "shift") for b in BETAS} | {
    "shift": lambda m: m["plain_shift"],
    PUBLISHED: lambda m: m["plain_typicality"],
    "given": lambda m: m["given"],  # see GIVEN
    "mean shift": lambda m: m["mean_shift"],
    "bias gain": lambda m: m["bias"] - m["label_bias"],
    "error": lambda m: np.log(np.maximum(m["error"], FLOOR)),
    "bias": lambda m: np.log(np.maximum(m["bias"], FLOOR)),
}
AGAINST: dict[str, Part] = {
    "contrast": lambda m: m["typicality"] - m["reference_typicality"],
    "reference shift": lambda m: m["reference_shift"],
    "bias contrast": lambda m: m["reference_bias"] - m["label_bias"],
    "reference error": lambda m: np.log(np.maximum(m["error"] - m["reference_typicality"], FLOOR)),
    "reference bias": lambda m: np.log(np.maximum(m["reference_bias"], FLOOR)),
    "reference distance": lambda m: np.log(np.maximum(m["reference_distance"], FLOOR)),
} | {
    f"contrast beta={b:g}": lambda m, b=b: (
        (1 - b) * m["reference_shift"] + b * (m["typicality"] - m["reference_typicality"])
    )
    for b in BETAS[:-1]
}
"""Parts that need a reference label."""
ALL_PARTS = PARTS | AGAINST
ERRORS = ("error", "bias", "reference error", "reference bias")
"""Logarithms of denoising errors; `error` and `bias` know no label at all."""
GIVEN = "given"
"""The only part of evidence that was made elsewhere, such as a rival's map."""


_GAIN = "telling the model {label} improves its prediction"
_CHANGE = "telling the model {label} changes its prediction, for better or worse"
_CONTRAST = "the model predicts better under {label} than under {against}"
_DIFFERENCE = "the model predicts otherwise under {label} than under {against}, for better or worse"
_HARD = "the model predicts badly without a label"
_HARD_UNDER = "the model predicts badly under {against}"
MEANINGS = {
    "typicality beta=1": _GAIN,
    "bias gain": _GAIN,
    PUBLISHED: _GAIN,
    "shift": _CHANGE,
    "mean shift": _CHANGE,
    "contrast": _CONTRAST,
    "bias contrast": _CONTRAST,
    "reference shift": _DIFFERENCE,
    "error": _HARD,
    "bias": _HARD,
    "reference error": _HARD_UNDER,
    "reference bias": _HARD_UNDER,
    "reference distance": "nothing in images of {against} is alike",
    GIVEN: "a map that was made elsewhere is high",
}
for _beta in BETAS[:-1]:
    MEANINGS[f"typicality beta={_beta:g}"] = "telling the model {label} improves its prediction, or at least changes it"
    MEANINGS[f"contrast beta={_beta:g}"] = (
        "the model predicts better, or at least otherwise, under {label} than under {against}"
    )
"""What a high value of each part says."""


@dataclass(frozen=True)
class Recipe:
    """How a map is made.

    Attributes
    ----------
    parts : one name of `ALL_PARTS`, or a name of `ERRORS` after one that uses the label
    smoothing : standard deviation of a Gaussian, in latent cells
    span : index of the range of timesteps, or None for the mean of all
    weight : of the error, where there are two parts, each in units of its spread
    relative : take the image's own median away
    """

    parts: tuple[str, ...]
    smoothing: float = 1.0
    span: int | None = None
    weight: float = 1.0
    relative: bool = False

    def describe(self, ranges: Sequence[tuple[float, float]]) -> str:
        """Return the recipe in words."""
        low, high = ranges[self.span] if self.span is not None else (ranges[0][0], ranges[-1][1])
        parts = self.parts[0] if len(self.parts) == 1 else f"{self.parts[0]} + {self.weight:g} {self.parts[1]}"
        relative = ", relative to the image's median" if self.relative else ""
        return f"{parts}, t {low:g}-{high:g}, smoothed by {self.smoothing:g} cells{relative}"

    def meaning(self, label: str, against: str | None) -> str:
        """Return what a high value says, after the word "where"."""
        told = [MEANINGS[name].format(label=repr(label), against=repr(against)) for name in self.parts]
        return " and ".join(dict.fromkeys(told))


class Kitchen:
    """Makes maps of a fixed set of evidence and remembers their smoothed parts.

    The spread that parts are divided by is taken over the evidence in `scale_of`, the same for all images: over the
    part that recipes are chosen on, or over everything where there is no ground truth.
    """

    def __init__(self, scale_of: Sequence[Evidence]) -> None:
        self.scale_of = tuple(scale_of)
        self._smooth: dict[tuple[str, str, str, int | None, float], np.ndarray] = {}
        self._spread: dict[tuple[str, int | None, float], float] = {}

    def part(self, evidence: Evidence, name: str, span: int | None, smoothing: float) -> np.ndarray:
        """Return one smoothed part, float32 (h, w)."""
        key = (evidence.image_id, evidence.label, name, span, smoothing)
        if key not in self._smooth:
            maps = {n: (a.mean(0) if span is None else a[span]) for n, a in evidence.maps.items()}
            part = ALL_PARTS[name](maps)
            self._smooth[key] = gaussian_filter(part, smoothing, mode="nearest") if smoothing else part
        return self._smooth[key]

    def spread(self, name: str, span: int | None, smoothing: float) -> float:
        """Return the standard deviation of a part over all cells."""
        key = (name, span, smoothing)
        if key not in self._spread:
            cells = np.concatenate([self.part(e, name, span, smoothing).ravel() for e in self.scale_of])
            self._spread[key] = float(cells.std()) or 1.0
        return self._spread[key]

    def forget(self) -> None:
        """Free the smoothed parts; spreads are kept."""
        self._smooth.clear()

    def __call__(self, evidence: Evidence, recipe: Recipe) -> np.ndarray:
        """Return the map of a recipe, float32 (h, w)."""
        parts = [self.part(evidence, name, recipe.span, recipe.smoothing) for name in recipe.parts]
        if recipe.relative:
            parts = [part - np.median(part) for part in parts]
        if len(parts) == 1:
            return parts[0]
        first, second = (
            part / self.spread(name, recipe.span, recipe.smoothing)
            for part, name in zip(parts, recipe.parts, strict=True)
        )
        return first + recipe.weight * second


def variants(parts: Iterable[tuple[str, ...]], ranges: int, smoothings: Sequence[float] = SMOOTHINGS) -> list[Recipe]:
    """Return recipes of the given parts with all smoothings, ranges and weights."""
    spans: list[int | None] = [None, *range(ranges)] if ranges > 1 else [None]
    return [
        Recipe(names, smoothing, span, weight, relative)
        for names in parts
        for span in spans
        for smoothing in smoothings
        for weight in (WEIGHTS if len(names) > 1 else (1.0,))
        for relative in (False, True)
    ]


def families(with_reference: bool) -> dict[str, list[tuple[str, ...]]]:
    """Return the parts of recipes by the name under which they are compared.

    `combined` is what a user gets; the others are its ingredients, alone, and the maps that know no label.
    """
    typical = [f"typicality beta={b:g}" for b in BETAS]
    gains = ["typicality beta=1", "bias gain", "mean shift"]
    errors = ["error", "bias"]
    found: dict[str, list[tuple[str, ...]]] = {
        "typicality": [(name,) for name in typical],
        "bias gain": [("bias gain",), ("mean shift",)],
        "shift": [("shift",)],
        "error": [("error",)],
        "bias": [("bias",)],
    }
    if with_reference:
        contrasts = ["contrast", *(f"contrast beta={b:g}" for b in BETAS[:-1])]
        found["contrast"] = [(name,) for name in contrasts]
        found["bias contrast"] = [("bias contrast",), ("reference shift",)]
        found["reference error"] = [("reference error",), ("reference bias",)]
        found["reference distance"] = [("reference distance",)]
        gains = [*gains, "contrast", "contrast beta=0.5", "bias contrast", "reference shift", "reference distance"]
        errors = [*errors, "reference error", "reference bias"]
    pairs = [(gain, error) for gain in gains for error in errors]
    labelled = [parts for name, group in found.items() if name not in ("error", "bias", "shift") for parts in group]
    return {"combined": [*labelled, *pairs], **found}


def default_recipe(with_reference: bool) -> Recipe:
    """Return what is used without ground truth; with a reference, what did best on the choosing magnetic tiles."""
    parts = ("reference distance", "reference bias") if with_reference else ("bias gain", "bias")
    return Recipe(parts, smoothing=1.0)


@lru_cache(maxsize=512)
def _weights(size: int, cells: int, offset: float, scale: float, factor: float) -> np.ndarray:
    """Return (size, cells): linear interpolation of cell centres at the centres of original pixels."""
    position = ((np.arange(size) + 0.5 - offset) / scale) / factor - 0.5
    position = np.clip(position, 0, cells - 1)
    lower = np.minimum(position.astype(int), max(cells - 2, 0))
    share = position - lower
    weights = np.zeros((size, cells), dtype=np.float32)
    weights[np.arange(size), lower] = 1 - share
    weights[np.arange(size), np.minimum(lower + 1, cells - 1)] += share
    return weights


def upsampled(cells: np.ndarray, view: ModelView, width: int, height: int) -> np.ndarray:
    """Interpolate a (h, w) map bilinearly to the pixels of the original; what the view cuts off gets the lowest value.

    Returns float32 (height, width).
    """
    rows, columns = cells.shape
    vertical = _weights(height, rows, view.top, view.scale_y, view.height / rows)
    horizontal = _weights(width, columns, view.left, view.scale_x, view.width / columns)
    result = vertical @ cells.astype(np.float32) @ horizontal.T
    lowest = float(cells.min())
    y0, y1 = _inside(height, view.top, view.height * view.scale_y)
    x0, x1 = _inside(width, view.left, view.width * view.scale_x)
    result[:y0], result[y1:], result[:, :x0], result[:, x1:] = lowest, lowest, lowest, lowest
    return result


def _inside(size: int, offset: float, length: float) -> tuple[int, int]:
    """Return the pixels whose centres the view shows; a strip of rounding (a step at most) stays with its border."""
    first = int(np.ceil(offset - 0.5)) if offset > 0 else 0
    last = int(np.floor(offset + length - 0.5)) + 1
    return max(0, first), min(size, last)
