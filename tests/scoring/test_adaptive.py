"""The mathematics of adaptive scoring, against answers worked out by hand or known by simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import polygamma

from tests.scoring.synthetic import World
from typicality.config import ScoreSettings
from typicality.scoring.adaptive import (
    FOLDS,
    MIN_IMAGES,
    ScoreTrend,
    VarianceTrend,
    combine,
    inclusion,
    inverse_trigamma,
    quantile,
    threshold_of,
)
from typicality.scoring.effort import effort_of
from typicality.scoring.pooling import freedom, pooled, pooled_freedom


def test_freedom_of_successive_differences() -> None:
    """Two units: one difference. Three: 2 * 4 / 5 = 1.6. And by simulation: 2 mean^2 / variance of the estimate."""
    np.testing.assert_allclose(freedom(np.array([1, 2, 3])), [0, 1, 1.6])
    draws = np.random.default_rng(0).normal(size=(200_000, 6))
    estimate = np.square(np.diff(draws, axis=1)).sum(1)
    assert 2 * estimate.mean() ** 2 / estimate.var() == pytest.approx(float(freedom(6)), rel=0.03)


def test_pooled_freedom() -> None:
    """Equal passes add up (2 + 2 units: twice one degree); single units are units of one pass."""
    assert pooled_freedom([2, 2]) == pytest.approx(2)
    assert pooled_freedom([1, 1, 1]) == 2
    assert pooled_freedom([1]) == 0


def test_pooling_weights_by_units_and_keeps_variances() -> None:
    """Passes of 2 and 4 units: mean (2 a + 4 b) / 6; variance of a box (1/3)^2 var_a + (2/3)^2 var_b on average."""
    world = World(images=1, labels=("a",))
    jobs = world.jobs()
    two, four = (world.maps(jobs, str(n), n).get("a0000", "a") for n in (2, 4))
    both = pooled([two, four])
    assert two.even is not None
    assert four.even is not None
    assert both.even is not None
    np.testing.assert_allclose(both.even, (2 * two.even + 4 * four.even) / 6, rtol=1e-4)
    assert pooled([two, replace(four, even=None)]).even is None
    assert both.n_pairs == 6
    np.testing.assert_allclose(both.typicality, (two.typicality + 2 * four.typicality) / 3, rtol=1e-5, atol=1e-9)

    def unit(one) -> np.ndarray:
        """The variance of one unit, n times that of the mean."""
        return one.n_pairs * (one.squares[1] - one.typicality.astype(np.float64) ** 2) / (one.n_pairs - 1)

    np.testing.assert_allclose(unit(both), (2 * unit(two) + 4 * unit(four)) / 6, rtol=0.02, atol=1e-10)


def test_inverse_trigamma() -> None:
    for x in (0.3, 1.0, 7.0, 200.0):
        assert inverse_trigamma(float(polygamma(1, x))) == pytest.approx(x, rel=1e-6)


@pytest.mark.parametrize(("prior", "low", "high"), [(6.0, 4, 9), (None, 40, 101)])
def test_prior_degrees_of_freedom_are_found(prior: float | None, low: float, high: float) -> None:
    """Variances exp(1 + 2 x) * d0 / chi^2_d0 seen with 2 degrees of freedom; None: exactly on the trend."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20_000, 1))
    truth = np.exp(1 + 2 * x[:, 0]) * (prior / rng.chisquare(prior, len(x)) if prior else 1.0)
    trend = VarianceTrend(1)
    trend.add(x, truth * rng.chisquare(2, len(x)) / 2)
    fitted = trend.solve(2)
    assert low <= fitted.prior <= high
    assert fitted.beta[1] == pytest.approx(2, abs=0.05)
    if prior is None:
        np.testing.assert_allclose(fitted.predict(x[:5]), truth[:5], rtol=0.1)


def test_moderated_variances_by_hand() -> None:
    """Prior 3 degrees at 2, own 1 degree at 6: (3 * 2 + 6) / 4 = 3 with 4 degrees; nothing known: the trend alone."""
    from typicality.scoring.adaptive import FittedTrend

    fitted = FittedTrend(np.array([0.0]), 3.0)
    value, degrees = fitted.moderate(np.array([6.0]), 1.0, np.array([2.0]))
    assert (value[0], degrees) == (3.0, 4.0)
    assert fitted.moderate(np.array([np.inf]), 0.0, np.array([2.0]))[0][0] == 2.0


