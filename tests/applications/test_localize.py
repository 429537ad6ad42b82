"""Maps, boxes and masks: squares whose place is known, answers worked out by hand, and a tiny model end to end."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from typicality import metrics
from typicality.applications.localize import localize, plan_of
from typicality.applications.localize.choose import best_threshold, choose, otsu, separability
from typicality.applications.localize.distance import Memory, distance_maps, reference_images
from typicality.applications.localize.maps import (
    ALL_PARTS,
    GIVEN,
    MEANINGS,
    PUBLISHED,
    Kitchen,
    Recipe,
    default_recipe,
    families,
    upsampled,
    variants,
)
from typicality.applications.localize.passes import Evidence, Pass, collect
from typicality.applications.localize.places import places
from typicality.applications.localize.thresholds import references_of, unsupervised
from typicality.applications.localize.truth import (
    boxes_tell_labels,
    cell_shares,
    truths_of,
    turns_of,
    validation_part,
)
from typicality.applications.localize.work import Options, _safe, parts_of, requests_of
from typicality.cli.app import run as command
from typicality.config import Settings
from typicality.dataset.view import view_of
from typicality.errors import DatasetError, InputError, OutputError
from typicality.evaluation.localize import RIVALS
from typicality.evaluation.localize import localize as evaluate
from typicality.passes import scorer
from typicality.pipeline import ensure_latents, finetune, mine
from typicality.progress import Progress
from typicality.records import LabelledImage, ModelView
from typicality.run import Run, open_run, resolve_settings
from typicality.scoring.noise import DrawPlan
from typicality.scoring.scorer import Job

LABELS = ("dot", "bar")


@pytest.fixture(scope="session")
def marked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labels of grey noise: `clean`; `dot` with a bright square; `bar` with a dark bar. Masks show where."""
    root = tmp_path_factory.mktemp("marked")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    rows = ["file_name,label,mask,part"]
    for label in ("clean", *LABELS):
        for i in range(8):
            height, width = (40, 40) if i % 4 else (40, 56)
            pixels = rng.integers(110, 140, (height, width), dtype=np.uint8)
            mask = np.zeros((height, width), np.uint8)
            y, x = rng.integers(0, height - 14), rng.integers(0, width - 20)
            if label != "clean":
                area = np.s_[y : y + 12, x : x + 12] if label == "dot" else np.s_[y : y + 6, x : x + 20]
                pixels[area], mask[area] = (240, 255) if label == "dot" else (10, 255)
            Image.fromarray(pixels).save(root / "images" / f"{label}{i}.png")
            Image.fromarray(mask).save(root / "masks" / f"{label}{i}.png")
            rows.append(f"images/{label}{i}.png,{label},masks/{label}{i}.png,{label}{i // 2}")
    (root / "metadata.csv").write_text("\n".join(rows))
    return root


def settings_for(folder: Path, model: Path, **sections):
    return resolve_settings(
        str(folder),
        None,
        [
            {
                "dataset": {"label": "label", "masks": "mask", "group": "part"},
                "model": {"name": str(model), "dtype": "fp32"},
            },
            sections,
        ],
    )


@pytest.fixture
def run_folder(marked_folder: Path, tiny_model: Path, tmp_path: Path) -> Path:
    """A run of the tiny model without fine-tuning, with latents only."""
    run = open_run(settings_for(marked_folder, tiny_model, finetune={"enabled": False}), tmp_path / "run")
    with run.directory.lock():
        ensure_latents(run)
        run.directory.save()
    return tmp_path / "run"


