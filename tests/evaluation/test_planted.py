"""Planted motifs: what is drawn and where, and every measure by hand; at the end the whole benchmark."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from typicality.config import DatasetSettings, resolve
from typicality.dataset import load_dataset
from typicality.errors import InputError, OutputError
from typicality.evaluation.motifs import KINDS, SLOTS, Motif, draw_motifs, generator, plant
from typicality.evaluation.planted import (
    control_measures,
    hits,
    means,
    measure_elements,
    measure_maps,
    parse_sweep,
    plan_of,
    planted,
)
from typicality.evaluation.planting import (
    NAMES,
    Planting,
    Truth,
    assign_labels,
    choose_images,
    chosen_for,
    read_truth,
    write_planted,
)
from typicality.mining.patches import PatchSelection, top_patches
from typicality.records import Box, ModelView, ScoreMap

LABELS = NAMES[:2]
GREY = np.full((64, 64, 3), 128, dtype=np.uint8)


def one(kind: str = "glyph", label: str | None = "alpha") -> Motif:
    found = draw_motifs(LABELS, [kind], ["glyph"], seed=0)
    return next(m for m in found if m.label == label)


def paste(motifs: list[Motif], image: np.ndarray = GREY, seed: int = 0, **options: Any):
    chosen: dict[str, Any] = {"size": 14.0, "contrast": 1.0, "place": "free", "max_aspect": 2.0} | options
    return plant(image, motifs, rng=generator("test", seed), **chosen)


# ------------------------------------------------------------------------------------------------------ motifs


def test_a_set_has_one_of_every_kind_and_label_and_all_look_different():
    """Two labels with two motifs each and one distractor: five hues, five patterns, as the seed says."""
    motifs = draw_motifs(LABELS, ["glyph", "tint"], ["glyph"], seed=3)
    assert [(m.label, m.kind) for m in motifs] == [
        ("alpha", "glyph"), ("alpha", "tint"), ("beta", "glyph"), ("beta", "tint"), (None, "glyph"),
    ]  # fmt: skip
    assert len({m.name for m in motifs}) == 5
    hues = np.sort([m.hue for m in motifs])
    assert np.diff(np.append(hues, hues[0] + 1)) == pytest.approx(0.2)
    for i, motif in enumerate(motifs):
        pattern = np.array(motif.pattern)
        assert np.array_equal(pattern, pattern[:, ::-1])
        assert all((pattern[:, :3] != np.array(m.pattern)[:, :3]).sum() >= 3 for m in motifs[:i])
    assert motifs == draw_motifs(LABELS, ["glyph", "tint"], ["glyph"], seed=3)
    assert motifs != draw_motifs(LABELS, ["glyph", "tint"], ["glyph"], seed=4)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_change_inside_the_box_and_nowhere_else(kind: str):
    image, [(motif, (x0, y0, x1, y1))] = paste([one(kind)])
    changed = (image != GREY).any(-1)
    inside = np.zeros_like(changed)
    inside[y0:y1, x0:x1] = True
    assert not (changed & ~inside).any()
    assert changed[inside].mean() > 0.3
    assert motif.kind == kind
    assert (GREY == 128).all()


@pytest.mark.parametrize("kind", KINDS)
def test_motifs_of_two_labels_can_be_told_apart(kind: str):
    a, b = (one(kind, label).draw(14, 14, generator("same")) for label in LABELS)
    assert np.abs(a - b).mean() > 0.03


def test_an_overlay_has_other_digits_in_other_images_and_a_glyph_is_always_the_same():
    text, glyph = one("overlay"), one("glyph")
    assert not np.array_equal(text.draw(24, 16, generator(0)), text.draw(24, 16, generator(1)))
    assert np.array_equal(glyph.draw(16, 16, generator(0)), glyph.draw(16, 16, generator(1)))


def test_sizes_follow_the_short_side_and_contrast_fades():
    """14 of 64 px are 28 of 128, give or take a fifth; at a tenth of the contrast pixels move a tenth as far."""
    sides = []
    for seed in range(30):
        _, [(_, (x0, y0, x1, y1))] = paste([one()], np.zeros((128, 200, 3), dtype=np.uint8), seed)
        assert x1 - x0 == y1 - y0
        sides.append(x1 - x0)
    assert 22 <= min(sides) < 26
    assert 30 < max(sides) <= 34
    strong, weak = (np.abs(paste([one()], contrast=c)[0].astype(float) - 128).sum() for c in (1.0, 0.1))
    assert weak == pytest.approx(strong / 10, rel=0.05)


def test_free_places_are_spread_and_fixed_ones_are_not():
    free = {paste([one()], seed=seed)[1][0][1][:2] for seed in range(20)}
    assert len(free) > 15
    motif = replace(one(), slot=SLOTS.index((1, 1)))
    for seed in range(20):
        [(_, box)] = paste([motif], seed=seed, place="fixed")[1]
        assert box[2:] == (64, 64)


def test_boxes_do_not_overlap_and_what_finds_no_room_is_left_out():
    """Twice half the side fits beside one another; a distractor without room is dropped, the label's motif stays."""
    motifs = draw_motifs(LABELS, ["glyph"], ["glyph"], seed=0)
    for seed in range(20):
        placed = paste([motifs[0], motifs[2]], seed=seed)[1]
        (_, a), (_, b) = placed
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    same = [replace(m, slot=4) for m in (motifs[2], motifs[0])]
    assert [m.label for m, _ in paste(same, place="fixed")[1]] == ["alpha"]


