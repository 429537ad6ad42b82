"""The typicality estimator: the mathematics alone, on tensors.

For an image with latent z, noise eps, timestep t and predictions e_null, e_c under the null prompt and the
prompt of label c, one draw gives at every latent cell, averaged over channels,

    L(null) - L(c) = |eps - e_null|^2 - |eps - e_c|^2 = D (2 eps - e_c - e_null),    D = e_c - e_null,

which is positive where the label helps to denoise. Its mean over eps and t is the typicality T(x | c) of
Siglidis et al., *Diffusion Models as Data Mining Tools* (ECCV 2024), eq. 3. The product form is used because
T is a small difference of large numbers: it never subtracts two losses.

An antithetic unit averages the draws +eps and -eps at one t, which cancels the leading, odd part of the cross
term 2 D (eps - e_c). Units are independent given stratification; variances are taken over units.

What is left of a unit has two parts. With D = D_e + D_o and q = 2 eps - e_c - e_null = q_e + q_o divided into what
both signs share (even) and what changes sign with the noise (odd), T = D_e q_e + D_o q_o. The even part holds nearly
all of the score and the odd part most of the noise, so that ranking from few draws trusts the second less
(mining/selection.py). What is reported is their sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def noised(
    z: Float[Tensor, "n c h w"], eps: Float[Tensor, "n c h w"], abar: Float[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Return z_t = sqrt(abar) z + sqrt(1 - abar) eps (Ho et al. 2020, eq. 4)."""
    a = abar[:, None, None, None]
    return a.sqrt() * z + (1 - a).sqrt() * eps


def loss_difference(
    eps: Float[Tensor, "n c h w"], e_null: Float[Tensor, "n c h w"], e_label: Float[Tensor, "*p n c h w"]
) -> Float[Tensor, "*p n h w"]:
    """Return L(null) - L(label) a cell, averaged over channels; > 0 where the label helps."""
    difference = e_label - e_null
    return (difference * (2 * eps - e_label - e_null)).mean(-3)


def even_part(
    eps: Float[Tensor, "n 2 c h w"], e_null: Float[Tensor, "n 2 c h w"], e_label: Float[Tensor, "*p n 2 c h w"]
) -> Float[Tensor, "*p n h w"]:
    """Return D_e q_e a cell, averaged over channels, of antithetic units: axis -4 holds the draws +eps and -eps."""
    difference = (e_label - e_null).mean(-4)
    remainder = (2 * eps - e_label - e_null).mean(-4)
    return (difference * remainder).mean(-3)


def squared_shift(e_null: Float[Tensor, "n c h w"], e_label: Float[Tensor, "*p n c h w"]) -> Float[Tensor, "*p n h w"]:
    """Return D^2 a cell, averaged over channels: how much the label changes the prediction, without a sign."""
    return (e_label - e_null).square().mean(-3)


def denoising_loss(eps: Float[Tensor, "n c h w"], prediction: Float[Tensor, "*p n c h w"]) -> Float[Tensor, "*p n h w"]:
    """Return |eps - prediction|^2 a cell, averaged over channels."""
    return (eps - prediction).square().mean(-3)


def label_evidence(
    differences: Float[Tensor, "n p units h w"], null_losses: Float[Tensor, "n units h w"]
) -> Float[Tensor, "n p"]:
    """Return how much every label helps an image as a whole, for telling labels apart (not for ranking patches).

    A plain mean over cells is ruled by those with much detail, where the denoiser is worst for all labels and L(null) -
    L(label) varies most. Each difference is therefore divided by the root of its local null loss (mean of 3 x 3 cells),
    to which its standard deviation is proportional: D is of one size, and so the cross term 2 D (eps - e) goes with
    |eps - e|. The weights know no label. On two models and images that neither saw, accuracy rose by 0.035.
    """
    local = F.avg_pool2d(null_losses, 3, stride=1, padding=1, count_include_pad=False)
    weights = local.clamp_min(torch.finfo(local.dtype).tiny).rsqrt()
    return (differences * weights[:, None]).mean((-3, -2, -1))


def dyadic_sides(height: int, width: int) -> list[int]:
    """Return 1, 2, 4, ... up to the shorter side: the box sides whose second moments are kept."""
    sides = [1]
    while sides[-1] * 2 <= min(height, width):
        sides.append(sides[-1] * 2)
    return sides


