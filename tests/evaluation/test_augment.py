"""Whether synthetic images help: the learners on cases whose answer is known, and the benchmark on a tiny run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import typicality
from tests.applications.redesigned import mine
from typicality.applications.augment.options import AugmentOptions
from typicality.cli.app import run as command
from typicality.errors import InputError
from typicality.evaluation import augment as module
from typicality.evaluation.augment import (
    CONTRASTIVE,
    ROWS,
    AugmentBenchmark,
    evaluate_augment,
    few_images,
    held_out_images,
    mean_and_error,
)
from typicality.evaluation.fewshot import (
    Chances,
    Draw,
    Few,
    applied,
    classically,
    fixed_features,
    nearest_similarity,
    supervised_contrastive,
    train_cnn,
    train_contrastive,
    train_linear,
)
from typicality.run import Run, open_finished

pytestmark = pytest.mark.slow

OPTIONS = AugmentOptions(per_image=1, strength=0.6, steps=2, draws=4)
WORK = {"per_label": 4, "seeds": 2, "train_steps": 4}
WORDS = ["--per-label", "4", "--seeds", "2", "--train-steps", "4", "--per-image", "1", "--sampler-steps", "2"]


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mine(tmp_path_factory.mktemp("evaluate-augment"), tiny_model)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return open_finished(folder, "finetune")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another data set: flat colours, with two labels."""
    from PIL import Image

    root = tmp_path_factory.mktemp("strangers")
    for label in ("a", "b"):
        (root / label).mkdir()
        for i in range(4):
            Image.new("RGB", (48, 32), (40 * i, 255 - 40 * i, 90 if label == "a" else 10)).save(
                root / label / f"{i}.png"
            )
    return root


@pytest.fixture(scope="module")
def result(folder: Path, strangers: Path) -> AugmentBenchmark:
    return evaluate_augment(folder, OPTIONS, **WORK, ood=str(strangers))


