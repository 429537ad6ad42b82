"""How far a label may move a prediction: a scale for the shift D = e_c - e_null, found on images not trained on.

Scoring uses e_null + s D in place of e_c. The typicality is then

    T_s = s (T + D^2) - s^2 D^2,    with T and D^2 at s = 1,

whose mean is greatest at s = mean(T + D^2) / (2 mean(D^2)). A model that has memorised which label its training images
carry, or was taught by contrast to keep labels apart, shifts its predictions for other images by more than is right;
what it knows of the label, the first term, then drowns in its own D^2. Fine-tuning with contrast measures s on its
validation groups and writes it beside the weights; every other model keeps s = 1, the score as published.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from typicality.errors import CheckpointError

Values = TypeVar("Values", np.ndarray, Tensor)
CALIBRATION = "calibration.json"
SMALLEST_SCALE = 0.05  # scores shrink with the scale; their order hardly changes below


def best_label_scale(typicality: Float[np.ndarray, " n"], shift: Float[np.ndarray, " n"]) -> float:
    """Return the scale of the label's shift, at most 1, at which the mean typicality of images is greatest.

    Parameters
    ----------
    typicality, shift : mean T and D^2 of images that the model has not seen, under their own labels
    """
    if not shift.sum() > 0:
        return 1.0
    return float(np.clip((typicality.sum() + shift.sum()) / (2 * shift.sum()), SMALLEST_SCALE, 1.0))


def scaled_typicality(typicality: Values, shift: Values, scale: float) -> Values:
    """Return the typicality T_s at a scale, from T and D^2 at scale 1; or T, from those at a scale, with its inverse.

    Parameters
    ----------
    typicality, shift : arrays of one shape
    """
    return scale * (typicality + (1 - scale) * shift)


def with_label_scale(prediction: Float[Tensor, "p n c h w"], scale: float) -> Float[Tensor, "p n c h w"]:
    """Return the predictions with e_c replaced by e_null + scale (e_c - e_null); slot 0 is the null prompt."""
    return prediction if scale == 1 else torch.cat([prediction[:1], torch.lerp(prediction[:1], prediction[1:], scale)])


def load_label_scale(folder: Path) -> float:
    """Return the label scale that a model's folder records; 1 where it records none.

    Raises
    ------
    CheckpointError : the record is damaged.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return 1.0
    try:
        scale = float(json.loads(path.read_text(encoding="utf-8"))["label_scale"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds no label scale ({error!r}); fine-tune again") from error
    if not 0 < scale <= 1:
        raise CheckpointError(f"{path}: a label scale is above 0 and at most 1, not {scale:g}; fine-tune again")
    return scale


def save_label_scale(folder: Path, scale: float) -> None:
    """Write the label scale beside a model's weights, unless it is 1."""
    if scale != 1:
        (folder / CALIBRATION).write_text(json.dumps({"label_scale": scale}), encoding="utf-8")
