"""The speed benchmark: what it counts and times; the whole of it is slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import typicality
from typicality.api import settings_for
from typicality.config import ModelSettings
from typicality.dataset import load_dataset
from typicality.evaluation import speed
from typicality.evaluation.speed import matmul_flops, synthetic_maps, top_patches_seconds
from typicality.model import probe
from typicality.model.checkpoint import load_checkpoint
from typicality.model.denoiser import Denoiser
from typicality.progress import SILENT


def test_synthetic_maps_are_like_real_ones() -> None:
    """Every recorded square is at least the square of the box mean, so that variances are not negative."""
    maps = list(synthetic_maps(13))
    assert [m.label for m in maps[:11]] == [*map(str, range(10)), "0"]
    assert len({m.image_id for m in maps}) == 13
    assert maps[0].typicality.shape == (64, 64)
    assert np.all(maps[0].squares[1] >= maps[0].typicality ** 2)
    assert maps[0].squares[64].shape == (1, 1)


def test_time_grows_with_the_number_of_maps() -> None:
    assert 0 < top_patches_seconds(16) < top_patches_seconds(512)


@pytest.mark.slow
def test_a_matrix_product_takes_time() -> None:
    """Between a megaflop and an exaflop a second."""
    assert 1e6 < matmul_flops(torch.float32, torch.device("cpu")) < 1e18


@pytest.mark.slow
def test_batches_that_do_not_fit_are_left_out(
    tiny_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the probe of `doctor`, and by the bare UNet of `bench`, whose plain attention needs the most memory."""
    checkpoint = load_checkpoint(ModelSettings(name=str(tiny_model)))
    denoiser = Denoiser(checkpoint, torch.device("cpu"), torch.float32)
    forward = type(checkpoint.unet.conv_in).forward

    def limited(layer: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(layer, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", limited)
    assert set(probe.seconds_an_evaluation(denoiser, (8, 16, 32), 1.0)) == {8, 16}
    settings = settings_for(tiny_folder, "folder", model=str(tiny_model), device="cpu")
    bench = speed._Bench(settings, load_dataset(settings.dataset), tmp_path, SILENT)
    run = bench.open_run(bench.first(8))
    assert run.batch_size > 64
    assert speed.BareUNet(run, torch.float32).batch == 16


@pytest.mark.slow
def test_all_of_it_on_a_tiny_model(tiny_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is there, and ratios agree with the times that they come from."""
    monkeypatch.setattr(speed, "MAPS", (100, 200))
    monkeypatch.setattr(speed, "TURNS", 1)
    found = typicality.bench(tiny_folder, "folder", images=8, model=str(tiny_model), dtype="bf16")
    times = found["milliseconds_an_evaluation"]
    assert found["pipeline_over_bare_unet"] == pytest.approx(times["bare"] / times["ours"])
    assert found["ours_over_fp32_eager"] == pytest.approx(times["fp32_eager"] / times["ours"])
    assert -1 <= found["rank_correlation_bf16_fp32"] <= 1
    assert 0 < found["matmul_share"] < 1
    assert found["evaluations"] == 8 * 2 * speed.DRAWS
    assert (found["label_blocks"], found["all_blocks"]) == (0, None)
    assert set(found["mining"]) == {"features_seconds_an_image", "top_patches_seconds", "clustering_seconds"}
    assert set(found["mining"]["top_patches_seconds"]) == {"100", "200"}


@pytest.mark.slow
def test_scoring_is_measured_as_mine_would_do_it(
    tiny_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the label in the last block alone, and beside it in all, in which next to nothing can be shared."""
    monkeypatch.setattr(speed, "MAPS", (100,))
    monkeypatch.setattr(speed, "TURNS", 1)
    seen: list[int] = []
    prediction = Denoiser.predict_noise

    def watched(self: Denoiser, *given: Any) -> torch.Tensor:
        seen.append(self.checkpoint.label_use.blocks)
        return prediction(self, *given)

    monkeypatch.setattr(Denoiser, "predict_noise", watched)
    late = {"label_blocks": 1}
    found = typicality.bench(tiny_folder, "folder", images=8, model=str(tiny_model), dtype="fp32", finetune=late)
    times, everywhere = found["milliseconds_an_evaluation"], found["all_blocks"]
    assert found["label_blocks"] == 1
    assert set(seen) == {0, 1}
    assert found["ours_over_fp32_eager"] == pytest.approx(times["fp32_eager"] / times["ours"])
    assert everywhere["pipeline_over_bare_unet"] == pytest.approx(times["bare"] / times["all_blocks"])
    assert everywhere["ours_over_fp32_eager"] == pytest.approx(times["fp32_eager"] / times["all_blocks"])