def coloured(n: int, seed: int = 0) -> Few:
    """Noise, brighter in red for label 1; each has a variant that is flat white."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    pictures = rng.uniform(-0.2, 0.2, (n, 3, 16, 16)).astype(np.float32)
    pictures[:, 0] += labels[:, None, None] * 0.8
    return Few(torch.from_numpy(pictures), torch.from_numpy(labels), [torch.ones(1, 3, 16, 16)] * n)


# ------------------------------------------------------------------------------------------------------ the loss


def test_the_loss_of_four_by_hand():
    """Labels 0, 0, 1, 1 on orthogonal axes, tau = 1: of each anchor one cosine is 1 (its positive) and two are 0.

    L = -log(e / (e + 2)) without negatives; one that is orthogonal to all adds 1 to the denominator.
    """
    z = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 1.0, 0], [0, 3.0, 0]])
    labels = torch.tensor([0, 0, 1, 1])
    without = supervised_contrastive(z, labels, z[:0], 1.0)
    assert float(without) == pytest.approx(math.log((math.e + 2) / math.e), rel=1e-5)
    with_one = supervised_contrastive(z, labels, torch.tensor([[0, 0, 5.0]]), 1.0)
    assert float(with_one) == pytest.approx(math.log((math.e + 3) / math.e), rel=1e-5)


def test_an_anchor_without_a_positive_does_not_count():
    z = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([0, 0, 1])
    pair = z @ z.T
    expected = [torch.logsumexp(pair[i, [j for j in range(3) if j != i]], 0) - pair[0, 1] for i in (0, 1)]
    assert float(supervised_contrastive(z, labels, z[:0], 1.0)) == pytest.approx(float(sum(expected)) / 2, rel=1e-5)
    assert float(supervised_contrastive(z, torch.arange(3), z[:0], 1.0)) == 0


def test_negatives_are_pushed_away():
    """One step against the gradient lowers the cosine of a negative to the anchors."""
    z = torch.tensor([[1.0, 0.2], [1.0, -0.2]])
    negative = torch.tensor([[1.0, 0.5]], requires_grad=True)
    supervised_contrastive(z, torch.tensor([0, 0]), negative, 0.5).backward()
    assert negative.grad is not None
    moved = negative - 0.1 * negative.grad

    def cosine(x: torch.Tensor) -> float:
        return float(F.cosine_similarity(x, z.mean(0, keepdim=True)).detach())

    assert cosine(moved) < cosine(negative)


# -------------------------------------------------------------------------------------------------- the learners


def test_variants_replace_half_of_the_images():
    """400 draws of an image with a white variant: half are white, of 400 within 4 standard errors; else none are."""
    few = coloured(2)
    rows = np.zeros(400, dtype=int)
    mixed = few.draw(rows, Chances.of(0), classical=False, synthetic=True, flip=False)
    share = float((mixed == 1).flatten(1).all(1).float().mean())
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(400)
    real = few.draw(rows, Chances.of(0), classical=False, synthetic=False, flip=False)
    assert torch.equal(real, few.pictures[rows])
    nothing_kept = replace(few, variants=[few.pictures[:0]] * 2)
    assert torch.equal(nothing_kept.draw(rows, Chances.of(0), False, True, False), few.pictures[rows])


def test_rows_differ_in_what_they_are_given_alone():
    """All rows see the same real images, shifts and noise, batch after batch: variants that are copies of their source
    are drawn half of the time and change nothing, bit for bit.
    """
    few = coloured(8)
    copies = replace(few, variants=[p.repeat(i % 4, 1, 1, 1) for i, p in enumerate(few.pictures)])
    rows: dict[str, list[list[int]]] = {name: [] for name in ROWS}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in ROWS}

    def draw_for(name: str) -> Draw:
        classical, synthetic = ROWS[name]

        def draw(own: np.ndarray, chances: Any) -> torch.Tensor:
            rows[name].append(own.tolist())
            seen[name].append(copies.draw(own, chances, classical=classical, synthetic=synthetic, flip=False))
            return seen[name][-1]

        return draw

    for name in ROWS:
        train_cnn(copies, draw_for(name), 2, 3, seed=0)
        train_linear(copies, draw_for(name), 0, fixed_features)
    assert len(rows["real"]) == 3 + 8
    assert all(rows[name] == rows["real"] for name in ROWS)
    for name, other in (("variants", "real"), ("classical+variants", "classical")):
        assert all(torch.equal(a, b) for a, b in zip(seen[name], seen[other], strict=True))


def test_classical_augmentation_moves_and_adds_noise():
    """A white column at 5 of 16 moves by at most 4 pixels, to 1 ... 9; mirrored it is at 6 ... 14."""
    picture = torch.full((64, 3, 16, 16), -1.0)
    picture[..., 5] = 1.0
    moved = classically(picture, np.random.default_rng(0), flip=False)
    columns = moved.mean((1, 2)).argmax(1)
    assert 1 <= int(columns.min()) < int(columns.max()) <= 9
    assert len(set(columns.tolist())) > 3
    mirrored = classically(picture, np.random.default_rng(0), flip=True).mean((1, 2)).argmax(1)
    assert int(mirrored.max()) > 9


def test_all_learners_learn_a_colour():
    few, test = coloured(16), coloured(40, seed=1)
    draw = partial(few.draw, classical=True, synthetic=False, flip=False)
    model = train_cnn(few, draw, 2, 40, seed=0)
    assert (applied(model, test.pictures).argmax(1) == test.labels.numpy()).mean() > 0.95
    linear = train_linear(few, draw, 0, fixed_features)
    assert (linear.predict(fixed_features(test.pictures)) == test.labels.numpy()).mean() > 0.95
    encoder = train_contrastive(few, draw, 40, 0, few.pictures[:0])
    features = partial(applied, encoder)
    assert (train_linear(few, draw, 0, features).predict(features(test.pictures)) == test.labels.numpy()).mean() > 0.95


def test_learners_repeat_themselves():
    few = coloured(8)
    draw = partial(few.draw, classical=True, synthetic=True, flip=False)
    first, second = (applied(train_cnn(few, draw, 2, 3, seed=5), few.pictures) for _ in range(2))
    assert (first == second).all()
    assert (applied(train_cnn(few, draw, 2, 3, seed=6), few.pictures) != first).any()


def test_what_is_known_is_nearest():
    known = np.array([[1.0, 0.0], [0.0, 2.0]])
    found = nearest_similarity(np.array([[5.0, 0.0], [-1.0, -1.0], [1.0, 1.0]]), known)
    assert found == pytest.approx([1, -math.sqrt(0.5), math.sqrt(0.5)])


# ------------------------------------------------------------------------------------------------- the benchmark


def test_errors_add_groups_and_seeds():
    """Two seeds of 4 images in 4 groups: means 0.5 and 1, so 0.25 over seeds; per image 1, 1, .5, .5: sqrt(1/48)."""
    hits = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    mean, error = mean_and_error(hits, ["a", "b", "c", "d"])
    assert mean == 0.75
    assert error == pytest.approx(math.hypot(0.25, math.sqrt(1 / 48)))
    assert mean_and_error(hits[:1], ["a", "b", "c", "d"])[1] == pytest.approx(math.sqrt(1 / 12))


def test_few_images_are_training_images_and_change_with_the_seed(run: Run):
    held_out = {i.group for i in held_out_images(run)}
    first, second = (few_images(run.dataset, 0.2, 4, seed) for seed in range(2))
    for chosen in (first, second):
        assert [i.labels for i in chosen] == [("2016",)] * 4 + [("2024",)] * 4
        assert not held_out & {i.group for i in chosen}
    assert {i.image_id for i in first} != {i.image_id for i in second}
    assert first[:2] == few_images(run.dataset, 0.2, 2, 0)[:2]


def test_all_rows_are_there(result: AugmentBenchmark, run: Run):
    names = {(row["learner"], row["name"]) for row in result.rows}
    assert names == {
        *((learner, name) for learner in ("cnn", "linear on pixels") for name in ROWS),
        *(("linear on contrastive", name) for name in CONTRASTIVE),
    }
    by = {(row["learner"], row["name"]): row for row in result.rows}
    assert by["cnn", "classical"]["difference"] == by["cnn", "classical"]["difference_error"] == 0
    both = by["cnn", "classical+variants"]
    assert both["accuracy"] == result.accuracy
    assert both["difference"] == result.gain == pytest.approx(result.accuracy - by["cnn", "classical"]["accuracy"])
    assert by["linear on contrastive", "contrastive+negatives"]["difference"] == result.accuracy_gain_negatives
    assert all(0 <= row["auroc"] <= 1 for row in result.rows if row["learner"] != "linear on pixels")
    assert (result.n, result.chance, result.n_ood) == (len(held_out_images(run)), 0.5, 8)
    sources = {i.image_id for seed in range(2) for i in few_images(run.dataset, 0.2, 4, seed)}
    assert result.made == {"variants": len(sources), "negatives": len(sources)}
    assert result.generator_images == len(run.trained_on or ())
    json.dumps(result.as_dict(), allow_nan=False)


def test_variants_that_are_all_refused_change_nothing(folder: Path, strangers: Path):
    """Nothing is far enough from its source: the rows with variants are those without, hit by hit."""
    options = replace(OPTIONS, near=8.0, far=9.0)
    found = evaluate_augment(folder, options, **WORK, negatives=False, ood=str(strangers))
    assert found.kept == {"variants": 0}
    by = {(row["learner"], row["name"]): row for row in found.rows}
    assert (found.gain, found.gain_error) == (0, 0)
    assert by["cnn", "variants"]["accuracy"] == by["cnn", "real"]["accuracy"]
    assert (found.auroc_gain, found.accuracy_gain_negatives) == (None, None)


def test_nothing_is_made_twice(
    folder: Path, strangers: Path, result: AugmentBenchmark, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("typicality.applications.augment.run.make", None)  # nothing may call it
    again = evaluate_augment(folder, OPTIONS, **WORK, ood=str(strangers))
    assert replace(again, seconds=0) == replace(result, seconds=0)


def test_models_that_have_seen_the_held_out_part_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Run, "folds", 2)
    with pytest.raises(InputError, match="folds"):
        held_out_images(run)
    monkeypatch.setattr(Run, "folds", 1)
    seen = replace(run)
    seen.__dict__["held_out"] = frozenset()
    with pytest.raises(InputError, match="no image is held out"):
        held_out_images(seen)


def test_a_label_without_images_is_refused(run: Run):
    everything_else = tuple(i for i in run.dataset if i.labels == ("2016",) or i.group in ("b0",))
    with pytest.raises(InputError, match="'2024'"):
        few_images(replace(run.dataset, images=everything_else), 0.2, 4, 0)


def test_the_command_writes_what_it_prints(
    folder: Path, strangers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "augment.json"
    words = ["evaluate", "augment", str(folder), *WORDS, "--draws", "4", "--ood", str(strangers), "--strength", "0.6"]
    assert command([*words, "--json", "-q", "--write", str(out), "--at-least", "accuracy=1.01"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(out.read_text())
    assert {"accuracy", "gain", "gain_error", "auroc_gain", "generator_images"} <= set(document)


def test_a_dry_run_does_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Of both kinds one picture a source: 2 steps x 2 prompts + 2 x 4 draws x 3."""
    monkeypatch.setattr(module, "open_finished", None)  # nothing may call it
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert command(["evaluate", "augment", str(folder), *WORDS, "--draws", "4", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["UNet evaluations at most"] == plan["sources"] * 2 * (4 + 24)
    assert plan["networks to train"] == 2 * 6
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_strangers_that_are_the_runs_own(folder: Path):
    with pytest.raises(InputError, match="--ood"):
        evaluate_augment(folder, OPTIONS, **WORK, ood=str(folder))


def test_strangers_that_cannot_be_read(folder: Path):
    """The message names the option, and the data set's own complaint: two columns could be its label."""
    with pytest.raises(InputError, match=r"--ood .*which column"):
        evaluate_augment(folder, OPTIONS, **WORK, ood=str(folder.parent / "subjects"))


def test_from_python(folder: Path, strangers: Path):
    found = typicality.evaluate_augment(
        folder, per_label=4, seeds=1, train_steps=2, negatives=False, ood=str(strangers), per_image=1, strength=0.6,
        steps=2, draws=4,
    )  # fmt: skip
    assert found.seeds == 1
    assert 0 <= found.accuracy <= 1
