"""What is kept, decided on numbers that are worked out by hand."""

from __future__ import annotations

import pytest
import torch

from typicality.applications.augment.options import AugmentOptions, Kind, evaluations_of
from typicality.applications.augment.rules import distance, unit_distance, verdict
from typicality.errors import SettingsError

VARIANTS = AugmentOptions(near=0.1, far=0.8)
NEGATIVES = AugmentOptions("negatives", near=0.1)


@pytest.mark.parametrize(
    ("scores", "away", "why"),
    [
        ({"a": 0.2, "b": 0.1}, 0.5, "kept"),
        ({"a": -0.1, "b": -0.2}, 0.5, "kept"),  # the best label need not be typical
        ({"a": 0.1, "b": 0.2}, 0.5, "another label is better"),
        ({"a": 0.2, "b": 0.1}, 0.0999, "near copy"),
        ({"a": 0.2, "b": 0.1}, 0.1, "kept"),
        ({"a": 0.2, "b": 0.1}, 0.8, "too far from its source"),
        ({"a": 0.2, "b": 0.1}, 0.7999, "kept"),
    ],
)
def test_a_variant_keeps_its_label_and_its_distance(scores: dict, away: float, why: str):
    assert verdict(VARIANTS, "a", scores, away) == why


@pytest.mark.parametrize(
    ("scores", "away", "why"),
    [
        ({"a": -0.1, "b": 0.0}, 0.5, "kept"),
        ({"a": -0.1, "b": 0.001}, 0.5, "a label claims it"),
        ({"a": 0.001, "b": -0.1}, 0.5, "a label claims it"),
        ({"a": -0.1, "b": -0.1}, 0.05, "near copy"),
        ({"a": -0.1, "b": -0.1}, 2.0, "kept"),  # a negative may leave its source
    ],
)
def test_a_negative_is_claimed_by_no_label(scores: dict, away: float, why: str):
    assert verdict(NEGATIVES, "a", scores, away) == why


def test_a_distance_is_a_root_mean_square():
    """Differences of 3 in every value; of other shapes what both cover counts."""
    assert distance(torch.zeros(2, 4, 4), torch.full((2, 4, 4), 3.0)) == pytest.approx(3)
    assert distance(torch.zeros(2, 4, 6), torch.full((2, 8, 4), 3.0)) == pytest.approx(3)


def test_the_unit_is_between_images_of_different_groups():
    """Groups a, a, b at 0, 100 and 104: the pairs of a and b are 104 and 4 apart, and their median is 54."""
    latents = [torch.full((1, 2, 2), value) for value in (0.0, 100.0, 104.0)]
    assert unit_distance(latents, ["a", "a", "b"]) == pytest.approx(54)
    assert unit_distance(latents, ["a", "a", "a"]) == 1
    assert unit_distance([], []) == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (AugmentOptions(strength=0.0), "--strength"),
        (AugmentOptions(guidance=-1.0), "--guidance"),
        (AugmentOptions("negatives", guidance=1.0), "--guidance"),
        (AugmentOptions("negatives", far=0.8), "--far has no effect on negatives"),
        (AugmentOptions(far=11.0), "--far"),
        (AugmentOptions(near=0.5, far=0.5), "--near"),
        (AugmentOptions(per_image=0), "--per-image"),
        (AugmentOptions(steps=1), "--sampler-steps"),
        (AugmentOptions(draws=5), "--draws"),
        (AugmentOptions("variant"), "'variants'"),  # type: ignore[arg-type]
    ],
)
def test_impossible_options(options: AugmentOptions, complaint: str):
    with pytest.raises(SettingsError, match=complaint):
        options.resolved()


@pytest.mark.parametrize("kind", ["variants", "negatives"])
def test_rules_do_not_change_what_is_made(kind: Kind):
    """Another rule judges the same pictures; another strength makes others."""
    assert AugmentOptions(kind, near=0.2).made_of == AugmentOptions(kind).made_of
    assert AugmentOptions(kind, strength=0.3).made_of != AugmentOptions(kind).made_of


def test_the_cost_is_known_beforehand():
    """2 images x 5 steps x (null and label), and 3 pictures x 4 draws x (null and 2 labels)."""
    assert evaluations_of(AugmentOptions(per_image=2, steps=5, draws=4), labels=2) == 20 + 36
    assert evaluations_of(AugmentOptions("negatives", 2, guidance=0.0, steps=5, draws=4), labels=2) == 10 + 36


def test_only_variants_can_be_too_far():
    """So that `near` of negatives has no bound above but its own, and what is nothing to them is in no key."""
    assert AugmentOptions().resolved().far == 0.7
    assert AugmentOptions("negatives", near=0.9).resolved().near == 0.9
    assert AugmentOptions("negatives").resolved().far is None
    for kind in ("variants", "negatives"):
        options = AugmentOptions(kind).resolved()
        assert options.resolved() == options
