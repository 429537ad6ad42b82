"""The model of a run as a diffusion classifier, on images of groups that it has not seen.

The predicted label is the one under which the denoiser does best with shared noise (Li et al. 2023, "Your
Diffusion Model is Secretly a Zero-Shot Classifier"; Clark & Jaini 2023): argmax over labels of the mean of L(null) -
L(label), which is argmin of the loss because L(null) is the same for all labels. `accuracy_weighted` is of a mean in
which cells where every label does badly count for less (`label_evidence`): better for models that have learned little,
worse for others (reports/benchmarks/README.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from typicality.config import Settings
from typicality.errors import InputError
from typicality.metrics import clustered_error
from typicality.passes import by_fold, scorer
from typicality.progress import SILENT, Progress
from typicality.records import LabelledImage
from typicality.run import Run, existing_record, open_finished
from typicality.scoring.estimator import label_evidence
from typicality.scoring.noise import check_draws
from typicality.scoring.scorer import Job, Scorer

PURPOSE = "classify"
NOTHING_HELD_OUT = (
    "no image is held out: finetune.held_out is 0, there are too few groups, or the model was fine-tuned on labelled "
    "images before"
)


def held_out_images(run: Run) -> list[LabelledImage]:
    """Return the images of the fixed held-out part, which the run's only model has not seen.

    Raises
    ------
    InputError : where some model of the run has seen them, or nothing is held out.
    """
    if run.folds > 1:
        raise InputError(
            f"{run.directory.folder} has {run.folds} folds, whose models have seen the held-out images of one another; "
            "evaluate a run without --folds"
        )
    held_out = run.dataset.held_out(run.settings.finetune.held_out)[1]
    found = [i for i in held_out if i.image_id in run.held_out]
    if not found:
        raise InputError(NOTHING_HELD_OUT)
    return found


@dataclass(frozen=True)
class Classification:
    """Held-out accuracy of a run's model.

    Attributes
    ----------
    accuracy, standard_error : share of images whose predicted label is among their own; its error, with groups and not
        images as what is independent; not a number of a single group
    accuracy_weighted : of the mean that `label_evidence` takes
    n : images, all of groups that the model which classifies them never saw: the held-out ones, or with folds all
    draws : UNet draws an image and label (an antithetic pair counts as two)
    chance : share of the most frequent label among these images
    recall : label -> share of its images that got it; not a number where none of its images is held out
    confusion : true label -> predicted label -> images; one with several labels counts once, under the one that it got
        if that is among them, else under its first
    built_on : the state of the run that was measured, see `RunDirectory.built_on`
    """

    accuracy: float
    standard_error: float
    accuracy_weighted: float
    n: int
    draws: int
    chance: float
    labels: tuple[str, ...]
    recall: dict[str, float]
    confusion: dict[str, dict[str, int]]
    built_on: dict[str, str | None]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def classify(
    folder: Path, draws: int = 8, progress: Progress = SILENT, settings: Settings | None = None
) -> Classification:
    """Classify the held-out images of a run.

    Parameters
    ----------
    draws : UNet draws an image and label; even
    settings : with what is to differ from those of the run, as another device

    Raises
    ------
    OutputError : when `folder` is no run, or the run has no model, or the data set has images that it does not know.
    InputError : when nothing was held out, or `draws` is not even.
    """
    existing_record(folder)
    check_draws(draws)
    return classify_held_out(open_finished(folder, "finetune", settings, progress), draws, progress)


def classify_held_out(run: Run, draws: int, progress: Progress) -> Classification:
    """Classify the held-out images of an open run; nothing is written."""
    images = [i for i in run.dataset if i.image_id in run.held_out]
    if not images:
        raise InputError(NOTHING_HELD_OUT)
    labels = run.dataset.labels
    confusion = {true: dict.fromkeys(labels, 0) for true in labels}
    correct: dict[str, bool] = {}
    weighted = 0
    progress.start("classify", len(images))
    for measure, jobs in _batches(run, [Job(i.image_id, labels) for i in images], draws):
        differences, _, null_losses, _ = measure.unit_maps(jobs)
        predicted = differences.mean((2, 3, 4)).argmax(1)
        by_weights = label_evidence(differences, null_losses).argmax(1)
        for job, best, other in zip(jobs, predicted.tolist(), by_weights.tolist(), strict=True):
            own = run.labels_of[job.image_id]
            correct[job.image_id] = labels[best] in own
            weighted += labels[other] in own
            confusion[labels[best] if labels[best] in own else own[0]][labels[best]] += 1
        progress.advance(len(jobs))
    progress.finish()
    n = len(images)
    hits = np.array([correct[i.image_id] for i in images], dtype=float)
    error = clustered_error(hits, [i.group for i in images])
    counts = {label: sum(label in run.labels_of[i.image_id] for i in images) for label in labels}
    recall = {own: round(confusion[own][own] / all_of, 4) if all_of else math.nan for own, all_of in counts.items()}
    return Classification(
        accuracy=round(float(hits.mean()), 4), standard_error=round(error, 4),
        accuracy_weighted=round(weighted / n, 4), n=n, draws=draws, chance=round(max(counts.values()) / n, 4),
        labels=labels, recall=recall, confusion=confusion, **run.directory.built_on("finetune"),
    )  # fmt: skip


def _batches(run: Run, jobs: Sequence[Job], draws: int) -> Iterator[tuple[Scorer, list[Job]]]:
    """Divide jobs into batches of one fold and shape: the scorer whose model has not seen them, and jobs in order."""
    for fold, held_out in by_fold(run, sorted(jobs, key=lambda job: job.image_id)):
        measure = scorer(run, PURPOSE, draws, fold)
        by_shape: dict[tuple[int, int], list[Job]] = {}
        for job in held_out:
            view = run.latents.view(job.image_id)
            by_shape.setdefault((view.height, view.width), []).append(job)
        for _, alike in sorted(by_shape.items()):
            size = measure.images_at_once(len(alike[0].labels))
            for start in range(0, len(alike), size):
                yield measure, alike[start : start + size]
