"""The public functions: options as keywords, and the one that has the name of a package."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

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
