"""What a run reuses is named by all that it depends on, and by nothing else: every setting changes just these keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tiny_checkpoint
from typicality.config import Settings, merge, resolve
from typicality.dataset import LabelledImages, load_dataset
from typicality.pipeline import FIRST_PASS, ensure_elements
from typicality.run import Run
from typicality.store import RunDirectory

ALL = "latents training scores mine"
SETTINGS: dict[str, tuple[Any, str]] = {
    "prompt.template": ("{label}", "training scores mine"),
    "prompt.null": ("a thing", "training scores mine"),
    "model.name": ("", ""),  # these three by the hash of what was loaded
    "model.revision": ("main", ""),
    "model.lora": ("adapter", ""),
    "model.size": (48, ALL),
    "model.max_aspect": (3.0, ALL),
    "model.device": ("cpu", ""),
    "model.dtype": ("bf16", ALL),
    "model.engine": ("torch", ""),
    "model.offline": (True, ""),
    "finetune.enabled": (False, "training scores mine"),
    "finetune.folds": (2, "training mine"),  # scores by the weights that come of it
    "finetune.shared": (0.5, ""),  # there are no folds
    "finetune.label_blocks": (1, "training mine"),  # what it saves is spent on fresh draws
    **{
        f"finetune.{name}": (value, "training")
        for name, value in {
            "method": "lora", "lora_rank": 4, "train_text_encoder": True, "steps": 9, "minutes": 1.0, "batch_size": 8,
            "micro_batch": 2, "rate": 1e-3, "cross_attention_rate": 3.0, "contrast": 1.0,
            "weight_decay": 0.1, "warmup": 0.1, "schedule": "constant", "dropout": 0.2, "flip": True, "shift": 1,
            "ema": 0.9, "clip": 2.0, "held_out": 0.3, "validate_every": 5, "validation_images": 9, "patience": 2,
        }.items()
    },
    "score.protocol": ("uniform", "scores mine"),
    "score.draws": (6, "scores mine"),
    "score.tilt": (0.5, "scores mine"),
    "score.t_min": (0.2, "training scores mine"),
    "score.t_max": (0.6, "training scores mine"),
    **{
        f"score.{name}": (value, "mine")
        for name, value in {
            "precision": "fast", "overlap": 0.5, "rounds": 1, "further_draws": 1.0, "refine_draws": 8, "contrast": 1,
            "controls": 3, "batch_size": 7, "shard_images": 7,
        }.items()
    },
    **{
        f"mine.{name}": (value, "mine")
        for name, value in {
            "patch": 8, "per_image": 2, "per_label": 9, "share": 0.5, "clusters": 3, "timestep": 99, "up_block": 0,
            "noises": 2, "merge_similarity": 0.9, "min_images": 2,
        }.items()
    },
    **{f"report.{name}": (value, "") for name, value in {
        "title": "t", "clusters": 2, "columns": 3, "images": 4, "budget_mb": 2.0,
    }.items()},
    "seed": (1, "training scores mine"),
}  # fmt: skip
"""Setting -> another value than the default, and the keys that it changes."""
APART = {"finetune.keep": "asks for the key of the models that are there"}


class AskedFor(BaseException):
    """The key under which a stage was looked for."""


@pytest.fixture(scope="module")
def squares(tiny_folder: Path) -> LabelledImages:
    return load_dataset(resolve({"dataset": {"source": str(tiny_folder), "label": "folder"}}).dataset)


@pytest.fixture
def keys(squares: LabelledImages, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function of changes and of the hash of the base: the keys of a run that has been fine-tuned, by name."""

    def ask(directory: RunDirectory, stage: str, key: str) -> bool:
        raise AskedFor(key)

    monkeypatch.setattr(RunDirectory, "is_done", ask)

    base = tiny_checkpoint()

    def found(changes: dict[str, Any], base_hash: str = "base") -> dict[str, str]:
        plain = {"model": {"name": str(tiny_model), "dtype": "fp32"}, "prompt": {"null": "an image"}}
        settings = resolve(merge(plain, changes))
        run = Run(settings, squares, RunDirectory(tmp_path))
        run.directory.record["stages"]["finetune"] = {"state": "done", "key": "k", "weights": "tuned"}
        run.__dict__["_loaded"] = (base, base_hash)
        with pytest.raises(AskedFor) as mine:
            ensure_elements(run)
        return {
            "latents": run.latents.folder.name, "training": run.training_key,
            "scores": run.score_folder(FIRST_PASS, run.first_draws).name, "mine": str(mine.value),
            "finetune": run.finetune_key,
        }  # fmt: skip

    return found


def layer_of(name: str, value: Any) -> dict[str, Any]:
    section, _, setting = name.rpartition(".")
    return {section: {setting: value}} if section else {setting: value}


def test_every_setting_changes_the_keys_of_what_depends_on_it(keys: Any, tiny_model: Path) -> None:
    before = keys({})
    for name, (value, changed) in SETTINGS.items():
        value = str(tiny_model) + "/." if name == "model.name" else value
        after = keys(layer_of(name, value))
        assert {key for key in before if after[key] != before[key]} - {"finetune"} == set(changed.split()), name
        assert (after["finetune"] != before["finetune"]) == ("training" in changed), name


def test_every_setting_but_those_of_the_data_is_considered() -> None:
    """A new setting is to be entered above. Those of the data act on images, labels and groups, which are hashed."""
    sections = {name: field.annotation for name, field in Settings.model_fields.items() if name != "dataset"}
    names = {
        f"{section}.{name}" if hasattr(kind, "model_fields") else section
        for section, kind in sections.items()
        for name in getattr(kind, "model_fields", [""])
    }
    assert names == set(SETTINGS) | set(APART)


def test_what_changes_where_there_are_folds(keys: Any) -> None:
    """The share of the steps that folds have in common counts as soon as there are any."""
    before, after = keys({"finetune": {"folds": 2}}), keys({"finetune": {"folds": 2, "shared": 0.5}})
    assert {key for key in before if after[key] != before[key]} == {"training", "finetune"}


def test_tests_against_other_controls_are_made_anew(keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of the program may choose others; where there are none, nothing depends on them."""
    one, two = {"finetune": {"folds": 2}}, {}
    before = [keys(changes) for changes in (one, two)]
    monkeypatch.setattr("typicality.plan.choose_controls", lambda dataset, number: {"red": [dataset[0].image_id]})
    after = [keys(changes) for changes in (one, two)]
    changed = [{key for key in b if a[key] != b[key]} for a, b in zip(after, before, strict=True)]
    assert changed == [{"mine"}, set()]


def test_another_base_or_grouping(keys: Any) -> None:
    before = keys({})
    assert all(after != before[key] for key, after in keys({}, base_hash="other").items())
    after = keys({"dataset": {"group": "folder"}})
    assert {key for key in before if after[key] != before[key]} == {"training", "finetune"}


@pytest.mark.parametrize("words", ["length", "vocabulary"])
def test_another_tokenizer_is_another_model(words: str) -> None:
    """It makes other tokens of the same prompt, so that the same weights predict something else."""
    one = tiny_checkpoint()
    before = one.weights_hash()
    if words == "length":
        one.tokenizer.model_max_length -= 1
    else:
        one.tokenizer.add_tokens(["sixty"])
    assert one.weights_hash() != before
