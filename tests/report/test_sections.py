"""Sections: what applications left in the run directory is shown, and what is missing, broken or elsewhere is not."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from typicality.evaluation.coverage import LEVELS
from typicality.evaluation.elements import Measured
from typicality.evaluation.elements import _row as elements_row
from typicality.report.pictures import Level
from typicality.report.render import lay_out
from typicality.report.sections import SECTIONS, Source, read_sections, stale_sections
from typicality.report.sections.audit import Findings
from typicality.report.sections.evaluation import Evaluation
from typicality.report.sections.filled import Filled
from typicality.report.sections.synthetic import Synthetic
from typicality.report.sections.translate import Translations
from typicality.report.sections.trends import Trends
from typicality.report.text import MINUS
from typicality.report.view import ReportInput, build_view

from .synthetic import synthetic_input

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def data(tmp_path: Path) -> ReportInput:
    given = synthetic_input(labels=["2016", "2019"], clusters=2, members=3)
    return replace(given, folder=tmp_path, facts=deepcopy(given.facts))


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


def fill_translation(data: ReportInput, source: str, target: str, change: float = 0.002, key: str = "abc") -> None:
    """Leave what `translate` leaves of one image, and name its folder in the record of the run."""
    assert data.folder is not None
    name = f"{source}-{target}-{key}"
    pair, e = data.folder / "translate" / name, element(data)
    (pair / "pictures").mkdir(parents=True)
    PIL.Image.new("RGB", (90, 30), "red").save(pair / "pictures" / "a.png")
    boxes = [{**{side: e[side] for side in ("x0", "y0", "x1", "y1")}, "change": c} for c in (0.001, -0.003)]
    rows = [
        {
            "image_id": e["image_id"], "file_name": HOSTILE, "from": source, "to": target, "method": "sdedit",
            "change": change, "flipped": True, "label_after": target, "changes": boxes, "picture": "pictures/a.png",
        }
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), pair / "translations.parquet")
    summary = {"from": source, "to": target, "method": "sdedit", "n": 1, "flip_rate": 1.0, "already": 0.0}
    write(pair / "summary.json", summary | {"mean_change": change, "mean_change_se": None})
    data.facts["stages"][f"translate {source} to {target}"] = {"state": "done", "folder": name}


def fill_synthetic(data: ReportInput, kind: str = "variants") -> None:
    """Leave what `augment` leaves of two pictures of one image, one of them kept."""
    assert data.folder is not None
    name, e = f"{kind}-abc", element(data)
    images = data.folder / "augment" / name / "images"
    images.mkdir(parents=True)
    PIL.Image.new("RGB", (40, 40), "red").save(images / "a.png")
    shared = {"source_image_id": e["image_id"], "source": HOSTILE, "label": e["label"]}
    rows = [
        {"file_name": f"{letter}.png", **shared, "variant": n, "typicality": 0.004, "kept": letter == "a"}
        for n, letter in enumerate("ab")
    ]
    pq.write_table(pa.Table.from_pylist(rows), images.parent / "rows.parquet")
    summary = {"kind": kind, "why": {"kept": 1, HOSTILE: 1}, "mean_typicality_kept": 0.004, "mean_distance": 0.25}
    write(images.parent / "summary.json", summary)
    data.facts["stages"][f"augment {kind}"] = {"state": "done", "folder": name}


def fill_imputed(data: ReportInput) -> None:
    """Leave what `impute` leaves of one image whose truth was hidden."""
    assert data.folder is not None
    folder, e = data.folder / "impute" / "abc", element(data)
    (folder / "filled").mkdir(parents=True)
    PIL.Image.new("RGB", (64, 64), "green").save(folder / "filled" / "a.png")
    row = {
        **{k: e[k] for k in ("image_id", "label", "x0", "y0", "x1", "y1")}, "file_name": HOSTILE, "typicality": 0.002,
        "label_found": e["label"], "rmse_mean": 0.2, "picture": "filled/a.png", "spread_picture": None,
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), folder / "imputed.parquet")
    errors = {
        "mean": {"method": "the model", "rmse": 0.2, "rmse_se": 0.01},
        "harmonic": {"method": HOSTILE, "rmse": 0.19, "rmse_se": None, "kept_better": 0.25},
    }
    write(folder / "summary.json", {"notes": [HOSTILE], "errors": errors})
    data.facts["stages"]["impute"] = {"state": "done", "folder": "abc"}


def fill_all(data: ReportInput) -> None:
    """Leave something of every application in the run directory."""
    folder = data.folder
    assert folder is not None
    e = element(data)
    write(folder / "findings.json", {"findings": [a_finding(data, title=HOSTILE)], "notes": [HOSTILE]})
    keys = ("image_id", "file_name", "label", "x0", "y0", "x1", "y1")
    boxes = [{**{k: e[k] for k in keys}, "score": 0.3, "area": 9, "threshold": 0.1}]
    pq.write_table(pa.Table.from_pylist(boxes), folder / "localization.parquet")
    fill_translation(data, "2016", "2019")
    fill_synthetic(data)
    fill_imputed(data)
    at = [{"label": name, "rate": r, "low": r / 2, "high": 2 * r} for name, r in (("2016", 0.4), ("2019", 0.1))]
    at[0] |= {"n_images": 140, "typicality": 0.003, "typicality_low": 0.002, "typicality_high": 0.004}
    place = {"image_id": e["image_id"], "box": [e["x0"], e["y0"], e["x1"], e["y1"]]}
    course = {
        "label": "2016", "cluster": 0, "rank": 0, "direction": "fall", "adjusted_p_value": 0.01, "at": at,
        "appears": "2016", "found": {"2016": [place] * 3, "2019": [place]},
    }  # fmt: skip
    change = {"from": "2016", "to": HOSTILE, "size": 31, "n_images": 28, "median_change": 0.004}
    document = {
        "ordered": True, "n_falling": 1, "images_a_label": 150, "timelines": [course],
        "changes": [change | {"members": [place | {"change": 0.006}]}],
    }  # fmt: skip
    write(folder / "trends" / "trends.json", document)
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


def test_synthetic_images_stand_beside_their_sources(data: ReportInput) -> None:
    fill_synthetic(data)
    fill_synthetic(data, "negatives")
    section = Synthetic.read(Source(data.folder, data))
    assert section is not None
    assert [batch.kind for batch in section.batches] == ["variants", "negatives"]
    variants = section.batches[0]
    assert (variants.made, variants.kept, variants.refused) == (2, 1, ((HOSTILE, 1),))
    ((family,),) = [label.families for label in variants.labels]
    assert family.source is not None
    assert [(made.name, made.typicality) for made in family.made] == [("a.png", "+4.00")]
    assert dict(variants.facts)["mean distance from the source (1: an unrelated image)"] == "0.25"


def test_fillings_are_shown_with_errors_the_least_first(data: ReportInput) -> None:
    fill_imputed(data)
    section = Filled.read(Source(data.folder, data))
    assert section is not None
    assert section.hidden
    assert section.label_found == "1 of 1"
    assert [(m.error, m.kept_better) for m in section.methods] == [("0.190", "25%"), ("0.200 ± 0.010", "")]
    (filling,) = section.fillings
    assert filling.before is not None
    assert filling.before.box == filling.after.box  # one frame
    assert filling.spread is None
    data.facts["stages"]["impute"]["state"] = "interrupted"
    assert Filled.read(Source(data.folder, data)) is None


@pytest.mark.parametrize(
    ("keep", "best", "shown"), [("best", 0.3, "0.300"), ("mean", 0.3, "0.200"), ("best", None, "0.200")]
)
def test_the_error_of_a_filling_is_of_what_was_kept(
    data: ReportInput, keep: str, best: float | None, shown: str
) -> None:
    """The picture is of the kept fill, and so is the error below it; a single sample has no best, it is the mean."""
    fill_imputed(data)
    assert data.folder is not None
    folder = data.folder / "impute" / "abc"
    (row,) = pq.read_table(folder / "imputed.parquet").to_pylist()
    row = {**row, "rmse_mean": 0.2, "rmse_best": best}
    pq.write_table(pa.Table.from_pylist([row]), folder / "imputed.parquet")
    write(folder / "summary.json", {"keep": keep, "errors": {"mean": {"method": "the model", "rmse": 0.2}}})
    section = Filled.read(Source(data.folder, data))
    assert section is not None
    assert [filling.error for filling in section.fillings] == [shown]


def test_what_is_of_an_earlier_state_of_the_run_says_so(data: ReportInput) -> None:
    """Clusters were counted anew, or another model was trained; where nothing is recorded, nothing is said."""
    fill_all(data)
    stages = data.facts["stages"]
    stages |= {"finetune": {"weights": "w2", "key": "k"}, "mine": {"key": "m2"}}
    trends, translated = {"finetune": "w2", "mine": "m1"}, {"finetune": "w2"}
    stages["trends"] = {"state": "done", "built_on": trends}
    stages["translate 2016 to 2019"]["built_on"] = translated
    assert stale_sections(data, read_sections(data)) == {"trends": "typicality trends"}
    assert lay_out(data, build_view(data))[0].count("of an earlier state of the run") == 1
    trends["mine"], translated["finetune"] = "m2", "w1"
    assert stale_sections(data, read_sections(data)) == {"translations": "typicality translate"}


def test_findings_of_an_earlier_state_of_the_run_say_so(data: ReportInput) -> None:
    """What an audit without the model has recorded stands on nothing that could have changed."""
    assert data.folder is not None
    write(data.folder / "findings.json", {"findings": [a_finding(data)]})
    stages = data.facts["stages"]
    stages |= {"finetune": {"weights": "w2"}, "mine": {"key": "m1"}, "audit images": {"key": "i"}}
    stages["audit"] = {"state": "done", "built_on": {"finetune": "w2", "mine": "m1"}}
    assert stale_sections(data, read_sections(data)) == {}
    stages["mine"]["key"] = "m2"
    assert stale_sections(data, read_sections(data)) == {"findings": "typicality audit"}
    assert lay_out(data, build_view(data))[0].count("of an earlier state of the run") == 1
    del stages["audit"]["built_on"]
    assert stale_sections(data, read_sections(data)) == {}


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
        ("augment/variants-abc/rows.parquet", "no table"),
        ("impute/abc/imputed.parquet", "no table"),
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


def pictures_of(value: Any) -> list[str]:
    """All data URIs in a section, however deep."""
    if isinstance(value, str):
        return [value] if value.startswith("data:image") else []
    if is_dataclass(value):
        return [uri for f in fields(value) for uri in pictures_of(getattr(value, f.name))]
    return [uri for item in value for uri in pictures_of(item)] if isinstance(value, tuple | list) else []


def test_sections_keep_to_their_share_of_the_budget(data: ReportInput, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the budget is room for half of the finest pictures: coarser ones are taken, and they fit."""
    fill_all(data)
    monkeypatch.setattr(
        "typicality.report.sections.base.PICTURES", (Level(64, 100, 64, 100, 0), Level(8, 30, 8, 30, 0))
    )
    monkeypatch.setattr(Source, "LEVELS", 2)
    fine = sum(map(len, pictures_of(read_sections(data))))
    assert fine > 0
    tight = replace(data, settings=data.settings.model_copy(update={"budget_mb": 4 * 0.5 * fine / 1e6}))
    sections = read_sections(tight)
    assert [type(s) for s in sections] == list(SECTIONS)
    assert 0 < sum(map(len, pictures_of(sections))) <= 0.5 * fine