def test_nothing_is_pasted_beyond_what_the_model_sees():
    """Of 400 x 64 pixels the middle 128 columns are seen with an aspect of at most 2."""
    wide = np.zeros((64, 400, 3), dtype=np.uint8)
    lefts = [paste([one()], wide, seed)[1][0][1] for seed in range(40)]
    assert min(box[0] for box in lefts) >= 136
    assert max(box[2] for box in lefts) <= 264


@pytest.mark.parametrize("kinds", [["blob"], ["glyph"] * 9])
def test_impossible_motifs(kinds: list[str]):
    with pytest.raises(InputError, match=r"blob|at most 9"):
        draw_motifs(LABELS, kinds, ["glyph"], seed=0)


# ------------------------------------------------------------------------------------------------------ images


def test_labels_are_dealt_to_groups_alike_and_by_the_seed():
    groups = [f"g{i}" for i in range(101)]
    found = assign_labels(groups, 2, seed=0)
    assert sorted(list(found.values()).count(label) for label in LABELS) == [50, 51]
    assert found == assign_labels(groups[::-1] * 3, 2, seed=0)
    agree = np.mean([found[g] == label for g, label in assign_labels(groups, 2, seed=1).items()])
    assert 0.3 < agree < 0.7


def test_a_motif_goes_into_its_share_of_its_own_label_and_a_distractor_into_all():
    images = {f"image{i}": LABELS[i % 2] for i in range(40)}
    own, distractor = one(), one(label=None)
    chosen = chosen_for(own, images, 0.2, seed=0)
    assert len(chosen) == 4
    assert {images[i] for i in chosen} == {"alpha"}
    assert chosen < chosen_for(own, images, 0.5, seed=0), "a lower prevalence is a part of a higher one"
    spread = [images[i] for i in chosen_for(distractor, images, 0.2, seed=0)]
    assert sorted(spread) == ["alpha"] * 4 + ["beta"] * 4


def test_images_need_no_label_and_equal_pixels_count_once(tmp_path: Path):
    """Twelve files without labels, two of them the same pixels in two formats, one unreadable: ten are left."""
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    Image.open(tmp_path / "0.png").save(tmp_path / "same.bmp")
    (tmp_path / "broken.png").write_bytes(b"no image")
    settings = DatasetSettings(source=str(tmp_path))
    assert len({o.image_id for o in choose_images(settings, 100, seed=0)}) == 10
    first = choose_images(settings, 5, seed=0)
    assert len(first) == 5
    assert first == choose_images(settings, 5, seed=0)
    assert first != choose_images(settings, 5, seed=1)
    with pytest.raises(InputError, match="four"):
        choose_images(settings, 3, seed=0)


