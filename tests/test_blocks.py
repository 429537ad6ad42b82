"""Work that is done in blocks gives what the whole would: here with more rows than a block holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.applications.mined import write_mined
from typicality.applications import export as export_module
from typicality.applications.audit import duplicates
from typicality.applications.export import export
from typicality.applications.trends.statistics import neighbour_shares
from typicality.report.view import ElementView, Score, nearest


def circle(n: int, step: float) -> np.ndarray:
    """(n, 2) unit vectors, each `step` degrees on from the one before."""
    angles = np.deg2rad(step * np.arange(n))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize("block", [2, 256])
def test_near_duplicates_of_other_groups(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Seven images at 0, 5, ... 30 degrees, in pairs of one group: the nearest outside is the next one that is not."""
    monkeypatch.setattr(duplicates, "BLOCK", block)
    details, groups = circle(7, 5), np.arange(7) // 2
    similarity, neighbour = duplicates._nearest(details, groups, details, groups, 1)
    assert neighbour[:, 0].tolist() == [2, 2, 1, 4, 3, 6, 5]
    steps = np.array([2, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(similarity[:, 0], np.cos(np.deg2rad(5 * steps)), rtol=1e-5)


def test_pictures_that_are_the_same_to_the_eye_beyond_one_block() -> None:
    """1,030 pairs of a black image: with a nearly black one every third time, else with a white one."""
    thumbnails = np.array([0, 3, 255], dtype=np.uint8)[:, None, None, None]
    pairs = np.array([[0, 1 if k % 3 == 0 else 2] for k in range(1030)])
    found = duplicates._identical(SimpleNamespace(thumbnails=thumbnails), pairs)
    assert found.tolist() == [k % 3 == 0 for k in range(1030)]


def test_labels_of_look_alikes_beyond_one_block() -> None:
    """550 groups of two equal elements: 512 of labels 0 and 1 by turns, and on the other side 38 of 2 and 3 by turns.

    Outside its group each finds the other of the two nearest; with its relative in the search it would find its own.
    """
    side = np.concatenate([circle(512, 0.3), -circle(38, 0.3)])
    labels = np.repeat([*[0, 1] * 256, *[2, 3] * 19], 2)
    found = neighbour_shares(np.repeat(side, 2, axis=0), labels, np.arange(1100) // 2, 4)
    np.testing.assert_array_equal(found.share, np.eye(4)[[1, 0, 3, 2]])


def test_look_alikes_of_elements_in_the_report_beyond_one_block() -> None:
    """600 elements on a circle, one an image: the most alike are the neighbours, for those of the second block too."""
    none = Score(0.0, None)
    elements = [ElementView(1000 + i, f"{i}", "", "a", (0, 0, 1, 1), none, None, i, 0, row=i) for i in range(600)]
    found = nearest(elements, circle(600, 0.6))
    assert set(found) == {1000 + i for i in range(600)}
    for i in range(600):
        assert set(found[1000 + i][:2]) == {1000 + (i - 1) % 600, 1000 + (i + 1) % 600}


def test_rows_for_datasets_are_written_once(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 images in row groups of 5, 5 and 2."""
    monkeypatch.setattr(export_module, "BATCH", 5)
    mined = write_mined(tmp_path / "run", tiny_folder)
    (path,) = (export(mined, "hf", tmp_path / "hf") / "data").iterdir()
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [5, 5, 2]
    written = pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()
    assert sorted(written) == sorted(pq.read_table(mined / "elements.parquet")["image_id"].to_pylist())
