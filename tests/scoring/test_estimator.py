"""The estimator against answers worked out by hand, and its statistical promises by simulation."""

from __future__ import annotations

import math

import pytest
import torch

from typicality.scoring.estimator import (
    box_mean,
    denoising_loss,
    dyadic_sides,
    even_part,
    label_evidence,
    loss_difference,
    moments_of,
    noised,
    squared_shift,
)
from typicality.scoring.noise import DrawPlan, image_generator


def test_one_cell_by_hand() -> None:
    """eps = 1, null predicts 0, the label 0.75: L(null) = 1, L(label) = 1/16, so T = 15/16 and D^2 = 9/16."""
    eps, null, label = (torch.full((1, 1, 1, 1), v) for v in (1.0, 0.0, 0.75))
    assert loss_difference(eps, null, label).item() == 15 / 16
    assert squared_shift(null, label).item() == 9 / 16
    assert denoising_loss(eps, null).item() == 1.0


def test_even_part_by_hand() -> None:
    """One cell, eps = 1 and -1, the null predicts 0, the label 0.5 and 0.1.

    D = 0.5 and 0.1 (even 0.3), q = 2 eps - e_c - e_null = 1.5 and -2.1 (even -0.3): the even part is -0.09.
    T = 0.75 and -0.21, 0.27 in the mean, of which the odd part D_o q_o = 0.2 * 1.8 is the rest.
    """
    eps, label = (torch.tensor(v).view(1, 2, 1, 1, 1) for v in ([1.0, -1.0], [0.5, 0.1]))
    null = torch.zeros_like(eps)
    even = even_part(eps, null, label)
    assert even.shape == (1, 1, 1)
    assert even.item() == pytest.approx(-0.09, rel=1e-5)
    whole = loss_difference(eps, null, label).mean()
    assert whole.item() == pytest.approx(0.27, rel=1e-5)
    assert (whole - even).item() == pytest.approx(0.2 * 1.8, rel=1e-5)


def test_share_of_the_even_part_in_the_noise() -> None:
    """Successive even parts differ by 1, odd parts by 3: 1 / (1 + 9). A single unit tells nothing, and all is even."""
    even = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)
    odd = torch.tensor([3.0, 0.0, 3.0]).view(3, 1, 1)
    zero = torch.zeros_like(even)
    moments = moments_of(even + odd, zero, zero, even)
    assert moments.even.item() == pytest.approx(1 / 3)
    assert moments.even_share.tolist() == pytest.approx([0.1])
    assert moments_of(even[:1], zero[:1], zero[:1], zero[:1]).even_share.tolist() == [1.0]
    assert moments_of(even, zero, zero).even_share.tolist() == [1.0]


def test_difference_equals_difference_of_losses_and_averages_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    eps, null, label = torch.randn(3, 2, 4, 5, 6, generator=generator, dtype=torch.float64)
    expected = (eps - null).square().mean(1) - (eps - label).square().mean(1)
    torch.testing.assert_close(loss_difference(eps, null, label), expected)


def test_sign_a_label_that_helps_is_typical() -> None:
    eps = torch.ones(1, 3, 2, 2)
    good, bad = 0.9 * eps, -0.9 * eps
    assert (loss_difference(eps, torch.zeros_like(eps), good) > 0).all()
    assert (loss_difference(eps, torch.zeros_like(eps), bad) < 0).all()


def test_product_form_keeps_small_differences_in_float32() -> None:
    """Two predictions that differ by 1e-6: subtracting their float32 losses would lose most digits."""
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn(1, 4, 16, 16, generator=generator)
    null = torch.randn(1, 4, 16, 16, generator=generator)
    label = null + 1e-6
    exact = loss_difference(eps.double(), null.double(), label.double())
    product = (loss_difference(eps, null, label) - exact).abs().max()
    subtracted = (denoising_loss(eps, null) - denoising_loss(eps, label) - exact).abs().max()
    assert product < subtracted / 10


