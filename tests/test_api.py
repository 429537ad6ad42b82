"""The public functions: options as keywords, and the one that has the name of a package."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.applications.mined import write_mined
from typicality import api
from typicality.api import settings_for
from typicality.errors import InputError, SettingsError


def test_the_package_of_reports_is_the_function_too(tmp_path: Path) -> None:
    """Whoever has imported `typicality.report` finds the package under the name of the function."""
    with pytest.raises(InputError):
        import_module("typicality.report")(tmp_path / "nothing")


def test_options_of_commands_are_keywords_and_settings() -> None:
    """`steps=5` is `finetune={"steps": 5}`; a prompt may be the template or the section."""
    found = settings_for("emoji", "year", steps=5, draws=2, no_finetune=True, prompt="{label}!", score={"t_min": 0.2})
    assert (found.finetune.steps, found.finetune.enabled, found.score.draws, found.score.t_min) == (5, False, 2, 0.2)
    assert settings_for("emoji", prompt={"template": "{label}!"}).prompt == found.prompt
    found = settings_for("emoji", patch=16, title="T", masks="m", boxes="b", model=Path("x"))
    assert (found.mine.patch, found.report.title, found.model.name) == (16, "T", "x")
    assert (found.dataset.masks, found.dataset.boxes) == ("m", "b")
    found = settings_for("emoji", model={"name": "y", "size": 128}, device="cpu")
    assert (found.model.name, found.model.size, found.model.device) == ("y", 128, "cpu")
    assert settings_for("emoji", strict=False).dataset.strict is False
    with pytest.raises(SettingsError, match="finite"):
        settings_for("emoji", minutes=float("inf"))
    with pytest.raises(SettingsError, match="unknown setting 'stepps'"):
        settings_for("emoji", stepps=5)


@pytest.mark.parametrize(
    ("misspelt", "meant"), [("lable", "label"), ("step", "steps"), ("devise", "device"), ("repport", "report")]
)
def test_a_misspelt_keyword_is_told_from_all_that_there_are(misspelt: str, meant: str) -> None:
    """Options, sections, and the keywords of the function itself; each is named once."""
    with pytest.raises(SettingsError, match=f"unknown setting '{misspelt}': did you mean '{meant}'") as caught:
        settings_for("emoji", **{misspelt: "x"})
    names = str(caught.value).partition("did you mean ")[2].rstrip("?").split(" or ")
    assert len(names) == len(set(names))


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a public function hands to the one that does the work; instead of it nothing is done."""
    found: dict[str, Any] = {}
    names = ("audit_dataset", "benchmark_elements", "benchmark_estimator", "benchmark_labels", "benchmark_planted")
    for name in names:
        monkeypatch.setattr(api, name, lambda *a, **k: found.update(k, positional=a))
    return found


def test_the_draws_of_an_audit_are_those_of_its_command(passed: dict[str, Any]) -> None:
    """`draws` are those of `mine`, and `label_draws` are its own, as --draws and --label-draws."""
    api.audit("emoji", "year", draws=4, label_draws=8)
    assert (passed["positional"][0].score.draws, passed["draws"]) == (4, 8)


def test_pictures_may_be_named_by_text(passed: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    """Else it fails when the picture is drawn, after hours."""
    run = write_mined(tmp_path / "run", tiny_folder)
    for function in (api.evaluate_elements, api.evaluate_estimator, api.evaluate_labels, api.evaluate_planted):
        passed.clear()
        function(run, picture="curves.png")
        assert Path("curves.png") in (passed.get("picture"), *passed["positional"]), function.__name__


@pytest.mark.parametrize("function", [api.evaluate_labels, api.evaluate_planted])
def test_two_folds_where_a_call_names_no_number(
    function: Any, passed: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    """Whatever the run has, which is one here."""
    run = write_mined(tmp_path / "run", tiny_folder)
    (tmp_path / "own.yaml").write_text("finetune: {folds: 1}")
    for options, folds in (
        ({}, 2), ({"folds": 3}, 3), ({"folds": 1}, 1), ({"finetune": {"folds": 1}}, 1), ({"finetune": {"steps": 1}}, 2),
        ({"config": tmp_path / "own.yaml"}, 1),
    ):  # fmt: skip
        function(run, **options)
        assert passed["positional"][0].finetune.folds == folds, options
