"""RePaint against cases whose answer is known by hand."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import tiny_checkpoint
from typicality.applications.impute.repaint import guided_each, posterior_deviation, repaint
from typicality.model.denoiser import Denoiser
from typicality.model.sampling import grid_of

ABAR = tiny_checkpoint().scheduler.alphas_cumprod
STATES = torch.arange(3.0)[:, None, None]
"""Prompt states of the denoisers below: the number of the prompt."""


class Gaussian:
    """The exact denoiser of two cells with unit variance and correlation rho, whatever the prompt; channels are apart.

    z_t has the covariance C_t = abar S + (1 - abar) I, and E[eps | z_t] = sqrt(1 - abar) C_t^-1 z_t.
    """

    def __init__(self, rho: float) -> None:
        self.alphas_cumprod = ABAR
        self.covariance = torch.tensor([[1.0, rho], [rho, 1.0]])

    def predict_noise(self, z, t, states, rows=None):
        a = ABAR[t[0]]
        inverse = torch.linalg.inv(a * self.covariance + (1 - a) * torch.eye(2))
        return ((1 - a).sqrt() * z @ inverse)[None]


class Constant:
    """The denoiser of images that are one constant for each prompt: eps = (z_t - sqrt(abar) m) / sqrt(1 - abar)."""

    def __init__(self) -> None:
        self.alphas_cumprod = ABAR
        self.means = torch.tensor([0.5, 0.0, 1.0])

    def predict_noise(self, z, t, states, rows):
        a = ABAR[t][:, None, None, None]
        return (z - a.sqrt() * self.means[torch.tensor(rows)][..., None, None, None]) / (1 - a).sqrt()


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


def fills(rho: float, jumps: int, steps: int, known: float = 1.5, n: int = 4000) -> torch.Tensor:
    """Draw the second cell n times, given the first, a channel each; what stood in it is far from everything."""
    z = torch.tensor([known, 9.0]).repeat(n, 1)[None, :, None, :]
    missing = torch.tensor([False, True])[None, None, None, :]
    grid = grid_of(ABAR, steps, 1.0)
    found = repaint(Gaussian(rho), z, missing, STATES, [1], grid, 1.0, jumps, generators(1))  # type: ignore[arg-type]
    assert torch.equal(found[..., 0], z[..., 0])
    return found[..., 1].flatten()


def test_the_missing_cell_follows_its_conditional_distribution():
    """Two standard normal cells with correlation 0.8, of which the first is 1.5: the second is N(1.2, 0.6^2).

    Resampling is what makes the two fit: without it the mean falls to 0.74. A few per cent remain, since the known cell
    is noised without regard to the other: RePaint is an approximation.
    """
    drawn = fills(0.8, jumps=16, steps=40)
    assert drawn.mean() == pytest.approx(1.2, abs=0.1)
    assert drawn.std() == pytest.approx(0.6, abs=0.1)
    assert fills(0.8, jumps=1, steps=40).mean() < 0.8


def test_an_independent_cell_follows_its_own_distribution():
    """With correlation 0 the known cell says nothing: N(0, 1), and not near what stood in its place."""
    drawn = fills(0.0, jumps=2, steps=40)
    assert drawn.mean() == pytest.approx(0.0, abs=0.1)
    assert drawn.std() == pytest.approx(1.0, abs=0.1)


def test_each_latent_is_filled_under_its_own_prompt():
    """Images of prompt m are the constant m: 0.5 without a label, 0 and 1 with one; guidance 3 towards 1 gives 2.

    What is known stays, though it fits none of them.
    """
    z = torch.full((3, 2, 4, 4), 7.0)
    missing = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    missing[..., 1:3] = True
    grid = grid_of(ABAR, 5, 1.0)
    found = repaint(Constant(), z, missing, STATES, [0, 1, 2], grid, 1.0, 2, generators(3))  # type: ignore[arg-type]
    for row, mean in enumerate((0.5, 0.0, 1.0)):
        torch.testing.assert_close(found[row, :, :, 1:3], torch.full((2, 4, 2), mean), rtol=0, atol=0.05)
    assert (found[..., 0] == 7).all()
    assert (found[..., 3] == 7).all()
    more = repaint(Constant(), z, missing, STATES, [0, 1, 2], grid, 3.0, 2, generators(3))  # type: ignore[arg-type]
    assert more[2, 0, 0, 1].item() == pytest.approx(2.0, abs=0.1)


def test_the_noise_of_a_step_is_that_of_the_posterior():
    """From abar 0.5 to 0.8: variance (1 - 0.8) / (1 - 0.5) * (1 - 0.5 / 0.8) = 0.4 * 0.375 = 0.15."""
    assert posterior_deviation(torch.tensor(0.5), torch.tensor(0.8)).item() == pytest.approx(0.15**0.5)


def test_guidance_extrapolates_from_the_null_prompt():
    """Two latents under two labels in one batch: null + 3 (label - null) each; 0 is the null prompt alone."""
    denoiser = Denoiser(tiny_checkpoint(), torch.device("cpu"), torch.float32)
    states = denoiser.encode_prompts(["an image", "an image of red", "an image of blue"])
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    every = denoiser.predict_noise(z, torch.full((2,), 300), states)
    own = torch.stack([every[1, 0], every[2, 1]])
    wanted = every[0] + 3 * (own - every[0])
    torch.testing.assert_close(guided_each(denoiser, z, 300, states, [1, 2], 3.0), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guided_each(denoiser, z, 300, states, [1, 2], 1.0), own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guided_each(denoiser, z, 300, states, [1, 2], 0.0), every[0], rtol=1e-4, atol=1e-5)
