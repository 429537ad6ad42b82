"""How an image is shown to the model: one resampling step from original pixels to a multiple of the model's step."""

from __future__ import annotations

import numpy as np
from PIL import Image

from typicality.records import ModelView


def view_shape(width: int, height: int, size: int, step: int, max_aspect: float) -> tuple[int, int]:
    """Return (H, W) in model pixels of the view of an image, without reading it.

    Parameters
    ----------
    width, height : of the original, in pixels
    size : model pixels of the short side, before rounding
    step : both sides of the view are multiples of it
    max_aspect : the long side is at most so many times `size`

    Both sides are rounded down, and at least `step`.
    """
    if min(width, height, size, step) < 1 or max_aspect < 1:
        raise ValueError(f"no view of {width} x {height} pixels with size={size}, step={step}, max_aspect={max_aspect}")
    size = max(size, step)
    short = min(width, height)
    longest = int(size * max_aspect + 1e-9)

    def side(pixels: int) -> int:
        return min(pixels * size // short, longest) // step * step

    return side(height), side(width)


def view_of(width: int, height: int, size: int, step: int, max_aspect: float) -> ModelView:
    """Return the view of an image of `width` x `height` pixels: its size and how it maps to the original."""
    rows, columns = view_shape(width, height, size, step, max_aspect)
    scale = min(width, height) / max(size, step)
    return ModelView(
        width=columns,
        height=rows,
        scale_x=scale,
        scale_y=scale,
        left=max(0.0, (width - columns * scale) / 2),
        top=max(0.0, (height - rows * scale) / 2),
    )


def prepare(image: Image.Image, size: int, step: int, max_aspect: float) -> tuple[np.ndarray, ModelView]:
    """Resize the short side to `size`, crop the rest centrally, and say where each model pixel comes from.

    Crop and resampling (Lanczos) are one step, so that the view maps model pixels to fractions of original
    pixels exactly: nothing is shifted by rounding.

    Parameters
    ----------
    image : RGB, as `LabelledImages.open` returns it
    size, step, max_aspect : as in `view_shape`

    Returns
    -------
    pixels : float32 (3, H, W) in [-1, 1]
    view : of the same H and W
    """
    view = view_of(image.width, image.height, size, step, max_aspect)
    box = (
        view.left,
        view.top,
        min(float(image.width), view.left + view.width * view.scale_x),
        min(float(image.height), view.top + view.height * view.scale_y),
    )
    resized = image.convert("RGB").resize((view.width, view.height), Image.Resampling.LANCZOS, box=box)
    pixels = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1.0
    return np.ascontiguousarray(pixels), view