def test_groups_are_chosen_whole(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = ["file_name,subject,kind"]
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,s{i // 4},{'a' if i < 20 else 'b'}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    found = choose_images(DatasetSettings(source=str(tmp_path), group="subject"), 16, seed=0)
    assert len({o.group for o in found}) == 4
    kept = choose_images(DatasetSettings(source=str(tmp_path), group="subject", where="kind == 'a'"), 99, seed=0)
    assert {o.group for o in kept} == {f"s{i}" for i in range(5)}
    with pytest.raises(InputError, match="subjec"):
        choose_images(DatasetSettings(source=str(tmp_path), group="subjec"), 16, seed=0)


def test_the_planted_data_set(tiny_folder: Path, tmp_path: Path):
    """Half of each label has a box, the source is as it was, and a second call writes nothing anew."""
    before = {p: p.read_bytes() for p in tiny_folder.rglob("*.png")}
    originals = choose_images(DatasetSettings(source=str(tiny_folder)), 100, seed=0)
    plan, out = Planting(), tmp_path / "data"
    truth = write_planted(out, originals, plan, 0, 2.0)
    assert {p: p.read_bytes() for p in tiny_folder.rglob("*.png")} == before
    assert len(truth) == 32
    for label in LABELS:
        own = [t for t in truth.values() if t.label == label]
        assert len(own) == 16
        assert sum(len(t.planted) for t in own) == 8
        assert sum(len(t.distractors) for t in own) == 8
    data = load_dataset(DatasetSettings(source=str(out), label="label", group="group", boxes="planted"))
    assert data.labels == LABELS
    assert {i.file_name: i.boxes for i in data} == {name: t.planted for name, t in truth.items()}
    with (out / "metadata.csv").open() as file:
        names = {(row["label"], name) for row in csv.DictReader(file) for name in json.loads(row["motifs"])}
    assert ("alpha", "alpha 1: glyph") in names
    assert ("beta", "alpha 1: glyph") not in names
    assert ("alpha", "distractor 1: glyph") in names
    stamps = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert write_planted(out, originals, plan, 0, 2.0) == truth
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == stamps
    none = write_planted(out, originals, Planting(control=True), 0, 2.0)
    assert none == read_truth(out / "metadata.csv")
    assert not any(t.planted or t.distractors for t in none.values())
    assert {t.label for t in none.values()} == set(LABELS)


def test_other_files_are_not_overwritten(tiny_folder: Path, tmp_path: Path):
    originals = choose_images(DatasetSettings(source=str(tiny_folder)), 8, seed=0)
    (tmp_path / "000000.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match="--out"):
        write_planted(tmp_path, originals, Planting(), 0, 2.0)
    assert (tmp_path / "000000.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": 1}, {"labels": 9}, {"prevalence": 0}, {"prevalence": 1.1}, {"size": 0}, {"size": 40},
        {"contrast": 0}, {"place": "top"}, {"motifs": ()}, {"motifs": ("blob",)},
    ],
)  # fmt: skip
def test_impossible_plantings(wrong: dict[str, Any]):
    with pytest.raises(InputError):
        Planting(**wrong).check()


# ---------------------------------------------------------------------------------------------------- measures


def test_half_of_the_smaller_area_is_a_hit():
    """Of a 10 x 10 box, 50 of 100 shared pixels hit and 40 do not; a small one inside always does."""
    target: Box = (0, 0, 10, 10)
    assert hits((5, 0, 15, 10), [target]) == [True]
    assert hits((6, 0, 16, 10), [target]) == [False]
    assert hits((4, 4, 6, 6), [target]) == [True]
    assert hits((20, 20, 30, 30), [target, (19, 19, 31, 31)]) == [False, True]


def element(name: str, label: str, box: Box, rank: int, cluster: int) -> dict[str, Any]:
    corners = dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
    return {"file_name": name, "label": label, "rank": rank, "cluster": cluster, **corners}


ON: Box = (0, 0, 10, 10)
OFF: Box = (40, 40, 50, 50)
BESIDE: Box = (20, 20, 30, 30)


def test_elements_by_hand():
    """alpha: 4 boxes in 4 of 8 images; of 4 elements 3 hit 2 boxes, 1 a distractor. beta: no element of 2 hits its box.

    The first cluster of alpha has one hit of two, which is no majority; the second has two of two, significant.
    """
    truth = {f"a{i}": Truth("alpha", (ON,) if i < 4 else (), (BESIDE,)) for i in range(8)}
    truth |= {f"b{i}": Truth("beta", (ON,), ()) for i in range(2)}
    elements = [
        element("a0", "alpha", ON, 0, 0),
        element("a7", "alpha", BESIDE, 1, 0),
        element("a0", "alpha", ON, 2, 1),
        element("a1", "alpha", ON, 3, 1),
        element("b0", "beta", OFF, 0, 0),
        element("b1", "beta", OFF, 1, 0),
    ]
    clusters = [
        {"label": "alpha", "cluster": 0, "rank": 0, "adjusted_p_value": 0.5, "p_value_method": "controls"},
        {"label": "alpha", "cluster": 1, "rank": 1, "adjusted_p_value": 0.01, "p_value_method": "controls"},
        {"label": "beta", "cluster": 0, "rank": 0, "adjusted_p_value": 0.001, "p_value_method": "sign flip"},
    ]
    found = measure_elements(elements, clusters, truth, seed=0)
    assert found["precision_at_100"] == 0.375  # (3/4 + 0) / 2
    assert found["recall"] == 0.25  # (2/4 + 0/2) / 2
    assert found["recall_bound"] == 1.0
    assert found["planted_cluster_rank"] == 1  # alpha: 1; beta has one cluster and none planted: 1
    assert found["planted_first"] == 0.0
    assert found["cluster_purity"] == 0.5  # (2/2 + 0) / 2
    assert found["planted_significant"] == 1.0
    assert found["others_significant"] == 0.0
    assert found["distractor_at_100"] == 0.125  # (1/4 + 0) / 2
    assert found["elements"] == 2
    assert found["curves"] == {"alpha": [1.0, 0.5, 0.6667, 0.75], "beta": [0.0, 0.0]}
    # alpha: 3 of its 4 boxes are at a place where half of its images have a motif
    assert found["chance_precision"] == pytest.approx(0.5 * 0.75 * 0.5, abs=0.08)


def mined_from(maps: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Rows of the best two patches of 4 x 4 cells in each map (16, 16) of 64 x 64 pixels, by label a- or b-."""
    view = ModelView(64, 64, 1.0, 1.0, 0.0, 0.0)
    scores = [
        ScoreMap(name, "alpha" if name[0] == "a" else "beta", view, 2, values, {}, values * 0, values * 0)
        for name, values in maps.items()
    ]
    selection = PatchSelection(side=4, factor=4, per_image=2, per_label=20, share=1.0)
    found = top_patches(scores, selection, lambda image_id: (64, 64))
    return [element(p.image_id, p.label, p.box, rank, 0) for own in found.values() for rank, p in enumerate(own)]


def test_patches_of_maps_that_know_the_motifs_beat_chance_and_those_of_noise_do_not():
    """Forty images, each with one box of 16 px somewhere; maps of noise, with and without half a deviation more there.

    Of 20 patches nearly all hit, and of noise about as many as where the boxes of other images happen to lie.
    """
    rng = np.random.default_rng(0)
    truth, with_signal, noise = {}, {}, {}
    for i in range(40):
        row, column = rng.integers(0, 13, 2)
        box = tuple(int(4 * n) for n in (column, row, column + 4, row + 4))
        name = f"{'ab'[i % 2]}{i}"
        truth[name] = Truth(LABELS[i % 2], (box,), ())
        noise[name] = rng.normal(0, 1, (16, 16)).astype(np.float32)
        with_signal[name] = noise[name].copy()
        with_signal[name][row : row + 4, column : column + 4] += 1.5
    clusters = [
        {"label": name, "cluster": 0, "rank": 0, "adjusted_p_value": 1.0, "p_value_method": "controls"}
        for name in LABELS
    ]
    ours, chance = (measure_elements(mined_from(m), clusters, truth, seed=0) for m in (with_signal, noise))
    assert ours["precision_at_100"] > 0.9
    assert ours["precision_at_100"] > ours["chance_precision"] + 0.5
    assert chance["precision_at_100"] < 0.4
    assert chance["precision_at_100"] == pytest.approx(chance["chance_precision"], abs=0.2)
    assert ours["planted_first"] == 1
    assert chance["planted_first"] == 0


def test_precision_counts_the_first_hundred():
    """All of the first 100 hit, none of the next 50 do; the rank decides and not the order of the rows."""
    truth = {f"a{i}": Truth("alpha", (ON,), ()) for i in range(150)} | {"b": Truth("beta", (), ())}
    elements = [element(f"a{i}", "alpha", ON if i < 100 else OFF, i, 0) for i in range(150)]
    elements.append(element("b", "beta", ON, 0, 0))
    clusters = [{"label": name, "cluster": 0, "rank": 0, "adjusted_p_value": 0.0} for name in LABELS]
    found = measure_elements(elements[::-1], clusters, truth, seed=0)
    assert found["precision_at_100"] == 0.5
    assert found["recall"] == pytest.approx(100 / 150, abs=1e-4)
    assert found["curves"]["alpha"][99] == 1.0


def score_map(cells: np.ndarray) -> ScoreMap:
    view = ModelView(32, 32, 1.0, 1.0, 0.0, 0.0)
    return ScoreMap("x", "alpha", view, 2, cells.astype(np.float32), {}, cells * 0, 1 - cells.astype(np.float32))


def test_maps_by_hand():
    """A map that is high just where the motif is finds it; the error, its opposite here, does worse than chance.

    A label without any box (as where all motifs found no room) says nothing. Prevalence: 64 of 2 * 1024 pixels.
    """
    cells, marked = np.zeros((8, 8)), np.zeros((32, 32), dtype=bool)
    cells[2:4, 2:4], marked[8:16, 8:16] = 1.0, True
    empty = np.zeros((32, 32), dtype=bool)
    pairs = [(score_map(cells), marked), (score_map(np.zeros((8, 8))), empty)]
    found = measure_maps([pairs, [(score_map(cells), empty)]])
    assert found["prevalence"] == 0.0312
    assert found["pixel_ap_unsmoothed"] > 0.95
    assert found["pixel_ap"] > 0.9
    assert found["pixel_ap_error"] < 0.0312
    assert found["lift"] == pytest.approx(found["pixel_ap"] / 0.03125, rel=1e-3)
    assert measure_maps([[(score_map(cells), empty)]])["pixel_ap"] is None


def test_large_maps_are_thinned_and_not_changed():
    """1,024 px are measured at 128: the same prevalence and average precision."""
    view = ModelView(64, 64, 16.0, 16.0, 0.0, 0.0)
    cells, marked = np.zeros((16, 16), dtype=np.float32), np.zeros((1024, 1024), dtype=bool)
    cells[4:8, 4:8], marked[256:512, 256:512] = 1.0, True
    found = measure_maps([[(ScoreMap("x", "alpha", view, 2, cells, {}, cells, cells), marked)]])
    assert found["prevalence"] == 0.0625
    assert found["pixel_ap_unsmoothed"] > 0.95


def test_false_alarms_by_hand():
    """Four clusters, one below 0.05 after adjustment and two before; one tested by sign flips raises no alarm."""
    table = pa.table(
        {
            "adjusted_p_value": [0.04, 0.06, 0.9, 0.001], "p_value": [0.01, 0.03, 0.9, 0.001],
            "p_value_method": ["controls"] * 3 + ["sign flip"],
        }
    )  # fmt: skip
    found = control_measures(table)
    assert (found["false_alarms"], found["nominal_alarms"], found["any_alarm"]) == (0.25, 0.5, 1.0)
    assert (found["clusters"], found["untested"], found["p_values"]) == (4, 1, [0.01, 0.03, 0.9])
    assert found["sign_flip_alarms"] == 0.25  # the fourth, if one believed its test


def test_alarms_are_shares_of_all_clusters_and_other_measures_means_over_runs():
    """1 of 4 and 0 of 16 clusters: 5% of 20, and not the mean of 25% and 0; a run without a value is left out."""
    runs = [
        {"false_alarms": 0.25, "any_alarm": 1.0, "clusters": 4, "lift": 3.0},
        {"false_alarms": 0.0, "any_alarm": 0.0, "clusters": 16, "lift": None},
    ]
    assert means(runs, ("false_alarms", "any_alarm", "lift")) == {"false_alarms": 0.05, "any_alarm": 0.5, "lift": 3.0}


def test_sweeps():
    plans = parse_sweep("prevalence=1, 0.5,0.05", Planting(size=10))
    assert [(value, p.prevalence, p.size) for value, p in plans] == [("1", 1, 10), ("0.5", 0.5, 10), ("0.05", 0.05, 10)]
    assert [p.place for _, p in parse_sweep("place=fixed,free", Planting())] == ["fixed", "free"]
    assert parse_sweep(None, Planting()) == [(None, Planting())]
    assert plan_of(resolve({}), None, Planting(), 200, 3, "size=8,14")["plan"]["runs"] == 6


@pytest.mark.parametrize("sweep", ["prevalence", "colour=1,2", "size=a", "size=", "size=8,8", "prevalence=0.5,2"])
def test_impossible_sweeps(sweep: str):
    with pytest.raises(InputError):
        parse_sweep(sweep, Planting())


def test_a_control_cannot_be_swept():
    with pytest.raises(InputError, match="--control"):
        parse_sweep("size=8,14", Planting(control=True))


# ----------------------------------------------------------------------------------------- the whole benchmark


def tiny_settings(tiny_folder: Path, tiny_model: Path):
    return resolve(
        {
            "dataset": {"source": str(tiny_folder)},
            "model": {"name": str(tiny_model), "dtype": "fp32"},
            "finetune": {"steps": 4, "batch_size": 8, "validate_every": 2, "folds": 2},
            "score": {"draws": 2, "precision": "fast", "refine_draws": 2},
            "mine": {"noises": 1, "clusters": 3},
        }
    )


@pytest.mark.slow
def test_the_whole_benchmark(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A sweep over two prevalences: all measures in range, found again by a second call without new evaluations."""
    settings = tiny_settings(tiny_folder, tiny_model)
    out, figure = tmp_path / "out", tmp_path / "planted.png"
    found = planted(settings, out, images=32, sweep="prevalence=1,0.5", draws=2, maps=16, picture=figure)
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (document["n"], document["folds"], document["seeds"]) == (32, 2, 1)
    assert [row["value"] for row in document["rows"]] == ["1", "0.5"]
    for row in document["rows"]:
        for name in ("precision_at_100", "recall", "cluster_purity", "pixel_ap", "prevalence", "distractor_at_100"):
            assert 0 <= row[name] <= 1, name
        assert document[f"precision_at_100@{row['value']}"] == row["precision_at_100"]
    first, second = document["rows"]
    assert first["prevalence"] > second["prevalence"] > 0
    assert first["chance_precision"] > second["chance_precision"]
    assert (out / "prevalence-0.5" / "run" / "index.html").exists()
    assert (out / "prevalence-1" / "data" / "metadata.csv").exists()
    assert figure.stat().st_size > 1000
    again = planted(settings, out, images=32, sweep="prevalence=1,0.5", draws=2, maps=16)
    assert again.measures == found.measures
    assert again.unet_evaluations == found.unet_evaluations


@pytest.mark.slow
def test_the_whole_control(tiny_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings, figure = tiny_settings(tiny_folder, tiny_model), tmp_path / "control.png"
    found = planted(settings, tmp_path / "out", planting=Planting(control=True), images=32, seeds=2, picture=figure)
    document = found.as_dict()
    tables = [pq.read_table(tmp_path / "out" / f"seed-{seed}" / "run" / "clusters.parquet") for seed in (0, 1)]
    assert [run["seed"] for run in document["runs"]] == [0, 1]
    assert [run["clusters"] for run in document["runs"]] == [table.num_rows for table in tables]
    assert all(run["untested"] == 0 for run in document["runs"])
    adjusted = [p for table in tables for p in table["adjusted_p_value"].to_pylist()]
    plain = [p for table in tables for p in table["p_value"].to_pylist()]
    assert document["false_alarms"] == pytest.approx(np.mean(np.array(adjusted) <= 0.05), abs=1e-4)
    assert document["nominal_alarms"] == pytest.approx(np.mean(np.array(plain) <= 0.05), abs=1e-4)
    truths = [read_truth(tmp_path / "out" / f"seed-{seed}" / "data" / "metadata.csv") for seed in (0, 1)]
    assert not any(t.planted or t.distractors for truth in truths for t in truth.values())
    assert [t.label for t in truths[0].values()] != [t.label for t in truths[1].values()]
    assert document["motifs"] == []
    assert "precision_at_100" not in document
    assert figure.stat().st_size > 1000
