"""Defects that need no model: each is planted in images that are otherwise all different, and must be found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from tests.applications.audit.conftest import load, marker, mined, unchanged, write_images
from typicality.applications.audit import auditing, giveaways
from typicality.applications.audit.duplicates import duplicate_findings, near_duplicates
from typicality.applications.audit.elements import (
    column_findings,
    elements_of,
    nearest_distance,
    object_findings,
    place_findings,
    shared_information,
    untold_objects,
)
from typicality.applications.audit.findings import Baseline, against_baseline, in_order
from typicality.applications.audit.giveaways import giveaway_findings, predict
from typicality.applications.audit.groups import clustered_error, even_weights, permute_by_group
from typicality.applications.audit.images import (
    FILE_MEASURES,
    TONE_MEASURES,
    ImageFacts,
    detail_vector,
    examine,
    stroke_density,
)
from typicality.applications.audit.maps import Share, map_findings, mean_p_value, shares_of, truth_of
from typicality.applications.audit.places import (
    Mark,
    _merged,
    association,
    mark_findings,
    text_findings,
    too_few_groups,
    untold_labels,
)
from typicality.records import LabelledImage, ModelView, ScoreMap

LABELS = ("a", "b", "c")


def planted(pixels, label, i, rng):
    return marker(pixels, 4, 50) if label == "b" and i % 10 < 3 else pixels


def planted_anywhere(pixels, label, i, rng):
    if label == "b" and i % 10 < 3:
        return marker(pixels, int(rng.integers(4, 48)), int(rng.integers(4, 48)))
    return pixels


def all_model_free(facts):
    found, _ = giveaway_findings(facts, LABELS)
    return [*found, *mark_findings(facts, LABELS), *text_findings(facts, LABELS)]


@pytest.mark.slow
def test_a_mark_at_a_fixed_place_of_a_third_of_a_label_is_the_first_finding(facts_of):
    """12 of 40 images of b carry the cross at (50, 4), no other image does: precision 1, so the score is 1."""
    first = in_order(all_model_free(facts_of(planted)))[0]
    assert (first.kind, first.severity, first.labels) == ("same_place", "high", ("b",))
    assert first.score == pytest.approx(1.0, abs=0.05)
    assert len(first.evidence) == 12
    for shown in first.evidence:
        x0, y0, x1, y1 = shown.box
        assert x0 < 60
        assert x1 > 50
        assert y0 < 14
        assert y1 > 4
    assert "top right" in first.title


@pytest.mark.slow
def test_images_without_a_defect_have_no_grave_finding(facts_of):
    """The labels of these images are random: nothing can be of high or medium severity."""
    found = all_model_free(facts_of())
    assert [f.title for f in found if f.severity != "low"] == []


def test_two_marks_in_one_corner_are_two_findings(facts_of):
    """12 images of b carry the cross at the top right, 12 others of b a blue square near the same place."""

    def two(pixels, label, i, rng):
        if label == "b" and 5 <= i % 10 < 8:
            pixels = pixels.copy()
            pixels[6:16, 46:56] = (20, 20, 230)
            pixels[9:12, 48:54] = (240, 230, 20)
            return pixels
        return planted(pixels, label, i, rng)

    found = [f for f in in_order(mark_findings(facts_of(two), LABELS)) if f.labels == ("b",)]
    assert [len(f.concerns) for f in found] == [12, 12]
    assert all("top right" in f.title for f in found)
    assert set(found[0].concerns).isdisjoint(found[1].concerns)
    assert found[0].id != found[1].id


def test_a_mark_does_not_grow_by_what_a_few_of_its_images_show():
    """120 images show the mark in two windows side by side; 12 of them happen to be alike in one beside that."""

    def window(column, n):
        return Mark((3, 9), (column, column + 6), np.arange(240) < n, 0, None, 0.0, 0.0)

    (found,) = _merged([window(48, 120), window(51, 100), window(45, 12)])
    assert (found.rows, found.columns, int(found.shown.sum())) == ((3, 9), (48, 57), 120)


def in_groups(facts, name_of):
    """The same facts in groups whose name is a function of an image's label and number."""
    images = tuple(replace(i, group=name_of(i.labels[0], int(i.file_name.split("/")[1][:-4]))) for i in facts.images)
    return replace(facts, images=images)


