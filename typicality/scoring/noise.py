"""The randomness of scoring: one generator an image, seeded by its content, the run's seed and a purpose.

The noise of an image depends on nothing else: not on batch size, order, number of processes, or on which
other images are scored. Different purposes (first pass, refinement, features, gold standard) draw
independent noise.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from typicality.errors import InputError


def check_draws(draws: int) -> None:
    """Refuse numbers of draws that are no antithetic pairs.

    Raises
    ------
    InputError
    """
    if draws < 2 or draws % 2:
        raise InputError(f"--draws must be even and at least 2 (antithetic pairs), not {draws}")


def image_generator(image_id: str, seed: int, purpose: str) -> torch.Generator:
    """Return a CPU generator that is a function of its arguments alone."""
    digest = hashlib.sha256(f"{purpose}|{seed}|{image_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class DrawPlan:
    """How timesteps and noises are drawn for one image.

    Parameters
    ----------
    units : number of independent units: antithetic pairs, or single draws where `antithetic` is false
    t_min, t_max : range of t as shares of the training steps
    antithetic : each unit evaluates +eps and -eps at the same t and averages
    stratified : one t in each of `units` equal bins at a common random offset; else t uniform, independent
    """

    units: int
    t_min: float
    t_max: float
    antithetic: bool = True
    stratified: bool = True

    @property
    def draws(self) -> int:
        return self.units * (2 if self.antithetic else 1)

    def timesteps(self, total: int, generator: torch.Generator) -> Int[Tensor, " units"]:
        """Draw integer timesteps in [t_min, t_max) of `total`, ascending when stratified."""
        if self.stratified:
            offset = torch.rand(1, generator=generator, dtype=torch.float64)
            share = (torch.arange(self.units, dtype=torch.float64) + offset) / self.units
        else:
            share = torch.rand(self.units, generator=generator, dtype=torch.float64)
        position = self.t_min + share * (self.t_max - self.t_min)
        return (position * total).floor().long().clamp(0, total - 1)

    def noises(self, shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "units c h w"]:
        """Draw the noise of every unit for one latent of the given shape."""
        return torch.randn((self.units, *shape), generator=generator)
