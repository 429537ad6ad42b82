"""Settings of the fine-tuning do what they say: each in a step or two on latents made of noise, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import tiny_checkpoint
from typicality.config import FinetuneSettings, ScoreSettings
from typicality.model.average import Average
from typicality.model.finetune import FOCUS, Finetuner
from typicality.model.training import TrainingSet
from typicality.prompts import Prompts
from typicality.records import ModelView

CPU = torch.device("cpu")
IMAGES = [f"{i:02}" for i in range(8)]


class NoiseLatents:
    """Latents of eight images of 32 px."""

    def __init__(self) -> None:
        noise = torch.randn(len(IMAGES), 4, 8, 8, generator=torch.Generator().manual_seed(0))
        self.latents = dict(zip(IMAGES, noise, strict=True))

    def view(self, image_id: str) -> ModelView:
        return ModelView(32, 32, 1.0, 1.0, 0.0, 0.0)

    def stack(self, image_ids: list[str]) -> Tensor:
        return torch.stack([self.latents[i] for i in image_ids])


def trainer(folder: Path, score: ScoreSettings | None = None, **changes: object) -> Finetuner:
    labels_of = {name: ("blue" if i % 2 else "red",) for i, name in enumerate(IMAGES)}
    data = TrainingSet(IMAGES, [], labels_of, ("blue", "red"), Prompts("an image of {label}", "an image"))
    settings = FinetuneSettings(**({"steps": 6, "batch_size": 4, "warmup": 0.0} | changes))
    return Finetuner(
        tiny_checkpoint(), data, NoiseLatents(), settings, score or ScoreSettings(), folder, CPU, torch.float32, seed=0
    )


def gradient_norm(tuner: Finetuner) -> float:
    return float(torch.stack([p.grad.norm() for p in tuner.parameters if p.grad is not None]).norm())


def test_gradients_are_clipped_to_the_norm_that_is_set(tmp_path: Path) -> None:
    """What the optimizer was given stays beside the weights until the next step."""
    free, clipped = trainer(tmp_path, clip=1e6), trainer(tmp_path, clip=1e-3)
    for tuner in (free, clipped):
        tuner.train_step(0.0)
    assert gradient_norm(free) > 0.01
    assert gradient_norm(clipped) == pytest.approx(1e-3, rel=1e-3)


def test_weights_decay_by_their_share_of_the_rate(tmp_path: Path) -> None:
    """AdamW takes rate * decay of every weight, apart from the gradient's step: two runs differ by just that."""
    plain, decayed = trainer(tmp_path, weight_decay=0.0), trainer(tmp_path, weight_decay=0.5)
    before = [p.detach().clone() for p in plain.parameters]
    for tuner in (plain, decayed):
        tuner.train_step(0.0)
    rate_of = {id(p): group["lr"] for group in decayed.optimizer.param_groups for p in group["params"]}
    for start, one, other in zip(before, plain.parameters, decayed.parameters, strict=True):
        torch.testing.assert_close(one - other, 0.5 * rate_of[id(other)] * start, rtol=0.02, atol=1e-7)


def test_the_average_decays_as_set_after_a_warm_start() -> None:
    """Weights of 1 after an average of 0: a decay of 0.5 goes half of the way; at step 1 the old counts for 2 of 11."""
    weight = nn.Parameter(torch.zeros(1))
    for step, decay, expected in ((1000, 0.5, 0.5), (1000, 0.0, 1.0), (1, 0.5, 9 / 11), (1, 0.0, 1.0)):
        with torch.no_grad():
            weight.zero_()
            average = Average([weight], decay)
            weight.fill_(1.0)
        average.update(step)
        assert average.shadow[0].item() == pytest.approx(expected)


def test_the_average_is_that_of_the_setting(tmp_path: Path) -> None:
    assert trainer(tmp_path, ema=0.75).average.decay == 0.75


def test_most_draws_are_of_timesteps_that_scores_use(tmp_path: Path) -> None:
    """Scores use a tenth of all timesteps: they get 85% of the draws, and a tenth of the others. Error of a share: 1%.

    The others are spread over all timesteps, so that a tenth of 15% lies above 0.9.
    """
    tuner = trainer(tmp_path, ScoreSettings(t_min=0.4, t_max=0.5))
    t = tuner._draw(IMAGES * 150, np.random.default_rng(0)).t.numpy()
    assert np.mean((t >= 400) & (t < 500)) == pytest.approx(FOCUS + (1 - FOCUS) / 10, abs=0.03)
    assert np.mean(t >= 900) == pytest.approx((1 - FOCUS) / 10, abs=0.01)


def test_as_many_prompts_are_dropped_as_set(tmp_path: Path) -> None:
    """1,200 draws, of which 30% see the null prompt."""
    drawn = trainer(tmp_path, dropout=0.3)._draw(IMAGES * 150, np.random.default_rng(0))
    assert np.mean(np.array(drawn.prompts) == 0) == pytest.approx(0.3, abs=0.04)


def test_the_rate_rises_over_the_warm_start(tmp_path: Path) -> None:
    """A constant rate with a warm-up of a fifth: half of it after a tenth, all of it from a fifth on."""
    tuner = trainer(tmp_path, warmup=0.2, rate=1e-3, schedule="constant")
    assert [tuner._learning_rate(p) for p in (0.0, 0.1, 0.2, 0.9)] == pytest.approx([0, 5e-4, 1e-3, 1e-3])