def test_a_mark_that_could_go_with_no_label_is_not_said_to_do_little_harm(facts_of):
    """Every image of a shows the mark, in 12 groups, and none of b, in one group. Without the image that it was seen
    in first 11 of 13 show it: the p-value cannot be below 12 / 78."""
    facts = facts_of(lambda p, label, i, rng: marker(p, 4, 50) if label == "a" else p, labels=("a", "b"))
    facts = in_groups(facts, lambda label, i: f"{label}{i % 12 if label == 'a' else ''}")
    assert untold_labels(facts, ("a", "b"), 2) == ["a", "b"]
    (found,) = (f for f in mark_findings(facts, ("a", "b")) if len(f.concerns) == 12)
    assert found.labels == ()
    assert "cannot be told in so few groups" in found.explanation


@pytest.mark.parametrize(("groups", "few"), [(4, True), (5, True), (6, False)])
def test_marks_take_five_groups_beside_the_first(facts_of, groups, few):
    """Every image of b shows the mark. In six groups 5 of 12 show it beside the first: 6 / 792 for each of 2 labels."""
    facts = facts_of(lambda p, label, i, rng: marker(p, 4, 50) if label == "b" else p, labels=("a", "b"))
    facts = in_groups(facts, lambda label, i: str(i % groups))
    assert too_few_groups(facts) is few
    assert untold_labels(facts, ("a", "b"), 2) == (["a", "b"] if few else [])
    assert [f.labels for f in mark_findings(facts, ("a", "b"))] == ([] if few else [("b",)])


def test_things_that_move_take_more_groups_than_marks(facts_of):
    """Of eight groups of both labels 7 of 16 show a thing beside the first: 8 / 11440, and 54 windows are tried."""
    facts = facts_of(labels=("a", "b"))
    for groups, few in ((7, ["a", "b"]), (8, [])):
        assert untold_objects(in_groups(facts, lambda label, i, n=groups: str(i % n)), [], ("a", "b")) == few


def test_a_mark_in_all_labels_is_no_grave_finding(facts_of):
    """A third of all images carry it, whatever their label: it is mentioned, and gives no label away."""
    found = mark_findings(facts_of(lambda p, label, i, rng: marker(p, 4, 50) if i % 3 == 0 else p), LABELS)
    assert [f.severity for f in found] == ["low"] * len(found)
    assert any(f.labels == () for f in found)


