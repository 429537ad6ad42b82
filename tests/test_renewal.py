"""The report after an application: what the application has found stands, whether or not it can be rendered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.applications.mined import change_record, note_mined, write_mined
from typicality.cli.app import run as command


@pytest.mark.slow
def test_an_audit_without_the_model_does_not_need_it_for_the_report(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder of the model is gone: the document is printed and the condition is tested all the same."""
    run = write_mined(tmp_path / "run", tiny_folder)
    change_record(run, note_mined)
    change_record(run, lambda record: record["model"].update(resolved=str(tmp_path / "gone")))
    assert command(["audit", str(run), "--images-only", "--json", "--fail-on", "findings>=0"]) == 1
    out, said = capsys.readouterr()
    assert json.loads(out)["dataset"]["n_images"] == 32
    assert f"not in the report yet: there is no model folder '{tmp_path / 'gone'}'" in said
    assert (run / "findings.json").is_file()
