"""The run directory: what counts as a run, and what `fresh` may replace."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from typicality.dataset import load_dataset
from typicality.errors import DatasetError, OutputError
from typicality.run import resolve_settings, run_record
from typicality.store import RunDirectory, check_writable, foundation, json_text, write_text


def strict(text: str) -> Any:
    """Read JSON as other programs do: NaN and Infinity are no part of it."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


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
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    assert RunDirectory(tmp_path).record["stages"] == {}


def test_what_links_lead_to_is_left(tmp_path: Path) -> None:
    """Scores on a larger disk: `fresh` removes the link, and nothing behind it."""
    (tmp_path / "disk").mkdir()
    write_text(tmp_path / "disk/shard", "maps")
    directory = RunDirectory(tmp_path / "run")
    directory.save()
    directory.path("scores").symlink_to(tmp_path / "disk")
    directory.clear()
    assert not directory.path("scores").is_symlink()
    assert (tmp_path / "disk/shard").exists()


@pytest.mark.parametrize(
    ("code", "message"), [(errno.EWOULDBLOCK, "another process is writing"), (errno.ENOSYS, "has no locks")]
)
def test_why_a_run_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str) -> None:
    """Some network file systems have no locks: nobody is to wait for a process that does not exist."""

    def flock(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OutputError, match=message), RunDirectory(tmp_path).lock():
        pass


def test_runs_that_are_opened_at_once_do_not_disturb_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call looks whether it may write while the first one does, and a third clears up after killed ones."""
    touch = Path.touch

    def at_once(path: Path) -> None:
        touch(path)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "touch", touch)
            with RunDirectory(tmp_path).lock():
                assert not path.exists()

    monkeypatch.setattr(Path, "touch", at_once)
    RunDirectory(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_processes_look_in_files_of_their_own_whether_they_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, touch = set(), Path.touch
    monkeypatch.setattr(Path, "touch", lambda path: (names.add(path.name), touch(path))[1])
    for process in (7, 8):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        for machine in ("here", "there"):
            monkeypatch.setattr(socket, "gethostname", lambda machine=machine: machine)
            RunDirectory(tmp_path)
    assert len(names) == 4


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


def test_what_is_no_number_is_null_at_any_depth() -> None:
    document = {"a": math.nan, "b": [1.5, {"c": (math.inf, "ü")}], "d": np.float32("nan"), "e": Path("x"), "f": None}
    assert strict(json_text(document)) == {"a": None, "b": [1.5, {"c": [None, "ü"]}], "d": None, "e": "x", "f": None}


def test_a_record_with_a_loss_that_is_no_number_is_json(tmp_path: Path) -> None:
    """The loss before the first step is not a number; run.json is read by more than Python."""
    run = RunDirectory(tmp_path)
    with run.stage("finetune", "key") as entry:
        entry["history"] = [{"step": 0, "loss": math.nan}]
    stored = strict((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert stored["stages"]["finetune"]["history"] == [{"step": 0, "loss": None}]


def test_a_file_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    """Not even root can: the message is about the place, and no room has to be made."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "deep" / "x"):
        with pytest.raises(OutputError, match="choose a place that can be written"):
            write_text(path, "text")
        with pytest.raises(OutputError, match="is no folder"):
            check_writable(path)


def test_a_place_is_checked_without_making_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "deep" / "x.json")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "access", lambda folder, _: folder != tmp_path)
    with pytest.raises(OutputError, match="may not be written"):
        check_writable(tmp_path / "new" / "x.json")


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_that_name_without_a_record_is_somebodys(tmp_path: Path, fresh: bool) -> None:
    """Runs write run.json first, so that a `model` or an `assets` without it is none of theirs."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.txt").write_text("precious")
    with pytest.raises(OutputError, match="holds no run"):
        RunDirectory(tmp_path, fresh=fresh)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json.8.tmp").touch()  # of a run that was killed at once
    RunDirectory(tmp_path / "run", fresh=fresh)


def test_a_data_set_in_a_file_of_settings_has_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not mined as emoji are; and DATASET on the command line wins over the file, as other options do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "my.yaml").write_text("dataset: {source: photos, label: year}")
    found = resolve_settings(None, tmp_path / "my.yaml")
    assert (found.dataset.source, found.dataset.group) == (str(tmp_path / "photos"), None)
    assert found.prompt == resolve_settings("photos").prompt != resolve_settings("emoji").prompt
    assert resolve_settings(None, None, [{"dataset": {"source": "photos"}}]) == resolve_settings("photos")
    assert resolve_settings("flags", tmp_path / "my.yaml").dataset.source == "flags"
    assert resolve_settings("flags", tmp_path / "my.yaml").dataset.label == "year"
    assert resolve_settings(None).dataset.source == "emoji"
    with pytest.raises(DatasetError, match="there is no data set ''"):
        load_dataset(resolve_settings("").dataset)


def test_paths_of_settings_hold_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns and files of boxes too; a column of boxes stays a name, also where a folder is called like it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tar").touch()
    (tmp_path / "truth.json").touch()
    (tmp_path / "box").mkdir()
    assert resolve_settings("*.tar").dataset.source == str(tmp_path / "*.tar")
    assert resolve_settings("*.zip").dataset.source == "*.zip"
    for boxes, recorded in (("truth.json", str(tmp_path / "truth.json")), ("box", "box"), ("x0,y0,x1,y1",) * 2):
        assert resolve_settings("emoji", None, [{"dataset": {"boxes": boxes}}]).dataset.boxes == recorded


def test_half_written_models_of_killed_runs_are_removed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.save()
    for part in (tmp_path / "model.part", tmp_path / "model" / "fold-1.part", tmp_path / "model" / "fold-0"):
        part.mkdir(parents=True)
        (part / "weights").touch()
    with run.lock():
        assert sorted(p.name for p in tmp_path.rglob("weights")) == ["weights"]
    assert (tmp_path / "model" / "fold-0" / "weights").exists()


def test_a_model_that_is_switched_off_is_no_foundation() -> None:
    """The report leaves out the stage of a model that takes no part; what was found without it is not stale there."""
    stages = {"finetune": {"weights": "w"}, "mine": {"key": "m"}}
    names = ("finetune", "mine", "trends")
    with_model = {"settings": {"finetune": {"enabled": True}}, "stages": stages}
    assert foundation(with_model, names) == {"finetune": "w", "mine": "m", "trends": None}
    without = {"settings": {"finetune": {"enabled": False}}, "stages": stages}
    shown = {**without, "stages": {"mine": {"key": "m"}}}
    assert foundation(without, names) == foundation(shown, names) == {"finetune": None, "mine": "m", "trends": None}


def test_a_record_that_may_not_be_read_is_nothing_to_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may be the user's images: the message must not tell to start anew there."""

    def refuse(path: Path, **_: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(OutputError, match=r"run\.json may not be read: Permission denied$"):
        run_record(str(tmp_path))
