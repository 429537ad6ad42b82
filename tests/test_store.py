"""The run directory: what counts as a run, and what `fresh` may replace."""

from __future__ import annotations

from pathlib import Path

import pytest

from typicality.errors import OutputError
from typicality.run import resolve_settings, run_record
from typicality.store import RunDirectory


@pytest.mark.parametrize("content", ["{", '{"schema_version": 99, "stages": {}, "settings": {}}'])
def test_a_run_that_cannot_be_read_can_be_replaced(tmp_path: Path, content: str) -> None:
    """A damaged record, and one of another version: the message says how to start anew, and that then works."""
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "scores").mkdir()
    with pytest.raises(OutputError, match=rf"--out {tmp_path} --fresh"):
        RunDirectory(tmp_path)
    with pytest.raises(OutputError, match=rf"--out {tmp_path} --fresh"):
        resolve_settings(str(tmp_path))
    directory = RunDirectory(tmp_path, fresh=True)
    directory.clear()
    assert directory.record["stages"] == {}
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("content", ['{"lap": 3}', "[1, 2]", "{"])
def test_a_data_folder_with_a_file_of_that_name_is_no_run(tmp_path: Path, content: str, fresh: bool) -> None:
    """Its run.json and its `model` are somebody's data: not even --fresh may remove them."""
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "model").mkdir()
    (tmp_path / "photo.png").touch()
    with pytest.raises(OutputError):
        RunDirectory(tmp_path, fresh=fresh)
    assert (tmp_path / "run.json").read_text() == content
    assert (tmp_path / "model").is_dir()


def test_a_data_folder_with_a_file_of_that_name_is_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"lap": 3}')
    assert run_record(str(tmp_path)) is None
    assert resolve_settings(str(tmp_path)).dataset.source == str(tmp_path)