def test_the_other_sections_say_what_was_measured(data: ReportInput) -> None:
    fill_all(data)
    source = Source(data.folder or Path(), data)
    translations, trends, evaluation = (s.read(source) for s in (Translations, Trends, Evaluation))
    assert isinstance(translations, Translations)
    assert (translations.pairs[0].n, translations.pairs[0].flipped, translations.pairs[0].change) == (1, 1, "+2.00")
    assert [place.change for place in translations.pairs[0].places] == [f"{MINUS}3.00"]  # the largest box, either way
    assert translations.table == ()  # one pair needs no table
    assert isinstance(trends, Trends)
    assert trends.timelines[0].significant
    assert trends.top == pytest.approx(0.8)  # the highest upper end: 2 x 0.4
    first, second = trends.timelines[0].labels
    assert (first.found, first.n_images) == ("40% (20% to 80%)", 140)
    assert first.typicality == "+3.00 (+2.00 to +4.00)"
    assert (len(first.matches), len(second.matches), second.typicality) == (2, 1, "n/a")
    assert "appears at 2016" in trends.timelines[0].said
    assert (trends.images, trends.more_changes) == (150, 0)
    change = trends.changes[0]
    assert (change.size, change.n_images, change.change, change.members[0][1]) == (31, 28, "+4.00", "+6.00")
    assert isinstance(evaluation, Evaluation)
    assert evaluation.plots[0].reading.startswith("70% of held-out images are recognised")
    assert "2019 is most often taken for 2016 (40%)" in evaluation.plots[0].reading


