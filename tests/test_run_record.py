"""What a run records of itself and its data: files that could not be read, equal files, versions, time and work."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest

import typicality
from typicality import store
from typicality.store import RunDirectory


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images a label, one of them twice, and a file that is no image; mined without fine-tuning."""
    root = tmp_path_factory.mktemp("recorded")
    for label in ("blue", "red"):
        (root / "squares" / label).mkdir(parents=True)
        for i in range(4):
            shutil.copy(tiny_folder / label / f"{i}.png", root / "squares" / label)
    shutil.copy(root / "squares/blue/0.png", root / "squares/blue/copy.png")
    (root / "squares/red/broken.png").write_bytes(b"no picture")
    typicality.mine(
        root / "squares", "folder", model=str(tiny_model), out=root / "run", dtype="fp32", finetune={"enabled": False},
        score={"protocol": "paper", "draws": 2, "controls": 0}, mine={"noises": 1, "share": 1.0, "clusters": 2},
    )  # fmt: skip
    return root / "run"


def test_files_that_cannot_be_read_and_equal_files_are_named(run: Path) -> None:
    """In run.json for programs, and in the report for readers."""
    record = json.loads((run / "run.json").read_text())["dataset"]
    page = (run / "index.html").read_text()
    ((name, reason),) = record["unreadable"]
    assert name.endswith("red/broken.png")
    assert reason
    ((one, other),) = record["duplicates"]
    assert [Path(one).name, Path(other).name] == ["0.png", "copy.png"]
    assert record["n_images"] == 8
    assert "1 file that could not be read" in page
    assert f"<code><bdi>{name}</bdi></code> <bdi>{reason}</bdi>" in page
    assert "1 set of identical files" in page
    assert f"<code><bdi>{one}</bdi></code> = <code><bdi>{other}</bdi></code>" in page


def test_versions_are_those_of_the_packages_here(run: Path) -> None:
    versions = json.loads((run / "run.json").read_text())["versions"]
    assert versions["python"] == platform.python_version()
    for name in ("typicality", "torch", "diffusers", "transformers", "faiss-cpu"):
        assert versions[name] == importlib.metadata.version(name)


def test_the_index_of_a_run_finds_every_element(run: Path) -> None:
    """`index.faiss` opens in FAISS alone, and its rows are those of `features.npy`: each is nearest to itself."""
    features = np.load(run / "features.npy")
    similarity, rows = faiss.read_index(str(run / "index.faiss")).search(features, 1)
    np.testing.assert_allclose(similarity[:, 0], 1, rtol=1e-5)
    np.testing.assert_array_equal(rows[:, 0], np.arange(len(features)))


def test_a_stage_that_goes_on_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after 2 seconds and 5 evaluations, then 3 seconds and 4 more; under another key it begins anew."""
    clock = [100.0]
    monkeypatch.setattr(store.time, "monotonic", lambda: clock[0])

    def work(key: str, seconds: float, evaluations: int, stop: bool = False) -> dict:
        with RunDirectory(tmp_path).stage("score", key) as entry:
            entry["unet_evaluations"] = entry.get("unet_evaluations", 0) + evaluations
            clock[0] += seconds
            if stop:
                raise KeyboardInterrupt
        return json.loads((tmp_path / "run.json").read_text())["stages"]["score"]

    with pytest.raises(KeyboardInterrupt):
        work("a", 2.0, 5, stop=True)
    entry = work("a", 3.0, 4)
    assert (entry["state"], entry["seconds"], entry["unet_evaluations"]) == ("done", 5.0, 9)
    entry = work("b", 1.0, 3)
    assert (entry["seconds"], entry["unet_evaluations"]) == (1.0, 3)
