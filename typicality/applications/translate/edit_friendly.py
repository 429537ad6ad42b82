"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024, "An Edit Friendly DDPM Noise Space").

Every timestep gets a noised latent of its own, drawn independently, and the noise of each ancestral step is solved
from two neighbours, so that the same steps under the source prompt give the image back exactly. Under the target
prompt these noises carry the layout over.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from typicality.model.denoiser import Denoiser
from typicality.model.sampling import SOURCE, TARGET, Grid, ddpm_mean, guided


def edit_friendly(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    states: Float[Tensor, "3 tokens width"],
    grid: Grid,
    guidance: float,
    noises: Float[Tensor, "steps n c h w"],
    target: int = TARGET,
) -> Float[Tensor, "n c h w"]:
    """Invert clean latents and generate them again under the target prompt.

    Parameters
    ----------
    grid : its first timestep is where generation starts; what is above is skipped (the published T - T_skip)
    noises : one independent noise for every timestep of the grid
    target : row of `states` to generate under; the source's row with guidance 1 gives `z` back
    """
    abar = grid.abar[: len(grid), None, None, None, None]
    levels = torch.cat([abar.sqrt() * z + (1 - abar).sqrt() * noises, z[None]])
    result = levels[0]
    for i, t in enumerate(grid.timesteps.tolist()):
        here, there = grid.abar[i], grid.abar[i + 1]
        source = guided(denoiser, levels[i], t, states, SOURCE, 1.0)
        residue = levels[i + 1] - ddpm_mean(levels[i], source, here, there)  # the published sigma_t z_t
        edited = guided(denoiser, result, t, states, target, guidance)
        result = ddpm_mean(result, edited, here, there) + residue
    return result
