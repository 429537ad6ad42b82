"""HOG and the discriminative patches, on images whose answer is drawn into them."""

from __future__ import annotations

import numpy as np
import pytest

from typicality.evaluation.rivals.patches import (
    ORIENTATIONS,
    PatchPool,
    cell_histograms,
    descriptors,
    discriminative_patches,
)


def ramp(angle: float) -> np.ndarray:
    """(3, 32, 32) grey values that rise in one direction."""
    y, x = np.mgrid[0:32, 0:32] / 32
    return np.repeat((np.cos(angle) * x + np.sin(angle) * y)[None], 3, axis=0).astype(np.float32)


@pytest.mark.parametrize("turn", range(ORIENTATIONS))
def test_a_gradient_votes_for_its_orientation(turn: int):
    """A ramp at k * 180 / 8 degrees fills bin k alone; turned by 180 degrees it is the same."""
    angle = turn * np.pi / ORIENTATIONS
    histograms, _ = cell_histograms(ramp(angle), 4)
    assert histograms.shape == (8, 8, ORIENTATIONS)
    share = histograms.sum((0, 1)) / histograms.sum()
    assert share[turn] == pytest.approx(1, abs=0.02)
    opposite, _ = cell_histograms(ramp(angle + np.pi), 4)
    np.testing.assert_allclose(opposite.sum((0, 1)), histograms.sum((0, 1)), atol=0.5)


def test_colours_are_opponents():
    """Pure red: red - green = 2, blue - (red + green) / 2 = -1, brightness -1/3, in [-1, 1] values."""
    red = np.full((3, 8, 8), -1, np.float32)
    red[0] = 1
    _, colours = cell_histograms(red, 4)
    assert colours[0, 0] == pytest.approx([2, -1, -1 / 3], abs=1e-6)


def test_descriptors_ignore_contrast():
    """The gradient part is normalised over the patch: half the contrast, the same descriptor."""
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.normal(0, 0.3, (1, 24, 24)), 3, axis=0).astype(np.float32)
    a, b = descriptors(grey, 4, 3), descriptors(grey / 2, 4, 3)
    gradients = 9 * ORIENTATIONS
    assert a.shape == (4, 4, gradients + 27)
    np.testing.assert_allclose(a[..., :gradients], b[..., :gradients], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(a[..., :gradients], axis=-1), 1, atol=1e-5)


def images(n: int) -> list[tuple[str, np.ndarray]]:
    """Noise; every even image has a striped 12 px square at a random place that is a multiple of 4."""
    rng = np.random.default_rng(1)
    found = []
    for i in range(n):
        pixels = rng.normal(0, 0.15, (3, 32, 32)).astype(np.float32)
        if i % 2 == 0:
            y, x = 4 * rng.integers(0, 6, 2)
            pixels[:, y : y + 12, x : x + 12] = np.sign(np.sin(np.arange(12) * np.pi / 2 + 0.5))[None, None, :]
        found.append((f"image{i:02d}", pixels))
    return found


def test_the_planted_square_is_found_by_label():
    """Detectors of the even images fire on the square, which the other images do not have."""
    data = images(40)
    pool = PatchPool.of(data, 4, 3, stride=1)
    carries = np.arange(40) % 2 == 0
    found = discriminative_patches(pool, carries, count=3, candidates=150, neighbours=10)
    assert len(found) == 3
    assert found[0].purity > 0.9
    assert int(found[0].image_id[5:]) % 2 == 0
    fresh = PatchPool.of([(f"new{i}", p[:, ::-1].copy()) for i, (_, p) in enumerate(images(60)[40:])], 4, 3, stride=1)
    scores = fresh.best(found[0].weights[None])[:, 0]
    assert scores[::2].min() > scores[1::2].max()


def test_same_seed_same_detectors():
    pool = PatchPool.of(images(20), 4, 3)
    carries = np.arange(20) % 2 == 0
    a, b = (discriminative_patches(pool, carries, 2, seed=5, candidates=40, neighbours=5) for _ in range(2))
    assert [(d.image_id, d.row, d.column) for d in a] == [(d.image_id, d.row, d.column) for d in b]


def test_a_label_of_all_or_no_images_has_no_detector():
    pool = PatchPool.of(images(6), 4, 3)
    assert discriminative_patches(pool, np.ones(6, dtype=bool), 2) == []
    assert discriminative_patches(pool, np.zeros(6, dtype=bool), 2) == []


def test_places_point_to_the_patches():
    """Every row of the pool is the descriptor at its place, for images of different shapes."""
    rng = np.random.default_rng(0)
    data = [
        ("a", rng.normal(size=(3, 16, 24)).astype(np.float32)),
        ("b", rng.normal(size=(3, 24, 16)).astype(np.float32)),
    ]
    pool = PatchPool.of(data, 4, 2, stride=2)
    for row in range(len(pool.values)):
        pixels = data[pool.owner[row]][1]
        r, c = pool.places[row]
        np.testing.assert_array_equal(pool.values[row], descriptors(pixels, 4, 2)[r, c])
    assert pool.image_ids == ("a", "b")
    weights = rng.normal(size=(3, pool.values.shape[1])).astype(np.float32)
    expected = [(pool.values[pool.owner == i] @ weights.T).max(0) for i in range(2)]
    np.testing.assert_allclose(pool.best(weights), expected, rtol=1e-5)
