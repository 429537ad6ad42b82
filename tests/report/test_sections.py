"""Sections: what applications left in the run directory is shown, and what is missing, broken or elsewhere is not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from typicality.report.render import lay_out
from typicality.report.sections import SECTIONS, Source, read_sections
from typicality.report.sections.audit import Findings
from typicality.report.sections.evaluation import Evaluation
from typicality.report.sections.localize import Localization
from typicality.report.sections.translate import Translations
from typicality.report.sections.trends import Trends
from typicality.report.view import ReportInput, build_view

from .synthetic import synthetic_input

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def data(tmp_path: Path) -> ReportInput:
    return replace(synthetic_input(labels=["2016", "2019"], clusters=2, members=3), folder=tmp_path)


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def element(data: ReportInput, row: int = 0) -> dict[str, Any]:
    return data.elements.to_pylist()[row]


def a_finding(data: ReportInput, **changes: Any) -> dict[str, Any]:
    e = element(data)
    box = [e["x0"], e["y0"], e["x1"], e["y1"]]
    evidence = [{"image_id": e["image_id"], "file_name": e["file_name"], "label": e["label"], "box": box}]
    return {
        "id": "f1", "kind": "same_place", "severity": "high", "title": "A clock", "explanation": "It is printed.",
        "labels": ["2016"], "score": 0.5, "standard_error": 0.1, "p_value": 0.0002, "evidence": evidence, **changes,
    }  # fmt: skip


def fill_all(data: ReportInput) -> None:
    """Leave something of every application in the run directory."""
    folder = data.folder
    assert folder is not None
    e = element(data)
    write(folder / "findings.json", {"findings": [a_finding(data, title=HOSTILE)], "notes": [HOSTILE]})
    keys = ("image_id", "file_name", "label", "x0", "y0", "x1", "y1")
    boxes = [{**{k: e[k] for k in keys}, "score": 0.3, "area": 9, "threshold": 0.1}]
    pq.write_table(pa.Table.from_pylist(boxes), folder / "localization.parquet")
    pair = folder / "translate" / "2016-2019-abc"
    (pair / "pictures").mkdir(parents=True)
    PIL.Image.new("RGB", (90, 30), "red").save(pair / "pictures" / "a.png")
    row = {"image_id": "a", "file_name": HOSTILE, "from": "2016", "to": "2019", "method": "sdedit", "change": 0.002}
    rows = [{**row, "flipped": True, "label_after": "2019", "picture": "pictures/a.png"}]
    pq.write_table(pa.Table.from_pylist(rows), pair / "translations.parquet")
    at = [{"label": name, "rate": r, "low": r / 2, "high": 2 * r} for name, r in (("2016", 0.4), ("2019", 0.1))]
    course = {"label": "2016", "cluster": 0, "rank": 0, "direction": "fall", "adjusted_p_value": 0.01, "at": at}
    write(folder / "trends" / "trends.json", {"ordered": True, "n_falling": 1, "timelines": [course]})
    confusion = {"2016": {"2016": 8, "2019": 2}, "2019": {"2016": 4, "2019": 6}}
    write(folder / "evaluation" / "classify.json", {"confusion": confusion, "accuracy": 0.7, "chance": 0.5})


def test_an_empty_run_directory_has_no_sections(data: ReportInput) -> None:
    assert read_sections(data) == ()
    assert read_sections(replace(data, folder=None)) == ()


def test_everything_that_was_left_is_shown_and_escaped(data: ReportInput) -> None:
    fill_all(data)
    sections = read_sections(data)
    assert [type(s) for s in sections] == list(SECTIONS)
    page, files = lay_out(data, build_view(data))
    assert files == {}
    for section in SECTIONS:
        assert f'id="{section.slug}"' in page
        assert f'href="#{section.slug}"' in page
    assert "onerror=alert(1)>" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("findings.json", "{"),
        ("findings.json", "[1, 2]"),
        ("findings.json", '{"findings": [{"id": 1}, 7, null]}'),
        ("findings.json", '{"findings": {"title": "x"}}'),
        ("localization.parquet", "no table"),
        ("trends/trends.json", '{"timelines": [{"at": [{"rate": "much"}]}], "similarity": {"share": [[1]]}}'),
        ("translate/a-b/translations.parquet", "no table"),
        ("translate/pairs.parquet", "no table"),
        ("evaluation/classify.json", '{"confusion": {"a": 1}, "rows": [{"method": "m", "coverage": [1]}]}'),
    ],
)
def test_what_is_not_understood_is_left_out(data: ReportInput, name: str, content: str) -> None:
    assert data.folder is not None
    path = data.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert read_sections(data) == ()


def test_findings_come_by_severity_and_keep_their_own_order(data: ReportInput) -> None:
    assert data.folder is not None
    given = [("b", "low"), ("c", "high"), ("d", "medium"), ("e", "high")]
    write(data.folder / "findings.json", {"findings": [a_finding(data, title=t, severity=s) for t, s in given]})
    section = Findings.read(Source(data.folder, data))
    assert section is not None
    assert [f.title for f in section.findings] == ["c", "e", "d", "b"]
    assert section.counts == (("high", 2), ("medium", 1), ("low", 1))
    assert section.findings[0].measure == "score 0.5 ± 0.1, p < 0.001"


def test_a_finding_of_an_image_that_is_gone_is_named_without_a_picture(data: ReportInput) -> None:
    assert data.folder is not None
    gone = [{"image_id": "0" * 32 + "x", "file_name": "gone.png", "label": "2016", "box": [0, 0, 9, 9]}]
    write(data.folder / "findings.json", {"findings": [a_finding(data, evidence=gone)]})
    section = Findings.read(Source(data.folder, data))
    assert section is not None
    assert [(e.name, e.crop) for e in section.findings[0].exhibits] == [("gone.png", None)]


def test_a_box_beyond_the_image_is_cut_to_it(data: ReportInput) -> None:
    """Images are 64 px: a box from -5 to 500 is the whole image."""
    crop = Source(data.folder or Path(), data).crop(element(data)["image_id"], (-5, -5, 500, 500))
    assert crop is not None
    assert crop.box == (0.0, 0.0, 1.0, 1.0)


def test_pictures_outside_of_the_run_are_never_read(data: ReportInput, tmp_path: Path) -> None:
    inner = tmp_path / "run"
    inner.mkdir()
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (inner / "link.png").symlink_to(tmp_path / "secret.png")
    source = Source(inner, data)
    assert source.picture("..", "secret.png") is None
    assert source.picture(str(tmp_path / "secret.png")) is None
    assert source.picture("link.png") is None
    PIL.Image.new("RGB", (8, 8)).save(inner / "own.png")
    assert source.picture("own.png") is not None


def test_sections_keep_to_their_share_of_the_budget(data: ReportInput) -> None:
    """Coarser pictures are taken where fine ones would spend more than a quarter of the budget."""
    fill_all(data)
    assert data.folder is not None
    fine = Source(data.folder, data, 0)
    coarse = Source(data.folder, data, Source.LEVELS - 1)
    for source in (fine, coarse):
        assert Findings.read(source) is not None
        assert Localization.read(source) is not None
    assert coarse.spent < fine.spent


def test_the_other_sections_say_what_was_measured(data: ReportInput) -> None:
    fill_all(data)
    source = Source(data.folder or Path(), data)
    translations, trends, evaluation = (s.read(source) for s in (Translations, Trends, Evaluation))
    assert isinstance(translations, Translations)
    assert (translations.pairs[0].n, translations.pairs[0].flipped, translations.pairs[0].change) == (1, 1, "+2.00")
    assert isinstance(trends, Trends)
    assert trends.timelines[0].significant
    assert trends.top == pytest.approx(0.8)  # the highest upper end: 2 x 0.4
    assert isinstance(evaluation, Evaluation)
    assert evaluation.plots[0].reading.startswith("70% of held-out images are recognised")
    assert "2019 is most often taken for 2016 (40%)" in evaluation.plots[0].reading