def test_the_course_of_an_element_that_was_not_found_or_not_measured(data: ReportInput) -> None:
    folder = data.folder
    assert folder is not None
    course = {"label": "2016", "rank": 0, "direction": "none", "appears": None, "peaks": None, "vanishes": None}
    none, unknown = (
        [{"label": "2016", "rate": rate, "low": rate, "high": high}] for rate, high in ((0.0, 0.2), (None,) * 2)
    )
    timelines = [
        course | {"cluster": 0, "measured": True, "at": none},
        course | {"cluster": 1, "measured": False, "at": unknown},
    ]
    write(folder / "trends" / "trends.json", {"timelines": timelines, "n_unmeasured": 1})
    section = Trends.read(Source(folder, data))
    assert section is not None
    assert "never found" in section.timelines[0].said
    assert section.timelines[0].rates[0].high == 0.2
    assert section.timelines[1].said == "not measured: too few members define it"
    assert (section.halves, section.warnings) == (True, ())
    write(folder / "trends" / "trends.json", {"timelines": timelines})
    earlier = Trends.read(Source(folder, data))
    assert earlier is not None
    assert "Run `typicality trends` again" in earlier.warnings[0]


@pytest.mark.parametrize(("low", "said"), [(1.2, "Most alike of 2 pairs"), (0.8, "No two labels are shown to be")])
def test_labels_are_alike_against_chance(data: ReportInput, low: float, said: str) -> None:
    """The share of look-alikes grows with the number of a label's elements, so chance is what counts."""
    folder = data.folder
    assert folder is not None
    alike = {"labels": ["2016", "2019"], "share": [[0.9, 0.1], [0.4, 0.6]], "lift": [[1.0, 1.5], [0.8, 1.2]]}
    bounds = {"low": [[0.9, low], [0.5, 1.0]], "high": [[1.1, 1.9], [1.1, 1.4]]}
    write(folder / "trends" / "trends.json", {"timelines": [], "similarity": alike | bounds})
    section = Trends.read(Source(folder, data))
    assert section is not None
    assert section.similarity is not None
    assert said in section.similarity.reading
    assert "elements of 2016 have their nearest look-alike in 2019, 1.50 times chance" in section.similarity.reading
    assert f"{low:.2f} to 1.90" in section.similarity.reading


