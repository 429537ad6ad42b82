"""How far a label may move a prediction: a scale for the shift D = e_c - e_null, found on images not trained on.

Scoring uses e_null + s D in place of e_c. The typicality is then

    T_s = s (T + D^2) - s^2 D^2,    with T and D^2 at s = 1,

whose mean is greatest at s = mean(T + D^2) / (2 mean(D^2)). A model that has memorised which label its training images
carry, or was taught by contrast to keep labels apart, shifts its predictions for other images by more than is right;
what it knows of the label, the first term, then drowns in its own D^2. Fine-tuning with contrast measures s on its
validation groups and writes it beside the weights; every other model keeps s = 1, the score as published.

What is measured there besides is how the noise of a score depends on the timestep: draws are best made in proportion to
it (Neyman 1934), and weighted by one over their density. A density proportional to exp(-tilt x), where x goes from 0 to
1 over the range of timesteps, comes close and has one number.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
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
STEEPEST = 2.0  # tilt: weights then differ by a factor of 7
LEAST_SAVING = 0.02  # of the draws; for less, timesteps stay uniform


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


def inverse_density(places: Values, tilt: float) -> Values:
    """Return one over the density of timesteps at places of their range, 0 to 1: exp(tilt x), scaled to a mean of 1."""
    exponential = torch.exp if isinstance(places, Tensor) else np.exp
    return exponential(tilt * places) * (-math.expm1(-tilt) / tilt if tilt else 1.0)


def saving(spread: Float[np.ndarray, " bins"], tilt: float) -> float:
    """Return the share of the variance that a density saves beside a uniform one.

    Parameters
    ----------
    spread : standard deviation of one draw's score in equal bins of the range of timesteps, from low to high
    """
    places = (np.arange(len(spread)) + 0.5) / len(spread)
    return float(1 - np.mean(np.square(spread) * inverse_density(places, tilt)) / np.mean(np.square(spread)))


def density_tilt(spread: Float[np.ndarray, " bins"]) -> float:
    """Return the tilt of the density that is nearly proportional to a spread; 0 where it would save next to nothing.

    Parameters
    ----------
    spread : see `saving`
    """
    if not (np.isfinite(spread) & (spread > 0)).all():
        return 0.0
    places = (np.arange(len(spread)) + 0.5) / len(spread)
    tilt = float(np.clip(-np.polyfit(places, np.log(spread), 1)[0], -STEEPEST, STEEPEST))
    return tilt if saving(spread, tilt) >= LEAST_SAVING else 0.0


@dataclass(frozen=True)
class LabelUse:
    """How a model takes labels, written beside its weights where it is not as published.

    Attributes
    ----------
    scale : of the shift of predictions by a label
    blocks : so many of the last decoder blocks see the label, and the others `null`; 0: all blocks
    null : the null prompt that it was fine-tuned with
    tilt : of the density of timesteps at which its scores are drawn, see `density_tilt`
    """

    scale: float = 1.0
    blocks: int = 0
    null: str = ""
    tilt: float = 0.0


AS_PUBLISHED = LabelUse()


def load_label_use(folder: Path) -> LabelUse:
    """Return how the model of a folder takes labels; as published where the folder records nothing.

    Raises
    ------
    CheckpointError : the record is damaged.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return AS_PUBLISHED
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        use = LabelUse(
            float(record["label_scale"]), int(record.get("label_blocks", 0)), str(record.get("null", "")),
            float(record.get("tilt", 0.0)),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not say how the model takes labels ({error!r}); fine-tune again") from error
    if not 0 < use.scale <= 1:
        raise CheckpointError(f"{path}: a label scale is above 0 and at most 1, not {use.scale:g}; fine-tune again")
    if not abs(use.tilt) <= STEEPEST:
        raise CheckpointError(f"{path}: a tilt is at most {STEEPEST:g}, not {use.tilt:g}; fine-tune again")
    return use


def save_label_use(folder: Path, use: LabelUse) -> None:
    """Write how a model takes labels beside its weights, unless that is as published."""
    if use != AS_PUBLISHED:
        record = {"label_scale": use.scale, "label_blocks": use.blocks, "null": use.null, "tilt": use.tilt}
        (folder / CALIBRATION).write_text(json.dumps(record), encoding="utf-8")
