"""The report as data: what is chosen, in which order, and what is said of it."""

from __future__ import annotations

import dataclasses
import datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from typicality.config import ReportSettings
from typicality.report.facts import fact_groups, stages
from typicality.report.pictures import Pictures
from typicality.report.render import evidence_of, fill, page_state
from typicality.report.view import ReportInput, build_view, context_window, doubts_of, nearest

from .synthetic import synthetic_input


def _element(image: str, typicality: float, rank: int, cluster: int, place: int) -> dict[str, object]:
    box = {"x0": 4, "y0": 8, "x1": 20, "y1": 24}
    score = {
        "typicality": typicality, "standard_error": 0.001, "lower_bound": typicality - 0.003,
        "specificity": float("nan"),
    }  # fmt: skip
    where = {"rank": rank, "cluster": cluster, "rank_in_cluster": place}
    return {"image_id": image, "file_name": f"{image}.png", "label": "a", **box, **score, **where}


@pytest.fixture
def small() -> ReportInput:
    """One label, two clusters: 7 of rank 0 with images p and q, 3 of rank 1 with image p alone and p = 0.2."""
    elements = [
        _element("p", 0.004, 0, 7, 1),
        _element("q", 0.003, 1, 7, 0),
        _element("p", 0.002, 2, 3, 0),
        _element("r", 0.001, 3, 3, 1),
    ]
    row = {"label": "a", "standard_error": 0.001, "p_value_method": "controls"}
    clusters = [
        {**row, "cluster": 3, "rank": 1, "size": 2, "n_images": 2, "median_typicality": 0.0015, "p_value": 0.2},
        {**row, "cluster": 7, "rank": 0, "size": 2, "n_images": 2, "median_typicality": 0.0035, "p_value": 0.01},
    ]
    images = [
        {
            "image_id": name,
            "file_name": f"{name}.png",
            "label": "a",
            "width": 32,
            "height": 32,
            "group": name,
            "typicality": value,
            "standard_error": 0.001,
            "n_draws": 4,
        }
        for name, value in (("p", 0.3), ("q", -0.1), ("r", 0.2))
    ]
    return dataclasses.replace(
        synthetic_input(labels=["2016"], clusters=2, members=2),
        labels=("a",),
        n_images={"a": 3},
        n_distinct=3,
        elements=pa.Table.from_pylist(elements),
        clusters=pa.Table.from_pylist(clusters),
        images=pa.Table.from_pylist(images),
        facts={"settings": {"mine": {"min_images": 2}}},
        settings=ReportSettings(),
    )


def test_clusters_come_by_rank_and_members_by_distance(small: ReportInput) -> None:
    label = build_view(small).labels[0]
    assert [c.cluster for c in label.clusters] == [7, 3]
    assert [e.image_id for e in label.clusters[0].elements] == ["q", "p"]
    assert [c.position for c in label.clusters] == [1, 2]


def test_the_interval_of_a_median_is_90_percent_of_a_normal(small: ReportInput) -> None:
    """Median 0.0035, standard error 0.001: 0.0035 +- 1.645 * 0.001."""
    score = build_view(small).labels[0].clusters[0].score
    assert score.low == pytest.approx(0.0035 - 0.001645, abs=1e-6)
    assert score.high == pytest.approx(0.0035 + 0.001645, abs=1e-6)


def test_the_interval_of_an_element_is_that_whose_coverage_is_measured(small: ReportInput) -> None:
    """Student's t of few draws put `lower_bound` 3 standard errors below: the interval is as wide, not 1.645."""
    view = build_view(small)
    score = view.labels[0].clusters[0].elements[0].score
    assert (score.low, score.high) == (pytest.approx(0.0), pytest.approx(0.006))
    assert page_state(view, Pictures())["items"][0][4:6] == [0.003, 0.003]


def test_the_interval_of_a_whole_image_has_the_freedom_of_its_draws(small: ReportInput) -> None:
    """Four draws are two units: 1 degree of freedom, 6.314 standard errors; as published they are 4: 2.25, 2.71.

    Two draws in a pair are one unit, and of one there is no error.
    """
    paper = {"settings": {"mine": {"min_images": 2}, "score": {"protocol": "paper"}}}
    half = build_view(small).labels[0].most[0].score.half
    assert half == pytest.approx(0.006314, abs=1e-6)
    of_paper = build_view(dataclasses.replace(small, facts=paper)).labels[0].most[0].score.half
    assert of_paper == pytest.approx(0.00271, abs=1e-5)
    draws = small.images.column_names.index("n_draws")
    pair = small.images.set_column(draws, "n_draws", pa.array([2, 2, 2]))
    assert build_view(dataclasses.replace(small, images=pair)).labels[0].most[0].score.half is None


