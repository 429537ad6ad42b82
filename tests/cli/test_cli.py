"""The command line as a user meets it: exit codes, messages and what goes to which stream.

Every wrong input here ends with exit code 2 and one message on stderr that says what is wrong and what to do, without
a traceback; stdout stays empty. Commands run in this process through `run`, which is all that `main` calls.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

import typicality
from typicality.cli.app import app, run
from typicality.config import Settings
from typicality.errors import DatasetError


class Outcome:
    """Exit code and both streams of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The one message of a command that failed."""
        lines = [line for line in self.err.splitlines() if not line.startswith("warning: ")]
        assert len(lines) == 1, f"one line expected, not:\n{self.err}"
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")


@pytest.fixture
def typical(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        words = [str(argument) for argument in arguments]
        capsys.readouterr()
        code = run(words, verbose="--verbose" in words)
        return Outcome(code, *capsys.readouterr())

    return call


def draw(folder: Path, n: int, seed: int) -> None:
    """Write n small noisy images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labels as folders, and a table with the columns year and camera."""
    root = tmp_path_factory.mktemp("cli") / "photos"
    for seed, label in enumerate(("old", "new")):
        draw(root / label, 12, seed)
    rows = [f"{label}/{i}.png,{1900 + i},c{i % 3}" for label in ("old", "new") for i in range(12)]
    (root / "metadata.csv").write_text("\n".join(["file_name,year,camera", *rows]))
    return root


# ------------------------------------------------------------------------------------------------ wrong input


def test_a_folder_that_does_not_exist(typical):
    result = typical("mine", "nowhere", "--label", "year")
    assert (result.code, result.out) == (2, "")
    assert "'nowhere'" in result.error


def test_a_column_that_does_not_exist_is_answered_with_the_nearest_names(typical, photos: Path):
    result = typical("mine", photos, "--label", "yaer")
    assert result.code == 2
    assert "no column 'yaer'" in result.error
    assert "did you mean 'year'" in result.error


def test_one_label_only(typical, tmp_path: Path):
    draw(tmp_path / "single" / "only", 3, 0)
    result = typical("mine", "single", "--label", "folder")
    assert result.code == 2
    assert "'only'" in result.error
    assert "at least two labels" in result.error


def test_no_image_that_can_be_read(typical, tmp_path: Path):
    for label in "ab":
        (tmp_path / "texts" / label).mkdir(parents=True)
        (tmp_path / "texts" / label / "text.png").write_text("this is not an image")
    result = typical("mine", "texts", "--label", "folder")
    assert result.code == 2
    assert "no image" in result.error
    assert "text.png" in result.error


def test_a_folder_without_images(typical, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    result = typical("mine", "empty")
    assert result.code == 2
    assert "empty" in result.error


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("score.drws=3", "did you mean 'draws'"),
        ("scores.draws=3", "did you mean 'score'"),
        ("draws=8", "did you mean 'score.draws'?"),
        ("label=year", "did you mean 'dataset.label'?"),
        ("contrast=8", "did you mean 'finetune.contrast' or 'score.contrast'?"),
        ("prompt.template={label}", "YAML reads { } and ': ' as a mapping: quote the text"),
        ("prompt.template=a photo: {label}", "YAML reads { } and ': ' as a mapping: quote the text"),
        ("score.draws", "--set takes key=value"),
        ("=3", "--set takes key=value"),
        ("score.draws=lots", "score.draws"),
        ("score.draws=1", "score.draws"),
        ("score.draws=[1", "score.draws"),
        ("score.t_min=0.9", "score.t_min"),
        ("model=3", "model"),
        ("a.b.c=3", "'a'"),
    ],
)
def test_a_wrong_assignment(typical, photos: Path, assignment: str, message: str):
    """A misspelt name is answered with the nearest one; a wrong value names its setting."""
    result = typical("mine", photos, "--label", "year", "--set", assignment)
    assert result.code == 2
    assert message in result.error


def test_an_unknown_setting_in_the_settings_file(typical, photos: Path, tmp_path: Path):
    (tmp_path / "settings.yaml").write_text("score:\n  drwas: 8\n")
    result = typical("mine", photos, "--label", "year", "--config", "settings.yaml")
    assert result.code == 2
    assert "did you mean 'draws'" in result.error


@pytest.mark.parametrize("content", ["score: [", "- 1", None])
def test_a_settings_file_that_is_none(typical, photos: Path, tmp_path: Path, content: str | None):
    """Broken YAML, a list, and no file at all; YAML's own explanation may take several lines."""
    if content is not None:
        (tmp_path / "settings.yaml").write_text(content)
    result = typical("mine", photos, "--config", "settings.yaml")
    assert (result.code, result.out) == (2, "")
    assert "settings.yaml" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_a_place_that_cannot_be_written(typical, photos: Path, tmp_path: Path, out: str):
    """A path at or below a regular file: not even root can write there."""
    (tmp_path / "file").write_text("a file")
    result = typical("mine", photos, "--label", "folder", "--out", out)
    assert result.code == 2
    assert out in result.error
    assert (tmp_path / "file").read_text() == "a file"


