"""The section of places: what the maps mean, how good they were found to be, and overlays of all labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from typicality.report.render import lay_out
from typicality.report.sections import Source
from typicality.report.sections.localize import OVERLAYS, Localization
from typicality.report.view import ReportInput, build_view

from .synthetic import synthetic_input

LABELS = ["bar", "dot", "line"]


@pytest.fixture
def data(tmp_path: Path) -> ReportInput:
    """A run with a box of the labels bar and dot, and eight overlays of every label."""
    data = replace(synthetic_input(labels=LABELS, clusters=1, members=2), folder=tmp_path)
    e = data.elements.to_pylist()[0]
    keys = ("image_id", "file_name", "x0", "y0", "x1", "y1")
    rows = [{**{k: e[k] for k in keys}, "label": label, "score": 0.3} for label in ("bar", "dot")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "localization.parquet")
    (tmp_path / "localize" / "overlays").mkdir(parents=True)
    for label in LABELS:
        for i in range(8):
            PIL.Image.new("RGB", (60, 30), "red").save(tmp_path / "localize" / "overlays" / f"{label}-{i}.png")
    return data


def summarise(data: ReportInput, **changes: Any) -> None:
    """Write the summary that localize would: bar and dot were measured, line was not."""
    facts = {
        label: {
            "meaning": f"the model predicts badly under {label}", "recipe": "reference error, t 0.1-0.7",
            "threshold_by": "Otsu", "chosen_by": "validation part",
            "overlays": [{"file": f"{label}-{i}.png", "file_name": f"photo {i}"} for i in range(8)],
        }
        for label in LABELS
    }  # fmt: skip
    row = {"images": 24, "average_precision": 0.4125, "prevalence": 0.031, "lift": 13.3, "pointing": 0.714}
    document = {"labels": facts, "measures": {"bar": row, "dot": {**row, "lift": None}}} | changes
    assert data.folder is not None
    (data.folder / "localize" / "summary.json").write_text(json.dumps(document))


def read(data: ReportInput) -> Localization:
    section = Localization.read(Source(data.folder or Path(), data))
    assert section is not None
    return section


def test_every_label_gets_its_share_of_the_overlays(data: ReportInput):
    """Sixteen in all, taken in turn: six, five and five; each stands with its label, under the name of its image."""
    summarise(data)
    section = read(data)
    assert [located.label for located in section.labels] == LABELS
    assert [len(located.overlays) for located in section.labels] == [6, 5, 5]
    assert section.labels[1].overlays[0].name == "photo 0"
    assert section.overlays == ()


def test_without_a_summary_overlays_come_evenly_from_all(data: ReportInput):
    """Those of an earlier version, whose names begin with the label: at least four of each."""
    section = read(data)
    labels = [overlay.name.partition("-")[0] for overlay in section.overlays]
    assert len(labels) == OVERLAYS
    assert min(labels.count(label) for label in LABELS) >= 4
    assert [located.label for located in section.labels] == ["bar", "dot"]


def test_the_page_says_what_the_recipe_means_and_how_good_it_is(data: ReportInput):
    """The recipe is an error under a reference, so no word of knowing a label; what is missing is left out."""
    summarise(data)
    page, _ = lay_out(data, build_view(data))
    start = page.index('id="places"')
    text = page[start : page.index("</section>", start)]
    assert text.count("the model predicts badly under") == 3
    assert "knows the" not in text
    assert "reference error, t 0.1-0.7" in text
    assert text.count('average precision <span class="num">0.41</span>') == 2
    assert text.count('prevalence <span class="num">0.031</span>') == 2
    assert text.count('lift <span class="num">13.3</span>') == 1
    assert text.count('<span class="num">71%</span>') == 2
    assert "was chosen on some of the images whose truth is known" in text


@pytest.mark.parametrize("changes", [{"labels": [1]}, {"labels": {"bar": 3}}, {"measures": {"bar": [1]}}])
def test_a_summary_that_is_not_understood_costs_no_boxes(data: ReportInput, changes: dict[str, Any]):
    summarise(data, **changes)
    assert [located.n_boxes for located in read(data).labels][:1] == [1]
    assert "places" in lay_out(data, build_view(data))[0]
