"""SDEdit (Meng et al. 2022): noise a real latent to an intermediate step and denoise it under a prompt."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from typicality.model.denoiser import Denoiser
from typicality.model.sampling import TARGET, Grid, ddim_step, guided


def sdedit(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    states: Float[Tensor, "p tokens width"],
    grid: Grid,
    guidance: float,
    noise: Float[Tensor, "n c h w"],
    label: int = TARGET,
) -> Float[Tensor, "n c h w"]:
    """Noise clean latents to the grid's first timestep, and denoise them with guidance by DDIM.

    `label` is the row of `states` that is denoised under. A negative guidance leads away from it.
    """
    result = grid.abar[0].sqrt() * z + (1 - grid.abar[0]).sqrt() * noise
    for i, t in enumerate(grid.timesteps.tolist()):
        eps = guided(denoiser, result, t, states, label, guidance)
        result = ddim_step(result, eps, grid.abar[i], grid.abar[i + 1])
    return result
