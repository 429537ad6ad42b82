"""Diffusion of vectors: the mathematics alone, on tensors.

Time runs from 0 to 1 on the cosine schedule (Nichol & Dhariwal 2021): abar(t) = cos^2(pi t / 2), and

    z_t = sqrt(abar) z + sqrt(1 - abar) eps                              Ho et al. 2020, eq. 4
    z_t / sqrt(abar) = z + sigma eps,    sigma^2 = (1 - abar) / abar     the same as an observation with noise

The denoiser gives z^ = E[z | z_t]; eps^ = (z_t - sqrt(abar) z^) / sqrt(1 - abar) follows. Observed entries are not
noised at all and the denoiser is told which they are, as in CSDI (Tashiro et al. 2021); RePaint (Lugmayr et al. 2022)
instead puts them back at every step of an unconditional model. A sampling step without fresh noise is that of DDIM
(Song et al. 2021, eq. 12 with eta = 0). Tables as diffusion: TabDDPM (Kotelnikov et al. 2023).

Typicality of a row z for its label is that of scoring/estimator.py, E[L(null) - L(label)] with the entries in the
place of channels and one cell. t is uniform on T_RANGE: the levels of sigma of the image schedule's [0.1, 0.7].
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from typicality.scoring.estimator import loss_difference

T_RANGE = (0.21, 0.81)
LAST = 0.99
"""Where sampling begins: sigma is 64 there, and nothing of z is left."""


def abar(t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the share of the signal's variance at time t."""
    return torch.cos(t * (math.pi / 2)).square()


def noised(z: Float[Tensor, "*n d"], eps: Float[Tensor, "*n d"], a: Float[Tensor, "*n 1"]) -> Float[Tensor, "*n d"]:
    """Return z_t for the noise eps."""
    return a.sqrt() * z + (1 - a).sqrt() * eps


def noise_of(
    zt: Float[Tensor, "*n d"], denoised: Float[Tensor, "*n d"], a: Float[Tensor, "*n 1"]
) -> Float[Tensor, "*n d"]:
    """Return eps^ from z^."""
    return (zt - a.sqrt() * denoised) / (1 - a).sqrt()


def step(
    zt: Float[Tensor, "*n d"], denoised: Float[Tensor, "*n d"], now: Float[Tensor, "*n 1"], later: Float[Tensor, "*n 1"]
) -> Float[Tensor, "*n d"]:
    """Return z at the lower noise of abar = `later`."""
    return noised(denoised, noise_of(zt, denoised, now), later)


def times(steps: int) -> Float[Tensor, " steps+1"]:
    """Return the times of a sampler, from LAST down to 0."""
    return torch.linspace(LAST, 0.0, steps + 1)


def evidence(
    zt: Float[Tensor, "n d"],
    eps: Float[Tensor, "n d"],
    null: Float[Tensor, "n d"],
    label: Float[Tensor, "n d"],
    a: Float[Tensor, "n 1"],
    counted: Float[Tensor, "n d"],
) -> Float[Tensor, " n"]:
    """Return L(null) - L(label) of one draw a row, from the denoised rows; > 0 where the label helps.

    The mean is over the entries that are `counted` (1, else 0).
    """
    noises = [torch.where(counted > 0, noise_of(zt, z, a), 0.0) for z in (null, label)]
    shaped = [x[:, :, None, None] for x in (torch.where(counted > 0, eps, 0.0), *noises)]
    return loss_difference(*shaped)[:, 0, 0] * zt.shape[1] / counted.sum(1).clamp_min(1)
