"""Checkpoints: what is saved loads again, here and in plain diffusers, and what cannot be loaded says why."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import tiny_checkpoint
from typicality.config import ModelSettings
from typicality.errors import CheckpointError
from typicality.model import checkpoint as checkpoint_module
from typicality.model.calibration import LabelUse
from typicality.model.checkpoint import (
    ADAPTER_FILE,
    ADAPTER_RECORD,
    BASE,
    STABLE_DIFFUSION,
    Checkpoint,
    base_folder,
    choose,
    is_model,
    load_checkpoint,
    replace_checkpoint,
    save_adapter,
    save_checkpoint,
)


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


def test_hash_sees_how_weights_are_used() -> None:
    """None of these is a weight, and each changes predictions."""
    one = tiny_checkpoint().weights_hash()
    for part, name, value in (
        ("vae", "scaling_factor", 0.5), ("unet", "attention_head_dim", 1), ("text_encoder", "hidden_act", "gelu"),
    ):  # fmt: skip
        other = tiny_checkpoint()
        config = getattr(other, part).config
        if part == "text_encoder":
            setattr(config, name, value)
        else:
            getattr(other, part).register_to_config(**{name: value})
        assert other.weights_hash() != one, name


def test_a_model_keeps_its_hash_when_the_libraries_are_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 5.6, transformers put `text_model.` before the names of these weights; diffusers adds settings.

    A setting that a file has of another scheduler counts as it did. The last line is what runs on the bundled base were
    recorded under: only a base that was trained anew may have another.
    """
    one = tiny_checkpoint()
    before, weights = one.weights_hash(), one.text_encoder.state_dict()
    one.text_encoder.state_dict = lambda: {f"text_model.{name}": tensor for name, tensor in weights.items()}
    assert one.weights_hash() == before
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "DDIMScheduler", lambda num_train_timesteps, brand_new=0.5: None)
        one.scheduler.register_to_config(brand_new=0.5)
        assert one.weights_hash() == before
        one.scheduler.register_to_config(skip_prk_steps=True)
        assert one.weights_hash() != before
    assert load_checkpoint(ModelSettings(name=BASE)).weights_hash() == "2d3a3281265fc483eaefa8ce08edff75"


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


def test_auto_takes_stable_diffusion_from_the_cache_for_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache as our own download leaves it: the parts, and no model_index.json."""
    held = {f"{part}/config.json" for part in ("unet", "vae", "text_encoder")}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        checkpoint_module, "try_to_load_from_cache", lambda repo, name: f"/cache/{name}" if name in held else None
    )
    assert choose(ModelSettings())[0] == STABLE_DIFFUSION
    assert choose(ModelSettings(device="cpu"))[0] == BASE
    held.clear()
    assert choose(ModelSettings())[0] == BASE


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


def lose(folder: Path, part: str, kept: int = -1) -> str:
    """Remove the last weights of a part, or all but the first ones, from its file; return the name of one."""
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:kept]}, path, {"format": "pt"})
    return names[-1]


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_weights_that_are_missing_are_named(tiny_model: Path, tmp_path: Path, part: str) -> None:
    """The libraries leave them random, or without memory."""
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    name = lose(broken, part)
    with pytest.raises(CheckpointError, match=rf"the {part} of .*broken' lacks 1 of its weights: {re.escape(name)};"):
        load(broken)
    lose(broken, part, kept=1)
    with pytest.raises(CheckpointError, match=rf"the {part} of .*: \S+, \S+, \S+, \.\.\.; save or download it again"):
        load(broken)


@pytest.mark.parametrize("channels", [9, 5])
def test_models_that_are_shown_more_than_latents_are_refused(tmp_path: Path, channels: int) -> None:
    """Inpainting and depth: the UNet takes a mask and the masked image as well, or a depth map."""
    other = tiny_checkpoint()
    other.unet = type(other.unet).from_config(other.unet.config, in_channels=channels)
    save_checkpoint(other, tmp_path / "other")
    with pytest.raises(CheckpointError, match=rf"its UNet takes {channels} channels, and latents have 4"):
        load(tmp_path / "other")


def parts_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The first weight of each part."""
    return {part: next(getattr(checkpoint, part).parameters()) for part in ("vae", "unet", "text_encoder")}


