"""The analytic denoiser and the mathematics of diffusion, against answers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from typicality.tabular import diffusion
from typicality.tabular.gaussian import fit, gain, gaussians, moments

S = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)


def test_an_observed_entry_predicts_the_other():
    """Observed y1 = 2, nothing known of the other: E = rho * 2 = 1.6, variance 1 - rho^2 = 0.36."""
    base = gaussians(torch.zeros(1, 2), S[None])
    mean, variance = base.condition(torch.tensor([[[2.0, 77.0]]]), torch.tensor([[0.0, 1e6]]), torch.tensor([0]))
    assert mean[0, 0].tolist() == pytest.approx([2.0, 1.6], abs=1e-3)
    assert variance[0].tolist() == pytest.approx([0.0, 0.36], abs=1e-3)


def test_noise_of_equal_size_shrinks_towards_the_mean():
    """With S = 1 and noise 1 half of an observation is believed: G = 1 / 2, variance 1 / 2; both ways agree."""
    one = torch.ones(1, 1, 1)
    g, variance = gain(one, torch.ones(1, 1))
    assert (float(g), float(variance)) == pytest.approx((0.5, 0.5))
    base = gaussians(torch.zeros(1, 2), S[None])
    y, noise, which = torch.randn(5, 3, 2), torch.rand(5) + 0.1, torch.zeros(5, dtype=torch.long)
    short, long = base.shrink(y, noise, which), base.condition(y, noise[:, None].expand(5, 2), which)
    for a, b in zip(short, long, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_moments_survive_missing_entries():
    """Half of x2 is missing wherever x1 is high: the mean of the rest is biased, expectation maximisation is not.

    With correlation 0.8, what is left of x2 has mean 0.8 E[x1 | kept]; kept are all x1 < 0 and half of the others, so
    E[x1 | kept] = (-0.5 + 0.25) 2 phi(0) / 0.75 = -0.266, and the naive mean of x2 is -0.21 instead of 0.
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 2, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(S).T
    known = torch.ones(4000, 2, dtype=torch.bool)
    known[:, 1] = (z[:, 0] < 0) | (torch.rand(4000, generator=generator) < 0.5)
    assert float(z[known[:, 1], 1].mean()) < -0.15
    mean, covariance = moments(torch.where(known, z, 0.0), known)
    assert abs(float(mean[1])) < 0.06
    assert float(covariance[0, 1]) == pytest.approx(0.8, abs=0.06)


def test_a_label_with_few_rows_borrows_the_covariance_of_the_others():
    """Two rows say nothing of a covariance; within all labels it is 0.8, and the means are the labels' own."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(402, 2, generator=generator) @ torch.linalg.cholesky(S).float().T
    z[400:] += torch.tensor([5.0, -5.0])
    labels = torch.tensor([0] * 400 + [1] * 2)
    held_out = torch.zeros(402, dtype=torch.bool)
    held_out[:40] = True
    found = fit(z, torch.ones_like(z, dtype=torch.bool), labels, 2, held_out)
    assert found.means[2].tolist() == pytest.approx(z[400:].mean(0).tolist(), abs=1e-4)
    covariance = found.covariances[2]
    assert float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()) == pytest.approx(0.8, abs=0.15)


def test_the_time_of_tables_has_the_noise_of_the_image_schedule():
    """On the scaled-linear schedule of Stable Diffusion t = 100 and 700 have sigma 0.344 and 3.33."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    image = torch.cumprod(1 - betas, 0)[[100, 700]]
    own = diffusion.abar(torch.tensor(diffusion.T_RANGE, dtype=torch.float64))
    for a, b in zip(image, own, strict=True):
        assert math.sqrt((1 - b) / b) == pytest.approx(math.sqrt((1 - a) / a), rel=0.03)


def test_a_step_to_no_noise_is_the_denoised_vector():
    """abar = 1 leaves z^; a step back to the same abar changes nothing."""
    zt, denoised, a = torch.tensor([[0.3, -1.0]]), torch.tensor([[0.1, 0.4]]), torch.tensor([[0.5]])
    assert torch.allclose(diffusion.step(zt, denoised, a, torch.ones(1, 1)), denoised)
    assert torch.allclose(diffusion.step(zt, denoised, a, a), zt)


def test_evidence_is_one_loss_minus_the_other():
    """z = (1, 0), eps = (1, 1), abar = 1 / 2, so that z_t = sqrt(1/2) (2, 1).

    The label denoises perfectly: its loss is 0. Null says (0, 0): eps^ = z_t / sqrt(1/2) = (2, 1), an error of (1, 0),
    a loss of 1 / 2 over both entries and of 1 over the first alone.
    """
    z, eps, a = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2), torch.tensor([[0.5]])
    zt = diffusion.noised(z, eps, a)
    for counted, value in (([1.0, 1.0], 0.5), ([1.0, 0.0], 1.0), ([0.0, 1.0], 0.0)):
        found = diffusion.evidence(zt, eps, torch.zeros(1, 2), z, a, torch.tensor([counted]))
        assert float(found) == pytest.approx(value, abs=1e-6)
