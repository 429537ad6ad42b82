"""What labels do in a model in training, where it is known."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from typicality.model.validation import (
    SPREAD_IMAGES,
    STRATA,
    LabelEffects,
    predictions_of_means,
    predictions_of_spread,
)

ABAR = torch.linspace(0.99, 0.01, 1000)


class Latents:
    """Latents that are nothing, of two shapes."""

    def view(self, image_id: str) -> Any:
        return SimpleNamespace(height=8, width=8 + 4 * (int(image_id) % 2))

    def stack(self, ids: Sequence[str]) -> Tensor:
        view = self.view(ids[0])
        return torch.zeros(len(ids), 4, view.height, view.width)


def effects(strength: Any, at_once: int = 8) -> LabelEffects:
    """Of a model whose label adds a fixed pattern times `strength(t)` to predictions of nothing."""

    def predict(noisy: Tensor, t: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        shift = torch.ones_like(noisy) * strength(t.float() / 1000)[:, None, None, None]
        return torch.zeros_like(noisy), shift

    return LabelEffects(predict, Latents(), ABAR, 0.1, 0.7, 0, at_once)


def test_spread_is_the_noise_of_boxes_at_each_timestep() -> None:
    """T of a pair is -D^2 without noise here: the odd terms cancel. With an even D, two pairs differ by nothing."""
    assert effects(lambda t: 1 + t).spread([str(i) for i in range(9)]) == pytest.approx([0] * STRATA, abs=1e-6)


def test_spread_follows_the_strength_of_the_label() -> None:
    """A shift that follows the sign of the noise, D = s(t) x: T = 2 s x eps - s^2 x^2, all noise, of variance ~ s^2."""

    def predict(noisy: Tensor, t: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        noise = noisy / (1 - ABAR[t]).sqrt()[:, None, None, None]
        strength = torch.exp(-1.5 * t / 600)[:, None, None, None] * 1e-3
        return torch.zeros_like(noisy), strength * noise

    measure = LabelEffects(predict, Latents(), ABAR, 0.1, 0.7, 0, 8)
    spread = measure.spread([str(i) for i in range(40)])
    assert np.polyfit((np.arange(STRATA) + 0.5) / STRATA, np.log(spread), 1)[0] == pytest.approx(-1.5, abs=0.1)
    of_box = 2e-3 * np.exp(-1.5 * (0.1 + 0.6 / 16) / 0.6) * np.sqrt(2 / (4 * 4))  # 4 channels, 2 x 2 cells
    assert spread[0] == pytest.approx(of_box, rel=0.1)
    assert spread.tolist() == measure.spread([str(i) for i in range(SPREAD_IMAGES)]).tolist()  # no more are looked at


def test_means_are_those_of_all_pairs_whatever_the_batches() -> None:
    """D = 0.5 under the label, whatever t: T = -D^2 = -0.25 over a pair."""
    ids = [str(i) for i in range(5)]
    for at_once in (1, 8):
        typicality, shift = effects(lambda t: 0.5 + 0 * t, at_once).means(ids)
        np.testing.assert_allclose(typicality, -0.25, atol=1e-6)
        np.testing.assert_allclose(shift, 0.25, atol=1e-6)


@pytest.mark.parametrize("n", [3, SPREAD_IMAGES + 5])
def test_what_is_measured_costs_as_much_as_is_foretold(n: int) -> None:
    """Two predictions an input: under the null prompt and under the label."""
    inputs = 0

    def predict(noisy: Tensor, t: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        nonlocal inputs
        inputs += len(noisy)
        return torch.zeros_like(noisy), torch.zeros_like(noisy)

    ids = [str(i) for i in range(n)]
    measure = LabelEffects(predict, Latents(), ABAR, 0.1, 0.7, 0, 8)
    measure.means(ids)
    assert 2 * inputs == predictions_of_means(n)
    inputs = 0
    measure.spread(ids)
    assert 2 * inputs == predictions_of_spread(n)