def test_whole_images_say_how_far_they_were_chosen_by_chance(small: ReportInput) -> None:
    """Scores 0.3, -0.1, 0.2 of four images each vary by 0.0315: errors of 0.1 make 32% of it. Three are too few."""
    place = small.images.column_names.index("standard_error")

    def with_error(error: float | None, times: int = 4) -> ReportInput:
        images = pa.concat_tables([small.images] * times)
        column = pa.array([error] * images.num_rows, pa.float64())
        return dataclasses.replace(small, images=images.set_column(place, "standard_error", column))

    scores = [0.3, -0.1, 0.2] * 4
    assert build_view(with_error(0.1)).labels[0].chance == pytest.approx(0.01 / np.var(scores, ddof=1))
    assert build_view(with_error(9.0)).labels[0].chance == 1
    assert build_view(with_error(None)).labels[0].chance is None
    assert build_view(with_error(0.1, times=3)).labels[0].chance is None


@pytest.mark.parametrize("method", ["sign flip", "none"])
def test_nothing_holds_up_that_was_not_tested_against_controls(small: ReportInput, method: str) -> None:
    """A sign-flip p-value of 0.01 is too small to be believed: not tested, and said so with what to do."""
    view = build_view(dataclasses.replace(small, clusters=of_method(small.clusters, method)))
    label = view.labels[0]
    assert not view.tested
    assert [(c.p_value, c.holds, c.doubts) for c in label.clusters] == [(None, False, ())] * 2
    assert (label.sound, label.doubtful, label.formed) == (0, 0, 2)
    assert [n.value for n in view.numbers if n.name == "tested"] == ["0 of 2"]
    assert "hold up" not in [n.name for n in view.numbers]
    assert view.certainty.startswith("None of the 2 visual elements shown was tested")
    assert "--folds 2" in view.certainty
    strict = {"settings": {"mine": {"min_images": 3}}}
    doubtful = build_view(dataclasses.replace(small, clusters=of_method(small.clusters, method), facts=strict))
    assert doubtful.labels[0].doubtful == 2
    assert "speaks against every visual element" in doubtful.labels[0].notes[-1]


def test_what_a_test_takes_follows_from_the_model(small: ReportInput) -> None:
    """Where no model has seen an image, folds add nothing; where the base may know labels, they alone do not help."""
    untested = dataclasses.replace(small, clusters=of_method(small.clusters, "none"))
    never, tuned, aware = (
        build_view(dataclasses.replace(untested, in_sample=in_sample, trained_on=learned))
        for in_sample, learned in ((False, frozenset()), (True, frozenset({"p"})), (True, None))
    )
    assert "--folds" not in never.certainty + never.test_takes
    assert "fine-tuned" not in never.certainty
    assert "score.controls is 0, or every image has the label" in never.certainty
    assert tuned.test_takes.endswith("--folds 2")
    assert "memorised" in tuned.certainty
    assert aware.test_takes.endswith("--folds 2 and a base that was not fine-tuned on labelled images before")
    for view in (never, tuned, aware):
        assert view.test_takes in view.certainty
        assert view.test_takes in fill(view, Pictures(), [])


def test_an_image_with_several_labels_is_one_image(small: ReportInput) -> None:
    """Three images that have both labels are six for the labels and three for the data set."""
    both = dataclasses.replace(small, labels=("a", "b"), n_images={"a": 3, "b": 3})
    assert [n.value for n in build_view(both).numbers if n.name == "images"] == ["3"]


def test_a_run_from_before_methods_were_recorded_counts_as_not_tested(small: ReportInput) -> None:
    old = small.clusters.drop_columns(["p_value_method"])
    assert not build_view(dataclasses.replace(small, clusters=old)).tested


def test_unstable_clusters_are_doubted(small: ReportInput) -> None:
    """Below 0.5 a cluster dissolves when groups are drawn anew; unknown stability is no reproach."""
    marked = small.clusters.append_column("stability", pa.array([float("nan"), 0.49]))
    first, second = build_view(dataclasses.replace(small, clusters=marked)).labels[0].clusters
    assert first.doubts == ("unstable, 0.49",)
    assert not first.holds
    assert second.stability is None
    assert second.doubts == ("not significant, p = 0.2",)


def test_doubts_near_a_threshold_do_not_contradict_it(small: ReportInput) -> None:
    """p = 0.05 would be significant, and a stability of 0.50 enough."""
    assert doubts_of(9, False, 0.0504, 0.4996) == ("not significant, p = 0.0504", "unstable, 0.4996")
    marked = small.clusters.append_column("stability", pa.array([0.4996, 0.4996]))
    for cluster in build_view(dataclasses.replace(small, clusters=marked)).labels[0].clusters:
        assert ["Stability", "0.4996 of 1"] in evidence_of(cluster)


