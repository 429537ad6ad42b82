"""Delta: move a latent by the difference of two predictions, and by nothing else.

Delta denoising scores (Hertz et al. 2023) step along eps(z_t, B) - eps(z_t^source, A) with one noise for both, so that
errors which the two share cancel and what the label does not change stays. Weight and order of the steps follow from
the probability flow (Kulikov et al. 2024, FlowEdit): in coordinates y = z_t / sqrt(abar_t), with s = noise-to-signal,
dy/ds = eps, and so the difference d of the two paths obeys

    dd/ds = eps(y_source + d, B) - eps(y_source, A),      d = 0 at the largest s,      result = z + d at s = 0,

which is integrated from the largest noise down. No learning rate has to be chosen, and B = A gives the source back.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from typicality.model.denoiser import Denoiser
from typicality.model.sampling import NULL, SOURCE, TARGET, Grid


def delta(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    states: Float[Tensor, "3 tokens width"],
    grid: Grid,
    guidance: float,
    noises: Float[Tensor, "steps pairs n c h w"],
    target: int = TARGET,
) -> Float[Tensor, "n c h w"]:
    """Translate clean latents along the label's direction.

    Parameters
    ----------
    grid : its first timestep is the largest noise at which labels are compared
    guidance : of both predictions, so that where the two latents agree only the labels' difference is amplified
    noises : for every timestep a few noises, each used with both signs
    target : row of `states` to move to
    """
    n, pairs = len(z), noises.shape[1]
    ratio = ((1 - grid.abar) / grid.abar).sqrt()
    ratio[-1] = 0.0
    offset = torch.zeros_like(z)
    copies = 2 * pairs
    slots = [[target] * (n * copies) + [SOURCE] * (n * copies)]
    if guidance != 1:
        slots.insert(0, [NULL] * (2 * n * copies))
    for i, t in enumerate(grid.timesteps.tolist()):
        a = grid.abar[i]
        noise = torch.cat([noises[i], -noises[i]])  # (copies, n, c, h, w)
        source = a.sqrt() * z + (1 - a).sqrt() * noise
        inputs = torch.cat([source + a.sqrt() * offset, source]).flatten(0, 1)
        predictions = denoiser.predict_noise(inputs, torch.full((len(inputs),), t), states, slots).cpu()
        eps = predictions[-1]
        if guidance != 1:
            eps = predictions[0] + guidance * (eps - predictions[0])
        here, there = eps.unflatten(0, (2, copies, n)).mean(1)
        offset = offset - (ratio[i] - ratio[i + 1]) * (here - there)
    return z + offset
