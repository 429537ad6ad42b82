"""Checkpoints: what is saved loads again, here and in plain diffusers, and what cannot be loaded says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny_checkpoint
from typicality.config import ModelSettings
from typicality.errors import CheckpointError
from typicality.model.checkpoint import BASE, base_folder, choose, load_checkpoint, save_checkpoint


def load(folder: Path):
    return load_checkpoint(ModelSettings(name=str(folder)))


def test_round_trip_keeps_every_weight(tiny_model: Path) -> None:
    loaded = load(tiny_model)
    assert loaded.weights_hash() == tiny_checkpoint().weights_hash()
    assert (loaded.factor, loaded.step, loaded.size) == (4, 16, 32)
    assert loaded.is_small


def test_hash_sees_weights_and_schedule() -> None:
    one = tiny_checkpoint()
    assert tiny_checkpoint(seed=1).weights_hash() != one.weights_hash()
    assert tiny_checkpoint(prediction_type="v_prediction").weights_hash() != one.weights_hash()


def test_half_precision_on_disk_leaves_the_live_weights(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    before = checkpoint.weights_hash()
    save_checkpoint(checkpoint, tmp_path, torch.float16)
    assert checkpoint.weights_hash() == before
    half = load(tmp_path)
    assert half.unet.dtype == torch.float32
    weight = checkpoint.unet.conv_in.weight
    torch.testing.assert_close(half.unet.conv_in.weight, weight.half().float(), rtol=0, atol=0)


def test_a_saved_model_does_not_tell_where_it_came_from(tiny_model: Path, tmp_path: Path) -> None:
    save_checkpoint(load(tiny_model), tmp_path)
    for config in tmp_path.glob("*/*.json"):
        assert str(tiny_model) not in config.read_text(), config


def test_auto_on_a_machine_without_cuda_is_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name, reason = choose(ModelSettings())
    assert name == BASE
    assert "CUDA" in reason


def test_missing_folder_names_itself(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        load(tmp_path / "nowhere")


def test_missing_part_is_named(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    shutil.rmtree(broken / "unet")
    with pytest.raises(CheckpointError, match="no folder unet"):
        load(broken)


@pytest.mark.parametrize("damage", ["truncate", "garbage", "config"])
def test_corrupt_weights_are_one_message(tiny_model: Path, tmp_path: Path, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "garbage":
        weights.write_bytes(b"not a tensor")
    else:
        (broken / "unet" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot load the model"):
        load(broken)


def test_models_of_another_class_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "sample"
    shutil.copytree(tiny_model, other)
    path = other / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(CheckpointError, match="epsilon and v_prediction"):
        load(other)


def test_bundled_base_is_small_and_loads_in_plain_diffusers() -> None:
    """25 MB at most, and `StableDiffusionPipeline` draws a picture with it."""
    from diffusers import StableDiffusionPipeline

    folder = base_folder()
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 25e6
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline("noto emoji", num_inference_steps=4, generator=generator, output_type="np").images
    assert drawn.shape == (1, 64, 64, 3)
    assert drawn.std() > 0.01
