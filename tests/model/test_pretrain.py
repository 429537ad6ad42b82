"""Pretraining from nothing, at toy size: it runs, it writes a loadable folder, and it keeps its promises."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from typicality.config import ModelSettings
from typicality.dataset.builtin.build import write_table
from typicality.dataset.split import is_held_out
from typicality.model.checkpoint import base_folder, load_checkpoint
from typicality.model.pretrain import (
    PretrainSettings,
    byte_tokenizer,
    drawing_batch,
    load_corpus,
    new_autoencoder,
    pretrain,
    standardise_latents,
)

TOY = PretrainSettings(
    size=32, latent_channels=4, autoencoder_channels=(16, 16, 16), autoencoder_steps=3, autoencoder_batch=4,
    denoiser_channels=(16, 32, 32), text_steps=2, text_batch=8, denoiser_steps=3,
    denoiser_batch=4, photo_crops=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    images = []
    for side in [32] * 6 + [100, 140]:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (side, side, 4), dtype=np.uint8), "RGBA").save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    write_table({"image": images, "caption": [f"thing, {i}" for i in range(8)], "source": ["test"] * 8}, path)
    return path


def test_large_images_are_photographs(corpus: Path) -> None:
    found = load_corpus(corpus, 32)
    assert len(found.drawings) == 6
    assert len(found.photographs) == 2
    assert found.photographs[0][0].shape == (32, 32, 3)


@pytest.mark.slow
def test_pretraining_writes_a_loadable_model(corpus: Path, tmp_path: Path) -> None:
    summary = pretrain(corpus, tmp_path, TOY)
    assert summary["denoiser"]["steps"] == 3
    assert json.loads((tmp_path / "training.json").read_text())["autoencoder"]["steps"] == 3
    assert "Apache-2.0" in (tmp_path / "README.md").read_text()
    loaded = load_checkpoint(ModelSettings(name=str(tmp_path)))
    assert (loaded.size, loaded.factor) == (32, 4)
    assert not (tmp_path / "latents.safetensors").exists()
    again = pretrain(corpus, tmp_path, replace(TOY, seed=1))
    further = load_checkpoint(ModelSettings(name=str(tmp_path)))
    assert again["text_encoder"] == summary["text_encoder"]
    for part, kept in (("vae", True), ("text_encoder", True), ("unet", False)):
        before, after = (getattr(model, part).state_dict() for model in (loaded, further))
        assert all(torch.equal(before[name], after[name]) for name in before) == kept, part


def test_standardised_latents_have_unit_spread_and_decode_the_same(corpus: Path) -> None:
    """The affine map goes into the 1 x 1 convolutions: decoded images do not change, latents become N(0, 1)-like."""
    found = load_corpus(corpus, 32)
    torch.manual_seed(0)
    vae = new_autoencoder(TOY)
    images = drawing_batch(found, np.arange(6), np.random.default_rng(0), vary=False)
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent_dist.mean).sample
        standardise_latents(vae, found, np.random.default_rng(0))
        latents = vae.encode(images).latent_dist.mean
        after = vae.decode(latents).sample
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)
    assert latents.mean((0, 2, 3)).abs().max() < 0.2
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_tokenizer_is_over_bytes_and_keeps_its_length() -> None:
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 514
    assert len(tokenizer("abc").input_ids) == 5


def test_bundled_base_says_what_it_was_trained_on() -> None:
    card = (base_folder() / "README.md").read_text()
    for word in ("licence", "Training", "steps", "seconds", "held-out"):
        assert word.lower() in card.lower()
    record = json.loads((base_folder() / "training.json").read_text())
    assert record["denoiser"]["final_loss"] > 0


def test_held_out_share_is_a_fifth() -> None:
    share = np.mean([is_held_out(f"group {i}") for i in range(5000)])
    assert share == pytest.approx(0.2, abs=0.02)


def test_embedded_table_is_in_the_hf_image_format() -> None:
    from importlib import resources

    path = Path(str(resources.files("typicality.dataset.builtin"))) / "emoji.parquet"
    schema = pq.read_schema(path)
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert b"huggingface" in schema.metadata
