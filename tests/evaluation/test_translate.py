"""`evaluate translate` on subjects that exist in two designs: the protocol, not the quality of a random model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import typicality
from tests.applications.redesigned import mine
from typicality.applications.translate.methods import METHODS, TranslateOptions
from typicality.cli.app import run as command
from typicality.errors import DatasetError
from typicality.evaluation.controls import KINDS
from typicality.evaluation.likeness import root_mean_square
from typicality.evaluation.translate import (
    GRID,
    Measured,
    Measurement,
    Subjects,
    candidates_of,
    controls_of,
    evaluate_translate,
    find_subjects,
    objective,
    row_of,
    split,
    train_judge,
)
from typicality.progress import SILENT
from typicality.run import Run, open_finished, open_run, resolve_settings

pytestmark = pytest.mark.slow

DISTANCES = ("pixels", "latents", "edges", "pixels_correlation", "edges_correlation")


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mine(tmp_path_factory.mktemp("evaluate"), tiny_model)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return open_finished(folder, "finetune")


def test_subjects_are_held_out_and_paired(run: Run):
    subjects, gallery = find_subjects(run, "2016", "2024")
    held = {i.group for i in run.dataset.held_out()[1]}
    assert {i.group for i in subjects.source} == {i.group for i in subjects.truth} == held
    assert all(
        a.labels == ("2016",) and b.labels == ("2024",) for a, b in zip(subjects.source, subjects.truth, strict=True)
    )
    assert [a.group for a in subjects.source] == [b.group for b in subjects.truth]
    assert {i.image_id for i in subjects.source} <= {i.image_id for i in gallery}
    assert subjects.restyled.all()  # the same square in another colour


def test_no_subject_is_tuned_on_and_tested(run: Run):
    subjects, _ = find_subjects(run, "2016", "2024")
    tuning, test = split(subjects)
    names = [{i.group for i in part.source} for part in (tuning, test)]
    assert not names[0] & names[1]
    assert (len(tuning), len(test)) == (2, 3)


def test_the_judge_learns_colours_and_is_kept(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Grey and blue squares are easily told apart, on subjects that it has not seen; the second time is free."""
    judge, measured = train_judge(run, 30, SILENT)
    assert measured["accuracy"] == 1.0
    assert measured["n"] == len(run.dataset.held_out()[1])
    assert measured["interval"] == [0.6489, 1]  # Wilson at 5 of 5: the subjects, not their ten images
    monkeypatch.setattr("typicality.evaluation.translate.train_cnn", None)
    _, again = train_judge(run, 30, SILENT)
    assert again == measured
    subjects, gallery = find_subjects(run, "2016", "2024")
    measure = Measurement(run, judge, gallery, "2016", "2024")
    before, truth = measure.unchanged(subjects), measure.truth(subjects)
    everyone = np.ones(len(subjects), dtype=bool)
    nothing = row_of("no change", "all", before, before.distances, everyone)
    assert nothing["flip_rate"] == 0
    assert nothing["flip_rate_interval"] == [0, 0.3511]  # Wilson at 0 of 5
    alone = row_of("no change", "all", before, before.distances, np.arange(len(subjects)) == 0)
    assert alone["reduction_pixels_interval"] is None
    assert nothing["subject_kept_latents"] == 1
    assert all(nothing[f"reduction_{name}"] == 0 for name in DISTANCES)
    best = row_of("truth", "all", truth, before.distances, everyone)
    assert best["flip_rate"] == 1
    assert all(best[f"reduction_{name}"] == 1 for name in DISTANCES)
    assert best["share_nearer"] == 1


def test_a_judge_of_other_groups_or_crops_is_trained_anew(folder: Path):
    """Groups say what it learns from, and the longest aspect what it sees; the same ones find it again."""
    known = set((folder / "translate").glob("judge-*"))
    found = []
    for changes in ({}, {"dataset": {"group": None}}, {"model": {"max_aspect": 1.5}}, {}):
        train_judge(open_run(resolve_settings(str(folder), None, [changes]), folder), 1, SILENT)
        found.append(len(set((folder / "translate").glob("judge-*")) - known))
    assert found == [1, 2, 3, 3]


