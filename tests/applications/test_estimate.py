"""The estimate: evaluations as the run then takes them, and seconds and bytes from real work."""

from __future__ import annotations

from pathlib import Path

import pytest

import typicality
from typicality.applications import estimate as module
from typicality.applications.estimate import Estimate, winners


def test_images_that_hold_a_winner() -> None:
    """All patches kept: every image. Few of many: about one image each, less where an image holds two."""
    assert winners(100, 5, 500) == 100
    assert winners(1000, 5, 10) == pytest.approx(10 * module.SPREAD, rel=0.02)
    assert winners(1139, 5, 240) == pytest.approx(769 / 4, rel=0.05)  # measured on the embedded data
    assert winners(1, 5, 1) <= 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(module, "PROBE_IMAGES", 6)


def cost(folder: Path, model: Path, **options: object) -> Estimate:
    return typicality.estimate(folder, "folder", model=str(model), dtype="fp32", **options)


@pytest.mark.usefixtures("quick")
def test_evaluations_of_a_plain_pass_are_exact(tiny_folder: Path, tiny_model: Path) -> None:
    """32 images, null prompt and one label, 6 draws; nothing is trained and nothing refined."""
    found = cost(tiny_folder, tiny_model, finetune={"enabled": False}, score={"protocol": "paper", "draws": 6})
    assert found.images == 32
    assert found.stages["score"].unet_evaluations == 32 * 2 * 6
    assert set(found.stages) == {"latents", "score", "features", "clusters"}
    assert found.seconds == pytest.approx(sum(s.seconds for s in found.stages.values()), abs=0.3)
    assert found.disk_bytes > found.images * found.disk_bytes_an_image > 0


@pytest.mark.usefixtures("quick")
def test_every_stage_of_the_default_has_a_cost(tiny_folder: Path, tiny_model: Path) -> None:
    found = cost(tiny_folder, tiny_model, finetune={"steps": 10, "batch_size": 4})
    assert list(found.stages) == [
        "latents", "finetune", "score", "rounds", "refine", "features", "clusters",
    ]  # fmt: skip
    assert found.stages["finetune"].unet_evaluations >= 10 * 4 * 3
    assert found.stages["finetune"].seconds > 0
    assert found.unet_evaluations == sum(s.unet_evaluations for s in found.stages.values())


@pytest.mark.usefixtures("quick")
def test_minutes_are_taken_as_they_are(tiny_folder: Path, tiny_model: Path) -> None:
    found = cost(tiny_folder, tiny_model, finetune={"minutes": 3.0, "batch_size": 4})
    assert found.stages["finetune"].seconds == 180
