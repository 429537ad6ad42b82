"""What samplers share: a grid of timesteps, guided predictions, and the steps of DDIM and DDPM.

Notation: abar_t is the cumulative product of the schedule, s_t = sqrt((1 - abar_t) / abar_t) its noise-to-signal
ratio; a latent at t is z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps. A clean latent counts as one at the smallest
noise of the schedule (`set_alpha_to_one=False`, as Stable Diffusion samples).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from typicality.model.denoiser import Denoiser

NULL, SOURCE, TARGET = 0, 1, 2
"""Rows of the prompt states that every sampler takes: the null prompt, the source label, the target label."""


@dataclass(frozen=True)
class Grid:
    """Timesteps of one sampler, most noised first, and the abar of each; `abar[-1]` is that of a clean latent.

    Parameters
    ----------
    timesteps : (steps,) descending
    abar : (steps + 1,) ascending
    """

    timesteps: Int[Tensor, " steps"]
    abar: Float[Tensor, " steps1"]

    def __len__(self) -> int:
        return len(self.timesteps)


def grid_of(alphas_cumprod: Float[Tensor, " t"], steps: int, strength: float) -> Grid:
    """Return `steps` timesteps spread evenly over (0, strength] of the schedule; fewer where it has fewer."""
    total = len(alphas_cumprod)
    share = torch.arange(steps, 0, -1, dtype=torch.float64) / steps * strength
    times = (share * total).round().long().clamp(1, total) - 1
    times = torch.unique(times).flip(0)
    times = times[times > 0] if (times > 0).any() else times
    return Grid(times, torch.cat([alphas_cumprod[times], alphas_cumprod[:1]]).cpu())


def guided(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    t: int,
    states: Float[Tensor, "p tokens width"],
    label: int,
    guidance: float,
) -> Float[Tensor, "n c h w"]:
    """Return eps_null + guidance (eps_label - eps_null), float32 on the CPU (Ho & Salimans 2022).

    `label` is a row of `states`. A guidance of 1 is the label's own prediction, and costs one evaluation less.
    """
    times = torch.full((len(z),), t)
    if guidance == 1 or label == NULL:
        return denoiser.predict_noise(z, times, states[label : label + 1])[0].cpu()
    null, own = denoiser.predict_noise(z, times, states[[NULL, label]]).cpu()
    return null + guidance * (own - null)


def clean(z: Tensor, eps: Tensor, abar: Tensor) -> Tensor:
    """Return the clean latent that a prediction implies: (z_t - sqrt(1 - abar) eps) / sqrt(abar)."""
    return (z - (1 - abar).sqrt() * eps) / abar.sqrt()


def ddim_step(z: Tensor, eps: Tensor, abar: Tensor, to: Tensor) -> Tensor:
    """Move a latent from noise level `abar` to `to`, either way, without fresh noise (Song et al. 2021, eq. 12)."""
    return to.sqrt() * clean(z, eps, abar) + (1 - to).sqrt() * eps


def ddpm_mean(z: Tensor, eps: Tensor, abar: Tensor, to: Tensor) -> Tensor:
    """Return the mean of the ancestral step from noise level `abar` to `to` (Song et al. 2021, eq. 12, eta = 1)."""
    variance = ((1 - to) / (1 - abar) * (1 - abar / to)).clamp(min=0)
    return to.sqrt() * clean(z, eps, abar) + (1 - to - variance).clamp(min=0).sqrt() * eps
