"""Cross-fitting: one model a fold, so that every image can be scored by a model that has not seen it.

Groups (an image, a patient, a webcam) are divided into folds by a hash. The model of a fold is fine-tuned on the
other folds; a small part of those, by whole groups, is kept for validation. Images of its own fold take part in
nothing that could tell it a label: neither in training nor in the choice of the step that is kept.

What folds share. The first `finetune.shared` of the steps is taken once, on all images and under the null prompt
alone: the model learns what these images look like before it learns any label, and since no label is shown, nothing
about labels can be memorised. Each fold then goes on from there (weights, their average, optimizer and step; the
learning rate rises anew) with the labels of its training images. K folds cost shared + K (1 - shared) fine-tunings
instead of K: 1.75 for K = 2 and shared = 0.25. With `finetune.minutes` the whole takes that long, however many folds
there are.

Every part has a training state of its own, so that a run killed at any moment continues exactly.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from typicality.config import FinetuneSettings, Settings
from typicality.dataset import LabelledImages
from typicality.dataset.split import fold_hash, fold_of
from typicality.errors import DatasetError, InputError
from typicality.model.card import model_card
from typicality.model.checkpoint import Checkpoint, is_model
from typicality.model.finetune import TRAINING_RECORD, Finetuner
from typicality.model.latents import LatentStore
from typicality.model.recipe import default_steps
from typicality.model.training import Part, TrainingSet, divided, unseen_labels
from typicality.progress import SILENT, Progress
from typicality.prompts import Prompts
from typicality.records import LabelledImage
from typicality.store import remove


def folds_of(dataset: LabelledImages, folds: int, seed: int) -> dict[str, int]:
    """Return the fold in [0, folds) of every image_id; images of a group share it.

    Folds are `fold_of` the groups, unless there are so few groups that a fold would be empty: then the group nearest
    to it by hash moves there, from a fold that has another.

    Raises
    ------
    DatasetError : for fewer groups than folds.
    """
    groups = {image.group for image in dataset}
    if len(groups) < folds:
        raise DatasetError(
            f"{len(groups)} groups cannot fill {folds} folds: use fewer --folds, or a --group column with more values"
        )
    found = {group: fold_of(group, folds, seed) for group in groups}
    for empty in sorted(set(range(folds)) - set(found.values())):
        size = Counter(found.values())
        middle = (empty + 0.5) / folds
        free = [group for group in groups if size[found[group]] > 1]
        found[min(free, key=lambda group: (abs(fold_hash(group, seed) - middle), group))] = empty
    return {image.image_id: found[image.group] for image in dataset}


SHARED = "shared"
"""Folder of the model that all folds begin with. It knows the images but no label."""


@dataclass(frozen=True)
class CrossFit:
    """The fine-tuning of all folds of a run.

    Parameters
    ----------
    load : returns the base checkpoint anew; every part trains one in place
    folds : image_id -> fold
    models : folder that receives fold-0, fold-1, ..., and `shared`
    states : folder of the training states
    key : covers all that the models depend on; a finished fold is reused under the same key
    """

    load: Callable[[], Checkpoint]
    dataset: LabelledImages
    prompts: Prompts
    latents: LatentStore
    settings: Settings
    folds: Mapping[str, int]
    models: Path
    states: Path
    key: str
    device: torch.device
    dtype: torch.dtype

    def run(self, progress: Progress = SILENT) -> dict[str, Any]:
        """Train what is missing and return what is to be recorded of all folds."""
        if (self.models / "model_index.json").exists() or (self.models / "adapter.json").exists():
            remove(self.models)  # the model of a run without folds
        number = max(self.folds.values()) + 1
        for folder in self.models.glob("fold-*/"):  # of a run with more folds
            if folder.name not in {f"fold-{fold}" for fold in range(number)}:
                shutil.rmtree(folder)
        entries = [self._finished(f"fold-{fold}") or self._train(fold, progress) for fold in range(number)]
        if self.settings.finetune.shared and self._finished(SHARED) is None:
            self._shared(progress)  # it alone was lost
        begun = entries[0]["shared_steps"]
        shutil.rmtree(self.states, ignore_errors=True)
        return {
            "folds": entries,
            "steps": sum(e["steps"] for e in entries) - (number - 1) * begun,
            "best_step": max(e["best_step"] for e in entries),
            "unet_evaluations": begun * self.settings.finetune.batch_size
            + sum(e["unet_evaluations"] for e in entries),
            "images": len(self.dataset), "held_out": len(self.dataset),
            "method": entries[0]["method"], "text_encoder": entries[0]["text_encoder"],
            "contrast": entries[0]["contrast"], "label_scale": [e["label_scale"] for e in entries],
            "label_blocks": entries[0].get("label_blocks", 0), "tilt": [e.get("tilt", 0.0) for e in entries],
            "history": mean_history([e["history"] for e in entries]),
            "warnings": [f"Fold {i}: {w}" for i, e in enumerate(entries) for w in e["warnings"]],
        }  # fmt: skip

    def _finished(self, part: str) -> dict[str, Any] | None:
        path = self.models / part / TRAINING_RECORD
        if not path.exists() or not is_model(path.parent):
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record["entry"] if record["key"] == self.key else None

    def split(self, fold: int) -> tuple[list[LabelledImage], list[LabelledImage]]:
        """Return (training, validation) images of a fold's model; none is of the fold itself."""
        rest = tuple(image for image in self.dataset if self.folds[image.image_id] != fold)
        return divided(replace(self.dataset, images=rest), self.settings.finetune)

    def _tuner(self, part: Part, training: Sequence[LabelledImage], validation: Sequence[LabelledImage]) -> Finetuner:
        settings = self.settings
        data = TrainingSet(
            training=[i.image_id for i in training],
            validation=[i.image_id for i in validation],
            labels_of={i.image_id: i.labels for i in self.dataset},
            labels=self.dataset.labels,
            prompts=self.prompts,
        )
        folder = self.states / part.name.replace(" ", "-")
        return Finetuner(
            self.load(), data, self.latents, self._budget(), settings.score, folder, self.device, self.dtype,
            settings.seed, part,
        )  # fmt: skip

    def _budget(self) -> FinetuneSettings:
        """The settings of one model: the same steps for all folds, or its share of the minutes."""
        tuning, number = self.settings.finetune, max(self.folds.values()) + 1
        if tuning.minutes:
            whole = tuning.shared + number * (1 - tuning.shared)  # in fine-tunings of one model
            return tuning.model_copy(update={"minutes": tuning.minutes / whole})
        seen = seen_by_a_fold(len(self.dataset), number)
        return tuning.model_copy(update={"steps": tuning.steps or default_steps(seen, tuning.batch_size)})

    def _shared(self, progress: Progress) -> tuple[Path | None, int]:
        """Train the part that all folds begin with; return the folder of its state and its steps."""
        share = self.settings.finetune.shared
        if share == 0:
            return None, 0
        tuner = self._tuner(Part(SHARED, until=share, labelled=False), self.dataset, [])
        result = tuner.run(progress)
        if self._finished(SHARED) is None:
            entry = tuner.entry(result, len(self.dataset))
            card = model_card(self.dataset, tuner.checkpoint.title, self.settings, entry)
            tuner.save(self.models / SHARED, card, {"key": self.key, "entry": entry}, keep_state=True)
        return tuner.folder, result.steps

    def _train(self, fold: int, progress: Progress) -> dict[str, Any]:
        training, validation = self.split(fold)
        if not training:
            raise InputError(
                f"no image is left to fine-tune the model of fold {fold} on: use fewer --folds, or smaller groups"
            )
        start, shared_steps = self._shared(progress)
        begun = self.settings.finetune.shared if start is not None else 0.0
        tuner = self._tuner(Part(f"fold {fold}", begun, start=start), training, validation)
        result = tuner.run(progress)
        entry = tuner.entry(result, len(self.dataset), self._unseen(training)) | {"shared_steps": shared_steps}
        card = model_card(self.dataset, tuner.checkpoint.title, self.settings, entry)
        tuner.save(self.models / f"fold-{fold}", card, {"key": self.key, "fold": fold, "entry": entry})
        return entry

    def _unseen(self, training: Sequence[LabelledImage]) -> list[str]:
        missing = unseen_labels(training, self.dataset.labels)
        if not missing:
            return []
        return [
            f"The label {', '.join(map(repr, missing))} does not occur outside this fold, so the model that scores its "
            "images never saw it; it needs more groups."
        ]


def seen_by_a_fold(images: int, folds: int) -> int:
    """Return about how many images the model of a fold sees: those of all others."""
    return images * (folds - 1) // folds


def mean_history(histories: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Average the validations that all models have made at the same step; for the curves of the report."""
    by_step = [{entry["step"]: entry for entry in history} for history in histories]
    common = sorted(set.intersection(*(set(steps) for steps in by_step)))
    return [
        {name: float(np.mean([steps[step][name] for steps in by_step])) for name in by_step[0][step]}
        for step in common
        if len({frozenset(steps[step]) for steps in by_step}) == 1
    ]
