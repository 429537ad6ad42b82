"""Checkpoints of the Stable Diffusion 1.5 shape, saved by plain `diffusers`, go through the same code.

Random weights and small widths, but the real classes: a byte-pair tokenizer with merges, a factor-8 autoencoder
with scaling factor 0.18215, four UNet levels at 512 px, a PNDM scheduler; and once with v-prediction.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import typicality
from typicality.config import ModelSettings
from typicality.model.checkpoint import load_checkpoint
from typicality.model.pretrain import byte_tokenizer

pytestmark = pytest.mark.slow


def stable_diffusion_shaped(folder: Path, prediction_type: str) -> Path:
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    words = ["th", "e</w>", "an</w>", "im", "ag", "re", "d</w>", "bl", "u"]
    vocabulary = json.loads((_saved_tokenizer(folder) / "vocab.json").read_text())
    merges = ["t h", "a n</w>", "i m", "a g", "r e", "b l"]
    merged = [m.replace(" ", "") for m in merges]
    for token in [*words, *merged]:
        vocabulary.setdefault(token, len(vocabulary))
    source = folder / "bpe"
    source.mkdir(parents=True)
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    (source / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer(vocab=str(source / "vocab.json"), merges=str(source / "merges.txt"), model_max_length=77)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=77, projection_dim=32,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        sample_size=512, scaling_factor=0.18215,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16, 16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
        prediction_type=prediction_type,
    )  # fmt: skip
    target = folder / prediction_type
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(target)  # fmt: skip
    return target


def _saved_tokenizer(folder: Path) -> Path:
    byte_tokenizer().save_pretrained(folder / "bytes")
    path = folder / "bytes" / "vocab.json"
    if not path.exists():
        path.write_text(json.dumps(byte_tokenizer().get_vocab()))
    return folder / "bytes"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for label in ("red", "blue"):
        (root / label).mkdir()
        for i in range(2):
            pixels = rng.integers(0, 255, (60, 60, 3), dtype=np.uint8)
            pixels[..., 0 if label == "red" else 2] //= 3
            Image.fromarray(pixels).resize((600, 600)).save(root / label / f"{i}.jpg")
    return root


@pytest.mark.parametrize(("prediction_type", "method"), [("epsilon", "full"), ("v_prediction", "lora")])
def test_the_whole_job(photographs: Path, tmp_path: Path, prediction_type: str, method: str) -> None:
    model = stable_diffusion_shaped(tmp_path / "models", prediction_type)
    checkpoint = load_checkpoint(ModelSettings(name=str(model)))
    assert (checkpoint.factor, checkpoint.step, checkpoint.size) == (8, 64, 512)
    result = typicality.mine(
        photographs,
        "folder",
        model=str(model),
        out=tmp_path / "run",
        dtype="fp32",
        finetune={"steps": 2, "batch_size": 2, "validate_every": 2, "method": method, "validation_images": 1},
        score={"draws": 2, "refine_draws": 2},
        mine={"noises": 1, "share": 0.5},
    )
    assert result.report.exists()
    elements = result.elements.to_pylist()
    assert {e["side"] for e in elements} == {8}  # an eighth of the short side: 64 of 512 px, 8 latent cells
    for e in elements:
        width, height = e["x1"] - e["x0"], e["y1"] - e["y0"]
        assert width == pytest.approx(75, abs=1)  # 64 model pixels are 64 * 600 / 512 = 75 of the original
        assert height == pytest.approx(75, abs=1)
    files = {p.name for p in (result.folder / "model").iterdir()}
    assert ("pytorch_lora_weights.safetensors" in files) == (method == "lora")
