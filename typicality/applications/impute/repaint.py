"""RePaint (Lugmayr et al. 2022): the missing part of an image drawn from a diffusion model, given the rest.

Notation as in model/sampling.py. With z the known latent and m = 1 where it is missing, one step from noise level abar
to abar' (eq. 8) is

    known    = sqrt(abar') z + sqrt(1 - abar') eps
    unknown  = a draw of the ancestral step from z_t under the label (DDPM; Song et al. 2021, eq. 12 with eta = 1)
    z_t'     = m unknown + (1 - m) known.

The two parts were drawn apart and do not fit yet. So z_t' is noised back to the level of z_t (eq. 1),

    z_t = sqrt(abar / abar') z_t' + sqrt(1 - abar / abar') eps,

and the step done again, `jumps` times in all: the published resampling, with a jump length of one step of this grid
(10 of 250 timesteps there, 100 of 1000 here by default). The last step adds no noise and is done once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from typicality.model.denoiser import Denoiser
from typicality.model.sampling import NULL, Grid, ddpm_mean


def repaint(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    missing: Bool[Tensor, "n 1 h w"],
    states: Float[Tensor, "p tokens width"],
    rows: Sequence[int],
    grid: Grid,
    guidance: float,
    jumps: int,
    generators: Sequence[torch.Generator],
) -> Float[Tensor, "n c h w"]:
    """Fill the missing cells of clean latents.

    Parameters
    ----------
    z : what stands in missing cells is only where the first, most noised level begins
    states : prompt states, the null prompt first
    rows : of `states`, the prompt of each latent
    generators : one a latent: neither batch nor order changes its noise

    Returns
    -------
    clean latents, float32 on the CPU; known cells as they were
    """

    def noise() -> Tensor:
        return torch.stack([torch.randn(z.shape[1:], generator=g) for g in generators])

    level = grid.abar[0].sqrt() * z + (1 - grid.abar[0]).sqrt() * noise()
    for i, t in enumerate(grid.timesteps.tolist()):
        here, there, last = grid.abar[i], grid.abar[i + 1], i == len(grid) - 1
        for jump in range(1 if last else jumps):
            if jump:
                level = (here / there).sqrt() * level + (1 - here / there).sqrt() * noise()
            eps = guided_each(denoiser, level, t, states, rows, guidance)
            unknown, known = ddpm_mean(level, eps, here, there), z
            if not last:
                unknown = unknown + posterior_deviation(here, there) * noise()
                known = there.sqrt() * z + (1 - there).sqrt() * noise()
            level = torch.where(missing, unknown, known)
    return level


def posterior_deviation(abar: Tensor, to: Tensor) -> Tensor:
    """Return the standard deviation of the ancestral step from `abar` to `to` (Ho et al. 2020, eq. 7)."""
    return ((1 - to) / (1 - abar) * (1 - abar / to)).clamp(min=0).sqrt()


def guided_each(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    t: int,
    states: Float[Tensor, "p tokens width"],
    rows: Sequence[int],
    guidance: float,
) -> Float[Tensor, "n c h w"]:
    """Return eps_null + guidance (eps_label - eps_null), each latent under the prompt of its own row of `states`."""
    times = torch.full((len(z),), t)
    own, null = list(rows), [NULL] * len(z)
    if guidance in (0, 1):
        return denoiser.predict_noise(z, times, states, [own if guidance else null])[0].cpu()
    without, label = denoiser.predict_noise(z, times, states, [null, own]).cpu()
    return without + guidance * (label - without)
