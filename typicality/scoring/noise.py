"""The randomness of scoring: one generator an image, seeded by its content, the run's seed and a purpose.

The noise of an image depends on nothing else: not on batch size, order, number of processes, or on which
other images are scored. Different purposes (first pass, refinement, features, gold standard) draw
independent noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from typicality.errors import InputError
from typicality.model.calibration import inverse_density


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
    stratified : one t in each of `units` bins of equal chance at a common random offset; else t independent
    tilt : of the density of t within its range, from dense at low t (> 0) to dense at high t (< 0); 0: uniform
    """

    units: int
    t_min: float
    t_max: float
    antithetic: bool = True
    stratified: bool = True
    tilt: float = 0.0

    @property
    def draws(self) -> int:
        return self.units * (2 if self.antithetic else 1)

    def places(self, generators: Sequence[torch.Generator]) -> Float[Tensor, "n units"]:
        """Draw where in the range of t the units of every image lie, 0 to 1, ascending when stratified; float64."""
        count = 1 if self.stratified else self.units
        chance = torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in generators])
        if self.stratified:
            chance = (torch.arange(self.units, dtype=torch.float64) + chance) / self.units
        return torch.log1p(chance * math.expm1(-self.tilt)) / -self.tilt if self.tilt else chance

    def at(self, places: Float[Tensor, "*n units"], total: int) -> Int[Tensor, "*n units"]:
        """Return the timesteps there: integers in [t_min, t_max) of `total`."""
        position = self.t_min + places * (self.t_max - self.t_min)
        return (position * total).floor().long().clamp(0, total - 1)

    def timesteps(self, total: int, generator: torch.Generator) -> Int[Tensor, " units"]:
        """Draw integer timesteps in [t_min, t_max) of `total`, ascending when stratified."""
        return self.at(self.places([generator])[0], total)

    def weights(self, places: Float[Tensor, "*n units"]) -> Float[Tensor, "*n units"]:
        """Return one over the density there, with which a mean over units is a mean over the whole range of t."""
        return inverse_density(places, self.tilt)

    def noises(self, shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "units c h w"]:
        """Draw the noise of every unit for one latent of the given shape."""
        return torch.randn((self.units, *shape), generator=generator)
