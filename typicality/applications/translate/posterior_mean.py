"""The mean of what the target label would restore: the least-squares guess at the image of that label.

An image is noised to one level, many times over, and each time the denoiser's estimate of the clean latent is taken in
one step (Ho et al. 2020, eq. 15). Their mean is the translation. A denoiser estimates conditional means, so that where
a sample commits itself to one of many possible pictures, this stays between them: nearest to the truth in squared
distance, and softer than a picture. Part of the source may be kept (`TranslateOptions.keep`): at large noise the mean
forgets details, and an estimate that leans on what is known of the subject is nearer still, as shrinkage is (James &
Stein 1961). As much of the source's fine detail is kept as of the source (`pictures.translated_pixels`). Another
share may be the mean from nearly nothing but noise, the label's average, towards which less certain guesses shrink. A
distance to the truth therefore has to be compared with that of a mere blur.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from typicality.model.denoiser import Denoiser
from typicality.model.sampling import TARGET, Grid, clean, guided


def posterior_mean(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    states: Float[Tensor, "3 tokens width"],
    grid: Grid,
    guidance: float,
    noises: Float[Tensor, "pairs n c h w"],
    target: int = TARGET,
) -> Float[Tensor, "n c h w"]:
    """Translate clean latents to the mean estimate under the target label.

    Parameters
    ----------
    grid : its first timestep is the noise level; the others are not used
    noises : each is used with both signs
    target : row of `states` to move to
    """
    t, a = int(grid.timesteps[0]), grid.abar[0]
    total = torch.zeros_like(z)
    for noise in noises:
        for sign in (1.0, -1.0):
            noised = a.sqrt() * z + (1 - a).sqrt() * sign * noise
            total += clean(noised, guided(denoiser, noised, t, states, target, guidance), a)
    return total / (2 * len(noises))
