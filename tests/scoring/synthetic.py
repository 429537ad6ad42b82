"""Images whose typicality is known, and noisy draws of it: what adaptive scoring sees, without a model.

The proportions are those measured on the embedded data: signal and noise both grow with D^2, two antithetic pairs have
about as much noise variance as there is signal, the noise of a unit is smooth over the map, and T falls with t.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from typicality.records import ModelView, ScoreMap
from typicality.scoring.estimator import moments_of
from typicality.scoring.scorer import Job

SIZE = 16


def rng_of(*parts: object) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big"))


def smooth(rng: np.random.Generator, n: int, width: float) -> np.ndarray:
    """(n, SIZE, SIZE) smooth noise whose 4 x 4 box means have variance 1."""
    field_ = gaussian_filter(rng.normal(size=(n, SIZE + 8, SIZE + 8)), (0, width, width))[:, 4:-4, 4:-4]
    scale = {1.0: 0.1775, 0.7: 0.203}[width]
    return field_ / scale


@dataclass
class World:
    """Images of labels; `noise` is the standard deviation of one antithetic pair relative to that of the signal."""

    images: int = 120
    labels: tuple[str, ...] = ("a", "b")
    noise: float = 1.35
    odd: float = 0.0
    seed: int = 0
    drawn: int = 0
    heavy: bool = True

    def __post_init__(self) -> None:
        self.labels_of = {f"{label}{i:04d}": (label,) for label in self.labels for i in range(self.images)}
        self.amplitude = cache(self._amplitude)
        self.truth = cache(self._truth)

    def _amplitude(self, image_id: str) -> np.ndarray:
        rng = rng_of("amplitude", self.seed, image_id)
        return 1e-3 * np.exp(0.5 * rng.normal() + 0.4 * smooth(rng, 1, 1.0)[0])

    def _truth(self, image_id: str) -> np.ndarray:
        rng = rng_of("truth", self.seed, image_id)
        return self.amplitude(image_id) * (0.35 + 0.45 * rng.normal() + 0.8 * smooth(rng, 1, 1.0)[0])

    def units(self, image_id: str, purpose: str, n: int, stratified: bool = True) -> np.ndarray:
        """(n, SIZE, SIZE) maps of T of independent units."""
        rng = rng_of("units", self.seed, image_id, purpose)
        t = (np.arange(n) + rng.random()) / n if stratified else rng.random(n)
        level = (1.5 - t)[:, None, None]
        shock = np.exp(0.3 * rng.normal(size=(n, 1, 1)) - 0.045) if self.heavy else 1.0
        noise = self.amplitude(image_id) * smooth(rng, n, 0.7) * shock * self.noise
        return self.truth(image_id) * level + noise

    def odd_units(self, image_id: str, purpose: str, n: int) -> np.ndarray:
        """(n, SIZE, SIZE) odd parts, noise alone, in units of the even part's: `odd` times as large."""
        rng = rng_of("odd", self.seed, image_id, purpose)
        return self.amplitude(image_id) * smooth(rng, n, 0.7) * self.noise * self.odd

    def maps(self, jobs: Sequence[Job], purpose: str, n: int, stratified: bool = True) -> Pass:
        found = Pass()
        for job in jobs:
            self.drawn += 2 * n
            units = torch.tensor(self.units(job.image_id, purpose, n, stratified), dtype=torch.float32)
            shift = torch.tensor(self.amplitude(job.image_id) ** 2 * 100, dtype=torch.float32)
            odd = torch.tensor(self.odd_units(job.image_id, purpose, n), dtype=torch.float32)
            moments = moments_of(units + odd, shift.expand(units.shape), torch.full(units.shape, 0.1), units)
            for label in job.labels:
                found.rows[job.image_id, label] = ScoreMap(
                    job.image_id, label, ModelView(64, 64, 1.0, 1.0, 0.0, 0.0), moments.n,
                    moments.typicality.numpy(), {k: s.numpy() for k, s in moments.squares.items()},
                    moments.shrinkage.numpy(), moments.null_loss.numpy(), moments.even.numpy(),
                    moments.even_share.numpy(),
                )  # fmt: skip
        return found

    def jobs(self) -> list[Job]:
        return [Job(i, labels) for i, labels in sorted(self.labels_of.items())]


@dataclass
class Pass:
    rows: dict[tuple[str, str], ScoreMap] = field(default_factory=dict)

    def __iter__(self) -> Iterator[ScoreMap]:
        return iter(self.rows.values())

    def get(self, image_id: str, label: str) -> ScoreMap:
        return self.rows[image_id, label]