@pytest.fixture(scope="module")
def tuned_folder(marked_folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny model, fine-tuned for two steps without seven tenths of the groups. Read only."""
    sections = {"finetune": {"steps": 2, "batch_size": 4, "held_out": 0.7, "validation_images": 2}}
    folder = tmp_path_factory.mktemp("tuned") / "run"
    finetune(settings_for(marked_folder, tiny_model, **sections), folder)
    return folder


def reopened(folder: Path) -> Run:
    run = open_run(resolve_settings(str(folder)), folder)
    ensure_latents(run)
    return run


def evidence_of(cells: np.ndarray, name: str = "a", label: str = "dot") -> Evidence:
    """Evidence with every map the same but for a factor of its own."""
    view = view_of(cells.shape[1] * 4, cells.shape[0] * 4, min(cells.shape) * 4, 4, 2.0)
    names = (
        "error", "typicality", "shift", "bias", "label_bias", "mean_shift", "reference_typicality", "reference_bias",
        "reference_shift", "reference_distance", "plain_typicality", "plain_shift",
    )  # fmt: skip
    return Evidence(name, label, view, {n: (cells * (k + 1))[None].astype(np.float32) for k, n in enumerate(names)})


# ------------------------------------------------------------------------------------------------- evidence


def test_a_pass_agrees_with_the_scorer_on_what_both_measure(run_folder: Path):
    """T, D^2 and L(null) of the same draws; only the purpose of the noise differs, so it is set alike."""
    run = reopened(run_folder)
    labels, image_id = run.dataset.labels, run.dataset[0].image_id
    plan = DrawPlan(4, 0.1, 0.7)
    states = run.denoiser.encode_prompts(run.prompts.of_all(labels))
    mine = Pass(run.denoiser, run.latents, states, labels, plan, 0, "clean", batch_size=16)
    rows = {label: maps for _, label, maps in mine([(image_id, LABELS)])}
    other = replace(scorer(run, "localize 0.1-0.7", 8), plan=plan)
    gains, shifts, losses, _ = other.unit_maps([Job(image_id, (*LABELS, "clean"))])
    for j, label in enumerate(LABELS):
        np.testing.assert_allclose(rows[label]["typicality"], gains[0, j].mean(0), atol=1e-5)
        np.testing.assert_allclose(rows[label]["shift"], shifts[0, j].mean(0), atol=1e-5)
        np.testing.assert_allclose(rows[label]["error"], losses[0].mean(0), rtol=1e-4)
        np.testing.assert_allclose(rows[label]["reference_typicality"], gains[0, 2].mean(0), atol=1e-5)


def test_the_bias_is_at_most_the_error_and_the_mean_shift_at_most_the_shift(run_folder: Path):
    """|E r|^2 <= E|r|^2, in every cell; a random model has variance, so they are not equal."""
    run = reopened(run_folder)
    with run.directory.lock():
        found = collect(run, [(run.dataset[0].image_id, LABELS)], "clean", [(0.1, 0.4), (0.4, 0.7)], 4)
    for e in found:
        assert e.maps["error"].shape[0] == 2
        assert (e.maps["bias"] < e.maps["error"]).all()
        assert (e.maps["mean_shift"] <= e.maps["shift"] * (1 + 1e-5)).all()


def test_evidence_depends_on_neither_batch_nor_company(run_folder: Path):
    """One image alone, in batches of two, and after all the others have been drawn: the same maps."""
    run = reopened(run_folder)
    dots = [i.image_id for i in run.dataset if i.labels == ("dot",)]
    with run.directory.lock():
        together = {e.image_id: e for e in collect(run, [(i, ("dot",)) for i in dots], "clean", [(0.1, 0.7)], 4)}
    states = run.denoiser.encode_prompts(run.prompts.of_all(run.dataset.labels))
    alone = Pass(run.denoiser, run.latents, states, run.dataset.labels, DrawPlan(2, 0.1, 0.7), 0, "clean", 2)
    for image_id in dots[:3]:
        [(_, _, maps)] = alone([(image_id, ("dot",))])
        for name, values in maps.items():
            np.testing.assert_allclose(together[image_id].maps[name][0], values, atol=1e-5)


def test_what_was_drawn_is_not_drawn_again(run_folder: Path):
    run = reopened(run_folder)
    ids = sorted(i.image_id for i in run.dataset if i.labels == ("dot",))
    with run.directory.lock():
        first = collect(run, [(ids[0], ("dot",))], "clean", [(0.1, 0.7)], 4)
        before = run.denoiser.evaluations
        both = collect(run, [(i, ("dot",)) for i in ids[:2]], "clean", [(0.1, 0.7)], 4)
        # one image, three prompts, four draws; its features and those of the eight clean images, four noises each
        assert run.denoiser.evaluations - before == 3 * 4 + 4 * (1 + 8)
        again = collect(run, [(i, ("dot",)) for i in ids[:2]], "clean", [(0.1, 0.7)], 4)
        assert run.denoiser.evaluations - before == 3 * 4 + 4 * (1 + 8)
    np.testing.assert_array_equal(first[0].maps["error"], both[0].maps["error"])
    np.testing.assert_array_equal(again[1].maps["error"], both[1].maps["error"])


def test_what_has_gone_is_drawn_again(run_folder: Path):
    """Arrays of one shard, then all of the folders with their indexes: the same maps as before."""
    run = reopened(run_folder)
    requests = [(sorted(i.image_id for i in run.dataset if i.labels == ("dot",))[2], ("dot",))]
    with run.directory.lock():
        [before] = collect(run, requests, "clean", [(0.1, 0.5)], 4)
        for lost in ("*/*.safetensors", "*/*"):
            for path in run.directory.path("scores").glob(lost):
                path.unlink()
            [again] = collect(run, requests, "clean", [(0.1, 0.5)], 4)
            assert before.maps.keys() == again.maps.keys()
            for name, maps in before.maps.items():
                np.testing.assert_array_equal(again.maps[name], maps)


def test_distances_of_another_measure_are_measured_anew(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The stage was done, but what it left is stored under the measure's name."""
    run = reopened(run_folder)
    image_id = next(i.image_id for i in run.dataset if i.labels == ("dot",))
    with run.directory.lock():
        collect(run, [(image_id, ("dot",))], "clean", [(0.1, 0.7)], 4)
        monkeypatch.setattr("typicality.applications.localize.distance.MEASURE", "another")
        [found] = collect(run, [(image_id, ("dot",))], "clean", [(0.1, 0.7)], 4)
    assert found.maps["reference_distance"].max() > 0


def test_distance_by_hand():
    """Cells at (+-1, +-1) have mean 0 and variance 1. From (3, 3) the squares are 8, 20, 20 to the three nearest, 8
    a channel in the mean; the most similar directions have cosines 1, 0 and 0: 1 - 1/3. From (3, 0) they are 5, 5 and
    17, 4.5 a channel, and twice 1/sqrt(2) and once -1/sqrt(2)."""
    memory = Memory(np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=np.float32))
    found = memory.distances(torch.tensor([[[3.0, 3.0]], [[3.0, 0.0]]]))
    assert found.shape == (1, 2)
    assert found[0, 0] == pytest.approx(np.sqrt(8 * 2 / 3), rel=1e-4)
    assert found[0, 1] == pytest.approx(np.sqrt(4.5 * (1 - np.sqrt(0.5) / 3)), rel=1e-4)


def test_a_cell_of_the_memory_is_at_no_distance_in_either_way():
    """What lies in the memory several times over is usual; twice its length is farther, and turned farther still."""
    memory = Memory(np.repeat(np.array([[2, 0], [-2, 0], [0, 1], [0, -1]], dtype=np.float32), 3, axis=0))
    usual, longer, turned = memory.distances(torch.tensor([[[2.0, 4.0, 2.0]], [[0.0, 0.0, 1.0]]]))[0]
    assert usual == pytest.approx(0, abs=1e-3)
    assert usual <= longer < turned


def test_what_no_reference_image_has_is_far_away(run_folder: Path):
    """Even in features of a random model, bright squares are further from clean noise than the noise around them."""
    run = reopened(run_folder)
    dots = [i for i in run.dataset if i.labels == ("dot",)]
    found = dict(distance_maps(run, run.denoiser, [i.image_id for i in dots], "clean", defaultdict(int)))
    inside, outside = [], []
    for image in dots:
        cells = found[image.image_id]
        share = cell_shares(
            truths_of(run.dataset, image, ("dot",), False)["dot"], run.latents.view(image.image_id), cells.shape
        )
        inside.append(cells[share > 0.5].mean())
        outside.append(cells[share == 0].mean())
    assert np.mean(np.array(inside) > outside) >= 0.75