def test_the_evidence_of_a_cluster_is_told(small: ReportInput) -> None:
    known = {"stability": 0.8, "n_groups": 1, "own_rate": 0.4, "control_rate": 0.05}
    table = small.clusters
    for name, value in known.items():
        table = table.append_column(name, pa.array([value] * 2))
    cluster = build_view(dataclasses.replace(small, clusters=table)).labels[0].clusters[0]
    assert evidence_of(cluster) == [
        ["Test", "p = 0.01"], ["Found in", "40% of the label's images, 5% of others"], ["Stability", "0.80 of 1"],
        ["Groups", "1"],
    ]  # fmt: skip
    untested = build_view(dataclasses.replace(small, clusters=of_method(table, "sign flip"))).labels[0].clusters[0]
    assert evidence_of(untested)[0] == ["Test", "not tested"]


def of_method(clusters: pa.Table, method: str) -> pa.Table:
    at = clusters.column_names.index("p_value_method")
    return clusters.set_column(at, "p_value_method", pa.array([method] * clusters.num_rows))


def test_doubtful_clusters_say_why(small: ReportInput) -> None:
    first, second = build_view(small).labels[0].clusters
    assert first.doubts == ()
    assert second.doubts == ("not significant, p = 0.2",)
    strict = dataclasses.replace(small, facts={"settings": {"mine": {"min_images": 3}}})
    assert build_view(strict).labels[0].clusters[0].doubts == ("from only 2 images",)
    assert build_view(small).certainty.startswith("1 of the 2 visual elements shown hold up")


def test_the_column_few_images_wins_over_the_count(small: ReportInput) -> None:
    marked = small.clusters.append_column("few_images", pa.array([False, True]))
    clusters = build_view(dataclasses.replace(small, clusters=marked)).labels[0].clusters
    assert [c.few_images for c in clusters] == [True, False]


def test_the_strip_shows_sound_clusters_first_and_an_image_once(small: ReportInput) -> None:
    """Cluster 7 gives q, cluster 3 gives p; then p again is skipped and r is left."""
    assert [e.image_id for e in build_view(small).labels[0].strip] == ["q", "p", "r"]


def test_most_and_least_typical_images_do_not_overlap(small: ReportInput) -> None:
    label = build_view(small).labels[0]
    assert [i.image_id for i in label.most] == ["p", "r"]
    assert [i.image_id for i in label.least] == ["q"]


def test_numbers_run_through_elements_and_images_and_sources_are_unique(small: ReportInput) -> None:
    view = build_view(small)
    assert [i.number for i in [*view.elements(), *view.whole_images()]] == list(range(7))
    assert [s.image_id for s in view.sources] == ["q", "p", "r"]


def test_settings_limit_what_is_shown(small: ReportInput) -> None:
    view = build_view(dataclasses.replace(small, settings=ReportSettings(clusters=1, columns=1, images=1)))
    assert [e.image_id for e in view.elements()] == ["q"]
    assert len(view.labels[0].most) == len(view.labels[0].least) == 1


def test_a_label_without_clusters_shows_its_best_places(small: ReportInput) -> None:
    view = build_view(dataclasses.replace(small, clusters=small.clusters.slice(0, 0)))
    assert [e.rank for e in view.elements()] == [0, 1, 2, 3]
    assert view.certainty.startswith("No visual elements were formed")


def test_a_label_with_nothing_found_is_kept(small: ReportInput) -> None:
    view = build_view(dataclasses.replace(small, labels=("a", "empty")))
    assert view.labels[1].clusters == ()
    assert view.labels[1].median is None


def test_missing_p_values_are_not_called_significant(small: ReportInput) -> None:
    blank = small.clusters.set_column(
        small.clusters.column_names.index("p_value"), "p_value", pa.array([float("nan"), None])
    )
    view = build_view(dataclasses.replace(small, clusters=blank))
    assert [c.p_value for c in view.labels[0].clusters] == [None, None]
    assert "was tested" in view.certainty


def test_a_corrected_p_value_is_preferred(small: ReportInput) -> None:
    """p = 0.2 and 0.01 as tested, 0.4 and 0.06 once corrected: neither holds up."""
    corrected = small.clusters.append_column("adjusted_p_value", pa.array([0.4, 0.06]))
    view = build_view(dataclasses.replace(small, clusters=corrected))
    assert [c.doubts for c in view.labels[0].clusters] == [
        ("not significant, p = 0.06",),
        ("not significant, p = 0.4",),
    ]
    assert "0 of the 2" in view.certainty
    assert "corrected for many tests" in view.certainty


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ((24, 24, 40, 40), (16, 16, 48, 48)),  # in the middle: as much on every side
        ((0, 0, 16, 16), (0, 0, 32, 32)),  # in the corner: moved inside
        ((48, 40, 64, 56), (32, 32, 64, 64)),
        ((0, 0, 64, 64), (0, 0, 64, 64)),  # the whole image: nothing around it
    ],
)
def test_context_window_is_twice_the_box_and_inside_the_image(box: tuple, window: tuple) -> None:
    assert context_window(box, 64, 64) == window