def test_labels_share_one_null() -> None:
    """A leading label axis broadcasts against one null prediction."""
    generator = torch.Generator().manual_seed(2)
    eps, null = torch.randn(2, 3, 4, 5, 5, generator=generator)
    labels = torch.randn(7, 3, 4, 5, 5, generator=generator)
    together = loss_difference(eps, null, labels)
    apart = torch.stack([loss_difference(eps, null, label) for label in labels])
    torch.testing.assert_close(together, apart)


def test_noised_keeps_unit_variance_and_limits() -> None:
    """abar = 1 gives the latent, abar = 0 the noise, and for unit latents the variance stays 1."""
    generator = torch.Generator().manual_seed(3)
    z, eps = torch.randn(2, 3, 4, 32, 32, generator=generator)
    mixed = noised(z, eps, torch.tensor([1.0, 0.0, 0.5]))
    torch.testing.assert_close(mixed[0], z[0])
    torch.testing.assert_close(mixed[1], eps[1])
    assert mixed[2].var().item() == pytest.approx(1.0, abs=0.1)


def test_dyadic_sides_and_box_mean() -> None:
    assert dyadic_sides(16, 20) == [1, 2, 4, 8, 16]
    assert dyadic_sides(1, 9) == [1]
    maps = torch.arange(12.0).reshape(1, 3, 4)
    assert box_mean(maps, 2)[0, 0, 0].item() == (0 + 1 + 4 + 5) / 4


def test_successive_differences_by_hand() -> None:
    """Units 1, 3, 2: mean 2, sum of squared steps 4 + 1 = 5, var(mean) = 5 / (2 * 3 * 2) = 5/12."""
    moments = moments_of(torch.tensor([1.0, 3.0, 2.0])[:, None, None], torch.zeros(3, 1, 1), torch.zeros(3, 1, 1))
    mean, second = moments.typicality.item(), moments.squares[1].item()
    assert mean == 2.0
    assert (second - mean**2) / (moments.n - 1) == pytest.approx(5 / 12, rel=1e-6)


def test_variance_of_the_mean_is_unbiased_for_independent_units() -> None:
    """Over 4,000 images of 6 units of variance 1, the estimated variance of the mean averages 1/6 within 3%."""
    generator = torch.Generator().manual_seed(4)
    units = torch.randn(6, 4000, 1, generator=generator)
    moments = moments_of(units, torch.zeros_like(units), torch.zeros_like(units))
    variance = (moments.squares[1] - moments.typicality.square()) / 5
    assert variance.mean().item() == pytest.approx(1 / 6, rel=0.03)


def test_stratified_units_with_a_trend_are_not_charged_for_it() -> None:
    """T rises with t by 10 over the range: the plain variance would count the rise, ours hardly does."""
    generator = torch.Generator().manual_seed(5)
    plan = DrawPlan(16, 0.1, 0.7)
    t = plan.timesteps(1000, generator).float() / 1000
    units = (t * 10)[:, None, None] + 0.1 * torch.randn(16, 50, 50, generator=generator)
    moments = moments_of(units, torch.zeros_like(units), torch.zeros_like(units))
    ours = ((moments.squares[1] - moments.typicality.square()) / 15).mean()
    plain = units.var(0).mean() / 16
    assert ours < plain / 10