def test_an_image_is_compared_with_images_that_its_model_may_know(
    tuned_folder: Path, marked_folder, tiny_model, tmp_path
):
    """One model: reference images of the training part; folds: those of other folds."""
    run = reopened(tuned_folder)
    [(fold, images)] = reference_images(run, "clean")
    assert fold == 0
    assert images
    assert not {i.image_id for i in images} & run.held_out
    folds = open_run(settings_for(marked_folder, tiny_model, finetune={"folds": 2, "steps": 2}), tmp_path / "folds")
    for fold, images in reference_images(folds, "clean"):
        assert images
        assert all(folds.fold_of(i.image_id) != fold and i.labels == ("clean",) for i in images)


def test_a_known_denoiser_gives_the_evidence_worked_out_by_hand():
    """e_0 = 0 gives r = eps: the pairs cancel, so the bias is 0 and the error E eps^2. e_c = a constant b moves the
    mean residual by -b: label bias, shift and mean shift are b^2, and T = 2 b E[eps] - b^2 = -b^2."""

    class Constant:
        timesteps, alphas_cumprod, evaluations = 1000, torch.linspace(0.99, 0.01, 1000), 0

        def predict_noise(self, noised, t, states, rows, at_once):
            return torch.stack([torch.full_like(noised, float(states[row[0], 0, 0])) for row in rows])

    class One:
        def stack(self, ids):
            return torch.zeros(len(ids), 4, 5, 6)

    states = torch.tensor([0.0, 0.5, -1.0])[:, None, None]
    draw = Pass(Constant(), One(), states, ("dot", "clean"), DrawPlan(3, 0.1, 0.7), 0, "clean", 4)  # type: ignore[arg-type]
    [(_, _, maps)] = draw([("x", ("dot",))])
    assert np.allclose(maps["bias"], 0, atol=1e-6)
    assert maps["error"].mean() == pytest.approx(1.0, abs=0.3)
    for name, value in {"label_bias": 0.25, "shift": 0.25, "mean_shift": 0.25, "typicality": -0.25}.items():
        assert np.allclose(maps[name], value, atol=1e-5), name
    assert np.array_equal(maps["plain_typicality"], maps["typicality"])
    scaled = replace(draw, label_scale=0.4)([("x", ("dot",))])[0][2]
    assert np.allclose(scaled["shift"], 0.04, atol=1e-6)
    for name in ("plain_typicality", "plain_shift"):  # as published, whatever the scale
        assert np.allclose(scaled[name], maps[name], atol=1e-5), name
    for name, value in {"reference_bias": 1.0, "reference_typicality": -1.0, "reference_shift": 2.25}.items():
        assert np.allclose(maps[name], value, atol=1e-5), name


# ----------------------------------------------------------------------------------------------------- maps


def test_every_recipe_can_be_made():
    rng = np.random.default_rng(0)
    e = evidence_of(rng.random((6, 8)) + 0.1)
    kitchen = Kitchen([e])
    for with_reference in (False, True):
        for family in families(with_reference).values():
            for recipe in variants(family, 1, (0.0, 1.0)):
                assert np.isfinite(kitchen(e, recipe)).all()
        assert kitchen(e, default_recipe(with_reference)).shape == (6, 8)
    unused = set(ALL_PARTS) - {n for r in families(True).values() for parts in r for n in parts}
    assert unused == {GIVEN, PUBLISHED}


def test_shrinkage_and_contrast_by_hand():
    """T = 2, D^2 = 3: beta 0.5 gives 3 + 0.5 (2 - 3) = 2.5. T(r) = 7: the contrast is -5."""
    e = evidence_of(np.ones((4, 4)))
    kitchen = Kitchen([e])
    assert np.allclose(kitchen(e, Recipe(("typicality beta=0.5",), 0.0)), 2.5)
    assert np.allclose(kitchen(e, Recipe(("contrast",), 0.0)), -5)
    assert np.allclose(kitchen(e, Recipe(("error",), 0.0)), 0.0)  # log 1


def test_every_recipe_says_what_it_shows():
    """Only maps that use the label speak of it: an error under the reference knows nothing of "dot"."""
    assert set(MEANINGS) == {*ALL_PARTS, GIVEN}
    said = Recipe(("reference error",)).meaning("dot", "clean")
    assert said == "the model predicts badly under 'clean'"
    both = Recipe(("bias contrast", "reference bias")).meaning("dot", "clean")
    assert both == "the model predicts better under 'dot' than under 'clean' and the model predicts badly under 'clean'"
    assert Recipe(("bias gain",)).meaning("dot", None) == "telling the model 'dot' improves its prediction"


def test_two_parts_are_added_in_units_of_their_spread():
    """typicality is 2 x and shift 12 x: divided by their spreads they are the same, and weight 2 makes it threefold."""
    rng = np.random.default_rng(1)
    cells = rng.random((5, 5))
    e = evidence_of(cells)
    both = Kitchen([e])(e, Recipe(("typicality beta=1", "shift"), 0.0, weight=2.0))
    np.testing.assert_allclose(both, 3 * cells / cells.std(), rtol=1e-4)


def test_a_cell_comes_out_where_it_was_seen():
    """An image of 80 x 40 at scale 2 is cropped by 10 pixels left and right to 30 x 20 model pixels of 2 x 2 cells."""
    view = ModelView(width=32, height=20, scale_x=2.0, scale_y=2.0, left=8.0, top=0.0)
    cells = np.zeros((5, 8), np.float32)
    cells[1, 2] = 1.0  # cells of 4 model pixels: x 8 to 12, so 24 to 32 of the original; y 4 to 8, so 8 to 16
    big = upsampled(cells, view, 80, 40)
    assert big.shape == (40, 80)
    y, x = np.argwhere(big > 0.85).T
    assert (x.min(), x.max(), y.min(), y.max()) == (27, 28, 11, 12)  # around the centre at (28, 12)
    assert big[:, :8].max() == 0.0
    assert big[:, 72:].max() == 0.0


