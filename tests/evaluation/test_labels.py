"""Flipped labels: what is flipped, what is left out, and the measures by hand; at the end the whole benchmark."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.applications.mined import write_mined
from typicality.api import settings_for
from typicality.config import DatasetSettings, resolve
from typicality.dataset import load_dataset
from typicality.errors import InputError
from typicality.evaluation import labels as benchmark
from typicality.evaluation.labels import (
    TWO_FOLDS,
    confident_learning,
    confused_with,
    flipped_labels,
    issues_found,
    labels,
    measures,
    near_identical,
    relabelled,
    resampled_auroc,
    usable,
    variants,
)
from typicality.pipeline import mine
from typicality.run import Run

IDS = [f"image{i}" for i in range(400)]


def test_flips_are_many_enough_never_the_truth_and_repeatable():
    """10% of 400 images get another label; each of the three others about a third of the time."""
    truth = np.arange(400) % 4
    given = flipped_labels(IDS, truth, 4, 0.1, seed=0)
    assert (given != truth).sum() == 40
    assert set(given) <= {0, 1, 2, 3}
    assert np.array_equal(given, flipped_labels(IDS, truth, 4, 0.1, seed=0))
    assert not np.array_equal(given, flipped_labels(IDS, truth, 4, 0.1, seed=1))
    steps = np.bincount((flipped_labels(IDS, truth, 4, 0.4, seed=0) - truth) % 4, minlength=4)
    assert steps[0] == 240
    assert steps[1:].min() > 30


def test_which_images_are_flipped_does_not_depend_on_their_order():
    truth = np.arange(400) % 4
    order = np.random.default_rng(0).permutation(400)
    found = flipped_labels([IDS[i] for i in order], truth[order], 4, 0.1, seed=0)
    assert np.array_equal(found, flipped_labels(IDS, truth, 4, 0.1, seed=0)[order])


def test_confusable_flips_go_to_the_partner():
    """Label 0 is taken for 2 most often, 1 for 0, and 2 for 1."""
    truth = np.array([0, 0, 1, 2])
    probabilities = np.array([[0.6, 0.1, 0.3], [0.2, 0.3, 0.5], [0.3, 0.6, 0.1], [0.1, 0.4, 0.5]])
    partners = confused_with(probabilities, truth)
    assert partners.tolist() == [2, 0, 1]
    many = np.arange(400) % 3
    given = flipped_labels(IDS, many, 3, 0.2, seed=0, partners=partners)
    changed = given != many
    assert changed.sum() == 80
    assert np.array_equal(given[changed], partners[many[changed]])


@pytest.fixture
def designs(tmp_path: Path) -> DatasetSettings:
    """Four objects in two years: one unchanged, one nearly so, one redrawn, and one whose file is the very same."""
    rng = np.random.default_rng(0)
    rows = ["file_name,year,thing"]
    for thing in ("same", "near", "redrawn", "identical"):
        first = rng.integers(20, 230, (24, 24, 3)).astype(np.int16)
        second = {"same": first, "near": first + 1, "redrawn": 255 - first, "identical": first}[thing]
        for year, pixels in (("2001", first), ("2002", second)):
            name = f"{thing}-{year}.png"
            options = {"compress_level": 1} if (thing, year) == ("same", "2002") else {}  # other bytes, same pixels
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name, **options)
            rows.append(f"{name},{year},{thing}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    return DatasetSettings(source=str(tmp_path), label="year", group="thing")


def test_near_identical_images_of_a_group(designs: DatasetSettings):
    """`same` differs by 0 and `near` by 1 of 255, `redrawn` by far more."""
    dataset = load_dataset(designs)
    names = {image.image_id: image.file_name for image in dataset}

    def things(distance: float) -> set[str]:
        return {names[i].split("-")[0] for i in near_identical(dataset, distance)}

    assert things(0.5) == {"same"}
    assert things(2) == {"same", "near"}
    assert things(255) == {"same", "near", "redrawn"}
    kept, excluded = usable(dataset, 2)
    assert {i.group for i in kept} == {"redrawn"}
    assert excluded == {"several labels": 1, "near-identical": 4}
    assert len(usable(dataset, None)[0]) == 6


def test_too_little_left_is_an_error(designs: DatasetSettings):
    with pytest.raises(InputError, match="left to flip"):
        usable(load_dataset(designs), 255)


def test_relabelling_changes_the_fingerprint_and_nothing_else(designs: DatasetSettings):
    clean, _ = usable(load_dataset(designs), None)
    truth = np.array([clean.labels.index(i.labels[0]) for i in clean])
    same, other = relabelled(clean, truth), relabelled(clean, 1 - truth)
    assert same.fingerprint == clean.fingerprint
    assert other.fingerprint != clean.fingerprint
    assert [i.image_id for i in other] == [i.image_id for i in clean]
    assert [i.labels[0] for i in other] == [clean.labels[1 - t] for t in truth]


def test_measures_by_hand():
    """Ranking wrong, right, wrong, right, right: 5 of 6 pairs in order; AP = (1 + 2/3) / 2; one of the first two."""
    flipped = np.array([True, False, True, False, False])
    found = measures(np.array([5.0, 4, 3, 2, 1]), flipped)
    assert found == {"auroc": 0.8333, "average_precision": 0.8333, "precision_at_flips": 0.5}


def test_ties_and_infinite_scores_are_measured_fairly():
    """All scores equal say nothing: every measure is at its chance level, whatever the order."""
    flipped = np.array([True, False, False, False])
    assert measures(np.full(4, -np.inf), flipped) == {
        "auroc": 0.5, "average_precision": 0.25, "precision_at_flips": 0.25,
    }  # fmt: skip
    assert measures(np.zeros(4), np.zeros(4, dtype=bool)) == {}


def test_bootstrap_weights_count_images():
    """Without the only pair that is out of order, the ranking is perfect."""
    score, flipped = np.array([3.0, 2, 1]), np.array([True, False, True])
    found = resampled_auroc(score, flipped, np.array([[1, 1, 1], [2, 1, 0], [0, 3, 0]]))
    assert found.tolist() == [0.5, 1.0, 0.5]


def test_variants_see_a_bias_that_the_margin_does_not():
    """Scores of three labels with a constant advantage of label 0: calibration takes it out."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 400)
    given = flipped_labels(IDS, truth, 3, 0.1, seed=0)
    means = rng.normal(0, 0.7, (400, 3)) + 2 * np.eye(3)[truth] + [3, 0, 0]
    found = variants(means, given, IDS, np.full((400, 3), 1 / 3), seed=0)
    flipped = given != truth
    margin, calibrated = (measures(found[name], flipped)["auroc"] for name in ("margin", "calibrated"))
    assert calibrated > 0.9
    assert calibrated > margin + 0.05


