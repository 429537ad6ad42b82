"""Changes that involve no model: their amounts, and what the quick search for them finds."""

from __future__ import annotations

from itertools import product

import numpy as np

from typicality.evaluation.controls import KINDS, Control, tuned
from typicality.evaluation.likeness import root_mean_square


def test_every_change_is_what_it_says():
    """Half-way to a mean of 0.2 is 0.5 * 0.8 + 0.1 = 0.5; a whole mean difference of 0.3 comes on top, as far as white.

    A blur leaves what is flat as it is.
    """
    flat, source, target = np.full((1, 3, 8, 8), 0.8), np.full((3, 8, 8), 0.2), np.full((3, 8, 8), 0.5)
    for blur, fade, shift, wanted in ((2.0, 0, 0, 0.8), (0, 0.5, 0, 0.5), (0, 0.5, 1, 0.8), (0, 0, 1, 1.0)):
        np.testing.assert_allclose(Control(blur, fade, shift, source, target)(flat), wanted, atol=1e-6)


def test_a_blur_grows_with_the_picture():
    small = np.zeros((1, 3, 64, 64), dtype=np.float32)
    small[..., 32:] = 1
    large = small.repeat(2, axis=2).repeat(2, axis=3)
    none = np.zeros((3, 1, 1))
    found = [Control(2.0, 0, 0, none, none)(x)[0, 0, 8] for x in (small, large)]
    np.testing.assert_allclose(found[1].reshape(-1, 2).mean(1), found[0], atol=0.01)


def test_the_amounts_found_are_the_best_of_all_combinations():
    """The quadratic form agrees with making every picture; pictures are dim, so that nothing is clipped."""
    rng = np.random.default_rng(0)
    before = rng.uniform(-0.3, 0.3, (6, 3, 8, 8)).astype(np.float32)
    wanted = (0.5 * before + 0.1 + rng.normal(0, 0.02, before.shape)).astype(np.float32)
    source, target = before.mean(0), wanted.mean(0)
    found = tuned(before, wanted, source, target)
    for name, amounts in KINDS.items():
        tried = (Control(*x, source, target) for x in product(*amounts))
        best = min(tried, key=lambda c: root_mean_square(c(before), wanted).mean())
        assert found[name].amounts() == best.amounts()
