"""Elements beside their rivals: the parts by hand, then the whole on a mined run of the tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import typicality
from typicality.errors import InputError, OutputError
from typicality.evaluation.detection import Seen, Workbench, in_halves, in_turn, lead_of
from typicality.evaluation.elements import elements
from typicality.mining.tables import ELEMENTS_SCHEMA
from typicality.progress import SILENT
from typicality.records import LabelledImage, Patch
from typicality.run import open_run, resolve_settings

NAMES = ("ours", "published", "random", "least typical", "hog svm", "gradcam")
SETS = [
    *((name, "typicality") for name in NAMES), *((name, "dift") for name in NAMES),
    ("hog svm", "hog"), ("gradcam", "cnn"),
]  # fmt: skip
METHODS = [SETS[0], SETS[6], *SETS[1:6], *SETS[7:]]


def test_members_in_turn():
    """The best of every cluster, then the second of those that have one."""
    assert in_turn([["a1", "a2", "a3"], ["b1"], ["c1", "c2"]]) == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert in_turn([]) == []


def test_halves_keep_relatives_together():
    """Five groups of two images: three groups on one side, two on the other, whatever the order of the images."""
    images = [
        LabelledImage(str(i), f"{i}.png", ("a",), group=f"g{i // 2}", width=8, height=8, source=None) for i in range(10)
    ]
    first, second = in_halves(images)
    assert (len(first), len(second)) == (6, 4)
    assert not {i.group for i in first} & {i.group for i in second}
    again = in_halves(images[::-1])
    assert {i.image_id for i in again[0]} == {i.image_id for i in first}


def test_without_a_run(tmp_path: Path):
    with pytest.raises(OutputError, match="no run directory"):
        elements(tmp_path)
    with pytest.raises(InputError, match="at least 1"):
        elements(tmp_path, count=0)


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = typicality.mine(
        tiny_folder, "folder", model=str(tiny_model), dtype="fp32", out=tmp_path_factory.mktemp("elements") / "run",
        finetune={"steps": 2, "batch_size": 8, "validate_every": 2, "held_out": 0.6},
        score={"draws": 2, "refine_draws": 2}, mine={"noises": 1, "share": 1.0, "per_label": 40, "clusters": 4},
    )  # fmt: skip
    return result.folder


@pytest.mark.slow
def test_elements_come_from_training_images(run: Path):
    """No element of any method lies in a group that is fitted or measured on, and all methods have equally many."""
    work = Workbench(open_run(resolve_settings(str(run)), run), 100, SILENT)
    kept = {image.group for image in (*work.held_out, *work.fitting)}
    assert min(map(len, (work.making, work.fitting, work.held_out))) > 0
    assert not {image.group for image in work.making} & kept
    with work.run.directory.lock():
        sets = work.element_sets(3, 0, 2)
    assert [(s.method, s.space) for s in sets] == SETS
    for made in sets:
        assert not {work.groups[p.image_id] for p in made.patches} & kept
        assert [p.label for p in made.patches].count("red") == [p.label for p in made.patches].count("blue") == 3
        for patch in made.patches:
            assert patch.label in work.run.labels_of[patch.image_id]
            height, width = work.cells(patch.image_id)
            assert 0 <= patch.row <= height - work.side
            assert 0 <= patch.column <= width - work.side


@pytest.mark.slow
def test_features_of_the_detector_do_not_know_the_label(run: Path):
    """The same place under another label has the same features: the null prompt is all that is shown."""
    work = Workbench(open_run(resolve_settings(str(run)), run), 100, SILENT)
    image = work.making[0].image_id
    found = work.features([work.patch(image, label, 1, 2) for label in work.labels])
    assert np.array_equal(found[0], found[1])


def test_one_label_leads_by_its_distance_from_the_second():
    """The leader is ahead of the second, all others are behind the leader; two first ones lead by nothing."""
    typicality = np.array([[3.0, 1.0, -2.0], [4.0, 0.0, 4.0]])
    found = lead_of(typicality, np.array([4.0, 1.0]))
    assert found.tolist() == [[1.0, -1.0, -2.5], [0.0, -4.0, 0.0]]
    assert np.isfinite(lead_of(typicality, np.zeros(2))).all()


@pytest.mark.slow
def test_a_match_by_typicality_is_worth_the_lead_of_its_label_there(run: Path):
    """The place comes from the features alone, the worth from the maps of all labels at that place."""
    work = Workbench(open_run(resolve_settings(str(run)), run), 100, SILENT, draws=2)
    image = work.held_out[0]
    with work.run.directory.lock():
        scored = {label: work._cross_label.get(image.image_id, label) for label in work.labels}
    maps = {label: map_.typicality for label, map_ in scored.items()}
    assert not np.array_equal(*maps.values())
    grid = work.grid(image.image_id)
    features = work.whitening(work.features(grid))
    patches = [work.patch(image.image_id, label, 1, 2) for label in work.labels]
    made = work._by_typicality("ours", 0, patches, work.whitening.unit(work.features(patches)))
    found = made.match(Seen(work, image, features))
    best = grid[int((features @ features[[p.row == 1 and p.column == 2 for p in grid]][0]).argmax())]
    rows, columns = slice(best.row, best.row + best.side), slice(best.column, best.column + best.side)
    means = {label: map_[rows, columns].mean() for label, map_ in maps.items()}
    error = scored[work.labels[0]].null_loss[rows, columns].mean()
    assert found == pytest.approx(
        [(means[p.label] - max(v for n, v in means.items() if n != p.label)) / error**0.5 for p in patches], rel=1e-4
    )


@pytest.mark.slow
def test_elements_of_other_images_play_no_part_in_ours(run: Path, tmp_path: Path):
    """Elements of held-out and of fitting images, whatever their scores and clusters, change none of ours."""
    work = Workbench(open_run(resolve_settings(str(run)), run), 100, SILENT)
    making = {image.image_id for image in work.making}
    before = work._ours(3)
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    table = pq.read_table(copy / "elements.parquet").to_pylist()
    others = [row for row in table if row["image_id"] not in making]
    assert others
    for row in others:
        row |= {"typicality": 99.0, "cluster": 0, "rank_in_cluster": 0}
    pq.write_table(pa.Table.from_pylist(table, schema=ELEMENTS_SCHEMA), copy / "elements.parquet")
    after = Workbench(open_run(resolve_settings(str(copy)), copy), 100, SILENT)._ours(3)
    assert after == before


@pytest.mark.slow
def test_a_run_with_folds_is_refused(run: Path):
    opened = open_run(resolve_settings(str(run)), run)
    tuning = opened.settings.finetune.model_copy(update={"folds": 2})
    opened.settings = opened.settings.model_copy(update={"finetune": tuning})
    with pytest.raises(InputError, match="--folds 1"):
        Workbench(opened, 100, SILENT)


@pytest.mark.slow
def test_elements_that_are_what_tells_the_labels_apart_beat_random_ones(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Mined elements are put where the squares are, whose colour is the label: ours must win against chance.

    Features are mean colours here, for those of a random model do not tell red from blue.
    """
    monkeypatch.setattr(Workbench, "features", mean_colours)
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    work = Workbench(open_run(resolve_settings(str(copy)), copy), 100, SILENT)
    patches = [
        work.patch(image.image_id, image.labels[0], *square(work, image))
        for image in sorted(work.making, key=lambda image: image.labels)
    ]
    blank = dict.fromkeys(ELEMENTS_SCHEMA.names, 0) | {"file_name": "", "typicality": 1.0}
    where = ("image_id", "label", "row", "column", "side")
    rows = [blank | {name: getattr(p, name) for name in where} for p in patches]
    pq.write_table(pa.Table.from_pylist(rows, schema=ELEMENTS_SCHEMA), copy / "elements.parquet")
    np.save(copy / "features.npy", mean_colours(work, patches))
    found = elements(copy, count=4, seeds=2, epochs=1, draws=2)
    ours, chance = (next(r for r in found.rows if (r.method, r.space) == (m, "dift")) for m in ("ours", "random"))
    assert ours.area > 0.95
    assert ours.area > chance.area + 0.1
    assert ours.area > ours.chance_area + 0.2
    assert ours.accuracy > found.chance + 0.2
    assert chance.area_same_search[0] == pytest.approx(ours.area - chance.area, abs=2e-4)