def box_mean(maps: Float[Tensor, "n h w"], side: int) -> Float[Tensor, "n h1 w1"]:
    """Return the mean over every side x side box."""
    return maps if side == 1 else F.avg_pool2d(maps[:, None], side, stride=1)[:, 0]


@dataclass(frozen=True)
class Moments:
    """Moments of one image and one label over n independent units, all float32; or of many, with leading axes.

    `squares[k]` is the mean over units of the squared k x k box mean of T; with `typicality` it gives the
    variance of any box's score, which a cell's variance alone could not (cells of one draw are correlated).
    `even` is the mean of the even part, and `even_share` for each of those sides the share of the noise of k x k boxes,
    all together, that lies in it; all of it where draws are not antithetic.
    """

    n: int
    typicality: Float[Tensor, "*k h w"]
    squares: dict[int, Float[Tensor, "*k h1 w1"]]
    shrinkage: Float[Tensor, "*k h w"]
    null_loss: Float[Tensor, "*k h w"]
    even: Float[Tensor, "*k h w"]
    even_share: Float[Tensor, "*k sides"]

    def each(self, change: Callable[[Tensor], Tensor]) -> Moments:
        """Return moments whose arrays are changed, one and all."""
        squares = {side: change(square) for side, square in self.squares.items()}
        return Moments(
            self.n, change(self.typicality), squares, change(self.shrinkage), change(self.null_loss),
            change(self.even), change(self.even_share),
        )  # fmt: skip


def moments_of(
    differences: Float[Tensor, "*k units h w"],
    shifts: Float[Tensor, "*k units h w"],
    null_losses: Float[Tensor, "*k units h w"],
    even: Float[Tensor, "*k units h w"] | None = None,
) -> Moments:
    """Reduce the maps of all units of one image and label to moments; or those of many, which takes far less time.

    Without `even` all of the score counts as even.

    With stratified units the plain variance over units overstates the variance of their mean, because it
    counts the spread between strata. `squares` is therefore set from the successive-difference estimator
    (Wolter 2007, ch. 8): var(mean) = sum (b_i - b_{i+1})^2 / (2 n (n - 1)), stored as the second moment
    that gives this variance through (E[b^2] - E[b]^2) / (n - 1).
    """
    *lead, n, height, width = differences.shape
    even = differences if even is None else even

    def boxes(maps: Tensor, side: int) -> Tensor:
        return box_mean(maps.reshape(-1, height, width), side).unflatten(0, (*lead, n))

    squares, shares = {}, []
    for side in dyadic_sides(height, width):
        of_all, of_even = boxes(differences, side), boxes(even, side)
        mean = of_all.mean(-3)
        spread = of_all.diff(dim=-3).square().sum(-3) / (2 * n) if n > 1 else torch.zeros_like(mean)
        squares[side] = mean.square() + spread
        shares.append(_share(of_even, of_all - of_even))
    return Moments(
        n, differences.mean(-3), squares, shifts.mean(-3), null_losses.mean(-3), even.mean(-3), torch.stack(shares, -1)
    )


def error_of_mean(units: Float[Tensor, "*k units"]) -> Float[Tensor, "*k"]:
    """Return the standard error of the mean over stratified units, as in `moments_of`; infinite for a single one."""
    n = units.shape[-1]
    variance = units.diff().square().sum(-1) / (2 * n * (n - 1) or 1)
    return variance.sqrt() if n > 1 else torch.full_like(variance, torch.inf)


def _share(even: Float[Tensor, "*k units h1 w1"], odd: Float[Tensor, "*k units h1 w1"]) -> Float[Tensor, "*k"]:
    """Return the share of the even part in the noise of boxes: 1 of a single unit, and where there is no noise."""
    if even.shape[-3] < 2:
        return torch.ones(even.shape[:-3], dtype=even.dtype, device=even.device)
    of_even, of_odd = (part.diff(dim=-3).square().sum((-3, -2, -1)) for part in (even, odd))
    return torch.where(of_even + of_odd > 0, of_even / (of_even + of_odd), torch.ones_like(of_even))
