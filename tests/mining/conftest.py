"""Score maps made from given draws, so that every moment in them is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from typicality.mining.boxes import box_means
from typicality.records import ModelView, Patch, ScoreMap

MakeMap = Callable[..., ScoreMap]
MakePatch = Callable[..., Patch]


def score_map(draws: np.ndarray, image_id: str = "a", label: str = "x", view: ModelView | None = None) -> ScoreMap:
    """The moments that a scorer would record for draws (n, h, w), with one model pixel a cell by default."""
    draws = np.asarray(draws, dtype=np.float32)
    _, height, width = draws.shape
    sides = [2**i for i in range(min(height, width).bit_length())]
    return ScoreMap(
        image_id,
        label,
        view or ModelView(width, height, 1.0, 1.0, 0.0, 0.0),
        n_pairs=len(draws),
        typicality=draws.mean(axis=0),
        squares={k: (box_means(draws, k).astype(np.float64) ** 2).mean(axis=0).astype(np.float32) for k in sides},
        shrinkage=np.zeros((height, width), dtype=np.float32),
        null_loss=np.zeros((height, width), dtype=np.float32),
    )


@pytest.fixture
def make_map() -> MakeMap:
    return score_map


@pytest.fixture
def make_patch() -> MakePatch:
    def patch(image_id: str = "a", label: str = "x", row: int = 0, column: int = 0, side: int = 1, **other) -> Patch:
        other = {"typicality": 0.0, "standard_error": 0.1, **other}
        return Patch(image_id, label, row, column, side, (column, row, column + side, row + side), **other)

    return patch