def test_a_folder_that_holds_something_else_is_left_alone(typical, photos: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    result = typical("mine", photos, "--label", "folder", "--out", "mine")
    assert result.code == 2
    assert "not empty" in result.error
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("make", ["nothing", "empty", "text"])
def test_a_model_that_is_none(typical, photos: Path, tmp_path: Path, make: str):
    model = tmp_path / "model"
    if make != "nothing":
        model.mkdir()
    if make == "text":
        (model / "model_index.json").write_text("not json")
    result = typical("mine", photos, "--label", "folder", "--model", model)
    assert result.code == 2
    assert str(model) in result.error


def test_a_checkpoint_with_damaged_weights(typical, photos: Path, tmp_path: Path, tiny_model: Path):
    """Cut in half, as by a download that broke off."""
    shutil.copytree(tiny_model, tmp_path / "damaged")
    weights = next((tmp_path / "damaged" / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    result = typical("mine", photos, "--label", "folder", "--model", "damaged")
    assert result.code == 2
    assert "damaged" in result.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mnie"], "mine"),
        (["mine", "--labl", "year"], "--label"),
        (["mine", "--device", "gpu"], "--device"),
        (["mine", "--seed", "x"], "--seed"),
        (["report", "nowhere"], "nowhere"),
        (["evaluate", "classify", "nowhere"], "nowhere"),
        (["evaluate", "classify", "nowhere", "--at-least", "accuracy"], "--at-least"),
        (["pretrain", "nowhere.parquet"], "--out"),
        (["pretrain", "nowhere.parquet", "--out", "base"], "nowhere.parquet"),
    ],
)
def test_wrong_words(typical, words: list[str], message: str):
    result = typical(*words)
    assert (result.code, result.out) == (2, "")
    assert message in result.error


def test_a_text_file_named_png_is_reported_and_left_out(typical, photos: Path, tmp_path: Path):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    (root / "metadata.csv").unlink()
    (root / "old" / "notes.png").write_text("this is not an image")
    result = typical("mine", root, "--dry-run", "--json")
    plan = json.loads(result.out)["plan"]
    assert (result.code, plan["images"], plan["unreadable images"]) == (0, 24, 1)
    strict = typical("mine", root, "--dry-run", "--strict")
    assert strict.code == 2
    assert "old/notes.png" in strict.error


def test_a_traceback_is_for_those_who_ask(typical):
    assert "Traceback" not in typical("mine", "nowhere").err
    assert "Traceback" in typical("mine", "nowhere", "--verbose").err


def test_a_bug_of_ours_is_named_as_such(typical, monkeypatch: pytest.MonkeyPatch):
    """Exit code 70, and how to report it."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("typicality.dataset.builtin_datasets", broken)
    result = typical("datasets")
    assert result.code == 70
    assert "ZeroDivisionError" in result.err
    assert "--verbose" in result.err
    assert "Traceback" not in result.err


def test_ctrl_c(typical, photos: Path, monkeypatch: pytest.MonkeyPatch):
    """Exit code 130, and the way on."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("typicality.pipeline.ensure_latents", interrupted)
    result = typical("mine", photos, "--label", "folder", "--out", "run", "--quiet")
    assert result.code == 130
    assert "the same command continues" in result.err


# ------------------------------------------------------------------------------------------------ right input


def test_version(typical):
    result = typical("--version")
    assert (result.code, result.out, result.err) == (0, f"typicality {typicality.__version__}\n", "")


ORDER = [
    *("mine", "finetune", "score", "report", "audit", "localize", "translate", "trends", "augment", "impute"),
    *("tabular", "evaluate", "bench", "estimate", "diff", "export", "pretrain", "datasets", "doctor"),
]
"""The order in which a user meets the commands."""


@pytest.mark.parametrize("words", [["--help"], []])
def test_help_lists_the_commands_in_the_order_a_user_meets_them(typical, words: list[str]):
    """Also without any word, where it is help and not an error."""
    result = typical(*words)
    text = result.out + result.err
    listed = [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    assert listed == ORDER
    assert "error" not in text


def commands(group: Any, prefix: str = "") -> Iterator[str]:
    """Names of all commands, those of a group with its name before them: evaluate_labels."""
    for name, command in group.commands.items():
        yield from commands(command, f"{name}_") if hasattr(command, "commands") else [prefix + name]


def test_every_command_is_a_python_function():
    """`evaluate classify` is `typicality.evaluate_classify`."""
    assert set(commands(typer.main.get_command(app))) - set(typicality.__all__) == set()
    for _ in range(2):  # importing the package `report` puts it where the function of that name was
        assert [name for name in typicality.__all__ if not callable(getattr(typicality, name))] == []


def test_report_is_a_function_whatever_has_been_imported(tmp_path: Path):
    assert typicality.mine  # imports all
    with pytest.raises(DatasetError, match="there is no data set"):
        typicality.report(tmp_path / "nothing")


@pytest.mark.parametrize("command", list(commands(typer.main.get_command(app))))
def test_common_options_are_the_same_everywhere(typical, command: str):
    text = typical(*command.split("_"), "--help").out
    for option in ("--config", "--set", "--out", "--model", "--seed", "--device", "--dtype", "--offline", "--dry-run",
                   "--fresh", "--resume", "--json", "--quiet", "--verbose"):  # fmt: skip
        assert option in text


def test_dry_run_prints_one_json_document_and_writes_nothing(typical, photos: Path, tmp_path: Path):
    """The settings in it are complete and resolve to themselves."""
    result = typical("mine", photos, "--label", "year", "--bin", 5, "--set", "score.draws=6", "--dry-run", "--json")
    document = json.loads(result.out)
    assert result.code == 0
    assert document["settings"]["dataset"]["bin"] == 5
    assert document["settings"]["score"]["draws"] == 6
    assert Settings.model_validate(document["settings"]).model_dump(mode="json") == document["settings"]
    assert document["plan"]["labels"] == {"1900": 10, "1905": 10, "1910": 4}
    assert document["plan"]["UNet evaluations of the first pass"] == 24 * 2 * 6
    assert document["out"] == "reports/photos-year"
    assert list(tmp_path.iterdir()) == []


def test_dry_run_for_people_is_yaml_and_a_plan(typical, photos: Path):
    result = typical("mine", photos, "--label", "camera", "--group", "year", "--dry-run")
    assert result.code == 0
    assert "label: camera" in result.out
    assert "would write to reports/photos-camera" in result.out


def test_dry_run_of_a_stage_names_that_stage(typical, photos: Path):
    words = (photos, "--label", "year", "--bin", 5, "--dry-run", "--json")
    whole, training = (json.loads(typical(name, *words).out)["plan"] for name in ("mine", "finetune"))
    assert set(whole) - set(training) == {"UNet evaluations of the first pass"}
    assert training["fine-tuning"].split(" on ")[0].endswith(" steps")
    timed = json.loads(typical("finetune", *words, "--minutes", 5).out)["plan"]
    assert timed["fine-tuning"].startswith("5 min on ")


def test_dry_run_says_that_a_label_would_not_be_learned(typical, photos: Path):
    """A group a label: whichever is held out, no image of its label is trained on."""
    result = typical("mine", photos, "--label", "camera", "--group", "camera", "--dry-run")
    assert "warning: No image of the label" in result.err
    assert "prompt is not learned" in result.err
    result = typical("mine", photos, "--label", "camera", "--dry-run")
    assert "prompt is not learned" not in result.err


def test_dry_run_names_rare_labels_and_unreadable_files(typical, photos: Path, tmp_path: Path):
    """As the README says; on stderr, so that the plan stays what it is, and in the document."""
    shutil.copytree(photos, tmp_path / "photos")
    for name in ("0", "1"):
        (tmp_path / "photos" / "old" / f"{name}.png").write_text("this is not an image")
    words = ("mine", "photos", "--label", "folder", "--dry-run")
    result = typical(*words)
    assert "warning: labels with fewer than the 12 images that a result needs: 'old' (10)" in result.err
    reason = "not an image, or of a format that Pillow does not know"
    assert [line for line in result.err.splitlines() if line.startswith("unreadable: ")] == [
        f"unreadable: old/{name}.png: {reason}" for name in ("0", "1")
    ]
    plan = json.loads(typical(*words, "--json").out)["plan"]
    assert any("'old' (10)" in warning for warning in plan["warnings"])
    assert plan["unreadable"] == [["old/0.png", reason], ["old/1.png", reason]]
    assert typical(*words, "--quiet").err == ""


def test_options_win_over_the_file_and_assignments_over_options(typical, photos: Path, tmp_path: Path):
    (tmp_path / "settings.yaml").write_text("seed: 1\nscore: {draws: 4}\nmine: {patch: 8}\n")
    common = ("mine", photos, "--label", "year", "--config", "settings.yaml", "--dry-run", "--json")
    settings = json.loads(typical(*common, "--seed", 2, "--draws", 6, "--set", "score.draws=8").out)["settings"]
    assert (settings["seed"], settings["score"]["draws"], settings["mine"]["patch"]) == (2, 8, 8)


@pytest.mark.parametrize(
    ("prompt", "null"),
    [
        ("a car from the {label}s", "a car"),
        ("{label}", "an image"),
        ("a photograph, {label}", "a photograph"),
        ("chest x-ray with {label} in it", "chest x-ray"),
    ],
)
def test_a_prompt_alone_gets_its_null_prompt(typical, photos: Path, prompt: str, null: str):
    result = typical("mine", photos, "--label", "year", "--prompt", prompt, "--dry-run", "--json")
    assert json.loads(result.out)["settings"]["prompt"] == {"template": prompt, "null": null}


def test_datasets(typical):
    """Those that ship are ready; the others come with a way to get them."""
    listed = {entry["name"]: entry for entry in json.loads(typical("datasets", "--json").out)}
    assert listed["emoji"]["installed"]
    assert listed["flags"]["installed"]
    assert all(entry["how_to_get"] for entry in listed.values())
    text = typical("datasets").out
    assert all(name in text for name in listed)
    assert "4556 images" in text


@pytest.mark.slow
def test_as_a_program():
    """`python -m typicality.cli` is the same program, with the same exit codes."""
    command = [sys.executable, "-m", "typicality.cli"]
    done = subprocess.run([*command, "mine", "nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no data set 'nowhere'")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_demo_in_small(typical, tmp_path: Path):
    """The embedded emoji and the bundled base as `make demo` has them, but for fewer images and steps."""
    some = ("--where", "category == 'Activities' and year != 2019", "--steps", 2, "--precision", "standard")
    mined = typical("mine", "--label", "year", *some, "--set", "mine.per_label=8", "--out", "run", "--json")
    assert mined.code == 0, mined.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["stages"]["finetune"]["label_blocks"] == 1
    assert record["stages"]["refine"]["state"] == "done"
    assert json.loads(mined.out)["elements"] > 0


@pytest.mark.slow
def test_a_run_from_the_command_line(typical, tiny_model: Path, tiny_folder: Path, tmp_path: Path):
    """Mine, render again, classify: one JSON document each on stdout, exit code 1 where a limit is missed."""
    small = ("--set", "score.refine_draws=2", "--set", "mine.noises=1", "--set", "mine.clusters=2")
    mined = typical("mine", tiny_folder, "--label", "folder", "--model", tiny_model, "--steps", 2, "--draws", 2,
                    *small, "--out", "run", "--json")  # fmt: skip
    assert mined.code == 0, mined.err
    document = json.loads(mined.out)
    assert (tmp_path / "run" / "index.html").stat().st_size > 10_000
    assert document["elements"] > 0
    assert set(document["clusters"]) <= {"blue", "red"}
    assert {"finetune", "score", "mine", "report"} <= set(document["stages"])

    again = typical("report", "run", "--title", "Squares & more", "--json")
    assert again.code == 0, again.err
    assert "Squares &amp; more" in (tmp_path / "run" / "index.html").read_text(encoding="utf-8")

    words = ("evaluate", "classify", "run", "--draws", 2, "--json")
    measured = typical(*words)
    accuracy = json.loads(measured.out)
    assert measured.code == 0, measured.err
    assert {"accuracy", "n", "draws", "chance"} <= set(accuracy)
    missed = typical(*words, "--at-least", f"accuracy={accuracy['accuracy'] + 0.01}")
    assert missed.code == 1
    assert "accuracy is" in missed.err
    assert json.loads(missed.out)["accuracy"] == accuracy["accuracy"]
