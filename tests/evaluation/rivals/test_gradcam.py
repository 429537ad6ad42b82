"""The small CNN learns what it is shown, and Grad-CAM says where."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from typicality.errors import InputError
from typicality.evaluation.rivals.gradcam import SmallCnn, cnn_features, cnn_probabilities, gradcam, train_cnn


def squares(n: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray, list[tuple[int, int]]]:
    """Grey noise with a red or a blue 8 px square; the first image is larger than the others."""
    rng = np.random.default_rng(seed)
    images, targets, places = [], np.zeros((n, 2), np.float32), []
    for i in range(n):
        pixels = rng.normal(0, 0.1, (3, 32, 48 if i % 4 == 0 else 32)).astype(np.float32)
        y, x = rng.integers(0, 24, 2)
        pixels[:, y : y + 8, x : x + 8] = -1
        pixels[2 if i % 2 else 0, y : y + 8, x : x + 8] = 1
        images.append(pixels)
        targets[i, i % 2] = 1
        places.append((int(y), int(x)))
    return images, targets, places


@pytest.fixture(scope="module")
def model() -> SmallCnn:
    images, targets, _ = squares(48)
    return train_cnn(images, targets, seed=0, epochs=12, batch_size=16)


def test_it_learns(model: SmallCnn):
    images, targets, _ = squares(24, seed=1)
    found = cnn_probabilities(model, images)
    assert found.sum(1) == pytest.approx(1, abs=1e-5)
    assert (found.argmax(1) == targets.argmax(1)).mean() > 0.9


def test_the_map_points_at_the_square(model: SmallCnn):
    """The largest value lies on the square, with a cell (4 px) of tolerance, in most of the new images."""
    images, targets, places = squares(24, seed=2)
    hits = 0
    for image, target, (y, x) in zip(images, targets, places, strict=True):
        cam = gradcam(model, image, int(target.argmax()))
        assert cam.shape == (image.shape[1] // 4, image.shape[2] // 4)
        assert cam.min() >= 0
        row, column = np.unravel_index(cam.argmax(), cam.shape)
        hits += (y - 4 <= 4 * row + 2 < y + 12) and (x - 4 <= 4 * column + 2 < x + 12)
    assert hits >= 18


def test_gradcam_by_hand(model: SmallCnn):
    """With a mean over the cells before a linear head, a_k = w_k / cells: the map is relu(sum_k w_k A_k) / cells."""
    image = squares(1, seed=3)[0][0]
    features = cnn_features(model, image)
    weights = model.head.weight.detach().numpy()[1]
    expected = np.maximum(np.einsum("k,khw->hw", weights, features), 0) / features[0].size
    np.testing.assert_allclose(gradcam(model, image, 1), expected, atol=1e-6)


def test_same_seed_same_weights():
    images, targets, _ = squares(12)
    a, b, other = (train_cnn(images, targets, seed, epochs=1) for seed in (3, 3, 4))
    assert torch.equal(a.head.weight, b.head.weight)
    assert not torch.equal(a.head.weight, other.head.weight)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    images, targets, _ = squares(4)
    train_cnn(images, targets, seed=9, epochs=1)
    assert torch.equal(torch.rand(1), expected)


def test_an_image_without_a_label_is_an_error():
    images, targets, _ = squares(4)
    targets[2] = 0
    with pytest.raises(InputError, match="label"):
        train_cnn(images, targets)
