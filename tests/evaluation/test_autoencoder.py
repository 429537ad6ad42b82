"""Reconstruction error, by hand: a decoder that returns grey is wrong by a known amount."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from typicality.config import resolve
from typicality.evaluation.autoencoder import reconstruct
from typicality.model.denoiser import Denoiser


def test_psnr_by_hand(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """White images decoded as mid-grey differ by 0.5 everywhere: PSNR = -10 log10(0.25) = 6.02 dB."""
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(8):
            pixels = np.full((32, 32, 3), 255, np.uint8)
            pixels[0, 0] = (i, 0, 0) if label == "a" else (0, i, 0)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{i}.png")
    monkeypatch.setattr(Denoiser, "decode_latents", lambda self, z: torch.zeros(1, 3, 32, 32))
    settings = resolve(
        {"dataset": {"source": str(tmp_path / "data"), "label": "folder"}, "model": {"name": str(tiny_model)}}
    )
    found = reconstruct(settings, images=4, picture=tmp_path / "pairs.png")
    assert found.psnr == pytest.approx(6.02, abs=0.02)
    assert 0 < found.n <= 4
    assert (tmp_path / "pairs.png").exists()