def test_curves_of_the_elements_benchmark_are_drawn(data: ReportInput) -> None:
    """What `evaluate elements` writes is what the section reads: a line a method, by its best search."""
    folder = data.folder
    assert folder is not None
    few = np.array([0.4, 0.5])
    rows = []
    for method, space, purity in (("ours", "dift", 0.8), ("hog svm", "dift", 0.5), ("hog svm", "hog", 0.6)):
        one = Measured(purity, 0.5, 0.3, np.full(len(LEVELS), purity), 3.0, few, few)
        rows.append(asdict(elements_row((method, space), [one], [one], None)))
    write(folder / "evaluation" / "elements.json", {"rows": rows})
    section = Evaluation.read(Source(folder, data))
    assert section is not None
    assert "ours (dift) 0.80, hog svm (hog) 0.60" in section.plots[0].reading


def test_two_measurements_of_one_kind_are_told_apart(data: ReportInput) -> None:
    folder = data.folder
    assert folder is not None
    confusion = {"2016": {"2016": 8, "2019": 2}, "2019": {"2016": 4, "2019": 6}}
    for name, accuracy in (("a", 0.7), ("b", 0.6)):
        write(folder / "evaluation" / f"{name}.json", {"confusion": confusion, "accuracy": accuracy})
    section = Evaluation.read(Source(folder, data))
    assert section is not None
    assert [p.title for p in section.plots] == [f"Which labels are confused ({name}.json)" for name in "ab"]
    assert [p.reading[:3] for p in section.plots] == ["70%", "60%"]
    ids = re.findall(r'\bid="([^"]*)"', "".join(p.svg for p in section.plots))
    assert len(ids) == len(set(ids))


