"""Frozen features and logistic regression: what labels the base model tells apart without any fine-tuning.

Features are the base's own DIFT features (Tang et al. 2023) under the null prompt, their mean and spread over the
image, beside the mean and spread of its latent. Labels come from logistic regression, out of fold.
`label_probe` does both for a run; the rivals of `evaluate` use the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from typicality.config import key_of
from typicality.dataset.split import unit_hash
from typicality.errors import InputError
from typicality.mining.features import AT_ONCE, PURPOSE
from typicality.model.denoiser import Denoiser
from typicality.progress import SILENT, Progress
from typicality.run import Run
from typicality.scoring.noise import image_generator
from typicality.store import write_arrays

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of the penalty (sklearn's C); one is chosen inside each training fold."""


LEAST = 1e-6
"""Probability below which a label is not let fall."""


def run_features(run: Run) -> np.ndarray:
    """(n, d) frozen features of all images in the data set's order, from the base before any fine-tuning; kept on disk.

    The latents must be there (`pipeline.ensure_latents`).
    """
    mine = run.settings.mine
    ids = [image.image_id for image in run.dataset]
    made_with = [mine.timestep, mine.up_block, mine.noises, run.settings.seed, run.prompts.null, run.base_hash]
    key = key_of([run.latents.folder.name, ids, *made_with, str(run.dtype)])  # labels play no part
    path = run.directory.path("scores", f"frozen-{key}.safetensors")
    if not path.exists():
        denoiser = Denoiser(run.base, run.device, run.dtype)
        null = denoiser.encode_prompts([run.prompts.null])[0]
        features = frozen_features(
            denoiser, null, ids, run.latents.get, mine.timestep, mine.up_block, mine.noises, run.settings.seed,
            min(AT_ONCE, run.batch_size), run.progress,
        )  # fmt: skip
        write_arrays(path, {"features": features})
    return load_file(path)["features"]


def label_probe(run: Run, image_ids: Sequence[str]) -> np.ndarray | None:
    """(n, K) log probabilities of every label for these images, by a classifier that has not seen their groups.

    It learns from images with one label. With folds they are those of the run; without, two by a hash of the group.
    None where the other folds of some images hold fewer than two labels.
    """
    images = list(run.dataset)
    names = run.dataset.labels
    groups = [image.group for image in images]
    given = np.array([names.index(image.labels[0]) for image in images])
    alone = np.array([len(image.labels) == 1 for image in images])
    folds = probe_folds(run)
    if any(len(set(given[alone & (folds != fold)].tolist())) < 2 for fold in set(folds.tolist())):
        return None
    found = out_of_fold(run_features(run), given, folds, groups, len(names), run.settings.seed, alone)
    row = {image.image_id: i for i, image in enumerate(images)}
    return np.log(np.maximum(found[[row[i] for i in image_ids]], LEAST))


def probe_folds(run: Run) -> np.ndarray:
    """(n,) the fold of each image: the run's, or one of two by a hash of its group where the run has no folds."""
    if run.folds > 1:
        return np.array([run.fold_of(image.image_id) for image in run.dataset])
    return np.array([int(unit_hash(image.group, "rival") * 2) for image in run.dataset])


def frozen_features(
    denoiser: Denoiser,
    null_state: Tensor,
    image_ids: Sequence[str],
    latent_of: Callable[[str], Tensor],
    timestep: int = 161,
    up_block: int = 1,
    noises: int = 4,
    seed: int = 0,
    batch_size: int = AT_ONCE,
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
    features: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    groups: Sequence[str],
    n_labels: int,
    seed: int = 0,
    usable: np.ndarray | None = None,
) -> np.ndarray:
    """Probabilities (n, n_labels) of each image from a classifier that has seen no image of its fold.

    Of a label that it could not learn from, it knows nothing: that has 1 / n_labels, and the others share the rest.

    Parameters
    ----------
    labels : (n,) integers below n_labels
    folds : (n,) the fold of each image; relatives share one
    usable : (n,) bool, the images that it may learn from; all by default
    """
    result = np.full((len(labels), n_labels), 1 / n_labels)
    names = np.asarray(groups)
    for fold in np.unique(folds):
        test = folds == fold
        if test.all():
            raise InputError("all images are in one fold, so that none is left to train on: use finer groups")
        rest = ~test if usable is None else ~test & usable
        model = fit_logistic(features[rest], labels[rest], names[rest].tolist(), seed)
        learned = model.classes_
        result[np.ix_(test, learned)] = model.predict_proba(features[test]) * len(learned) / n_labels
    return result
