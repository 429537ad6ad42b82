"""Frozen features and their classifier: out of fold means out of fold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import tiny_checkpoint
from typicality.applications.audit.probe import fit_logistic, frozen_features, out_of_fold
from typicality.errors import InputError
from typicality.model.denoiser import Denoiser


def test_features_do_not_depend_on_batches_and_order():
    """Each image has noise of its own: another batch size, order and shape of the others change nothing."""
    denoiser = Denoiser(tiny_checkpoint(), torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(0)
    latents = {f"i{k}": torch.randn((4, 8, 16 if k == 2 else 8), generator=generator) for k in range(5)}
    null = denoiser.encode_prompts(["an image"])[0]
    ids = list(latents)
    found = frozen_features(denoiser, null, ids, latents.__getitem__, noises=2, batch_size=4)
    other = frozen_features(denoiser, null, ids[::-1], latents.__getitem__, noises=2, batch_size=64)
    assert found.shape[0] == 5
    assert found.shape[1] % 2 == 0
    np.testing.assert_allclose(found, other[::-1], atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_no_image_is_judged_by_what_has_seen_it():
    """Features that name the image: with labels at random, seen images would be recalled perfectly."""
    rng = np.random.default_rng(0)
    n = 60
    labels = rng.integers(0, 2, n)
    folds = np.arange(n) % 2
    found = out_of_fold(np.eye(n), labels, folds, [str(i) for i in range(n)], 2)
    assert found.sum(1) == pytest.approx(1)
    right = found[np.arange(n), labels]
    assert right.max() < 0.75


def test_what_can_be_learned_is_learned():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = rng.normal(size=(90, 5)) + 3 * np.eye(3, 5)[labels]
    found = out_of_fold(features, labels, np.arange(90) // 3 % 2, [str(i // 3) for i in range(90)], 3)
    assert (found.argmax(1) == labels).mean() > 0.9


def test_of_a_label_that_one_side_lacks_nothing_is_said():
    """Fold 0 holds the labels 0 and 1, fold 1 the labels 0 and 2: each is judged by what the other one knows.

    A probability of 0 would say that the classifier excludes a label of which it has never seen an image, and all
    images of that label would look wrong. It has 1 of 3, as without a classifier, and the others share the rest.
    """
    labels, folds = np.array([0, 1, 0, 1, 0, 2]), np.array([0, 0, 0, 0, 1, 1])
    found = out_of_fold(np.arange(6.0)[:, None], labels, folds, list("abcdef"), 3)
    assert found[folds == 1, 2] == pytest.approx(1 / 3)
    assert found[folds == 0, 1] == pytest.approx(1 / 3)
    assert found.sum(1) == pytest.approx(1)


def test_one_label_alone_is_an_error():
    with pytest.raises(InputError, match="two labels"):
        fit_logistic(np.zeros((3, 1)), np.zeros(3, dtype=int), list("abc"))


def test_one_fold_cannot_be_left_out():
    with pytest.raises(InputError, match="one fold"):
        out_of_fold(np.zeros((4, 1)), np.array([0, 1, 0, 1]), np.zeros(4, dtype=int), list("abcd"), 2)
