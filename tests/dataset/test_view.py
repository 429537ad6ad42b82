"""The view: a multiple of the model's step, and an exact map from its pixels to the original's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from typicality.dataset import prepare, view_shape

SIZES = [(64, 64), (100, 64), (63, 200), (400, 224), (219, 274), (1, 1), (5, 1000), (1921, 1079), (79, 64)]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize(("size", "step", "max_aspect"), [(64, 16, 2.0), (70, 16, 1.5), (8, 16, 1.0), (256, 64, 3.0)])
def test_shape_and_map(width: int, height: int, size: int, step: int, max_aspect: float) -> None:
    rows, columns = view_shape(width, height, size, step, max_aspect)
    image = Image.new("RGB", (width, height), (255, 0, 127))
    pixels, view = prepare(image, size, step, max_aspect)
    assert pixels.shape == (3, rows, columns) == (3, view.height, view.width)
    assert pixels.dtype == np.float32
    assert rows % step == columns % step == 0
    assert min(rows, columns) >= step
    assert max(rows, columns) <= max(size, step) * max_aspect
    np.testing.assert_allclose(pixels[:, 0, 0], [1, -1, -1 / 255], atol=1e-6)
    # inside the original, centred, and not distorted
    assert view.left >= 0
    assert view.top >= 0
    assert view.left * 2 + columns * view.scale_x == pytest.approx(width)
    assert view.top * 2 + rows * view.scale_y == pytest.approx(height)
    assert view.scale_x == view.scale_y
    x0, y0, x1, y1 = view.to_original((0, 0, columns, rows), width, height)
    assert 0 <= x0 <= x1 <= width
    assert 0 <= y0 <= y1 <= height


@pytest.mark.parametrize(("width", "height"), [(300, 150), (150, 300), (97, 131)])
def test_what_is_seen_in_the_view_lies_where_the_map_says(width: int, height: int) -> None:
    """A white square on black, found again by its centre of mass: the map is right to a small part of a pixel."""
    image = Image.new("RGB", (width, height), "black")
    left, top = width // 2 - 11, height // 2 + 3
    image.paste("white", (left, top, left + 20, top + 20))
    pixels, view = prepare(image, 64, 16, 2.0)
    light = pixels[0] + 1
    rows, columns = np.mgrid[: view.height, : view.width] + 0.5
    x = view.left + view.scale_x * float((light * columns).sum() / light.sum())
    y = view.top + view.scale_y * float((light * rows).sum() / light.sum())
    assert x == pytest.approx(left + 10, abs=0.1 * view.scale_x)
    assert y == pytest.approx(top + 10, abs=0.1 * view.scale_y)


def test_an_image_that_fits_is_not_resampled() -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    pixels, view = prepare(Image.fromarray(values), 64, 16, 2.0)
    np.testing.assert_allclose((pixels + 1) * 127.5, values.transpose(2, 0, 1), atol=1e-3)
    assert (view.scale_x, view.left, view.top) == (1, 0, 0)


def test_view_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="no view"):
        view_shape(0, 10, 64, 16, 2.0)
