"""The records that cross stages. Frozen dataclasses and arrays only: no behaviour beyond small derivations.

Coordinates of boxes are pixels of the original image (after EXIF orientation), x to the right, y down,
`x0, y0` inclusive and `x1, y1` exclusive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Box = tuple[int, int, int, int]  # x0, y0, x1, y1


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image of a data set and what is known about it; its pixels are read by `LabelledImages.open`.

    Attributes
    ----------
    image_id : the first 32 hexadecimal digits of the SHA-256 of the encoded bytes
    file_name : as the source names it (not unique)
    labels : the labels of the image, sorted; several where `--label-separator` is used, or where
        byte-identical files carry different labels
    other_labels : those that `dataset.labels` leaves out, sorted: what is marked may be theirs
    group : relatives (the same object, patient, webcam) share it; the image_id where no column is given
    width, height : pixels, after EXIF orientation
    source : where the bytes are, meaningful to the reader that made it
    metadata : the other columns of the row
    boxes, mask : ground truth for evaluation, never used in training; `mask` is where its bytes are, or a tuple of
        such places where several files mark the image
    box_labels : of each box the name that its source gives it, '' where it gives none; () when no box has a name.
        A box with two names is there twice.
    """

    image_id: str
    file_name: str
    labels: tuple[str, ...]
    group: str
    width: int
    height: int
    source: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    mask: Any = None
    box_labels: tuple[str, ...] = ()
    other_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnreadableImage:
    """A file that could not be read, and why."""

    file_name: str
    reason: str


@dataclass(frozen=True)
class Duplicate:
    """Byte-identical files: one record stands for all of them. `labels` is their union.

    Attributes
    ----------
    conflict : whether the files have different labels
    """

    image_id: str
    file_names: tuple[str, ...]
    labels: tuple[str, ...]
    conflict: bool = False


@dataclass(frozen=True)
class ModelView:
    """How an image is shown to the model: resized and centre-cropped to a multiple of the model's step.

    `scale_x, scale_y` are original pixels for each model pixel; `left, top` the original pixel at the
    model's upper left corner. Model pixel (x, y) lies at original (left + x * scale_x, top + y * scale_y).
    """

    width: int
    height: int
    scale_x: float
    scale_y: float
    left: float
    top: float

    def to_original(self, box: tuple[float, float, float, float], width: int, height: int) -> Box:
        """Map a box in model pixels to whole pixels of an original of the given size."""
        x0, y0, x1, y1 = box
        return (
            max(0, round(self.left + x0 * self.scale_x)),
            max(0, round(self.top + y0 * self.scale_y)),
            min(width, round(self.left + x1 * self.scale_x)),
            min(height, round(self.top + y1 * self.scale_y)),
        )


@dataclass(frozen=True)
class ScoreMap:
    """Typicality of one image for one label, at latent size.

    Attributes
    ----------
    image_id, label : what was scored
    view : how the image was shown to the model
    n_pairs : number of independent draws behind the moments (an antithetic pair counts as one)
    typicality : (h, w) float32, mean of T = L(null) - L(label) over draws; > 0 is typical of the label
    squares : for each box side k in cells (1, 2, 4, ...), (h - k + 1, w - k + 1) float32, the mean over draws
        of the squared box mean of T; together with `typicality` the variance of any box's score
    shrinkage : (h, w) float32, mean of D^2, the squared difference of the two predictions
    null_loss : (h, w) float32, mean of L(null), the plain denoising error
    even : (h, w) float32, mean of the part of T that both signs of a noise share (scoring/estimator.py); None where it
        is not known
    even_share : (sides,) float32, the share of that part in the noise of boxes of each side of `squares`, in order
    """

    image_id: str
    label: str
    view: ModelView
    n_pairs: int
    typicality: np.ndarray
    squares: Mapping[int, np.ndarray]
    shrinkage: np.ndarray
    null_loss: np.ndarray
    even: np.ndarray | None = None
    even_share: np.ndarray | None = None


@dataclass(frozen=True)
class Patch:
    """A square of one image, scored for one label. `row, column, side` are in latent cells.

    `freedom` is of the standard error: intervals use Student's t with so many degrees of freedom.
    """

    image_id: str
    label: str
    row: int
    column: int
    side: int
    box: Box
    typicality: float
    standard_error: float
    specificity: float = float("nan")
    freedom: float = float("inf")
