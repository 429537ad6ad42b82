"""Limits of `--at-least`, and what a benchmark does with its result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import typer

from typicality.cli.app import run
from typicality.cli.evaluation import finish, parse_limits
from typicality.cli.options import Common
from typicality.errors import SettingsError

RESULT: dict[str, Any] = {"accuracy": 0.5, "lift": math.nan, "gain": None, "rows": []}


@pytest.mark.parametrize(
    ("limit", "message"),
    [("accuracy=0.51", "accuracy is 0.5, below 0.51"), ("lift=0", "could not be"), ("gain=-1", "could not be")],
)
def test_what_misses_a_limit_or_could_not_be_measured_is_a_breach(limit: str, message: str, capsys):
    """Not a number is not below 0 either: only what reaches the limit passes."""
    with pytest.raises(typer.Exit) as stop:
        finish("classify", RESULT, parse_limits([limit]), Common(), None)
    assert stop.value.exit_code == 1
    assert message in capsys.readouterr().err
    finish("classify", RESULT, parse_limits(["accuracy=0.5"]), Common(), None)


def test_a_misspelt_limit_costs_no_result(tmp_path: Path, capsys):
    """The work is done by then: the document is written and printed, and then the mistake is named."""
    with pytest.raises(SettingsError, match="did you mean 'accuracy'"):
        finish("classify", RESULT, {"acuracy": 0.5}, Common(json=True), tmp_path / "result.json")
    assert json.loads(capsys.readouterr().out)["accuracy"] == 0.5
    assert json.loads((tmp_path / "result.json").read_text())["accuracy"] == 0.5
    with pytest.raises(SettingsError, match="no measure 'rows'"):
        finish("classify", RESULT, {"rows": 0}, Common(), None)


def test_a_limit_may_be_on_what_lies_further_inside(capsys):
    """As that of a rival, or of one row of a sweep."""
    inner = RESULT | {"confident_learning": {"auroc": 0.8, "by": {"group": 0.7}}}
    finish("labels", inner, {"confident_learning.auroc": 0.8, "confident_learning.by.group": 0.7}, Common(), None)
    with pytest.raises(typer.Exit):
        finish("labels", inner, {"confident_learning.auroc": 0.81}, Common(), None)


def test_what_could_not_be_measured_is_null(tmp_path: Path, capsys):
    """NaN is no JSON, neither on stdout nor in a file."""
    finish("classify", {**RESULT, "recall": {"2016": math.nan}}, {}, Common(json=True), tmp_path / "result.json")
    printed, written = capsys.readouterr().out, (tmp_path / "result.json").read_text()
    assert printed == written
    assert "NaN" not in printed
    assert json.loads(printed) == {**RESULT, "lift": None, "recall": {"2016": None}}


@pytest.mark.parametrize("text", ["accuracy", "accuracy=", "accuracy=high", "accuracy=nan"])
def test_a_limit_is_a_name_and_a_number(text: str):
    with pytest.raises(SettingsError, match="name=value"):
        parse_limits([text])


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "classify"],
        ["evaluate", "estimator"],
        ["evaluate", "elements"],
        ["evaluate", "autoencoder"],
        ["evaluate", "translate", "--from", "a", "--to", "b"],
        ["trends"],
        ["report"],
    ],
)
@pytest.mark.parametrize("option", [["--out", "elsewhere"], ["--fresh"]])
def test_options_without_effect_are_passed_over(words: list[str], option: list[str], tmp_path: Path, capsys):
    """Here the folder is no run, which is what ends the command; the warning comes before."""
    assert run([*words, str(tmp_path), *option]) == 2
    said = capsys.readouterr().err
    assert f"warning: {option[0]} has no effect" in said
    assert str(tmp_path) in said.split("has no effect")[1]


def test_only_the_place_of_translations_is_fixed(tmp_path: Path, capsys):
    """--fresh means something to translate, export and diff write where --out says."""
    assert run(["translate", str(tmp_path), "--all-pairs", "--out", "elsewhere"]) == 2
    assert "--out has no effect" in capsys.readouterr().err
    for words in (["export", str(tmp_path), "--to", "csv"], ["diff", str(tmp_path), str(tmp_path)]):
        assert run([*words, "--fresh"]) == 2
        assert "--fresh has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["classify", "estimator", "elements"])
def test_a_dry_run_of_an_evaluation_only_names_its_run(name: str, tmp_path: Path, capsys):
    """There is no data set behind this run: nothing but its record is read."""
    record = tmp_path / "run.json"
    record.write_text(json.dumps({"schema_version": 1, "stages": {}, "settings": {}}))
    assert run(["evaluate", name, str(tmp_path), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(tmp_path)
    assert list(tmp_path.iterdir()) == [record]
