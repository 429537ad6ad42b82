"""`evaluate elements`, `labels` and `planted` from the command line: what is planned, refused, measured and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.applications.mined import write_mined
from typicality.cli.app import run


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run `evaluate ...` in an empty folder: the exit code, the document on stdout if any, and what was said."""
    monkeypatch.chdir(tmp_path)

    def typical(*words: object) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = run(["evaluate", *map(str, words), "--json"])
        out, said = capsys.readouterr()
        return code, json.loads(out) if out.strip() else None, said

    return typical


def options(tiny_folder: Path, tiny_model: Path) -> list[object]:
    return [tiny_folder, "--model", tiny_model, "--set", "model.dtype=fp32", "--steps", 2, "--set", "mine.noises=1"]


@pytest.mark.parametrize("name", ["labels", "planted"])
@pytest.mark.parametrize(
    ("words", "folds"), [((), 2), (("--folds", 1), 1), (("--set", "finetune.folds=1"), 1), (("--folds", 3), 3)]
)
def test_two_folds_unless_a_number_is_named(call, tiny_folder: Path, tmp_path: Path, name: str, words, folds: int):
    code, plan, _ = call(name, tiny_folder, "--label", "folder", *words, "--dry-run")
    assert code == 0
    assert plan["settings"]["finetune"]["folds"] == folds
    assert list(tmp_path.iterdir()) == [], "a dry run writes nothing"


@pytest.mark.parametrize("name", ["labels", "planted"])
def test_the_folds_of_a_run_are_no_choice_of_this_call(call, tiny_folder: Path, tmp_path: Path, name: str):
    """A run's record holds every setting; options, --set and --config choose."""
    run = write_mined(tmp_path / "run", tiny_folder)
    assert json.loads((run / "run.json").read_text())["settings"]["finetune"]["folds"] == 1
    (tmp_path / "own.yaml").write_text("finetune: {folds: 1}")
    for words, folds in (((), 2), (("--folds", 1), 1), (("--config", "own.yaml"), 1)):
        code, plan, _ = call(name, run, *words, "--dry-run")
        assert (code, plan["settings"]["finetune"]["folds"]) == (0, folds)


def test_the_plan_of_labels_is_its_own(call, tiny_folder: Path):
    """32 images: 6 labels to flip, 4 draws under 2 labels and none, into a folder beside that of `mine`."""
    words = ("labels", tiny_folder, "--label", "folder", "--flip", 0.2, "--how", "confusable", "--draws", 4)
    code, document, _ = call(*words, "--dry-run")
    assert code == 0
    assert document["out"] == f"reports/{tiny_folder.name}-folder-labels"
    plan = document["plan"]
    assert plan["labels to flip"] == "6, confusable"
    assert plan["UNet evaluations of the scores at most"] == 32 * 4 * 3
    assert plan["fine-tuning"].startswith("2 folds")
    assert not any("first pass" in name for name in plan)
    assert call(*words, "--dry-run", "--out", "elsewhere")[1]["out"] == "elsewhere"


@pytest.mark.parametrize("wrong", [("--flip", 0.7), ("--draws", 5)])
def test_a_dry_run_of_labels_refuses_what_the_benchmark_would(call, tiny_folder: Path, wrong: tuple[str, float]):
    code, document, said = call("labels", tiny_folder, "--label", "folder", *wrong, "--dry-run")
    assert (code, document) == (2, None)
    assert wrong[0] in said


def test_a_plan_is_read_by_people(tiny_folder: Path, capsys):
    assert run(["evaluate", "planted", str(tiny_folder), "--motifs", "glyph,tint", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "planting: (labels 2, motifs glyph and tint, distractors glyph, prevalence 0.5" in out
    assert "{'" not in out
    assert "('" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("labels", "--flip", 0.7), "--flip"),
        (("planted", "--sweep", "colour=1"), "--sweep"),
        (("planted", "--motifs", "smell"), "smell"),
        (("labels", "--at-least", "auroc"), "--at-least"),
    ],
)
def test_impossible_options_are_named(call, tiny_folder: Path, words: tuple[Any, ...], said: str):
    code, document, message = call(words[0], tiny_folder, *(("--label", "folder") if words[0] == "labels" else ()),
                                   *words[1:])  # fmt: skip
    assert (code, document) == (2, None)
    assert said in message


def test_settings_of_this_session_reach_a_benchmark_of_a_run(call, tmp_path: Path):
    """--device and --set are not left unread: a dry run shows them resolved, and a mistake in them is an error."""
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 1, "stages": {}, "settings": {}}))
    for name in ("elements", "classify", "estimator"):
        code, plan, _ = call(name, tmp_path, "--device", "cpu", "--set", "score.batch_size=7", "--dry-run")
        assert code == 0
        assert plan["settings"]["model"]["device"] == "cpu"
        assert plan["settings"]["score"]["batch_size"] == 7
        code, _, message = call(name, tmp_path, "--set", "score.batchsize=7", "--dry-run")
        assert code == 2
        assert "batch" in message


@pytest.mark.slow
def test_planted_and_elements_from_the_command_line(call, tiny_folder: Path, tiny_model: Path, tmp_path: Path):
    """Plant, mine and measure; compare the elements of that run; miss a limit."""
    small = (*options(tiny_folder, tiny_model), "--draws", 2, "--set", "score.refine_draws=2")
    common = ("--map-draws", 2, "--maps", 4, "--write", "planted.json")
    code, planted, said = call("planted", *small, "--images", 32, "--folds", 1, "--out", "one", *common)
    assert code == 0, said
    assert planted["folds"] == 1
    assert planted["others_significant"] == 0, "without folds nothing is tested, so nothing is significant"
    assert json.loads((tmp_path / "planted.json").read_text()) == planted
    words = (
        "elements", tmp_path / "one" / "run", "--elements", 2, "--seeds", 1, "--epochs", 1, "--paper-draws", 2,
        "--draws", 2,
    )  # fmt: skip
    code, found, said = call(*words, "--at-least", "area_ours=2")
    assert code == 1, said
    assert (found["paper_draws"], found["draws"]) == (2, 2)
    spaces = [(row["method"], row["space"]) for row in found["rows"][:3]]
    assert spaces == [("ours", "typicality"), ("ours", "dift"), ("published", "typicality")]
    assert "area_ours" in said


@pytest.mark.slow
def test_labels_from_the_command_line(call, tiny_folder: Path, tiny_model: Path, tmp_path: Path):
    pytest.importorskip("cleanlab")
    small = options(tiny_folder, tiny_model)
    code, found, said = call("labels", *small, "--label", "folder", "--flip", 0.2, "--draws", 4, "--out", "flipped")
    assert code == 0, said
    assert (found["flips"], found["folds"], found["draws"]) == (6, 2, 4)
    assert (tmp_path / "flipped" / "run.json").is_file()