def mean_colours(work: Workbench, patches: Sequence[Patch]) -> np.ndarray:
    """(n, 3) unit float32 rows: the mean colour of every patch."""
    images = {image.image_id: image for image in (*work.making, *work.fitting, *work.held_out)}
    pixels = {image_id: work.pixels(images[image_id]) for image_id in {p.image_id for p in patches}}
    factor = work.run.base.factor
    found = []
    for p in patches:
        top, left, side = (n * factor for n in (p.row, p.column, p.side))
        found.append(pixels[p.image_id][:, top : top + side, left : left + side].mean((1, 2)))
    return (np.array(found) / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def square(work: Workbench, image: LabelledImage) -> tuple[int, int]:
    """Row and column, in cells, of the patch with the most colour: where the square is."""
    pixels, factor = work.pixels(image), work.run.base.factor
    colour = np.abs(pixels[0] - pixels[2])
    cells = colour.reshape(colour.shape[0] // factor, factor, colour.shape[1] // factor, factor).mean((1, 3))
    sums = np.lib.stride_tricks.sliding_window_view(cells, (work.side, work.side)).sum((2, 3))
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(row), int(column)


@pytest.mark.slow
def test_the_whole_benchmark(run: Path, tmp_path: Path):
    found = elements(run, count=3, seeds=2, epochs=3, draws=2, picture=tmp_path / "curves.png")
    assert [(r.method, r.space) for r in found.rows] == METHODS
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert found.n_held_out + found.n_training + found.n_fitting == 32
    assert found.area_ours == found.rows[0].area
    assert found.rows[0].area_difference == found.rows[0].area_same_search == (0, 0, 0)
    assert [r.method for r in found.rows if r.area_same_search is None] == ["hog svm", "gradcam"]
    for row in found.rows:
        assert row.area_interval[0] <= row.area <= row.area_interval[1]
        assert row.accuracy_interval[0] <= row.accuracy <= row.accuracy_interval[1]
        assert 0 <= row.chance_area <= 1
        assert row.elements == 3
    rivals = [r for r in found.rows if r.method != "ours"]
    own, alike = ([r.accuracy for r in rivals if (r.space == "typicality") is same] for same in (False, True))
    assert found.accuracy_margin == pytest.approx(found.accuracy_ours - max(own), abs=2e-4)
    assert found.accuracy_margin_same_search == pytest.approx(found.accuracy_ours - max(alike), abs=2e-4)
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert found.built_on == {"finetune": stages["finetune"]["weights"], "mine": stages["mine"]["key"]}
    json.dumps(found.as_dict(), allow_nan=False)
    again = elements(run, count=3, seeds=2, epochs=3, draws=2)
    assert [r.area for r in again.rows] == [r.area for r in found.rows]
