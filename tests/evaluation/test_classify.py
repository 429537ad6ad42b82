"""The diffusion classifier's accuracy and its error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.applications.redesigned import mine
from typicality.errors import InputError
from typicality.evaluation.classify import classify, classify_held_out
from typicality.evaluation.detection import Workbench
from typicality.metrics import clustered_error
from typicality.model.card import MADE_BY
from typicality.progress import SILENT
from typicality.run import open_run, resolve_settings


@pytest.mark.slow
def test_the_error_takes_subjects_for_what_is_independent(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every held-out subject has two designs, which are right or wrong together more often than not."""
    seen = {}

    def kept(values, groups):
        seen["values"], seen["groups"] = values, groups
        return clustered_error(values, groups)

    monkeypatch.setattr("typicality.evaluation.classify.clustered_error", kept)
    folder = mine(tmp_path, tiny_model)
    found = classify(folder, draws=2)
    assert found.n == len(seen["groups"]) == 2 * len(set(seen["groups"]))
    assert found.accuracy == pytest.approx(seen["values"].mean(), abs=1e-4)
    assert found.standard_error == pytest.approx(clustered_error(seen["values"], seen["groups"]), abs=1e-4)
    stages = json.loads((folder / "run.json").read_text())["stages"]
    assert found.built_on == {"finetune": stages["finetune"]["weights"]}


@pytest.mark.parametrize("enabled", [True, False])
def test_a_base_that_was_fine_tuned_before_has_seen_all_images(
    tiny_folder: Path, tiny_model: Path, tmp_path: Path, enabled: bool
):
    """It may have learned from any of them, whatever the split would hold out: there is nothing to measure on."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "README.md").write_text(f"A model, {MADE_BY}")
    changes = {"dataset": {"label": "folder"}, "model": {"name": str(model)}, "finetune": {"enabled": enabled}}
    run = open_run(resolve_settings(str(tiny_folder), None, [changes]), tmp_path / "run")
    assert run.dataset.held_out()[1]
    for measure in (lambda: classify_held_out(run, 2, SILENT), lambda: Workbench(run, 10, SILENT)):
        with pytest.raises(InputError, match=r"no image is held out: .* fine-tuned on labelled images before"):
            measure()


@pytest.mark.parametrize(
    ("says", "recall", "confusion"),
    [
        (lambda i: int(i < 10), {"a": 0.5, "b": 1}, {"a": {"a": 10, "b": 0}, "b": {"a": 0, "b": 10}}),
        (lambda i: 0, {"a": 1, "b": 0}, {"a": {"a": 20, "b": 0}, "b": {"a": 0, "b": 0}}),
    ],
)
def test_recall_of_images_with_several_labels(monkeypatch: pytest.MonkeyPatch, says, recall, confusion):
    """Ten images of a and b, ten of a alone: recall counts every image under each of its labels."""

    def unit_maps(jobs):
        differences = torch.zeros(len(jobs), 2, 1, 2, 2)
        for row, job in enumerate(jobs):
            differences[row, says(int(job.image_id))] = 1
        return differences, None, torch.ones(len(jobs), 1, 2, 2), None

    labels_of = {str(i): ("a", "b") if i < 10 else ("a",) for i in range(20)}
    measure = SimpleNamespace(images_at_once=lambda labels: 7, unit_maps=unit_maps)
    monkeypatch.setattr("typicality.evaluation.classify.scorer", lambda *_: measure)
    found = classify_held_out(stub_run(labels_of), 2, SILENT)
    assert found.recall == recall
    assert found.confusion == confusion


def stub_run(labels_of: dict[str, tuple[str, ...]], folds: int = 1) -> Any:
    """A run of two labels, all of whose images are held out: images i, i + folds, ... by one model."""
    images = [SimpleNamespace(image_id=i, labels=own, group=i) for i, own in labels_of.items()]
    return SimpleNamespace(
        dataset=type("Images", (list,), {"labels": ("a", "b")})(images), held_out=set(labels_of), labels_of=labels_of,
        fold_of=lambda image_id: int(image_id) % folds,
        latents=SimpleNamespace(view=lambda image_id: SimpleNamespace(height=2, width=2 + int(image_id) // 10)),
        directory=SimpleNamespace(built_on=lambda stage: {"built_on": {}}),
    )  # fmt: skip


def test_every_fold_has_one_scorer_of_its_own_images(monkeypatch: pytest.MonkeyPatch):
    """Twelve images in three folds and two shapes, of which two share a batch: each model is made ready once."""
    made: list[int] = []
    seen: dict[str, int] = {}

    def scorer(run, purpose, draws, fold):
        def unit_maps(jobs):
            assert len(jobs) <= 2
            assert len({int(job.image_id) // 10 for job in jobs}) == 1
            seen.update({job.image_id: fold for job in jobs})
            return torch.zeros(len(jobs), 2, 1, 2, 2), None, torch.ones(len(jobs), 1, 2, 2), None

        made.append(fold)
        return SimpleNamespace(images_at_once=lambda labels: 2, unit_maps=unit_maps)

    monkeypatch.setattr("typicality.evaluation.classify.scorer", scorer)
    found = classify_held_out(stub_run({str(i): ("a",) for i in range(12)}, folds=3), 2, SILENT)
    assert made == [0, 1, 2]
    assert seen == {str(i): i % 3 for i in range(12)}
    assert found.n == 12
