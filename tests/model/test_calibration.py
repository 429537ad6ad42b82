"""The label scale: found where it is best, kept beside the weights, and used by scoring alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import tiny_checkpoint
from typicality.config import ModelSettings
from typicality.errors import CheckpointError
from typicality.model.calibration import (
    CALIBRATION,
    SMALLEST_SCALE,
    STEEPEST,
    LabelUse,
    best_label_scale,
    density_tilt,
    inverse_density,
    saving,
    scaled_typicality,
    with_label_scale,
)
from typicality.model.checkpoint import load_checkpoint, save_checkpoint
from typicality.scoring.estimator import loss_difference, squared_shift


def overconfident(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Typicality and D^2 of predictions that are right but for D being too large, with the noise that this adds."""
    rng = np.random.default_rng(0)
    right, noise = rng.standard_normal((2, 50, 400))
    eps, null = right + 0.2 * noise, np.zeros_like(right)
    shift = right / scale
    return ((shift - null) * (2 * eps - shift - null)).mean(1), (shift**2).mean(1)


@pytest.mark.parametrize("scale", [0.2, 0.6, 1.0])
def test_the_best_scale_undoes_what_is_too_much(scale: float) -> None:
    typicality, shift = overconfident(scale)
    found = best_label_scale(typicality, shift)
    assert found == pytest.approx(scale, rel=0.03)
    others = np.linspace(0.05, 1, 60)
    means = [scaled_typicality(typicality, shift, s).mean() for s in (*others, found)]
    assert np.argmax(means) == len(others) or max(means) - means[-1] < 1e-9


def test_the_scale_has_bounds() -> None:
    """A timid label is left as it is published; labels that mislead keep a small scale; no shift is no reason."""
    shift = np.full(4, 1e-3)
    assert best_label_scale(4 * shift, shift) == 1
    assert best_label_scale(-3 * shift, shift) == SMALLEST_SCALE
    assert best_label_scale(0 * shift, 0 * shift) == 1


def test_scaled_predictions_give_the_typicality_of_the_formula() -> None:
    torch.manual_seed(0)
    prediction, eps = torch.randn(3, 2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    scaled = with_label_scale(prediction, 0.3)
    assert torch.equal(scaled[0], prediction[0])
    plain = loss_difference(eps, prediction[0], prediction[1:])
    shift = squared_shift(prediction[0], prediction[1:])
    expected = 0.3 * (plain + 0.7 * shift)
    torch.testing.assert_close(loss_difference(eps, scaled[0], scaled[1:]), expected, rtol=1e-4, atol=1e-5)
    assert with_label_scale(prediction, 1.0) is prediction


@pytest.mark.parametrize("tilt", [-1.5, 0.8, 1.3])
def test_draws_go_where_the_noise_is(tilt: float) -> None:
    """A spread that falls exponentially is matched: it saves what Neyman's allocation does."""
    spread = np.exp(-tilt * (np.arange(200) + 0.5) / 200)
    assert density_tilt(spread) == pytest.approx(tilt)
    assert saving(spread, tilt) == pytest.approx(1 - spread.mean() ** 2 / np.square(spread).mean(), abs=1e-4)
    assert saving(spread, 0.0) == 0
    assert saving(spread, -tilt) < 0


def test_timesteps_stay_uniform_where_nothing_is_to_be_gained() -> None:
    even = np.array([1.0, 1.1, 0.95, 1.0, 1.02, 0.9, 1.0, 0.98])
    assert density_tilt(even) == 0
    assert density_tilt(np.array([1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0, 1.0])) == 0  # no slope
    assert density_tilt(np.zeros(8)) == density_tilt(np.full(8, np.nan)) == 0
    assert density_tilt(np.geomspace(1000, 1, 8)) == STEEPEST
    assert inverse_density(np.linspace(0, 1, 3), 0.0).tolist() == [1, 1, 1]


def test_the_scale_is_kept_with_the_model(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    assert load_checkpoint(ModelSettings(name=str(tiny_model))).label_use == LabelUse()
    before = checkpoint.weights_hash()
    checkpoint.label_use = LabelUse(0.25)
    assert checkpoint.weights_hash() != before
    save_checkpoint(checkpoint, tmp_path)
    assert load_checkpoint(ModelSettings(name=str(tmp_path))).label_use == LabelUse(0.25)
    of_scale = checkpoint.weights_hash()
    checkpoint.label_use = LabelUse(0.25, tilt=0.7)
    assert checkpoint.weights_hash() != of_scale
    save_checkpoint(checkpoint, tmp_path)
    assert load_checkpoint(ModelSettings(name=str(tmp_path))).label_use == LabelUse(0.25, tilt=0.7)
    for text in (
        '{"label_scale": 1, "tilt": 5}',
        '{"label_scale": 1, "tilt": NaN}',
        '{"label_scale": 0}',
        '{"label_scale": "much"}',
        "{",
        "{}",
    ):
        (tmp_path / CALIBRATION).write_text(text)
        with pytest.raises(CheckpointError, match="fine-tune again"):
            load_checkpoint(ModelSettings(name=str(tmp_path)))
