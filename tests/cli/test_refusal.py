"""No option is ignored in silence: it has an effect, or the command warns that it has none and says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.applications.mined import write_mined
from typicality.cli.app import run

SETTINGS = [
    ["--config", "/nonexistent.yaml"],
    ["--set", "nonsense=1"],
    ["--model", "base"],
    ["--seed", "0"],
    ["--device", "cpu"],
    ["--dtype", "fp32"],
]
PLACE = [["--out", "elsewhere"], ["--fresh"]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def typical(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return run([str(word) for word in words]), *capsys.readouterr()

    return typical


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["datasets"], SETTINGS + PLACE),
        (["export", "nowhere", "--to", "csv"], [*SETTINGS, ["--fresh"]]),
        (["diff", "nowhere", "elsewhere"], [*SETTINGS, ["--fresh"]]),
        (["bench", "--dry-run"], PLACE),
        (["estimate", "--dry-run"], PLACE),
        (["doctor", "--dry-run"], [*PLACE, ["--seed", "0"]]),
    ],
)
def test_what_has_no_effect_is_passed_over_with_a_warning(call, words: list[str], options: list[list[str]]):
    code, out, _ = call(*words)
    for option in options:
        again, printed, said = call(*words, *option)
        assert (again, printed) == (code, out), option
        assert f"warning: {option[0]} has no effect" in said


@pytest.mark.parametrize("name", ["bench", "estimate", "doctor"])
def test_a_dry_run_shows_the_settings_and_does_nothing(call, tmp_path: Path, name: str, tiny_folder: Path):
    data = [tiny_folder, "--label", "folder"] if name == "estimate" else []
    words = (name, *data, "--device", "cpu", "--set", "score.batch_size=7", "--dry-run")
    code, out, _ = call(*words, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["settings"]["model"]["device"] == "cpu"
    assert document["settings"]["score"]["batch_size"] == 7
    code, out, _ = call(*words)
    assert code == 0
    assert "batch_size 7" in out
    assert "{'" not in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_benchmark_shows_what_it_measures(call):
    """`bench` never fine-tunes and gives every image the same draws."""
    settings = json.loads(call("bench", "--dry-run", "--json")[1])["settings"]
    assert settings["finetune"]["enabled"] is False
    assert settings["score"]["protocol"] == "uniform"


def test_a_dry_run_of_export_looks_at_the_run_and_at_the_place(call, tiny_folder: Path, tmp_path: Path):
    code, out, said = call("export", "nowhere", "--to", "csv", "--dry-run")
    assert (code, out) == (2, "")
    assert "nowhere" in said
    mined = write_mined(tmp_path / "run", tiny_folder)
    code, out, _ = call("export", mined, "--to", "csv", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out) == {"to": "csv", "out": str(mined / "export" / "elements.csv")}
    assert not (mined / "export").exists()
    assert call("export", mined, "--to", "csv", "--out", "taken.csv")[0] == 0
    assert call("export", mined, "--to", "csv", "--out", "taken.csv", "--dry-run")[0] == 2
    assert call("export", mined, "--to", "csv", "--out", "taken.csv", "--dry-run", "--force")[0] == 0


def test_a_dry_run_of_diff_looks_at_both_runs(call, tiny_folder: Path, tmp_path: Path):
    mined = write_mined(tmp_path / "run", tiny_folder)
    code, out, said = call("diff", mined, "nowhere", "--dry-run")
    assert (code, out) == (2, "")
    assert "nowhere" in said
    code, out, _ = call("diff", mined, mined, "--out", "diff.html", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out) == {"from": str(mined), "to": str(mined), "page": "diff.html"}
    assert not (tmp_path / "diff.html").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["export", "run", "--to", "csv", "--out"],
        ["export", "run", "--to", "hf", "--out"],
        ["diff", "run", "run", "--out"],
        ["bench", "--write"],
        ["audit", "nowhere", "--write"],
        ["trends", "nowhere", "--write"],
        ["translate", "nowhere", "--all-pairs", "--write"],
        ["evaluate", "classify", "nowhere", "--write"],
        ["evaluate", "planted", "nowhere", "--write"],
    ],
)
@pytest.mark.parametrize("place", ["file/x.html", "file/deep/x.html"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    call, words: list[str], place: str, tiny_folder: Path, tmp_path: Path
):
    """Below a regular file not even root can write; runs that do not exist show that nothing was begun."""
    if "run" in words:
        write_mined(tmp_path / "run", tiny_folder)
    (tmp_path / "file").write_text("a file")
    code, out, said = call(*words, place)
    assert (code, out) == (2, "")
    assert f"cannot write {place}" in said
    assert (tmp_path / "file").read_text() == "a file"


@pytest.mark.parametrize(
    "words",
    [
        ["autoencoder", "nowhere"],
        ["estimator", "nowhere"],
        ["elements", "nowhere"],
        ["labels", "nowhere"],
        ["planted", "nowhere"],
        ["localize", "nowhere"],
        ["translate", "nowhere", "--from", "a", "--to", "b"],
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(call, words: list[str], tmp_path: Path):
    """Below a file, as a folder, and in a format that nothing here writes."""
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for path, reason in (("file/x.png", "cannot write"), ("folder.png", "is a folder"), ("x.tiff", ".png")):
        code, out, said = call("evaluate", *words, "--picture", path)
        assert (code, out) == (2, "")
        assert path in said
        assert reason in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--protocol", "paper", "--overlap", "0.9"], ["score.overlap"]),
        (["--protocol", "uniform", "--precision", "exact"], ["score.precision"]),
        (["--set", "score.protocol=paper", "--set", "score.overlap=0.9"], ["score.overlap"]),
        (
            ["--protocol", "uniform", "--set", "score.rounds=1", "--set", "score.further_draws=2",
             "--set", "score.refine_draws=8"],
            ["score.rounds", "score.further_draws", "score.refine_draws"],
        ),
        (["--no-finetune", "--steps", "5", "--folds", "2"], ["finetune.steps", "finetune.folds"]),
        (["--no-finetune", "--keep-model"], ["finetune.keep"]),
        (["--protocol", "adaptive", "--overlap", "0.9", "--precision", "fast", "--steps", "5"], []),
        (["--protocol", "paper", "--no-finetune"], []),
    ],
)  # fmt: skip
def test_settings_without_effect_are_named(call, tiny_folder: Path, options: list[str], said: list[str]):
    code, _, messages = call("mine", tiny_folder, "--label", "folder", "--dry-run", *options)
    assert code == 0
    found = [line for line in messages.splitlines() if "has no effect" in line]
    assert [line.partition(" has no effect")[0] for line in found] == [f"warning: {name}" for name in said]


def test_the_cost_is_that_of_a_patch_that_is_asked_for(call, tiny_folder: Path):
    """`estimate` takes every option of `mine` that says what is done."""
    code, out, _ = call("estimate", tiny_folder, "--label", "folder", "--patch", "16", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["settings"]["mine"]["patch"] == 16
