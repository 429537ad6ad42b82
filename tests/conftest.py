"""Shared fixtures: a tiny seeded checkpoint of the bundled base's class, and a tiny labelled folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from typicality.model.checkpoint import Checkpoint, save_checkpoint
from typicality.model.pretrain import (
    PretrainSettings,
    byte_tokenizer,
    new_autoencoder,
    new_denoiser,
    new_scheduler,
    new_text_encoder,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def tiny_checkpoint(seed: int = 0, prediction_type: str = "epsilon") -> Checkpoint:
    """A random model with the parts of the bundled base and hardly any weights: 32 px, latents 8 x 8 x 4."""
    torch.manual_seed(seed)
    settings = PretrainSettings(
        size=32, latent_channels=4, autoencoder_channels=(16, 16, 16), denoiser_channels=(16, 32, 32)
    )
    tokenizer = byte_tokenizer()
    scheduler = type(new_scheduler()).from_config(new_scheduler().config, prediction_type=prediction_type)
    parts = {
        "vae": new_autoencoder(settings),
        "unet": new_denoiser(settings),
        "text_encoder": new_text_encoder(tokenizer),
    }
    for module in parts.values():
        module.eval().requires_grad_(False)
    return Checkpoint(**parts, tokenizer=tokenizer, scheduler=scheduler, name="tiny", revision=None, reason="test")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random checkpoint."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_checkpoint(tiny_checkpoint(), folder)
    return folder


def draw(rng: np.random.Generator, label: str, size: tuple[int, int]) -> Image.Image:
    """Noise with a bright square whose colour tells the label."""
    height, width = size
    pixels = rng.integers(90, 160, (height, width, 3), dtype=np.uint8)
    y, x = rng.integers(0, height - 12), rng.integers(0, width - 12)
    pixels[y : y + 12, x : x + 12] = (240, 40, 40) if label == "red" else (40, 40, 240)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labels as folders, 16 images each, of two different shapes."""
    root = tmp_path_factory.mktemp("data") / "squares"
    rng = np.random.default_rng(0)
    for label in ("blue", "red"):
        (root / label).mkdir(parents=True)
        for i in range(16):
            draw(rng, label, (40, 40) if i % 3 else (40, 72)).save(root / label / f"{i}.png")
    return root