def table_of(facts, boxes):
    """elements.parquet of one cluster a label, from label -> [(row, box)]."""
    rows = [
        {"image_id": facts.images[i].image_id, "label": label, "cluster": 0, "rank_in_cluster": rank,
         "x0": box[0], "y0": box[1], "x1": box[2], "y1": box[3]}
        for label, members in boxes.items() for rank, (i, box) in enumerate(members)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def find_marker(pixels):
    """Upper left corner of the cross, by its colours."""
    white = (pixels >= 249).all(2)
    score = white[:-9, :-9] & white[9:, 9:] & white[:-9, 9:] & white[9:, :-9]
    for y, x in np.argwhere(score):
        if (pixels[y + 4, x + 4] == (220, 20, 20)).all():
            return int(y), int(x)
    return None


def clusters_of_markers(facts):
    """Patches of 16 x 16 around the cross, in no fixed position to it; for the other labels, random patches."""
    rng = np.random.default_rng(1)
    boxes = {"a": [], "b": [], "c": []}
    for i, image in enumerate(facts.images):
        label = image.labels[0]
        at = find_marker(facts.thumbnails[i])
        if label == "b" and at is None:
            continue
        y, x = at or rng.integers(0, 48, 2)
        y0, x0 = (int(np.clip(v - rng.integers(0, 6), 0, 48)) for v in (y, x))
        boxes[label].append((i, (x0, y0, x0 + 16, y0 + 16)))
    return elements_of(facts, table_of(facts, boxes))


def test_a_mark_that_moves_is_found_among_the_elements(facts_of):
    """Elements are mined, by maps of which colours go with a label: nothing there knows of the cross or its place."""
    facts = facts_of(planted_anywhere)
    found = in_order(object_findings(facts, mined(facts)[0]))
    assert (found[0].kind, found[0].severity, found[0].labels) == ("repeated_object", "high", ("b",))
    for shown in found[0].evidence:
        row = [i.image_id for i in facts.images].index(shown.image_id)
        y, x = find_marker(facts.thumbnails[row])
        x0, y0, _, _ = shown.box
        assert abs(x0 - x) <= 4
        assert abs(y0 - y) <= 4


def test_a_mark_that_stays_is_a_finding_of_the_same_place(facts_of):
    facts = facts_of(planted)
    found = in_order(object_findings(facts, clusters_of_markers(facts)))
    assert (found[0].kind, found[0].severity) == ("same_place", "high")


def test_elements_and_maps_of_images_without_a_defect_have_no_grave_finding(tmp_path):
    """Labels are random, and so is a column: what is mined all the same is no defect."""
    dataset = load(write_images(tmp_path / "images"))
    rng = np.random.default_rng(3)
    images = tuple(replace(i, metadata={**i.metadata, "camera": str(rng.integers(0, 4))}) for i in dataset)
    facts = examine(dataset, images)
    elements, maps = mined(facts)
    assert {e.label for e in elements} == set(LABELS)
    by_id = {image.image_id: image for image in images}
    found = [
        *object_findings(facts, elements), *place_findings(facts, elements),
        *column_findings(facts, elements, ["camera"], "folder"),
        *map_findings(shares_of(maps, dataset, by_id), by_id, LABELS),
    ]  # fmt: skip
    assert [f.title for f in found if f.severity != "low"] == []


def test_an_element_at_a_place_is_known_by_its_members(facts_of):
    """Fine-tuned anew, the same place is found in images most of which are the same: known, and the id stays.

    In entirely different images, or at another place of the same images, it is another element.
    """
    facts = facts_of()
    rows = np.flatnonzero(facts.carries("a"))

    def found(part, x=20):
        members = [(i, (x, 20, x + 16, 36)) for i in rows[part]]
        return place_findings(facts, elements_of(facts, table_of(facts, {"a": members})))

    (before,) = found(slice(0, 20))
    known = Baseline({before.id: before.severity}, {before.id: frozenset(before.concerns)}, {before.id: before.name})
    (again,) = against_baseline(found(slice(8, 28)), known)
    assert (again.new, again.id) == (False, before.id)
    for others in (found(slice(20, 40)), found(slice(0, 20), x=0)):
        (other,) = against_baseline(others, known)
        assert other.new
        assert other.id != before.id


def test_boxes_of_another_label_are_not_the_label_s_own():
    """An image of a and b with a box of each: a map of a is compared with a's box, the left half of the picture."""
    image = LabelledImage("i", "i.png", ("a", "b"), "i", 8, 8, None, boxes=((0, 0, 4, 8), (4, 0, 8, 8)))
    dataset = SimpleNamespace(mask=lambda image: None)
    values = np.ones((2, 2), dtype=np.float32)
    of_a = ScoreMap("i", "a", ModelView(8, 8, 1.0, 1.0, 0.0, 0.0), 2, values, {}, values, values)
    named = replace(image, box_labels=("a", "b"))
    assert truth_of(named, of_a, dataset, named=True).tolist() == [[1, 0], [1, 0]]
    assert truth_of(image, of_a, dataset) is None, "nothing says of which label the boxes are"
    assert truth_of(replace(image, labels=("a",)), of_a, dataset).tolist() == [[1, 1], [1, 1]]
    restricted = {"labels": ("a",), "other_labels": ("b",)}
    assert truth_of(replace(image, **restricted), of_a, dataset) is None, "b is of the image, if not of the data set"
    assert truth_of(replace(named, **restricted), of_a, dataset, named=True).tolist() == [[1, 0], [1, 0]]
    masked = SimpleNamespace(mask=lambda image: np.ones((8, 8), dtype=bool))
    assert truth_of(replace(image, boxes=(), mask="m", **restricted), of_a, masked) is None


def outside_of(densities):
    """Findings of images whose box, a tenth of the area, holds so many times the typicality of an even spread."""
    images = {str(i): LabelledImage(str(i), f"{i}.png", ("a",), str(i), 64, 64, None) for i in range(len(densities))}
    shares = [Share(i, "a", 0.2, 0.2, 0.02, 0.02, d / 10, 0.1) for i, d in zip(images, densities, strict=True)]
    return map_findings(shares, images, ["a"])


def test_maps_that_know_nothing_of_the_boxes_do_not_lie_outside():
    """Densities of mean 1 that vary a lot: in most images the box holds less than its share, and in some far more.

    Nor does what holds four times its share in two thirds of the images; a fifth of it in all images is a finding.
    """
    rng = np.random.default_rng(0)
    alarms = [bool(outside_of(rng.gamma(0.5, 2, 60))) for _ in range(40)]
    assert np.mean(alarms) <= 0.1
    assert outside_of([4.0, 4.0, 0.3] * 20) == []
    (found,) = outside_of(rng.gamma(0.5, 0.4, 60))
    assert (found.kind, found.severity) == ("outside_truth", "high")
    assert found.score == pytest.approx(0.8, abs=0.1)


def test_maps_of_too_few_groups_are_not_examined():
    """Typicality of a and b lies in the border of every image, of six groups of a and four of b."""
    images = {f"{k}{i}": LabelledImage(f"{k}{i}", f"{k}{i}.png", (k,), f"{k}{i}", 64, 64, None)
              for k, n in (("a", 6), ("b", 4)) for i in range(n)}  # fmt: skip
    shares = [Share(i, i[0], 0.9 + 0.01 * int(i[1]), 0.2, 0.02, 0.02, np.nan, np.nan) for i in images]
    assert {f.labels for f in map_findings(shares, images, ["a", "b"])} == {("a",)}
    parts = auditing._Parts([], {}, [])
    few = auditing._in_few_groups(shares, images, ["a", "b"])
    parts.add_untold(["a", "b"], {"borders": ("borders", few), "repeated objects": ("repeated_object", ["a", "b"])})
    assert (few, parts.in_part, parts.not_examined) == (["b"], {"borders"}, {"repeated_object"})
    assert [("'a'" in note, note.split(": ")[1]) for note in parts.notes] == [
        (False, "borders."), (True, "repeated objects."),
    ]  # fmt: skip


def test_the_mean_of_skewed_values_by_hand():
    """Without skewness it is Student's t: 1, 2, 3 have t = 2 / sqrt(1 / 3), of two degrees of freedom."""
    t = 2 * np.sqrt(3)
    assert mean_p_value(np.array([1.0, 2.0, 3.0])) == pytest.approx(0.5 - t / (2 * np.sqrt(2 + t**2)))
    assert mean_p_value(np.array([1.0, 1.0, 1.0, -2.0])) > mean_p_value(np.array([-0.5, -0.5, -0.5, 2.5]))
    assert (mean_p_value(np.ones(5)), mean_p_value(np.zeros(5))) == (0.0, 1.0)


def test_elements_that_show_no_pasted_thing_are_left_alone(facts_of):
    """Random patches have no common window, and a thing that all labels have goes with none."""
    facts = facts_of()
    assert object_findings(facts, clusters_of_markers(facts)) == []


def test_elements_at_one_place_and_anywhere(facts_of):
    """a's members sit within two pixels of one place, c's anywhere."""
    facts = facts_of()
    rng = np.random.default_rng(2)
    boxes = {"a": [], "c": []}
    for i, image in enumerate(facts.images):
        if image.labels[0] == "b":
            continue
        x, y = rng.integers(0, 2, 2) + 20 if image.labels[0] == "a" else rng.integers(0, 49, 2)
        boxes[image.labels[0]].append((i, (int(x), int(y), int(x) + 16, int(y) + 16)))
    found = place_findings(facts, elements_of(facts, table_of(facts, boxes)))
    assert [f.labels for f in found] == [("a",)]


@pytest.mark.slow
def test_printed_clocks_are_found_though_their_digits_change(facts_of, tmp_path):
    """Every image of b has another time of day printed at the top left, in 80 x 12 of 320 x 200 pixels."""
    rng = np.random.default_rng(0)
    for label in LABELS:
        (tmp_path / "clocks" / label).mkdir(parents=True)
        for i in range(30):
            base = np.asarray(Image.fromarray(rng.integers(60, 120, (5, 8, 3)).astype(np.uint8)).resize((320, 200)))
            picture = Image.fromarray(base)
            if label == "b":
                text = f"{rng.integers(10, 24)}:{rng.integers(10, 60)}:{rng.integers(10, 60)} CAM"
                ImageDraw.Draw(picture).text((2, 1), text, fill=(255, 255, 255))
            picture.save(tmp_path / "clocks" / label / f"{i}.png")
    dataset = load(tmp_path / "clocks")
    facts = examine(dataset, list(dataset))
    found = in_order(text_findings(facts, LABELS))
    assert found[0].labels == ("b",)
    assert found[0].severity == "high"
    assert "top left" in found[0].title
    assert found[0].details["text_like"]


def test_strokes_are_thin():
    """A line of 2 pixels counts, a bar of 20 does not."""
    thin, thick = (Image.new("L", (160, 160)) for _ in range(2))
    ImageDraw.Draw(thin).rectangle((0, 4, 160, 5), fill=255)
    ImageDraw.Draw(thick).rectangle((0, 4, 160, 23), fill=255)
    assert stroke_density(thin.convert("RGB"))[0].mean() == pytest.approx(0.2, abs=0.02)
    assert stroke_density(thick.convert("RGB")).max() == 0


def test_association_by_hand():
    """4 of 10 carry; the 2 that show it both carry: C(4,2) / C(10,2) = 6 / 45; a group's twin adds nothing."""
    carries = np.arange(10) < 4
    shown = np.arange(10) < 2
    precision, excess, _, p_value = association(shown, carries, np.arange(10))
    assert (precision, excess) == (1.0, 1.0)
    assert p_value == pytest.approx(6 / 45)
    twice = association(np.r_[shown, True], np.r_[carries, True], np.r_[np.arange(10), 0])
    assert twice[3] == pytest.approx(6 / 45)


def test_near_duplicates_survive_exposure_and_size(tmp_path):
    """The series s2 shows the first ten things of s1 again, brighter and smaller; nothing else is alike."""
    rng = np.random.default_rng(0)
    (tmp_path / "series").mkdir()
    lines = ["file_name,label,series"]
    kept = []
    for series in ("s1", "s2"):
        for i in range(30):
            if series == "s1" or i >= 10:
                pixels = np.asarray(Image.fromarray(rng.integers(0, 200, (8, 8, 3)).astype(np.uint8)).resize((90, 80)))
                kept += [pixels] if series == "s1" else []
            else:
                bright = np.clip(kept[i] * 1.2 + 20, 0, 255).astype(np.uint8)
                pixels = np.asarray(Image.fromarray(bright).resize((70, 60)))
            name = f"{series}-{i}.png"
            Image.fromarray(pixels).save(tmp_path / "series" / name)
            lines.append(f"{name},{'good' if i % 2 else 'bad'},{series}")
    (tmp_path / "series" / "metadata.csv").write_text("\n".join(lines))
    dataset = load(tmp_path / "series", label="label")
    facts = examine(dataset, list(dataset))
    found = near_duplicates(facts)
    names = {tuple(sorted(facts.images[i].file_name for i in pair)) for pair in found.pairs}
    assert names == {(f"s1-{i}.png", f"s2-{i}.png") for i in range(10)}
    findings, _ = duplicate_findings(facts, found, ["series"], {}, False)
    assert [f.title for f in findings] == ["series of series share near-duplicate images"]
    assert findings[0].score == pytest.approx(20 / 60)
    assert findings[0].details["pairs"] == 10


def of_details(details, group_of=str, **columns):
    """Facts of images with these details (n, 1024); columns are name -> (n,) values."""
    details = details - details.mean(1, keepdims=True)
    details = (details / np.linalg.norm(details, axis=1, keepdims=True)).astype(np.float32)
    images = tuple(
        LabelledImage(
            f"{i:04}", f"{i}.png", ("ab"[i // 2 % 2],), group_of(i), 64, 64, None,
            metadata={name: str(values[i]) for name, values in columns.items()},
        )
        for i in range(len(details))
    )  # fmt: skip
    mirrored = np.ascontiguousarray(details.reshape(-1, 32, 32)[:, :, ::-1].reshape(len(details), -1))
    thumbnails = np.random.default_rng(0).integers(0, 256, (len(details), 64, 64, 3), dtype=np.uint8)
    return ImageFacts(images, {}, thumbnails, details, mirrored, np.zeros((len(details), 0)))


def test_relatives_do_not_hide_the_copies_in_another_group():
    """Four cameras of 25 frames, two of the same scene; its frames are closer to those of the same camera.

    All 50 frames have a near-duplicate of the other camera, and no pair is of one camera.
    """
    rng = np.random.default_rng(0)
    scenes = rng.normal(size=(4, 1024))
    scenes[1] = scenes[0] + 0.3 * rng.normal(size=1024)
    facts = of_details(np.repeat(scenes, 25, axis=0) + 0.15 * rng.normal(size=(100, 1024)), lambda i: f"c{i // 25}")
    found = near_duplicates(facts)
    assert np.unique(found.pairs).tolist() == list(range(50))
    assert (found.pairs // 25).tolist() == [[0, 1]] * len(found.pairs)
    findings, share = duplicate_findings(facts, found, [], {}, True)
    assert [f.title for f in findings] == ["near-duplicate images are in different groups"]
    assert share == pytest.approx(0.5)


@pytest.mark.parametrize("grouped", [False, True])
def test_only_a_column_that_near_duplicates_cross_more_than_by_chance_is_one_of_series(grouped):
    """Every thing was taken twice, once in each series; the weather is random, so that half of the pairs cross it.

    In the second case groups of five images, which are different things, have one weather and are of one series.
    """
    rng = np.random.default_rng(0)
    things = np.repeat(rng.normal(size=(100, 1024)), 2, axis=0)
    weather = np.repeat(rng.integers(0, 2, 40), 5) if grouped else rng.integers(0, 2, 200)
    order = rng.permutation(100) if grouped else np.arange(100)
    rows = np.concatenate([2 * order, 2 * rng.permutation(order) + 1]) if grouped else np.arange(200)
    facts = of_details(
        (things + 0.1 * rng.normal(size=things.shape))[rows], (lambda i: f"g{i // 5:02}") if grouped else str,
        weather=weather, series=np.arange(200)[rows] % 2,
    )  # fmt: skip
    found = near_duplicates(facts)
    assert len(found.pairs) == 100
    findings, _ = duplicate_findings(facts, found, ["weather", "series"], {}, False)
    assert [(f.title, f.severity) for f in findings if f.identity.startswith("column")] == [
        ("series of series share near-duplicate images", "high")
    ]


def test_the_same_picture_under_two_labels(tmp_path):
    """Five pictures of a are in b too, saved anew so that their bytes differ."""
    write_images(tmp_path / "x", unchanged, each=20, labels=("a", "b"))
    for i in range(5):
        picture = Image.open(tmp_path / "x" / "a" / f"{i}.png")
        picture.save(tmp_path / "x" / "b" / f"again-{i}.jpg", quality=98, subsampling=0)
    dataset = load(tmp_path / "x")
    facts = examine(dataset, list(dataset))
    findings, share = duplicate_findings(facts, near_duplicates(facts), [], {}, False)
    assert [f.title for f in findings] == ["the same picture carries different labels"]
    assert share == pytest.approx(10 / 45)
    assert findings[0].severity == "high"


def test_the_same_file_under_two_labels(tmp_path):
    """Equal bytes are one image with both labels, which no near-duplicate shows; a table may name a file twice."""
    write_images(tmp_path / "x", unchanged, each=20, labels=("a", "b"))
    for i in range(2):
        shutil.copy(tmp_path / "x" / "a" / f"{i}.png", tmp_path / "x" / "b" / f"copy-{i}.png")
        shutil.copy(tmp_path / "x" / "b" / f"{i}.png", tmp_path / "x" / "b" / f"twin-{i}.png")
    dataset = load(tmp_path / "x")
    copies = {d.image_id for d in dataset.duplicates if d.conflict}
    assert (len(dataset.duplicates), len(copies)) == (4, 2)
    facts = examine(dataset, list(dataset))
    findings, share = duplicate_findings(facts, near_duplicates(facts), [], {}, False, copies=copies)
    assert [f.title for f in findings] == ["the same picture carries different labels"]
    assert share == pytest.approx(2 / 40)
    assert set(findings[0].concerns) == copies == {e.image_id for e in findings[0].evidence}
    assert "2 files that have copies" in findings[0].explanation
    rows = [f"a/{i}.png,{label}" for i in range(8) for label in "ab"] + [
        "a/0.png,a",
        "b/copy-0.png,a",
        "b/copy-0.png,b",
    ]
    (tmp_path / "x" / "metadata.csv").write_text("\n".join(["file_name,kind", *rows]))
    assert [d.conflict for d in load(tmp_path / "x", label="kind").duplicates] == [False]


def test_exposure_changes_no_detail():
    """The correlation of a picture and the same at 60% light is 1 but for rounding."""
    rng = np.random.default_rng(0)
    pixels = np.asarray(Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).resize((64, 64)))
    dim = Image.fromarray((pixels * 0.6).astype(np.uint8))
    assert detail_vector(Image.fromarray(pixels)) @ detail_vector(dim) > 0.99
    assert not detail_vector(Image.new("RGB", (64, 64), (9, 9, 9))).any()


@pytest.mark.slow
def test_the_size_of_a_label_gives_it_away(facts_of):
    found, effect = giveaway_findings(facts_of(lambda p, label, i, rng: p[:48] if label == "c" else p), LABELS)
    assert found[0].severity == "high"
    assert found[0].details["importance"].keys() & {"height", "aspect"}
    assert effect == pytest.approx(0.5, abs=0.2)  # a and b stay as they are: (2 / 3 - 1 / 3) / (2 / 3)


def of_files(sizes, label_of, value_of):
    """Facts of groups of these sizes: the label of group k and image i, and its width, are functions of them."""
    images = tuple(
        LabelledImage(f"{k}-{i}", f"{k}-{i}.png", (label_of(k, i),), f"{k:03}", 10, 10, None)
        for k, size in enumerate(sizes) for i in range(size)
    )  # fmt: skip
    width = np.array([value_of(*map(int, image.image_id.split("-"))) for image in images], dtype=float)
    constant = {name: np.zeros(len(images)) for name in (*FILE_MEASURES, *TONE_MEASURES)}
    empty = np.zeros((len(images), 0))
    return ImageFacts(images, constant | {"width": width}, *(empty,) * 4)


@pytest.mark.parametrize("sizes", [range(5, 25), [10] * 20])
def test_a_giveaway_is_found_whatever_the_sizes_of_the_groups(sizes, monkeypatch):
    """The width tells the label of every group: its effect is 1, which hardly any other way to label them has."""
    monkeypatch.setattr(giveaways, "PERMUTATIONS", 39)
    facts = of_files(sizes, lambda k, i: "ab"[k % 2], lambda k, i: k % 2)
    effect, error, p_value, *_ = predict(facts, {"width": facts.measures["width"]}, "ab", 0)
    assert (effect, error) == (pytest.approx(1), pytest.approx(0))
    assert p_value < 0.01


def test_groups_that_cannot_exchange_labels_tell_no_giveaway(monkeypatch):
    """The width tells every label, in five groups of both whose sizes lie between different powers of two: each could
    only get its own labels, so that not one permutation is another labelling. Not to be able to tell is not 0."""
    monkeypatch.setattr(giveaways, "PERMUTATIONS", 39)
    monkeypatch.setattr(giveaways, "FAMILIES", giveaways.FAMILIES[:1])
    facts = of_files([10, 20, 40, 80, 160], lambda k, i: "ab"[i % 2], lambda k, i: i % 2)
    assert giveaway_findings(facts, "ab") == ([], None)


def test_one_large_group_counts_as_much_as_a_small_one(monkeypatch):
    """The width tells the label of 11 groups of 2 images, and is that of the other label in one group of 200.

    Recalls are 5 / 6 and 1, so the effect is 2 * 11 / 12 - 1; that of images would be near 0. One of twelve groups is
    wrong: the error of the recall is sqrt(5 / 36 / 6), half of it that of the accuracy, twice that of the effect.
    """
    monkeypatch.setattr(giveaways, "PERMUTATIONS", 2)
    facts = of_files([200] + [2] * 11, lambda k, i: "ab"[k % 2], lambda k, i: k % 2 if k else 1)
    effect, error, *_ = predict(facts, {"width": facts.measures["width"]}, "ab", 0)
    assert effect == pytest.approx(5 / 6)
    assert error == pytest.approx(np.sqrt(5 / 36 / 6 * 12 / 11))


def test_a_rare_label_stays_in_a_sample(monkeypatch):
    """Of 1,000 images 30 are looked at; c has 10, all of which take part. The width tells every label, so the effect
    is 1; were 30 drawn from all, none of c would be left, and a label without images counts as never found."""
    monkeypatch.setattr(giveaways, "PERMUTATIONS", 2)
    monkeypatch.setattr(giveaways, "MOST_ROWS", 30)
    facts = of_files([1] * 1000, lambda k, i: "c" if k < 10 else "ab"[k % 2], lambda k, i: 2 if k < 10 else k % 2)
    effect, *_ = predict(facts, {"width": facts.measures["width"]}, "abc", 0)
    assert effect == pytest.approx(1)


def test_the_measure_of_giveaways_is_of_findings(monkeypatch):
    """Widths without a meaning: of 60 images a tree finds some labels by luck, which is no finding and no effect."""
    monkeypatch.setattr(giveaways, "PERMUTATIONS", 19)
    for seed in range(4):
        widths = np.random.default_rng(seed).normal(size=60)
        facts = of_files([1] * 60, lambda k, i: "ab"[k % 2], lambda k, i, widths=widths: widths[k])
        assert giveaway_findings(facts, "ab") == ([], 0.0)
    assert giveaway_findings(of_files([1] * 4, lambda k, i: "a", lambda k, i: k), "ab") == ([], None)


def test_labels_are_permuted_by_group():
    """Groups of one label exchange it whatever their size; of groups of several, those of 2 and 3 images do."""
    y = np.array([0, 0, 0, 1])
    seen = {tuple(permute_by_group(y, np.array([5, 5, 5, 9]), np.random.default_rng(seed))) for seed in range(20)}
    assert seen == {(0, 0, 0, 1), (1, 1, 1, 0)}
    y = np.array([0, 1, 2, 3, 3, 4, 5, 5, 5])
    group = np.array([1, 1, 2, 2, 2, 3, 3, 3, 3])
    seen = {tuple(permute_by_group(y, group, np.random.default_rng(seed))) for seed in range(20)}
    assert seen == {tuple(y), (2, 3, 0, 1, 0, 4, 5, 5, 5)}


def test_groups_count_once_by_hand():
    """Label 0 is in group 1 twice and in group 2 once, label 1 in group 2: 1 / 4, 1 / 4, 1 / 2 and 1.

    Contributions of 1 and 1 in one group, -2 in the other: root of 2 / 1 * (4 + 4).
    """
    assert even_weights(np.array([0, 0, 0, 1]), np.array([1, 1, 2, 2])).tolist() == [0.25, 0.25, 0.5, 1]
    assert clustered_error(np.array([1.0, 1.0, -2.0]), np.array(["a", "a", "b"])) == pytest.approx(4)
    assert clustered_error(np.array([1.0, -1.0]), np.zeros(2)) == 0


def test_numbers_by_hand():
    """Nearest distances 1, 1 and 3; b is determined by a, a only half by b."""
    assert nearest_distance(np.array([[0.0, 0], [0, 1], [0, 4]])) == pytest.approx(5 / 3)
    a, b = np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1])
    assert shared_information(a, b) == pytest.approx(1.0)
    assert shared_information(b, a) == pytest.approx(0.5)


def test_a_column_that_goes_with_the_label(tmp_path):
    """Camera x took nine tenths of a, camera y nine tenths of b; the hour goes with nothing."""
    rng = np.random.default_rng(0)
    (tmp_path / "x").mkdir()
    lines = ["file_name,label,camera,hour"]
    for i in range(80):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "x" / f"{i}.png")
        label = "a" if i % 2 else "b"
        camera = ("x" if label == "a" else "y") if i % 20 > 1 else ("y" if label == "a" else "x")
        lines.append(f"{i}.png,{label},{camera},{rng.integers(0, 4)}")
    (tmp_path / "x" / "metadata.csv").write_text("\n".join(lines))
    dataset = load(tmp_path / "x", label="label")
    facts = examine(dataset, list(dataset))
    found = column_findings(facts, [], ["camera", "hour", "file_name"], "label")
    assert [f.title for f in found] == ["camera goes with the label"]
