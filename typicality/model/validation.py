"""What labels do to the predictions of a model in training, on images of its own choice: small, fixed measurements.

The noise is antithetic and the same every time, so that weights are compared and not draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from typicality.model.latents import LatentStore

PAIRS = 4  # antithetic pairs of an image, one in each of so many equal bins of timesteps
STRATA = 8
"""Bins of timesteps whose spread is compared."""
SPREAD_IMAGES = 32
BOX = 4
"""The spread is that of boxes of such a part of the shorter side, as patches are."""

Predict = Callable[[Tensor, Tensor, Sequence[str]], tuple[Tensor, Tensor]]
"""(noised latents, timesteps, image ids) -> noise under the null prompt and under the images' first labels, float32."""

A_PAIR = 4
"""Predictions of an antithetic pair: two signs, each under the null prompt and under a label."""


def predictions_of_means(images: int) -> int:
    """Return the predictions that `LabelEffects.means` takes."""
    return images * PAIRS * A_PAIR


def predictions_of_spread(images: int) -> int:
    """Return the predictions that `LabelEffects.spread` takes."""
    return min(images, SPREAD_IMAGES) * STRATA * 2 * A_PAIR


@dataclass(frozen=True)
class LabelEffects:
    """Measures the effect of labels.

    Parameters
    ----------
    predict : the model
    latents : of the images
    abar : cumulative products of the scheduler's alphas, on the device
    t_min, t_max : range of timesteps of scoring, as shares of all
    seed : of the noise
    at_once : images in one call
    """

    predict: Predict
    latents: LatentStore
    abar: Float[Tensor, " t"]
    t_min: float
    t_max: float
    seed: int
    at_once: int

    def means(self, ids: Sequence[str]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return typicality of images under their first label, and means of D^2; images of one shape come together."""
        values = []  # (n, 2)
        for start, part in self._batches(ids):
            sums = torch.zeros(len(part), 2)
            for pair in range(PAIRS):
                rng = np.random.default_rng([self.seed, 29, start, pair])
                share = (pair + rng.random(len(part))) / PAIRS
                typicality, shift = self._unit(part, share, rng)
                sums += torch.stack([maps.mean((1, 2)) for maps in (typicality, shift)], dim=1).cpu()
            values.append(sums / PAIRS)
        typicality, squared_shift = torch.cat(values).double().numpy().T
        return typicality, squared_shift

    def spread(self, ids: Sequence[str]) -> Float[np.ndarray, " strata"]:
        """Return the standard deviation of a box's score in one antithetic pair, in bins of timesteps from low to high.

        It is taken from two pairs at one timestep, so that it holds nothing of how images, places and timesteps differ.
        """
        squares, boxes = np.zeros(STRATA), 0
        for start, part in self._batches(ids[:SPREAD_IMAGES]):
            for bin_ in range(STRATA):
                rng = np.random.default_rng([self.seed, 37, start, bin_])
                share = (bin_ + rng.random(len(part))) / STRATA
                one, other = (self._unit(part, share, rng)[0] for _ in range(2))
                side = max(1, min(one.shape[-2:]) // BOX)
                difference = F.avg_pool2d((one - other)[:, None], side, stride=1).double()
                squares[bin_] += float(difference.square().sum()) / 2
            boxes += difference.numel()
        return np.sqrt(squares / boxes)

    def _batches(self, ids: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield (number of the first one among its shape, images of one shape)."""
        shapes: dict[tuple[int, int], list[str]] = {}
        for image_id in ids:
            view = self.latents.view(image_id)
            shapes.setdefault((view.height, view.width), []).append(image_id)
        for group in shapes.values():
            for start in range(0, len(group), self.at_once):
                yield start, group[start : start + self.at_once]

    def _unit(self, ids: Sequence[str], share: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return (n, h, w) maps of T and D^2 of one antithetic pair at such shares of the range of timesteps."""
        z = self.latents.stack(ids).to(self.abar.device)
        position = self.t_min + share * (self.t_max - self.t_min)
        t = torch.from_numpy((position * len(self.abar)).astype(np.int64)).to(z.device)
        noise = torch.from_numpy(rng.standard_normal(tuple(z.shape), dtype=np.float32)).to(z.device)
        a = self.abar[t][:, None, None, None]
        typicality, squared_shift = torch.zeros(2, len(z), *z.shape[-2:], device=z.device)
        for eps in (noise, -noise):
            null, label = self.predict(a.sqrt() * z + (1 - a).sqrt() * eps, t, ids)
            shift = label - null
            typicality += (shift * (2 * eps - label - null)).mean(1) / 2
            squared_shift += shift.square().mean(1) / 2
        return typicality, squared_shift
