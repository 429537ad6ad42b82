"""Trends of a tiny run: the documents hold what the package's docstring promises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.applications.mined import change_record
from tests.applications.redesigned import mine
from typicality.applications.translate.methods import TranslateOptions
from typicality.applications.translate.run import translate
from typicality.applications.trends.run import SCHEMA, Sample, Trends, defines, sample_of, trends
from typicality.applications.trends.statistics import label_rates
from typicality.cli.app import run as command
from typicality.errors import OutputError
from typicality.model.denoiser import Denoiser
from typicality.run import Run, open_finished

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = mine(tmp_path_factory.mktemp("trends"), tiny_model)
    translate(folder, "2016", "2024", TranslateOptions("sdedit", steps=2, draws=4), images=6)
    return folder


@pytest.fixture(scope="module")
def found(run: Path) -> Trends:
    return trends(run, images=8, members=5, draws=2, permutations=99)


def test_a_row_a_cluster_and_label(run: Path, found: Trends):
    clusters = pq.read_table(run / "clusters.parquet")
    assert found.table.schema == SCHEMA
    assert found.table.num_rows == 2 * clusters.num_rows
    for row in found.table.to_pylist():
        if row["rate"] is not None:
            assert row["rate_low"] <= row["rate"] <= row["rate_high"]
        assert row["typicality_low"] <= row["typicality"] <= row["typicality_high"]


def test_the_document_is_the_file(run: Path, found: Trends):
    document = json.loads((run / "trends" / "trends.json").read_text())
    assert document == json.loads(json.dumps(found.document))
    assert document["labels"] == ["2016", "2024"]
    assert document["ordered"] is True
    for line in document["timelines"]:
        assert line["direction"] in ("rise", "fall", "none")
        assert [at["label"] for at in line["at"]] == document["labels"]
        was_found = any(at["rate"] for at in line["at"])
        assert line["peaks"] in (document["labels"] if was_found else [None])
        for box in (m["box"] for m in line["members"]):
            assert box[0] < box[2] <= 32
    for name in document["plots"].values():
        assert (run / "trends" / name).read_text().lstrip().startswith("<?xml")


def test_the_report_shows_what_changed(run: Path, found: Trends):
    page = (run / "index.html").read_text(encoding="utf-8")
    assert 'id="trends"' in page
    assert "What changes together" in page


def test_what_defines_an_element_is_not_searched_for_it(run: Path, found: Trends):
    """Mined images of the searched half count like any other, so the rates of the label of origin are not too low."""
    opened = open_finished(run, "mine")
    group_of = {i.image_id: i.group for i in opened.dataset}
    sample = sample_of(opened, 8)
    mined = {group_of[e["image_id"]] for e in pq.read_table(run / "elements.parquet").to_pylist()}
    assert mined & set(sample.group_names)
    for line in found.document["timelines"]:
        assert line["members"]
        assert not {group_of[m["image_id"]] for m in line["members"]} & set(sample.group_names)
        if line["measured"]:
            for number in ("n_images", "n_groups"):
                assert [at[number] for at in line["at"]] == [len(sample.group_names)] * 2  # a subject, both years
    assert any(line["measured"] for line in found.document["timelines"])


def test_an_element_of_too_few_groups_has_no_rate(run: Path, found: Trends, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("typicality.applications.trends.run.FEWEST", 6)  # five members define a cluster
    document = trends(run, images=4, members=5, draws=2, permutations=9).document
    assert document["n_unmeasured"] == len(document["timelines"])
    assert "fewer than 6 groups" in " ".join(document["warnings"])
    for line in document["timelines"]:
        assert {at["rate"] for at in line["at"]} == {line["peaks"], line["slope"], line["p_value"]} == {None}
    assert "not measured: too few members define it" in (run / "index.html").read_text(encoding="utf-8")


def test_of_a_label_that_was_not_searched_nothing_is_said(run: Path, found: Trends, monkeypatch: pytest.MonkeyPatch):
    """All subjects of 2016 might define elements: nothing then appears at 2024, since nobody looked at 2016."""

    def only_2024(run: Run, images: int) -> Sample:
        whole = sample_of(run, images)
        kept = whole.label == 1
        return Sample(whole.image_ids, whole.row[kept], whole.label[kept], whole.group[kept], whole.group_names)

    monkeypatch.setattr("typicality.applications.trends.run.sample_of", only_2024)
    document = trends(run, images=4, members=5, draws=2, permutations=9).document
    assert "not known" in document["warnings"][0]
    assert "searched: 2016." in document["warnings"][0]
    measured = [line for line in document["timelines"] if line["measured"]]
    assert any(line["peaks"] == "2024" for line in measured)
    for line in measured:
        assert line["appears"] is None
        assert (line["at"][0]["rate"], line["at"][0]["n_images"], line["at"][0]["n_groups"]) == (None, 0, 0)
    assert not any("searched:" in warning for warning in found.document["warnings"])


def test_images_left_out_where_they_were_mined_would_look_like_a_fall():
    """The element is in a quarter of the images of four labels, and comes from twenty in the last that show it: without
    those its rate there is a seventh. Halves of the images that have nothing to do with it keep the quarter."""
    labels, seen = np.repeat(np.arange(4), 400), np.tile([True, False, False, False], 400)
    groups = np.arange(1600)
    half = np.array([defines(f"image {i}") for i in groups])
    mean, _, _ = label_rates(seen[:, None], ~half[:, None], labels, groups, 4)
    np.testing.assert_allclose(mean[:, 0], 0.25, atol=0.05)
    assert 0.45 < half.mean() < 0.55


def test_features_come_from_the_model_that_was_shown_no_label(run: Path, monkeypatch: pytest.MonkeyPatch):
    """With folds, that of fold 0 has seen the labels of most images: the search would find what it memorised of them.

    The stand-in has a counter of its own, so a feature that was read with another model would be missing from it.
    """
    own = open_finished(run, "mine")
    stand_in = Denoiser(own.base, own.device, own.dtype)
    monkeypatch.setattr(Run, "feature_denoiser", property(lambda _: stand_in))
    monkeypatch.setattr("typicality.applications.trends.run.open_finished", lambda *_: own)
    monkeypatch.setattr(own.denoiser, "features", None)  # nothing may call it
    found = trends(run, images=4, members=3, draws=2, permutations=9)
    assert found.document["unet_evaluations"] == stand_in.evaluations > 0


def test_the_sample_has_the_same_groups_in_every_label(run: Path):
    sample = sample_of(open_finished(run, "mine"), 5)
    groups = [set(sample.group[sample.label == at].tolist()) for at in range(2)]
    assert groups[0] == groups[1]
    assert len(groups[0]) == 5


def test_changes_of_translated_pairs_are_clustered(run: Path, found: Trends):
    changes = found.document["changes"]
    assert {(c["from"], c["to"]) for c in changes} == {("2016", "2024")}
    rows = pq.read_table(run / "trends" / "changes.parquet")
    assert rows.num_rows == sum(c["size"] for c in changes) > 0


def test_translations_of_an_earlier_model_are_no_changes(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "run")
    change_record(copy, lambda r: r["stages"]["translate 2016 to 2024"]["built_on"].update(finetune="replaced"))
    document = trends(copy, images=4, members=3, draws=2, permutations=9).document
    assert document["changes"] == []
    assert "left out of what changes together (1)" in document["warnings"][-1]


def test_a_run_that_was_scored_anew_and_not_mined(run: Path, tmp_path: Path):
    """After `score` of fewer images, images.parquet and the record are newer than the elements."""
    copy = shutil.copytree(run, tmp_path / "run")
    change_record(copy, lambda record: record["stages"]["mine"].update(fingerprint="more images"))
    with pytest.raises(OutputError, match=r"have changed since .* was mined; `typicality mine"):
        trends(copy)


def test_a_picture_that_fails_does_not_take_the_result_with_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> str:
        raise ValueError("a label that cannot be drawn")

    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("trends"))
    monkeypatch.setattr("typicality.applications.trends.run.similarity_svg", fail)
    with pytest.raises(ValueError, match="cannot be drawn"):
        trends(copy, images=4, members=3, draws=2, permutations=9)
    assert json.loads((copy / "trends" / "trends.json").read_text())["timelines"]
    assert pq.read_table(copy / "trends" / "trends.parquet").num_rows > 0


def test_the_command_lists_what_rises_and_falls(run: Path, capsys: pytest.CaptureFixture[str]):
    assert command(["trends", str(run), "--images", "6", "--members", "4", "--draws", "2", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["images_a_label"] == 6


def test_a_run_that_is_not_mined(tmp_path: Path):
    with pytest.raises(OutputError, match=r"run\.json"):
        trends(tmp_path)
