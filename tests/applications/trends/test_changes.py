"""Which translations count: those that are finished and were made by the model that the run has now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typicality.applications.trends.changes import translated_folders
from typicality.store import RunDirectory


def test_translations_of_a_replaced_model_are_passed_over(tmp_path: Path):
    """One of the present model, one that says nothing of it (older), one of an earlier model, and one that stopped."""
    directory = RunDirectory(tmp_path)
    stages: dict[str, dict[str, Any]] = directory.record["stages"]
    stages["finetune"] = {"state": "done", "weights": "w2"}
    for name, more in {
        "a": {"state": "done", "built_on": {"finetune": "w2"}},
        "b": {"state": "done"},
        "c": {"state": "done", "built_on": {"finetune": "w1"}},
        "d": {"state": "interrupted", "built_on": {"finetune": "w2"}},
    }.items():
        stages[f"translate {name} to z"] = {"folder": name, **more}
        place = directory.path("translate", name)
        place.mkdir(parents=True)
        (place / "translations.parquet").touch()
    folders, passed_over = translated_folders(directory)
    assert [place.name for place in folders] == ["a", "b"]
    assert passed_over == 2
