"""Whitened features, against a direct computation and on an example where cosines of raw features go wrong."""

from __future__ import annotations

import numpy as np
import pytest

from typicality.mining.whitening import Whitening


def test_a_detector_of_one_example_looks_where_it_differs_from_patches_in_general():
    """Features vary 10 times as much in one direction; a decoy equals the example there, and is ordinary otherwise."""
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(50_000, 2)) * [10, 1] + [3, -1]
    whitening = Whitening.of(patches)
    assert np.cov(whitening(patches).T) == pytest.approx(np.eye(2), abs=0.05)
    example, alike, decoy = np.array([[13, 3]]), np.array([[-7, 3]]), np.array([[13, -1]])
    detector = whitening.unit(example)[0]
    assert np.linalg.norm(detector) == pytest.approx(1)
    assert whitening(alike)[0] @ detector > whitening(decoy)[0] @ detector
    assert np.linalg.norm(example - decoy) < np.linalg.norm(example - alike)


def test_what_equals_the_mean_stays_zero():
    patches = np.random.default_rng(0).normal(size=(100, 3))
    found = Whitening.of(patches).unit(np.stack([patches.mean(0), patches[0]]))
    assert np.linalg.norm(found, axis=1) == pytest.approx([0, 1])


def test_directions_in_which_nothing_varies():
    """A constant dimension, as of a channel that is never active, makes no infinities."""
    patches = np.random.default_rng(0).normal(size=(100, 3)) * [1, 1, 0]
    assert np.isfinite(Whitening.of(patches)(patches)).all()
