"""Translated pixels and the strips that show them. Arrays in, PIL images out; nothing is written here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from typicality.dataset import LabelledImages, prepare
from typicality.model.denoiser import Denoiser
from typicality.model.latents import LatentStore
from typicality.records import LabelledImage

GAP = 4
"""White pixels between the pictures of a strip."""
MORE, LESS = np.array([200.0, 60.0, 20.0]), np.array([30.0, 90.0, 200.0])
"""Colours of the change map: more typical of the target, less typical."""


def source_pixels(
    dataset: LabelledImages, images: Sequence[LabelledImage], latents: LatentStore
) -> Float[Tensor, "n 3 H W"]:
    """Read images of one shape as the model sees them, in [-1, 1]."""
    pixels = [prepare(dataset.open(i), latents.size, latents.step, latents.max_aspect)[0] for i in images]
    return torch.from_numpy(np.stack(pixels))


def translated_pixels(
    denoiser: Denoiser,
    source: Float[Tensor, "n 3 H W"],
    before: Float[Tensor, "n c h w"],
    after: Float[Tensor, "n c h w"],
    detail: float = 1.0,
) -> Float[Tensor, "n 3 H W"]:
    """Return decoded(after) + detail * (source - decoded(before)), in [-1, 1].

    What the autoencoder loses of the source is not a change, and is carried over: a latent that was not moved gives the
    source itself, pixel for pixel. A mean that keeps but a share of the source keeps as much of that, too: where it has
    forgotten edges, the source's own fine detail belongs to what is no longer there.
    """
    lost = source - denoiser.decode_latents(before)
    return (denoiser.decode_latents(after) + detail * lost).clamp(-1, 1)


def to_bytes(pixels: Float[Tensor, "3 H W"]) -> np.ndarray:
    """(H, W, 3) uint8 of pixels in [-1, 1]."""
    return ((pixels.permute(1, 2, 0).numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def change_picture(change: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """Paint a map over a pale grey picture: orange where it is positive, blue where negative.

    Parameters
    ----------
    change : (h, w), any unit; the largest absolute value gets the full colour
    backdrop : (H, W, 3) uint8

    Returns
    -------
    (H, W, 3) uint8
    """
    height, width = backdrop.shape[:2]
    scale = float(np.abs(change).max()) or 1.0
    small = Image.fromarray((change / scale).astype(np.float32))
    weight = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))[..., None]
    grey = 0.35 * backdrop.mean(axis=2, keepdims=True) + 0.65 * 255
    colour = np.where(weight > 0, MORE, LESS)
    opacity = np.abs(weight) * 0.85
    return (grey * (1 - opacity) + colour * opacity).round().clip(0, 255).astype(np.uint8)


def strip(source: np.ndarray, result: np.ndarray, change: np.ndarray) -> Image.Image:
    """Return source, result and change map side by side, each (H, W, 3) uint8."""
    gap = np.full((source.shape[0], GAP, 3), 255, dtype=np.uint8)
    return Image.fromarray(np.concatenate([source, gap, result, gap, change], axis=1))


def sheet(strips: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Return strips on one white sheet."""
    width, height = max(s.width for s in strips) + 3 * GAP, max(s.height for s in strips) + 2 * GAP
    columns = min(columns, len(strips))
    page = Image.new("RGB", (columns * width, -(-len(strips) // columns) * height), "white")
    for i, picture in enumerate(strips):
        page.paste(picture, (i % columns * width, i // columns * height))
    return page
