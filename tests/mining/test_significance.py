"""p-values: exact where that is cheap, honest where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from typicality.mining.significance import adjusted_p_values, sign_flip_p_value


def test_sign_flips_worked_by_hand():
    """Groups 1, 2, 3: of the 8 sign patterns only the observed one sums to 6, so p = 1/8.

    For -1, 2, 3 (sum 4) the patterns 6 and 4 reach it: p = 2/8. For 0, 0 every pattern does: p = 1.
    """
    assert sign_flip_p_value(np.array([1, 2, 3]), np.arange(3)) == 1 / 8
    assert sign_flip_p_value(np.array([-1, 2, 3]), np.arange(3)) == 2 / 8
    assert sign_flip_p_value(np.zeros(2), np.arange(2)) == 1


def test_one_image_is_one_observation():
    """A hundred patches of one image prove no more than one: p = 1/2."""
    assert sign_flip_p_value(np.ones(100), np.zeros(100)) == 0.5
    assert sign_flip_p_value(np.array([5.0, -1.0, 1.0]), np.array(["a", "a", "b"])) == 0.25


def test_unknown_specificity():
    assert np.isnan(sign_flip_p_value(np.full(3, np.nan), np.arange(3)))
    assert sign_flip_p_value(np.array([1.0, np.nan]), np.arange(2)) == 0.5


def test_random_patterns_agree_with_all_of_them(monkeypatch):
    values = np.random.default_rng(0).normal(0.3, size=12)
    exact = sign_flip_p_value(values, np.arange(12))
    monkeypatch.setattr("typicality.mining.significance.EXACT_GROUPS", 0)
    drawn = sign_flip_p_value(values, np.arange(12), seed=1)
    assert drawn == pytest.approx(exact, abs=0.01)
    assert drawn == sign_flip_p_value(values, np.arange(12), seed=1)


@pytest.mark.parametrize("groups", [8, 30])
def test_level_under_the_null(groups):
    """Symmetric noise falls below the 10% level in about 10% of cases, whatever its spread."""
    rng = np.random.default_rng(groups)
    p = [sign_flip_p_value(rng.normal(size=groups) * rng.exponential(), np.arange(groups)) for _ in range(400)]
    assert 0.06 < np.mean(np.array(p) <= 0.1) < 0.14


def test_adjustment_worked_by_hand():
    """p = 0.01, 0.04, 0.03 of m = 3: sorted p * 3 / rank = 0.03, 0.045, 0.04; the running minimum from the end is
    0.03, 0.04, 0.04. A cluster without a test is not counted."""
    np.testing.assert_allclose(adjusted_p_values(np.array([0.01, 0.04, 0.03])), [0.03, 0.04, 0.04])
    got = adjusted_p_values(np.array([0.01, np.nan, 0.04, 0.03]))
    np.testing.assert_allclose(got, [0.03, np.nan, 0.04, 0.04])


def test_adjusted_values_are_probabilities():
    p = np.random.default_rng(1).uniform(size=50)
    adjusted = adjusted_p_values(p)
    assert (adjusted >= p).all()
    assert adjusted.max() <= 1
    np.testing.assert_array_equal(np.argsort(adjusted[np.argsort(p)], kind="stable"), np.arange(50))
    assert adjusted_p_values(np.array([])).shape == (0,)
    assert adjusted_p_values(np.array([0.3])) == 0.3
