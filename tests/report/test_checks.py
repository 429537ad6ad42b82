"""The findings of data that was not mined, as a page of their own."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image

from typicality.config import ReportSettings
from typicality.report.checks import write_checks

HOSTILE = "<img src=x onerror=alert(1)>"


def page_of_findings(folder: Path, *findings: dict, budget_mb: float = 4.0) -> str:
    (folder / "findings.json").write_text(json.dumps({"findings": findings, "notes": [HOSTILE]}))
    noise = PIL.Image.effect_noise((300, 300), 90).convert("RGB")
    settings = ReportSettings(budget_mb=budget_mb)
    path = write_checks(folder, HOSTILE, "year", {"i": "i.png"}, lambda image_id: noise, settings)
    assert path == folder / "index.html"
    return path.read_text()


def a_finding(**changes: object) -> dict:
    shown = [{"image_id": "i", "file_name": "i.png", "label": "a", "box": None}] * 10
    return {"id": "f", "kind": "same_place", "severity": "high", "title": HOSTILE, "evidence": shown, **changes}


def test_findings_are_shown_and_escaped(tmp_path: Path) -> None:
    page = page_of_findings(tmp_path, a_finding())
    assert 'id="findings"' in page
    assert "data:image/" in page
    assert "onerror=alert(1)>" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 3


def test_what_the_baseline_knows_is_counted_and_not_shown(tmp_path: Path) -> None:
    page = page_of_findings(tmp_path, a_finding(title="old", new=False), a_finding(title="fresh", new=True))
    assert "fresh" in page
    assert "<bdi>old</bdi>" not in page
    assert "1 finding of the baseline is in findings.json only" in page
    assert "1 high" in page


def test_nothing_found_is_said(tmp_path: Path) -> None:
    assert "Nothing was found." in page_of_findings(tmp_path)


def test_pictures_get_coarser_to_keep_to_the_budget(tmp_path: Path) -> None:
    """Ten pictures of noise are far larger at the finest level than at the coarsest."""
    fine = page_of_findings(tmp_path, a_finding())
    coarse = page_of_findings(tmp_path, a_finding(), budget_mb=len(fine) / 1e6 * 0.8)
    assert len(coarse) < 0.8 * len(fine)