def test_combination_by_hand() -> None:
    """Prior N(0, 1), observed 3 with variance 2: mean 1, deviation sqrt(2/3)."""
    mean, deviation = combine(np.array([3.0]), np.array([2.0]), np.array([0.0]), np.array([1.0]))
    assert mean[0] == pytest.approx(1)
    assert deviation[0] == pytest.approx((2 / 3) ** 0.5)


def test_score_trend_finds_signal_and_noise_and_leaves_the_own_fold_out() -> None:
    """Scores N(0.5, 1) with noise variance 2: ratio 1/2, mean 1/2. A fold of wild images changes nothing for itself."""
    rng = np.random.default_rng(2)
    trend = ScoreTrend(1.0)
    for i in range(80):
        wild = 50.0 if i % FOLDS == 3 else 0.0
        score = 0.5 + rng.normal(size=(10, 10)) + 2**0.5 * rng.normal(size=(10, 10)) + wild
        trend.add(i % FOLDS, np.ones((10, 10)), score, np.full((10, 10), 2.0), np.full((10, 10), 4.0))
    prior = trend.without(3)
    assert prior is not None
    at = trend.bins(np.array([1.0]))[0]
    assert prior.mean[at] == pytest.approx(0.5, abs=0.1)
    assert prior.ratio[at] == pytest.approx(0.5, abs=0.1)
    assert prior.scale[at] == pytest.approx(0.5)
    other = trend.without(0)
    assert other is not None
    assert other.mean[at] > 10


def test_too_few_images_teach_nothing() -> None:
    trend = ScoreTrend(1.0)
    one = np.ones((4, 4))
    for i in range(MIN_IMAGES - 1):
        trend.add(i % FOLDS, one, one, one, one)
    assert trend.without(0) is None


def test_threshold_expects_as_many_as_are_wanted() -> None:
    rng = np.random.default_rng(3)
    mean, deviation, degrees = rng.normal(size=400), rng.uniform(0.1, 1, 400), np.full(400, 9.0)
    threshold = threshold_of(mean, deviation, degrees, 50)
    assert inclusion(mean, deviation, degrees, threshold).sum() == pytest.approx(50, abs=0.01)
    assert threshold_of(mean, deviation, degrees, 400) == -np.inf
    sharp = threshold_of(mean, np.zeros(400), degrees, 50)
    assert (mean > sharp).sum() == 50


def test_quantiles() -> None:
    """Student's t with 4 degrees, and the normal distribution."""
    assert quantile(4.0, 0.95) == pytest.approx(2.1318, abs=1e-4)
    assert quantile(np.inf, 0.95) == pytest.approx(1.6449, abs=1e-4)


def test_raw_numbers_override_the_preset_and_overlap_lifts_the_budget() -> None:
    assert effort_of(ScoreSettings(), 4).refine == 6
    fast = effort_of(ScoreSettings(precision="fast", refine_draws=6), 4)
    assert (fast.rounds, fast.further, fast.refine) == (1, 0.5, 6)
    target = effort_of(ScoreSettings(overlap=0.9), 4)
    assert target.overlap == 0.9
    assert target.further == float("inf")
    assert effort_of(ScoreSettings(overlap=0.9, further_draws=3), 4).further == 3
    assert effort_of(ScoreSettings(rounds=0), 4).rounds == 0


@pytest.mark.parametrize("precision", ["standard", "exact"])
def test_what_prompts_share_is_spent_on_draws(precision: str) -> None:
    """First pass and rounds cost as many evaluations: 2 a draw, or 1.2 where four fifths serve both prompts."""
    settings = ScoreSettings.model_validate({"precision": precision})
    plain, sharing = effort_of(settings, 4), effort_of(settings, 4, 0.8)
    assert 1.2 * (4 + sharing.further) == pytest.approx(2 * (4 + plain.further))
    assert abs(1.2 * sharing.refine - 2 * plain.refine) <= 1.2
    assert sharing.refine % 2 == 0
    raw = ScoreSettings.model_validate({"precision": precision, "further_draws": 3, "refine_draws": 4})
    assert (effort_of(raw, 4, 0.8).further, effort_of(raw, 4, 0.8).refine) == (3, 4)
    fast = ScoreSettings(precision="fast")
    assert effort_of(fast, 4, 0.8) == effort_of(fast, 4)