def test_all_methods_are_in_the_table(folder: Path, tmp_path: Path):
    picture = tmp_path / "examples.png"
    result = evaluate_translate(
        folder, "2016", "2024", ["delta", "sdedit"], steps=2, draws=4, epochs=1, picture=picture
    )
    assert {r["method"] for r in result["rows"]} == {"no change", "truth", "delta", "sdedit", *KINDS}
    assert result["best"] in ("delta", "sdedit")
    best = next(r for r in result["rows"] if r["method"] == result["best"] and r["subset"] == "all")
    assert result["label_flip_rate"] == best["flip_rate"]
    assert result["n"] == best["n"]
    low, high = result["distance_reduction_interval"]
    assert low <= result["distance_reduction"] <= high
    assert picture.stat().st_size > 1000
    json.dumps(result, allow_nan=False)


def test_a_method_that_does_what_a_control_does_is_no_better(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """However much nearer to the truth it comes; a method that goes half of the way there is better."""
    tuning, _ = split(find_subjects(run, "2016", "2024")[0])
    controls = controls_of(tuning)
    found = {}
    for half_way in (False, True):

        def moved(
            self: Measurement, subjects: Subjects, options: TranslateOptions, classify: bool, half_way: bool = half_way
        ) -> Measured:
            if not half_way:
                return self.control(subjects, controls.controls[controls.best["pixels"]])
            pixels = (subjects.before + subjects.wanted) / 2
            return self.of(subjects, pixels, self.run.denoiser.encode_images(pixels), np.full(len(subjects), np.nan))

        monkeypatch.setattr(Measurement, "__call__", moved)
        found[half_way] = evaluate_translate(folder, "2016", "2024", ["sdedit", "delta"], epochs=1)
    assert found[False]["best_control"] == controls.best["pixels"]
    assert (found[False]["over_best_control"], found[False]["over_best_control_interval"]) == (0, [0, 0])
    assert found[True]["over_best_control"] > 0.2
    low, high = found[True]["over_best_control_correlation_interval"]
    assert 0 < low <= found[True]["over_best_control_correlation"] <= high


def test_controls_are_tuned_on_the_tuning_part(run: Run):
    """The best of a kind beats doing nothing there, and the kind that has all amounts beats those that have one."""
    tuning, _ = split(find_subjects(run, "2016", "2024")[0])
    found = controls_of(tuning)
    before, wanted = tuning.before.numpy(), tuning.wanted.numpy()
    distance = {name: root_mean_square(c(before), wanted).mean() for name, c in found.controls.items()}
    assert list(distance) == list(KINDS)
    assert distance[found.best["pixels"]] == min(distance.values()) < root_mean_square(before, wanted).mean()
    nobody = controls_of(tuning.part(np.zeros(0, dtype=int)))
    assert (nobody.controls, nobody.best) == ({}, {})


def test_options_are_tuned_on_other_subjects(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Both strengths are tried on the tuning part; the one with the larger objective is what the test is done with."""
    grid = {"sdedit": {"strength": (0.05, 0.9), "guidance": (1.0,)}}
    monkeypatch.setattr("typicality.evaluation.translate.GRID", grid)
    result = evaluate_translate(folder, "2016", "2024", ["sdedit"], tune=True, steps=2, draws=4, epochs=1)
    assert [t["strength"] for t in result["tuning"]] == [0.05, 0.9]
    best = max(result["tuning"], key=lambda t: t["objective"])
    assert result["options"]["sdedit"]["strength"] == best["strength"]
    assert (result["n_tuning"], result["n"]) == (2, 3)


def test_injection_is_tuned_where_it_matters(monkeypatch: pytest.MonkeyPatch):
    """Strengths x guidances x injections of plug-and-play; of the others, which inject nothing, no injection."""
    monkeypatch.setitem(GRID, "pnp", GRID["pnp"] | {"inject": (0.5, 0.8)})
    options = {m: candidates_of(TranslateOptions(m).resolved()) for m in METHODS}
    assert len(options["pnp"]) == len(set(options["pnp"])) == len(GRID["pnp"]["guidance"]) * 2
    assert {o.inject for o in options["pnp"]} == {0.5, 0.8}
    assert {o.inject for m in METHODS if m != "pnp" for o in options[m]} == {TranslateOptions().inject}
    assert {o.keep for o in options["mean"]} == set(GRID["mean"]["keep"])
    assert {(o.keep, o.average) for m in METHODS if m != "mean" for o in options[m]} == {(0.0, 0.0)}
    assert all(o.resolved() == o for found in options.values() for o in found)


def measured(distances: list[float], flipped: list[float]) -> Measured:
    found = {"pixels": np.array(distances)}
    return Measured(np.array(flipped), np.full(len(flipped), np.nan), found, {}, torch.empty(0))


def test_the_objective_is_what_the_headline_reports():
    """Restyled: 1 + 1 before, 0.5 + 0.5 after, so 50% less. Half of all four flip.

    0.8 are wanted and 1.645 standard errors more, of 0.2 with four subjects: all of them, so half are 0.5 short.
    The two redrawn subjects, which come no nearer, count in the flips alone.
    """
    restyled = np.array([True, True, False, False])
    before = {"pixels": np.ones(4)}
    value, gain, flips = objective(measured([0.5, 0.5, 3.0, 3.0], [1, 1, 0, 0]), before, restyled)
    assert (gain, flips) == (0.5, 0.5)
    assert value == pytest.approx(0.5 - 0.5)
    assert objective(measured([0.5] * 4, [1] * 4), before, np.zeros(4, dtype=bool))[0] == 0.5  # none is restyled: all


def test_the_test_part_does_not_choose_the_method(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """On the tuning part (2 subjects) `delta` looks better, on the test part (3) `sdedit`: the former is reported."""
    better = {2: "delta", 3: "sdedit"}

    def fixed(self: Measurement, subjects: Subjects, options: TranslateOptions, classify: bool) -> Measured:
        moved = 0.9 if options.method == better[len(subjects)] else 0.1
        pixels = subjects.before + moved * (subjects.wanted - subjects.before)
        latents = self.run.latents.stack([i.image_id for i in subjects.source])
        return self.of(subjects, pixels, latents, np.full(len(subjects), np.nan))

    monkeypatch.setattr(Measurement, "__call__", fixed)
    result = evaluate_translate(folder, "2016", "2024", ["sdedit", "delta"], epochs=30)
    assert result["best"] == "delta"
    assert result["best_chosen_on"] == "tuning part"
    assert result["distance_reduction"] == pytest.approx(0.1, abs=0.01)
    assert [t["method"] for t in result["tuning"]] == ["sdedit", "delta"]


def test_the_command_writes_what_it_prints(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "translate.json"
    words = ["evaluate", "translate", str(folder), "--from", "2016", "--to", "2024", "--methods", "sdedit"]
    work = ["--sampler-steps", "2", "--draws", "4", "--epochs", "1", "--json", "-q", "--write", str(out)]
    assert command([*words, *work, "--at-least", "label_flip_rate=1.01"]) == 1
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())


def test_a_dry_run_does_nothing_and_says_what_would_be_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Five subjects: two to tune on, three for the test. sdedit of 2 steps at guidance 4: 4 evaluations an image.

    Three candidates x 2 + 3 = 9 translations, and the test's classification: 3 x 4 draws x (1 + 2 prompts).
    """
    monkeypatch.setattr("typicality.evaluation.translate.open_finished", None)  # nothing may call it
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    words = ["evaluate", "translate", str(folder), "--from", "2016", "--methods", "sdedit", "--tune", "--dry-run"]
    work = ["--sampler-steps", "2", "--draws", "4", "--json"]
    assert command([*words, *work, "--to", "2024"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["test subjects at most"], plan["tuning subjects at most"]) == (3, 2)
    assert plan["option sets tried"] == {"sdedit": 3}
    assert plan["UNet evaluations at most"] == 9 * 4 + 3 * 4 * 3
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert command([*words, *work, "--to", "2042"]) == 2
    assert "'2024'" in capsys.readouterr().err


def test_the_python_function_measures_the_same(folder: Path):
    result = typicality.evaluate_translate(folder, "2016", "2024", ["sdedit"], steps=2, draws=4, epochs=1, seed=3)
    assert (result["best"], result["best_chosen_on"], result["n"]) == ("sdedit", "the only method", 3)


def test_labels_without_common_subjects(run: Run):
    with pytest.raises(DatasetError, match="'2024'"):
        find_subjects(run, "2016", "2042")