def test_plan_stays_in_range_and_visits_every_stratum() -> None:
    for seed in range(20):
        t = DrawPlan(6, 0.1, 0.7).timesteps(1000, torch.Generator().manual_seed(seed))
        assert t.min() >= 100
        assert t.max() < 700
        assert ((t - 100) // 100).tolist() == [0, 1, 2, 3, 4, 5]
    assert DrawPlan(6, 0.1, 0.7).draws == 12
    assert DrawPlan(6, 0.1, 0.7, antithetic=False).draws == 6


@pytest.mark.parametrize("tilt", [-1.5, 0.7, 2.0])
@pytest.mark.parametrize("stratified", [True, False])
def test_tilted_timesteps_are_weighted_so_that_means_stay(tilt: float, stratified: bool) -> None:
    """Of 4,000 drawings of 6 units: mean of the weights, and of a function of t, as over a uniform range."""
    plan = DrawPlan(6, 0.1, 0.7, stratified=stratified, tilt=tilt)
    generator = torch.Generator().manual_seed(0)
    places = plan.places([generator] * 4000)
    assert places.min() >= 0
    assert places.max() < 1
    weights = plan.weights(places)
    assert weights.mean().item() == pytest.approx(1, abs=0.02)
    assert (weights * places.square()).mean().item() == pytest.approx(1 / 3, abs=0.02)
    assert (places.mean() < 0.5) == (tilt > 0)
    middle = -math.log((1 + math.exp(-tilt)) / 2) / tilt  # half of the chance lies below
    assert (places < middle).double().mean().item() == pytest.approx(0.5, abs=0.02)
    if stratified:
        assert (places.diff(dim=1) > 0).all()
        assert ((places < middle).sum(1) == 3).all()


def test_without_a_tilt_timesteps_are_what_they_were() -> None:
    plan = DrawPlan(5, 0.1, 0.7)
    offset = torch.rand(1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = [int((0.1 + (i + float(offset)) / 5 * 0.6) * 1000) for i in range(5)]
    assert plan.timesteps(1000, torch.Generator().manual_seed(3)).tolist() == expected
    assert (plan.weights(plan.places([torch.Generator()])) == 1).all()


def test_noise_is_a_function_of_image_seed_and_purpose() -> None:
    def draw(*arguments: object) -> list[float]:
        return torch.randn(3, generator=image_generator(*arguments)).tolist()  # type: ignore[arg-type]

    assert draw("a", 0, "first") == draw("a", 0, "first")
    others = [draw("b", 0, "first"), draw("a", 1, "first"), draw("a", 0, "second")]
    assert all(o != draw("a", 0, "first") for o in others)


def test_antithetic_units_have_less_variance_for_a_nearly_linear_denoiser() -> None:
    """For a denoiser that is affine in its input, the odd cross term cancels exactly in a pair.

    With z = 0.3, abar = 0.5, e_null = 0.5 z_t and e_label = 0.5 z_t + 0.1: D = 0.1 is constant and
    T = 0.1 (2 eps - z_t - 0.1), whose part linear in eps cancels in the pair: the variance of a pair is 0.
    """
    generator = torch.Generator().manual_seed(6)
    eps = torch.randn(5000, 1, 1, 1, generator=generator)
    z, abar = torch.full_like(eps, 0.3), torch.full((5000,), 0.5)

    def t_of(noise: torch.Tensor) -> torch.Tensor:
        null = 0.5 * noised(z, noise, abar)
        return loss_difference(noise, null, null + 0.1).flatten()

    single, pair = t_of(eps), (t_of(eps) + t_of(-eps)) / 2
    assert single.std() > 0.05
    assert pair.std() < 1e-6
    assert pair.mean().item() == pytest.approx(0.1 * (-math.sqrt(0.5) * 0.3 - 0.1), abs=1e-6)


def test_label_evidence_is_the_mean_where_all_cells_are_alike() -> None:
    differences = torch.randn(3, 2, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    evidence = label_evidence(differences, torch.full((3, 4, 6, 5), 0.25))
    torch.testing.assert_close(evidence, differences.mean((2, 3, 4)) / 0.5)
    assert label_evidence(differences, torch.zeros(3, 4, 6, 5)).isfinite().all()


def test_label_evidence_tells_labels_apart_where_a_few_cells_are_noisy() -> None:
    """A fifth of the cells has 25 times the loss, and noise in proportion to its root; all have the same signal."""
    generator = torch.Generator().manual_seed(1)
    n, units, side = 400, 4, 10
    losses = torch.full((n, units, side, side), 0.04)
    losses[..., :2] = 1.0
    noise = torch.randn((n, 2, units, side, side), generator=generator) * losses[:, None].sqrt()
    own = torch.arange(n) % 2
    differences = noise + 0.01 * torch.nn.functional.one_hot(own)[:, :, None, None, None]
    right = (label_evidence(differences, losses).argmax(1) == own).float().mean()
    plain = (differences.mean((2, 3, 4)).argmax(1) == own).float().mean()
    assert right > plain + 0.04