def test_confident_learning_finds_what_a_good_classifier_contradicts():
    pytest.importorskip("cleanlab")
    truth = np.arange(400) % 4
    given = flipped_labels(IDS, truth, 4, 0.1, seed=0)
    probabilities = 0.8 * np.eye(4)[truth] + 0.05
    flipped = given != truth
    found = confident_learning(given, probabilities)
    assert len(found) == 5
    assert all(measures(score, flipped)["auroc"] == 1 for score in found.values())
    assert issues_found(given, probabilities, flipped) == {"n": 40, "precision": 1.0, "recall": 1.0}


def test_a_missing_cleanlab_is_named(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(InputError, match=r"typicality\[evidence\]"):
        benchmark._need_cleanlab()


@pytest.mark.parametrize("flip", [0, 0.5, -1])
def test_impossible_shares(flip: float):
    with pytest.raises(InputError, match="--flip"):
        labels(resolve({}), flip=flip)


@pytest.mark.parametrize("draws", [2, 5])
def test_too_few_draws_are_refused_before_any_work(draws: int):
    with pytest.raises(InputError, match="--draws"):
        labels(resolve({"dataset": {"source": "nowhere"}}), draws=draws)


def test_two_folds_unless_this_call_names_a_number(tiny_folder: Path, tmp_path: Path):
    """What a run has recorded is no choice of this call: it has a number of folds in any case."""
    run = write_mined(tmp_path / "run", tiny_folder)
    assert settings_for(run, usual=TWO_FOLDS).finetune.folds == 2
    assert settings_for(run, usual=TWO_FOLDS, folds=None, finetune={"steps": 3}).finetune.folds == 2
    for folds in (1, 3):
        assert settings_for(run, usual=TWO_FOLDS, finetune={"folds": folds}).finetune.folds == folds
        (tmp_path / "own.yaml").write_text(f"finetune: {{folds: {folds}}}")
        assert settings_for(run, usual=TWO_FOLDS, config=tmp_path / "own.yaml").finetune.folds == folds


@pytest.mark.slow
def test_the_whole_benchmark(
    tiny_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every measure is there and in range, the true labels are never trained on, and a second call repeats it."""
    pytest.importorskip("cleanlab")
    trained: dict[str, tuple[str, ...]] = {}
    real = benchmark.ensure_model

    def watched(run: Run) -> None:
        trained.update({image.image_id: image.labels for image in run.dataset})
        real(run)

    monkeypatch.setattr(benchmark, "ensure_model", watched)
    settings = resolve(
        {
            "dataset": {"source": str(tiny_folder), "label": "folder"},
            "model": {"name": str(tiny_model), "dtype": "fp32"},
            "finetune": {"steps": 4, "batch_size": 8, "validate_every": 2, "folds": 2},
            "mine": {"noises": 1},
        }
    )
    out = tmp_path / "labels"
    found = labels(settings, out, flip=0.2, how="confusable", draws=4, picture=tmp_path / "roc.png")
    assert (found.n, found.flips, found.folds, found.how) == (32, 6, 2, "confusable")
    truth = {image.image_id: image.labels for image in load_dataset(settings.dataset)}
    assert sum(trained[image_id] != own for image_id, own in truth.items()) == 6
    for name in ("auroc", "average_precision", "precision_at_flips"):
        assert 0 <= getattr(found, name) <= 1
        assert 0 <= found.confident_learning[name] <= 1
    assert set(found.variants) == {"losses", "margin", "calibrated", "combined"}
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["n"] == 32
    assert (tmp_path / "roc.png").stat().st_size > 1000
    assert found.unet_evaluations > 0
    again = labels(settings, out, flip=0.2, how="confusable", draws=4)
    assert again.auroc == found.auroc
    assert math.isclose(again.temperature, found.temperature)
    with pytest.raises(InputError, match="flipped"):
        mine(settings, out)
