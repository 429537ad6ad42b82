"""From a hole to fills: neutral pixels, latents, samples, and the pixels of each sample inside the hole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy.ndimage import distance_transform_edt, map_coordinates
from torch import Tensor

from typicality.applications.impute.baselines import harmonic
from typicality.applications.impute.options import ImputeOptions
from typicality.applications.impute.regions import cell_shares, missing_cells
from typicality.applications.impute.repaint import repaint
from typicality.dataset import prepare
from typicality.model.denoiser import Denoiser
from typicality.model.latents import LatentStore
from typicality.model.sampling import grid_of
from typicality.records import LabelledImage, ModelView
from typicality.scoring.noise import image_generator

PURPOSE = "impute"
SEAM = 0.5
"""Width, in latent cells, of the rim inside a hole over which a fill comes out of the harmonic one."""
PIXELS_AT_ONCE = 16 * 64 * 64
"""Pixels in one call of the autoencoder; at least one image."""


@dataclass(frozen=True)
class Hole:
    """An image and what is missing of it.

    Parameters
    ----------
    pixels : of the original; those that are missing are read by nothing but measures of error
    missing : at least one pixel, and not all
    view : how the model sees the image
    factor : model pixels a side of a latent cell
    """

    image: LabelledImage
    pixels: UInt8[np.ndarray, "H W 3"]
    missing: Bool[np.ndarray, "H W"]
    view: ModelView
    factor: int

    @cached_property
    def neutral(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image with the harmonic fill: a function of its visible pixels."""
        return self.filled(harmonic(np.where(self.missing[..., None], 0, self.pixels), self.missing))

    @cached_property
    def shares(self) -> Float[np.ndarray, "h w"]:
        """Missing share of every latent cell."""
        return cell_shares(self.missing, self.view, self.factor)

    @property
    def cells(self) -> Bool[np.ndarray, "h w"]:
        """Latent cells to draw."""
        return missing_cells(self.shares)

    @cached_property
    def in_view(self) -> Bool[np.ndarray, " m"]:
        """Which of the m missing pixels the model sees: what is cropped away keeps the harmonic fill."""
        x, y = self._places
        return (x > -0.5) & (x < self.view.width - 0.5) & (y > -0.5) & (y < self.view.height - 0.5)

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Model pixels (x, y) that the centres of the missing pixels fall on."""
        ys, xs = np.nonzero(self.missing)
        view = self.view
        return (xs + 0.5 - view.left) / view.scale_x - 0.5, (ys + 0.5 - view.top) / view.scale_y - 0.5

    @cached_property
    def _weight(self) -> Float[np.ndarray, "m 1"]:
        """Weight of a fill against the harmonic one: from small at the rim to 1 inside."""
        width = SEAM * self.factor * min(self.view.scale_x, self.view.scale_y)
        depth = distance_transform_edt(self.missing)[self.missing]
        return (np.clip(depth / (width + 1), 0, 1) * self.in_view)[:, None]

    def read(self, decoded: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "m 3"]:
        """Return the missing pixels, 0 to 255, from an image as the model sees it, with a soft seam at the rim."""
        x, y = self._places
        inner = np.stack(
            [map_coordinates(decoded[..., c], (y, x), order=1, mode="nearest", prefilter=False) for c in range(3)], 1
        )
        return np.clip(self._weight * inner + (1 - self._weight) * self.neutral[self.missing], 0, 255)

    def filled(self, values: Float[np.ndarray, "m 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """Return the image with these values where it is missing, and elsewhere bit for bit as it is."""
        result = self.pixels.copy()
        result[self.missing] = np.clip(values, 0, 255).round().astype(np.uint8)
        return result


def encode(
    denoiser: Denoiser, pictures: Sequence[UInt8[np.ndarray, "H W 3"]], latents: LatentStore
) -> Float[Tensor, "n c h w"]:
    """Encode pictures of one shape in the model's view."""
    shown = [prepare(Image.fromarray(p), latents.size, latents.step, latents.max_aspect)[0] for p in pictures]
    pixels = torch.from_numpy(np.stack(shown))
    size = max(1, PIXELS_AT_ONCE // pixels[0, 0].numel())
    return torch.cat([denoiser.encode_images(part) for part in pixels.split(size)])


def decode(denoiser: Denoiser, latents: Float[Tensor, "n c h w"], factor: int) -> Float[np.ndarray, "n H W 3"]:
    """Decode latents to pixels from 0 to 255."""
    size = max(1, PIXELS_AT_ONCE // (latents[0, 0].numel() * factor**2))
    pixels = torch.cat([denoiser.decode_latents(part) for part in latents.split(size)])
    return ((pixels + 1) * 127.5).permute(0, 2, 3, 1).numpy()


def sample_latents(
    denoiser: Denoiser,
    holes: Sequence[Hole],
    z: Float[Tensor, "n c h w"],
    states: Float[Tensor, "p tokens width"],
    rows: Sequence[int],
    options: ImputeOptions,
    seed: int,
    at_once: int,
) -> Float[Tensor, "n samples c h w"]:
    """Draw the samples of every hole; see `repaint`.

    Sample k of an image has noise of its own, the same whatever the prompt, the number of samples and the batch.

    Parameters
    ----------
    z : latents of the holes' neutral images
    rows : of `states`, the prompt of each hole
    at_once : evaluations of the UNet in one batch
    """
    grid = grid_of(denoiser.alphas_cumprod, options.steps, options.strength)
    pairs = [(i, k) for i in range(len(holes)) for k in range(options.samples)]
    size = max(1, at_once // (1 if options.guidance in (0, 1) else 2))
    cells = torch.from_numpy(np.stack([hole.cells for hole in holes]))[:, None]
    found = []
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        index = [i for i, _ in part]
        generators = [image_generator(holes[i].image.image_id, seed, f"{PURPOSE} {k}") for i, k in part]
        found.append(
            repaint(
                denoiser, z[index], cells[index], states, [rows[i] for i in index], grid, options.guidance,
                options.jumps, generators,
            )
        )  # fmt: skip
    return torch.cat(found).unflatten(0, (len(holes), options.samples))


def fills_of(
    denoiser: Denoiser, holes: Sequence[Hole], latents: Float[Tensor, "n samples c h w"]
) -> list[Float[np.ndarray, "samples m 3"]]:
    """Return for every hole the missing pixels of every sample."""
    return [
        np.stack([hole.read(d) for d in decode(denoiser, own, hole.factor)])
        for hole, own in zip(holes, latents, strict=True)
    ]


def spread_of(fills: Float[np.ndarray, "samples m 3"]) -> Float[np.ndarray, " m"] | None:
    """Return the standard deviation between samples of every missing pixel, over colours in squares; None of one."""
    return None if len(fills) < 2 else np.sqrt(fills.var(0, ddof=1).mean(1))