def test_a_measurement_of_an_earlier_model_says_so(data: ReportInput) -> None:
    """`evaluate` writes what it measured; where a document does not say, nothing is said of it."""
    folder = data.folder
    assert folder is not None
    data.facts["stages"]["finetune"] |= {"weights": "w1"}
    confusion = {"2016": {"2016": 8, "2019": 2}, "2019": {"2016": 4, "2019": 6}}
    said = {}
    for name, more in (
        ("now", {"built_on": {"finetune": "w1"}}),
        ("before", {"built_on": {"finetune": "w0"}}),
        ("?", {}),
    ):
        write(folder / "evaluation" / "classify.json", {"confusion": confusion, **more})
        section = Evaluation.read(Source(folder, data))
        assert section is not None
        said[name] = "earlier state of the run" in section.plots[0].reading
    assert said == {"now": False, "before": True, "?": False}


def test_translations_are_those_of_the_record(data: ReportInput) -> None:
    """What lies there from before, or was stopped, is not shown; all others are in the table, most changed first."""
    fill_translation(data, "2019", "2016", 0.004)
    fill_translation(data, "2016", "2019", 0.001, key="old")
    fill_translation(data, "2016", "2019", 0.002)
    fill_translation(data, "2016", "2022", 0.009)
    data.facts["stages"]["translate 2016 to 2022"]["state"] = "interrupted"
    section = Translations.read(Source(data.folder or Path(), data))
    assert section is not None
    assert [(p.source, p.target, p.change) for p in section.pairs] == [
        ("2016", "2019", "+2.00"),
        ("2019", "2016", "+4.00"),
    ]
    assert [(r.source, r.target, r.flipped, r.change) for r in section.table] == [
        ("2019", "2016", "100%", "+4.00"),
        ("2016", "2019", "100%", "+2.00"),
    ]
    page, _ = lay_out(data, build_view(data))
    assert "Every pair, the most changed first" in page


def test_pairs_beyond_those_with_pictures_are_the_least_changed(
    data: ReportInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typicality.report.sections.translate.PAIRS", 1)
    fill_translation(data, "2016", "2019", 0.001)
    fill_translation(data, "2019", "2016", 0.002)
    section = Translations.read(Source(data.folder or Path(), data))
    assert section is not None
    assert ([p.source for p in section.pairs], section.more, len(section.table)) == (["2019"], 1, 2)


def test_images_of_fewer_groups_are_said_to_be(data: ReportInput) -> None:
    """Forty images of three cameras say less than forty of forty: the table of an element tells them apart."""
    assert data.folder is not None
    numbers = (("2016", 3), ("2019", 40))
    at = [{"label": label, "rate": 0.5, "n_images": 40, "n_groups": groups} for label, groups in numbers]
    course = {"label": "2016", "cluster": 0, "rank": 0, "direction": "none", "at": at}
    write(data.folder / "trends" / "trends.json", {"timelines": [course]})
    page, _ = lay_out(data, build_view(data))
    assert page.count('<td class="num">40 of 3 groups</td>') == page.count('<td class="num">40</td>') == 1


def test_a_long_order_of_labels_keeps_its_ends(data: ReportInput) -> None:
    """30 labels: 12 are in an element's table, evenly spaced, from the first to the last."""
    assert data.folder is not None
    at = [{"label": str(year), "rate": 0.5} for year in range(1990, 2020)]
    course = {"label": "2016", "cluster": 0, "rank": 0, "direction": "none", "at": at}
    write(data.folder / "trends" / "trends.json", {"timelines": [course]})
    section = Trends.read(Source(data.folder, data))
    assert section is not None
    timeline = section.timelines[0]
    assert (len(timeline.rates), len(timeline.labels), timeline.omitted) == (30, 12, 18)
    assert (timeline.labels[0].label, timeline.labels[-1].label) == ("1990", "2019")
