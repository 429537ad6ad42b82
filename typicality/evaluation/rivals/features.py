"""Frozen features and logistic regression: what labels the base model tells apart without any fine-tuning.

Features are the base's own DIFT features (Tang et al. 2023) under the null prompt, their mean and spread over the
image, beside the mean and spread of its latent. Labels come from logistic regression, out of fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from typicality.errors import InputError
from typicality.mining.features import PURPOSE
from typicality.model.denoiser import Denoiser
from typicality.progress import SILENT, Progress
from typicality.scoring.noise import image_generator

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of the penalty (sklearn's C); one is chosen inside each training fold."""


def frozen_features(
    denoiser: Denoiser,
    null_state: Tensor,
    image_ids: Sequence[str],
    latent_of: Callable[[str], Tensor],
    timestep: int = 161,
    up_block: int = 1,
    noises: int = 4,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress = SILENT,
) -> np.ndarray:
    """Features of whole images (n, 2 d + 2 c) float32: mean and standard deviation over cells of DIFT and latent.

    Parameters
    ----------
    null_state : (tokens, width), so that no label is told
    latent_of : image_id -> (c, h, w) float32
    timestep : of 1000
    """
    total = denoiser.timesteps
    t = min(round(timestep * total / 1000), total - 1)
    rows: list[np.ndarray] = []
    each = max(1, batch_size // noises)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, image_id in enumerate(image_ids):
        by_shape.setdefault(tuple(latent_of(image_id).shape), []).append(i)
    place: list[int] = []
    progress.start("frozen features", len(image_ids))
    for shape, members in by_shape.items():
        for start in range(0, len(members), each):
            part = members[start : start + each]
            z = torch.stack([latent_of(image_ids[i]) for i in part])
            eps = torch.cat(
                [torch.randn((noises, *shape), generator=image_generator(image_ids[i], seed, PURPOSE)) for i in part]
            )
            states = null_state.expand(len(eps), *null_state.shape)
            maps = denoiser.features(z.repeat_interleave(noises, 0), eps, t, states, up_block)
            cells = maps.unflatten(0, (len(part), noises)).mean(1).flatten(2)
            flat = z.flatten(2)
            pooled = torch.cat([cells.mean(2), cells.std(2), flat.mean(2), flat.std(2)], dim=1)
            rows.append(pooled.float().numpy())
            place += part
            progress.advance(len(part))
    progress.finish()
    return np.concatenate(rows)[np.argsort(place)]


def fit_logistic(features: np.ndarray, labels: np.ndarray, groups: Sequence[str], seed: int = 0) -> Pipeline:
    """Fit logistic regression on standardised features; the penalty is chosen by accuracy over whole groups.

    Parameters
    ----------
    features : (n, d)
    labels : (n,) integers, two different ones at least
    groups : n names; relatives stay on one side of each inner split
    """
    if len(set(labels.tolist())) < 2:
        raise InputError("a classifier needs images of two labels at least on its training side")

    def model(strength: float) -> Pipeline:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000, random_state=seed))

    splits = min(3, len(set(groups)))
    if splits < 2:
        return model(STRENGTHS[1]).fit(features, labels)
    correct = dict.fromkeys(STRENGTHS, 0)
    for train, test in GroupKFold(splits).split(features, labels, np.asarray(groups)):
        if len(set(labels[train].tolist())) < 2:
            continue
        for strength in STRENGTHS:
            found = model(strength).fit(features[train], labels[train]).predict(features[test])
            correct[strength] += int((found == labels[test]).sum())
    best = max(STRENGTHS, key=lambda strength: (correct[strength], -strength))
    return model(best).fit(features, labels)


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, folds: np.ndarray, groups: Sequence[str], n_labels: int, seed: int = 0
) -> np.ndarray:
    """Probabilities (n, n_labels) of each image from a classifier that has seen no image of its fold.

    Parameters
    ----------
    labels : (n,) integers below n_labels
    folds : (n,) the fold of each image; relatives share one
    """
    result = np.zeros((len(labels), n_labels))
    names = np.asarray(groups)
    for fold in np.unique(folds):
        test = folds == fold
        if test.all():
            raise InputError("all images are in one fold, so that none is left to train on: use finer groups")
        model = fit_logistic(features[~test], labels[~test], names[~test].tolist(), seed)
        result[np.ix_(test, model.classes_)] = model.predict_proba(features[test])
    return result
