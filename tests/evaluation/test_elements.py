"""Elements beside their rivals: the parts by hand, then the whole on a mined run of the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import typicality
from typicality.errors import InputError, OutputError
from typicality.evaluation.detection import Workbench, in_turn, without_own_group
from typicality.evaluation.elements import elements
from typicality.progress import SILENT
from typicality.run import open_run, resolve_settings

METHODS = [
    ("ours", "dift"), ("random", "dift"), ("least typical", "dift"), ("hog svm", "dift"), ("hog svm", "hog"),
    ("gradcam", "dift"), ("gradcam", "cnn"),
]  # fmt: skip


def test_members_in_turn():
    """The best of every cluster, then the second of those that have one."""
    assert in_turn([["a1", "a2", "a3"], ["b1"], ["c1", "c2"]]) == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert in_turn([]) == []


def test_an_element_tells_nothing_about_its_own_group():
    """Element 0 is of group a: its matches there become the mean of the others, 0.3; element 1 is of no image here."""
    matches = np.array([[1.0, 0.5], [0.9, 0.6], [0.2, 0.7], [0.4, 0.8]])
    found = without_own_group(matches, np.array(["a", "a", "b", "c"]), ["a", "z"])
    assert found[:, 0] == pytest.approx([0.3, 0.3, 0.2, 0.4])
    assert np.array_equal(found[:, 1], matches[:, 1])
    assert matches[0, 0] == 1, "the argument is not changed"


def test_without_a_run(tmp_path: Path):
    with pytest.raises(OutputError, match="no run directory"):
        elements(tmp_path)
    with pytest.raises(InputError, match="at least 1"):
        elements(tmp_path, count=0)


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = typicality.mine(
        tiny_folder, "folder", model=str(tiny_model), dtype="fp32", out=tmp_path_factory.mktemp("elements") / "run",
        finetune={"steps": 2, "batch_size": 8, "validate_every": 2},
        score={"draws": 2, "refine_draws": 2}, mine={"noises": 1, "share": 1.0, "per_label": 40, "clusters": 4},
    )  # fmt: skip
    return result.folder


@pytest.mark.slow
def test_elements_come_from_training_images_alone(run: Path):
    """No element of any method lies in an image of a held-out group, and all methods have equally many."""
    work = Workbench(open_run(resolve_settings(str(run)), run), 100, SILENT)
    held_out = {image.group for image in work.held_out}
    assert held_out
    with work.run.directory.lock():
        sets = work.element_sets(3, 0, 2)
    assert [(s.method, s.space) for s in sets] == METHODS
    for made in sets:
        assert not {work.groups[p.image_id] for p in made.patches} & held_out
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
    image = work.training[0].image_id
    found = work.features([work.patch(image, label, 1, 2) for label in work.labels])
    assert np.array_equal(found[0], found[1])


@pytest.mark.slow
def test_the_whole_benchmark(run: Path, tmp_path: Path):
    found = elements(run, count=3, seeds=2, epochs=3, picture=tmp_path / "curves.png")
    assert [(r.method, r.space) for r in found.rows] == METHODS
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert found.n_held_out + found.n_training == 32
    assert found.area_ours == found.rows[0].area
    assert found.rows[0].area_difference == (0, 0, 0)
    for row in found.rows:
        assert row.area_interval[0] <= row.area <= row.area_interval[1]
        assert row.accuracy_interval[0] <= row.accuracy <= row.accuracy_interval[1]
        assert 0 <= row.chance_area <= 1
        assert row.elements == 3
    assert found.accuracy_margin == pytest.approx(found.accuracy_ours - max(r.accuracy for r in found.rows[1:]))
    json.dumps(found.as_dict(), allow_nan=False)
    again = elements(run, count=3, seeds=2, epochs=3)
    assert [r.area for r in again.rows] == [r.area for r in found.rows]
