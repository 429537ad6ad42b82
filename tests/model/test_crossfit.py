"""Cross-fitting: no image is scored by a model that has seen its group, and a killed run ends like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel

import typicality
from typicality import passes, pipeline
from typicality.api import settings_for as settings_for_api
from typicality.config import DatasetSettings, FinetuneSettings, Settings
from typicality.dataset import LabelledImages, load_dataset
from typicality.dataset.split import fold_of
from typicality.errors import DatasetError
from typicality.evaluation.classify import classify_held_out
from typicality.model.crossfit import folds_of, mean_history
from typicality.model.finetune import Finetuner
from typicality.model.training import Draws
from typicality.progress import Progress
from typicality.run import Run, open_run
from typicality.scoring.scorer import Job, Scorer

pytestmark = pytest.mark.slow  # whole fine-tunings, several each

OPTIONS: dict[str, Any] = {
    "finetune": {"steps": 6, "batch_size": 8, "validate_every": 2, "folds": 2, "shared": 0.5, "validation_images": 4},
    "score": {"draws": 2, "refine_draws": 2, "shard_images": 8},
    "mine": {"noises": 1, "share": 1.0, "per_label": 20},
    "dtype": "fp32",
}


def settings_for(source: Path, model: Path, **finetune: Any) -> Settings:
    options = {**OPTIONS, "finetune": {**OPTIONS["finetune"], **finetune}}
    return settings_for_api(source, "folder", model=str(model), **options)


class KilledError(BaseException):
    """Stands for a kill: nothing in the code under test may catch it."""


class KillAt(Progress):
    """Kills once so many steps of fine-tuning were taken in this process."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, steps: int = 1, note: str = "") -> None:
        if note.startswith("loss"):
            self.left -= steps
            if self.left == 0:
                raise KilledError


@pytest.fixture
def squares(tiny_folder: Path) -> LabelledImages:
    """Two labels; images 2 i and 2 i + 1 of a label are relatives."""
    loaded = load_dataset(DatasetSettings(source=str(tiny_folder), label="folder"))
    images = tuple(
        replace(image, group=f"{image.labels[0]}-{int(Path(image.file_name).stem) // 2}") for image in loaded
    )
    return replace(loaded, images=images)


