"""One pass of scoring draws where its model's scores are noisiest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from typicality.config import resolve
from typicality.dataset import load_dataset
from typicality.model.calibration import LabelUse
from typicality.passes import score_pass, scorer, tilt_of, tilted
from typicality.pipeline import ensure_latents
from typicality.run import Run
from typicality.scoring.scorer import own_label_jobs
from typicality.store import RunDirectory


def opened(tiny_folder: Path, tiny_model: Path, folder: Path, **score: object) -> Run:
    """A run whose model was calibrated to draw more at small timesteps."""
    layer = {
        "dataset": {"source": str(tiny_folder), "label": "folder"}, "model": {"name": str(tiny_model), "dtype": "fp32"},
        "finetune": {"enabled": False}, "prompt": {"null": "an image"}, "score": score,
    }  # fmt: skip
    settings = resolve(layer)
    run = Run(settings, load_dataset(settings.dataset), RunDirectory(folder))
    run.base.label_use = LabelUse(tilt=0.8)
    return run


@pytest.mark.parametrize(
    ("score", "expected"), [({}, 0.8), ({"tilt": -0.3}, -0.3), ({"tilt": 0}, 0), ({"protocol": "paper", "tilt": 1}, 0)]
)
def test_the_tilt_is_the_models_unless_asked_otherwise(
    tiny_folder: Path, tiny_model: Path, tmp_path: Path, score: dict[str, object], expected: float
) -> None:
    run = opened(tiny_folder, tiny_model, tmp_path, **score)
    assert tilt_of(run, run.denoiser_of(0)) == expected
    plain = scorer(run, "classify", 4)
    assert plain.plan.tilt == 0  # labels are told apart from uniform timesteps
    assert tilted(run, plain).plan == replace(plain.plan, tilt=expected)


def test_a_pass_is_scored_with_the_tilt(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = opened(tiny_folder, tiny_model, tmp_path)
    ensure_latents(run)
    jobs = [job for job in own_label_jobs(run.labels_of) if run.latents.view(job.image_id).width == 32][:4]
    reader = score_pass(run, "score", "first pass", 4, jobs)
    measure = scorer(run, "first pass", 4)
    for of, same in ((tilted(run, measure), True), (measure, False)):
        rows = {(row.image_id, row.label): row for row in of.score(jobs)}
        for key, row in rows.items():
            assert np.allclose(reader.get(*key).typicality, row.moments.typicality, rtol=1e-3, atol=1e-7) == same