def test_facts_are_flattened_and_stages_told_apart() -> None:
    facts = {
        "seed": 3,
        "model": {"name": "base"},
        "settings": {"score": {"t_min": 0.1}},
        "stages": {"score": {"seconds": 75, "images": 1200, "state": "done", "peak_memory_mb": 900, "draws": 4}},
    }
    groups = {g.name: dict(g.rows) for g in fact_groups(facts)}
    assert groups == {"Run": {"Seed": "3"}, "Model": {"name": "base"}, "Settings: score": {"t_min": "0.1"}}
    assert (stages(facts)[0].seconds, stages(facts)[0].counts) == ("1 min 15 s", "images 1,200, draws 4")
    calibrated = {"stages": {"finetune": {"label_scale": [0.5, 1.0], "tilt": 1.25}}}
    assert stages(calibrated)[0].counts == "label scale 0.50, label scale 1.00, tilt 1.25"


def test_the_most_alike_are_of_other_images_and_each_image_once(small: ReportInput) -> None:
    """Rows are p, q, p, r. To the first p the features of q and r are at 30 and 60 degrees; the second p is itself."""
    angles = np.deg2rad([0, 30, 1, 60])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    view = build_view(dataclasses.replace(small, features=features))
    by_row = {e.row: e.number for e in view.elements()}
    assert view.neighbours[by_row[0]] == (by_row[1], by_row[3])
    assert view.neighbours[by_row[1]] == (by_row[2], by_row[3])  # 29 degrees to the second p, 30 to the first and to r
    assert nearest(view.elements()[:1], features) == {}


def test_dates_times_and_decimals_are_metadata(small: ReportInput) -> None:
    """Tables in Parquet and data sets from the hub have them as such, a CSV file as text."""
    day = datetime.datetime(1923, 5, 1, 12)
    columns = {"taken": day.date(), "when": day, "at": day.time(), "price": Decimal("3.50"), "raw": b"x"}
    view = build_view(dataclasses.replace(small, metadata={"p": columns}))
    source = next(s for s in view.sources if s.image_id == "p")
    assert source.metadata == (
        ("taken", "1923-05-01"), ("when", "1923-05-01 12:00:00"), ("at", "12:00:00"), ("price", "3.50"),
    )  # fmt: skip


def test_metadata_is_searched_and_shown_once(small: ReportInput) -> None:
    """What the file name, the group or the label already say is left out, and so is what is no plain value."""
    columns = {"file_name": "p.png", "year": "a", "camera": "Leica <b>", "bytes": b"x", "none": None, "n": 3}
    view = build_view(dataclasses.replace(small, metadata={"p": columns}))
    source = next(s for s in view.sources if s.image_id == "p")
    assert source.metadata == (("camera", "Leica <b>"), ("n", "3"))


def test_it_is_said_what_the_model_has_seen(small: ReportInput) -> None:
    marked = small.images.append_column("held_out", pa.array([True, False, False]))
    seen = {s.image_id: s.seen for s in build_view(dataclasses.replace(small, images=marked)).sources}
    assert seen == {"p": False, "q": True, "r": True}
    unseen = dataclasses.replace(small, images=marked, in_sample=False)
    assert {s.seen for s in build_view(unseen).sources} == {False}
    assert {s.seen for s in build_view(small).sources} == {None}
    learned = dataclasses.replace(small, images=marked, trained_on=frozenset({"q"}))
    assert {s.image_id: s.seen for s in build_view(learned).sources} == {"p": False, "q": True, "r": False}


def test_no_image_is_called_unseen_where_the_base_knows_labels(small: ReportInput) -> None:
    """Nothing is held out then, and it is not known what the model learned from (`Run.trained_on`)."""
    marked = small.images.append_column("held_out", pa.array([False] * 3))
    aware = dataclasses.replace(small, images=marked, in_sample=True, trained_on=None)
    assert {s.seen for s in build_view(aware).sources} == {True}


def test_labels_with_few_images_or_nothing_sound_carry_a_warning(small: ReportInput) -> None:
    label = build_view(small).labels[0]
    assert (label.sound, label.formed) == (1, 2)
    assert [n[:13] for n in label.notes] == ["Only 3 images"]
    many = dataclasses.replace(small, n_images={"a": 500})
    assert build_view(many).labels[0].notes == ()
    weak = dataclasses.replace(many, clusters=small.clusters.filter(pa.array([True, False])))
    assert "None of the visual elements" in build_view(weak).labels[0].notes[0]