@pytest.fixture
def fitted(squares: LabelledImages, tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> Run:
    """A run with two folds, its latents encoded and nothing trained yet."""
    run = open_run(settings_for(tiny_folder, tiny_model), tmp_path / "run")
    run.dataset = squares
    pipeline.ensure_latents(run)
    return run


def weights(run: Run, fold: int) -> str:
    return run.denoiser_of(fold).checkpoint.weights_hash()


def test_relatives_share_a_fold(squares: LabelledImages) -> None:
    found = folds_of(squares, 3, seed=0)
    by_group: dict[str, set[int]] = {}
    for image in squares:
        by_group.setdefault(image.group, set()).add(found[image.image_id])
    assert all(len(folds) == 1 for folds in by_group.values())
    assert set(found.values()) == {0, 1, 2}
    assert folds_of(squares, 3, seed=1) != found


def test_too_few_groups_are_an_error(squares: LabelledImages) -> None:
    one = replace(squares, images=tuple(replace(image, group="all") for image in squares))
    with pytest.raises(DatasetError, match="1 groups cannot fill 2 folds"):
        folds_of(one, 2, seed=0)


def test_few_groups_leave_no_fold_empty(squares: LabelledImages) -> None:
    """Three hospitals: one fourth of all names leaves one of two folds empty by hash. Names that fill both stay."""
    moved = 0
    for prefix in range(20):
        for groups, folds in ((2, 2), (3, 2), (4, 4), (5, 3)):
            images = [replace(image, group=f"{prefix}-{n % groups}") for n, image in enumerate(squares)]
            found = folds_of(replace(squares, images=tuple(images)), folds, seed=0)
            assert set(found.values()) == set(range(folds))
            of_group = {image.group: found[image.image_id] for image in images}
            assert all(found[image.image_id] == of_group[image.group] for image in images)
            plain = {group: fold_of(group, folds) for group in of_group}
            if len(set(plain.values())) == folds:
                assert of_group == plain
            else:
                moved += 1
                assert sum(of_group[group] != plain[group] for group in plain) == folds - len(set(plain.values()))
    assert moved > 20


def test_the_group_nearest_to_an_empty_fold_fills_it(squares: LabelledImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three folds the middle one, around 0.5, is empty: 0.3 is nearer to it than 0.72.

    0.68 is nearer than 0.2, but alone in its fold.
    """
    at = {"a": 0.1, "b": 0.3, "c": 0.72, "d": 0.8}
    for module in ("model.crossfit", "dataset.split"):
        monkeypatch.setattr(f"typicality.{module}.fold_hash", lambda group, seed=0: at[group])
    images = tuple(replace(image, group="abcd"[n % 4]) for n, image in enumerate(squares))
    found = folds_of(replace(squares, images=images), 3, seed=0)
    assert {image.group: found[image.image_id] for image in images} == {"a": 0, "b": 1, "c": 2, "d": 2}
    at |= {"b": 0.2, "c": 0.15, "d": 0.68}
    found = folds_of(replace(squares, images=images), 3, seed=0)
    assert {image.group: found[image.image_id] for image in images} == {"a": 0, "b": 1, "c": 0, "d": 2}


def test_no_image_is_scored_by_a_model_that_has_seen_its_group(fitted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spies on every batch and every validation of the trainer, and on every image that is scored.

    The shared part may show any image, but under the null prompt alone.
    """
    groups = {image.image_id: image.group for image in fitted.dataset}
    seen: dict[str, set[str]] = {}
    draw, loss, validated = Finetuner._draw, Finetuner._loss, Finetuner._both

    def spy_draw(self: Finetuner, ids: Sequence[str], rng: np.random.Generator) -> Draws:
        seen.setdefault(self.part.name, set()).update(groups[i] for i in ids)
        return draw(self, ids, rng)

    def spy_loss(self: Finetuner, drawn: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        if self.part.labelled:
            return loss(self, drawn)
        prompts: list[list[int]] = []
        states = self._states().detach()
        blocks = [m for m in self.checkpoint.unet.modules() if isinstance(m, Transformer2DModel)]

        def record(_: object, args: object, options: dict[str, torch.Tensor]) -> None:
            hidden = options["encoder_hidden_states"]
            prompts.append([int((s - states).abs().sum((1, 2)).argmin()) for s in hidden])

        hooks = [block.register_forward_pre_hook(record, with_kwargs=True) for block in blocks]
        result = loss(self, drawn)
        for hook in hooks:
            hook.remove()
        assert prompts == [[0] * len(drawn.prompts)] * len(blocks)
        return result

    def spy_validation(
        self: Finetuner, noisy: torch.Tensor, t: torch.Tensor, ids: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.part.labelled
        seen.setdefault(self.part.name, set()).update(groups[i] for i in ids)
        return validated(self, noisy, t, ids)

    monkeypatch.setattr(Finetuner, "_draw", spy_draw)
    monkeypatch.setattr(Finetuner, "_loss", spy_loss)
    monkeypatch.setattr(Finetuner, "_both", spy_validation)
    pipeline.ensure_model(fitted)
    assert set(seen) == {"shared", "fold 0", "fold 1"}
    scored: dict[str, str] = {}
    maps_on_device = Scorer.maps_on_device

    def spy_scores(self: Scorer, jobs: Sequence[Job], *drawn: Any) -> Any:
        for job in jobs:
            assert scored.setdefault(job.image_id, self.denoiser.checkpoint.name) == self.denoiser.checkpoint.name
        return maps_on_device(self, jobs, *drawn)

    monkeypatch.setattr(Scorer, "maps_on_device", spy_scores)
    pipeline.ensure_scores(fitted)
    assert set(scored) == set(groups)
    for image_id, model in scored.items():
        fold = Path(model).name.replace("-", " ")
        assert groups[image_id] not in seen[fold]
    assert weights(fitted, 0) != weights(fitted, 1)
    assert Path(fitted.feature_denoiser.checkpoint.name).name == "shared"
    assert all(len(seen[fold]) > 4 for fold in ("fold 0", "fold 1"))


def test_all_images_count_as_held_out(fitted: Run) -> None:
    assert fitted.held_out == {image.image_id for image in fitted.dataset}
    pipeline.ensure_model(fitted)
    assert not [w for w in fitted.warnings() if "in-sample" in w]
    entry = fitted.directory.record["stages"]["finetune"]
    assert entry["steps"] == 3 + 2 * 3
    assert [fold["shared_steps"] for fold in entry["folds"]] == [3, 3]
    assert (fitted.model_folder(1) / "README.md").exists()
    assert not fitted.directory.path("training", fitted.finetune_key).exists()


def test_without_folds_held_out_groups_take_part_in_nothing(
    squares: LabelledImages, tiny_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy is reported on them: neither the weights nor the choice of the step that is kept may know them."""
    run = open_run(settings_for(tiny_folder, tiny_model, folds=1, held_out=0.4), tmp_path / "run")
    run.dataset = squares
    pipeline.ensure_latents(run)
    trained: set[str] = set()
    validated: list[set[str]] = []
    draw, both = Finetuner._draw, Finetuner._both
    monkeypatch.setattr(Finetuner, "_draw", lambda self, ids, rng: (trained.update(ids), draw(self, ids, rng))[1])
    monkeypatch.setattr(
        Finetuner, "_both", lambda self, z, t, ids: (validated.append(set(ids)), both(self, z, t, ids))[1]
    )
    pipeline.ensure_model(run)
    entry = run.directory.record["stages"]["finetune"]
    assert run.held_out
    assert not run.held_out & trained.union(*validated)
    assert all("validation_typicality" in e for e in entry["history"])
    assert not validated[0] & trained
    assert entry["images"] + entry["validation"] + entry["held_out"] == len(squares)
    card = (run.model_folder() / "README.md").read_text()
    assert f"{entry['validation']} for validation, {entry['held_out']} held out" in card


def test_every_part_has_a_whole_schedule(fitted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds learn labels at the full rate, not at what a schedule over all steps would have left of it."""
    rates: dict[str, list[float]] = {}
    rate = Finetuner._learning_rate

    def spy(self: Finetuner, progress: float) -> float:
        rates.setdefault(self.part.name, []).append(rate(self, progress))
        return rates[self.part.name][-1]

    monkeypatch.setattr(Finetuner, "_learning_rate", spy)
    pipeline.ensure_model(fitted)
    for part in ("fold 0", "fold 1"):
        assert rates[part] == pytest.approx(rates["shared"])
    assert max(rates["fold 0"]) > 2 * min(rates["fold 0"])


@pytest.mark.parametrize("kills", [(2,), (5, 1), (8,)])
def test_a_killed_training_ends_with_the_same_weights(
    fitted: Run, squares: LabelledImages, tiny_folder: Path, tiny_model: Path, tmp_path: Path, kills: tuple[int, ...]
) -> None:
    """Nine steps in all: 3 shared, 3 a fold. Killed within the shared part, in fold 0, in fold 1, and twice."""
    pipeline.ensure_model(fitted)
    other = open_run(settings_for(tiny_folder, tiny_model), tmp_path / "killed")
    other.dataset = squares
    pipeline.ensure_latents(other)
    for steps in kills:
        other.progress = KillAt(steps)
        with pytest.raises(KilledError):
            pipeline.ensure_model(other)
    other.progress = Progress()
    pipeline.ensure_model(other)
    for fold in range(2):
        assert weights(other, fold) == weights(fitted, fold)
    histories = [r.directory.record["stages"]["finetune"]["folds"] for r in (fitted, other)]
    for mine, theirs in zip(*histories, strict=True):
        for a, b in zip(mine["history"], theirs["history"], strict=True):
            assert a | {"seconds": 0} == b | {"seconds": 0}


def test_a_finished_fold_is_not_trained_again(fitted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the stage is lost, but the models know under which key they were made; another key trains anew."""
    pipeline.ensure_model(fitted)
    fitted.directory.record["stages"]["finetune"]["state"] = "interrupted"
    with monkeypatch.context() as patched:
        patched.setattr(Finetuner, "run", None)
        pipeline.ensure_model(fitted)
        assert fitted.directory.record["stages"]["finetune"]["steps"] == 9
        fitted.settings = fitted.settings.model_copy(update={"seed": 7})
        fitted.__dict__.pop("finetune_key")
        with pytest.raises(TypeError):
            pipeline.ensure_model(fitted)


def test_nothing_is_shared_when_that_is_asked_for(
    squares: LabelledImages, tiny_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = open_run(settings_for(tiny_folder, tiny_model, shared=0.0), tmp_path / "run")
    run.dataset = squares
    pipeline.ensure_latents(run)
    pipeline.ensure_model(run)
    assert run.directory.record["stages"]["finetune"]["steps"] == 12


@pytest.mark.parametrize("lost", ["fold-1", "shared", "fold-0/unet"])
def test_a_model_that_has_gone_is_made_anew(fitted: Run, lost: str) -> None:
    """The stage was done; of three models one is no longer there, or not whole: the same is there again after it."""

    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in fitted.directory.path("model").rglob("*.safetensors")}

    pipeline.ensure_model(fitted)
    before = content()
    shutil.rmtree(fitted.directory.path("model", lost))
    assert len(content()) < len(before) == 9
    pipeline.ensure_model(fitted)
    assert content() == before
    assert not fitted.directory.path("training", fitted.finetune_key).exists()


def test_images_are_classified_by_the_model_of_their_fold(fitted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image once, by the model that has not seen it; the two models differ."""
    pipeline.ensure_model(fitted)
    seen: dict[str, list[str]] = {}
    unit_maps = Scorer.unit_maps

    def spy(self: Scorer, jobs: Sequence[Job]) -> Any:
        for job in jobs:
            seen.setdefault(job.image_id, []).append(Path(self.denoiser.checkpoint.name).name)
        return unit_maps(self, jobs)

    with monkeypatch.context() as patched:
        patched.setattr(Scorer, "unit_maps", spy)
        classify_held_out(fitted, 2, Progress())
    assert seen == {image.image_id: [f"fold-{fitted.fold_of(image.image_id)}"] for image in fitted.dataset}
    job = Job(next(iter(seen)), fitted.dataset.labels)
    one, other = (passes.scorer(fitted, "classify", 2, fold).unit_maps([job])[0] for fold in range(2))
    assert (one - other).abs().max() > 1e-5


def test_a_whole_run_with_folds(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Every image is held out, is classified, and changing the number of folds scores again."""
    result = typicality.mine(tiny_folder, "folder", model=str(tiny_model), out=tmp_path / "run", **OPTIONS)
    assert all(result.images["held_out"].to_pylist())
    assert typicality.classify(result.folder, draws=2).n == 32
    keys = {name: entry["key"] for name, entry in result.record["stages"].items()}
    three = {**OPTIONS, "finetune": {**OPTIONS["finetune"], "folds": 3}}
    again = typicality.mine(result.folder, "folder", model=str(tiny_model), **three)
    for stage in ("finetune", "score", "refine", "mine"):
        assert again.record["stages"][stage]["key"] != keys[stage]
    assert set(result.clusters["p_value_method"].to_pylist()) == {"controls"}
    assert all(0 <= p <= 1 for p in result.clusters["adjusted_p_value"].to_pylist())
    assert result.record["stages"]["score"]["unet_evaluations"] == 32 * 2 * (2 + 1)
    assert json.loads((result.folder / "model" / "fold-2" / "training.json").read_text())["fold"] == 2


def test_one_fold_is_the_published_protocol(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Neither `folds` at 1 nor `shared` changes the key of the model, so runs made before them stay valid."""
    keys = set()
    for shared in (0.0, 0.5):
        run = open_run(settings_for(tiny_folder, tiny_model, folds=1, shared=shared), tmp_path / "run")
        keys.add(run.finetune_key)
    assert len(keys) == 1
    assert run.model_folder() == tmp_path / "run" / "model"
    assert 0 < len(run.held_out) < 32
    assert [w for w in run.warnings() if "in-sample" in w]
    old = FinetuneSettings(steps=6, batch_size=8, validate_every=2, validation_images=4).model_dump()
    assert set(run.settings.finetune.model_dump()) == set(old)


def test_histories_are_averaged_where_all_folds_have_them() -> None:
    found = mean_history([[{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5}], [{"step": 2, "loss": 3.0}]])
    assert found == [{"step": 2.0, "loss": 2.0}]