@pytest.mark.slow
def test_a_replacement_that_is_stopped_leaves_whole_parts(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after each file in turn, what lies there loads, and every part is of the one model or of the other."""
    before, after = parts_of(tiny_checkpoint()), parts_of(tiny_checkpoint(seed=1))
    move = Path.replace
    for files in range(30):
        left = files
        folder = shutil.copytree(tiny_model, tmp_path / str(files))

        def replace(path: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return move(path, target)

        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            patched.setattr(Path, "replace", replace)
            replace_checkpoint(tiny_checkpoint(seed=1), folder)
        found = parts_of(load(folder))
        new = {part: torch.equal(found[part], after[part]) for part in after}
        assert all(new[part] or torch.equal(found[part], before[part]) for part in before)
        if left >= 0:
            break
        shutil.rmtree(folder)
    assert files > 5
    assert all(new.values())
    assert not (folder / "model.part").exists()


def test_what_a_model_must_have_to_be_there(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    assert is_model(model)
    assert is_model(adapter)
    (adapter / ADAPTER_FILE).unlink()
    next((model / "unet").glob("*.safetensors")).unlink()
    assert not is_model(adapter)
    assert not is_model(model)
    assert not is_model(tmp_path / "nowhere")


def adapter_of(checkpoint: Checkpoint, folder: Path, text_encoder: bool = False) -> Path:
    """Save a random LoRA adapter of a checkpoint, which is changed by it."""
    checkpoint.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    folder.mkdir()
    save_adapter(checkpoint, folder, text_encoder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: Path) -> Path:
    """Folder of a LoRA adapter of the tiny model that changes what it predicts."""
    return adapter_of(load(tiny_model), tmp_path / "adapter")


def test_a_text_encoder_beside_an_adapter_must_be_whole(tiny_model: Path, tmp_path: Path) -> None:
    folder = adapter_of(load(tiny_model), tmp_path / "a", text_encoder=True)
    assert load(folder)
    lose(folder, "text_encoder")
    with pytest.raises(CheckpointError, match=r"the text_encoder of .* lacks 1 of its weights"):
        load(folder)


@pytest.mark.slow
def test_an_adapter_is_added_to_what_it_was_trained_on_alone(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    """The second one is of the tiny model with the first. By --model it is added to both; by model.lora only where the
    rest is as its record says, whichever way that is named. Without a record nothing is known, and so it is allowed.
    """

    def loaded(model: Path, lora: Path) -> str:
        return load_checkpoint(ModelSettings(name=str(model), lora=str(lora))).weights_hash()

    settings = ModelSettings(name=str(tiny_model), lora=str(adapter))
    second = adapter_of(load_checkpoint(settings), tmp_path / "second")
    whole = load(second).weights_hash()
    assert loaded(adapter, second) == whole
    assert loaded(tiny_model, adapter) == loaded(tiny_model, adapter / ADAPTER_FILE) == load(adapter).weights_hash()
    other = shutil.copytree(tiny_model, tmp_path / "other")
    belongs = rf"belongs on {re.escape(f'{tiny_model} + {adapter}')}, as its adapter.json says; name the folder"
    for model in (tiny_model, other, second):
        for lora in (second, second / ADAPTER_FILE):
            with pytest.raises(CheckpointError, match=belongs):
                loaded(model, lora)
    with pytest.raises(CheckpointError, match="belongs on"):
        loaded(other, adapter)
    (adapter / ADAPTER_RECORD).unlink()
    assert loaded(other, adapter)


def test_an_adapter_of_another_revision_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = load(tiny_model)
    checkpoint.name, checkpoint.revision = "somebody/model", "fp16"
    folder = adapter_of(checkpoint, tmp_path / "a")
    checkpoint_module._check_base(folder, checkpoint)
    checkpoint.revision = None
    with pytest.raises(CheckpointError, match="belongs on somebody/model of revision fp16"):
        checkpoint_module._check_base(folder, checkpoint)


def test_ordinary_lora_files_load_with_their_prefix(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    """`save_lora_weights` of diffusers writes `unet.` before every name; a file does as well as a folder."""
    expected = load(adapter).weights_hash()
    assert expected != load(tiny_model).weights_hash()
    tensors = load_file(adapter / ADAPTER_FILE)
    with safe_open(adapter / ADAPTER_FILE, "pt") as handle:
        metadata = handle.metadata()
    settings = json.loads(metadata["lora_adapter_metadata"])
    metadata["lora_adapter_metadata"] = json.dumps({f"unet.{name}": value for name, value in settings.items()})
    path = tmp_path / "ordinary.safetensors"
    save_file({f"unet.{name}": tensor for name, tensor in tensors.items()}, path, metadata)
    assert load_checkpoint(ModelSettings(name=str(tiny_model), lora=str(path))).weights_hash() == expected


def test_an_adapter_of_another_program_leaves_how_the_model_takes_labels(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    checkpoint = load(tiny_model)
    checkpoint.label_use = LabelUse(0.5, 1, "an image")
    save_checkpoint(checkpoint, tmp_path / "model")
    shutil.copy(adapter / ADAPTER_FILE, tmp_path / "foreign.safetensors")
    given = ModelSettings(name=str(tmp_path / "model"), lora=str(tmp_path / "foreign.safetensors"))
    assert load_checkpoint(given).label_use == checkpoint.label_use


@pytest.mark.parametrize("prefix", ["text_encoder.", "lora_unet_"])
def test_adapters_of_more_than_the_unet_are_refused(
    tiny_model: Path, adapter: Path, tmp_path: Path, prefix: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({f"{prefix}{name}": tensor for name, tensor in load_file(adapter / ADAPTER_FILE).items()}, path)
    with pytest.raises(CheckpointError, match="format of diffusers"):
        load_checkpoint(ModelSettings(name=str(tiny_model), lora=str(path)))


@pytest.mark.parametrize("content", ["{", "[]", '{"revision": null}', '"base"'])
def test_a_damaged_adapter_record_is_one_message(adapter: Path, content: str) -> None:
    (adapter / ADAPTER_RECORD).write_text(content)
    with pytest.raises(CheckpointError, match="does not name the base"):
        load(adapter)


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


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_a_model_of_a_hub_keeps_its_label_scale(tmp_path: Path, scale: float) -> None:
    """Read, without a network, from a cache laid out as the hub's own; at a scale of 1 there is no file of it.

    Nothing is printed beside: neither warnings nor notices of the libraries below.
    """
    cache, commit = tmp_path / "hub" / "models--somebody--model", 4 * "0123456789"
    checkpoint = tiny_checkpoint()
    checkpoint.label_use = LabelUse(scale)
    save_checkpoint(checkpoint, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    code = (
        "from typicality.config import ModelSettings\n"
        "from typicality.model.checkpoint import load_checkpoint\n"
        "loaded = load_checkpoint(ModelSettings(name='somebody/model', offline=True))\n"
        "print(loaded.label_use.scale, loaded.weights_hash())"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(scale), checkpoint.weights_hash()]
    assert not done.stderr
