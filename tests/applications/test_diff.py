"""What changed between two runs is found, by hand-made changes to a copy of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.applications.mined import STALE, change_record, note_mined, write_mined
from typicality.applications.audit.findings import Finding, Severity
from typicality.applications.diff import changes, diff, iou, match_elements, sound, spearman, write_page
from typicality.cli.app import run as command
from typicality.errors import OutputError

Edit = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@pytest.fixture
def runs(tiny_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    before = write_mined(tmp_path / "before", tiny_folder)
    shutil.copytree(before, tmp_path / "after")
    return before, tmp_path / "after"


def edit(run: Path, table: str, change: Edit) -> None:
    path = run / f"{table}.parquet"
    old = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(old.to_pylist()), schema=old.schema), path)


def test_a_run_is_the_same_as_itself(runs: tuple[Path, Path]) -> None:
    found = diff(*runs)
    assert found.same
    assert [(c.label, c.matched, c.rank_correlation) for c in found.labels] == [("blue", 6, 1.0), ("red", 6, 1.0)]
    assert [(c.cluster_before, c.cluster_after, c.shared) for c in found.labels[0].clusters] == [
        (0, 0, 1.0),
        (1, 1, 1.0),
    ]
    json.dumps(found.as_dict(), allow_nan=False)


def test_boxes_match_from_half_their_union() -> None:
    """12 x 12 boxes moved by 4 px: 96 / 192 = 0.5 matches; by 5 px: 84 / 204 does not."""

    def box(x: int) -> dict[str, Any]:
        return {"image_id": "a", "x0": x, "y0": 0, "x1": x + 12, "y1": 12}

    assert iou(box(0), box(4)) == pytest.approx(0.5)
    assert iou(box(0), box(12)) == 0
    assert match_elements([box(0)], [box(4)]) == [(0, 0)]
    assert match_elements([box(0)], [box(5)]) == []
    assert match_elements([box(0)], [{**box(0), "image_id": "b"}]) == []
    assert match_elements([box(0), box(2)], [box(2), box(0)]) == [(0, 1), (1, 0)]  # the best overlaps first
    assert match_elements([box(0), box(0)], [box(0)]) == [(0, 0)]


def test_elements_that_come_go_and_move_are_named(runs: tuple[Path, Path]) -> None:
    """Of blue: rank 0 goes elsewhere in its image, the last becomes the first but one."""

    def moved(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        blue = [r for r in rows if r["label"] == "blue"]
        blue[0].update(x0=20, x1=32, y0=20, y1=32)
        order = [blue[0], blue[5], *blue[1:5]]
        for rank, row in enumerate(order):
            row["rank"] = rank
        return [*order, *(r for r in rows if r["label"] == "red")]

    edit(runs[1], "elements", moved)
    blue, red = diff(*runs).labels
    assert (len(blue.appeared), len(blue.vanished), blue.matched) == (1, 1, 5)
    assert (blue.appeared[0].rank_before, blue.appeared[0].rank_after) == (None, 0)
    assert (blue.vanished[0].rank_before, blue.vanished[0].rank_after) == (0, None)
    assert (blue.moved[0].rank_before, blue.moved[0].rank_after) == (5, 1)
    assert (red.appeared, red.vanished, red.moved) == ((), (), ())
    # ranks 1..5 become 2, 3, 4, 5, 1: rho = 1 - 6 * (4 * 1 + 16) / (5 * 24) = 0
    assert blue.rank_correlation == pytest.approx(0.0)


def test_scores_are_compared_in_their_errors(runs: tuple[Path, Path]) -> None:
    """0.003 more with errors of 0.001 on both sides is z = 0.003 / (0.001 sqrt 2) = 2.12."""

    def raised(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[0].update(typicality=rows[0]["typicality"] + 0.003, rank=1)
        rows[1].update(rank=0)
        return rows

    edit(runs[1], "elements", raised)
    change = next(e for e in diff(*runs).labels[0].moved if e.rank_before == 0)
    assert change.z == pytest.approx(3 / np.sqrt(2), abs=0.01)


def test_clusters_are_matched_by_members_and_not_by_number(runs: tuple[Path, Path]) -> None:
    def swapped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "cluster": 1 - row["cluster"]} for row in rows]

    edit(runs[1], "elements", swapped)
    edit(runs[1], "clusters", swapped)
    found = diff(*runs).labels[0].clusters
    assert [(c.cluster_before, c.cluster_after, c.shared) for c in found] == [(0, 1, 1.0), (1, 0, 1.0)]
    edit(runs[1], "clusters", lambda rows: [r for r in rows if r["cluster"] == 1])
    found = diff(*runs).labels[0].clusters
    assert [(c.cluster_before, c.cluster_after) for c in found] == [(0, 1), (1, None)]


def test_settings_model_and_images_are_compared(runs: tuple[Path, Path]) -> None:
    record = json.loads((runs[1] / "run.json").read_text())
    record["settings"]["seed"] = 7
    record["settings"]["score"]["draws"] = 16
    record["model"]["name"] = "another"
    (runs[1] / "run.json").write_text(json.dumps(record))
    edit(runs[1], "images", lambda rows: rows[1:])
    found = diff(*runs)
    assert {(c.name, c.before, c.after) for c in found.settings} == {("seed", 0, 7), ("score.draws", None, 16)}
    assert [(c.name, c.after) for c in found.model] == [("name", "another")]
    assert (found.data.removed, found.data.added, len(found.data.removed_names)) == (1, 0, 1)
    assert not found.same


def test_nested_changes_have_dotted_names() -> None:
    found = changes({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1}, "e": {"f": 4}})
    assert [(c.name, c.before, c.after) for c in found] == [("a.c", 2, None), ("d", 3, None), ("e.f", None, 4)]


def test_findings_that_are_new_or_gone(runs: tuple[Path, Path]) -> None:
    """A mark that is in one image more has another id, for that says which images they are; it is the same mark."""

    def finding(identity: str, concerns: range, basis: Literal["name", "images"] = "name") -> Finding:
        return Finding(
            kind="same_place", severity="high", title=f"finding {identity}", explanation="", labels=("a",), score=0.9,
            standard_error=None, p_value=0.001, evidence=(), identity=identity, basis=basis,
            concerns=tuple(map(str, concerns)),
        )  # fmt: skip

    def write(run: Path, *findings: Finding) -> None:
        (run / "findings.json").write_text(json.dumps({"findings": [f.as_dict() for f in findings]}))

    kept = finding("b", range(9))
    marks = [finding("mark", numbers, "images") for numbers in (range(20), range(21), range(100, 120))]
    assert len({mark.id for mark in marks}) == 3
    write(runs[0], finding("a", range(9)), kept, marks[0])
    assert not diff(*runs).findings_known
    write(runs[1], kept, finding("c", range(9)), marks[1], marks[2])
    found = diff(*runs)
    assert found.findings_known
    assert [(f.state, f.id) for f in found.findings] == [
        ("new", finding("c", range(9)).id), ("new", marks[2].id), ("gone", finding("a", range(9)).id),
    ]  # fmt: skip
    (runs[1] / "findings.json").write_text("{")
    with pytest.raises(OutputError, match="typicality audit"):
        diff(*runs)


def a_finding(severity: Severity, identity: str = "mark", concerns: range = range(20)) -> Finding:
    return Finding(
        kind="same_place", severity=severity, title=f"the {identity}", explanation="", labels=("a",), score=0.9,
        standard_error=None, p_value=0.001, evidence=(), identity=identity, concerns=tuple(map(str, concerns)),
        basis="images",
    )  # fmt: skip


def write_findings(run: Path, *findings: Finding, fingerprint: str | None = None) -> None:
    document = {"dataset": {"fingerprint": fingerprint}, "findings": [f.as_dict() for f in findings]}
    (run / "findings.json").write_text(json.dumps(document))


def test_findings_that_became_graver_or_milder(runs: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    """The first is the same thing by its images, under another id; the second and third keep their ids."""
    before, after = a_finding("medium"), a_finding("high", concerns=range(21))
    write_findings(runs[0], before, a_finding("high", "border"), a_finding("low", "text"))
    write_findings(runs[1], after, a_finding("low", "border"), a_finding("low", "text"))
    assert before.id != after.id
    found = diff(*runs)
    assert not found.same
    assert [(f.state, f.id, f.severity_before, f.severity) for f in found.findings] == [
        ("graver", after.id, "medium", "high"), ("milder", a_finding("low", "border").id, "high", "low"),
    ]  # fmt: skip
    assert command(["diff", *map(str, runs), "--out", str(tmp_path / "diff.html"), "--quiet"]) == 0
    assert "graver finding (medium -> high): the mark" in capsys.readouterr().out
    assert "medium → high" in (tmp_path / "diff.html").read_text()
    write_findings(runs[1])
    assert next((f.state, f.severity, f.severity_before) for f in diff(*runs).findings) == ("gone", "medium", None)


def test_findings_of_an_earlier_state_are_unknown(runs: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    """Of other images by their fingerprint; of another model or other elements by what the audit was built on."""

    def audited(record: dict[str, Any]) -> None:
        record["stages"] |= {"finetune": {"weights": "w1"}, "mine": {"key": "m1"}}
        record["stages"]["audit"] = {"state": "done", "built_on": {"finetune": "w1", "mine": "m1"}}

    write_findings(runs[0], a_finding("high"))
    change_record(runs[1], audited)
    write_findings(runs[1], fingerprint=json.loads((runs[1] / "run.json").read_text())["dataset"]["fingerprint"])
    assert (diff(*runs).findings_known, diff(*runs).findings_stale) == (True, ())
    change_record(runs[1], lambda record: record["stages"]["mine"].update(key="m2"))
    found = diff(*runs)
    assert (found.findings_known, found.findings, found.findings_stale) == (False, (), (str(runs[1]),))
    assert command(["diff", *map(str, runs), "--out", str(tmp_path / "diff.html"), "--quiet"]) == 0
    assert f"typicality audit {runs[1]}" in capsys.readouterr().out
    assert "Not compared: an earlier state of" in (tmp_path / "diff.html").read_text()
    change_record(runs[1], audited)
    assert diff(*runs).findings_known
    write_findings(runs[1], fingerprint="other images")
    assert not diff(*runs).findings_known


def test_what_an_audit_did_not_look_for_is_not_gone(runs: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    """The second audit was of images only: it could find the mark again, or not, but neither labels nor elements."""
    wrong = replace(a_finding("high", "wrong label"), kind="label_error")
    element = replace(a_finding("high", "element"), details={"cluster": 0})
    write_findings(runs[0], a_finding("high"), wrong, element)
    write_findings(runs[1])
    assert [f.state for f in diff(*runs).findings] == ["gone"] * 3
    document = {"findings": [], "images_only": True, "not_examined": ["label_error", "borders"]}
    (runs[1] / "findings.json").write_text(json.dumps(document))
    for found, state in ((diff(*runs), "gone"), (diff(*runs[::-1]), "new")):
        assert [(f.state, f.title) for f in found.findings] == [(state, "the mark")]
        assert (found.findings_known, found.findings_not_compared) == (True, ("borders", "label_error"))
    assert command(["diff", *map(str, runs), "--quiet"]) == 0
    assert "did not look for them: borders, label_error" in capsys.readouterr().out
    (runs[0] / "findings.json").write_text(json.dumps(document))
    assert diff(*runs).findings_not_compared == ()


@pytest.mark.parametrize("said", STALE)
def test_a_run_that_was_not_mined_as_it_is_now(runs: tuple[Path, Path], said: str) -> None:
    for run in runs:
        change_record(run, note_mined)
    assert diff(*runs).same
    change_record(runs[1], STALE[said])
    with pytest.raises(OutputError, match=rf"{said}.*`typicality mine {runs[1]}`"):
        diff(*runs)


def test_what_holds_up_is_what_the_report_says() -> None:
    """Only a test against controls can say so; what speaks against a cluster is said without one, too."""
    nan = float("nan")
    tested = {"p_value_method": "controls", "p_value": 0.01, "n_images": 5, "few_images": False}
    assert sound({**tested, "adjusted_p_value": 0.05}) is True
    assert sound({**tested, "adjusted_p_value": 0.06}) is False
    assert sound({**tested, "adjusted_p_value": 0.01, "few_images": True}) is False
    assert sound({**tested, "adjusted_p_value": 0.01, "stability": 0.4}) is False
    assert sound({**tested, "adjusted_p_value": nan, "p_value": nan}) is None
    assert sound({**tested, "adjusted_p_value": 0.001, "p_value_method": "sign flip"}) is None
    assert sound({"few_images": True, "n_images": 2, "p_value_method": "sign flip"}) is False


def test_a_run_without_tests_has_nothing_that_holds_up(runs: tuple[Path, Path], tmp_path: Path) -> None:
    edit(runs[1], "clusters", lambda rows: [{**row, "p_value_method": "sign flip"} for row in rows])
    found = diff(*runs)
    assert (found.labels[0].sound_before, found.labels[0].sound_after) == (1, None)
    page = write_page(found, tmp_path / "diff.html").read_text()
    assert "1 → not tested" in page
    assert "yes → not tested" in page


def test_correlation_needs_three() -> None:
    assert spearman(np.array([[0, 1], [1, 0]])) is None
    assert spearman(np.array([[0, 9], [3, 5], [7, 1]])) == -1.0


def test_the_page_is_one_escaped_file(runs: tuple[Path, Path], tmp_path: Path) -> None:
    def hostile(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[0].update(x0=25, x1=37, file_name="<script>alert(1)</script>")
        return rows

    edit(runs[1], "elements", hostile)
    page = write_page(diff(*runs), tmp_path / "diff.html").read_text()
    assert "alert(1)</script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count('src="data:image/webp') >= 2  # the one that came and the one that went
    assert "http" not in page.replace("http-equiv", "")
    shutil.rmtree(runs[1])
    with pytest.raises(OutputError, match=r"no run\.json"):
        diff(*runs)