def test_shares_of_cells_are_the_inverse_of_showing_them():
    """A mask that covers exactly one cell marks that cell wholly and no other."""
    view = view_of(40, 40, 20, 4, 2.0)
    truth = np.zeros((40, 40), bool)
    truth[8:16, 24:32] = True
    shares = cell_shares(truth, view, (5, 5))
    assert shares[1, 3] == pytest.approx(1.0)
    assert shares.sum() == pytest.approx(1.0)


# --------------------------------------------------------------------------------------------------- choices


def test_otsu_splits_two_peaks_between_them():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 0.1, 900), rng.normal(5, 0.1, 100)])
    assert 0.5 < otsu(values) < 4.5
    assert otsu(np.ones(4)) == 1.0


def test_a_rare_defect_does_not_mark_half_of_everything():
    """Two cells in a thousand lie eight standard deviations out; Otsu alone would split the rest in two halves."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_000)
    values[:40] += 8
    assert (values >= otsu(values)).mean() > 0.4
    found = unsupervised(values)
    assert found.by == "outliers: the median + 4 robust standard deviations"
    assert found.value == pytest.approx(4, abs=0.1)
    assert (values[:40] >= found.value).all()
    assert (values >= found.value).sum() < 45


def test_a_large_object_keeps_its_threshold():
    """Of two classes that are apart, each may have any number of cells; a small upper class is plausible anyhow."""
    rng = np.random.default_rng(0)
    for share in (0.1, 0.4, 0.7):
        values = np.where(rng.random(20_000) < share, 5, 0) + rng.normal(size=20_000)
        found = unsupervised(values)
        assert (found.by, found.value) == ("Otsu", otsu(values))
        assert (values >= found.value).mean() == pytest.approx(share, abs=0.02)


def test_separability_by_hand():
    """Of 0, 0, 4 all variance is between the classes, of 0, 1, 4, 5 it is 4 of 4.25; a lone class has none."""
    assert separability(np.array([0.0, 0.0, 4.0]), 2) == pytest.approx(1)
    assert separability(np.array([0.0, 1.0, 4.0, 5.0]), 2) == pytest.approx(4 / 4.25)
    assert separability(np.ones(3), 1) == 0


def test_the_recipe_that_finds_the_truth_is_chosen_and_a_label_without_truth_follows():
    rng = np.random.default_rng(0)
    shares, found = {}, {label: [] for label in ("dot", "bar", "none")}
    for i in range(6):
        truth = np.zeros((8, 8))
        truth[rng.integers(8), rng.integers(8)] = 1
        label = LABELS[i % 2]
        e = evidence_of(rng.random((8, 8)) + 0.1, str(i), label)
        maps = dict(e.maps) | {"plain_shift": (truth + 0.1 * rng.random((8, 8)))[None].astype(np.float32)}
        found[label].append(replace(e, maps=maps))
        shares[str(i)] = truth
    everything = [e for group in found.values() for e in group]
    recipes = variants([("typicality beta=1",), ("shift",), ("error",)], 1, (0.0, 2.0))
    best = choose(Kitchen(everything), found, lambda e: shares[e.image_id], lambda e: e.image_id, recipes)
    assert {recipe.parts for recipe in best.values()} == {("shift",)}
    assert {recipe.smoothing for recipe in best.values()} == {0.0}
    dots = found["dot"]
    threshold = best_threshold([e.maps["plain_shift"][0] for e in dots], [shares[e.image_id] for e in dots])
    assert threshold is not None
    assert 0.2 < threshold <= 1.1
    assert best_threshold([np.ones((2, 2))], [np.zeros((2, 2))]) is None


def image(name: str, label: str, group: str) -> LabelledImage:
    return LabelledImage(name, name, (label,), group, 8, 8, None)


def test_parts_share_no_group_and_both_know_every_label_that_has_two_groups():
    images = [image(f"{label}{i}", label, f"{label}{i // 6}") for label in "abc" for i in range(24)]
    images += [image(f"d{i}", "d", f"d{i}") for i in range(2)] + [image("e", "e", "e")]
    chosen = validation_part(images, 0.3)
    groups = [{i.group for i in images if (i.image_id in chosen) is side} for side in (True, False)]
    assert not groups[0] & groups[1]
    assert {name[0] for name in groups[0]} == set("abcd")
    assert {name[0] for name in groups[1]} == set("abcde")
    assert validation_part(images[::-1], 0.3) == chosen


def test_turns_share_no_group_and_each_knows_every_label_that_has_three_groups():
    images = [image(f"{label}{i}", label, f"{label}{i // 4}") for label in "abc" for i in range(24)]
    images += [image(f"d{i}", "d", "a0" if i else "d") for i in range(2)]  # a group of two labels
    turns = turns_of(images, 3)
    assert set(turns) == {i.image_id for i in images}
    for group in {i.group for i in images}:
        assert len({turns[i.image_id] for i in images if i.group == group}) == 1
    for label in "abc":
        groups = {i.group: turns[i.image_id] for i in images if i.labels == (label,)}
        assert sorted(Counter(groups.values()).values()) == [2, 2, 2]
    assert turns["d0"] != turns["d1"]
    assert turns_of(images[::-1], 3) == turns


def test_places_by_hand():
    """Two places at threshold 1, touching only at a corner in the first; the single pixel is too small."""
    scores = np.zeros((6, 10))
    scores[0, 0], scores[1, 1], scores[3:5, 5:9], scores[5, 0] = 1.0, 2.0, 3.0, 9.0
    found = places(scores, 1.0, smallest=2)
    assert [(p.box, p.score, p.area) for p in found] == [((5, 3, 9, 5), 3.0, 8), ((0, 0, 2, 2), 2.0, 2)]
    assert places(scores, 10.0, 1) == []
    assert len(places(scores, 1.0, 1, most=1)) == 1


def test_masks_and_boxes_are_both_truth(marked_folder: Path, tiny_model: Path):
    from typicality.dataset import load_dataset

    data = load_dataset(settings_for(marked_folder, tiny_model).dataset)
    first = next(i for i in data if i.labels == ("dot",))
    [truth] = (truths_of(data, first, ("dot",), named=False) or {}).values()
    assert truth.sum() == 144
    [boxed] = (truths_of(data, replace(first, mask=None, boxes=((1, 2, 4, 4),)), ("dot",), named=False) or {}).values()
    assert np.argwhere(boxed).tolist() == [[2, 1], [2, 2], [2, 3], [3, 1], [3, 2], [3, 3]]
    assert truths_of(data, replace(first, mask=None), ("dot",), named=False) == {}


def test_each_label_is_measured_against_its_own_boxes(marked_folder: Path, tiny_model: Path):
    """An image with a dot at x 1 to 3 and a bar at x 7 to 9. Named boxes belong to one label each; a name that is no
    label belongs to none of them. Without names nobody knows which is which, unless nothing is marked at all."""
    from typicality.dataset import load_dataset

    data = load_dataset(settings_for(marked_folder, tiny_model).dataset)
    first = next(i for i in data if i.labels == ("dot",))
    boxes = ((1, 0, 3, 1), (5, 0, 6, 1), (7, 0, 9, 1))
    several = replace(first, labels=LABELS, mask=None, boxes=boxes, box_labels=("dot", "pacemaker", "bar"))
    found = truths_of(data, several, LABELS, named=True)
    assert found is not None
    marked = {label: np.flatnonzero(truth[0]).tolist() for label, truth in found.items()}
    assert marked == {"dot": [1, 2], "bar": [7, 8]}
    one = replace(several, boxes=boxes[:1], box_labels=("dot",))
    assert set(truths_of(data, one, LABELS, named=True) or {}) == {"dot"}
    unnamed = replace(several, box_labels=())
    assert truths_of(data, unnamed, LABELS, named=False) is None
    assert truths_of(data, replace(several, box_labels=("defect",) * 3), LABELS, named=False) is None
    [together] = (truths_of(data, unnamed, ("dot",), named=False) or {}).values()
    assert np.flatnonzero(together[0]).tolist() == [1, 2, 5, 7, 8]
    assert truths_of(data, replace(first, boxes=()), LABELS, named=False) is None
    other = {"labels": ("dot",), "other_labels": ("bar",)}  # the data set is restricted to other labels
    assert truths_of(data, replace(unnamed, **other), ("dot",), named=False) is None
    assert truths_of(data, replace(first, boxes=(), **other), ("dot",), named=False) is None
    assert set(truths_of(data, replace(several, **other), ("dot",), named=True) or {}) == {"dot"}
    clean = replace(next(i for i in data if i.labels == ("clean",)), labels=LABELS)
    assert [truth.any() for truth in (truths_of(data, clean, LABELS, named=False) or {}).values()] == [False, False]


def several_labels(root: Path, model: Path, categories: tuple[str, str]) -> Settings:
    """Settings of images that all have two labels, with boxes of two categories in a COCO file."""
    (root / "images").mkdir()
    rng = np.random.default_rng(1)
    images, annotations, rows = [], [], ["file_name,label"]
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(root / "images" / f"{i}.png")
        rows.append(f"images/{i}.png,dot|bar")
        images.append({"id": i, "file_name": f"images/{i}.png"})
        annotations += [
            {"image_id": i, "category_id": 0, "bbox": [0, 0, 12, 12]},
            {"image_id": i, "category_id": 1, "bbox": [20, 30, 20, 6]},
        ]
    names = [{"id": k, "name": name} for k, name in enumerate(categories)]
    document = {"images": images, "annotations": annotations, "categories": names}
    (root / "metadata.csv").write_text("\n".join(rows))
    (root / "truth.json").write_text(json.dumps(document))
    dataset = {"label_separator": "|", "masks": None, "group": None, "boxes": str(root / "truth.json")}
    return settings_for(root, model, dataset={"label": "label", **dataset}, finetune={"enabled": False})


def test_categories_of_coco_are_labels_and_others_tell_none(tiny_model: Path, tmp_path: Path):
    """12 x 12 of 1600 pixels are a dot, 20 x 6 a bar. Where both boxes are a "defect", neither can be measured."""
    settings = several_labels(tmp_path, tiny_model, LABELS)
    run = open_run(settings, tmp_path / "run")
    assert boxes_tell_labels(run.dataset)
    parts = parts_of(run, requests_of(list(run.dataset), None))
    assert parts.untold == 0
    assert {label: truth.sum() for (_, label), truth in parts.truths.items()} == {"dot": 144, "bar": 120}
    (tmp_path / "other").mkdir()
    blind = open_run(several_labels(tmp_path / "other", tiny_model, ("defect", "scratch")), tmp_path / "other-run")
    parts = parts_of(blind, requests_of(list(blind.dataset), None))
    assert (parts.truths, parts.untold) == ({}, 12)


# ------------------------------------------------------------------------------------------------ end to end


@pytest.mark.slow
def test_localize_writes_boxes_maps_masks_and_overlays(run_folder: Path):
    """What is on disk agrees: boxes lie inside their image and cover pixels of the mask, which is the map cut at the
    threshold; a second call draws nothing and finds the same."""
    settings = resolve_settings(str(run_folder))
    options = Options("clean", 4, ((0.1, 0.4), (0.4, 0.7)))
    result = localize(settings, run_folder, options, overlays=2, write_masks=True)
    assert set(result.summary["labels"]) == set(LABELS)
    assert result.summary["images"] == 16
    assert set(result.summary["measures"]) == set(LABELS)
    assert 0 < result.summary["macro_ap"] <= 1
    assert all(facts["threshold_by"].startswith("best IoU") for facts in result.summary["labels"].values())
    assert json.loads((run_folder / "localize" / "summary.json").read_text())["macro_ap"] == result.summary["macro_ap"]
    boxes = pq.read_table(run_folder / "localization.parquet").to_pylist()
    assert boxes
    sizes = {i.image_id: (i.width, i.height) for i in open_run(settings, run_folder).dataset}
    index = pq.read_table(run_folder / "localize" / "maps" / "index.parquet").to_pylist()
    assert len(index) == 16
    for row in index:
        cells = load_file(run_folder / "localize" / "maps" / f"{row['shard']}.safetensors")["maps"][row["row"]]
        view = ModelView(*(row[n] for n in ("width", "height", "scale_x", "scale_y", "left", "top")))
        scores = upsampled(cells, view, *sizes[row["image_id"]])
        stem = f"{row['label']}-{Path(row['file_name']).stem}-{row['image_id'][:8]}.png"
        mask = np.asarray(Image.open(run_folder / "localize" / "masks" / stem)) > 127
        np.testing.assert_array_equal(mask, scores >= row["threshold"])
        for box in (b for b in boxes if (b["image_id"], b["label"]) == (row["image_id"], row["label"])):
            inside = np.s_[box["y0"] : box["y1"], box["x0"] : box["x1"]]
            assert box["score"] == pytest.approx(scores[inside].max(), rel=1e-5)
            assert mask[inside].sum() >= box["area"] > 0
    overlays = {path.name for path in (run_folder / "localize" / "overlays").glob("*.png")}
    assert len(overlays) == 4
    assert overlays == {o["file"] for facts in result.summary["labels"].values() for o in facts["overlays"]}
    record = json.loads((run_folder / "run.json").read_text())["stages"]["localize"]
    assert (record["state"], record["unet_evaluations"]) == ("done", 16 * 3 * 8 + 4 * (16 + 8))
    again = localize(settings, run_folder, options, overlays=0)
    assert again.boxes == result.boxes
    assert json.loads((run_folder / "run.json").read_text())["stages"]["localize"] == record
    assert not (run_folder / "localize" / "masks").exists()


def test_names_of_files_are_distinct_and_short():
    """Labels that differ beyond their first 80 letters, or in how these are escaped, have names of their own; what is
    short and plain stays as it is."""
    diagnosis = "Displaced fracture of shaft of third metacarpal bone, right hand, initial encounter for "
    long = [diagnosis + "closed fracture", diagnosis + "open fracture", "壁" * 79, "壁" * 80]
    labels = [*long, " 0b", "\u200b", "\udce9"]
    names = [_safe(label) for label in labels]
    assert len(set(names)) == len(labels)
    assert max(len(name.encode()) for name in names) <= 80
    assert all(c.isalnum() or c in "-_%~" for name in names for c in name)
    assert _safe("dot-1_a b") == "dot-1_a%20b"


def test_labels_that_begin_alike_keep_their_own_maps_and_masks(tiny_model: Path, tmp_path: Path):
    """Every image carries both; each label has the maps of all images in a file of its own, and a mask of each."""
    labels = [f"{'/ + ' * 7}{end}" for end in ("closed", "open")]  # 84 letters once escaped
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    rows = ["file_name,label"]
    for i in range(3):
        pixels = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
        pixels.save(tmp_path / "images" / f"{i}.png")
        rows.append(f"{i}.png,{';'.join(labels)}")
    (tmp_path / "images" / "metadata.csv").write_text("\n".join(rows))
    model = {"name": str(tiny_model), "dtype": "fp32"}
    sections = {"dataset": {"label": "label", "label_separator": ";"}, "model": model, "finetune": {"enabled": False}}
    run = open_run(resolve_settings(str(tmp_path / "images"), None, [sections]), tmp_path / "run")
    with run.directory.lock():
        ensure_latents(run)
        run.directory.save()
    localize(run.settings, tmp_path / "run", Options(draws=2), overlays=3, write_masks=True)
    folder = tmp_path / "run" / "localize"
    index = pq.read_table(folder / "maps" / "index.parquet").to_pylist()
    shards = {label: {row["shard"] for row in index if row["label"] == label} for label in labels}
    assert [len(names) for names in shards.values()] == [1, 1]
    (closed,), (opened,) = (
        [load_file(folder / "maps" / f"{name}.safetensors")["maps"] for name in shards[label]] for label in labels
    )
    assert len(closed) == len(opened) == 3
    assert (closed != opened).any()
    assert [len(list((folder / name).glob("*.png"))) for name in ("masks", "overlays")] == [6, 6]


def test_without_ground_truth_defaults_and_otsu_or_outliers_decide(run_folder: Path):
    """Eight clean images are all in the memory that others are compared with, so --against has none to spare."""
    settings = resolve_settings(str(run_folder), None, [{"dataset": {"masks": None}}])
    for against, labels in ((None, {"clean", *LABELS}), ("clean", set(LABELS))):
        summary = localize(settings, run_folder, Options(against, draws=2), overlays=0).summary
        assert set(summary["labels"]) == labels
        for facts in summary["labels"].values():
            assert facts["threshold_by"] == "Otsu" or facts["threshold_by"].startswith("outliers")
            assert facts["chosen_by"] == "default"
        assert "measures" not in summary


def test_images_of_the_reference_label_give_the_threshold(tuned_folder: Path, tmp_path: Path):
    """One cell in a hundred of their own maps reaches it; they are held out, and nothing else is localized."""
    folder = shutil.copytree(tuned_folder, tmp_path / "run")
    settings = resolve_settings(str(folder), None, [{"dataset": {"masks": None}}])
    run = open_run(settings, folder)
    references = references_of(run, "clean")
    assert len(references) >= 4
    assert set(references) <= run.held_out
    assert {run.labels_of[i] for i in references} == {("clean",)}
    summary = localize(settings, folder, Options("clean", 2), overlays=0).summary
    assert summary["images"] == 16
    for facts in summary["labels"].values():
        assert facts["threshold_by"] == f"the 99% quantile of {len(references)} images of clean"
    spent = json.loads((folder / "run.json").read_text())["stages"]["localize"]["unet_evaluations"]
    assert spent <= plan_of(settings, folder, Options("clean", 2))["UNet evaluations at most"]
    assert spent >= (16 + 2 * len(references)) * 2
    again = localize(settings, folder, Options("clean", 2), overlays=0)
    assert again.summary == summary
    assert json.loads((folder / "run.json").read_text())["stages"]["localize"]["unet_evaluations"] == spent


def test_images_of_no_known_place_are_training_images_only_where_a_model_saw_them(tuned_folder: Path, tmp_path: Path):
    """Of the held-out images one has a mask and the others none; the rest were trained on, masks or not."""
    folder = shutil.copytree(tuned_folder, tmp_path / "run")
    run = open_run(resolve_settings(str(folder)), folder)
    kept = min(i.image_id for i in run.dataset if i.image_id in run.held_out and i.labels != ("clean",))
    images = tuple(i if i.image_id == kept else replace(i, mask=None) for i in run.dataset)
    run = replace(run, dataset=replace(run.dataset, images=images))
    parts = parts_of(run, requests_of(list(run.dataset), None))
    found = {i.image_id: parts.of(i.image_id, i.labels[0]) for i in run.dataset}
    assert found.pop(kept) == "test"
    assert {i for i, part in found.items() if part == "unmarked"} == run.held_out - {kept}
    assert {i for i, part in found.items() if part == "training"} == {i.image_id for i in run.dataset} - run.held_out


def test_a_mask_that_cannot_be_read_is_refused_before_the_work(marked_folder: Path, tiny_model: Path, tmp_path: Path):
    """Cut short after the latents were made: nothing is drawn before it is noticed."""
    data = shutil.copytree(marked_folder, tmp_path / "marked")
    settings = settings_for(data, tiny_model, finetune={"enabled": False})
    run = open_run(settings, tmp_path / "run")
    with run.directory.lock():
        ensure_latents(run)
        run.directory.save()
    damaged = data / "masks" / "dot3.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(DatasetError, match=r"mask of images/dot3\.png"):
        localize(settings, tmp_path / "run", Options(draws=2))
    assert "localize" not in json.loads((tmp_path / "run" / "run.json").read_text())["stages"]


def test_options_that_cannot_work_are_refused(run_folder: Path, tmp_path: Path):
    settings = resolve_settings(str(run_folder))
    with pytest.raises(InputError, match="did you mean 'clean'"):
        localize(settings, run_folder, Options("claen"))
    with pytest.raises(InputError, match="even"):
        localize(settings, run_folder, Options(draws=3))
    with pytest.raises(InputError, match="LOW:HIGH"):
        localize(settings, run_folder, Options(ranges=((0.5, 0.2),)))
    with pytest.raises(OutputError, match="no run directory"):
        localize(settings, tmp_path / "nothing")


@pytest.mark.slow
def test_evaluation_compares_ours_with_rivals_and_the_model_before(tuned_folder: Path, tmp_path: Path):
    """A fine-tuned run, however briefly: all rows are there, agree with the summary, and come from the test part."""
    folder = shutil.copytree(tuned_folder, tmp_path / "run")
    settings = resolve_settings(str(folder))
    run = open_run(settings, folder)
    picture = tmp_path / "cases.png"
    result = evaluate(settings, folder, Options("clean", 2), epochs=1, picture=picture)
    rows = {(row["label"], row["method"]): row for row in result["rows"]}
    assert {label for label, _ in rows} == set(LABELS)
    for method in ("ours", "bias", *RIVALS, "ours, not fine-tuned", "typicality as published"):
        precisions = [rows[label, method]["average_precision"] for label in LABELS]
        assert result["macro"][method] == pytest.approx(np.mean(precisions), abs=1e-3)
    without = result["best_without_labels"]
    assert result["macro_ap_without_labels"] == max(result["macro"]["error"], result["macro"]["bias"])
    assert result["gain_without_labels"] == pytest.approx(result["macro_ap"] / result["macro"][without] - 1, abs=1e-2)
    low, high = result["gain_without_labels_interval"]
    assert low <= result["gain_without_labels"] <= high
    assert result["macro_ap_best_rival"] == max(result["macro"][name] for name in RIVALS)
    low, high = result["macro_ap_interval"]
    assert low <= result["macro_ap"] <= high
    assert result["macro_interval"]["ours"] == [low, high]
    low, high = result["gain_interval"]
    assert low <= result["gain"] <= high
    for label, by in result["above_base_by"].items():
        assert (by["difference"] > 0) == result["above_base"][label]
        assert by["interval"][0] <= by["interval"][1]
        assert rows[label, "ours"]["average_precision_interval"] is not None
    assert result["cnn"]["epochs"] == 1
    assert result["cnn"]["n_held_out"] == len([i for i in run.dataset if i.image_id in run.held_out])
    assert 0 <= result["cnn"]["held_out_accuracy"] <= 1
    lifts = [rows[label, "ours"]["lift"] for label in LABELS]
    assert result["geometric_mean_lift"] == pytest.approx(metrics.geometric_mean(lifts), rel=1e-2)
    assert result["gain"] == pytest.approx(result["macro_ap"] / result["macro_ap_best_rival"] - 1, abs=1e-2)
    assert set(result["above_base"]) == set(LABELS)
    assert rows["dot", "typicality as published"]["auc_pr_truncated"] is not None
    judges = [i for i in run.dataset if i.image_id in run.held_out and i.labels != ("clean",)]
    assert result["images"] == len(judges) == sum(rows[label, "ours"]["images"] for label in LABELS)
    assert Image.open(picture).width > 400


@pytest.mark.slow
def test_a_run_without_fine_tuning_is_judged_on_all_images(run_folder: Path):
    """The model has seen none; the CNN behind Grad-CAM must learn from some, and is judged on the others."""
    settings = resolve_settings(str(run_folder))
    dataset = open_run(settings, run_folder).dataset
    result = evaluate(settings, run_folder, Options("clean", 2), epochs=1)
    assert result["images"] == 16
    assert {row["method"] for row in result["rows"]} >= {"ours", *RIVALS}
    assert not any("not fine-tuned" in row["method"] for row in result["rows"])
    assert result["cnn"]["n_held_out"] == len(dataset.held_out()[1]) > 0


def test_a_base_that_was_fine_tuned_before_leaves_nothing_to_judge(tuned_folder: Path, marked_folder: Path, tmp_path):
    """It was fine-tuned on these very images: none counts as unseen."""
    model = tuned_folder / "model"
    run = open_run(settings_for(marked_folder, model, finetune={"enabled": False}), tmp_path / "run")
    assert not run.held_out
    with run.directory.lock():
        ensure_latents(run)
        run.directory.save()
    with pytest.raises(InputError, match="a model that was fine-tuned on labelled images before"):
        evaluate(run.settings, tmp_path / "run", Options(draws=2))


@pytest.mark.slow
def test_a_run_keeps_its_model_and_its_settings(tuned_folder: Path, tmp_path: Path):
    """Another seed and other timesteps draw other noise; another ground truth measures something else. What the run
    was made with stays as it is on disk, and what its model was not made with is refused before any work."""
    folder = shutil.copytree(tuned_folder, tmp_path / "run")
    weights = {path: path.read_bytes() for path in sorted((folder / "model").rglob("*.safetensors"))}
    before = json.loads((folder / "run.json").read_text())
    first = localize(resolve_settings(str(folder)), folder, Options("clean", 2), overlays=0)
    other = [{"seed": 5, "score": {"t_min": 0.02}, "dataset": {"masks": None}}]
    second = localize(resolve_settings(str(folder), None, other), folder, Options("clean", 2), overlays=0)
    assert first.boxes != second.boxes
    assert second.summary["ranges"] == [(0.02, before["settings"]["score"]["t_max"])]
    after = json.loads((folder / "run.json").read_text())
    assert {path: path.read_bytes() for path in sorted((folder / "model").rglob("*.safetensors"))} == weights
    assert after["settings"] == before["settings"]
    assert after["stages"]["finetune"] == before["stages"]["finetune"]
    for changes, message in (
        ({"prompt": {"template": "a {label}"}}, "leave out prompt"),
        ({"model": {"dtype": "bf16"}}, "--dtype"),
        ({"finetune": {"steps": 3}}, "finetune.steps"),
        ({"dataset": {"label_separator": "l"}}, "without the labels"),
    ):
        with pytest.raises(InputError, match=message):
            localize(resolve_settings(str(folder), None, [changes]), folder, Options(draws=2))
        with pytest.raises(InputError, match=message):
            evaluate(resolve_settings(str(folder), None, [changes]), folder, Options(draws=2))
    assert json.loads((folder / "run.json").read_text()) == after


def test_a_run_without_a_model_is_refused_and_left_alone(marked_folder: Path, tiny_model: Path, tmp_path: Path):
    run = open_run(settings_for(marked_folder, tiny_model), tmp_path / "run")
    run.directory.save()
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(OutputError, match="fine-tuned yet"):
        localize(run.settings, tmp_path / "run", Options(draws=2))
    assert (tmp_path / "run" / "run.json").read_text() == before
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
def test_the_report_of_a_mined_run_shows_the_places_at_once(tiny_folder: Path, tiny_model: Path, tmp_path: Path):
    """And a run that has not been mined has no report, so the user is told; the recorded settings stay."""
    settings = resolve_settings(
        str(tiny_folder), None,
        [{
            "dataset": {"label": "folder"}, "model": {"name": str(tiny_model), "dtype": "fp32"},
            "finetune": {"enabled": False}, "score": {"draws": 2, "protocol": "uniform", "controls": 0},
            "mine": {"noises": 1, "share": 1.0, "per_label": 8, "clusters": 2},
        }],
    )  # fmt: skip
    folder = mine(settings, tmp_path / "run").folder
    assert 'id="places"' not in (folder / "index.html").read_text()
    recorded = json.loads((folder / "run.json").read_text())["settings"]
    localize(resolve_settings(str(folder), None, [{"seed": 3}]), folder, Options(draws=2), overlays=1)
    assert 'id="places"' in (folder / "index.html").read_text()
    assert json.loads((folder / "run.json").read_text())["settings"] == recorded


def test_who_has_no_report_is_told_how_to_get_one(run_folder: Path):
    heard: list[str] = []

    class Listener(Progress):
        def say(self, message: str) -> None:
            heard.append(message)

    localize(resolve_settings(str(run_folder)), run_folder, Options(draws=2), overlays=0, progress=Listener())
    assert any("typicality mine" in message for message in heard)


def test_without_ground_truth_nothing_can_be_evaluated(run_folder: Path):
    settings = resolve_settings(str(run_folder), None, [{"dataset": {"masks": None}}])
    with pytest.raises(InputError, match="--masks"):
        evaluate(settings, run_folder, Options(draws=2))


@pytest.mark.slow
def test_the_command_prints_one_document_and_refuses_what_cannot_work(run_folder: Path, capsys):
    words = ["localize", str(run_folder), "--against", "clean", "--draws", "2", "--overlays", "0", "--quiet"]
    assert command([*words, "--range", "0.1:0.7", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["against"] == "clean"
    assert document["ranges"] == [[0.1, 0.7]]
    assert set(document["measures"]) == set(LABELS)
    assert command([*words, "--range", "low"]) == 2
    assert "LOW:HIGH" in capsys.readouterr().err
    assert command(["evaluate", "localize", str(run_folder), "--against", "nobody", "--quiet"]) == 2
    assert "nobody" in capsys.readouterr().err
    for option in (["--out", "elsewhere"], ["--fresh"]):
        for name in (["localize"], ["evaluate", "localize"]):
            assert command([*name, str(run_folder), *option, "--quiet", "--dry-run"]) == 0
            assert f"warning: {option[0]} has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["localize"], ["evaluate", "localize"]])
def test_a_dry_run_tells_the_cost_and_does_nothing(run_folder: Path, capsys, words: list[str]):
    """16 images with a label other than clean, under three prompts, 6 draws in each of two ranges; and features of
    these and of 8 clean images from four noises."""
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    options = ["--against", "clean", "--draws", "6", "--range", "0.1:0.2", "--range", "0.2:0.4"]
    assert command([*words, str(run_folder), *options, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["images"], plan["UNet evaluations at most"]) == (16, 16 * 3 * 6 * 2 + 4 * (16 + 8))
    assert plan["settings"]["dataset"]["masks"] == "mask"
    assert command([*words, str(run_folder), "--draws", "3", "--dry-run"]) == 2
    assert {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")} == before


def test_our_evaluations_are_counted_as_planned(run_folder: Path):
    """What the plan says is what a first call draws."""
    settings, options = resolve_settings(str(run_folder)), Options("clean", 2)
    expected = plan_of(settings, run_folder, options)["UNet evaluations at most"]
    localize(settings, run_folder, options, overlays=0)
    assert json.loads((run_folder / "run.json").read_text())["stages"]["localize"]["unet_evaluations"] == expected
