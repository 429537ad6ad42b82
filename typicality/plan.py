"""What a run will do, as far as its settings and the records of its data set tell: nothing is loaded or written."""

from __future__ import annotations

from typing import Any

from typicality.config import FinetuneSettings, Settings
from typicality.dataset import LabelledImages
from typicality.mining.significance import choose_controls
from typicality.model.recipe import default_steps
from typicality.model.training import parts_of, unseen_labels
from typicality.prompts import Prompts
from typicality.run import is_cross_fitted
from typicality.scoring.scorer import Job


def controls_of(settings: Settings, dataset: LabelledImages) -> dict[str, list[str]]:
    """label -> images of other labels that are searched for it too; only where no model was shown an image's label."""
    number = settings.score.controls
    return choose_controls(dataset, number) if is_cross_fitted(settings) and number != 0 else {}


def first_jobs(settings: Settings, dataset: LabelledImages) -> list[Job]:
    """Every image under its own labels, and controls also under the labels that they are controls of.

    The null prediction serves both, so that a control costs one more evaluation a draw.
    """
    labels = {image.image_id: list(image.labels) for image in dataset}
    for label, images in controls_of(settings, dataset).items():
        for image_id in images:
            labels[image_id].append(label)
    return [Job(image_id, tuple(found)) for image_id, found in sorted(labels.items())]


def warnings_of(dataset: LabelledImages, finetune: FinetuneSettings) -> list[str]:
    """Return what a user must know of how the images of one model are divided."""
    if not finetune.enabled or finetune.folds > 1:  # with folds, each of the models says it
        return []
    missing = unseen_labels(parts_of(dataset, finetune)[0], dataset.labels)
    if not missing:
        return []
    return [
        f"No image of the label {', '.join(map(repr, missing))} is left to fine-tune on (its groups are held "
        "out): its prompt is not learned, and what is found for it means nothing. More groups help, or "
        "finetune.held_out=0."
    ]


def plan_of(settings: Settings, dataset: LabelledImages, scoring: bool = True) -> dict[str, Any]:
    """Return what a run would do, for `--dry-run`: nothing is loaded but the data set's records.

    `scoring` is false where it would stop after fine-tuning.
    """
    finetune = settings.finetune
    n_training = len(parts_of(dataset, finetune)[0])
    draws = settings.score.draws or {"adaptive": 4, "uniform": 16, "paper": 100}[settings.score.protocol]
    steps = finetune.steps or default_steps(n_training, finetune.batch_size)
    amount = f"{finetune.minutes:g} min" if finetune.minutes else f"{steps} steps"
    training = f"{amount} on {n_training} images"
    if finetune.folds > 1:
        parts = finetune.shared + finetune.folds * (1 - finetune.shared)
        together = f"{amount} in all" if finetune.minutes else f"in all as long as {parts:g} fine-tunings of one model"
        training = f"{finetune.folds} folds, {finetune.shared:.0%} of the steps shared: {together}"
    first_pass = sum((1 + len(job.labels)) * draws for job in first_jobs(settings, dataset))
    return {
        "images": len(dataset),
        "labels": {label: dataset.number_of(label) for label in dataset.labels},
        "prompts": Prompts(settings.prompt.template, settings.prompt.null).of_all(dataset.labels)[:6],
        "fine-tuning": training if finetune.enabled else "none",
        **({"UNet evaluations of the first pass": first_pass} if scoring else {}),
        "unreadable images": len(dataset.unreadable),
    }
