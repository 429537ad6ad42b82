"""The estimate: evaluations as the run then takes them, and seconds and bytes from real work."""

from __future__ import annotations

from pathlib import Path

import pytest

import typicality
from typicality.api import settings_for
from typicality.applications import estimate as module
from typicality.applications.estimate import Estimate, winners
from typicality.dataset import load_dataset
from typicality.pipeline import mine
from typicality.plan import plan_of
from typicality.progress import SILENT


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
    """32 images, null prompt and one label, 6 draws; nothing is trained, refined or tested against controls."""
    found = cost(
        tiny_folder, tiny_model, finetune={"enabled": False}, score={"protocol": "paper", "draws": 6, "controls": 0}
    )
    assert found.images == 32
    assert found.stages["score"].unet_evaluations == 32 * 2 * 6
    assert list(found.stages) == ["data", "latents", "score", "features", "clusters", "report"]
    assert all(stage.seconds >= 0 for stage in found.stages.values())
    assert found.seconds == pytest.approx(sum(s.seconds for s in found.stages.values()), abs=0.4)
    assert found.disk_bytes > found.images * found.disk_bytes_an_image > 0


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_what_prompts_share_is_spent_on_rounds(tiny_folder: Path, tiny_model: Path) -> None:
    """As a run spends it, also beyond the draws of the most exact preset where nothing is shared."""
    early, late = (
        cost(tiny_folder, tiny_model, finetune={"steps": 2, "label_blocks": n}, score={"precision": "exact"})
        for n in (0, 1)
    )
    assert early.stages["rounds"].unet_evaluations == 32 * 2 * 16
    assert late.stages["rounds"].unet_evaluations > 1.3 * early.stages["rounds"].unet_evaluations
    assert late.stages["refine"].unet_evaluations > 1.3 * early.stages["refine"].unet_evaluations


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_controls_are_counted_as_a_run_takes_them(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A model that has seen no label: all 16 images of the other label are scored under each one as well.

    The first pass is 6 draws of 32 null predictions, 32 own labels and 32 controls; in the estimate, in --dry-run and
    in a run. Features are read twice of images that win among their label's and again among those and the controls'.
    """
    options = {
        "finetune": {"enabled": False}, "score": {"protocol": "paper", "draws": 6},
        "mine": {"share": 1.0, "noises": 2, "clusters": 4},
    }  # fmt: skip
    found = cost(tiny_folder, tiny_model, **options)
    settings = settings_for(tiny_folder, "folder", model=str(tiny_model), dtype="fp32", **options)
    planned = plan_of(settings, load_dataset(settings.dataset))
    stages = mine(settings, tmp_path / "run").record["stages"]
    assert found.stages["score"].unet_evaluations == (32 + 32 + 32) * 6 == stages["score"]["unet_evaluations"]
    assert planned["UNet evaluations of the first pass"] == (32 + 32 + 32) * 6
    assert found.stages["features"].unet_evaluations == pytest.approx(stages["mine"]["unet_evaluations"], rel=0.1)


def test_folds_share_the_minutes(tiny_folder: Path) -> None:
    """`minutes` are those of all models together, and a plan says so; without them it counts fine-tunings."""
    for minutes, said in ((10.0, "10 min in all"), (None, "as long as 1.75 fine-tunings of one model")):
        settings = settings_for(tiny_folder, "folder", finetune={"folds": 2, "minutes": minutes})
        assert said in plan_of(settings, load_dataset(settings.dataset))["fine-tuning"]


@pytest.mark.usefixtures("quick")
def test_folds_cost_their_models_and_what_they_begin_with(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Three folds that share a quarter of the steps: 0.25 + 3 * 0.75 fine-tunings, and four models on disk.

    Without a shared part there are three of each.
    """
    tuning = {"steps": 10, "batch_size": 4, "validation_images": 4}
    work, room = [], []
    for i, folds in enumerate(({}, {"folds": 3, "shared": 0.25}, {"folds": 3, "shared": 0.0})):
        settings = settings_for(tiny_folder, "folder", model=str(tiny_model), dtype="fp32", finetune=tuning | folds)
        probe = module._Probe(settings, load_dataset(settings.dataset), tmp_path / str(i), SILENT)
        probe._latents()
        work.append(probe._finetuning(0.0).unet_evaluations)
        room.append(probe._model_bytes())
    checkpoint = probe.run.base
    parts = (checkpoint.unet, checkpoint.vae, checkpoint.text_encoder)
    assert room[0] == 4 * sum(p.numel() for part in parts for p in part.parameters())
    assert work == [work[0], 2.5 * work[0], 3 * work[0]]
    assert room == [room[0], 4 * room[0], 3 * room[0]]


@pytest.mark.usefixtures("quick")
def test_mirror_images_take_room(tiny_folder: Path, tiny_model: Path) -> None:
    """Fine-tuning with `flip` stores the latent of every mirror image too."""
    score = {"protocol": "paper", "draws": 2, "controls": 0}
    plain = cost(tiny_folder, tiny_model, finetune={"enabled": False}, score=score)
    flipped = cost(tiny_folder, tiny_model, finetune={"steps": 1, "batch_size": 2, "flip": True}, score=score)
    assert flipped.disk_bytes_an_image > plain.disk_bytes_an_image


@pytest.mark.usefixtures("quick")
def test_every_stage_of_the_default_has_a_cost(tiny_folder: Path, tiny_model: Path) -> None:
    found = cost(tiny_folder, tiny_model, finetune={"steps": 10, "batch_size": 4})
    assert list(found.stages) == [
        "data", "latents", "finetune", "score", "rounds", "refine", "features", "clusters", "report",
    ]  # fmt: skip
    assert found.stages["finetune"].unet_evaluations >= 10 * 4 * 3
    assert found.stages["finetune"].seconds > 0
    assert found.unet_evaluations == sum(s.unet_evaluations for s in found.stages.values())


@pytest.mark.usefixtures("quick")
def test_minutes_are_taken_as_they_are(tiny_folder: Path, tiny_model: Path) -> None:
    found = cost(tiny_folder, tiny_model, finetune={"minutes": 3.0, "batch_size": 4})
    assert found.stages["finetune"].seconds == 180


def test_the_probe_computes_as_a_run_of_all_images_does(
    tiny_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 square images take 160 evaluations in the first pass, which is worth compiling; those of the probe are not."""
    monkeypatch.setattr("typicality.run.WORTH", 160)
    monkeypatch.setattr(module, "PROBE_IMAGES", 4)
    settings = settings_for(tiny_folder, "folder", model=str(tiny_model), dtype="fp32", device="cpu")
    probe = module._Probe(settings, load_dataset(settings.dataset), tmp_path, SILENT)
    assert len(probe.run.dataset) == 4
    assert probe.run.compiled_shapes == {(8, 8)}
