"""Patches of images and labels: what is kept, in which order, where in the original."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from typicality.errors import SettingsError, TypicalityError
from typicality.mining import patches as module
from typicality.mining.boxes import box_means, box_standard_errors
from typicality.mining.patches import PatchSelection, box_of, patch_side, rescored, top_patches, with_specificity
from typicality.records import ModelView


def size_of(image_id: str) -> tuple[int, int]:
    return 1000, 1000


@pytest.fixture
def mixed_maps(make_map):
    """Forty maps of three shapes and three labels, with many equal scores."""
    rng = np.random.default_rng(0)
    shapes = itertools.cycle([(6, 6), (6, 9), (8, 5)])
    return [
        make_map(rng.integers(0, 3, size=(3, *next(shapes))), image_id=f"{i // 2:02d}", label="xyz"[i % 3])
        for i in range(40)
    ]


@pytest.mark.parametrize(
    ("size", "setting", "factor", "cells"),
    [
        (64, None, 4, 4),  # a quarter: 16 px
        (32, None, 4, 2),  # still a quarter
        (512, None, 8, 8),  # an eighth: 64 px
        (1024, None, 8, 16),  # still an eighth
        (256, None, 8, 5),  # 256 * 2^-(2 + 2/3) = 40.3 px
        (64, 10, 4, 3),  # 2.5 cells round up
        (64, 1, 8, 1),  # at least a cell
        (64, 64, 4, 16),  # the whole image
    ],
)
def test_patch_side(size, setting, factor, cells):
    assert patch_side(size, setting, factor) == cells


def test_a_patch_larger_than_the_image_is_the_users_error():
    with pytest.raises(SettingsError, match=r"mine\.patch = 80 .* at most 64"):
        patch_side(64, 80, 4)


def test_patches_worked_by_hand(make_map):
    """One image, cells 4 1 2 in a row, side 1, two patches: 4 at column 0, then 2 at column 2.

    A model pixel is 10 original pixels wide and 5 high, a cell is 4 model pixels, and the view starts at (100, 7).
    """
    view = ModelView(12, 4, 10.0, 5.0, 100.0, 7.0)
    maps = [make_map([[[4, 1, 2]], [[4, 1, 2]]], view=view)]
    found = top_patches(maps, PatchSelection(1, 4, per_image=2, share=1), size_of)["x"]
    assert [(p.typicality, p.row, p.column) for p in found] == [(4, 0, 0), (2, 0, 2)]
    assert [p.box for p in found] == [(100, 7, 140, 27), (180, 7, 220, 27)]
    assert math.isnan(found[0].specificity)


def test_boxes_are_clipped_to_the_original_and_never_empty():
    assert box_of(ModelView(64, 64, 1.0, 1.0, 0.0, 0.0), 14, 14, 2, 4, 60, 62) == (56, 56, 60, 62)
    for row in range(16):  # an icon of 3 x 3 pixels enlarged to 64
        x0, y0, x1, y1 = box_of(ModelView(64, 64, 3 / 64, 3 / 64, 0.0, 0.0), row, row, 1, 4, 3, 3)
        assert 0 <= x0 < x1 <= 3
        assert 0 <= y0 < y1 <= 3


def test_patches_of_an_image_never_overlap(mixed_maps):
    found = top_patches(mixed_maps, PatchSelection(2, 1, per_image=4, share=1), size_of)
    for label, patches in found.items():
        for a, b in itertools.combinations(patches, 2):
            if a.image_id == b.image_id:
                assert abs(a.row - b.row) >= 2 or abs(a.column - b.column) >= 2, label
        assert max(sum(p.image_id == i for p in patches) for i in {p.image_id for p in patches}) <= 4


@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_neither_order_nor_batch_change_anything(mixed_maps, monkeypatch, batch, side):
    """Ties abound: image_id, row and column decide, not who came first. per_label makes the buffer overflow often."""
    selection = PatchSelection(side, 1, per_image=3, per_label=5, share=1)
    expected = top_patches(mixed_maps, selection, size_of)
    assert [len(p) for p in expected.values()] == [5, 5, 5]
    assert list(expected) == ["x", "y", "z"]
    monkeypatch.setattr(module, "BATCH", batch)
    for seed in range(3):
        shuffled = [mixed_maps[i] for i in np.random.default_rng(seed).permutation(len(mixed_maps))]
        assert repr(top_patches(iter(shuffled), selection, size_of)) == repr(expected)


def test_the_best_of_a_label_are_the_best_of_all_its_candidates(mixed_maps):
    every = top_patches(mixed_maps, PatchSelection(2, 1, per_image=3, per_label=10**6, share=1), size_of)
    few = top_patches(mixed_maps, PatchSelection(2, 1, per_image=3, per_label=4, share=1), size_of)
    assert {label: repr(patches[:4]) for label, patches in every.items()} == {k: repr(v) for k, v in few.items()}


@pytest.mark.parametrize(("share", "per_label", "kept"), [(1, 100, 12), (0.25, 100, 3), (0.01, 100, 1), (1, 5, 5)])
def test_share_and_cap(make_map, share, per_label, kept):
    """Four images with three patches each are twelve candidates."""
    maps = [make_map(np.random.default_rng(i).normal(size=(2, 4, 4)), image_id=str(i)) for i in range(4)]
    found = top_patches(maps, PatchSelection(1, 1, per_image=3, per_label=per_label, share=share), size_of)
    assert len(found["x"]) == kept


def test_one_cell_maps(make_map):
    maps = [make_map([[[float(i)]]] * 2, image_id=str(i)) for i in range(3)]
    found = top_patches(maps, PatchSelection(1, 8, share=1), size_of)["x"]
    assert [p.typicality for p in found] == [2, 1, 0]
    assert found[0].box == (0, 0, 8, 8)


def test_scores_and_errors_are_those_of_the_boxes(mixed_maps):
    by_key = {(m.image_id, m.label): m for m in mixed_maps}
    for patches in top_patches(mixed_maps, PatchSelection(3, 1), size_of).values():
        for p in patches:
            score = by_key[p.image_id, p.label]
            assert p.typicality == box_means(score.typicality, 3)[p.row, p.column]
            assert p.standard_error == box_standard_errors(score, 3)[p.row, p.column]


def test_no_maps_no_patches():
    assert top_patches([], PatchSelection(1, 1), size_of) == {}


def test_broken_scores_are_not_ranked(make_map):
    draws = np.zeros((2, 4, 4))
    draws[:, 0, 1] = np.nan
    with pytest.raises(TypicalityError, match=r"image a for label 'x' .* not finite"):
        top_patches([make_map(draws)], PatchSelection(2, 1), size_of)


@pytest.mark.parametrize("wrong", [{"side": 0}, {"per_image": 0}, {"share": 0.0}, {"share": 1.5}])
def test_impossible_selections(wrong):
    with pytest.raises(SettingsError):
        PatchSelection(**{"side": 1, "factor": 1, **wrong})


def test_fresh_draws_remove_the_winners_curse(make_map):
    """Scores are pure noise: selected patches look typical, and fresh draws at the same places say otherwise."""
    rng = np.random.default_rng(5)
    first = [make_map(rng.normal(size=(2, 8, 8)), image_id=f"{i:03d}") for i in range(200)]
    fresh = [make_map(rng.normal(size=(4, 8, 8)), image_id=f"{i:03d}") for i in range(200)]
    chosen = top_patches(first, PatchSelection(2, 1, per_image=2), size_of)
    again = rescored(chosen, fresh)
    assert np.mean([p.typicality for p in chosen["x"]]) > 0.5
    assert abs(np.mean([p.typicality for p in again["x"]])) < 0.1
    assert {(p.image_id, p.row, p.column, p.box) for p in again["x"]} == {
        (p.image_id, p.row, p.column, p.box) for p in chosen["x"]
    }
    scores = [p.typicality for p in again["x"]]
    assert scores == sorted(scores, reverse=True)
    one = again["x"][0]
    score = fresh[int(one.image_id)]
    assert one.typicality == pytest.approx(box_means(score.typicality, 2)[one.row, one.column], rel=1e-6)
    assert one.standard_error == box_standard_errors(score, 2)[one.row, one.column]


def test_patches_without_fresh_maps_keep_their_scores(mixed_maps):
    chosen = top_patches(mixed_maps, PatchSelection(2, 1), size_of)
    assert repr(rescored(chosen, [])) == repr(chosen)


def test_specificity_worked_by_hand(make_map):
    """Own score 5; other labels 1 and 3 average 2, so specificity is 3. A second label that the image carries itself
    is no rival, and a label of another image has no say."""
    maps = [make_map([[[v]], [[v]]], label=label) for label, v in [("x", 5), ("y", 1), ("z", 3), ("twin", 100)]]
    chosen = top_patches(maps[:1], PatchSelection(1, 1), size_of)
    assert chosen["x"][0].typicality == 5
    stranger = replace(maps[1], image_id="b")
    filled = with_specificity(chosen, [*maps, stranger], lambda image_id: ("twin", "x"))
    assert filled["x"][0].specificity == 3
    assert math.isnan(with_specificity(chosen, maps[:1], lambda image_id: ("x",))["x"][0].specificity)
